"""The rules on imports, read from the syntax trees of all files. Each rule is also seen to refuse a planted file.

1. modeling/ imports the standard library, numpy, torch, transformers and what transformers itself is built on, and its
   own files as `from .x import y` at the top of the file, which is the form that saving remote code can follow; of
   the two families neither reaches the other.
2. Arrows run one way: modeling <- loading <- data, evaluation, decoding <- training, recognition, probing, hub
   <- export, extraction, serving <- demo <- commands, cli and scripts. A room imports itself and lower layers. Nothing
   imports a script, nor a top-level `modeling`.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers.dynamic_module_utils import get_relative_imports

REPOSITORY = Path(__file__).parents[1]
MODELING_MAY_IMPORT = {"huggingface_hub", "numpy", "torch", "transformers"} | sys.stdlib_module_names
FAMILIES = ("_birq", "_chunkssl")
SCRIPT_FOLDERS = ("pretraining_scripts", "finetuning_scripts")
CHECKED_FOLDERS = ("modeling", "hf_speech_ssl", *SCRIPT_FOLDERS, "benchmarks", "tests")
LAYERS = {
    "modeling": 0,
    "json_files": 0,
    "verdict": 1,
    "options": 0,
    "paths": 0,
    "console": 0,
    "families": 1,
    "run_folder": 2,
    "registration": 2,
    "loading": 2,
}
LAYERS |= {"data": 3, "evaluation": 3, "decoding": 3, "training": 4, "recognition": 4, "hub": 4, "probing": 4}
LAYERS |= {"export": 5, "extraction": 5, "serving": 5, "demo": 6}
TOP_LAYER = 7  # cli, commands and every other file of the package that is not named above


def python_files(root: Path, folder: str) -> list[Path]:
    linked = root / "hf_speech_ssl" / "modeling"  # the same files as modeling/, seen through a symlink
    return [path for path in sorted((root / folder).rglob("*.py")) if linked not in path.parents]


def absolute_imports(path: Path, root: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of all that a file imports, wherever it stands in it; `from a import b` gives a.b."""
    package = path.relative_to(root).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) + 1 - node.level]) if node.level else ""
            source = ".".join(part for part in (base, node.module) if part)
            yield from ((node.lineno, f"{source}.{alias.name}") for alias in node.names)


def relative_imports(path: Path) -> list[ast.ImportFrom]:
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return [node for node in nodes if isinstance(node, ast.ImportFrom) and node.level]


def modeling_violations(root: Path) -> Iterator[str]:
    files = {path.stem: path for path in python_files(root, "modeling")}
    for path in files.values():
        for line, name in absolute_imports(path, root):
            if name.split(".")[0] not in MODELING_MAY_IMPORT | {"modeling"} or name.startswith("importlib"):
                yield f"{path.name}:{line}: modeling imports {name}"
        top_level = ast.parse(path.read_text(encoding="utf-8")).body
        at_top = {node.lineno for node in top_level if isinstance(node, ast.ImportFrom)}
        for node in relative_imports(path):
            plain = node.level == 1 and node.module in files and all(alias.name != "*" for alias in node.names)
            if not plain or node.lineno not in at_top:
                yield f"{path.name}:{node.lineno}: not `from .x import y` of a sibling at the top of the file"
        # transformers finds the files to copy by a pattern, in docstrings too.
        if ghosts := set(get_relative_imports(path)) - {node.module for node in relative_imports(path)}:
            yield f"{path.name}: a text looks like an import of {sorted(ghosts)}, which saving would look for"


def family_violations(root: Path) -> Iterator[str]:
    files = {path.stem: path for path in python_files(root, "modeling") if path.stem != "__init__"}
    for family, other in (FAMILIES, FAMILIES[::-1]):
        waiting, reached = [stem for stem in files if stem.endswith(family)], set()
        while waiting:
            stem = waiting.pop()
            reached.add(stem)
            imported = {node.module for node in relative_imports(files[stem])} & set(files)
            waiting += sorted(imported - reached)
        yield from (f"{family[1:]} reaches {stem}" for stem in sorted(reached) if stem.endswith(other))


def room(dotted_name: str, root: Path) -> str:
    """The room of hf_speech_ssl that a name belongs to; "" for a name of the package's own __init__."""
    name = (dotted_name.split(".") + [""])[1]
    package = root / "hf_speech_ssl"
    exists = (package / name).is_dir() or (package / f"{name}.py").is_file() or name in LAYERS
    return name if exists else ""


def arrow_violations(root: Path) -> Iterator[str]:
    for path in python_files(root, "hf_speech_ssl"):
        parts = path.relative_to(root / "hf_speech_ssl").with_suffix("").parts
        own = "" if parts == ("__init__",) else parts[0]
        for line, name in absolute_imports(path, root):
            if name.split(".")[0] != "hf_speech_ssl":
                continue
            other = room(name, root)
            # The package's __init__ gathers the public names of the lowest layers: from there it is the top's to use.
            layer = 3 if own == "" else LAYERS.get(own, TOP_LAYER)
            other_layer = TOP_LAYER - 1 if other == "" else LAYERS.get(other, TOP_LAYER)
            version = name == "hf_speech_ssl.__version__"
            if own != other and other_layer >= layer and not version and not layer == other_layer == TOP_LAYER:
                yield f"{path.relative_to(root)}:{line}: {own or '__init__'} imports {name}, which is not below it"


