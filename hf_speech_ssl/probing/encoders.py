"""One way to ask any speech encoder of the Hub for the frames of all its layers and, ours, for their labels.

Shape letters: T frames of one utterance, D features of a layer, C codebooks, I stacked input features.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModel, AutoModelForPreTraining, PreTrainedModel

from ..data.audio import SAMPLING_RATE
from ..loading import Checkpoint, CheckpointKind, find_checkpoint, pick_device
from ..modeling.configuration_conformer import HOP_LENGTH
from ..modeling.feature_extraction_speech_ssl import FRAME_LENGTH
from ..modeling.modeling_birq import BiRQForPreTraining
from ..modeling.modeling_conformer import ConformerModel
from ..modeling.modeling_speech_ssl import normalize_over_frames
from ..modeling.quantization import RandomProjectionQuantizer

_RANDOM_WEIGHTS = "A probe would measure random numbers in their place: name a checkpoint of this very model."


@dataclass(frozen=True)
class EncodedUtterance:
    """What an encoder makes of one utterance.

    Args:
        layers: (T, D) float32 of every layer; the first is the encoder's input.
        labels: (T,) int64 of every kind of label that the model was pretrained on, by name.
        label_sizes: how many different labels each kind has.
        frame_rate: frames a second.
        first_frame_center: seconds; half a frame if `None`.
    """

    layers: list[torch.Tensor]
    labels: dict[str, torch.Tensor]
    label_sizes: dict[str, int]
    frame_rate: float
    first_frame_center: float | None = None

    @property
    def num_frames(self) -> int:
        """T."""
        return len((self.layers or list(self.labels.values()))[0])


@dataclass
class SpeechEncoder:
    """A frozen encoder of whole utterances.

    Args:
        model: what turns features into layers; `None` for a tokenizer, which has none to compare.
        extractor: its feature extractor, for 16 kHz.
        labeler: the model that makes the pretraining labels, if the checkpoint holds one.
        chunk_size: encoder frames per chunk, where the model works in chunks; 0 is offline.
    """

    model: PreTrainedModel | None
    extractor: Any
    labeler: PreTrainedModel | None = None
    chunk_size: int = 0
    _quantizers: dict[int, RandomProjectionQuantizer] = field(default_factory=dict)

    codebook_size = 1024  # of the random projections that stand in where a model has no labels of layers
    input_name = "input features"  # what layer 0 is

    def __call__(self, waveforms: Sequence[NDArray[np.float32]]) -> list[EncodedUtterance]:
        """Layers and labels of some utterances, each (samples,) at 16 kHz."""
        raise TypeError("Use one of the kinds of encoder, as load_encoder returns them.")

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        model: Any = self.model if self.model is not None else self.labeler
        return torch.device(model.device)

    def with_random_weights(self, seed: int) -> SpeechEncoder:
        """The same encoder before any training: same sizes, fresh weights, and the same labeler."""
        assert self.model is not None
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            fresh: Any = type(self.model)(copy.deepcopy(self.model.config))
        return type(self)(fresh.to(self.device).eval(), self.extractor, self.labeler, self.chunk_size)

    def layer_codes(self, index: int, frames: torch.Tensor) -> torch.Tensor:
        """Labels that layer `index` would give its own frames: (T, D) -> (T, C) int64.

        BiRQ's are its enhanced labels without noise (of layer 0, the anchor labels); all others are those of a random
        projection (BEST-RQ's), of the frames with each feature normalized over the utterance, with
        `codebook_size` entries.
        """
        width = frames.shape[1]
        if width not in self._quantizers:
            quantizer = RandomProjectionQuantizer(width, self.codebook_size, codebook_dim=16)
            self._quantizers[width] = quantizer.to(frames.device)
        return self._quantizers[width].labels(normalize_over_frames(frames[None], None)[0])

    @property
    def codes_are(self) -> str:
        """What `layer_codes` are, in words."""
        return f"a random projection of every layer, {self.codebook_size:,} entries"

    @property
    def num_codes(self) -> int:
        """Entries of the codebook that `layer_codes` come from."""
        return self.codebook_size


class ConformerEncoder(SpeechEncoder):
    """An encoder of this package: layer 0 is the stacked log-mel features, the others its blocks."""

    def __call__(self, waveforms: Sequence[NDArray[np.float32]]) -> list[EncodedUtterance]:
        assert self.model is not None
        encoder: Any = self.model
        features, mask = extract_features(self.extractor, waveforms, self.device)
        chunks = {"chunk_size": self.chunk_size} if hasattr(encoder.config, "chunk_size") else {}
        output = encoder(features, attention_mask=mask, output_hidden_states=True, return_dict=True, **chunks)
        stacked, _ = encoder.stack_frames(features, mask)
        labels, sizes = _make_labels(self.labeler, features, mask)
        everything = [stacked, *output.hidden_states[1:]]  # [0] is the first projection, which knows less
        utterances = []
        for row, length in enumerate(output.attention_mask.sum(-1).tolist()):
            layers = [layer[row, :length] for layer in everything]
            own = {name: column[row, :length] for name, column in labels.items()}
            utterances.append(EncodedUtterance(layers, own, sizes, *_stacked_timing(encoder.config)))
        return utterances

    def layer_codes(self, index: int, frames: torch.Tensor) -> torch.Tensor:
        if not isinstance(self.labeler, BiRQForPreTraining):
            return super().layer_codes(index, frames)
        rows = frames[None]
        made = self.labeler.hard_enhanced_labels(rows, None) if index else self.labeler.anchor_labels(rows, None)
        return made.ids[0]

    @property
    def codes_are(self) -> str:
        if isinstance(self.labeler, BiRQForPreTraining):
            return f"the enhanced labels that every block would make (layer 0: anchor), {self.num_codes:,} entries"
        return super().codes_are

    @property
    def num_codes(self) -> int:
        is_birq = isinstance(self.labeler, BiRQForPreTraining)
        return int(self.labeler.config.codebook_size) if is_birq and self.labeler else self.codebook_size


class Tokenizer(SpeechEncoder):
    """A model that makes labels, such as an FSQ model: there are no layers to compare."""

    def __call__(self, waveforms: Sequence[NDArray[np.float32]]) -> list[EncodedUtterance]:
        model: Any = self.labeler
        features, mask = extract_features(self.extractor, waveforms, self.device)
        (labels, sizes), timing = _make_labels(model, features, mask), _stacked_timing(model.config)
        lengths = (mask.sum(-1) // model.config.frame_stacking).tolist()
        return [
            EncodedUtterance([], {name: column[row, :n] for name, column in labels.items()}, sizes, *timing)
            for row, n in enumerate(lengths)
        ]


class OtherEncoder(SpeechEncoder):
    """Any other encoder of Transformers that returns hidden states.

    It encodes utterances one at a time: many encoders do not leave an utterance as it is when its batch is padded.
    Layer 0 is what enters its first block.
    """

    input_name = "before the first block"

    def __call__(self, waveforms: Sequence[NDArray[np.float32]]) -> list[EncodedUtterance]:
        return [self._encode(waveform) for waveform in waveforms]

    def _encode(self, waveform: NDArray[np.float32]) -> EncodedUtterance:
        assert self.model is not None
        inputs = self.extractor(waveform, sampling_rate=SAMPLING_RATE, return_tensors="pt").to(self.device)
        output = self.model(**inputs, output_hidden_states=True, return_dict=True)
        if not getattr(output, "hidden_states", None):
            raise ValueError(f"{type(self.model).__name__} returns no hidden states; a speech encoder is needed.")
        layers = [layer[0] for layer in output.hidden_states]
        return EncodedUtterance(layers, {}, {}, *self._timing(len(waveform), len(layers[0])))

    def _timing(self, num_samples: int, num_frames: int) -> tuple[float, float | None]:
        """Frame rate and center of the first frame (s): those of the convolutions over samples if the frames are
        theirs, else frames spread evenly over the utterance.
        """
        config: Any = self.model.config if self.model is not None else None
        kernels, strides = getattr(config, "conv_kernel", None), getattr(config, "conv_stride", None)
        if isinstance(kernels, (list, tuple)) and isinstance(strides, (list, tuple)):
            hop, field_of_view, left = 1, 1, num_samples
            for kernel, stride in zip(kernels, strides, strict=True):
                left = (left - kernel) // stride + 1
                field_of_view += (kernel - 1) * hop
                hop *= stride
            if left == num_frames:
                return SAMPLING_RATE / hop, field_of_view / 2 / SAMPLING_RATE
        return num_frames * SAMPLING_RATE / num_samples, None


def load_encoder(
    name_or_path: str,
    revision: str | None = None,
    trust_remote_code: bool = False,
    device: str | torch.device | None = None,
) -> SpeechEncoder:
    """Load a speech encoder with its feature extractor, in float32, and with its labels where it brings them.

    Args:
        name_or_path: folder or Hub id of a pretraining, base or CTC checkpoint of this package, of its FSQ tokenizer,
            or of any encoder of Transformers.
        revision: branch, tag or commit on the Hub.
        trust_remote_code: run the model code that a repository of another family brings along.
        device: a GPU if there is one, by default.

    Raises:
        OSError: there is no such model, or it has no feature extractor.
        ValueError: it is no speech encoder for 16 kHz audio, or its weights are not all there; no such device.
    """
    return encoder_of(find_checkpoint(name_or_path, revision, trust_remote_code), device)


def encoder_of(checkpoint: Checkpoint, device: str | torch.device | None = None) -> SpeechEncoder:
    """Load the encoder of a checkpoint that has been looked up. Errors as in `load_encoder`."""
    place = pick_device(device)
    if checkpoint.kind is CheckpointKind.ENCODER_DECODER:
        raise ValueError(
            f"{checkpoint.name_or_path} ({checkpoint.config.model_type}) is an encoder with a decoder; an encoder is "
            "needed."
        )
    extractor = checkpoint.load_feature_extractor()
    with_labels = checkpoint.family is not None and checkpoint.kind is CheckpointKind.PRETRAINING
    auto_class: Any = AutoModelForPreTraining if with_labels else AutoModel
    model: Any = checkpoint.load_model(auto_class, place, if_missing=_RANDOM_WEIGHTS)
    if with_labels:
        return pretraining_encoder(model, extractor)
    if checkpoint.kind is CheckpointKind.LABEL_TOKENIZER:
        return Tokenizer(None, extractor, model)
    return (ConformerEncoder if isinstance(model, ConformerModel) else OtherEncoder)(model, extractor)


def pretraining_encoder(model: Any, extractor: Any) -> SpeechEncoder:
    """The encoder of a pretraining model or tokenizer of this package, with its labels."""
    encoder = getattr(model, "encoder", None)
    if isinstance(encoder, ConformerModel):
        return ConformerEncoder(encoder, extractor, model)
    return Tokenizer(None, extractor, model)


def extract_features(
    extractor: Any, waveforms: Sequence[NDArray[np.float32]], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (B, F, M) of waveforms at 16 kHz, and which of their frames are real, (B, F)."""
    inputs = extractor(
        list(waveforms), sampling_rate=SAMPLING_RATE, return_tensors="pt", return_attention_mask=True, device=device
    )
    return inputs["input_features"].to(device), inputs["attention_mask"].to(device)


def _stacked_timing(config: Any) -> tuple[float, float]:
    """Frames a second, and seconds to the middle of the windows that the first frame is stacked from."""
    return config.frame_rate, ((config.frame_stacking - 1) * HOP_LENGTH + FRAME_LENGTH) / 2 / SAMPLING_RATE


def _make_labels(
    labeler: Any, features: torch.Tensor, mask: torch.Tensor
) -> tuple[dict[str, torch.Tensor], dict[str, int]]:
    """The labels that a model's pretraining predicts, (B, T) each, by the name of their kind and codebook, and how
    many different ones there are.
    """
    if labeler is None:
        return {}, {}
    labels, sizes = {}, {}
    for kind, made in labeler.make_labels(features, mask)[0].items():
        name = label_name(kind, labeler.config)
        columns = made.columns()
        for index, column in enumerate(columns):
            own_name = name if len(columns) == 1 else f"{name}, codebook {index + 1}"
            labels[own_name] = column
            sizes[own_name] = math.prod(made.sizes) if made.are_channels else made.sizes[index]
    return labels, sizes


def label_name(kind: str, config: Any) -> str:
    """A kind of label as people read it."""
    if kind == "enhanced":
        return f"enhanced (block {config.enhanced_label_layer})"
    return {"fsq": "FSQ", "second": "second label set"}.get(kind, kind.replace("_", " "))
