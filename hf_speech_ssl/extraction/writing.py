"""Data sets of frames and units: one parquet file that `datasets` reads, or an npz file for each recording."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from tqdm.auto import tqdm

from ..data.reading import UtteranceReader
from .frames import Extracted
from .units import join_runs

_GROUP_VALUES = 1 << 23  # numbers of arrays in a row group, 32 MiB of float32

Arrays = Mapping[str, NDArray[Any]]


class ParquetWriter:
    """Writes rows to a parquet file, which has its name only when it is complete. Use it with `with`.

    Columns: `index` (row of the source), `name`, those of the source that are kept, and the arrays.

    Args:
        file: its name.
        columns: types of the source's columns.
    """

    def __init__(self, file: Path, columns: Mapping[str, pa.DataType]):
        self.file, self.columns = file, dict(columns)
        self._rows: list[tuple[dict[str, Any], Arrays]] = []
        self._writer: pq.ParquetWriter | None = None
        self._size = 0

    def __enter__(self) -> ParquetWriter:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, kind: object, *details: object) -> None:
        if kind is None:
            self._flush()
        if self._writer is not None:
            self._writer.close()
            if kind is None:
                os.replace(self._partial, self.file)
            else:
                self._partial.unlink()

    @property
    def _partial(self) -> Path:
        return self.file.with_name(self.file.name + ".partial")

    def write(self, index: int, name: str, columns: Mapping[str, Any], arrays: Arrays) -> None:
        """Add a row; its arrays have one or two dimensions."""
        self._rows.append(({"index": index, "name": name, **columns}, arrays))
        self._size += sum(array.size for array in arrays.values())
        if self._size >= _GROUP_VALUES:
            self._flush()

    def _flush(self) -> None:
        if not self._rows:
            return
        plain = {"index": pa.int64(), "name": pa.string(), **self.columns}
        table = {key: pa.array([row[key] for row, _ in self._rows], kind) for key, kind in plain.items()}
        for key in self._rows[0][1]:
            table[key] = _lists([arrays[key] for _, arrays in self._rows])
        built = pa.table(table)
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._partial, built.schema)
        self._writer.write_table(built)
        self._rows, self._size = [], 0


class NpzWriter:
    """Writes every row to an npz file of its own, INDEX.npz. Use it with `with`; arguments as [`ParquetWriter`]'s."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __enter__(self) -> NpzWriter:
        self.folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *details: object) -> None:
        pass

    def write(self, index: int, name: str, columns: Mapping[str, Any], arrays: Arrays) -> None:
        """Write a row."""
        plain = {key: np.asarray("" if value is None else value) for key, value in columns.items()}
        np.savez(self.folder / f"{index:06d}.npz", index=index, name=name, **plain, **arrays)  # type: ignore[arg-type]


def _lists(arrays: list[NDArray[Any]]) -> pa.Array:
    """Arrays (T,) or (T, D) as lists of numbers, or of lists of D numbers."""
    joined = np.concatenate(arrays)
    values = pa.array(joined.reshape(-1))
    if joined.ndim == 2:
        values = pa.FixedSizeListArray.from_arrays(values, joined.shape[1])
    offsets = np.cumsum([0, *map(len, arrays)])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values)


def write_rows(
    reader: UtteranceReader,
    writer: ParquetWriter | NpzWriter,
    key: str,
    extract: Callable[[Sequence[NDArray[np.float32]]], list[Extracted]],
    deduplicate: bool = False,
) -> dict[str, Any]:
    """Write what is extracted from a split's recordings, with the times of its frames.

    Args:
        key: the column of what is extracted; `start_s` and `end_s` are those of its times.
        deduplicate: join neighboring frames of the same unit.

    Returns:
        Counts: "recordings", "seconds", "frames", "rows" (frames, or runs of them), "frame_rate" and "skipped".

    Raises:
        ValueError: no recording can be used.
    """
    counts: dict[str, Any] = {"recordings": 0, "seconds": 0.0, "frames": 0, "rows": 0}
    with tqdm(total=len(reader), desc=key, unit="recording", dynamic_ncols=True, disable=None) as bar:
        for batch in reader:
            extracted = extract([utterance.waveform for utterance in batch])
            for utterance, one in zip(batch, extracted, strict=True):
                values, starts, ends = one.values, one.times.starts, one.times.ends
                if not np.isfinite(values).all():
                    raise ValueError(f"{utterance.name}: the model gives NaN or infinite values, and cannot be used.")
                counts["frames"] += len(values)
                if deduplicate:
                    values, starts, ends = join_runs(values, starts, ends)
                arrays = {key: values, "start_s": starts.astype(np.float32), "end_s": ends.astype(np.float32)}
                writer.write(utterance.index, utterance.name, utterance.columns, arrays)
                counts["recordings"] += 1
                counts["seconds"] += utterance.seconds
                counts["rows"] += len(values)
                counts["frame_rate"] = one.times.frame_rate
            bar.update(len(batch))
    return {**counts, "skipped": reader.skipped.by_reason}
