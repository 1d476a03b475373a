"""Transcripts as the columns of data sets hold them: texts, numbers, names of classes, entries of a JSON column."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from datasets import ClassLabel, Dataset, Value

from .builders import SpeechDataset

_NUMBERS = ("int", "uint", "float", "decimal")
# Sounds and gaps in brackets or behind a per cent sign, as corpora write what nobody says.
_MARK = re.compile(r"<[^<>]{1,30}>|\[[^\[\]]{1,30}\]|\{[^{}]{1,30}\}|(?<!\S)%[^\W\d]\w*")
_TEXTS = ("string", "large_string", "null")


@dataclass(frozen=True)
class TextColumn:
    """Reads the transcripts of a data set.

    Args:
        name: of the column; "json.text" is the entry `text` of the column `json`.
        classes: the names of its classes, where it holds their numbers.
    """

    name: str
    classes: ClassLabel | None = None

    @classmethod
    def of(cls, dataset: SpeechDataset, name: str, dataset_name: str = "the data set") -> TextColumn:
        """The column of a data set.

        Raises:
            ValueError: it holds no texts.
        """
        if dataset.features is None:
            return cls(name)
        feature: Any = dataset.features.get(name)
        if feature is None:
            feature = dataset.features
            for part in name.split("."):
                feature = feature.get(part) if isinstance(feature, Mapping) else None
        if isinstance(feature, ClassLabel):
            return cls(name, feature)
        if isinstance(feature, Mapping):
            raise ValueError(
                f"Column {name!r} of {dataset_name!r} holds entries {sorted(feature)}, not text; name the one with "
                f"the transcripts, for example {name}.{next(iter(feature), '')}."
            )
        if isinstance(feature, Value) and feature.dtype.startswith((*_TEXTS, *_NUMBERS)):
            return cls(name)
        what = feature.dtype if isinstance(feature, Value) else type(feature).__name__
        raise ValueError(
            f"Column {name!r} of {dataset_name!r} holds {what} values, not text; name the column with the transcripts."
        )

    @property
    def source(self) -> str:
        """The column of the data set that is read."""
        return self.name.partition(".")[0]

    def read(self, row: Mapping[str, Any]) -> str | None:
        """The transcript of a row; None where there is none.

        Raises:
            TypeError: the value is no text and no number.
        """
        value: Any = row
        for part in [self.name] if self.name in row else self.name.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if value is None or isinstance(value, str):
            return value
        if self.classes is not None:
            return None if value < 0 else str(self.classes.int2str(value))
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"column {self.name!r} holds {type(value).__name__} values, not text")
        is_nan = isinstance(value, float) and math.isnan(value)
        return None if is_nan else str(int(value) if float(value).is_integer() else value)


@dataclass(frozen=True)
class Transcripts:
    """The transcripts of a split.

    Attributes:
        texts: those with something in them.
        missing: rows without one.
        empty: rows whose transcript is empty once it is normalized, by what it was before.
        marks: what stands in brackets, such as [laughter], and becomes words.
    """

    texts: list[str]
    missing: int
    empty: Counter[str]
    marks: Counter[str] = field(default_factory=Counter)

    def remark(self) -> str:
        """What is worth a warning, or nothing."""
        parts = []
        if self.missing:
            parts.append(f"{self.missing} rows have no transcript and are skipped")
        if count := self.empty.total():
            examples = ", ".join(repr(text) for text, _ in self.empty.most_common(3))
            parts.append(f"{count} transcripts are empty after normalization ({examples}) and are learned as silence")
        if self.marks:
            examples = ", ".join(f"{mark} {count}" for mark, count in self.marks.most_common(5))
            parts.append(f"marks in the transcripts are learned as words ({examples}): take out what nobody says")
        return "; ".join(parts)


def read_transcripts(
    dataset: SpeechDataset, name: str, most: int | None = None, normalize: Callable[[str], str] = str
) -> Transcripts:
    """Read the transcripts of a split without its audio.

    Args:
        name: the text column.
        most: rows to read, the first ones.
        normalize: is applied to every transcript.

    Raises:
        ValueError: the column holds no texts, or only empty ones.
    """
    column = TextColumn.of(dataset, name)
    rows: Iterable[Any] = dataset.select_columns([column.source])
    if most is not None:
        rows = rows.take(min(most, len(rows)) if isinstance(rows, Dataset) else most)  # type: ignore[attr-defined]
    texts: list[str] = []
    missing, empty, marks = 0, Counter[str](), Counter[str]()
    for row in rows:
        text = column.read(row)
        if text is None:
            missing += 1
        elif normalized := normalize(text).strip():
            texts.append(normalized)
            marks.update(_MARK.findall(text))
        else:
            empty[text] += 1
    if not texts:
        raise ValueError(
            f"Column {name!r} has no transcript: {missing} rows without a text, {empty.total()} with an empty one. "
            f"Name the column with the transcripts."
        )
    return Transcripts(texts, missing, empty, marks)
