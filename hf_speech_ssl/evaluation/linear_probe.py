"""What one linear layer can read from frozen frames: multinomial logistic regressions, one per layer of an encoder.

Shape letters: L layers, n frames, D features of a layer, P phones, U utterances.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch.nn import functional as F

BATCH_FRAMES = 256
LEARNING_RATE = 1e-2  # of Adam at the first update, falling linearly to 0
L2_PENALTY = 1e-4  # half of it times the squared weights is added to the mean cross-entropy of a layer
MIN_FRAMES_PER_PHONE = 10  # on average, to fit a probe at all


class LinearProbes:
    """A softmax regression for each layer, all fitted to the same frames in the same order.

    Features are standardised with the training frames' means and standard deviations; a feature that does not vary
    there is left out. Weights begin at zero, so that the seed decides the order of the frames and nothing else.

    Args:
        features: (n, D) of each layer, float16 or float32 on any device; D may differ between layers.
        targets: (n,) int64 in [0, num_phones).
        num_phones: outputs of every probe.
        num_epochs: passes over the frames.
        seed: of the order.
        device: where to compute; the features may stay on another one.
        on_epoch: called after every pass.

    Raises:
        ValueError: no layers, layers of different lengths, targets out of range, fewer than two phones, fewer frames
            than `MIN_FRAMES_PER_PHONE` for each of the phones that occur, or no epoch.
    """

    def __init__(
        self,
        features: Sequence[torch.Tensor],
        targets: torch.Tensor,
        num_phones: int,
        num_epochs: int = 10,
        seed: int = 0,
        device: torch.device | str = "cpu",
        on_epoch: Callable[[], object] = lambda: None,
    ):
        _check(features, targets, num_phones, num_epochs)
        self.device = torch.device(device)
        moments = [torch.std_mean(frames.float(), dim=0, correction=0) for frames in features]
        self.means = [mean.to(self.device) for _, mean in moments]
        self.scales = [torch.where(std > 0, 1 / std, 0.0).to(self.device) for std, _ in moments]
        widths = [frames.shape[1] for frames in features]
        self.weights = [torch.zeros(width, num_phones, device=self.device, requires_grad=True) for width in widths]
        self.biases = [torch.zeros(num_phones, device=self.device, requires_grad=True) for _ in widths]
        self._fit(features, targets, num_epochs, torch.Generator().manual_seed(seed), on_epoch)

    def _fit(
        self,
        features: Sequence[torch.Tensor],
        targets: torch.Tensor,
        num_epochs: int,
        generator: torch.Generator,
        on_epoch: Callable[[], object],
    ) -> None:
        optimizer = torch.optim.Adam([*self.weights, *self.biases], lr=LEARNING_RATE, weight_decay=L2_PENALTY)
        num_updates = num_epochs * -(-len(targets) // BATCH_FRAMES)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda update: 1 - update / num_updates)
        for _ in range(num_epochs):
            for batch in torch.randperm(len(targets), generator=generator).split(BATCH_FRAMES):
                phones = targets[batch].to(self.device)
                scores = self.scores([frames[batch.to(frames.device)] for frames in features])
                # Each term has weights of its own: the sum fits every layer as if it were alone.
                losses = torch.stack([F.cross_entropy(of_layer, phones) for of_layer in scores])
                optimizer.zero_grad()
                losses.sum().backward()
                optimizer.step()
                schedule.step()
            on_epoch()
        for parameter in (*self.weights, *self.biases):
            parameter.requires_grad_(False)

    def scores(self, features: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Logits of some frames: (n, D) of each layer -> (n, P) of each layer."""
        return [
            torch.addmm(bias, (frames.to(self.device).float() - mean) * scale, weight)
            for frames, mean, scale, weight, bias in zip(
                features, self.means, self.scales, self.weights, self.biases, strict=True
            )
        ]

    def predict(self, features: Sequence[torch.Tensor]) -> NDArray[np.int64]:
        """The phone that each layer's probe names: (n, D) of each layer -> (L, n)."""
        return np.stack([scores.argmax(-1).cpu().numpy() for scores in self.scores(features)])


def _check(features: Sequence[torch.Tensor], targets: torch.Tensor, num_phones: int, num_epochs: int) -> None:
    lengths = {len(frames) for frames in features}
    if lengths != {len(targets)}:
        raise ValueError(
            f"Every layer needs a frame for each of the {len(targets)} targets, got {len(features)} layers with "
            f"{sorted(lengths)} frames."
        )
    if num_epochs < 1:
        raise ValueError(f"num_epochs must be at least 1, got {num_epochs}.")
    seen = len(targets.unique())
    if seen < 2 or len(targets) < MIN_FRAMES_PER_PHONE * seen:
        raise ValueError(
            f"A linear probe needs frames of at least two phones, and {MIN_FRAMES_PER_PHONE} frames a phone on "
            f"average; got {len(targets)} frames of {seen} phones to train on. Give more audio."
        )
    if int(targets.min()) < 0 or int(targets.max()) >= num_phones:
        raise ValueError(f"Targets must lie in [0, {num_phones}), got {int(targets.min())} to {int(targets.max())}.")


def share_with_error(hits: ArrayLike, frames: ArrayLike) -> tuple[float, float | None]:
    """A share of frames over all utterances, and half of its 95 % confidence interval.

    Frames of one utterance err together, so the utterances are what is drawn: the interval is 1.96 standard errors of
    the ratio of two sums over utterances (linearised). Differences of hits give the interval of a paired difference.

    Args:
        hits: (U,) frames that count for the share, or differences of two such numbers.
        frames: (U,) all frames.

    Returns:
        The share, and half the interval's width; `None` for fewer than two utterances.
    """
    hit, all_frames = np.asarray(hits, dtype=np.float64), np.asarray(frames, dtype=np.float64)
    total = all_frames.sum()
    share = hit.sum() / total
    if len(hit) < 2:
        return float(share), None
    residuals = hit - share * all_frames
    variance = residuals @ residuals * len(hit) / (len(hit) - 1) / total**2
    return float(share), float(1.96 * np.sqrt(variance))
