"""Learning-rate schedules: pure functions of the update's number that give a factor of the peak learning rate.

Updates count from 1, so that the first update of a warm-up already learns. Nothing here has state: a resumed run has
the right learning rate because it has the right step.
"""

import math
from collections.abc import Callable

Schedule = Callable[[int], float]


def constant(step: int) -> float:
    """1 at every step."""
    return 1.0


def linear(step: int, start: int, end: int) -> float:
    """From 1 at `start` in a straight line to 0 at `end`."""
    return min(1.0, max(0.0, (end - step) / max(1, end - start)))


def cosine(step: int, start: int, end: int) -> float:
    """From 1 at `start` along half a cosine to 0 at `end`."""
    return 0.5 * (1.0 + math.cos(math.pi * (1.0 - linear(step, start, end))))


def inverse_sqrt(step: int, warmup: int) -> float:
    """sqrt(warmup / step), 1 where the warm-up ends (Vaswani et al., arXiv 1706.03762, section 5.3)."""
    return min(1.0, math.sqrt(max(1, warmup) / step))


def exponential(step: int, start: int, end: int, final: float) -> float:
    """From 1 at `start` down to `final` at `end`, by the same factor at every step."""
    return final ** (1.0 - linear(step, start, end))


def tri_stage(step: int, hold_until: int, end: int, num_anneals: int) -> float:
    """1 until `hold_until`, then divided by sqrt(2) as each of `num_anneals` equal periods up to `end` begins.

    BiRQ's fine-tuning (arXiv 2509.15430): 10 epochs of warm-up, 10 of hold, 10 of annealing, the learning rate divided
    by sqrt(2) at each of the latter.
    """
    if step <= hold_until:
        return 1.0
    period = math.ceil((step - hold_until) * num_anneals / max(1, end - hold_until))
    return math.sqrt(0.5) ** min(period, num_anneals)


def as_steps(steps_or_share: float, max_steps: int) -> int:
    """A number of steps; below 1 it is a share of `max_steps`, as in transformers' `warmup_steps`."""
    return round(steps_or_share * max_steps) if steps_or_share < 1 else round(steps_or_share)


def make_schedule(
    name: str,
    max_steps: int,
    warmup_steps: float = 0,
    hold_steps: float = 0,
    num_anneals: int = 10,
    final_factor: float = 0.1,
) -> Schedule:
    """The schedule `name`: a linear warm-up followed by one of the curves above.

    Args:
        name: `constant`, `linear`, `cosine`, `inverse_sqrt`, `exponential` or `tri_stage`.
        max_steps: updates of the whole run.
        warmup_steps, hold_steps: updates, or below 1 a share of `max_steps`.
        num_anneals: divisions by sqrt(2) in the last stage of `tri_stage`.
        final_factor: where `exponential` ends.

    Raises:
        ValueError: no such schedule, or a warm-up and hold that leave no step.
    """
    warmup, hold = as_steps(warmup_steps, max_steps), as_steps(hold_steps, max_steps)
    if warmup + hold > max_steps:
        raise ValueError(
            f"warmup_steps ({warmup}) and hold_steps ({hold}) together exceed the run's {max_steps} steps. Give "
            f"shares of the run (numbers below 1), or train longer."
        )
    start = warmup + hold
    curves: dict[str, Schedule] = {
        "constant": constant,
        "linear": lambda step: linear(step, start, max_steps),
        "cosine": lambda step: cosine(step, start, max_steps),
        "inverse_sqrt": lambda step: inverse_sqrt(step, warmup),
        "exponential": lambda step: exponential(step, start, max_steps, final_factor),
        "tri_stage": lambda step: tri_stage(step, start, max_steps, num_anneals),
    }
    if name not in curves:
        raise ValueError(f"There is no schedule '{name}'; the schedules are {', '.join(curves)}.")
    curve = curves[name]
    return lambda step: step / warmup if step < warmup else curve(step)
