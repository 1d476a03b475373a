"""The parts of a CTC model as modules that take and return tensors only, as torch.export wants them.

Shape letters: B streams or utterances, S samples, F feature frames (10 ms), M mel bins, C encoder frames per chunk,
T encoder frames, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree
from transformers import PreTrainedModel

from ..modeling.cache import ConformerCache
from ..modeling.configuration_conformer import HOP_LENGTH
from ..modeling.feature_extraction_speech_ssl import (
    FFT_LENGTH,
    FRAME_LENGTH,
    INT16_SCALE,
    POWER_FLOOR,
    SpeechSSLFeatureExtractor,
    frame_spectra,
    window_and_mel_bank,
)

_SECONDS = 2  # of the audio that graphs are traced with


class FeatureGraph(nn.Module):
    """What `SpeechSSLFeatureExtractor.extract` computes for samples without padding: (B, S) -> (B, F, M).

    Windows and spectra are one convolution, whose kernels are made in float64: no runtime needs an FFT for it.
    """

    basis: torch.Tensor
    bank: torch.Tensor
    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, extractor: SpeechSSLFeatureExtractor):
        super().__init__()
        bins = extractor.feature_size
        window, bank = window_and_mel_bank(bins, torch.device("cpu"))
        spectra = frame_spectra(INT16_SCALE * torch.eye(FRAME_LENGTH, dtype=torch.float64), window.double())
        kernels = torch.cat([spectra.real, spectra.imag], dim=1).T[:, None]  # (FFT_LENGTH + 2, 1, FRAME_LENGTH)
        mean = torch.zeros(bins) if extractor.mean is None else torch.tensor(extractor.mean)
        scale = torch.ones(bins) if extractor.variance is None else torch.tensor(extractor.variance).rsqrt()
        for name, tensor in {"basis": kernels.float(), "bank": bank, "mean": mean, "scale": scale}.items():
            self.register_buffer(name, tensor.contiguous())

    def forward(self, samples: torch.Tensor) -> torch.Tensor:
        """Take samples at 16 kHz in [-1, 1], at least FRAME_LENGTH of them."""
        spectra = F.conv1d(samples[:, None], self.basis, stride=HOP_LENGTH)
        real, imaginary = spectra.split(FFT_LENGTH // 2 + 1, dim=1)
        power = (real.square() + imaginary.square()).transpose(1, 2) @ self.bank
        return (power.clamp_min(POWER_FLOOR).log() - self.mean) * self.scale


class UtteranceGraph(nn.Module):
    """A CTC model on whole utterances: features (B, F, M), frames of each (B,) -> log-probabilities (B, T, V)."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model
        self.arguments = {"chunk_size": 0} if hasattr(model.config, "chunk_frames") else {}

    def forward(self, features: torch.Tensor, num_frames: torch.Tensor) -> torch.Tensor:
        """Frames beyond `num_frames` are padding; theirs are the log-probabilities of a certain blank."""
        mask = torch.arange(features.shape[1], device=features.device) < num_frames[:, None]
        logits = self.model(features, attention_mask=mask, **self.arguments).logits
        return logits.float().log_softmax(-1)


