"""Quantizers turn vectors into labels: what one must offer, and the random projections of BEST-RQ and BiRQ.

Shape letters: B batch, T frames, n vectors, I input features, D codebook dimension, C codebooks, N entries.
"""

from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init

from .float32_buffers import Float32Buffers

_ROWS_PER_BLOCK = 512  # distances are compared in blocks of rows that stay in the cache


FrozenPart = TypeVar("FrozenPart", bound=nn.Module)


@dataclass(frozen=True)
class FrameLabels:
    """Labels of one kind for every frame of a batch.

    Args:
        ids: (B, T, C) int64, one column per codebook or per channel; of no meaning at padded frames.
        sizes: how many labels each column has.
        are_channels: whether the columns together are one label (the channels of a finite scalar quantizer, the first
            the fastest) instead of one label each.
    """

    ids: torch.Tensor
    sizes: list[int]
    are_channels: bool = False

    def columns(self) -> list[torch.Tensor]:
        """(B, T) int64 for every label that stands for itself; channels are joined into one."""
        if not self.are_channels:
            return list(self.ids.unbind(-1))
        joined, factor = torch.zeros_like(self.ids[..., 0]), 1
        for column, size in zip(self.ids.unbind(-1), self.sizes, strict=True):
            joined, factor = joined + factor * column, factor * size
        return [joined]


class Quantizer(Protocol):
    """What a pretraining model asks of its quantizer. All state is float32 buffers, saved and restored bit for bit.

    A quantizer that learns sees the frames of every training step (`observe`) and changes between two updates of the
    model (`update`), never within one: all processes and all accumulation steps of an update use the same labels.
    """

    @property
    def learns(self) -> bool:
        """Whether training can change the labels. Those of a quantizer that does not learn follow from the config
        alone; all others must be read from the pretraining checkpoint.
        """
        ...

    def labels(self, vectors: torch.Tensor) -> torch.Tensor:
        """Hard labels: (n, I) -> (n, C) int64."""
        ...

    def observe(self, vectors: torch.Tensor, weights: torch.Tensor) -> None:
        """Add frames to the statistics: vectors (n, I); weights (n,), 1 where a frame counts and 0 where it does not.

        The statistics are summed over all processes, so that every process holds the same state.
        """
        ...

    def update(self) -> None:
        """Count an update of the model that begins, and change whatever is due."""
        ...


class FrozenModule(Float32Buffers, Generic[FrozenPart]):
    """A trained module that only makes labels.

    Its parameters are stored as buffers, so optimizers ignore them and dtype casts leave them in float32.
    (`requires_grad=False` would be lost on loading.)

    Args:
        module: the trained module, kept as `module`.
    """

    def __init__(self, module: FrozenPart):
        super().__init__()
        self.module: FrozenPart = module
        for part in module.modules():
            for name, parameter in list(part._parameters.items()):
                del part._parameters[name]
                part.register_buffer(name, None if parameter is None else parameter.detach())
            if is_frozen_layer(part):
                reset_frozen_layer(part)

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The module's answer, in full precision and without gradients."""
        device_type = next(self.buffers()).device.type
        with torch.autocast(device_type, enabled=False):
            return self.module(*args, **kwargs)


def is_frozen_layer(module: nn.Module) -> bool:
    """Whether this is a linear layer or a convolution whose weights a `FrozenModule` has made buffers."""
    return isinstance(module, (nn.Linear, nn.Conv1d)) and "weight" in module._buffers


@torch.no_grad()
def reset_frozen_layer(layer: nn.Module) -> None:
    """Write a frozen layer's initial values: the same at every call, whatever the seed.

    They stand for the weights of a trained module until these are loaded.
    """
    with torch.device("cpu"):  # models are also built under the meta device, which draws nothing
        generator = torch.Generator().manual_seed(0)
        for buffer in layer.buffers(recurse=False):
            fan_in = max(1, buffer[0].numel())
            init.copy_(buffer, fan_in**-0.5 * torch.randn(buffer.shape, generator=generator, dtype=torch.float32))


