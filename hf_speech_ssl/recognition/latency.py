"""How late a live transcript is, with the clock of a live stream and without waiting for it.

A block of audio is there when its last sample has been spoken, and is taken up when the computation for the blocks
before it is over. So a recording is measured as fast as it can be computed.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.audio import SAMPLING_RATE
from ..evaluation.latency import emission_delays, laal, yaal
from .streaming import StreamingTranscriber

BLOCK_SECONDS = 0.02  # of audio at a time, as telephony sends it


@dataclass(frozen=True)
class LiveRun:
    """What happened when a recording was transcribed live; times are seconds since its beginning.

    Attributes:
        words: of the whole text.
        heard: of each word, how much audio had come when it was shown as it stayed.
        shown: of each word, when that was, computation included.
        end: of the audio.
        final: when the whole text was there.
        steps: seconds of computation of each block with a step of the encoder.
    """

    words: list[str]
    heard: list[float]
    shown: list[float]
    end: float
    final: float
    steps: list[float]


def run_live(transcriber: StreamingTranscriber, waveform: NDArray[np.float32]) -> LiveRun:
    """Transcribe a recording, (samples,) at 16 kHz, in blocks of 20 ms; it ends with its last sample."""
    size = round(BLOCK_SECONDS * SAMPLING_RATE)
    clock, steps, end = 0.0, [], len(waveform) / SAMPLING_RATE
    heard: list[float] = []
    shown: list[float] = []
    words: list[str] = []
    for begin in range(0, len(waveform), size):
        arrived = min(begin + size, len(waveform)) / SAMPLING_RATE
        before, began = transcriber.batch.num_steps, time.perf_counter()
        text = transcriber.accept(waveform[begin : begin + size]).text
        busy = time.perf_counter() - began
        clock = max(clock, arrived) + busy
        if transcriber.batch.num_steps > before:
            steps.append(busy)
            words = _note(words, text.split(), (heard, arrived), (shown, clock))
    began = time.perf_counter()
    text = transcriber.finish()
    final = max(clock, end) + time.perf_counter() - began
    words = _note(words, text.split(), (heard, end), (shown, final))
    transcriber.events()
    return LiveRun(words, heard, shown, end, final, steps)


def _note(before: list[str], now: list[str], *clocks: tuple[list[float], float]) -> list[str]:
    """Keep the times of the words that are the same, and note the time of the others."""
    same = next((i for i, (old, new) in enumerate(zip(before, now, strict=False)) if old != new), None)
    same = min(len(before), len(now)) if same is None else same
    for times, at in clocks:
        times[same:] = [at] * (len(now) - same)
    return now


@dataclass
class LatencyMeter:
    """Measures recordings one after the other, and summarizes them.

    Args:
        transcriber: what is measured.
    """

    transcriber: StreamingTranscriber
    _delays: list[float] = field(default_factory=list)
    _computed_delays: list[float] = field(default_factory=list)
    _finals: list[float] = field(default_factory=list)
    _steps: list[float] = field(default_factory=list)
    _laggings: dict[str, list[float | None]] = field(default_factory=dict)

    def add(
        self, waveform: NDArray[np.float32], reference: Sequence[str], ends: Sequence[float] | None = None
    ) -> LiveRun:
        """Measure a recording.

        Args:
            reference: the words that are said.
            ends: the seconds at which each of them ends, where that is known. The recording is cut behind the last
                one then, so that it ends when the speech does.
        """
        if ends:
            waveform = waveform[: max(1, round(ends[-1] * SAMPLING_RATE))]
        run = run_live(self.transcriber, waveform)
        self._finals.append(run.final - run.end)
        self._steps += run.steps
        if ends:
            self._delays += emission_delays(run.words, run.heard, reference, ends)
            self._computed_delays += emission_delays(run.words, run.shown, reference, ends)
        for name, lagging in (("laal", laal), ("yaal", yaal)):
            for kind, times in ((name, run.heard), (f"{name}_computed", run.shown)):
                self._laggings.setdefault(kind, []).append(lagging(times, run.end, len(reference)))
        return run

    def figures(self) -> dict[str, Any]:
        """What has been measured, in ms.

        Returns:
            "emission_delay", from the known end of a word to when it is shown as it stays, and
            "emission_delay_computed" with the time of computation; "final_delay", from the end of the speech, where
            the client ends the stream, to the whole text; "step", the computation of a block with a step of the
            encoder: each with "median" and "p99", or `None`. "laal", "yaal", "laal_computed", "yaal_computed": means
            over the recordings that have one. "without_yaal": recordings of which no word came before their end.
        """
        figures: dict[str, Any] = {
            "emission_delay": _spread(self._delays),
            "emission_delay_computed": _spread(self._computed_delays),
            "final_delay": _spread(self._finals),
            "step": _spread(self._steps),
        }
        for name, values in self._laggings.items():
            known = [value for value in values if value is not None]
            figures[name] = 1000 * statistics.fmean(known) if known else None
        return figures | {"without_yaal": sum(value is None for value in self._laggings.get("yaal", []))}


def _spread(seconds: Sequence[float]) -> dict[str, float] | None:
    if not seconds:
        return None
    ordered = sorted(seconds)
    last = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
    return {"median": 1000 * statistics.median(ordered), "p99": 1000 * last}
