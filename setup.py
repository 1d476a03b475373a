"""Finds the packages; everything else stands in pyproject.toml."""

from setuptools import find_namespace_packages, setup

# These lie beside the package, because they travel with checkpoints and are read by people. The links to them in
# hf_speech_ssl/ are for working in the repository: source archives and some systems have none.
BESIDE = {"hf_speech_ssl.modeling": "modeling", "hf_speech_ssl.model_cards": "model_cards"}

found = find_namespace_packages(include=["hf_speech_ssl*"], exclude=["*__pycache__*"])
setup(packages=sorted({*found, *BESIDE}), package_dir=BESIDE)
