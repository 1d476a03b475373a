"""Tables that list audio files: csv, tsv, json lines and parquet, every text kept as it stands there."""

from __future__ import annotations

import codecs
import csv
import io
import json
import os
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import url2pathname

import pyarrow.parquet

from .audio_files import AUDIO_SUFFIXES
from .ffmpeg import FFMPEG_SUFFIXES
from .sound_file import is_remote

TABLE_SUFFIXES = frozenset((".csv", ".tsv", ".json", ".jsonl", ".parquet"))
# Columns with the path of a file, as audiofolder, NeMo, Common Voice and others call them.
PATH_COLUMNS = (
    "file_name audio_file_name audio_filepath audio_path audio_file audio file filename path wav_path wav "
    "wav_filename file_path filepath".split()
)
_FOLDERS = ("", "clips", "wavs", "wav", "audio", "audios", "data")  # that paths may be relative to, below the table


@dataclass(frozen=True)
class Table:
    """Rows of a file.

    Attributes:
        path: the file.
        columns: values by name, equally many; None where a row has none.
    """

    path: Path
    columns: dict[str, list[Any]]

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), []))

    @property
    def path_column(self) -> str | None:
        """The column that names the audio files, if one is called so."""
        by_name = {name.lower(): name for name in reversed(self.columns)}
        names = [by_name[name] for name in (*PATH_COLUMNS, *by_name) if name in by_name]
        return next((name for name in names if name.lower() in PATH_COLUMNS or name.endswith("_file_name")), None)

    def resolved(self, column: str) -> list[str | None]:
        """The paths of a column, those that are relative seen from the table or a usual folder beside it.

        A file that is not there by its very name is found by one that differs in case, in Unicode's composition of
        letters (which macOS changes), in white space around it or in an ending that is left out, if only one does.
        """
        values = [_plain_path(value) if isinstance(value, str) else None for value in self.columns[column]]
        relative = [value for value in values if value and not os.path.isabs(value) and not is_remote(value)]
        base = self.path.parent
        for name in _FOLDERS:
            if any((base / name / value).exists() for value in relative[:20]):
                base = base / name
                break
        # Joined with an absolute path, the folder falls away.
        near = _NearNames()
        return [
            None if not value else value if is_remote(value) else near.of(os.path.normpath(base / value))
            for value in values
        ]


class _NearNames:
    """Finds the file that a path may mean that leads to none."""

    def __init__(self) -> None:
        self._folders: dict[str, dict[str, list[str]]] = {}

    def of(self, path: str) -> str:
        """The path itself where there is something, or where not exactly one file is called nearly so."""
        if os.path.lexists(path):
            return path
        folder, name = os.path.split(path)
        if folder not in self._folders:
            by_name = self._folders.setdefault(folder, {})
            for present in os.listdir(folder) if os.path.isdir(folder) else ():
                stem, suffix = os.path.splitext(_near(present))
                by_name.setdefault(_near(present), []).append(present)
                if suffix in AUDIO_SUFFIXES | FFMPEG_SUFFIXES:
                    by_name.setdefault(stem, []).append(present)
        found = self._folders[folder].get(_near(name), [])
        return os.path.join(folder, found[0]) if len(found) == 1 else path


def _near(name: str) -> str:
    return unicodedata.normalize("NFC", name.strip()).casefold()


def _plain_path(value: str) -> str:
    """A path with slashes, without the `file://` of a URL."""
    return url2pathname(value.removeprefix("file://")) if value.startswith("file:///") else value.replace("\\", "/")


def read_table(path: Path) -> Table:
    """Read a table.

    Raises:
        ValueError: it is empty, no text in UTF-8, or a row does not fit its header; names the file and the line.
    """
    if path.suffix.lower() == ".parquet":
        return Table(path, pyarrow.parquet.read_table(path).to_pydict())
    text = _read_text(path)
    if not text.strip():
        raise ValueError(f"{path} is empty; write a line of column names and a line for every audio file.")
    if path.suffix.lower() in (".json", ".jsonl"):
        return Table(path, _columns(_json_rows(path, text)))
    return _separated(path, text)


def _read_text(path: Path) -> str:
    data = path.read_bytes()
    try:
        if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            return data.decode("utf-16")
        if (nulls := data[:400].count(0)) > len(data[:400]) // 4:  # UTF-16 without a mark at its beginning
            return data.decode("utf-16-le" if data[1:400:2].count(0) > nulls // 2 else "utf-16-be")
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ValueError(
            f"{path}: line {line} is not UTF-8 text (byte 0x{data[error.start]:02x}). Save the file as UTF-8, for "
            f"example with: iconv -f latin1 -t utf-8 OLD > NEW"
        ) from error


def _json_rows(path: Path, text: str) -> list[dict[str, Any]]:
    """One object a line, or one list of objects."""
    if text.lstrip().startswith("["):
        rows = json.loads(text, parse_constant=_no_value)
    else:
        rows = []
        for number, line in enumerate(text.split("\n"), start=1):
            try:
                rows += [json.loads(line, parse_constant=_no_value)] if line.strip() else []
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}: line {number} is no JSON object ({error}).") from error
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path}: a JSON object is needed for every audio file, with its path and transcript.")
    return rows


def _no_value(name: str) -> None:
    """NaN, as pandas writes for what is missing."""


def _columns(rows: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """Values by column; a column of several types, which no data set can hold, as text."""
    columns = {name: [row.get(name) for row in rows] for name in dict.fromkeys(name for row in rows for name in row)}
    for name, values in columns.items():
        kinds = {float if type(value) is int else type(value) for value in values if value is not None}
        if len(kinds) > 1:
            columns[name] = [value if value is None or isinstance(value, str) else str(value) for value in values]
    return columns


def _separated(path: Path, text: str) -> Table:
    header = text.split("\n", 1)[0]
    separator = max(",\t;|", key=header.count) if path.suffix.lower() == ".csv" else "\t"
    rows = _rows(text, separator)
    (_, names), *lines = rows
    if twice := [name for name, count in Counter(names).items() if name.strip() and count > 1]:
        raise ValueError(f"{path} has several columns {twice[0]!r}; give each a name of its own.")
    for number, row in lines:
        if any(row[len(names) :]):
            raise ValueError(
                f"{path}: line {number} has {len(row)} fields, the header has {len(names)} ({', '.join(names)}); "
                f'put double quotes around a text with "{separator}" in it.'
            )
    if not lines:
        raise ValueError(f"{path} has a header and no rows; write a line for every audio file.")
    padded = [[*row, *[None] * (len(names) - len(row))][: len(names)] for _, row in lines]
    return Table(path, {name.strip(): [row[place] for row in padded] for place, name in enumerate(names)})


def _rows(text: str, separator: str) -> list[tuple[int, list[str]]]:
    """The lines that are not empty, with their numbers.

    Tables separated by tabs have no quotes: a sentence may begin with one. In others a quote that is not closed as it
    should be would swallow lines, so that it stands for itself where all lines have the right number of fields then.
    """
    plain = [
        (number, line.rstrip("\r").split(separator))
        for number, line in enumerate(text.split("\n"), start=1)
        if line.strip()
    ]
    if separator == "\t":
        return plain
    csv.field_size_limit(1 << 30)
    try:
        return _quoted(text, separator, strict=True)
    except csv.Error:
        if all(len(row) == len(plain[0][1]) for _, row in plain):
            return plain
        return _quoted(text, separator, strict=False)


def _quoted(text: str, separator: str, strict: bool) -> list[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=strict)
    return [(reader.line_num, row) for row in reader if row]
