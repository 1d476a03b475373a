"""A learned quantizer whose entries follow the encoder: codebook distillation.

After Xu et al., arXiv 2606.30671. A trainable copy of the codebook learns to quantize the frames of an utterance so
that those are similar to each other whose middle blocks' outputs are; at given updates it takes the codebook's place.

Shape letters: B batch, T frames, n vectors, I input features, D codebook dimension, C codebooks, N entries, H hidden
size.
"""

from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init

from .float32_buffers import share_from_first_process
from .learned_quantization import LearnedQuantizer, QuantizerLearning
from .linear_assignment import assign
from .quantization import RandomProjectionQuantizer

ERRORS = ("squared", "absolute")


@dataclass(frozen=True)
class Distillation:
    """How a codebook is distilled and when, in updates of the model; see `QuantizerConfig` for the fields."""

    distillation_loss_weight: float = 0.0
    distillation_error: str = "squared"
    distillation_kmeans_weight: float = 0.0
    distillation_start: int | None = None
    codebook_replacements: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, config: Any) -> "Distillation":
        """The fields of the same names of a model's configuration."""
        return cls(**{one.name: getattr(config, one.name) for one in fields(cls)})

    def start(self, learning: QuantizerLearning) -> int:
        """Updates before the first that distills: by default, those in which the entries are refined."""
        if self.distillation_start is None:
            return learning.last_refined_update
        return self.distillation_start

    def validate(self, learning: QuantizerLearning) -> None:
        """Refuse what cannot be distilled.

        Raises:
            ValueError: an unknown name, a number out of range, or updates in an order that changes no label.
        """
        if self.distillation_error not in ERRORS:
            raise ValueError(
                f'distillation_error must be one of {", ".join(ERRORS)}, got "{self.distillation_error}".'
            )
        for name in ("distillation_loss_weight", "distillation_kmeans_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}.")
        if not self.distillation_loss_weight:
            return
        start, moves = self.start(learning), self.codebook_replacements
        if start < learning.first_refined_update:
            raise ValueError(
                f"distillation_start must be at least projection_updates = {learning.projection_updates}, since until "
                f"then the projection changes, got {start}."
            )
        if not moves or any(later <= earlier for earlier, later in zip([start, *moves], moves, strict=False)):
            raise ValueError(
                f"codebook_replacements needs one or more ascending numbers of updates above distillation_start = "
                f"{start}, got {moves}; without them the distilled copy gives no label."
            )


