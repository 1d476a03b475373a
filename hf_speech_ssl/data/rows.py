"""The rows of a data set in the order of one epoch, each with its length in seconds before anything is decoded.

Lengths come from a `duration` column or else from the header of each file, read by a pool of threads a little ahead of
what is asked for: nothing has to go through the whole corpus before training starts.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, Protocol, TypeGuard

import fsspec
import numpy as np
from datasets import Dataset, IterableDataset
from datasets.distributed import split_dataset_by_node

from .audio import AudioError, audio_duration, audio_name, is_remote

DURATION_COLUMN = "duration"  # seconds; the name that Hub data sets use
_READ_AHEAD = 32  # rows whose headers are read at once
_DURATION_TOLERANCE = 0.5  # seconds by which a duration column may round


@dataclass(frozen=True)
class RowCursor:
    """A place between two rows of an epoch: the rows before it, and for streams what `load_state_dict` needs."""

    rows: int = 0
    stream: dict[str, Any] | None = None


@dataclass(frozen=True)
class Row:
    """One row whose audio has not been decoded.

    Attributes:
        place: where it stands in the data set, for messages.
        length: its seconds, or why its header cannot be used.
        read: gives the columns of the row.
        after: the place right after it.
    """

    place: str
    length: float | AudioError
    read: Callable[[], dict[str, Any]]
    after: RowCursor


class RowSource(Protocol):
    """What batches are made from: see `IndexedRows` and `StreamedRows`."""

    shared: bool  # whether every process sees every row, and takes its own batches from one plan

    def rows(self, epoch: int, start: RowCursor, pool: Executor) -> Iterator[Row]:
        """The rows of an epoch after `start`, always in the same order."""


class _Lengths:
    """Lengths by the duration column where a row has one, else by the header."""

    def __init__(self, audio_column: str) -> None:
        self.audio_column = audio_column
        self._compared = False

    def __call__(self, stated: float | None, read: Callable[[], dict[str, Any]], place: str) -> float | AudioError:
        return float(stated) if _is_stated(stated) else self._from_header(read, place)

    def _from_header(self, read: Callable[[], dict[str, Any]], place: str) -> float | AudioError:
        audio = read()[self.audio_column]
        try:
            return audio_duration(audio, name=audio_name(audio, place))
        except AudioError as error:
            return error

    def compare_first(self, rows: Iterable[tuple[float | None, Callable[[], dict[str, Any]], str]]) -> None:
        """Compare the first of these rows that has both, a stated length and a header, once for the whole data set.

        A column in milliseconds would have every file refused as too long, so it is not taken on trust. Rows come in
        their order, not from the threads that read them: every run and every process compares the same one.

        Raises:
            ValueError: the two differ.
        """
        for stated, read, place in rows:
            if self._compared:
                return
            if not _is_stated(stated) or isinstance(by_header := self._from_header(read, place), AudioError):
                continue
            if abs(stated - by_header) > _DURATION_TOLERANCE:
                raise ValueError(
                    f"Column {DURATION_COLUMN!r} must hold seconds, but it holds {stated} in {place}, where the "
                    f"audio's header says {by_header:.2f} s. Correct, rename or remove the column."
                )
            self._compared = True


def _is_stated(seconds: float | None) -> TypeGuard[float]:
    return seconds is not None and not math.isnan(seconds)


class IndexedRows:
    """Rows of a map-style data set, shuffled by seed and epoch; what headers said is kept for later epochs.

    Every process reads every header, so that all come to the same plan without talking to each other; a duration
    column spares that.
    """

    shared = True

    def __init__(self, dataset: Dataset, audio_column: str, *, seed: int, shuffle: bool) -> None:
        self.dataset = dataset
        self.seed = seed
        self.shuffle = shuffle
        has_durations = DURATION_COLUMN in dataset.column_names
        self._durations = dataset.select_columns(DURATION_COLUMN) if has_durations else None
        self._lengths = _Lengths(audio_column)
        self._seconds = np.full(len(dataset), np.nan)
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
                read, place = self._reader(index)
                yield Row(place, length, read, RowCursor(done))

    def _stated(self, index: int) -> float | None:
        return None if self._durations is None else self._durations[index][DURATION_COLUMN]

    def _reader(self, index: int) -> tuple[Callable[[], dict[str, Any]], str]:
        return partial(self.dataset.__getitem__, index), f"example {index}"

    def _length(self, index: int) -> float | AudioError:
        if np.isnan(self._seconds[index]) and index not in self._errors:
            length = self._lengths(self._stated(index), *self._reader(index))
            if isinstance(length, AudioError):
                self._errors[index] = length
            else:
                self._seconds[index] = length
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
        self._lengths = _Lengths(audio_column)

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
                (columns.get(DURATION_COLUMN), partial(dict, columns), place) for place, columns, _ in block
            )
            for (place, _, after), (columns, length) in zip(block, pool.map(self._measure, block), strict=True):
                yield Row(place, length, partial(dict, columns), after)

    def _measure(self, item: tuple[str, dict[str, Any], RowCursor]) -> tuple[dict[str, Any], float | AudioError]:
        place, columns, _ = item
        audio, stated = columns[self.audio_column], columns.get(DURATION_COLUMN)
        if stated is None and isinstance(audio, dict) and audio.get("bytes") is None and is_remote(audio.get("path")):
            try:  # once, whole: header and samples would be two requests
                with fsspec.open(audio["path"], "rb") as file:
                    columns = {**columns, self.audio_column: {**audio, "bytes": file.read()}}
            except OSError as error:
                return columns, AudioError(audio["path"], "missing", f"it cannot be fetched ({error}).")
        return columns, self._lengths(stated, partial(dict, columns), place)