class StepGraph(nn.Module):
    """One streaming step: a chunk and its look-ahead, and the cache as tensors, which come out anew.

    Args:
        model: a `ChunkSSLForCTC`.
        chunk_size: encoder frames per chunk, C.
        left_context_chunks: chunks that a stream remembers.
    """

    def __init__(self, model: PreTrainedModel, chunk_size: int, left_context_chunks: int):
        super().__init__()
        self.model = model
        self.chunk_frames = chunk_size * model.config.frame_stacking
        self.lookahead_frames = self.chunk_frames * model.config.num_lookahead_chunks
        self.left_context_frames = left_context_chunks * chunk_size
        self.state_names = state_names(model.config.num_hidden_layers)
        self.spec = pytree.tree_structure(self.start(1))

    def start(self, streams: int) -> ConformerCache:
        """The cache of streams that have not begun."""
        encoder: Any = self.model.base_model
        cache: ConformerCache = encoder.fixed_cache(streams, self.left_context_frames)
        return cache

    def forward(self, features: torch.Tensor, num_frames: torch.Tensor, *state: torch.Tensor) -> tuple[Any, ...]:
        """Run the step.

        Args:
            features: (B, F, M), the chunk's frames and those of its look-ahead behind them.
            num_frames: (B,), how many of them are real: all, but at a stream's end.
            state: the tensors of the cache, in the order of `state_names`.

        Returns:
            Log-probabilities of the chunk (B, C, V), and the tensors of the cache after it.
        """
        mask = torch.arange(features.shape[1], device=features.device) < num_frames[:, None]
        size = self.chunk_frames
        arguments: dict[str, Any] = {"past_key_values": pytree.tree_unflatten(list(state), self.spec)}
        if self.lookahead_frames:
            arguments |= {"lookahead_features": features[:, size:], "lookahead_attention_mask": mask[:, size:]}
        output = self.model(features[:, :size], attention_mask=mask[:, :size], **arguments)
        return output.logits.float().log_softmax(-1), *pytree.tree_leaves(output.past_key_values)


def state_names(num_layers: int) -> list[str]:
    """Names of a cache's tensors, in the order in which torch.export takes it apart."""
    per_layer = (f"{name}_{layer}" for name in ("key", "value", "convolution_input") for layer in range(num_layers))
    return ["valid", "positions", *per_layer]


@dataclass(frozen=True)
class Graph:
    """A module and what tracing it needs.

    Attributes:
        name: of its file.
        module: in evaluation mode.
        inputs: an example of every input, by name, of two streams or utterances.
        outputs: names.
        open_dimensions: of every input, by name.
    """

    name: str
    module: nn.Module
    inputs: dict[str, torch.Tensor]
    outputs: list[str]
    open_dimensions: dict[str, tuple[int, ...]]

    def trace(self) -> torch.export.ExportedProgram:
        """Trace the module, with open batch sizes and lengths."""
        shapes: list[Any] = [
            dict.fromkeys(self.open_dimensions.get(name, ()), torch.export.Dim.DYNAMIC) for name in self.inputs
        ]
        if isinstance(self.module, StepGraph):  # the state is one argument, a tuple
            shapes = [*shapes[:2], tuple(shapes[2:])]
        arguments = tuple(tensor.clone() for tensor in self.inputs.values())
        with torch.no_grad():
            return torch.export.export(self.module, arguments, dynamic_shapes=tuple(shapes), strict=False)


def make_feature_graph(extractor: SpeechSSLFeatureExtractor) -> Graph:
    """The graph from samples to features."""
    samples = 0.1 * torch.randn(2, _SECONDS * extractor.sampling_rate)
    return Graph("features", FeatureGraph(extractor).eval(), {"samples": samples}, ["features"], {"samples": (0, 1)})


def make_utterance_graph(model: PreTrainedModel) -> Graph:
    """The graph of whole utterances."""
    frames = 100 * _SECONDS
    inputs = {
        "features": torch.randn(2, frames, model.config.num_mel_bins),
        "num_frames": torch.tensor([frames, frames - 30]),
    }
    dimensions = {"features": (0, 1), "num_frames": (0,)}
    return Graph("utterance", UtteranceGraph(model).eval(), inputs, ["log_probs"], dimensions)


def make_step_graph(model: PreTrainedModel, chunk_size: int, left_context_chunks: int) -> Graph:
    """The graph of a streaming step. Arguments as in [`StepGraph`]."""
    module = StepGraph(model, chunk_size, left_context_chunks).eval()
    frames = module.chunk_frames + module.lookahead_frames
    inputs = {
        "features": torch.randn(2, frames, model.config.num_mel_bins),
        "num_frames": torch.tensor([frames, frames]),
        **dict(zip(module.state_names, pytree.tree_leaves(module.start(2)), strict=True)),
    }
    outputs = ["log_probs", *(f"new_{name}" for name in module.state_names)]
    return Graph("step", module, inputs, outputs, dict.fromkeys(inputs, (0,)))
