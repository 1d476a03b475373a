"""Computes confidence intervals of ratios of sums, such as error rates, by resampling utterances or speakers.

Shape letters: U utterances, K ratios, G units that are drawn (utterances or speakers).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

CONFIDENCE = 0.95
_COUNTS_AT_ONCE = 4_000_000  # draws held in memory


@dataclass(frozen=True)
class Estimate:
    """A value with its confidence interval; the bounds are `None` if there is no interval."""

    value: float
    low: float | None
    high: float | None


def bootstrap_ratios(
    numerators: ArrayLike,
    denominators: ArrayLike,
    groups: Sequence[object] | None = None,
    num_resamples: int = 1000,
    seed: int = 0,
    confidence: float = CONFIDENCE,
) -> list[Estimate]:
    """Ratios of sums over utterances, with percentile bootstrap intervals (Bisani and Ney, ICASSP 2004).

    All ratios see the same resamples: a numerator that is a difference of errors gives the interval of a paired
    difference. Utterances of one group are drawn together, since they err together.

    Args:
        numerators: (U, K), such as errors.
        denominators: (U, K), such as words of the references.
        groups: the speaker of each utterance; utterances are drawn one by one if absent.
        num_resamples: draws; 0 gives no intervals.
        seed: the same seed gives the same intervals.
        confidence: share of the resamples inside the interval.

    Returns:
        K estimates. Resamples whose denominator is 0 do not count; fewer than two groups give no interval.

    Raises:
        ValueError: shapes differ, a denominator's sum is 0, or a number is out of its range.
    """
    top, bottom = np.asarray(numerators, dtype=np.float64), np.asarray(denominators, dtype=np.float64)
    _check(top, bottom, groups, num_resamples, confidence)
    values = top.sum(0) / bottom.sum(0)
    sums = _sums_of_groups(np.concatenate([top, bottom], axis=1), groups)  # (G, 2 K)
    if num_resamples == 0 or len(sums) < 2:
        return [Estimate(float(value), None, None) for value in values]
    drawn = _resampled_sums(sums, num_resamples, seed)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = drawn[:, : top.shape[1]] / drawn[:, top.shape[1] :]
    ratios[~np.isfinite(ratios)] = np.nan
    low, high = np.nanquantile(ratios, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    return [
        Estimate(float(value), *((float(a), float(b)) if np.isfinite(a) else (None, None)))
        for value, a, b in zip(values, low, high, strict=True)
    ]


def _check(
    top: NDArray[np.float64],
    bottom: NDArray[np.float64],
    groups: Sequence[object] | None,
    num_resamples: int,
    confidence: float,
) -> None:
    if top.ndim != 2 or top.shape != bottom.shape or (groups is not None and len(groups) != len(top)):
        raise ValueError(
            f"numerators and denominators must be (utterances, ratios) with a group for each utterance, got "
            f"{top.shape}, {bottom.shape} and {'no' if groups is None else len(groups)} groups."
        )
    if not bottom.sum(0).all():
        raise ValueError(f"A ratio needs a denominator, but the sums are {bottom.sum(0).tolist()}.")
    if num_resamples < 0 or not 0 < confidence < 1:
        raise ValueError(
            f"num_resamples must be 0 or more and confidence between 0 and 1, got {num_resamples} and {confidence}."
        )


def _sums_of_groups(values: NDArray[np.float64], groups: Sequence[object] | None) -> NDArray[np.float64]:
    if groups is None:
        return values
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    sums = np.zeros((len(numbers), values.shape[1]))
    np.add.at(sums, [numbers[group] for group in groups], values)
    return sums


def _resampled_sums(sums: NDArray[np.float64], num_resamples: int, seed: int) -> NDArray[np.float64]:
    """(num_resamples, 2 K): the sum over as many groups as there are, drawn with replacement."""
    generator, size = np.random.default_rng(seed), len(sums)
    rows = max(1, _COUNTS_AT_ONCE // size)
    blocks = []
    for start in range(0, num_resamples, rows):
        count = min(rows, num_resamples - start)
        picks = generator.integers(size, size=(count, size)) + size * np.arange(count)[:, None]
        blocks.append(np.bincount(picks.ravel(), minlength=count * size).reshape(count, size) @ sums)
    return np.concatenate(blocks)
