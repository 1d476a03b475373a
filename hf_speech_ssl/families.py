"""The registry of the families of models.

A new family is files in `modeling/` and an entry of `FAMILIES`, from which registration, presets, cards, probing and
the page take all that they know of it. Classes are imported when they are asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from .modeling.configuration_conformer import SpeechSSLConfig

Fields = tuple[str, ...]
Labels = Mapping[str, Fields]

HEADS = ("base", "pretraining", "ctc", "rnnt", "classification", "frame_classification")


@dataclass(frozen=True)
class Paper:
    """A paper as cards name it: whom it is by, where it is, its BibTeX entry."""

    authors: str
    arxiv: str
    bibtex: str


@dataclass(frozen=True)
class Family:
    """A family of models.

    Args:
        model_type: as in config.json.
        name: for people.
        config: the configuration, as "module:Class" of `modeling/`.
        models: the model classes in the same form, by head, see `HEADS`. A tokenizer has one class
            for "base" and "pretraining": it labels frames with the model that is trained.
        presets: what the names of its presets begin with.
        script: the recipe that pretrains it.
        papers: those of the method, the first of them its own.
        tags: on the Hub.
        fields: of the configuration, shown by cards of every model.
        pretraining_fields, ctc_fields: shown as well by cards of a pretrained or a fine-tuned model.
        label_fields: shown as well by cards of a pretrained model, by its `label_kind`.
        override: a field to change, as an example.
        recipe: how its paper trains, and where this package differs.
        preset_notes: how each preset compares to the paper.
        masks: whether pretraining masks frames. Its model then has `sample_mask`.
        streams: whether the model works in chunks.
    """

    model_type: str
    name: str
    config: str
    models: Mapping[str, str]
    presets: str
    script: str
    papers: tuple[Paper, ...]
    tags: Fields
    fields: Fields
    override: str
    recipe: str
    preset_notes: Mapping[str, str]
    pretraining_fields: Fields = ()
    ctc_fields: Fields = ()
    label_fields: Labels = field(default_factory=lambda: MappingProxyType({}))
    masks: bool = True
    streams: bool = False

    @property
    def config_class(self) -> type[SpeechSSLConfig]:
        """The configuration's class."""
        loaded: type[SpeechSSLConfig] = _load(self.config)
        return loaded

    def model_class(self, head: str) -> type[PreTrainedModel]:
        """The model's class with a head."""
        loaded: type[PreTrainedModel] = _load(self.models[head])
        return loaded

    @property
    def is_tokenizer(self) -> bool:
        """Whether the family makes labels for others, and is no encoder."""
        return self.models["base"] == self.models["pretraining"]

    @property
    def kind(self) -> str:
        """What its pretrained models are: "encoder" or "tokenizer"."""
        return "tokenizer" if self.is_tokenizer else "encoder"

    @property
    def preset_names(self) -> list[str]:
        """Its presets."""
        return list(self.config_class._presets)

    def shown_fields(self, config: Any, head: str) -> list[str]:
        """Names of the configuration's fields that a card shows, in order."""
        if head == "ctc":
            return [*self.fields, *self.ctc_fields]
        if head == "rnnt":
            return [*self.fields, *self.ctc_fields, *TRANSDUCER_HEAD]
        if head in ("classification", "frame_classification"):
            return [*self.fields, *CLASSIFICATION_HEAD]
        labels = self.label_fields.get(getattr(config, "label_kind", ""), ())
        return [*self.fields, *self.pretraining_fields, *labels]


def family_of(model_type: str | None) -> Family | None:
    """The family of a `model_type`; `None` if it is none of this package."""
    return next((family for family in FAMILIES if family.model_type == model_type), None)


def family_of_preset(name: str) -> Family:
    """The family that a preset's name begins with: `birq-tiny` is one of BiRQ's.

    Raises:
        ValueError: there is no such family.
    """
    for family in FAMILIES:
        if name.split("-", maxsplit=1)[0] == family.presets:
            return family
    beginnings = ", ".join(family.presets for family in FAMILIES)
    raise ValueError(f"There is no preset '{name}': the names begin with {beginnings}, as in birq-base.")


def class_modules() -> dict[str, str]:
    """The module of `modeling/` that holds each class of the families, by the class's name."""
    dotted = [name for family in FAMILIES for name in (family.config, *family.models.values())]
    return {name.partition(":")[2]: name.partition(":")[0] for name in dotted}


