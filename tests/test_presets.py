"""The cards of the presets: as the command writes them, about configurations that can be built."""

import re
from pathlib import Path

import pytest
import torch

from hf_speech_ssl import BiRQConfig, BiRQModel, ChunkSSLConfig, FSQConfig
from hf_speech_ssl.cli import main
from hf_speech_ssl.families import FAMILIES
from hf_speech_ssl.hub.presets import preset_card, preset_names

CARDS = Path(__file__).parents[1] / "model_cards"
COMMAND = "hf-speech-ssl presets"


def test_there_is_a_card_for_every_preset():
    names = [name for config in (BiRQConfig, ChunkSSLConfig, FSQConfig) for name in config._presets]
    assert preset_names() == names and {name for family in FAMILIES for name in family.preset_notes} == set(names)
    there = {file.stem for file in CARDS.glob("*.md")} - {"template", "preset_template"}
    assert there == set(names)


def test_the_committed_cards_are_what_the_command_writes(tmp_path):
    assert main(["presets", "--output_dir", str(tmp_path)]) == 0
    for name in preset_names():
        written, committed = ((folder / f"{name}.md").read_text() for folder in (tmp_path, CARDS))
        assert written == committed, f"model_cards/{name}.md is out of date: run `{COMMAND}`"


def test_the_sizes_are_those_of_real_models():
    count = BiRQModel(BiRQConfig.from_preset("birq-tiny")).num_parameters()
    assert f"| parameters of the encoder | {count:,} (2.0 million) |" in preset_card("birq-tiny").text


@pytest.mark.parametrize("name", preset_names())
def test_a_card_is_valid_and_its_snippet_runs(name, capsys):
    card = preset_card(name)
    assert card.data.pipeline_tag == "feature-extraction" and card.data.eval_results is None
    assert "None " not in card.text.replace("None have", "") and "{{" not in card.text.split("```bibtex")[0]
    (snippet,) = re.findall(r"```python\n(.*?)```", card.text, flags=re.DOTALL)
    with torch.device("meta" if not name.endswith("tiny") else "cpu"):
        if name.endswith("tiny"):
            exec(snippet, {})
            assert "tensor(" in capsys.readouterr().out
        else:  # large ones: that the model can be built
            exec(snippet.split("features =")[0], {})


def test_no_such_preset():
    with pytest.raises(ValueError, match="no preset 'birq-huge'; the presets are birq-tiny"):
        preset_card("birq-huge")
