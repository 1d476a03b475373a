"""The cards of the published presets: `python -m hf_speech_ssl.hub.presets` writes them into model_cards/.

A preset is a configuration without weights. Its card says what is in it, how large it is, how to train it, and how the
paper did: no result that no file of the repository holds.
"""

import argparse
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard, ModelCardData
from transformers import PreTrainedModel

from ..modeling.configuration_birq import BiRQConfig
from ..modeling.configuration_chunkssl import ChunkSSLConfig
from ..modeling.configuration_conformer import SpeechSSLConfig
from ..modeling.configuration_fsq import FSQConfig
from ..modeling.modeling_birq import BiRQForCTC, BiRQForPreTraining, BiRQModel
from ..modeling.modeling_chunkssl import ChunkSSLForCTC, ChunkSSLForPreTraining, ChunkSSLModel
from ..modeling.modeling_fsq import FSQModel
from .architecture import FAMILY_NAMES, TAGS, architecture, codebook_entries, count_in_words, frame_ms
from .card import TEMPLATE
from .citations import OTHER, OWN
from .metadata import COMMON_TAGS, LIBRARY, pipeline_tag

PRESET_TEMPLATE = TEMPLATE.with_name("preset_template.md")
RESULTS = TEMPLATE.resolve().parents[1] / "benchmarks" / "results"  # only where the repository is

_BIRQ = (
    "Jiang et al. (arXiv 2509.15430) pretrain for 100 epochs with AdamW at {rate} on batches of 100 utterances, about "
    "1,200 seconds, and count {size} million parameters for {name}. They say nothing of a schedule; `run_birq.py` "
    "warms up over the first 5 % of the updates and stays there. Fine-tuning: 30 epochs of CTC, of which 10 warm up "
    "to 1e-3, 10 hold it and 10 divide it by sqrt(2) each. Positions are rotary here."
)
_CHUNKSSL = (
    "Tang and Tseng (arXiv 2509.15579) pretrain for 400,000 updates with an inverse square root schedule, 25,000 of "
    "them warm-up to 3e-4, on batches of 16,000 seconds, and count {size} million parameters. Positions are rotary "
    "here where theirs are relative."
)
_NO_PAPER = "No paper has this size."
PAPERS = {
    "birq-tiny": f"{_NO_PAPER} Its spans hide 120 ms, not the 400 ms of Jiang et al. (arXiv 2509.15430).",
    "birq-base": f"{_NO_PAPER} Labels, masks and losses are those of Jiang et al. (arXiv 2509.15430).",
    "birq-c1": _BIRQ.format(rate="2e-4", size=137, name="C1"),
    "birq-c2": _BIRQ.format(rate="1e-4", size=155, name="C2"),
    "birq-c3": _BIRQ.format(rate="1e-4", size=275, name="C3"),
    "chunkssl-tiny": f"{_NO_PAPER} Chunks and losses are those of Tang and Tseng (arXiv 2509.15579).",
    "chunkssl-base": _CHUNKSSL.format(size=79),
    "chunkssl-large": _CHUNKSSL.format(size=337),
    "fsq-tiny": f"{_NO_PAPER} It is the tokenizer for `chunkssl-tiny`.",
    "fsq-base": (
        "Tang and Tseng (arXiv 2509.15579) train the tokenizer for 180,000 updates at 2e-4 with exponential decay, on "
        "batches of 3,200 seconds. They do not say how far the rate decays; `run_fsq.py` ends at a tenth. They call "
        "the 12 layers a ResNet without saying what a layer is; ours is the residual unit of SoundStream (arXiv "
        "2107.03312)."
    ),
}


@dataclass(frozen=True)
class Family:
    """A family's classes.

    Args:
        kind: of the pretrained model, as a run's card calls it.
        heads: what is counted, by what the card calls it.
        override: an example of a field to change.
    """

    config: type[SpeechSSLConfig]
    kind: str
    pretraining: type[PreTrainedModel]
    heads: dict[str, type[PreTrainedModel]]
    override: str


ENCODER_HEADS = (
    "parameters of the encoder",
    "parameters trained in pretraining",
    "parameters with a CTC head of 32 characters",
)
FAMILIES = (
    Family(
        BiRQConfig,
        "encoder",
        BiRQForPreTraining,
        dict(zip(ENCODER_HEADS, (BiRQModel, BiRQForPreTraining, BiRQForCTC), strict=True)),
        "enhanced_loss_weight=0",
    ),
    Family(
        ChunkSSLConfig,
        "encoder",
        ChunkSSLForPreTraining,
        dict(zip(ENCODER_HEADS, (ChunkSSLModel, ChunkSSLForPreTraining, ChunkSSLForCTC), strict=True)),
        "num_hidden_layers=8",
    ),
    Family(FSQConfig, "tokenizer", FSQModel, {"parameters, decoder included": FSQModel}, "fsq_levels=[5,5,5,3,3]"),
)


