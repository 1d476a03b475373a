"""Finite scalar quantization, the labels of Chunk SSL, and statistics of its use.

Shape letters: n vectors, R channels, K levels.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

from .label_statistics import distinct_counts, perplexity


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


def level_statistics(
    digits: torch.Tensor, weights: torch.Tensor, quantizer: FiniteScalarQuantizer
) -> dict[str, torch.Tensor]:
    """How much of a finite scalar codebook a set of digits uses.

    `codebook_usage` is the number of different codes over the most that the frames and the codebook allow;
    `channel_perplexities` (R,) are the exponentials of the entropies of the levels' frequencies; `level_usage` and
    `level_perplexity` are means over the channels.

    Args:
        digits: (n, R) int64.
        weights: (n,) float32, 1 where a frame counts and 0 where it does not.
    """
    levels = torch.tensor(quantizer.levels, device=digits.device)
    counts = torch.einsum("nrk,n->rk", F.one_hot(digits, max(quantizer.levels)).to(weights.dtype), weights)
    different = (distinct_counts(quantizer.indices_from_digits(digits)[:, None], weights) > 0).sum()
    perplexities = perplexity(counts)
    return {
        "codebook_usage": different / weights.sum().clamp(1, quantizer.codebook_size),
        "level_usage": ((counts > 0).sum(-1) / levels).mean(),
        "level_perplexity": perplexities.mean(),
        "channel_perplexities": perplexities,
    }