class RandomProjectionQuantizer(Float32Buffers):
    """Fixed random projections and codebooks (Chiu et al., arXiv 2202.01855, section 3.1), never trained.

    Projections are Xavier-uniform, entries standard normal, both drawn from `seed` by a private generator. They are
    float32 buffers: saved and restored bit for bit, unseen by optimizers, and kept in float32 when the model around
    them is cast (a rounded codebook gives other labels).

    Args:
        input_dim: features of the vectors that get hard labels, I.
        codebook_size: entries per codebook, N.
        codebook_dim: features of an entry, D.
        num_codebooks: independent codebooks, C.
        seed: seed of all values.
        soft_input_dim: features of the vectors that get soft labels from the same codebooks, if any do.
    """

    def __init__(
        self,
        input_dim: int,
        codebook_size: int,
        codebook_dim: int,
        num_codebooks: int = 1,
        seed: int = 0,
        soft_input_dim: int | None = None,
    ):
        super().__init__()
        self.codebook_shape = (num_codebooks, codebook_size, codebook_dim)
        self.input_dims = {"projection": input_dim}
        if soft_input_dim is not None:
            self.input_dims["soft_projection"] = soft_input_dim
        self.seed = seed
        self.codebook: torch.Tensor
        self.projection: torch.Tensor
        self.soft_projection: torch.Tensor
        for name, values in self.draw().items():
            self.register_buffer(name, values)

    def draw(self) -> dict[str, torch.Tensor]:
        """The buffers' initial values, the same at every call."""
        num_codebooks, _, codebook_dim = self.codebook_shape
        with torch.device("cpu"):  # models are also built under the meta device, which draws nothing
            generator = torch.Generator().manual_seed(self.seed)
            values = {"codebook": torch.randn(self.codebook_shape, generator=generator, dtype=torch.float32)}
            for name, input_dim in self.input_dims.items():
                uniform = torch.rand(
                    (num_codebooks, input_dim, codebook_dim), generator=generator, dtype=torch.float32
                )
                values[name] = (2 * uniform - 1) * (6 / (input_dim + codebook_dim)) ** 0.5
        return values

    def reset(self) -> None:
        """Write the initial values again, as `_init_weights` must after a load that left a buffer out."""
        for name, values in self.draw().items():
            init.copy_(getattr(self, name), values)

    @property
    def learns(self) -> bool:
        """Whether training can change the labels: it cannot."""
        return False

    def observe(self, vectors: torch.Tensor, weights: torch.Tensor) -> None:
        """Do nothing: there is nothing to learn."""

    def update(self) -> None:
        """Do nothing: there is nothing to learn."""

    @torch.no_grad()
    def labels(self, vectors: torch.Tensor) -> torch.Tensor:
        """Hard labels: the entry nearest (L2) to the projected vector, both L2-normalized: (n, I) -> (n, C) int64."""
        with torch.autocast(vectors.device.type, enabled=False):
            return self.nearest(self.project(vectors.float()))

    def project(self, vectors: torch.Tensor) -> torch.Tensor:
        """Vectors in the codebooks' space, not normalized: (n, I) -> (C, n, D)."""
        return torch.einsum("ni,cid->cnd", vectors, self.projection)

    def nearest(self, projected: torch.Tensor, codebook: torch.Tensor | None = None) -> torch.Tensor:
        """The entry nearest to each projected vector, both L2-normalized: (C, n, D) -> (n, C) int64.

        The entries are those of `codebook`, (C, N, D), if it is given.
        """
        codebook = self.codebook if codebook is None else codebook
        projected, entries = F.normalize(projected, dim=-1), F.normalize(codebook, dim=-1)
        return torch.stack([nearest_entry(*pair) for pair in zip(projected, entries, strict=True)], dim=-1)

    @property
    def soft_entries(self) -> torch.Tensor:
        """The entries that soft labels are distances to, (C, N, D)."""
        return self.codebook

    def soft_scores(self, vectors: torch.Tensor) -> torch.Tensor:
        """Minus the squared distances between projected vectors and entries, up to a constant per vector that no
        softmax over the entries sees: (n, soft_input_dim) -> (n, C, N), differentiable.

        Nothing is normalized here: between unit vectors all distances lie within 4 of each other, and Gumbel noise
        would pick entries almost at random (it kept the nearest of 8192 in 0.5 % of draws, against 50 % as it is).
        """
        with torch.autocast(vectors.device.type, enabled=False):
            projected = self.soft_project(vectors)
            norms = self.soft_entries.square().sum(-1)[:, None]  # (C, 1, N)
            return torch.baddbmm(norms, projected, self.soft_entries.mT, beta=-1, alpha=2).transpose(0, 1)

    @torch.no_grad()
    def likeliest(self, vectors: torch.Tensor) -> torch.Tensor:
        """The entry with the highest soft score: (n, soft_input_dim) -> (n, C) int64."""
        with torch.autocast(vectors.device.type, enabled=False):
            pairs = zip(self.soft_project(vectors), self.soft_entries, strict=True)
            return torch.stack([nearest_entry(*pair) for pair in pairs], dim=-1)

    def soft_project(self, vectors: torch.Tensor) -> torch.Tensor:
        """Vectors that get soft labels, in the codebooks' space: (n, soft_input_dim) -> (C, n, D)."""
        return torch.einsum("ni,cid->cnd", vectors.float(), self.soft_projection)


def nearest_entry(vectors: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    """Index of the entry with the smallest L2 distance: (n, D), (N, D) -> (n,) int64.

    |v - c|^2 = |v|^2 - 2 v.c + |c|^2, and |v|^2 does not change the order: one matrix product, block by block.
    """
    norms = codebook.square().sum(-1)
    blocks = [torch.addmm(norms, rows, codebook.T, alpha=-2).argmin(-1) for rows in vectors.split(_ROWS_PER_BLOCK)]
    return torch.cat(blocks) if blocks else vectors.new_empty(0, dtype=torch.long)
