"""What a configuration says of its model, as rows of a table: on the cards of runs and of presets."""

import math
from typing import Any

from ..modeling.configuration_conformer import SpeechSSLConfig

ENCODER = """num_mel_bins frame_stacking hidden_size num_hidden_layers num_attention_heads intermediate_size
    conv_kernel_size""".split()
RANDOM_PROJECTION = ["codebook_size", "codebook_dim", "num_codebooks"]
BIRQ = """label_layer gumbel_temperature enhanced_loss_weight anchor_loss_weight detach_enhanced_labels mask_start_prob
    mask_length mask_noise_std""".split()
CHUNKS = ["num_lookahead_chunks", "left_context_chunks"]
TOKENIZER = ["fsq_levels", "fsq_hidden_size", "fsq_num_hidden_layers"]
CTC = """vocab_size mask_time_prob mask_time_length mask_feature_prob mask_feature_length hidden_dropout
    final_dropout""".split()

# What a field says that has no value.
ABSENT = {"attention_window": "the whole utterance", "left_context_chunks": "all"}

# What each model type is called, the Hub's tags for it.
FAMILY_NAMES = {"birq": "BiRQ", "chunkssl": "Chunk SSL", "speech_fsq": "FSQ"}
TAGS = {"birq": ["birq", "best-rq"], "chunkssl": ["chunk-ssl", "streaming"], "speech_fsq": ["fsq", "chunk-ssl"]}


def architecture(config: SpeechSSLConfig, kind: str) -> dict[str, str]:
    """The fields that say what the model is, by name; those of pretraining for an encoder, of the head for CTC.

    Args:
        kind: "encoder", "ctc" or "tokenizer".
    """
    names = ["num_mel_bins", "frame_stacking", *TOKENIZER] if kind == "tokenizer" else [*ENCODER]
    if config.model_type == "birq":
        names += ["attention_window", *([*RANDOM_PROJECTION, *BIRQ] if kind == "encoder" else [])]
    if config.model_type == "chunkssl":
        names += CHUNKS
        names += ["streaming_durations_ms", "streaming_prob"] if kind == "ctc" else ["chunk_durations_ms"]
        if kind == "encoder":
            fsq = getattr(config, "label_kind", "") == "fsq"
            names += ["label_kind", "loss_kind", *(TOKENIZER if fsq else RANDOM_PROJECTION)]
    if kind == "ctc":
        names += CTC
    values = {name: getattr(config, name) for name in names}
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
