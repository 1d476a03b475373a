"""The page of the presets: as the command writes it, about configurations that can be built."""

import re
from pathlib import Path

import pytest
import torch

from hf_speech_ssl import BiRQConfig, BiRQModel, ChunkSSLConfig, FSQConfig
from hf_speech_ssl.cli import main
from hf_speech_ssl.families import FAMILIES, family_of_preset
from hf_speech_ssl.hub.card import count_text
from hf_speech_ssl.hub.presets import preset_names, presets_page

PAGE = Path(__file__).parents[1] / "model_cards" / "presets.md"


def test_every_preset_has_a_note_and_a_column():
    names = [name for config in (BiRQConfig, ChunkSSLConfig, FSQConfig) for name in config._presets]
    assert preset_names() == names and [name for family in FAMILIES for name in family.preset_notes] == names
    heads = [line for line in PAGE.read_text().splitlines() if re.match(r"\| +\|", line)]
    assert [cell.strip() for line in heads for cell in line.split("|") if cell.strip()] == names


def test_the_committed_page_is_what_the_command_writes(tmp_path, capsys):
    assert main(["presets", "--output_file", str(tmp_path / "presets.md")]) == 0
    written = (tmp_path / "presets.md").read_text()
    command = "hf-speech-ssl presets --output_file model_cards/presets.md"
    assert written == PAGE.read_text(), f"model_cards/presets.md is out of date: run `{command}`"
    assert command in written
    assert main(["presets"]) == 0 and capsys.readouterr().out == written


def test_the_sizes_are_those_of_real_models():
    count = BiRQModel(BiRQConfig.from_preset("birq-tiny")).num_parameters()
    sizes = re.search(r"\| parameters of the encoder +\| +([^|]+?) \|", PAGE.read_text())
    assert sizes and sizes[1] == count_text(count)


def test_the_snippets_run(capsys):
    snippets = re.findall(r"```python\n(.*?)```", presets_page(), flags=re.DOTALL)
    assert len(snippets) == len(FAMILIES)
    for snippet in snippets:
        exec(snippet, {})
        assert "tensor(" in capsys.readouterr().out


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_can_be_built(name):
    family = family_of_preset(name)
    config = family.config_class.from_preset(name)
    with torch.device("meta"):
        assert family.model_class("pretraining")(config).num_parameters() > 0
    for head in ("pretraining", "ctc"):
        assert all(hasattr(config, field) for field in family.shown_fields(config, head))


def test_no_such_preset():
    with pytest.raises(ValueError, match="no preset 'large'.*birq, chunkssl, fsq"):
        family_of_preset("large")
