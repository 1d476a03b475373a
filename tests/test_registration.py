"""Importing the package costs nothing and registers the families, whatever is imported first."""

import subprocess
import sys

import pytest

import hf_speech_ssl

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


def run(program: str) -> None:
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("order", IMPORT_ORDERS)
def test_the_auto_classes_know_the_families(order: str) -> None:
    run(f"{IMPORT_ORDERS[order]}\nimport hf_speech_ssl\n{CHECK}")


def test_public_names_are_imported_when_they_are_used() -> None:
    run("import hf_speech_ssl, sys; assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)")
    assert sorted(hf_speech_ssl._MODULES) == sorted(hf_speech_ssl.__all__)
    assert all(getattr(hf_speech_ssl, name).__name__ == name for name in hf_speech_ssl.__all__)
    assert set(hf_speech_ssl.__all__) <= set(dir(hf_speech_ssl))
    with pytest.raises(AttributeError, match="has no attribute 'BiRQ'"):
        hf_speech_ssl.BiRQ
