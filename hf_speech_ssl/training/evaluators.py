"""Evaluation during a run: the mean loss of a split, over all processes."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from accelerate import Accelerator
from torch import nn

from hf_speech_ssl.data.batch import Batch, Position

from .diagnostics import Sums, add, means, reduce, weighted_scalars
from .interruption import Interruption
from .objectives import Objective


class EvaluationBatches(Protocol):
    """One pass over a split, as many batches on every process; see `hf_speech_ssl.data`."""

    def epoch(self, epoch: int, start: Position | None = None) -> Iterable[Batch]: ...


@contextmanager
def evaluating(model: nn.Module, device: torch.device, seed: int) -> Iterator[None]:
    """No gradients, no dropout, the same masks at every evaluation, and the training's random numbers untouched."""
    devices = [device] if device.type == "cuda" else []
    with torch.no_grad(), torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        model.eval()
        try:
            yield
        finally:
            model.train()


@dataclass(frozen=True)
class LossEvaluator:
    """Means of the loss and the diagnostics over the units of a split, as `eval_loss` and so on."""

    accelerator: Accelerator
    objective: Objective
    batches: EvaluationBatches
    seed: int = 0
    metric: str = "eval_loss"

    def __call__(self, model: nn.Module, interruption: Interruption) -> dict[str, float]:
        device = self.accelerator.device
        sums = Sums()
        with evaluating(model, device, self.seed + self.accelerator.process_index):
            for batch in self.batches.epoch(0):
                interruption.raise_if_agreed(self.accelerator)
                output, units = self.objective(model, batch, device)
                sums = add([sums, weighted_scalars(output, units, self.objective.unit)])
        return {f"eval_{name}": value for name, value in means(reduce(self.accelerator, sums)).items()}
