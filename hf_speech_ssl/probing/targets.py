"""What linear probes are to name: the phone of each frame, the class of each utterance, or nothing.

Shape letters: D features of a layer, T frames of an utterance, n examples of an utterance.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm.auto import tqdm

from ..data.reading import Utterance, UtteranceReader
from ..options import ReadingOptions
from .encoders import EncodedUtterance, SpeechEncoder
from .label_quality import IGNORED_PHONE_ID, phone_ids_at_frames

PHONE_FORMAT = (
    'a list of {"phone": name, "start": seconds, "end": seconds} for every utterance, in order of time '
    "(the corpus 'synthetic' has it as 'phones')"
)


@dataclass(frozen=True)
class Example:
    """An utterance, encoded, with what the probes are to name.

    Args:
        encoded: its layers and labels.
        features: (n, D) of every layer, what the probes see: its frames, or their mean over the utterance.
        targets: (n,) int64, what they are to name; `IGNORED_PHONE_ID` where there is nothing.
        frame_targets: (T,) int64, the same for every frame, with which labels are compared.
    """

    encoded: EncodedUtterance
    features: list[torch.Tensor]
    targets: NDArray[np.int64]
    frame_targets: NDArray[np.int64]


class TargetReader(ABC):
    """Reads a split's utterances with what probes are to name.

    Attributes:
        column: of the data set; "" without one.
        what: probes are to name, in the plural; "" if nothing.
        examples: what they are named for, in the plural.
        min_examples: of each target on average, to fit a probe at all.
        nothing_found: the error message where no example has a target.
    """

    column: str
    what: str
    examples: str
    min_examples: int

    @property
    def nothing_found(self) -> str:
        return f"No utterance of split {self.split_name!r} has a class of the training split in {self.column!r}."

    def __init__(self, options: ReadingOptions, columns: Sequence[str] = (), optional_columns: Sequence[str] = ()):
        self.split_name = options.split_name
        self.reader = UtteranceReader(options, columns=columns, optional_columns=optional_columns)

    def encode(self, encoder: SpeechEncoder, ids: dict[str, int], step: str) -> Iterator[Example]:
        """Every utterance encoded, with its targets.

        Args:
            ids: the number of every target.
            step: what the progress bar names on a terminal.
        """
        with tqdm(total=len(self.reader), desc=step, unit="utterance", dynamic_ncols=True, disable=None) as bar:
            for batch in self.reader:
                with torch.inference_mode():
                    encoded = encoder([utterance.waveform for utterance in batch])
                for utterance, one in zip(batch, encoded, strict=True):
                    yield self.example(utterance, one, ids)
                bar.update(len(batch))

    @abstractmethod
    def inventory(self) -> set[str]:
        """All targets of the split; no audio is read."""

    @abstractmethod
    def example(self, utterance: Utterance, encoded: EncodedUtterance, ids: dict[str, int]) -> Example:
        """One utterance with its targets."""


class UnlabeledReader(TargetReader):
    """Reads a split of which nothing is to be named. Arguments and errors as in [`UtteranceReader`]."""

    column, what, examples, min_examples = "", "", "frames", 0

    def inventory(self) -> set[str]:
        return set()

    def example(self, utterance: Utterance, encoded: EncodedUtterance, ids: dict[str, int]) -> Example:
        nothing = np.full(encoded.num_frames, IGNORED_PHONE_ID)
        return Example(encoded, encoded.layers, nothing, nothing)


class ClassReader(TargetReader):
    """Reads a split's utterances with their classes, such as speakers or keywords.

    Probes see the mean of each layer's frames over the utterance.

    Args:
        options: the data set and its split.
        column: with the class of each utterance; those without one are not named.

    Raises:
        ValueError: as [`UtteranceReader`]; or the column holds no class.
    """

    what, examples, min_examples = "classes", "utterances", 2

    def __init__(self, options: ReadingOptions, column: str):
        super().__init__(options, columns=(column,))
        self.column = column
        self._names = getattr(self.reader.dataset.features[column], "names", None)  # of a column of class numbers

    def inventory(self) -> set[str]:
        classes = {self._name(row[self.column]) for row in self.reader.dataset.select_columns([self.column])} - {""}
        if not classes:
            raise ValueError(
                f"Column {self.column!r} of split {self.split_name!r} is empty: no utterance has a class."
            )
        return classes

    def example(self, utterance: Utterance, encoded: EncodedUtterance, ids: dict[str, int]) -> Example:
        target = ids.get(self._name(utterance.columns[self.column]), IGNORED_PHONE_ID)
        means = [layer.mean(0, keepdim=True) for layer in encoded.layers]
        return Example(encoded, means, np.array([target]), np.full(encoded.num_frames, target))

    def _name(self, value: Any) -> str:
        if isinstance(value, list | dict):
            raise ValueError(f"Column {self.column!r} holds {value!r:.60}, not one class for each utterance.")
        return "" if value is None else str(value if self._names is None else self._names[value])


class PhoneReader(TargetReader):
    """Reads a split's utterances with the phones at their frames.

    Args:
        options: the data set and its split.
        phone_column_name: column with a list of {"phone", "start", "end"} (s) for every utterance.

    Raises:
        ValueError: as [`UtteranceReader`]; or the column is not there, or holds no phone.
    """

    what, examples, min_examples = "phones", "frames", 10

    @property
    def nothing_found(self) -> str:
        return f"No frame of split {self.split_name!r} lies in a phone: check the times, in seconds."

    def __init__(self, options: ReadingOptions, column: str):
        self.column = column
        try:
            super().__init__(options, columns=(column,))
        except ValueError as error:
            if f"no column {column!r}" in str(error):
                raise ValueError(f"{error} The probe needs a column with {PHONE_FORMAT}.") from None
            raise

    def inventory(self) -> set[str]:
        rows = self.reader.dataset.select_columns([self.column])
        phones = {name for place, row in enumerate(rows) for name in self._parse(row[self.column], f"row {place}")[0]}
        if not phones:
            raise ValueError(f"Column {self.column!r} of split {self.split_name!r} is empty; needed: {PHONE_FORMAT}.")
        return phones

    def example(self, utterance: Utterance, encoded: EncodedUtterance, ids: dict[str, int]) -> Example:
        phones, starts, ends = self._parse(utterance.columns[self.column], utterance.name)
        timing = encoded.num_frames, encoded.frame_rate, encoded.first_frame_center
        try:
            targets = phone_ids_at_frames(starts, ends, [ids[phone] for phone in phones], *timing)
        except ValueError as error:
            raise ValueError(f"{utterance.name}: column {self.column!r}: {error}") from None
        return Example(encoded, encoded.layers, targets, targets)

    def _parse(self, value: Any, name: str) -> tuple[list[str], list[float], list[float]]:
        """Names, starts and ends of an utterance's phones; none where there is no value."""
        try:
            if isinstance(value, dict):  # how `datasets` hands out a sequence of structs
                names, starts, ends = (list(value[key]) for key in ("phone", "start", "end"))
            else:
                names, starts, ends = ([phone[key] for phone in value or ()] for key in ("phone", "start", "end"))
            return [str(phone) for phone in names], [float(time) for time in starts], [float(time) for time in ends]
        except (KeyError, IndexError, TypeError, ValueError):
            shown = repr(value)
            raise ValueError(
                f"{name}: column {self.column!r} holds no phones with their times but "
                f"{shown if len(shown) < 80 else shown[:77] + '...'}; needed: {PHONE_FORMAT}."
            ) from None


def number_targets(train: TargetReader, test: TargetReader) -> dict[str, int]:
    """Numbers of the targets of both splits, those of training first.

    Raises:
        ValueError: the splits share no target.
    """
    in_train, in_test = train.inventory(), test.inventory()
    known, unknown = sorted(in_train), sorted(in_test - in_train)
    if in_train.isdisjoint(in_test):
        raise ValueError(
            f"The splits share no {train.what}: {', '.join(known[:8])}, ... to train on, {', '.join(unknown[:8])}, "
            f"... to measure on. Give splits whose {train.what} are the same and written alike."
        )
    return {target: number for number, target in enumerate(known + unknown)}
