"""BiRQ's enhanced labels where they need more than the encoder: a moving average of it, clusters of its output.

Shape letters: B batch, T frames, n vectors, I stacked features, D hidden size, C codebooks.
"""

import copy
from typing import Any

import torch
from torch import nn
from transformers import initialization as init

from .float32_buffers import Float32Buffers, UpdateCounter
from .learned_quantization import LearnedQuantizer, QuantizerLearning
from .modeling_conformer import ConformerModel
from .quantization import FrozenModule

_RAMP = 10  # updates over which the decay of the average rises to a half
_WITHOUT_END = 2**62  # moves of the entries


class MovingAverage(FrozenModule[ConformerModel]):
    """An exponential moving average of the encoder's first blocks, as float32 buffers.

    After t updates the decay is t / (t + 10), and at most `decay`: the first update copies the encoder, and the random
    weights of the beginning are soon forgotten. It costs memory for another copy of these blocks and no other time
    than the addition of the weights.

    Args:
        module: an encoder of the same shape with blocks 1 to k only; its values are of no meaning.
        decay: of the average from one update to the next.
    """

    learns = True  # as a quantizer does whose state changes in training: no mean over checkpoints, no fixed values

    def __init__(self, module: ConformerModel, decay: float):
        super().__init__(module)
        self.decay = decay

    def train(self, mode: bool = True) -> "MovingAverage":
        """Stay in evaluation mode: labels are made without dropout."""
        return super().train(False)

    @torch.no_grad()
    def follow(self, encoder: nn.Module, num_updates: int) -> None:
        """Move towards the encoder's weights, after so many moves before."""
        weights = dict(encoder.named_parameters())
        decay = min(self.decay, num_updates / (num_updates + _RAMP))
        for name, average in self.module.named_buffers():
            if name in weights:
                average.lerp_(weights[name].detach().float(), 1 - decay)

    @torch.no_grad()
    def forward(self, stacked: torch.Tensor, frame_mask: torch.Tensor | None) -> torch.Tensor:
        """The last block's output for stacked frames: (B, T, I), (B, T) bool -> (B, T, D)."""
        hidden_states = self.module.feature_projection(stacked.float())
        return self.module.run_layers(hidden_states, frame_mask)


class BlockQuantizer(LearnedQuantizer):
    """Clusters of block k's output, whose entries follow it as the encoder learns.

    The vectors are compared as they are, without a projection. Every `enhanced_refinement_interval` updates each entry
    moves to the mean of the vectors that chose it. In the first window the vectors choose the entry of their anchor
    label: entry 7 of both codebooks begins with the same sounds, so that one head can predict both kinds of labels.

    Args:
        config: with the fields of [`BiRQConfig`].
    """

    def __init__(self, config: Any):
        learning = QuantizerLearning(
            codebook_distance="euclidean",
            codebook_refinements=_WITHOUT_END,
            codebook_refinement_interval=config.enhanced_refinement_interval,
            reseed_dead_entries=True,
        )
        sizes = (config.hidden_size, config.codebook_size, config.hidden_size, config.num_codebooks)
        super().__init__(learning, *sizes, config.quantizer_seed + 1)

    def draw(self) -> dict[str, torch.Tensor]:
        """The buffers' initial values: those of the base class, but no projection."""
        return {name: values for name, values in super().draw().items() if name != "projection"}

    def project(self, vectors: torch.Tensor) -> torch.Tensor:
        """The vectors themselves, for every codebook: (n, D) -> (C, n, D)."""
        return vectors.expand(self.codebook_shape[0], -1, -1)

    @torch.no_grad()
    def observe(self, vectors: torch.Tensor, weights: torch.Tensor, labels: torch.Tensor | None = None) -> None:
        """Add the vectors of the current update to the statistics: (n, D), (n,) of 1 or 0.

        Args:
            labels: (n, C) int64, anchor labels, which the vectors of the first window are counted by.
        """
        first = self.completed_updates() <= self.learning.codebook_refinement_interval
        super().observe(vectors, weights, labels if first else None)


class LabelMaker(UpdateCounter, Float32Buffers):
    """Makes the enhanced labels of BiRQ where they have a codebook, an encoder or a time of their own.

    It counts the updates of the model. Up to number `config.first_enhanced_update` there are no enhanced labels in
    the loss; before that it begins to learn in time for one move of the entries.

    Args:
        config: with the fields of [`BiRQConfig`].
        encoder_class: of the model.
    """

    learns = True

    def __init__(self, config: Any, encoder_class: type[ConformerModel]):
        super().__init__()
        self.config = config
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.long))
        self.clusters = BlockQuantizer(config) if config.enhanced_label_kind == "clusters" else None
        self.average: MovingAverage | None = None
        if config.label_encoder_decay:
            part = copy.deepcopy(config)
            part.num_hidden_layers = config.enhanced_label_layer
            with torch.random.fork_rng(devices=[]):  # the same seed gives the model the same weights without it
                self.average = MovingAverage(encoder_class(part), config.label_encoder_decay)

    def reset(self) -> None:
        """Begin anew, as `_init_weights` must after a load that left a buffer out."""
        init.zeros_(self.num_updates)

    @property
    def num_lessons(self) -> int:
        """Updates in which it has learned, that which goes on included."""
        if torch.compiler.is_compiling() and not self.training:
            return _WITHOUT_END  # a graph has no room for a decision by a buffer: the model is taken for a trained one
        return self.completed_updates() - self.config.first_learning_update + 1

    def update(self, encoder: nn.Module) -> None:
        """Count an update of the model that begins, and learn from the encoder's weights if it is time."""
        self.count_update()
        if self.num_lessons < 1:
            return
        if self.average is not None:
            self.average.follow(encoder, self.num_lessons - 1)
        if self.clusters is not None:
            self.clusters.update()

    @property
    def is_ready(self) -> bool:
        """Whether the enhanced labels belong to the loss of the current update."""
        return self.num_lessons > self.config.first_enhanced_update - self.config.first_learning_update
