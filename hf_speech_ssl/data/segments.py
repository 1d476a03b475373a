"""Seconds in the columns of a data set: durations, and where an utterance lies in a longer recording."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

DURATION_COLUMN = "duration"  # seconds; the name that Hub data sets use
# (begin, end or duration), as NeMo, Lhotse and others call them.
_BEGINS = ("offset", "start", "start_time", "begin", "begin_time", "segment_start", "start_seconds")
_ENDS = ("end", "end_time", "segment_end", "end_seconds")
_CUT_TOLERANCE = 0.05  # seconds by which audio that has been cut already may differ from its segment
_END_TOLERANCE = 0.5  # seconds by which a segment may end behind its recording


class NotSeconds(ValueError):
    """A value that is no number of seconds."""


@dataclass(frozen=True)
class TimeColumns:
    """The columns of a data set that hold seconds.

    Attributes:
        duration: of the audio, or of the segment where there are such.
        begin, end: of a segment within the audio.
    """

    duration: str | None = None
    begin: str | None = None
    end: str | None = None

    @classmethod
    def find(cls, columns: Sequence[str]) -> TimeColumns:
        """Find the columns by their names.

        Raises:
            ValueError: segments begin somewhere and end nowhere.
        """
        duration = DURATION_COLUMN if DURATION_COLUMN in columns else None
        begin = next((name for name in _BEGINS if name in columns), None)
        end = next((name for name in _ENDS if name in columns), None)
        if begin is None:
            return cls(duration)
        if end is None and duration is None and begin != "offset":
            raise ValueError(
                f"Column {begin!r} says where a segment begins in its recording, and no column says where it ends: "
                f"add 'end' or 'duration' in seconds, or remove {begin!r}. The columns are {list(columns)}."
            )
        return cls(duration, begin, end)

    @property
    def names(self) -> list[str]:
        """Those there are."""
        return [name for name in (self.duration, self.begin, self.end) if name is not None]

    def read(self, row: Mapping[str, Any], label: str) -> StatedTimes:
        """Read the times of a row.

        Raises:
            ValueError: a value is no number of seconds; names the column and the row.
        """
        values = {}
        for kind, name in (("duration", self.duration), ("begin", self.begin), ("end", self.end)):
            try:
                values[kind] = None if name is None else to_seconds(row.get(name))
            except NotSeconds as error:
                raise ValueError(
                    f"Column {name!r} must hold seconds, but it holds {error} in {label}. Correct, rename or remove "
                    f"the column."
                ) from error
        return StatedTimes(**values)


@dataclass(frozen=True)
class StatedTimes:
    """Seconds that a row states; None where it does not."""

    duration: float | None = None
    begin: float | None = None
    end: float | None = None

    def segment(self, audio_seconds: float) -> tuple[float, float] | None:
        """The part of a recording that is meant; None for all of it.

        Audio that is as long as the segment has been cut already: many data sets keep the times in the original.

        Raises:
            NotSeconds: the segment does not lie in the recording.
        """
        if self.begin is None:
            return None
        end = self.end
        if end is None:
            end = audio_seconds if self.duration is None else self.begin + self.duration
        if abs(audio_seconds - (end - self.begin)) <= _CUT_TOLERANCE:
            return None
        if not 0 <= self.begin < end <= audio_seconds + _END_TOLERANCE:
            raise NotSeconds(f"{self.begin:g} to {end:g} s of {audio_seconds:.2f} s of audio")
        return self.begin, min(end, audio_seconds)


def to_seconds(value: Any) -> float | None:
    """Seconds from a number, "7.5", "1:02:03.5", a time span; None from nothing.

    Raises:
        NotSeconds: the value is something else.
    """
    if value is None or value == "":
        return None
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, str):
        try:
            parts = [float(part) for part in value.strip().split(":")]
        except ValueError:
            raise NotSeconds(repr(value)) from None
        if len(parts) > 3:
            raise NotSeconds(repr(value))
        seconds = 0.0
        for part in parts:
            seconds = 60 * seconds + part
        return seconds
    if isinstance(value, (bytes, bool)) or not hasattr(value, "__float__"):
        raise NotSeconds(repr(value))
    seconds = float(value)
    return None if math.isnan(seconds) else seconds
