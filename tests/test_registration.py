"""Importing the package costs nothing and registers the families, whatever is imported first."""

import importlib
import subprocess
import sys
from types import ModuleType

import pytest

import hf_speech_ssl
from hf_speech_ssl import recognition

IMPORT_ORDERS = {
    "package first": "import hf_speech_ssl; from transformers import AutoConfig, AutoModelForCTC",
    "auto classes first": "from transformers import AutoConfig, AutoModelForCTC; import hf_speech_ssl",
    # modeling_layers imports the Auto classes before it has defined what our layers derive from.
    "from inside transformers": "import hf_speech_ssl, transformers.modeling_layers; "
    "from transformers import AutoConfig, AutoModelForCTC",
    "from inside the package": "import hf_speech_ssl.recognition.recognizer; "
    "from transformers import AutoConfig, AutoModelForCTC",
    "public name first": "from hf_speech_ssl import FSQConfig; from transformers import AutoConfig, AutoModelForCTC",
}
CHECK = """
config = AutoConfig.for_model("birq", hidden_size=8, num_attention_heads=2, num_hidden_layers=1)
assert type(AutoModelForCTC.from_config(config)) is hf_speech_ssl.BiRQForCTC
from transformers.models.auto.feature_extraction_auto import feature_extractor_class_from_name
assert feature_extractor_class_from_name("SpeechSSLFeatureExtractor") is hf_speech_ssl.SpeechSSLFeatureExtractor
import sys
assert not [finder for finder in sys.meta_path if "hf_speech_ssl" in type(finder).__module__]
"""


# Runs each program of argv in a process that has torch already, which knows nothing of the package and takes seconds.
FORKS = """
import os, sys, torch
for program in sys.argv[1:]:
    child = os.fork()
    if not child:
        exec(program)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        sys.exit("It came of " + program)
"""


def run(program: str, *arguments: str) -> None:
    result = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_the_auto_classes_know_the_families() -> None:
    run(FORKS, *(f"{order}\nimport hf_speech_ssl\n{CHECK}" for order in IMPORT_ORDERS.values()))


@pytest.mark.parametrize(
    ("room", "place"), [(hf_speech_ssl, "hf_speech_ssl.modeling"), (recognition, recognition.__name__)]
)
def test_public_names_are_imported_when_they_are_used(room: ModuleType, place: str) -> None:
    fresh = "assert not {'torch', 'transformers', 'numpy'} & {*sys.modules}; assert {*room.__all__} <= {*dir(room)}"
    run(f"import {room.__name__} as room, sys; {fresh}")
    assert sorted(room._MODULES) == sorted(room.__all__)
    for name, module in room._MODULES.items():
        assert getattr(room, name) is getattr(importlib.import_module(f"{place}.{module}"), name)
    with pytest.raises(AttributeError, match="has no attribute 'BiRQ'"):
        room.BiRQ
