"""Batches by seconds of audio: bucketed by length, in an order that seed and epoch fix, resumable after every batch.

Threads decode ahead of training and one thread plans. Since the position travels with each batch, what has been read
ahead never matters to a checkpoint: the position of the last batch that was used is all that is saved.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, TypeVar

import numpy as np
from datasets import Dataset, IterableDataset

from .audio import MIN_SAMPLES, SAMPLING_RATE, AudioError, SkippedAudio, load_audio
from .batch import Batch, DataPosition, Utterance, collate
from .corpora import SpeechDataset, check_columns, keep_encoded
from .planning import plan_steps
from .rows import IndexedRows, Row, RowCursor, RowSource, StreamedRows
from .segments import TimeColumns
from .texts import TextColumn
from .threads import run_ahead

# A generator, so that closing it ends its threads.
BatchIterator: TypeAlias = Generator[Batch, None, None]


_T = TypeVar("_T")
_PIECE_TOLERANCE = 0.01  # seconds by which rounding to samples may lengthen a piece


@dataclass(frozen=True)
class _PlannedBatch:
    rows: list[Row]
    position: DataPosition


@dataclass(kw_only=True)
class SpeechBatches:
    """Batches of a speech data set.

    Rows are taken in windows of about `window_batches` batches per process; within a window they are sorted by length,
    cut into batches, and the batches shuffled. Windows keep sorting from tying the same utterances together in every
    epoch, and let training start before the lengths of the whole corpus are known.

    Map-style data sets are shuffled whole, and every process gets as many batches as the others. Of a stream the order
    of the shards and each window are shuffled; epochs may differ in length between processes, so train with
    `infinite_batches`. A window of a stream is held in memory as encoded audio. Do not `shuffle` a stream beforehand:
    the state of such a buffer is not saved.

    Args:
        dataset: a `datasets.Dataset` or `IterableDataset`; see `load_corpus`.
        batch_seconds: bound on the padded length of a batch; a longer utterance makes a batch of its own.
        seed: fixes the order, together with the epoch.
        shuffle: otherwise windows come in the data set's order, the longest utterances first in each.
        min_seconds, max_seconds: shorter audio is skipped, longer audio is cut or skipped.
        cut_long: cut audio longer than `max_seconds` into pieces. By default it is cut where there is no text column,
            and skipped where there is one: a piece would not fit its transcript.
        process_index, num_processes: which batches are this process's.
        window_batches: batches per process in a window.
        num_workers: threads that decode.
        prefetch: batches decoded ahead; at least `num_workers` of them, to keep each thread busy.
        audio_column, text_column: names of columns; texts are only read with a text column. Columns `offset` or
            `start` with `duration` or `end` (s) cut an utterance out of a recording, see `segments`.
        columns: other columns that utterances get.
        on_bad_audio: "skip" warns once per file and counts it in `skipped`; "raise" stops with the AudioError.

    Attributes:
        position: where reading goes on after the last batch that was handed out.
        skipped: the files left out so far by this process. Headers that all processes read are counted by the first.
    """

    dataset: SpeechDataset = field(kw_only=False)
    batch_seconds: float
    seed: int = 0
    shuffle: bool = True
    min_seconds: float = MIN_SAMPLES / SAMPLING_RATE
    max_seconds: float = 40.0
    cut_long: bool | None = None
    process_index: int = 0
    num_processes: int = 1
    window_batches: int = 32
    num_workers: int = 2
    prefetch: int = 4
    audio_column: str = "audio"
    text_column: str | None = None
    columns: Sequence[str] = ()
    on_bad_audio: Literal["skip", "raise"] = "skip"
    position: DataPosition = field(default=DataPosition(epoch=0), init=False)
    skipped: SkippedAudio = field(default_factory=SkippedAudio, init=False)

    def __post_init__(self) -> None:
        if not isinstance(self.dataset, (Dataset, IterableDataset)):
            raise TypeError(
                f"A datasets.Dataset or IterableDataset is needed, got {type(self.dataset).__name__}; see load_corpus."
            )
        limits_are_right = self.batch_seconds > 0 and 0 <= self.min_seconds < self.max_seconds
        if not limits_are_right or self.seed < 0 or self.window_batches < 1:
            raise ValueError(
                f"batch_seconds and window_batches must be positive, seed not negative, min_seconds below "
                f"max_seconds; got {self.batch_seconds=}, {self.window_batches=}, {self.seed=}, {self.min_seconds=}, "
                f"{self.max_seconds=}.".replace("self.", "")
            )
        if not 0 <= self.process_index < self.num_processes:
            raise ValueError(f"process_index must lie in [0, {self.num_processes}), got {self.process_index}.")
        if self.on_bad_audio not in ("skip", "raise"):
            raise ValueError(f"on_bad_audio must be 'skip' or 'raise', got {self.on_bad_audio!r}.")
        if self.cut_long is None:
            self.cut_long = self.text_column is None
        self.num_workers = max(1, self.num_workers)
        self.prefetch = max(1, self.prefetch, self.num_workers)
        self._texts = None if self.text_column is None else self._find_texts(self.text_column)
        self._source = self._make_source()
        self._plan = self._describe_plan()

    def epoch(self, epoch: int, start: DataPosition | None = None) -> BatchIterator:
        """The batches of one epoch, or those after `start`.

        Raises:
            AudioError: a file is bad and `on_bad_audio` is "raise".
            ValueError: `start` belongs to another epoch or other settings.
        """
        start = DataPosition(epoch) if start is None else start
        if start.epoch != epoch:
            raise ValueError(f"The position lies in epoch {start.epoch}, epoch {epoch} was asked for.")
        self._check_plan(start)
        return self._run(lambda pool: self._planned(start, pool), self._collate)

    def utterances(self) -> Generator[list[Utterance], None, None]:
        """The batches of epoch 0 as lists of utterances, none of them empty.

        Raises:
            AudioError: a file is bad and `on_bad_audio` is "raise".
            ValueError: no file can be used.
        """
        is_empty = True
        with closing(self._run(lambda pool: self._planned(DataPosition(0), pool), lambda _, batch: batch)) as batches:
            for batch in filter(None, batches):
                is_empty = False
                yield batch
        if is_empty:
            raise self._no_audio()

    def infinite_batches(self, start: DataPosition | None = None) -> BatchIterator:
        """Batches of epoch after epoch without an end, from `start` on: as many on every process as are taken.

        Raises:
            AudioError: a file is bad and `on_bad_audio` is "raise".
            ValueError: no file can be used, or `start` belongs to other settings.
        """
        start = DataPosition(0) if start is None else start
        self._check_plan(start)

        def planned(pool: Executor) -> Iterator[_PlannedBatch]:
            begin = start
            while True:
                empty = True
                for batch in self._planned(begin, pool):
                    empty = False
                    yield batch
                if empty and begin.rows == begin.steps == 0:
                    raise self._no_audio()
                begin = DataPosition(begin.epoch + 1)

        return self._stop_without_audio(self._run(planned, self._collate))

    def count_steps(self, epoch: int) -> int:
        """Batches of this process in an epoch, from the lengths alone: headers are read, nothing is decoded.

        Raises:
            AudioError: a header is bad and `on_bad_audio` is "raise".
        """
        with ThreadPoolExecutor(self.num_workers, thread_name_prefix="speech-counter") as pool:
            return sum(1 for _ in self._planned(DataPosition(epoch), pool))

    def _planned(self, start: DataPosition, pool: Executor) -> Iterator[_PlannedBatch]:
        """The batches of this process after `start`, as rows to decode."""
        processes, own = (self.num_processes, self.process_index) if self._source.shared else (1, 0)
        done = start.steps
        for window, begin, end in self._windows(start, pool):
            entropy = [self.seed, start.epoch, begin.rows, 0 if self._source.shared else self.process_index]
            generator = np.random.default_rng(entropy) if self.shuffle else None
            if generator is not None and any(row.segment is not None for row in window):
                # Pieces are equally long and would stay together, each batch one recording.
                window = [window[index] for index in generator.permutation(len(window))]
            steps = plan_steps(
                [_seconds(row) for row in window],
                batch_seconds=self.batch_seconds,
                num_processes=processes,
                generator=generator,
            )
            for number, step in enumerate(steps[done:], start=done + 1):
                cursor, steps_done = (end, 0) if number == len(steps) else (begin, number)
                position = DataPosition(start.epoch, cursor.rows, steps_done, cursor.stream, self._plan)
                yield _PlannedBatch([window[i] for i in step[own]], position)
            done = 0

    def _windows(self, start: DataPosition, pool: Executor) -> Iterator[tuple[list[Row], RowCursor, RowCursor]]:
        """Windows of usable rows and pieces of rows, with the positions before and after the window."""
        processes = self.num_processes if self._source.shared else 1
        window_seconds = self.window_batches * self.batch_seconds * processes
        begin = end = RowCursor(start.rows, start.stream)
        window: list[Row] = []
        seconds = 0.0
        for row in self._source.rows(start.epoch, begin, pool):
            end = row.after
            try:
                window += self._usable(row)
            except AudioError as error:
                self._refuse(error, report=not self._source.shared or self.process_index == 0)
                continue
            seconds += _seconds(row)
            if seconds >= window_seconds:
                yield window, begin, end
                begin, window, seconds = end, [], 0.0
        if window:
            yield window, begin, end

    def _usable(self, row: Row) -> list[Row]:
        """The row, or its pieces.

        Raises:
            AudioError: its header cannot be used, or its length.
        """
        if isinstance(row.length, AudioError):
            raise row.length
        if self.min_seconds <= row.length <= self.max_seconds:
            return [row]
        name = row.name(row.read()[self.audio_column])
        if row.length < self.min_seconds:
            raise AudioError(name, "too short", f"{row.length:.3f} s, at least {self.min_seconds} s are needed.")
        if not self.cut_long:
            raise AudioError(name, "too long", f"{row.length:.2f} s, the limit is {self.max_seconds:.2f} s.")
        return row.cut(self.max_seconds, self.min_seconds)

    def _run(
        self,
        plan: Callable[[Executor], Iterator[_PlannedBatch]],
        finish: Callable[[_PlannedBatch, list[Utterance]], _T],
    ) -> Generator[_T, None, None]:
        """Decode ahead what is planned, and hand it out in order."""

        def decode(batch: _PlannedBatch) -> tuple[_T, DataPosition]:
            return finish(batch, self._decode(batch)), batch.position

        with closing(run_ahead(plan, decode, self.num_workers, self.prefetch)) as decoded:
            for finished, self.position in decoded:
                yield finished

    def _decode(self, batch: _PlannedBatch) -> list[Utterance]:
        utterances = []
        for row in batch.rows:
            try:
                utterances.append(self._decode_row(row))
            except AudioError as error:
                self._refuse(error)
        return utterances

    def _decode_row(self, row: Row) -> Utterance:
        columns = row.read()
        name = row.name(columns[self.audio_column])
        text: str | None = ""
        if self._texts is not None:
            try:
                text = self._texts.read(columns)
            except TypeError as error:
                raise AudioError(name, "no transcript", f"{error}.") from error
        if text is None:
            raise AudioError(name, "no transcript", f"column {self.text_column!r} is empty there.")
        waveform = load_audio(
            columns[self.audio_column],
            name=name,
            min_samples=max(MIN_SAMPLES, round(self.min_seconds * SAMPLING_RATE)),
            max_seconds=self.max_seconds + _PIECE_TOLERANCE * (row.segment is not None),
            segment=row.segment,
        )
        return Utterance(waveform, text, name, row.index, {column: columns[column] for column in self.columns})

    def _collate(self, batch: _PlannedBatch, utterances: list[Utterance]) -> Batch:
        texts = None if self._texts is None else [one.text for one in utterances]
        return collate([one.waveform for one in utterances], texts, [one.name for one in utterances], batch.position)

    def _refuse(self, error: AudioError, report: bool = True) -> None:
        if self.on_bad_audio == "raise":
            raise error
        if report:
            self.skipped.add(error)

    def _find_texts(self, name: str) -> TextColumn:
        check_columns(self.dataset, [name])
        return TextColumn.of(self.dataset, name)

    def _make_source(self) -> RowSource:
        check_columns(self.dataset, [self.audio_column, *self.columns])
        dataset = keep_encoded(self.dataset, self.audio_column).with_format(None)
        wanted = [self.audio_column, *self.columns, *TimeColumns.find(dataset.column_names or []).names]
        wanted += [] if self._texts is None else [self._texts.source]
        dataset = dataset.select_columns(list(dict.fromkeys(wanted)))
        if isinstance(dataset, Dataset):
            return IndexedRows(dataset, self.audio_column, seed=self.seed, shuffle=self.shuffle)
        return StreamedRows(
            dataset,
            self.audio_column,
            seed=self.seed,
            shuffle=self.shuffle,
            process_index=self.process_index,
            num_processes=self.num_processes,
        )

    def _describe_plan(self) -> str:
        rows = len(self.dataset) if isinstance(self.dataset, Dataset) else "streamed"
        return (
            f"rows={rows} seed={self.seed} shuffle={self.shuffle} batch_seconds={self.batch_seconds} "
            f"window_batches={self.window_batches} num_processes={self.num_processes} "
            f"min_seconds={self.min_seconds} max_seconds={self.max_seconds}"
        )

    def _check_plan(self, start: DataPosition) -> None:
        if start.plan not in ("", self._plan):
            raise ValueError(
                f"The position in the data was saved with other data or other batches, so what comes after it is not "
                f"known.\nsaved: {start.plan}\nnow:   {self._plan}\nResume with the same ones, or begin a new epoch "
                f"on these with --restart_data."
            )

    def _stop_without_audio(self, batches: BatchIterator) -> BatchIterator:
        """Raise after an epoch in which every file was bad, rather than hand out placeholders for ever."""
        num_examples, first_epoch = 0, None
        with closing(batches):
            for batch in batches:
                num_examples += batch.num_examples
                first_epoch = batch.position.epoch if first_epoch is None else first_epoch
                # Among several processes one may have nothing in a small data set; the others go on, so it does too.
                if num_examples == 0 and batch.position.epoch > first_epoch and self.num_processes == 1:
                    raise self._no_audio()
                yield batch

    def _no_audio(self) -> ValueError:
        return ValueError(f"The data set has no usable audio ({self.skipped}); check its path, split and limits.")


def _seconds(row: Row) -> float:
    assert not isinstance(row.length, AudioError)
    return row.length
