"""Weighted sums of what a run reports: kept on the device, added over processes in one small reduction per update."""

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator

from hf_speech_ssl.verdict import LabelUse

Sums = dict[str, torch.Tensor]  # names to 0-dim tensors

# Of statistics over tens of thousands of frames; those of a batch bound every one of them.
COLLAPSED_SHARE, COLLAPSED_PERPLEXITY = 0.3, 8.0
BETTER = 1.05  # than the commonest label's share
# Share of the variance of the loudness. On recorded speech labels of a random projection explain 88 %, those of
# whitened directions that teach 50 to 73 %.
MOSTLY_LOUDNESS = 0.8
WHITEN = "Set projection_kind=whitened"

UNITS = "units"  # sum of the weights
MEAN = "mean/"  # prefix of sums of value times weight


def weighted_scalars(output: Mapping[str, Any], units: torch.Tensor, unit_name: str) -> Sums:
    """Every 0-dim tensor of a model's output times the batch's units, and the units themselves.

    A batch of no units adds zeros, even where its values are undefined.
    """
    weight = units.detach().to(_widest(units.device))
    sums = {UNITS: weight}
    for name, value in output.items():
        if isinstance(value, torch.Tensor) and value.ndim == 0 and name != unit_name:
            sums[MEAN + name] = torch.where(weight > 0, value.detach().to(weight.dtype) * weight, 0.0)
    return sums


def constants(device: torch.device, **values: float) -> Sums:
    """Plain numbers as sums, to travel in the same reduction."""
    return {name: torch.tensor(value, dtype=_widest(device), device=device) for name, value in values.items()}


def add(parts: Iterable[Sums]) -> Sums:
    """Sums of several batches, name by name."""
    total: Sums = {}
    for part in parts:
        for name, value in part.items():
            total[name] = total[name] + value if name in total else value
    return total


def reduce(accelerator: Accelerator, sums: Sums) -> Sums:
    """Sums of all processes, on all processes."""
    if accelerator.num_processes == 1:
        return sums
    names = sorted(sums)
    total = accelerator.reduce(torch.stack([sums[name] for name in names]), reduction="sum")
    return dict(zip(names, total.unbind(), strict=True))


def means(sums: Sums) -> dict[str, float]:
    """Means over units by their plain names; NaN where there was no unit."""
    units = float(sums.get(UNITS, 0.0))
    return {
        name.removeprefix(MEAN): float(value) / units if units else math.nan
        for name, value in sums.items()
        if name.startswith(MEAN)
    }


def label_warnings(uses: Sequence[LabelUse], predicts: bool = True) -> dict[str, str]:
    """What is wrong with pretraining labels that were counted over many updates, and what to do, by a short name.

    Args:
        predicts: whether the model has trained for long enough to predict them.
    """
    found = {}
    for use in uses:
        name = f"{use.kind} labels".strip()
        if use.commonest_share > COLLAPSED_SHARE or use.perplexity < COLLAPSED_PERPLEXITY:
            remedy = "Set enhanced_label_kind=clusters or enhanced_loss_weight=0" if use.kind == "enhanced" else WHITEN
            found[f"{name} collapse"] = (
                f"The {name} collapse: {100 * use.commonest_share:.1f} % of the frames have the same one, and their "
                f"perplexity is {use.perplexity:.1f}. {remedy} in --config_overrides."
            )
        if predicts and use.accuracy is not None and use.accuracy < BETTER * use.commonest_share:
            found[f"{name} unpredicted"] = (
                f"The prediction of masked frames is no better than a constant guess: {100 * use.accuracy:.1f} % of "
                f"the {name} are right, and the commonest one makes up {100 * use.commonest_share:.1f} %. Train "
                f"longer or with another --learning_rate, and check the audio."
            )
        if use.loudness is not None and use.loudness > MOSTLY_LOUDNESS:
            found[f"{name} loudness"] = (
                f"The {name} mostly say how loud a frame is: they explain {100 * use.loudness:.0f} % of the variance "
                f"of the loudness. {WHITEN} in --config_overrides."
            )
    return found


class DeferredScalars:
    """Device numbers that the host reads one update later, so that it never waits for the device."""

    def __init__(self, *values: torch.Tensor):
        numbers = torch.stack([value.float() for value in values])
        self._numbers = numbers.to("cpu", non_blocking=numbers.is_cuda)
        self._copied = torch.cuda.Event() if numbers.is_cuda else None
        if self._copied is not None:
            self._copied.record()

    def read(self) -> list[float]:
        """The numbers, once their copy has arrived."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._numbers.tolist()


class LogInterval:
    """The updates between two log lines."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Begin anew."""
        self.sums: Sums = {}
        self.updates = 0
        self.data_seconds = 0.0

    def add(self, sums: Sums) -> None:
        """One more update."""
        self.sums = add([self.sums, sums])
        self.updates += 1

    @contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Time spent in here counts as waiting."""
        start = time.perf_counter()
        yield
        self.data_seconds += time.perf_counter() - start

    def report(self, unit: str, seconds: float) -> dict[str, float]:
        """Means and rates of the interval, which took `seconds` of wall clock.

        `grad_norm` and the units are means over the updates that were not skipped.
        """
        totals = {name: float(value) for name, value in self.sums.items()}
        learned = self.updates - totals["skipped"]
        return {
            **means(self.sums),
            unit: totals[UNITS] / learned if learned else 0.0,
            "grad_norm": totals["grad_norm"] / learned if learned else math.nan,
            "audio_seconds_per_second": totals["audio_seconds"] / seconds,
            "updates_per_second": self.updates / seconds,
            "padding_share": 1.0 - totals["audio_seconds"] / max(totals["padded_seconds"], 1e-9),
            "data_wait_share": self.data_seconds / seconds,
        }


def _widest(device: torch.device) -> torch.dtype:
    """float64 for exact counts of samples, where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64