def _load(dotted: str) -> Any:
    module, _, name = dotted.partition(":")
    return getattr(importlib.import_module(f"hf_speech_ssl.modeling.{module}"), name)


BIRQ_PAPER = Paper(
    "Jiang et al.",
    "2509.15430",
    """@inproceedings{birq,
  title = {{BiRQ}: Bi-Level Self-Labeling Random Quantization for Self-Supervised Speech Recognition},
  author = {Jiang and Cui and Kingsbury and Chen, T. and Chen, L.},
  booktitle = {ICASSP},
  year = {2026},
  note = {arXiv:2509.15430}
}""",
)
BEST_RQ_PAPER = Paper(
    "Chiu et al.",
    "2202.01855",
    """@inproceedings{bestrq,
  title = {Self-supervised Learning with Random-projection Quantizer for Speech Recognition},
  author = {Chiu, Chung-Cheng and Qin, James and Zhang, Yu and Yu, Jiahui and Wu, Yonghui},
  booktitle = {ICML},
  year = {2022},
  note = {arXiv:2202.01855}
}""",
)
CHUNK_SSL_PAPER = Paper(
    "Tang and Tseng",
    "2509.15579",
    """@article{chunkssl,
  title = {Chunk Based Speech Pre-training with High Resolution Finite Scalar Quantization},
  author = {Tang and Tseng},
  journal = {arXiv:2509.15579},
  year = {2025}
}""",
)
FSQ_PAPER = Paper(
    "Mentzer et al.",
    "2309.15505",
    """@inproceedings{fsq,
  title = {Finite Scalar Quantization: {VQ-VAE} Made Simple},
  author = {Mentzer, Fabian and Minnen, David and Agustsson, Eirikur and Tschannen, Michael},
  booktitle = {ICLR},
  year = {2024},
  note = {arXiv:2309.15505}
}""",
)

FEATURES = ("num_mel_bins", "frame_stacking")
CONFORMER = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
    "conv_kernel_size",
)
CTC_HEAD = (
    *("vocab_size", "mask_time_prob", "mask_time_length", "mask_feature_prob", "mask_feature_length"),
    *("hidden_dropout", "final_dropout"),
)
TRANSDUCER_HEAD = (
    *("decoder_kind", "decoder_hidden_size", "num_decoder_layers", "decoder_attention_window", "joint_hidden_size"),
    *("ctc_loss_weight", "num_time_masks", "max_time_mask_share", "num_feature_masks", "max_feature_mask_width"),
)
CLASSIFICATION_HEAD = ("use_weighted_layer_sum", "classifier_proj_size", "final_dropout")
CODEBOOKS = (
    *("codebook_size", "codebook_dim", "num_codebooks", "codebook_distance", "codebook_refinements"),
    *("projection_kind", "label_normalization", "second_codebook_size", "distillation_loss_weight"),
)
TOKENIZER = ("fsq_levels", "fsq_hidden_size", "fsq_num_hidden_layers")

_BIRQ_RECIPE = (
    "Jiang et al. pretrain for 100 epochs with AdamW at 2e-4 (1e-4 for C2 and C3) on batches of 100 utterances, about "
    "1,200 seconds. They do not describe a schedule; `run_birq.py` warms up over the first 5 % of the updates and "
    "stays there. Fine-tuning: 30 epochs of CTC, of which 10 warm up to 1e-3, 10 hold it and 10 divide it by sqrt(2) "
    "each. Positions are rotary here."
)
_CHUNK_SSL_RECIPE = (
    "Tang and Tseng pretrain for 400,000 updates with an inverse square root schedule, 25,000 of them warm-up to 3e-4,"
    " on batches of 16,000 seconds. Positions are rotary here where theirs are relative."
)
_FSQ_RECIPE = (
    "Tang and Tseng train the tokenizer for 180,000 updates at 2e-4 with exponential decay, on batches of 3,200 "
    "seconds. They do not give the rate at the end of the decay; `run_fsq.py` ends at a tenth. They call the 12 "
    "layers a ResNet without describing a layer; ours is the residual unit of SoundStream (arXiv 2107.03312)."
)

