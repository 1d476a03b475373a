"""Whether an encoder's frames still differ from each other: effective rank and mean cosine.

Shape letters: n frames, D features.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from ..verdict import LayerRank
from .encoders import SpeechEncoder

_NO_VARIANCE = 1e-10  # of the mean square: below it, float32 rounding is all that differs


class FrameSpread:
    """How far the frames of one layer spread, accumulated over batches.

    - `effective_rank` (Roy and Vetterli, EUSIPCO 2007, on the covariance): the exponential of the entropy of the
      eigenvalues of the frames' covariance, taken as shares of their sum. D if the frames vary equally in all
      directions, 1 if they lie on a line or are all the same; at most n - 1.
    - `mean_cosine`: the mean cosine between two different frames, means not removed. 1 if all frames point the same
      way, 0 if they point everywhere. An offset that all frames share raises it without loss: a layer is collapsed
      where this is near 1 and the effective rank is low.
    """

    def __init__(self) -> None:
        self.count = 0
        self._offset = self._sum = self._products = self._directions = torch.zeros(0)

    def update(self, frames: torch.Tensor) -> None:
        """Count frames (n, D)."""
        frames = frames.float()
        if self.count == 0:
            width = frames.shape[1]
            # Products of what is left after an offset near the mean: float32 then loses nothing to cancellation.
            self._offset = frames.mean(0)
            self._sum, self._directions = (frames.new_zeros(width, dtype=torch.float64) for _ in range(2))
            self._products = frames.new_zeros(width, width, dtype=torch.float64)
        shifted = frames - self._offset
        self.count += len(frames)
        self._sum += shifted.sum(0)
        self._products += shifted.T @ shifted
        self._directions += F.normalize(frames, dim=-1).sum(0)

    def compute(self) -> dict[str, float]:
        """The two measures.

        Raises:
            ValueError: fewer than two frames were counted.
        """
        if self.count < 2:
            raise ValueError(f"The spread of frames needs at least two frames, got {self.count}.")
        mean = self._sum / self.count
        eigenvalues = torch.linalg.eigvalsh(self._products / self.count - torch.outer(mean, mean)).clamp_min(0)
        square = (self._offset.double() + mean).square().sum() + eigenvalues.sum()
        rank = 1.0
        if eigenvalues.sum() > _NO_VARIANCE * square:
            shares = eigenvalues / eigenvalues.sum()
            rank = float(torch.xlogy(shares, shares).sum().neg().exp())
        pairs = self.count * (self.count - 1)
        return {
            "effective_rank": rank,
            "mean_cosine": float((self._directions.square().sum() - self.count) / pairs),
        }


@torch.no_grad()
def effective_ranks(
    encoder: SpeechEncoder, waveforms: Sequence[NDArray[np.float32]], seed: int = 0
) -> list[LayerRank]:
    """The effective rank of every layer's frames, beside that of the same encoder with random weights.

    Args:
        encoder: of which `with_random_weights` makes another; it is left in training mode if it is in it.
        waveforms: (samples,) at 16 kHz.
    """
    assert encoder.model is not None
    training = encoder.model.training
    encoder.model.eval()
    measured = [_spreads(one, waveforms) for one in (encoder, encoder.with_random_weights(seed))]
    encoder.model.train(training)
    return [
        LayerRank(layer, trained.compute()["effective_rank"], fresh.compute()["effective_rank"])
        for layer, (trained, fresh) in enumerate(zip(*measured, strict=True))
    ]


def _spreads(encoder: SpeechEncoder, waveforms: Sequence[NDArray[np.float32]]) -> list[FrameSpread]:
    spreads: list[FrameSpread] = []
    for waveform in waveforms:
        (encoded,) = encoder([waveform])
        spreads = spreads or [FrameSpread() for _ in encoded.layers]
        for spread, layer in zip(spreads, encoded.layers, strict=True):
            spread.update(layer)
    return spreads
