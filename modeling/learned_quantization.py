"""A random-projection quantizer that learns from the frames of training: its projection, then its entries.

After Xu et al., arXiv 2606.30671. The projection becomes the leading principal directions of the frames, each divided
by its standard deviation if it is whitened. The entries then move to the means of the frames that choose them, as in
k-means. Stacked log-mel frames have two thirds of their variance in one direction, loudness, and a random projection
of them says little else; whitening is what makes the labels say more.

Shape letters: n vectors, I input features, D codebook dimension, C codebooks, N entries.
"""

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch.nn import functional as F

from .float32_buffers import UpdateCounter, share_from_first_process, sum_over_processes
from .quantization import RandomProjectionQuantizer, nearest_entry

PROJECTION_KINDS = ("random", "pca", "whitened")
DISTANCES = ("cosine", "euclidean")
_RESEED_DISTANCE = 0.1  # of a split entry's two halves, as a share of its length


@dataclass(frozen=True)
class QuantizerLearning:
    """What a quantizer learns and when, in updates of the model; see `QuantizerConfig` for the fields."""

    projection_kind: str = "random"
    projection_updates: int = 128
    codebook_distance: str = "cosine"
    codebook_refinements: int = 0
    codebook_refinement_interval: int = 1000
    codebook_refinement_window: int | None = None
    reseed_dead_entries: bool = False

    @classmethod
    def of(cls, config: Any) -> "QuantizerLearning":
        """The fields of the same names of a model's configuration."""
        return cls(**{field.name: getattr(config, field.name) for field in fields(cls)})

    @property
    def estimates_projection(self) -> bool:
        """Whether the projection is estimated from frames."""
        return self.projection_kind != "random"

    @property
    def learns(self) -> bool:
        """Whether anything is learned."""
        return self.estimates_projection or self.codebook_refinements > 0

    @property
    def first_refined_update(self) -> int:
        """Updates before the first whose frames may move entries: until then the projection changes."""
        return self.projection_updates if self.estimates_projection else 0

    @property
    def last_refined_update(self) -> int:
        """Updates after which nothing changes any more."""
        return self.first_refined_update + self.codebook_refinements * self.codebook_refinement_interval

    def until(self, updates: int) -> "QuantizerLearning":
        """The same, without the moves of the entries that come after so many updates."""
        moves = max(0, updates - self.first_refined_update) // self.codebook_refinement_interval
        return replace(self, codebook_refinements=min(moves, self.codebook_refinements))

    @property
    def window(self) -> int:
        """Updates before each move of the entries whose frames count."""
        return self.codebook_refinement_window or self.codebook_refinement_interval

    def estimates_after(self, updates: int) -> bool:
        """Whether the projection is estimated anew once so many updates are done: after 1, 2, 4, 8, ... of them, so
        that the labels mean something from the second update on, and for the last time after all.
        """
        is_power = updates > 0 and updates & (updates - 1) == 0
        last = self.projection_updates
        return self.estimates_projection and (updates == last or (is_power and updates < last))

    def refines_after(self, updates: int) -> bool:
        """Whether the entries move once so many updates are done."""
        moves, rest = divmod(updates - self.first_refined_update, self.codebook_refinement_interval)
        return 1 <= moves <= self.codebook_refinements and rest == 0

    def counts_in(self, update: int) -> bool:
        """Whether the frames of update number `update`, from 1, count for the next move of the entries."""
        moves, rest = divmod(update - 1 - self.first_refined_update, self.codebook_refinement_interval)
        return 0 <= moves < self.codebook_refinements and rest >= self.codebook_refinement_interval - self.window

    def validate(self, codebook_dim: int, input_dim: int) -> None:
        """Refuse settings that no quantizer can follow.

        Raises:
            ValueError: one of the fields, by name.
        """
        if self.projection_kind not in PROJECTION_KINDS:
            raise ValueError(
                f'projection_kind must be one of {", ".join(PROJECTION_KINDS)}, got "{self.projection_kind}".'
            )
        if self.codebook_distance not in DISTANCES:
            raise ValueError(
                f'codebook_distance must be one of {", ".join(DISTANCES)}, got "{self.codebook_distance}".'
            )
        for name in ("projection_updates", "codebook_refinement_interval"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1 update, got {getattr(self, name)}.")
        if self.codebook_refinements < 0:
            raise ValueError(f"codebook_refinements must not be negative, got {self.codebook_refinements}.")
        if not 1 <= self.window <= self.codebook_refinement_interval:
            raise ValueError(
                f"codebook_refinement_window must lie between 1 and codebook_refinement_interval = "
                f"{self.codebook_refinement_interval} updates, got {self.codebook_refinement_window}."
            )
        if self.estimates_projection and codebook_dim > input_dim:
            raise ValueError(
                f"codebook_dim = {codebook_dim} principal directions need at least as many features per frame, got "
                f"num_mel_bins * frame_stacking = {input_dim}. Lower codebook_dim."
            )


class LearnedQuantizer(UpdateCounter, RandomProjectionQuantizer):
    """A quantizer whose projection and entries are estimated in training and then frozen.

    Statistics are sums over the frames of all processes and accumulation steps, in float32 buffers that are the same
    on every process and travel in the checkpoint. Projection and entries change at the beginning of an update, from
    the statistics of the updates before it. Nothing waits for the device but those few changes.

    Args:
        learning: what is learned and when.
        input_dim, codebook_size, codebook_dim, num_codebooks, seed, soft_input_dim: as of the base class, whose draw
            gives the first projection and entries. Soft labels keep their own copy of the first entries.
    """

    projection_mean: torch.Tensor
    frame_count: torch.Tensor
    frame_sum: torch.Tensor
    frame_products: torch.Tensor
    entry_counts: torch.Tensor
    entry_sums: torch.Tensor
    soft_codebook: torch.Tensor

    def __init__(self, learning: QuantizerLearning, *args: Any, **kwargs: Any):
        self.learning = learning
        super().__init__(*args, **kwargs)

    def draw(self) -> dict[str, torch.Tensor]:
        """The buffers' initial values: the base class's draw, and empty statistics."""
        values = super().draw()
        num_features, (num_codebooks, num_entries, dim) = self.input_dims["projection"], self.codebook_shape
        with torch.device("cpu"):
            values["num_updates"] = torch.zeros((), dtype=torch.long)
            shapes: dict[str, tuple[int, ...]] = {}
            if self.learning.estimates_projection:
                shapes |= {"projection_mean": (num_features,), "frame_count": (), "frame_sum": (num_features,)}
                shapes |= {"frame_products": (num_features, num_features)}
            if self.learning.codebook_refinements:
                shapes |= {"entry_counts": (num_codebooks, num_entries)}
                shapes |= {"entry_sums": (num_codebooks, num_entries, dim)}
            values |= {name: torch.zeros(shape, dtype=torch.float32) for name, shape in shapes.items()}
        if "soft_projection" in values and self.learning.codebook_refinements:
            values["soft_codebook"] = values["codebook"].clone()
        return values

    @property
    def learns(self) -> bool:
        """Whether training can change the labels."""
        return self.learning.learns

    @property
    def soft_entries(self) -> torch.Tensor:
        """The entries that soft labels are distances to: those of the draw."""
        return self.soft_codebook if "soft_codebook" in self._buffers else self.codebook

    def project(self, vectors: torch.Tensor) -> torch.Tensor:
        """Vectors in the codebooks' space, not normalized: (n, I) -> (C, n, D)."""
        if self.learning.estimates_projection:
            vectors = vectors - self.projection_mean
        return super().project(vectors)

    def nearest(self, projected: torch.Tensor, codebook: torch.Tensor | None = None) -> torch.Tensor:
        """The entry nearest to each projected vector: (C, n, D) -> (n, C) int64."""
        codebook = self.codebook if codebook is None else codebook
        if self.learning.codebook_distance == "cosine":
            return super().nearest(projected, codebook)
        return torch.stack([nearest_entry(*pair) for pair in zip(projected, codebook, strict=True)], dim=-1)

    @torch.no_grad()
    def observe(self, vectors: torch.Tensor, weights: torch.Tensor, labels: torch.Tensor | None = None) -> None:
        """Add frames of the current update to the statistics that are being gathered: (n, I), (n,) of 1 or 0.

        Args:
            labels: (n, C) int64, the entries that the frames count for; by default the nearest ones.
        """
        update = self.completed_updates()
        gathered: dict[str, torch.Tensor] = {}
        with torch.autocast(vectors.device.type, enabled=False):
            if self.learning.estimates_projection and update <= self.learning.projection_updates:
                real = vectors.float() * weights[:, None]
                gathered |= {"frame_count": weights.sum(), "frame_sum": real.sum(0), "frame_products": real.T @ real}
            if self.learning.codebook_refinements and self.learning.counts_in(update):
                projected = self.project(vectors.float())
                chosen = self.nearest(projected) if labels is None else labels
                gathered |= self.sums_per_entry(projected, chosen, weights)
        if gathered:
            for name, values in zip(gathered, sum_over_processes(list(gathered.values())), strict=True):
                getattr(self, name).add_(values)

    def sums_per_entry(
        self, projected: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Number and sum of the projected vectors (C, n, D) that chose each entry."""
        num_codebooks, num_entries, dim = self.codebook_shape
        places = labels.T + torch.arange(num_codebooks, device=labels.device)[:, None] * num_entries  # (C, n)
        counted = weights.expand(num_codebooks, -1).flatten()
        counts = torch.zeros(num_codebooks * num_entries, device=labels.device).index_add(0, places.flatten(), counted)
        sums = torch.zeros(num_codebooks * num_entries, dim, device=labels.device)
        sums = sums.index_add(0, places.flatten(), (projected * weights[:, None]).flatten(0, 1))
        return {"entry_counts": counts.view(self.codebook_shape[:2]), "entry_sums": sums.view(self.codebook_shape)}

    @torch.no_grad()
    def update(self) -> None:
        """Count an update that begins, and change whatever is due after those before it."""
        completed = self.completed_updates()
        if self.learning.estimates_after(completed):
            self.estimate_projection()
        if self.learning.codebook_refinements and self.learning.refines_after(completed):
            self.refine_codebook()
        self.count_update()

    def estimate_projection(self) -> None:
        """Take the leading principal directions of the frames so far: in float64 on the CPU, the same on all devices.

        The sign of a direction is free; here its largest component is positive. Several codebooks share the
        directions and differ in their entries.
        """
        count = self.frame_count.double().cpu()
        if count < 2:
            return
        mean = self.frame_sum.double().cpu() / count
        covariance = self.frame_products.double().cpu() / count - torch.outer(mean, mean)
        variances, directions = torch.linalg.eigh(covariance)  # ascending
        dim = self.codebook_shape[2]
        variances, directions = variances[-dim:].flip(0), directions[:, -dim:].flip(1)
        largest = directions.gather(0, directions.abs().argmax(0, keepdim=True))
        directions = directions * largest.sign()
        if self.learning.projection_kind == "whitened":
            directions = directions / variances.clamp_min(1e-6 * variances[0].clamp_min(1e-12)).sqrt()
        self.projection_mean.copy_(mean)
        self.projection.copy_(directions.expand_as(self.projection))
        share_from_first_process(self.projection_mean, self.projection)

    def refine_codebook(self) -> None:
        """Move every entry to the mean of the projected vectors that chose it, and begin a new window.

        Each mean starts with the old entry, counted once, so that an entry that no frame chose stays where it is.
        With the cosine distance the old entry is normalized first, since only its direction was compared.
        """
        old = F.normalize(self.codebook, dim=-1) if self.learning.codebook_distance == "cosine" else self.codebook
        entries = (old + self.entry_sums) / (1 + self.entry_counts)[..., None]
        if self.learning.reseed_dead_entries:
            entries = self.reseed(entries)
        self.codebook.copy_(entries)
        share_from_first_process(self.codebook)
        self.entry_counts.zero_()
        self.entry_sums.zero_()

    def reseed(self, entries: torch.Tensor) -> torch.Tensor:
        """Put every entry that no frame chose beside one of those that most frames chose, which it then shares.

        The first dead entry splits the most used one, the second the second most used one, and so on. The direction
        between the halves comes from the seed and the number of the update.
        """
        with torch.device("cpu"):
            generator = torch.Generator().manual_seed(self.seed + self.completed_updates())
            noise = torch.randn(entries.shape, generator=generator, dtype=torch.float32)
        noise = F.normalize(noise, dim=-1).to(entries.device)
        dead = self.entry_counts == 0  # (C, N)
        counts, order = self.entry_counts.sort(dim=-1, descending=True, stable=True)
        rank = (dead.cumsum(-1) - 1).clamp_min(0)
        source = order.gather(-1, rank)[..., None].expand_as(entries)
        chosen = entries.gather(1, source)
        beside = chosen + _RESEED_DISTANCE * chosen.norm(dim=-1, keepdim=True) * noise
        has_source = counts.gather(-1, rank) > 1
        return torch.where((dead & has_source)[..., None], beside, entries)
