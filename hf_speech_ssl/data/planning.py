"""Which utterances make up which batch: pure functions of durations, a seed and the number of processes."""

from collections.abc import Sequence

import numpy as np


def plan_steps(
    seconds: Sequence[float],
    *,
    batch_seconds: float,
    num_processes: int = 1,
    generator: np.random.Generator | None = None,
) -> list[list[list[int]]]:
    """Plan the steps of one window of utterances: in each, one batch of similar lengths for every process.

    Utterances are sorted by length and cut into batches, so that little padding is needed; each index appears exactly
    once. Every process computes the same plan and takes its own batches from it.

    Args:
        seconds: the length of each utterance.
        batch_seconds: bound on a batch's padded length, its longest utterance times its count. A longer utterance
            makes a batch of its own.
        num_processes: batches in a step; the number of batches is a multiple of it.
        generator: shuffles the steps, and the processes within each. Without one the longest come first.

    Returns:
        indices into `seconds`, as steps[step][process][row]. Where utterances are fewer than processes, some batches
        are empty.
    """
    batches = _cut(np.asarray(seconds, dtype=np.float64), batch_seconds)
    while len(batches) % num_processes:
        _split_largest(batches)
    steps = [batches[start : start + num_processes] for start in range(0, len(batches), num_processes)]
    if generator is not None:
        # Without a shuffle inside the step, one process would always get the longest utterances.
        steps = [[step[i] for i in generator.permutation(num_processes)] for step in steps]
        steps = [steps[i] for i in generator.permutation(len(steps))]
    return steps


def _cut(seconds: np.ndarray, batch_seconds: float) -> list[list[int]]:
    order = np.argsort(-seconds, kind="stable")
    batches, start = [], 0
    while start < len(order):
        longest = seconds[order[start]]  # of this batch, since lengths fall
        size = max(1, int(batch_seconds / longest + 1e-9))  # 16 s hold ten times 1.6 s, whatever the rounding says
        batches.append(order[start : start + size].tolist())
        start += size
    return batches


def _split_largest(batches: list[list[int]]) -> None:
    largest = max(range(len(batches)), key=lambda i: len(batches[i]), default=-1)
    if largest < 0 or len(batches[largest]) < 2:
        batches.append([])
        return
    batch = batches[largest]
    batches[largest : largest + 1] = [batch[: len(batch) // 2], batch[len(batch) // 2 :]]


def padding_share(steps: Sequence[Sequence[Sequence[int]]], seconds: Sequence[float]) -> float:
    """The share of the padded batches that holds no audio, in [0, 1)."""
    batches = [[seconds[i] for i in batch] for step in steps for batch in step if batch]
    padded = sum(max(batch) * len(batch) for batch in batches)
    return 1 - sum(sum(batch) for batch in batches) / padded
