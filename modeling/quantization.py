"""Vectors -> labels: random projections (BEST-RQ, BiRQ), finite scalars (Chunk SSL), and statistics of label use.

Shape letters: n vectors, I input features, D codebook dimension, C codebooks, N entries, R channels, K levels.
"""

import math
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init

_ROWS_PER_BLOCK = 512  # distances are compared in blocks of rows that stay in the cache


FrozenPart = TypeVar("FrozenPart", bound=nn.Module)


class KeepsPrecision(nn.Module):
    """A module whose buffers, and those of its parts, follow moves between devices but no casts between types."""

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True):  # type: ignore[no-untyped-def]
        before = [(part, dict(part._buffers)) for part in self.modules()]
        super()._apply(fn, recurse)
        for part, buffers in before:
            for name, buffer in buffers.items():
                moved = part._buffers[name]
                if buffer is not None and moved is not None and moved.dtype != buffer.dtype:
                    part._buffers[name] = buffer.to(moved.device)
        return self


class FrozenModule(KeepsPrecision, Generic[FrozenPart]):
    """A trained module that only labels: its parameters become buffers, which no optimizer, no gradient, no cast and
    no loading switch can set in motion again (a frozen parameter comes back from a checkpoint trainable).

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

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The module's answer, in full precision and without gradients."""
        device_type = next(self.buffers()).device.type
        with torch.autocast(device_type, enabled=False):
            return self.module(*args, **kwargs)


class RandomProjectionQuantizer(KeepsPrecision):
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

    @torch.no_grad()
    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        """Hard labels: the entry nearest (L2) to the projected vector, both L2-normalized: (n, I) -> (n, C) int64."""
        with torch.autocast(vectors.device.type, enabled=False):
            projected = F.normalize(torch.einsum("ni,cid->cnd", vectors.float(), self.projection), dim=-1)
            entries = F.normalize(self.codebook, dim=-1)
            return torch.stack([nearest_entry(*pair) for pair in zip(projected, entries, strict=True)], dim=-1)

    def soft_scores(self, vectors: torch.Tensor) -> torch.Tensor:
        """Minus the squared distances between projected vectors and entries, up to a constant per vector that no
        softmax over the entries sees: (n, soft_input_dim) -> (n, C, N), differentiable.

        Nothing is normalized here: between unit vectors all distances lie within 4 of each other, and Gumbel noise
        would pick entries almost at random (it kept the nearest of 8192 in 0.5 % of draws, against 50 % as it is).
        """
        with torch.autocast(vectors.device.type, enabled=False):
            projected = torch.einsum("ni,cid->cnd", vectors.float(), self.soft_projection)
            norms = self.codebook.square().sum(-1)[:, None]  # (C, 1, N)
            return torch.baddbmm(norms, projected, self.codebook.mT, beta=-1, alpha=2).transpose(0, 1)


