"""The cards of the published presets: `hf-speech-ssl presets` writes them into model_cards/.

A preset is a configuration without weights. Its card says what is in it, how large it is, how to train it, and how the
paper did: no result that no file of the repository holds.
"""

import re
from typing import Any

import torch
from huggingface_hub import ModelCard, ModelCardData

from ..families import FAMILIES, Family, family_of_preset
from ..modeling.configuration_conformer import SpeechSSLConfig
from .card import TEMPLATE, citations, codebook_entries, common_metadata, config_rows, count_text, frame_ms

PRESET_TEMPLATE = TEMPLATE.with_name("preset_template.md")
RESULTS = TEMPLATE.resolve().parents[1] / "benchmarks" / "results"  # only where the repository is

HEAD_NAMES = {
    "base": "parameters of the encoder",
    "pretraining": "parameters trained in pretraining",
    "ctc": "parameters with a CTC head of 32 characters",
}


def preset_names() -> list[str]:
    """All published presets."""
    return [name for family in FAMILIES for name in family.preset_names]


def preset_card(name: str) -> ModelCard:
    """The card of a preset.

    Raises:
        ValueError: there is no such preset.
    """
    family = family_of_preset(name)
    config = family.config_class.from_preset(name)
    data = ModelCardData(license="apache-2.0", **common_metadata(family.kind, family))
    return ModelCard.from_template(data, template_path=str(PRESET_TEMPLATE), **_words(name, family, config))


def _words(name: str, family: Family, config: SpeechSSLConfig) -> dict[str, Any]:
    """All that the template's placeholders stand for."""
    return {
        "name": name,
        "kind": family.kind,
        "description": _description(family, config),
        "purpose": _PURPOSES[name.endswith("tiny")],
        "streams": family.streams,
        "tokenizer": "fsq-tiny" if name == "chunkssl-tiny" else "fsq-base",
        "override": family.override,
        "classes": {
            "config": family.config_class.__name__,
            "pretraining": family.model_class("pretraining").__name__,
        },
        "parameters": _parameters(family, config),
        "frame_ms": frame_ms(config),
        "rate": f"{config.frame_rate:g}",
        "codebook_entries": f"{codebook_entries(config):,}",
        "architecture": config_rows(family, config, family.kind),
        "paper": family.preset_notes[name],
        "figures": _figures(name),
        **citations(family),
    }


_PURPOSES = {
    True: "It is made to learn something within minutes on a laptop; a larger one is for results.",
    False: "It is meant for training on real speech.",
}


def _description(family: Family, config: Any) -> str:
    if family.is_tokenizer:
        return (
            f"A finite scalar quantizer for speech: {config.fsq_num_hidden_layers} layers of width "
            f"{config.fsq_hidden_size} that turn {frame_ms(config)} ms of audio into one of "
            f"{codebook_entries(config):,} labels, the targets of Chunk SSL pretraining."
        )
    window = config.attention_window
    if family.streams:
        sees = "the past, its own chunk and one chunk ahead, or offline the whole utterance"
    else:
        sees = f"the {window // 2} frames to either side" if window else "the whole utterance"
    return (
        f"A {family.name} speech encoder for self-supervised pretraining: "
        f"{config.num_hidden_layers} Conformer blocks of width {config.hidden_size}, one vector for every "
        f"{frame_ms(config)} ms of 16 kHz audio. A frame sees {sees}."
    )


def _parameters(family: Family, config: SpeechSSLConfig) -> dict[str, str]:
    """Numbers of trained parameters, counted on models without memory."""
    with torch.device("meta"):
        if family.is_tokenizer:
            counts = {"parameters, decoder included": family.model_class("base")(config).num_parameters()}
        else:
            heads = HEAD_NAMES.items()
            counts = {what: family.model_class(head)(config).num_parameters() for head, what in heads}
    return {
        what: f"{count:,} ({count_text(count)})" if count >= 1e6 else f"{count:,}" for what, count in counts.items()
    }


def _figures(name: str) -> list[str]:
    """Result files of the benchmarks that name the preset."""
    files = sorted(RESULTS.rglob("*.md")) if RESULTS.is_dir() else []
    word = re.compile(rf"(?<![\w-]){re.escape(name)}(?![\w-])")
    return [file.relative_to(RESULTS).as_posix() for file in files if word.search(file.read_text(encoding="utf-8"))]