class DistilledQuantizer(LearnedQuantizer):
    """A quantizer whose entries are estimated, then distilled, and then frozen.

    Labels come from the buffer `codebook` alone. Its trainable copy is `codebook + codebook_offset`; only the offset
    is a parameter. It begins at 0, so that the copy begins at the codebook, however that was learned, and weight decay
    pulls it back there. From the start of the distillation the entries are refined no more; each replacement writes
    the copy into the codebook. After the last nothing changes.

    Args:
        distillation: how and when.
        learning: as of the base class, whose refinements end where the distillation begins.
        others: as of the base class.
    """

    def __init__(self, distillation: Distillation, learning: QuantizerLearning, *others: Any):
        self.distillation, self.distillation_start = distillation, distillation.start(learning)
        super().__init__(learning.until(self.distillation_start), *others)
        self.codebook_offset = nn.Parameter(torch.zeros(self.codebook_shape))

    def draw(self) -> dict[str, torch.Tensor]:
        """The buffers' initial values; soft labels keep the entries of the draw."""
        values = super().draw()
        if "soft_projection" in values:
            values["soft_codebook"] = values["codebook"].clone()
        return values

    def reset(self) -> None:
        """Write the initial values again, as `_init_weights` must after a load that left some out."""
        super().reset()
        init.zeros_(self.codebook_offset)

    @property
    def learns(self) -> bool:
        """Whether training can change the labels: it can."""
        return True

    @torch.compiler.disable
    def loss_weight(self) -> float:
        """Weight of the distillation loss in the current update: 0 before the start and after the last replacement."""
        begun = self.distillation_start < self.completed_updates() <= self.distillation.codebook_replacements[-1]
        return self.distillation.distillation_loss_weight if begun else 0.0

    def distillation_losses(
        self, frames: torch.Tensor, states: torch.Tensor, shown: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """How far the copy's quantized frames are from what they should be, utterance by utterance.

        A frame is quantized as the copy's entry that is nearest to its projected features. Which one that is has no
        gradient; the loss is differentiated with respect to the entries that were chosen, as in k-means. Entries that
        no frame of the batch chose have the gradient 0.

        Args:
            frames: (B, T, I), as they are labeled.
            states: (B, T, H), the encoder's outputs; no gradient flows into them.
            shown: (B, T) bool, the real frames that are not masked: only these and their pairs count.

        Returns:
            (B,) each, means over the codebooks: the error of the similarities, and the mean squared difference of a
            feature of the projected frames and their entries, which k-means minimizes.
        """
        with torch.autocast(frames.device.type, enabled=False):
            projected = self.project(frames.flatten(0, 1).to(self.codebook.dtype))  # (C, B * T, D)
            copies = self.codebook + self.codebook_offset
            quantized = look_up(copies, self.nearest(projected, copies.detach()))
            if self.learning.codebook_distance == "cosine":
                projected, quantized = F.normalize(projected, dim=-1), F.normalize(quantized, dim=-1)
            # The codebooks one behind the other, as if they were utterances.
            shape, by_codebook = shown.shape, (len(copies), len(shown))
            errors = similarity_error(
                quantized.reshape(-1, shape[1], copies.shape[-1]),
                states.detach().to(quantized.dtype).repeat(len(copies), 1, 1),
                shown.repeat(len(copies), 1),
                self.distillation.distillation_error,
            )
            distances = (projected - quantized).square().mean(-1).unflatten(1, shape)  # (C, B, T)
            kmeans = (distances * shown).sum(-1) / shown.sum(-1).clamp_min(1)
            return errors.view(by_codebook).mean(0), kmeans.mean(0)

    @torch.no_grad()
    def update(self) -> None:
        """Count an update that begins, and change whatever is due after those before it."""
        if self.completed_updates() in self.distillation.codebook_replacements:
            self.replace_codebook()
        super().update()

    def replace_codebook(self) -> None:
        """Write the copy's entries into the codebook, each at the index of the old entry that it is matched with.

        The matching is the one to one assignment with the least sum of squared distances, so that a label, and the
        row of the head that predicts it, keep their meaning. The copy itself stays where it is.
        """
        copies = self.codebook + self.codebook_offset
        old, new = self.codebook, copies
        if self.learning.codebook_distance == "cosine":
            old, new = F.normalize(old, dim=-1), F.normalize(new, dim=-1)
        costs = torch.cdist(old.double().cpu(), new.double().cpu()).square().numpy()  # (C, N, N)
        for codebook, copy, cost in zip(self.codebook, copies, costs, strict=True):
            codebook.copy_(copy[torch.from_numpy(assign(cost)).to(copy.device)])
        share_from_first_process(self.codebook)
        self.codebook_offset.copy_(copies - self.codebook)


def look_up(codebooks: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The entries that labels stand for, differentiable: (C, N, D), (n, C) -> (C, n, D)."""
    offsets = torch.arange(len(codebooks), device=labels.device)[:, None] * codebooks.shape[1]
    # Unlike that of an index, the gradient of an embedding is the same at every run on a GPU.
    return F.embedding(labels.T + offsets, codebooks.flatten(0, 1))


def similarity_error(quantized: torch.Tensor, states: torch.Tensor, shown: torch.Tensor, error: str) -> torch.Tensor:
    """Mean error of the cosine similarities of an utterance's frames, over the pairs of different frames shown.

    It needs two or three (B, T, T) tensors.

    Args:
        quantized: (B, T, D).
        states: (B, T, H), whose similarities are aimed at.
        shown: (B, T) bool.
        error: "squared" or "absolute".

    Returns:
        (B,); 0 where fewer than two frames are shown.
    """
    # A frame that does not count becomes 0 in both, and so do its similarities and their error.
    quantized, states = (F.normalize(each * shown[..., None], dim=-1) for each in (quantized, states))
    gaps = torch.baddbmm(states @ states.mT, quantized, quantized.mT, beta=-1)
    total = (gaps.square() if error == "squared" else gaps.abs()).sum((1, 2))
    count = shown.sum(1)
    return total / (count * (count - 1)).clamp_min(1)


def build_quantizer(config: Any, soft_input_dim: int | None = None) -> RandomProjectionQuantizer:
    """The quantizer that a configuration with the fields of [`QuantizerConfig`] asks for; arguments as of
    [`RandomProjectionQuantizer`].
    """
    distillation = Distillation.of(config)
    sizes = (config.stacked_size, config.codebook_size, config.codebook_dim, config.num_codebooks)
    others = (*sizes, config.quantizer_seed, soft_input_dim)
    if distillation.distillation_loss_weight:
        return DistilledQuantizer(distillation, QuantizerLearning.of(config), *others)
    return build_undistilled(config, *others)


def build_second_quantizer(config: Any) -> RandomProjectionQuantizer:
    """The quantizer of the second label set: of its own size and seed, learned as the first, and never distilled."""
    sizes = (config.stacked_size, config.second_codebook_size, config.codebook_dim, config.num_codebooks)
    return build_undistilled(config, *sizes, config.quantizer_seed + 1)


def build_undistilled(config: Any, *others: Any) -> RandomProjectionQuantizer:
    """A quantizer that is learned as the configuration says, or not at all."""
    learning = QuantizerLearning.of(config)
    if learning.learns or learning.codebook_distance != "cosine":
        return LearnedQuantizer(learning, *others)
    return RandomProjectionQuantizer(*others)