class FiniteScalarQuantizer(nn.Module):
    """Finite scalar quantization (Mentzer et al., arXiv 2309.15505): every channel is bounded and rounded on its own.

    A value z of a channel of K levels becomes round(b(z)), a whole number from -floor(K / 2) on, with

        b(z) = floor(K / 2) tanh(z)                                              for odd K (arXiv 2509.15579),
        b(z) = (K - 1) / 2 tanh(z + shift) - 1/2, shift = artanh(1 / (K - 1))    for even K (the half-step offset).

    The shift puts z = 0 on the level 0; K = 2 has no such shift and takes the sign of z. Three views of the result:

    - codes: round(b(z)) / floor(K / 2), float in [-1, 1], what a decoder sees; gradients pass the rounding unchanged;
    - digits: round(b(z)) + floor(K / 2), int64 in [0, K), one per channel, what the group loss predicts;
    - indices: the digits as one int64, the first channel the fastest: sum over r of digit_r * K_1 ... K_(r-1).

    Nothing is learned or stored; bounds and rounding are computed in float32 (or float64) whatever autocast says.

    Args:
        levels: K of each channel, at least 2. Their product, the codebook size, must stay below 2^63.

    Raises:
        ValueError: no channel, a channel with fewer than 2 levels, or too many entries for int64.
    """

    def __init__(self, levels: list[int]):
        super().__init__()
        check_levels(levels)
        # Plain numbers, not buffers: nothing for a checkpoint to contradict, nothing for meta loading to leave unset.
        self.levels = list(levels)
        self.basis = [math.prod(levels[:channel]) for channel in range(len(levels))]
        # artanh(1 / (K - 1)) for even K; infinite for K = 2.
        self.shifts = [math.atanh(1 / (size - 1)) if size % 2 == 0 and size > 2 else 0.0 for size in levels]

    @property
    def num_channels(self) -> int:
        """R."""
        return len(self.levels)

    @property
    def codebook_size(self) -> int:
        """Entries of the product codebook."""
        return math.prod(self.levels)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Codes, differentiable by the straight-through estimator: (..., R) -> (..., R) float32."""
        with torch.autocast(values.device.type, enabled=False):
            bounded = self.bound(values)
            rounded = bounded.detach().round() + (bounded - bounded.detach())  # the bracket is 0, with a gradient
            return rounded / self._per_channel(self.levels, values).div(2, rounding_mode="floor")

    @torch.no_grad()
    def digits(self, values: torch.Tensor) -> torch.Tensor:
        """Level of each channel: (..., R) -> (..., R) int64 in [0, K)."""
        with torch.autocast(values.device.type, enabled=False):
            return self.bound(values).round().long() + self._per_channel(self.levels, values) // 2

    def bound(self, values: torch.Tensor) -> torch.Tensor:
        """b(z) above, before rounding: (..., R) -> (..., R)."""
        self._check_channels(values)
        values = values.to(torch.promote_types(values.dtype, torch.float32))
        levels = self._per_channel(self.levels, values)
        offset = (1 - levels % 2) / 2  # half a step where K is even
        shift = self._per_channel(self.shifts, values).to(values.dtype)
        return torch.tanh(values + shift) * ((levels - 1) / 2) - offset

    def codes_from_digits(self, digits: torch.Tensor) -> torch.Tensor:
        """(..., R) int64 -> (..., R) float32 in [-1, 1]."""
        half = self._per_channel(self.levels, digits) // 2
        return (digits - half) / half

    def digits_from_codes(self, codes: torch.Tensor) -> torch.Tensor:
        """(..., R) in [-1, 1] -> (..., R) int64."""
        self._check_channels(codes)
        half = self._per_channel(self.levels, codes) // 2
        return (codes.detach().float() * half).round().long() + half

    def indices_from_digits(self, digits: torch.Tensor) -> torch.Tensor:
        """(..., R) int64 -> (...) int64 in [0, codebook_size)."""
        self._check_channels(digits)
        return (digits.long() * self._per_channel(self.basis, digits)).sum(-1)

    def digits_from_indices(self, indices: torch.Tensor) -> torch.Tensor:
        """(...) int64 -> (..., R) int64."""
        quotients = indices[..., None].long() // self._per_channel(self.basis, indices)
        return quotients % self._per_channel(self.levels, indices)

    def indices_from_codes(self, codes: torch.Tensor) -> torch.Tensor:
        """(..., R) in [-1, 1] -> (...) int64 in [0, codebook_size)."""
        return self.indices_from_digits(self.digits_from_codes(codes))

    def codes_from_indices(self, indices: torch.Tensor) -> torch.Tensor:
        """(...) int64 -> (..., R) float32 in [-1, 1]."""
        return self.codes_from_digits(self.digits_from_indices(indices))

    @staticmethod
    def _per_channel(numbers: list[int] | list[float], like: torch.Tensor) -> torch.Tensor:
        return torch.tensor(numbers, device=like.device)

    def _check_channels(self, values: torch.Tensor) -> None:
        if values.shape[-1] != self.num_channels:
            raise ValueError(
                f"The last dimension must hold one value for each of the {self.num_channels} channels, got shape "
                f"{tuple(values.shape)}."
            )

    def extra_repr(self) -> str:
        return f"levels={self.levels}"


def check_levels(levels: list[int]) -> None:
    """Refuse levels that no finite scalar quantizer can have, with an error that says why."""
    if not levels or min(levels) < 2:
        raise ValueError(f"Each channel needs at least 2 levels, and there must be a channel; got {levels}.")
    if math.prod(levels) >= 2**63:
        raise ValueError(f"A codebook of {math.prod(levels):,} entries is too large for int64 indices: {levels}.")


def nearest_entry(vectors: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    """Index of the entry with the smallest L2 distance: (n, D), (N, D) -> (n,) int64.

    |v - c|^2 = |v|^2 - 2 v.c + |c|^2, and |v|^2 does not change the order: one matrix product, block by block.
    """
    norms = codebook.square().sum(-1)
    blocks = [torch.addmm(norms, rows, codebook.T, alpha=-2).argmin(-1) for rows in vectors.split(_ROWS_PER_BLOCK)]
    return torch.cat(blocks) if blocks else vectors.new_empty(0, dtype=torch.long)


def label_statistics(labels: torch.Tensor, codebook_size: int) -> dict[str, torch.Tensor]:
    """How much of the codebooks a set of labels uses: (n, C) int64 -> 0-dim scalars, means over C.

    `codebook_usage` is the share of entries that occur, `codebook_perplexity` the exponential of the entropy of their
    frequencies: 1 when all labels agree, `codebook_size` when all occur equally often. Few labels bound both.
    """
    num_codebooks = labels.shape[-1]
    offsets = torch.arange(num_codebooks, device=labels.device) * codebook_size
    counts = torch.zeros(num_codebooks * codebook_size, device=labels.device)
    counts = counts.index_add(0, (labels + offsets).flatten(), counts.new_ones(labels.numel()))
    counts = counts.view(num_codebooks, codebook_size)
    return {"codebook_usage": (counts > 0).float().mean(), "codebook_perplexity": perplexity(counts).mean()}


def perplexity(counts: torch.Tensor) -> torch.Tensor:
    """Exponential of the entropy of frequencies: counts (..., N) -> (...); 1 where nothing was counted."""
    shares = counts / counts.sum(-1, keepdim=True).clamp_min(1)
    return torch.xlogy(shares, shares).sum(-1).neg().exp()


def level_statistics(digits: torch.Tensor, quantizer: FiniteScalarQuantizer) -> dict[str, torch.Tensor]:
    """How much of a finite scalar codebook a set of digits (n, R) uses.

    `codebook_usage` is the number of different codes over the most that n frames and the codebook allow;
    `channel_perplexities` (R,) are the exponentials of the entropies of the levels' frequencies; `level_usage` and
    `level_perplexity` are means over the channels.
    """
    levels = torch.tensor(quantizer.levels, device=digits.device)
    counts = F.one_hot(digits, max(quantizer.levels)).sum(0)  # (R, largest K)
    different = quantizer.indices_from_digits(digits).unique().numel()
    perplexities = perplexity(counts)
    return {
        "codebook_usage": torch.tensor(
            different / max(1, min(len(digits), quantizer.codebook_size)), device=digits.device
        ),
        "level_usage": ((counts > 0).sum(-1) / levels).mean(),
        "level_perplexity": perplexities.mean(),
        "channel_perplexities": perplexities,
    }
