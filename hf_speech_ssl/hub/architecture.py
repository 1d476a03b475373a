"""The configuration of a model as rows of a table, on the cards of runs and of presets."""

import math
from typing import Any

from ..families import Family
from ..modeling.configuration_conformer import SpeechSSLConfig

# What a field without a value stands for.
ABSENT = {"attention_window": "the whole utterance", "left_context_chunks": "all"}


def architecture(family: Family, config: SpeechSSLConfig, kind: str) -> dict[str, str]:
    """The fields that say what the model is, by name; those of pretraining for an encoder, of the head for CTC.

    Args:
        kind: "encoder", "ctc" or "tokenizer".
    """
    values = {name: getattr(config, name) for name in family.shown_fields(config, kind)}
    if "label_layer" in values:
        values["label_layer"] = getattr(config, "enhanced_label_layer", None)  # what its absence stands for
    return {name: in_words(ABSENT.get(name) if value is None else value) for name, value in values.items()}


def frame_ms(config: SpeechSSLConfig) -> int:
    """Milliseconds of audio in one frame of the model."""
    return round(1000 / config.frame_rate)


def codebook_entries(config: SpeechSSLConfig) -> int:
    """Labels that the tokenizer of a configuration with `fsq_levels` can give; 1 without."""
    return math.prod(getattr(config, "fsq_levels", []))


def in_words(value: Any) -> str:
    """A field's value in a table's cell."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    if isinstance(value, float):
        return str(float(f"{value:.6g}"))  # a third is 0.333333
    return f"{value:,}" if isinstance(value, int) else str(value).replace("|", "\\|")


def count_in_words(count: int) -> str:
    """A number of parameters."""
    return f"{count / 1e6:.1f} million" if count >= 1e6 else f"{count:,}"