def preset_names() -> list[str]:
    """All published presets."""
    return [name for family in FAMILIES for name in family.config._presets]


def preset_card(name: str) -> ModelCard:
    """The card of a preset.

    Raises:
        ValueError: there is no such preset.
    """
    family = next((family for family in FAMILIES if name in family.config._presets), None)
    if family is None:
        raise ValueError(f"There is no preset {name!r}; the presets are {', '.join(preset_names())}.")
    config = family.config.from_preset(name)
    data = ModelCardData(
        license="apache-2.0",
        library_name=LIBRARY,
        pipeline_tag=pipeline_tag(family.kind),
        tags=[*COMMON_TAGS, *TAGS[config.model_type]],
    )
    return ModelCard.from_template(data, template_path=str(PRESET_TEMPLATE), **_words(name, family, config))


def _words(name: str, family: Family, config: SpeechSSLConfig) -> dict[str, Any]:
    """All that the template's placeholders stand for."""
    return {
        "name": name,
        "kind": family.kind,
        "description": _description(family, config),
        "purpose": _PURPOSES[name.endswith("tiny")],
        "streams": config.model_type == "chunkssl",
        "tokenizer": "fsq-tiny" if name == "chunkssl-tiny" else "fsq-base",
        "override": family.override,
        "classes": {"config": family.config.__name__, "pretraining": family.pretraining.__name__},
        "parameters": _parameters(family, config),
        "frame_ms": frame_ms(config),
        "rate": f"{config.frame_rate:g}",
        "codebook_entries": f"{codebook_entries(config):,}",
        "architecture": architecture(config, family.kind),
        "paper": PAPERS[name],
        "figures": _figures(name),
        "citation": "\n".join(OWN[config.model_type]),
        "other_citation": OTHER[config.model_type],
    }


_PURPOSES = {
    True: "It is made to learn something within minutes on a laptop; a larger one is for results.",
    False: "It is meant for training on real speech.",
}


def _description(family: Family, config: Any) -> str:
    if family.kind == "tokenizer":
        return (
            f"A finite scalar quantizer for speech: {config.fsq_num_hidden_layers} layers of width "
            f"{config.fsq_hidden_size} that turn {frame_ms(config)} ms of audio into one of "
            f"{codebook_entries(config):,} labels, the targets of Chunk SSL pretraining."
        )
    window = config.attention_window
    if config.model_type == "chunkssl":
        sees = "the past, its own chunk and one chunk ahead, or offline the whole utterance"
    else:
        sees = f"the {window // 2} frames to either side" if window else "the whole utterance"
    return (
        f"A {FAMILY_NAMES[config.model_type]} speech encoder for self-supervised pretraining: "
        f"{config.num_hidden_layers} Conformer blocks of width {config.hidden_size}, one vector for every "
        f"{frame_ms(config)} ms of 16 kHz audio. A frame sees {sees}."
    )


def _parameters(family: Family, config: SpeechSSLConfig) -> dict[str, str]:
    """Numbers of trained parameters, counted on models without memory."""
    with torch.device("meta"):
        counts = {what: model(config).num_parameters() for what, model in family.heads.items()}
    return {
        what: f"{count:,} ({count_in_words(count)})" if count >= 1e6 else f"{count:,}"
        for what, count in counts.items()
    }


def _figures(name: str) -> list[str]:
    """Result files of the benchmarks that name the preset."""
    files = sorted(RESULTS.rglob("*.md")) if RESULTS.is_dir() else []
    word = re.compile(rf"(?<![\w-]){re.escape(name)}(?![\w-])")
    return [file.relative_to(RESULTS).as_posix() for file in files if word.search(file.read_text(encoding="utf-8"))]


def main(argv: list[str] | None = None) -> None:
    """Write the cards of all presets."""
    parser = argparse.ArgumentParser(description="Write the cards of all presets.")
    parser.add_argument("--output_dir", type=Path, default=TEMPLATE.parent.resolve(), help="folder for NAME.md")
    output_dir = parser.parse_args(argv).output_dir
    for name in preset_names():
        preset_card(name).save(output_dir / f"{name}.md")


if __name__ == "__main__":
    main()
