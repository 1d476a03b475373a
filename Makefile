# Every target makes its environment first, from pyproject.toml and the exact versions in constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Empty for the newest versions that pyproject.toml allows.
CONSTRAINTS := constraints.txt

.PHONY: test test-slow lint format quickstart clean

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(addprefix -c ,$(CONSTRAINTS)) -e '.[synthetic,lm,demo,export,serve,translation,units,vad,dev]'
	touch $(READY)

test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist worksteal -m 'not slow'

test-slow: $(READY)
	$(BIN)/python -m pytest -n 2 --dist worksteal -m slow

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

quickstart: $(READY)
	$(BIN)/python examples/quickstart.py

clean:
	rm -rf $(VENV) outputs build *.egg-info
