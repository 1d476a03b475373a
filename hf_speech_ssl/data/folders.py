"""A folder of audio files as a data set: every file is used, or counted with the reason why it is not."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from .audio_files import FoundFiles, count_files, search_folder, walk_files
from .segments import TimeColumns
from .tables import TABLE_SUFFIXES, Table, read_table

SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_SPLIT_OF = {word: split for split, words in SPLITS.items() for word in words}
_METADATA = "metadata"
_PACKED_SUFFIXES = (".7z", ".arrow", ".bz2", ".gz", ".parquet", ".rar", ".tar", ".tgz", ".xz", ".zip", ".zst")
_NAMED = 5  # files of each kind that a message names


@dataclass(frozen=True)
class CorpusReport:
    """What of a corpus one split uses.

    Attributes:
        name, split: the corpus and its split.
        found: audio files, or rows where the corpus is no folder of files; None of a stream, which nobody has counted.
        used: rows of the split; None of a stream.
        left_out: files that it does not use, by the reason, and the path of some.
        remarks: what else lies there.
    """

    name: str
    split: str
    found: int | None
    used: int | None
    left_out: Mapping[str, list[str]] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = [f"{self.name}: found {self.found} audio, {self.used} in the split {self.split!r}"]
        if self.found is None:
            parts = [f"{self.name}: the split {self.split!r} is streamed"]
        for reason, paths in self.left_out.items():
            examples = ", ".join(paths[:_NAMED]) + (", ..." if len(paths) > _NAMED else "")
            parts.append(f"{count_files(len(paths))} {reason} ({examples})")
        return "; ".join([*parts, *self.remarks])


@dataclass(frozen=True)
class FolderCorpus:
    """The audio files of a folder by split, with the columns of its metadata.

    Attributes:
        name: the folder, as the user knows it.
        columns: values by split and column; "audio" holds paths.
        left_out: paths of audio that is in no split, by the reason.
        found: all audio files.
        remarks: about tables that are not used.
    """

    name: str
    columns: dict[str, dict[str, list[Any]]]
    left_out: dict[str, list[str]]
    found: int
    remarks: tuple[str, ...]

    def report(self, split: str, used: int) -> CorpusReport:
        """What a split of so many rows uses of the folder."""
        others = {
            f"in the split {other!r}": [os.path.relpath(path, self.name) for path in columns["audio"]]
            for other, columns in sorted(self.columns.items())
            if other not in split.split("+")
        }
        return CorpusReport(self.name, split, self.found, used, self.left_out | others, self.remarks)


def read_folder(folder: Path) -> FolderCorpus | None:
    """Read a folder of audio files, with or without metadata.csv (.tsv, .jsonl, .parquet) in it or its sub-folders.

    Metadata tell which files are used, and have a column `file_name` with paths seen from their folder. A file
    belongs to the split that a folder above it is called, such as train/ or dev/; names of files do not matter. Where
    there is no such folder, all belong to "train"; where there are some, a folder beside them is a split of its own
    name. A column `split` of the metadata with nothing but names of splits goes before the folders.

    Returns:
        None where there is no audio in the folder.

    Raises:
        ValueError: a metadata table cannot be read, or none of the audio can.
    """
    found = search_folder(folder)
    if not found.files and not found.left_out:
        return None
    paths = [PurePath(file.below) for file in found.files]
    splits = _Splits(paths)
    tables, remarks = _tables(folder)
    listed: dict[str, list[Table]] = {}
    rows: dict[str, list[dict[str, Any]]] = {}
    used: set[str] = set()
    for table in tables:
        _add_listed(table, folder, splits, rows, used)
        listed.setdefault(str(table.path.parent), []).append(table)
    left_out = dict(found.left_out)
    for path in paths:
        full = os.path.normpath(folder / path)
        if full in used:
            continue
        if not _is_utf8(full):
            left_out.setdefault("whose names are not UTF-8: rename them", []).append(
                os.fsencode(path).decode("utf-8", "replace")
            )
        elif any(parent in listed for parent in _parents(full)):
            left_out.setdefault("not listed in the metadata", []).append(str(path))
        elif not (split := splits.of(path)):
            left_out.setdefault("beside the folders of the splits", []).append(str(path))
        else:
            rows.setdefault(split, []).append({"audio": full})
    columns = {split: _by_column(own) for split, own in rows.items()}
    remarks = [*remarks, *_archives(found, {table.path.suffix for table in tables}), *_listed_again(rows)]
    corpus = FolderCorpus(str(folder), columns, left_out, found.num_audio, tuple(remarks))
    if not columns:
        raise ValueError(f"Of the audio in {corpus.report('train', 0)}.")
    return corpus


class _Splits:
    """Which folders are splits: those called so, or all of a level whose names begin so (train-clean-100/)."""

    def __init__(self, paths: Iterable[PurePath]):
        folders = [path.parts[:-1] for path in paths]
        self._has_whole_names = any(part.lower() in _SPLIT_OF for parts in folders for part in parts)
        first = {parts[0] for parts in folders if parts}
        starts = {split_word(name) for name in first}
        self._by_beginning = not self._has_whole_names and all(folders) and None not in starts and "train" in starts

    def of(self, path: PurePath) -> str:
        """The split of a file."""
        folders = path.parts[:-1]
        if self._by_beginning:
            return split_word(folders[0]) or "train"
        if not self._has_whole_names:
            return "train"
        whole = next((_SPLIT_OF[part.lower()] for part in folders if part.lower() in _SPLIT_OF), None)
        return whole or (folders[0] if folders else "")


def split_word(name: str) -> str | None:
    """The split that a name begins with, as `train-clean-100` does; None if it is none."""
    return _SPLIT_OF.get(re.split(r"[^a-z]", name.lower(), maxsplit=1)[0])


def _archives(found: FoundFiles, tables: set[str]) -> list[str]:
    """A remark about packed files, which may hold audio; tables that were read are none."""
    packed = {
        suffix: count
        for suffix, count in sorted(found.others.items())
        if suffix in _PACKED_SUFFIXES and suffix not in tables
    }
    named = ", ".join(f"{count} {suffix}" for suffix, count in packed.items())
    return [f"{count_files(sum(packed.values()))} not unpacked ({named})"] if packed else []


def _listed_again(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """A remark about files that the metadata list more than once, where the rows are no segments of them."""
    every = [row for own in rows.values() for row in own]
    if any(TimeColumns.find(list(row)).begin for row in every[:1]):
        return []
    again = [path for path, count in Counter(row["audio"] for row in every).items() if count > 1]
    example = f", such as {os.path.basename(again[0])}" if again else ""
    return [f"{count_files(len(again))} listed more than once in the metadata{example}"] if again else []


def _tables(folder: Path) -> tuple[list[Table], list[str]]:
    """The metadata of a folder, and a remark about each table that is not used."""
    tables, remarks = [], []
    others: Counter[str] = Counter()
    for below in sorted(walk_files(folder)):
        if below.suffix.lower() not in TABLE_SUFFIXES or any(part.startswith(".") for part in below.parts):
            continue
        if below.stem.lower() != _METADATA:
            others[str(below)] += 1
            continue
        table = read_table(folder / below)
        if table.path_column is None:
            columns = ", ".join(table.columns)
            remarks.append(f"{below} is not used: it has no column file_name (its columns are {columns})")
        else:
            tables.append(table)
    if others:
        names = ", ".join(list(others)[:_NAMED]) + (", ..." if len(others) > _NAMED else "")
        example = folder / next(iter(others))
        remarks.append(
            f"{len(others)} tables not used ({names}): they are read if named metadata.csv with a "
            f"column file_name, or by themselves: --dataset_name {str(example)!r}"
        )
    return tables, remarks


def _add_listed(
    table: Table, folder: Path, splits: _Splits, rows: dict[str, list[dict[str, Any]]], used: set[str]
) -> None:
    """The rows of a table, those of files that are missing included: they are skipped by name when they are read."""
    column = table.path_column
    assert column is not None
    others = {name: values for name, values in table.columns.items() if name not in (column, "audio")}
    stated = [split_word(str(value)) for value in others.get("split", ()) if value]
    has_splits = bool(stated) and None not in stated
    for place, path in enumerate(table.resolved(column)):
        if path is None:
            continue
        used.add(path)
        below = PurePath(os.path.relpath(path, folder))
        is_below = below.parts[:1] != ("..",)
        split = splits.of(below if is_below else PurePath(os.path.relpath(table.path, folder)))
        if has_splits and (own := others["split"][place]):
            split = split_word(str(own)) or split
        row = {"audio": path, **{name: values[place] for name, values in others.items()}}
        rows.setdefault(split, []).append(row)


def _by_column(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def _parents(path: str) -> Iterable[str]:
    while (parent := os.path.dirname(path)) != path:
        yield parent
        path = parent


def _is_utf8(path: str) -> bool:
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
