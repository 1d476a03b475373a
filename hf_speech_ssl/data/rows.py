"""The rows of a data set in the order of one epoch, each with its length in seconds before anything is decoded.

Lengths come from a `duration` column or else from the header of each file, read by a pool of threads a little ahead of
what is asked for: nothing has to go through the whole corpus before training starts.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any, Protocol

import fsspec
import numpy as np
from datasets import Dataset, IterableDataset
from datasets.distributed import split_dataset_by_node

from .audio import AudioError, audio_duration, audio_name, is_remote
from .segments import NotSeconds, StatedTimes, TimeColumns

_READ_AHEAD = 32  # rows whose headers are read at once
_DURATION_TOLERANCE = 0.5  # seconds by which a duration column may round
_LEAST_PIECE = 1.0  # seconds of the last piece of a recording that is cut


@dataclass(frozen=True)
class RowCursor:
    """A position between two rows of an epoch: the rows before it, and for streams what `load_state_dict` needs."""

    rows: int = 0
    stream: dict[str, Any] | None = None


@dataclass(frozen=True)
class Row:
    """One row whose audio has not been decoded, or a part of one.

    Attributes:
        label: where it stands in the data set, for messages.
        length: its seconds, or why its header cannot be used.
        read: gives the columns of the row.
        after: the position right after it.
        index: its number in the data set, or in the epoch of a stream.
        segment: begin and end in seconds within its audio; None for all of it.
    """

    label: str
    length: float | AudioError
    read: Callable[[], dict[str, Any]]
    after: RowCursor
    index: int
    segment: tuple[float, float] | None = None

    def name(self, audio: Any) -> str:
        """What to call it in a message."""
        name = audio_name(audio, self.label)
        return name if self.segment is None else f"{name} ({self.segment[0]:.2f} to {self.segment[1]:.2f} s)"

    def cut(self, most_seconds: float, least_seconds: float) -> list["Row"]:
        """The row in pieces of `most_seconds`; the rest makes the last piece, shared out if it would be too short."""
        assert not isinstance(self.length, AudioError)
        begin, end = self.segment or (0.0, self.length)
        cuts = np.arange(begin, end, most_seconds).tolist()
        if end - cuts[-1] < max(least_seconds, _LEAST_PIECE) and len(cuts) > 1:
            cuts[-1] = (cuts[-2] + end) / 2
        return [
            replace(self, length=until - since, segment=(since, until))
            for since, until in zip(cuts, [*cuts[1:], end], strict=True)
        ]


class RowSource(Protocol):
    """What batches are made from: see `IndexedRows` and `StreamedRows`."""

    shared: bool  # whether every process sees every row, and takes its own batches from one plan

    def rows(self, epoch: int, start: RowCursor, pool: Executor) -> Iterator[Row]:
        """The rows of an epoch after `start`, always in the same order."""


@dataclass(frozen=True)
class _Measured:
    """The length of a row, or why it cannot be used, and its segment."""

    length: float | AudioError
    segment: tuple[float, float] | None = None


class _Lengths:
    """Lengths by the columns that state them, else by the header of the audio."""

    def __init__(self, audio_column: str, times: TimeColumns) -> None:
        self.audio_column = audio_column
        self.times = times
        self._compared = False
        self._headers: dict[str, float] = {}  # of recordings with segments, of which many share one

    def __call__(self, stated: StatedTimes, read: Callable[[], dict[str, Any]], label: str) -> _Measured:
        if stated.begin is None and stated.duration is not None:
            return _Measured(stated.duration)
        audio_seconds = self._from_header(read, label)
        if isinstance(audio_seconds, AudioError) or stated.begin is None:
            return _Measured(audio_seconds)
        try:
            segment = stated.segment(audio_seconds)
        except NotSeconds as error:
            name = audio_name(read()[self.audio_column], label)
            return _Measured(AudioError(name, "bad segment", f"columns {self.times.names} hold {error}."))
        return _Measured(audio_seconds if segment is None else segment[1] - segment[0], segment)

    def _from_header(self, read: Callable[[], dict[str, Any]], label: str) -> float | AudioError:
        audio = read()[self.audio_column]
        path = audio.get("path") if isinstance(audio, dict) and audio.get("bytes") is None else None
        if path in self._headers:
            return self._headers[path]
        try:
            seconds = audio_duration(audio, name=audio_name(audio, label))
        except AudioError as error:
            return error
        if self.times.begin is not None and isinstance(path, str):
            self._headers[path] = seconds
        return seconds

    def compare_first(self, rows: Iterable[tuple[StatedTimes, Callable[[], dict[str, Any]], str]]) -> None:
        """Compare the first of these rows that has both, stated times and a header, once for the whole data set.

        A column in milliseconds would have every file refused as too long, so it is not taken on trust. Rows come in
        their order, not from the threads that read them: every run and every process compares the same one.

        Raises:
            ValueError: the two differ.
        """
        for stated, read, label in rows:
            if self._compared:
                return
            if stated.begin is None and stated.duration is None:
                continue
            by_header = self._from_header(read, label)
            if isinstance(by_header, AudioError):
                continue
            if stated.begin is not None:
                self._check_segment(stated, by_header, label)
            elif stated.duration is not None and abs(stated.duration - by_header) > _DURATION_TOLERANCE:
                raise ValueError(
                    f"Column {self.times.duration!r} must hold seconds, but it holds {stated.duration:g} in {label}, "
                    f"where the audio's header says {by_header:.2f} s. Correct, rename or remove the column."
                )
            self._compared = True

    def _check_segment(self, stated: StatedTimes, by_header: float, label: str) -> None:
        try:
            stated.segment(by_header)
        except NotSeconds as error:
            raise ValueError(
                f"Columns {self.times.names} must hold a segment of the audio in seconds, but they hold {error} in "
                f"{label}. Correct, rename or remove the columns."
            ) from error


class IndexedRows:
    """Rows of a map-style data set, shuffled by seed and epoch; lengths from headers are kept for later epochs.

    Every process reads every header, so that all come to the same plan without talking to each other; a duration
    column spares that.
    """

    shared = True

    def __init__(self, dataset: Dataset, audio_column: str, *, seed: int, shuffle: bool) -> None:
        self.dataset = dataset
        self.seed = seed
        self.shuffle = shuffle
        self.times = TimeColumns.find(dataset.column_names)
        self._stated_times = dataset.select_columns(self.times.names) if self.times.names else None
        self._lengths = _Lengths(audio_column, self.times)
        self._seconds = np.full(len(dataset), np.nan)
        self._segments: dict[int, tuple[float, float]] = {}
        self._errors: dict[int, AudioError] = {}

    def rows(self, epoch: int, start: RowCursor, pool: Executor) -> Iterator[Row]:
        """The rows of an epoch after `start`."""
        size = len(self.dataset)
        order = np.random.default_rng([self.seed, epoch]).permutation(size) if self.shuffle else np.arange(size)
        for first in range(start.rows, size, _READ_AHEAD):
            indices = order[first : first + _READ_AHEAD].tolist()
            self._lengths.compare_first((self._stated(index), *self._reader(index)) for index in indices)
            lengths = pool.map(self._length, indices)
            for done, (index, length) in enumerate(zip(indices, lengths, strict=True), start=first + 1):
                read, label = self._reader(index)
                yield Row(label, length, read, RowCursor(done), index, self._segments.get(index))

    def _stated(self, index: int) -> StatedTimes:
        row = {} if self._stated_times is None else self._stated_times[index]
        return self.times.read(row, f"example {index}")

    def _reader(self, index: int) -> tuple[Callable[[], dict[str, Any]], str]:
        return partial(self.dataset.__getitem__, index), f"example {index}"

    def _length(self, index: int) -> float | AudioError:
        if np.isnan(self._seconds[index]) and index not in self._errors:
            measured = self._lengths(self._stated(index), *self._reader(index))
            if isinstance(measured.length, AudioError):
                self._errors[index] = measured.length
            else:
                self._seconds[index] = measured.length
                if measured.segment is not None:
                    self._segments[index] = measured.segment
        return self._errors.get(index) or float(self._seconds[index])


class StreamedRows:
    """This process's rows of a streaming data set; epochs differ in the order of its shards.

    The processes share the stream by shards where their number divides, else row by row, so that an epoch is not
    equally long on all of them.
    """

    shared = False

    def __init__(
        self,
        dataset: IterableDataset,
        audio_column: str,
        *,
        seed: int,
        shuffle: bool,
        process_index: int,
        num_processes: int,
    ) -> None:
        self.dataset = dataset
        self.audio_column = audio_column
        self.seed = seed
        self.shuffle = shuffle
        self.process_index = process_index
        self.num_processes = num_processes
        self.times = TimeColumns.find(dataset.column_names or [])
        self._lengths = _Lengths(audio_column, self.times)

    def rows(self, epoch: int, start: RowCursor, pool: Executor) -> Iterator[Row]:
        """The rows of an epoch after `start`."""
        stream = split_dataset_by_node(self.dataset, self.process_index, self.num_processes)
        # datasets shuffles the shards by the epoch's number alone, from 1 on: the seed enters through that number.
        order = np.random.SeedSequence([self.seed, epoch]).generate_state(1)[0]
        stream.set_epoch(1 + int(order) if self.shuffle else 0)
        if start.stream is not None:
            stream.load_state_dict(start.stream)

        def read() -> Iterator[tuple[str, dict[str, Any], RowCursor]]:
            for done, columns in enumerate(stream, start=start.rows + 1):
                yield f"example {done} of epoch {epoch}", columns, RowCursor(done, stream.state_dict())

        source = read()
        while block := list(islice(source, _READ_AHEAD)):
            self._lengths.compare_first(
                (self.times.read(columns, label), partial(dict, columns), label) for label, columns, _ in block
            )
            for (label, _, after), (columns, measured) in zip(block, pool.map(self._measure, block), strict=True):
                yield Row(label, measured.length, partial(dict, columns), after, after.rows - 1, measured.segment)

    def _measure(self, item: tuple[str, dict[str, Any], RowCursor]) -> tuple[dict[str, Any], _Measured]:
        label, columns, _ = item
        audio, stated = columns[self.audio_column], self.times.read(columns, label)
        needs_header = stated.duration is None or stated.begin is not None
        if needs_header and isinstance(audio, dict) and audio.get("bytes") is None and is_remote(audio.get("path")):
            try:  # once, whole: header and samples would be two requests
                with fsspec.open(audio["path"], "rb") as file:
                    columns = {**columns, self.audio_column: {**audio, "bytes": file.read()}}
            except OSError as error:
                return columns, _Measured(AudioError(audio["path"], "missing", f"it cannot be fetched ({error})."))
        return columns, self._lengths(stated, partial(dict, columns), label)
