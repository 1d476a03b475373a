"""The utterances of a data set, once each, decoded and in batches: what a command that measures something reads."""

from collections.abc import Iterator, Sequence

from datasets import Dataset

from ..options import ReadingOptions
from .audio import SkippedAudio
from .batch import Utterance
from .batching import SpeechBatches
from .corpora import check_columns, load_corpus
from .texts import TextColumn

__all__ = ["Utterance", "UtteranceReader"]

_WINDOW_BATCHES = 16  # sorted by length together


class UtteranceReader:
    """Iterates over a split in batches of utterances of similar length; `Utterance.index` tells the data set's order.

    A file that cannot be used, or that has no transcript where a text column was asked for, is left out with a
    warning and counted in `skipped`.

    Args:
        options: the data set, its split and how much of it.
        text_column_name: column with the transcripts, if they are needed.
        columns: other columns that are needed.
        optional_columns: other columns that are handed out if there are such.

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
        assert isinstance(dataset, Dataset)  # not a stream
        check_columns(dataset, columns, options.dataset_name)
        if text_column_name is not None:
            TextColumn.of(dataset, text_column_name, options.dataset_name)
        self._batches = SpeechBatches(
            dataset if options.max_samples is None else dataset.take(min(options.max_samples, len(dataset))),
            batch_seconds=options.batch_seconds,
            shuffle=False,
            max_seconds=float("inf"),
            window_batches=_WINDOW_BATCHES,
            audio_column=options.audio_column_name,
            text_column=text_column_name,
            columns=[*columns, *(name for name in optional_columns if name in dataset.column_names)],
        )

    @property
    def dataset(self) -> Dataset:
        """The rows that are read, as a data set."""
        assert isinstance(self._batches.dataset, Dataset)
        return self._batches.dataset

    @property
    def columns(self) -> list[str]:
        """The other columns that utterances get."""
        return list(self._batches.columns)

    @property
    def skipped(self) -> SkippedAudio:
        """The files left out so far."""
        return self._batches.skipped

    def __len__(self) -> int:
        """Rows, the unusable ones included."""
        return len(self.dataset)

    def __iter__(self) -> Iterator[list[Utterance]]:
        """The batches, none of them empty.

        Raises:
            ValueError: no file can be used.
        """
        return self._batches.utterances()
