"""The utterances of a data set, once each, decoded and in batches: what a command that measures something reads."""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from datasets import Dataset, Value
from numpy.typing import NDArray

from ..options import ReadingOptions
from .audio import MIN_SAMPLES, SAMPLING_RATE, AudioError, SkippedAudio, audio_name, load_audio
from .corpora import check_columns, load_corpus
from .planning import plan_steps
from .rows import DURATION_COLUMN, IndexedRows, Row, RowCursor

_WINDOW_BATCHES = 16  # sorted by length together
_DECODERS = 2  # threads


@dataclass(frozen=True)
class Utterance:
    """One row of a data set, its audio decoded.

    Attributes:
        waveform: (samples,) at 16 kHz.
        text: its transcript; empty where no text column was asked for.
        name: what to call it in a message: a path, or its place in the data set.
        index: its row.
        columns: the other columns that were asked for.
    """

    waveform: NDArray[np.float32]
    text: str
    name: str
    index: int
    columns: dict[str, Any] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Its duration."""
        return len(self.waveform) / SAMPLING_RATE


class UtteranceReader:
    """Iterates over a split in batches of utterances of similar length; `Utterance.index` tells the data set's order.

    A file that cannot be used, or that has no transcript where a text column was asked for, is left out with a
    warning and counted in `skipped`.

    Args:
        options: the data set, its split and how much of it.
        text_column_name: column with the transcripts, if they are needed.
        columns: other columns that are needed.
        optional_columns: other columns that are handed out if there are such.

    Attributes:
        skipped: the files left out so far.

    Raises:
        FileNotFoundError: there is no such data set.
        ValueError: there is no such split or column, or it holds no text.
    """

    def __init__(
        self,
        options: ReadingOptions,
        text_column_name: str | None = None,
        columns: Sequence[str] = (),
        optional_columns: Sequence[str] = (),
    ) -> None:
        dataset = load_corpus(
            options.dataset_name,
            config_name=options.dataset_config_name,
            split=options.split_name,
            audio_column=options.audio_column_name,
            text_column=text_column_name,
        )
        assert isinstance(dataset, Dataset)  # nothing was said of streaming
        check_columns(dataset, columns, options.dataset_name)
        if text_column_name is not None and not isinstance(dataset.features[text_column_name], Value):
            raise ValueError(
                f"Column {text_column_name!r} of {options.dataset_name!r} holds "
                f"{type(dataset.features[text_column_name]).__name__} values, not text; name the column with the "
                "transcripts."
            )
        self.columns = [*columns, *(name for name in optional_columns if name in dataset.column_names)]
        wanted = {options.audio_column_name: None, text_column_name: None, DURATION_COLUMN: None} | dict.fromkeys(
            self.columns
        )
        dataset = dataset.with_format(None).select_columns([name for name in wanted if name in dataset.column_names])
        self.dataset = dataset if options.max_samples is None else dataset.take(options.max_samples)
        self.audio_column = options.audio_column_name
        self.text_column = text_column_name
        self.batch_seconds = options.batch_seconds
        self.skipped = SkippedAudio()

    def __len__(self) -> int:
        """Rows, the unusable ones included."""
        return len(self.dataset)

    def __iter__(self) -> Iterator[list[Utterance]]:
        """The batches, none of them empty.

        Raises:
            ValueError: no file can be used.
        """
        empty = True
        with ThreadPoolExecutor(_DECODERS, thread_name_prefix="speech-reader") as pool:
            ahead: deque[Iterator[Utterance | None]] = deque()  # one batch is decoded while another one is used
            for batch in self._batches(pool):
                ahead.append(pool.map(self._decode, batch))
                if len(ahead) > 1 and (utterances := [one for one in ahead.popleft() if one is not None]):
                    empty = False
                    yield utterances
            if ahead and (utterances := [one for one in ahead.popleft() if one is not None]):
                empty = False
                yield utterances
        if empty:
            raise ValueError(f"The data set has no usable audio ({self.skipped}); check its path and columns.")

    def _batches(self, pool: ThreadPoolExecutor) -> Iterator[list[Row]]:
        """Rows whose headers can be used, cut into batches window by window."""
        source = IndexedRows(self.dataset, self.audio_column, seed=0, shuffle=False)
        window: list[Row] = []
        lengths: list[float] = []
        for row in source.rows(0, RowCursor(), pool):
            try:
                lengths.append(self._usable_length(row))
                window.append(row)
            except AudioError as error:
                self.skipped.add(error)
            if sum(lengths) >= _WINDOW_BATCHES * self.batch_seconds:
                yield from self._cut(window, lengths)
                window, lengths = [], []
        yield from self._cut(window, lengths)

    def _cut(self, window: list[Row], lengths: list[float]) -> Iterator[list[Row]]:
        for (batch,) in plan_steps(lengths, batch_seconds=self.batch_seconds):
            yield [window[i] for i in batch]

    def _usable_length(self, row: Row) -> float:
        if isinstance(row.length, AudioError):
            raise row.length
        if row.length < MIN_SAMPLES / SAMPLING_RATE:
            name = audio_name(row.read()[self.audio_column], row.place)
            raise AudioError(name, "too short", f"{row.length:.3f} s, at least one frame of 25 ms is needed.")
        return row.length

    def _decode(self, row: Row) -> Utterance | None:
        columns = row.read()
        name = audio_name(columns[self.audio_column], row.place)
        try:
            waveform = load_audio(columns[self.audio_column], name=name)
            text = "" if self.text_column is None else columns[self.text_column]
            if text is None:
                raise AudioError(name, "no transcript", f"column {self.text_column!r} is empty there.")
        except AudioError as error:
            self.skipped.add(error)
            return None
        others = {column: columns[column] for column in self.columns}
        return Utterance(waveform, str(text), name, row.after.rows - 1, others)