FAMILIES = (
    Family(
        model_type="birq",
        name="BiRQ",
        config="configuration_birq:BiRQConfig",
        models={
            "base": "modeling_birq:BiRQModel",
            "pretraining": "modeling_birq:BiRQForPreTraining",
            "ctc": "modeling_birq:BiRQForCTC",
            "rnnt": "modeling_birq:BiRQForRNNT",
            "classification": "modeling_birq:BiRQForSequenceClassification",
            "frame_classification": "modeling_birq:BiRQForAudioFrameClassification",
        },
        presets="birq",
        script="pretraining_scripts/run_birq.py",
        papers=(BIRQ_PAPER, BEST_RQ_PAPER),
        tags=("birq", "best-rq"),
        fields=(*FEATURES, *CONFORMER, "attention_window"),
        ctc_fields=CTC_HEAD,
        pretraining_fields=(
            *CODEBOOKS,
            *(
                "label_layer",
                "enhanced_label_kind",
                "gumbel_temperature",
                "enhanced_loss_weight",
                "anchor_loss_weight",
            ),
            *("enhanced_refinement_interval", "enhanced_warmup_updates", "label_encoder_decay"),
            *("detach_enhanced_labels", "unmasked_loss_weight"),
            *("mask_start_prob", "mask_length", "mask_noise_std"),
        ),
        override="enhanced_loss_weight=0",
        recipe=_BIRQ_RECIPE,
        preset_notes={
            "birq-tiny": (
                "No paper has this size. Its labels are 256 k-means clusters of whitened frames, predicted at all "
                "frames; it has no enhanced labels, and its spans mask 120 ms, not the 400 ms of Jiang et al."
            ),
            "birq-base": "No paper has this size. Labels, masks and losses are those of Jiang et al.",
            "birq-c1": "The C1 of Jiang et al., who count 137 million parameters.",
            "birq-c2": "The C2 of Jiang et al., who count 155 million parameters.",
            "birq-c3": "The C3 of Jiang et al., who count 275 million parameters.",
        },
    ),
    Family(
        model_type="chunkssl",
        name="Chunk SSL",
        config="configuration_chunkssl:ChunkSSLConfig",
        models={
            "base": "modeling_chunkssl:ChunkSSLModel",
            "pretraining": "modeling_chunkssl:ChunkSSLForPreTraining",
            "ctc": "modeling_chunkssl:ChunkSSLForCTC",
            "rnnt": "modeling_chunkssl:ChunkSSLForRNNT",
            "classification": "modeling_chunkssl:ChunkSSLForSequenceClassification",
            "frame_classification": "modeling_chunkssl:ChunkSSLForAudioFrameClassification",
        },
        presets="chunkssl",
        script="pretraining_scripts/run_chunkssl.py",
        papers=(CHUNK_SSL_PAPER, FSQ_PAPER),
        tags=("chunk-ssl", "streaming"),
        fields=(*FEATURES, *CONFORMER, "num_lookahead_chunks", "left_context_chunks"),
        ctc_fields=("streaming_durations_ms", "streaming_prob", *CTC_HEAD),
        pretraining_fields=("chunk_durations_ms", "label_kind", "loss_kind", "unmasked_loss_weight"),
        label_fields={"fsq": TOKENIZER, "random_projection": CODEBOOKS},
        override="num_hidden_layers=8",
        recipe=_CHUNK_SSL_RECIPE,
        preset_notes={
            "chunkssl-tiny": (
                "No paper has this size. Chunks and labels are those of Tang and Tseng; there is a loss on frames "
                "that are not masked as well."
            ),
            "chunkssl-learned-tiny": (
                "No paper has this size, nor these labels in chunks: k-means on whitened frames, with a loss on "
                "frames that are not masked as well. It needs no tokenizer."
            ),
            "chunkssl-base": "The smaller model of Tang and Tseng, who count 79 million parameters.",
            "chunkssl-large": "The larger model of Tang and Tseng, who count 337 million parameters.",
        },
        streams=True,
    ),
    Family(
        model_type="speech_fsq",
        name="FSQ",
        config="configuration_fsq:FSQConfig",
        models={"base": "modeling_fsq:FSQModel", "pretraining": "modeling_fsq:FSQModel"},
        presets="fsq",
        script="pretraining_scripts/run_fsq.py",
        papers=(CHUNK_SSL_PAPER, FSQ_PAPER),
        tags=("fsq", "chunk-ssl"),
        fields=(*FEATURES, *TOKENIZER),
        override="fsq_levels=[5,5,5,3,3]",
        recipe=_FSQ_RECIPE,
        preset_notes={
            "fsq-tiny": "No paper has this size. It is the tokenizer for `chunkssl-tiny`.",
            "fsq-base": "The tokenizer of Tang and Tseng.",
        },
        masks=False,
    ),
)
