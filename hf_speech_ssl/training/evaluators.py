"""Evaluation during a run: the mean loss of a split, over all processes."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from accelerate import Accelerator
from torch import nn

from hf_speech_ssl.data.batch import Batch, DataPosition
from hf_speech_ssl.run_folder import MetricName

from .diagnostics import Sums, add, means, reduce, weighted_scalars
from .processes import Interruption
from .updates import Objective


class EvaluationBatches(Protocol):
    """One pass over a split, as many batches on every process; see `hf_speech_ssl.data`."""

    def epoch(self, epoch: int, start: DataPosition | None = None) -> Iterable[Batch]: ...


class Evaluator(Protocol):
    """Metrics of a model by name; `metric` names the one that marks the best checkpoint: see `badness`.

    `examples` of the last evaluation are lines for the terminal.
    """

    @property
    def metric(self) -> str: ...

    @property
    def examples(self) -> Sequence[str]: ...

    def try_one_batch(self, model: nn.Module) -> None: ...

    def __call__(self, model: nn.Module, interruption: Interruption) -> dict[str, float]: ...


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


def one_pass(
    splits: Mapping[str, EvaluationBatches], split: str, accelerator: Accelerator, interruption: Interruption
) -> Iterator[Batch]:
    """This process's batches of a split. Processes wait for each other, since streams give them unequal counts.

    Raises:
        Interrupted: a signal reached one of the processes.
        ValueError: there is nothing in the split for this process.
    """
    stream, count = iter(splits[split].epoch(0)), 0
    while True:
        batch = next(stream, None)
        if not interruption.meet(accelerator, busy=batch is not None):
            break
        if batch is not None:
            count += 1
            yield batch
    if not count:
        raise no_utterance(split, accelerator)


def first_batch(splits: Mapping[str, EvaluationBatches], split: str, accelerator: Accelerator) -> Batch:
    """This process's first batch of a split: whatever is wrong with it shows before training rather than after.

    Raises:
        ValueError: there is nothing in the split for this process.
    """
    with closing(iter(splits[split].epoch(0))) as stream:  # type: ignore[type-var]
        batch = next(stream, None)
    if batch is None:
        raise no_utterance(split, accelerator)
    return batch


def no_utterance(split: str, accelerator: Accelerator) -> ValueError:
    """The error of a split that has nothing for this process."""
    return ValueError(
        f"Process {accelerator.process_index} of {accelerator.num_processes} found no utterance in the split "
        f"{split!r}. Evaluate on a larger one, or with fewer processes."
    )


@dataclass(frozen=True)
class LossEvaluator:
    """Means of the loss and the diagnostics over the units of each of some splits.

    Args:
        splits: batches by name; the first one's loss marks the best checkpoint.
    """

    accelerator: Accelerator
    objective: Objective
    splits: Mapping[str, EvaluationBatches]
    seed: int = 0
    examples: Sequence[str] = ()

    @property
    def metric(self) -> str:
        """Name of the loss that marks the best checkpoint."""
        return str(MetricName.among(self.splits, next(iter(self.splits)), "loss"))

    def try_one_batch(self, model: nn.Module) -> None:
        """One batch of each split, before the first update."""
        for split in self.splits:
            with evaluating(model, self.accelerator.device, self.seed):
                self.objective(model, first_batch(self.splits, split, self.accelerator), self.accelerator.device)

    def __call__(self, model: nn.Module, interruption: Interruption) -> dict[str, float]:
        metrics: dict[str, float] = {}
        for split in self.splits:
            with evaluating(model, self.accelerator.device, self.seed + self.accelerator.process_index):
                values = self.evaluate_split(model, split, interruption)
            metrics |= {str(MetricName.among(self.splits, split, name)): value for name, value in values.items()}
        return metrics

    def evaluate_split(self, model: nn.Module, split: str, interruption: Interruption) -> dict[str, float]:
        """Means over one split."""
        sums = Sums()
        for batch in one_pass(self.splits, split, self.accelerator, interruption):
            output, units = self.objective(model, batch, self.accelerator.device)
            sums = add([sums, weighted_scalars(output, units, self.objective.unit)])
        return means(reduce(self.accelerator, sums))
