"""What one linear layer can read from frozen frames: multinomial logistic regressions, one per layer of an encoder.

Shape letters: L layers, n frames, D features of a layer, P targets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

LARGEST_BATCH = 256  # frames
LEAST_UPDATES = 64  # in a pass: few frames come in smaller batches
LEARNING_RATE = 3e-2  # of Adam at the first update, falling linearly to 0
LEAST_VARIANCE = 1e-3  # of a direction, to which the others' steps are matched; standardized features have 1

_ROWS_PER_BLOCK = 8192


class LinearProbes:
    """A softmax regression for each layer, all fitted to the same frames in the same order.

    What is minimized is the sum of the cross-entropies of all n frames plus half the squared weights, over features
    that are standardized with the training frames' means and standard deviations; a feature that does not vary there
    is left out. Weights begin at zero, so that the seed decides the order of the frames and nothing else.

    Steps are made along the principal directions, scaled to one variance. Frames of an encoder vary much in few
    directions and little in many, and plain steps would not reach the minimum (docs/LOG.md).

    Args:
        features: (n, D) of each layer, float16 or float32 on any device; D may differ between layers.
        targets: (n,) int64 in [0, num_targets).
        num_targets: outputs of every probe, what it can name.
        num_epochs: passes over the frames.
        seed: of the order.
        device: where to compute; the features may stay on another one.
        on_epoch: called after every pass.
        min_examples: of each target on average, to fit a probe at all.

    Raises:
        ValueError: no layers, layers of different lengths, targets out of range, fewer than two targets, fewer
            examples than `min_examples` for each of the targets that occur, or no epoch.
    """

    def __init__(
        self,
        features: Sequence[torch.Tensor],
        targets: torch.Tensor,
        num_targets: int,
        num_epochs: int = 10,
        seed: int = 0,
        device: torch.device | str = "cpu",
        on_epoch: Callable[[], object] = lambda: None,
        min_examples: int = 10,
    ):
        _check(features, targets, num_targets, num_epochs, min_examples)
        self.device = torch.device(device)
        self.means, self.scales, self.weights, self.biases = [], [], [], []
        directions = []
        for frames in features:
            mean, scale, axes = _principal_directions(frames, self.device)
            self.means.append(mean)
            self.scales.append(scale)
            directions.append(axes)
            self.weights.append(torch.zeros(frames.shape[1], num_targets, device=self.device))
            self.biases.append(torch.zeros(num_targets, device=self.device))
        self._fit(features, directions, targets, num_epochs, torch.Generator().manual_seed(seed), on_epoch)

    @torch.enable_grad()
    def _fit(
        self,
        features: Sequence[torch.Tensor],
        directions: Sequence[torch.Tensor],
        targets: torch.Tensor,
        num_epochs: int,
        generator: torch.Generator,
        on_epoch: Callable[[], object],
    ) -> None:
        along = [weight.clone().requires_grad_() for weight in self.weights]
        for bias in self.biases:
            bias.requires_grad_()
        optimizer = torch.optim.Adam([*along, *self.biases], lr=LEARNING_RATE)
        batch_frames = max(1, min(LARGEST_BATCH, len(targets) // LEAST_UPDATES))
        num_updates = num_epochs * -(-len(targets) // batch_frames)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda update: 1 - update / num_updates)
        for _ in range(num_epochs):
            for batch in torch.randperm(len(targets), generator=generator).split(batch_frames):
                wanted = targets[batch].to(self.device)
                self.weights = [axes @ weight for axes, weight in zip(directions, along, strict=True)]
                scores = self.scores([frames[batch.to(frames.device)] for frames in features])
                # Each term has weights of its own: the sum fits every layer as if it were alone.
                losses = [F.cross_entropy(of_layer, wanted) for of_layer in scores]
                losses += [weight.square().sum() / (2 * len(targets)) for weight in self.weights]
                optimizer.zero_grad()
                torch.stack(losses).sum().backward()
                optimizer.step()
                schedule.step()
            on_epoch()
        self.weights = [axes @ weight.detach() for axes, weight in zip(directions, along, strict=True)]
        self.biases = [bias.detach() for bias in self.biases]

    def scores(self, features: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Logits of some frames: (n, D) of each layer -> (n, P) of each layer."""
        return [
            torch.addmm(bias, (frames.to(self.device).float() - mean) * scale, weight)
            for frames, mean, scale, weight, bias in zip(
                features, self.means, self.scales, self.weights, self.biases, strict=True
            )
        ]

    def predict(self, features: Sequence[torch.Tensor]) -> NDArray[np.int64]:
        """The target that each layer's probe names: (n, D) of each layer -> (L, n)."""
        return np.stack([scores.argmax(-1).cpu().numpy() for scores in self.scores(features)])


def _principal_directions(
    frames: torch.Tensor, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mean (D,) and 1 / standard deviation (D,) of frames (n, D), and the principal directions (D, D) of the
    standardized frames as columns, each divided by the standard deviation along it.
    """
    std, mean = torch.std_mean(frames.float(), dim=0, correction=0)
    scale = torch.where(std > 0, 1 / std, 0.0)
    correlations = torch.zeros(len(mean), len(mean), dtype=torch.float64)
    for block in frames.split(_ROWS_PER_BLOCK):
        standardized = (block.float() - mean) * scale
        correlations += (standardized.T @ standardized).cpu() / len(frames)
    variances, axes = torch.linalg.eigh(correlations)
    axes = axes * variances.clamp_min(LEAST_VARIANCE).rsqrt()
    return mean.to(device), scale.to(device), axes.float().to(device)


def _check(
    features: Sequence[torch.Tensor], targets: torch.Tensor, num_targets: int, num_epochs: int, min_examples: int
) -> None:
    lengths = {len(frames) for frames in features}
    if lengths != {len(targets)}:
        raise ValueError(
            f"Every layer needs a frame for each of the {len(targets)} targets, got {len(features)} layers with "
            f"{sorted(lengths)} frames."
        )
    if num_epochs < 1:
        raise ValueError(f"num_epochs must be at least 1, got {num_epochs}.")
    seen = len(targets.unique())
    if seen < 2 or len(targets) < min_examples * seen:
        raise ValueError(
            f"A linear probe needs examples of at least two targets, and {min_examples} of each on average; got "
            f"{len(targets)} examples of {seen} targets to train on. Give more audio."
        )
    if int(targets.min()) < 0 or int(targets.max()) >= num_targets:
        raise ValueError(f"Targets must lie in [0, {num_targets}), got {int(targets.min())} to {int(targets.max())}.")