def script_violations(root: Path) -> Iterator[str]:
    scripts = {path.stem for folder in SCRIPT_FOLDERS for path in python_files(root, folder)} - {"__init__"}
    for folder in CHECKED_FOLDERS:
        for path in python_files(root, folder):
            for line, name in absolute_imports(path, root):
                first = name.split(".")[0]
                relative = path.parent == root / "modeling" and any(
                    node.lineno == line for node in relative_imports(path)
                )
                if first == "modeling" and not relative:
                    yield f"{path.relative_to(root)}:{line}: imports a top-level modeling"
                if folder != "tests" and (first in SCRIPT_FOLDERS or first in scripts):
                    yield f"{path.relative_to(root)}:{line}: imports the script {name}"


RULES = {
    "modeling": modeling_violations,
    "families": family_violations,
    "arrows": arrow_violations,
    "scripts": script_violations,
}


@pytest.mark.parametrize("rule", RULES)
def test_the_repository_keeps_the_rule(rule: str) -> None:
    assert python_files(REPOSITORY, "modeling") and python_files(REPOSITORY, "hf_speech_ssl")
    assert list(RULES[rule](REPOSITORY)) == []


SOUND_TREE = {
    "modeling/__init__.py": '"""Model code."""\n',
    "modeling/masking.py": "import math\n\nimport torch\n",
    "modeling/modeling_birq.py": "from transformers import PreTrainedModel\n\nfrom .masking import (\n    draw,\n)\n",
    "modeling/modeling_chunkssl.py": "from .masking import draw\n",
    "hf_speech_ssl/__init__.py": "from .modeling.modeling_birq import BiRQModel\n",
    "hf_speech_ssl/data/__init__.py": "",
    "hf_speech_ssl/data/audio.py": "from ..modeling.masking import draw\nfrom . import batching\n",
    "hf_speech_ssl/data/batching.py": "import soundfile\n",
    "hf_speech_ssl/decoding.py": "import torch\n",
    "hf_speech_ssl/training/loop.py": "from ..decoding import greedy\nfrom hf_speech_ssl.data.audio import load\n",
    "hf_speech_ssl/hub.py": "from . import __version__\nfrom . import data\n",
    "hf_speech_ssl/cli.py": "from .live import show\n",
    "hf_speech_ssl/live.py": "from hf_speech_ssl import BiRQModel\nfrom .training import loop\n",
    "pretraining_scripts/run_birq.py": "from hf_speech_ssl import BiRQModel\n",
    "tests/test_scripts.py": "from pretraining_scripts import run_birq\n",
}

PLANTED = {
    "the package": ("modeling", "modeling/quantization.py", "def f():\n    import hf_speech_ssl\n"),
    "another library": ("modeling", "modeling/quantization.py", "from scipy import signal\n"),
    "importlib": ("modeling", "modeling/quantization.py", "import importlib\n"),
    "from . import": ("modeling", "modeling/quantization.py", "from . import masking\n"),
    "two levels up": ("modeling", "modeling/quantization.py", "from ..data import audio\n"),
    "a folder": ("modeling", "modeling/quantization.py", "from .layers.attention import x\n"),
    "a star": ("modeling", "modeling/quantization.py", "from .masking import *\n"),
    "in a function": ("modeling", "modeling/quantization.py", "def f():\n    from .masking import draw\n"),
    "no such file": ("modeling", "modeling/quantization.py", "from .ghost import x\n"),
    "a docstring": ("modeling", "modeling/quantization.py", '"""Example:\n\n    from .ghost import x\n"""\n'),
    "family": ("families", "modeling/configuration_birq.py", "from .modeling_chunkssl import ChunkSSLModel\n"),
    "family by way of": ("families", "modeling/masking.py", "from .modeling_birq import BiRQModel\n"),
    "upwards": ("arrows", "hf_speech_ssl/data/rows.py", "from ..training.loop import run\n"),
    "upwards, absolute": ("arrows", "hf_speech_ssl/decoding.py", "import hf_speech_ssl.training.loop\n"),
    "upwards, from the package": ("arrows", "hf_speech_ssl/decoding.py", "from hf_speech_ssl import training\n"),
    "upwards, in a function": ("arrows", "hf_speech_ssl/hub.py", "def f():\n    from .live import show\n"),
    "sideways": ("arrows", "hf_speech_ssl/decoding.py", "from .data.audio import load\n"),
    "by the public names": ("arrows", "hf_speech_ssl/data/rows.py", "from .. import BiRQModel\n"),
    "the __init__": ("arrows", "hf_speech_ssl/__init__.py", "from .training.loop import run\n"),
    "a script": ("scripts", "hf_speech_ssl/cli.py", "from pretraining_scripts.run_birq import main\n"),
    "a script by its name": ("scripts", "finetuning_scripts/run_ctc.py", "import run_birq\n"),
    "top-level modeling": ("scripts", "tests/test_scripts.py", "from modeling.masking import draw\n"),
    "top-level modeling inside": ("scripts", "modeling/masking.py", "import modeling\n"),
}


def write_tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return root


def test_a_sound_tree_passes(tmp_path: Path) -> None:
    root = write_tree(tmp_path, SOUND_TREE)
    (root / "hf_speech_ssl" / "modeling").symlink_to(root / "modeling")
    assert {name: list(rule(root)) for name, rule in RULES.items()} == {name: [] for name in RULES}


@pytest.mark.parametrize("case", PLANTED)
def test_the_rule_refuses(case: str, tmp_path: Path) -> None:
    rule, name, text = PLANTED[case]
    root = write_tree(tmp_path, SOUND_TREE | {name: text})
    violations = list(RULES[rule](root))
    assert violations
    assert rule == "families" or all(name.rsplit("/")[-1] in violation for violation in violations)
