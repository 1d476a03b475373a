"""Batches by seconds of audio: bucketed by length, in an order that seed and epoch fix, resumable after every batch.

Threads decode ahead of training and one thread plans. Since the position travels with each batch, what has been read
ahead never matters to a checkpoint: the position of the last batch that was used says all.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from datasets import Dataset, IterableDataset

from .audio import MIN_SAMPLES, SAMPLING_RATE, AudioError, SkippedAudio, audio_name, load_audio
from .batch import Batch, DataPosition, collate
from .corpora import SpeechDataset, check_columns, keep_encoded
from .planning import plan_steps
from .rows import DURATION_COLUMN, IndexedRows, Row, RowCursor, RowSource, StreamedRows

# A generator, so that closing it ends its threads.
BatchIterator: TypeAlias = Generator[Batch, None, None]


@dataclass(frozen=True)
class _PlannedBatch:
    rows: list[Row]
    position: DataPosition


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
        min_seconds, max_seconds: shorter and longer audio is skipped.
        process_index, num_processes: which batches are this process's.
        window_batches: batches per process in a window.
        num_workers: threads that decode.
        prefetch: batches decoded ahead; at least `num_workers` of them, to keep each thread busy.
        audio_column, text_column: names of columns; texts are only read with a text column.
        on_bad_audio: "skip" warns once per file and counts it in `skipped`; "raise" stops with the AudioError.

    Attributes:
        position: the place after the last batch that was handed out.
        skipped: the files left out so far by this process. Headers that all processes read are counted by the first.
    """

    def __init__(
        self,
        dataset: SpeechDataset,
        *,
        batch_seconds: float,
        seed: int = 0,
        shuffle: bool = True,
        min_seconds: float = MIN_SAMPLES / SAMPLING_RATE,
        max_seconds: float = 40.0,
        process_index: int = 0,
        num_processes: int = 1,
        window_batches: int = 32,
        num_workers: int = 2,
        prefetch: int = 4,
        audio_column: str = "audio",
        text_column: str | None = None,
        on_bad_audio: Literal["skip", "raise"] = "skip",
    ) -> None:
        if not isinstance(dataset, (Dataset, IterableDataset)):
            raise TypeError(
                f"A datasets.Dataset or IterableDataset is needed, got {type(dataset).__name__}; see load_corpus."
            )
        if batch_seconds <= 0 or not 0 <= min_seconds < max_seconds or seed < 0 or window_batches < 1:
            raise ValueError(
                "batch_seconds and window_batches must be positive, seed not negative, min_seconds below max_seconds; "
                f"got {batch_seconds=}, {window_batches=}, {seed=}, {min_seconds=}, {max_seconds=}."
            )
        if not 0 <= process_index < num_processes:
            raise ValueError(f"process_index must lie in [0, {num_processes}), got {process_index}.")
        if on_bad_audio not in ("skip", "raise"):
            raise ValueError(f"on_bad_audio must be 'skip' or 'raise', got {on_bad_audio!r}.")
        self.batch_seconds = batch_seconds
        self.seed = seed
        self.shuffle = shuffle
        self.min_seconds = min_seconds
        self.max_seconds = max_seconds
        self.process_index = process_index
        self.num_processes = num_processes
        self.window_batches = window_batches
        self.num_workers = max(1, num_workers)
        self.prefetch = max(1, prefetch, num_workers)
        self.audio_column = audio_column
        self.text_column = text_column
        self.on_bad_audio = on_bad_audio
        self.position = DataPosition(epoch=0)
        self.skipped = SkippedAudio()
        self._source = self._make_source(dataset)
        self._plan = self._describe_plan(dataset)

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
        return self._run(lambda pool: self._jobs(start, pool))

    def infinite_batches(self, start: DataPosition | None = None) -> BatchIterator:
        """Batches of epoch after epoch without an end, from `start` on: as many on every process as are taken.

        Raises:
            AudioError: a file is bad and `on_bad_audio` is "raise".
            ValueError: no file can be used, or `start` belongs to other settings.
        """
        start = DataPosition(0) if start is None else start
        self._check_plan(start)

        def jobs(pool: Executor) -> Iterator[_PlannedBatch]:
            begin = start
            while True:
                empty = True
                for job in self._jobs(begin, pool):
                    empty = False
                    yield job
                if empty and begin.rows == begin.steps == 0:
                    raise self._no_audio()
                begin = DataPosition(begin.epoch + 1)

        return self._stop_without_audio(self._run(jobs))

    def count_steps(self, epoch: int) -> int:
        """Batches of this process in an epoch, from the lengths alone: headers are read, nothing is decoded.

        Raises:
            AudioError: a header is bad and `on_bad_audio` is "raise".
        """
        with ThreadPoolExecutor(self.num_workers, thread_name_prefix="speech-counter") as pool:
            return sum(1 for _ in self._jobs(DataPosition(epoch), pool))

    def _jobs(self, start: DataPosition, pool: Executor) -> Iterator[_PlannedBatch]:
        """The batches of this process after `start`, as rows to decode."""
        processes, own = (self.num_processes, self.process_index) if self._source.shared else (1, 0)
        done = start.steps
        for window, lengths, begin, end in self._windows(start, pool):
            entropy = [self.seed, start.epoch, begin.rows, 0 if self._source.shared else self.process_index]
            steps = plan_steps(
                lengths,
                batch_seconds=self.batch_seconds,
                num_processes=processes,
                generator=np.random.default_rng(entropy) if self.shuffle else None,
            )
            for number, step in enumerate(steps[done:], start=done + 1):
                place, steps_done = (end, 0) if number == len(steps) else (begin, number)
                position = DataPosition(start.epoch, place.rows, steps_done, place.stream, self._plan)
                yield _PlannedBatch([window[i] for i in step[own]], position)
            done = 0

    def _windows(
        self, start: DataPosition, pool: Executor
    ) -> Iterator[tuple[list[Row], list[float], RowCursor, RowCursor]]:
        """Windows of usable rows, with their seconds and the places before and after the window."""
        processes = self.num_processes if self._source.shared else 1
        window_seconds = self.window_batches * self.batch_seconds * processes
        begin = end = RowCursor(start.rows, start.stream)
        window: list[Row] = []
        lengths: list[float] = []
        seconds = 0.0
        for row in self._source.rows(start.epoch, begin, pool):
            end = row.after
            length = self._usable_length(row)
            if isinstance(length, AudioError):
                self._refuse(length, report=not self._source.shared or self.process_index == 0)
                continue
            window.append(row)
            lengths.append(length)
            seconds += length
            if seconds >= window_seconds:
                yield window, lengths, begin, end
                begin, window, lengths, seconds = end, [], [], 0.0
        if window:
            yield window, lengths, begin, end

    def _run(self, make_jobs: Callable[[Executor], Iterator[_PlannedBatch]]) -> BatchIterator:
        """Decode ahead: a planning thread takes jobs in order, a pool decodes them, and they come out in order."""
        decoders = ThreadPoolExecutor(self.num_workers, thread_name_prefix="speech-decoder")
        planner = ThreadPoolExecutor(1, thread_name_prefix="speech-planner")
        jobs = make_jobs(decoders)

        def start_next() -> Future[Batch] | None:
            job = next(jobs, None)
            return None if job is None else decoders.submit(self._decode, job)

        try:
            ahead = deque(planner.submit(start_next) for _ in range(self.prefetch))
            while (decoding := ahead.popleft().result()) is not None:
                ahead.append(planner.submit(start_next))
                batch = decoding.result()
                self.position = batch.position
                yield batch
        finally:  # also when the consumer stops early or a file was bad: no thread outlives the loop
            planner.shutdown(cancel_futures=True)
            decoders.shutdown(cancel_futures=True)

    def _decode(self, job: _PlannedBatch) -> Batch:
        waveforms: list[np.ndarray] = []
        texts: list[str] = []
        names: list[str] = []
        for row in job.rows:
            columns = row.read()
            name = audio_name(columns[self.audio_column], row.place)
            try:
                waveform = load_audio(
                    columns[self.audio_column],
                    name=name,
                    min_samples=max(MIN_SAMPLES, round(self.min_seconds * SAMPLING_RATE)),
                    max_seconds=self.max_seconds,
                )
                text = "" if self.text_column is None else columns[self.text_column]
                if text is None:
                    raise AudioError(name, "no transcript", f"column {self.text_column!r} is empty there.")
            except AudioError as error:
                self._refuse(error)
                continue
            waveforms.append(waveform)
            texts.append(str(text))
            names.append(name)
        return collate(waveforms, None if self.text_column is None else texts, names, job.position)

    def _refuse(self, error: AudioError, report: bool = True) -> None:
        if self.on_bad_audio == "raise":
            raise error
        if report:
            self.skipped.add(error)

    def _usable_length(self, row: Row) -> float | AudioError:
        length = row.length
        if isinstance(length, AudioError) or self.min_seconds <= length <= self.max_seconds:
            return length
        name = audio_name(row.read()[self.audio_column], row.place)
        if length > self.max_seconds:
            return AudioError(name, "too long", f"{length:.2f} s, the limit is {self.max_seconds:.2f} s.")
        return AudioError(name, "too short", f"{length:.3f} s, at least {self.min_seconds} s are needed.")

    def _make_source(self, dataset: SpeechDataset) -> RowSource:
        columns = [self.audio_column] if self.text_column is None else [self.audio_column, self.text_column]
        check_columns(dataset, columns)
        if DURATION_COLUMN in (dataset.column_names or []):
            columns.append(DURATION_COLUMN)
        dataset = keep_encoded(dataset, self.audio_column).with_format(None).select_columns(columns)
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

    def _describe_plan(self, dataset: SpeechDataset) -> str:
        rows = len(dataset) if isinstance(dataset, Dataset) else "streamed"
        return (
            f"rows={rows} seed={self.seed} shuffle={self.shuffle} batch_seconds={self.batch_seconds} "
            f"window_batches={self.window_batches} num_processes={self.num_processes} "
            f"min_seconds={self.min_seconds} max_seconds={self.max_seconds}"
        )

    def _check_plan(self, start: DataPosition) -> None:
        if start.plan not in ("", self._plan):
            raise ValueError(
                f"The place in the data was saved with other data or other batches, so what comes after it is not "
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
