r"""ABX error rate of frames, by fastabx (0.9, Python 3.12 or later): how often a phone is nearer to another phone.

    hf-speech-ssl features outputs/birq synthetic --split_name test --columns phones speaker_id \
        --layers 3 --output_dir frames
    pip install fastabx
    python examples/abx.py frames/test.parquet [--across_speakers] [--any_context] [--items phones.item]

The data set needs a column with phones and their times, `phones` (see `hf-speech-ssl probe --help`), and one with the
speaker. As in ZeroSpeech, what is compared are triphones in the same context, by angular distance along the best
alignment, at most 10 of a kind; with `--any_context` phones alone. It needs no more than pyarrow beside fastabx.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

HEADER = "#file onset offset #phone prev-phone next-phone speaker"
EDGE = "SIL"  # what stands beside the first and the last phone of a recording


def read_rows(file: Path, columns: list[str]) -> Iterator[dict[str, Any]]:
    """The rows of what `hf-speech-ssl features` wrote.

    Raises:
        SystemExit: a column is missing.
    """
    table = pq.ParquetFile(file)
    if missing := [name for name in columns if name not in table.schema_arrow.names]:
        raise SystemExit(
            f"{file} has no column {', '.join(missing)}; write it with --columns {' '.join(columns)}. It has: "
            f"{', '.join(table.schema_arrow.names)}."
        )
    for batch in table.iter_batches(batch_size=16):
        yield from batch.to_pylist()


def items_of(name: str, speaker: str, phones: Any, in_context: bool) -> list[tuple[float, float, str]]:
    """The items of a recording, phones between their neighbors or alone: where each begins and ends, and its line.

    Args:
        name: of the recording's file, without its ending.
        phones: a list of {"phone", "start", "end"} in seconds, or the same as JSON.
        in_context: whether an item reaches from the beginning of the phone before to the end of the phone after; the
            first and the last phone are no items then.
    """
    phones = json.loads(phones) if isinstance(phones, str) else phones or []
    names = [EDGE, *("".join(one["phone"].split()) or EDGE for one in phones), EDGE]
    items = []
    for place in range(1, len(phones) - 1) if in_context else range(len(phones)):
        onset = round(phones[place - in_context]["start"], 4)
        offset = round(phones[place + in_context]["end"], 4)
        before, phone, after = names[place : place + 3]
        items.append((onset, offset, f"{name} {onset:.4f} {offset:.4f} {phone} {before} {after} {speaker}"))
    return items


def write_files(rows: Iterator[dict[str, Any]], folder: Path, options: argparse.Namespace) -> tuple[int, int]:
    """Write a file of frames and one of their times for each recording, and the item file.

    Returns:
        Items that were written, and those left out since no frame has its middle in them.
    """
    for part in ("features", "times"):
        (folder / part).mkdir()
    lines, left_out = [], 0
    for row in rows:
        name = f"{row['index']:06d}"
        times = ((np.asarray(row["start_s"]) + np.asarray(row["end_s"])) / 2).round(4)
        np.save(folder / "features" / name, np.asarray(row["features"], dtype=np.float32))
        np.save(folder / "times" / name, times)
        speaker = "".join(str(row[options.speaker_column]).split())
        for onset, offset, line in items_of(name, speaker, row[options.phone_column], not options.any_context):
            if ((onset <= times) & (times <= offset)).any():
                lines.append(line)
            else:
                left_out += 1
    options.items.write_text("\n".join([HEADER, *lines]) + "\n", encoding="utf-8")
    return len(lines), left_out


def abx_error(folder: Path, options: argparse.Namespace) -> tuple[float, int]:
    """The error rate, from 0 to 1, where chance is 0.5, and of how many cells (pairs of phones) it is the mean."""
    import torch
    from fastabx import Dataset, Score, Subsampler, Task

    def load(file: Any) -> torch.Tensor:
        return torch.from_numpy(np.load(file))

    data = Dataset.from_item_with_times(
        options.items, folder / "features", folder / "times", feature_maker=load, time_maker=load, extension=".npy"
    )
    context = [] if options.any_context else ["prev-phone", "next-phone"]
    across = options.across_speakers
    by = context if across else [*context, "speaker"]
    sampler = Subsampler(options.max_size_group, options.max_x_across if across else None)
    task = Task(data, on="#phone", by=by or None, across=["speaker"] if across else None, subsampler=sampler)
    levels = [*([tuple(context)] if context else []), "speaker"]
    return Score(task, "angular").collapse(levels=levels), len(task)


def main() -> None:
    """Print the error rate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("frames", type=Path, help="SPLIT.parquet of hf-speech-ssl features")
    parser.add_argument("--phone_column", default="phones")
    parser.add_argument("--speaker_column", default="speaker_id")
    parser.add_argument("--across_speakers", action="store_true", help="X is of another speaker than A and B")
    parser.add_argument("--any_context", action="store_true", help="phones alone, whatever stands beside them")
    parser.add_argument("--max_size_group", type=int, default=10)
    parser.add_argument("--max_x_across", type=int, default=5)
    parser.add_argument("--items", type=Path, help="where to keep the item file")
    options = parser.parse_args()
    rows = read_rows(options.frames, [options.phone_column, options.speaker_column])
    with tempfile.TemporaryDirectory() as folder:
        options.items = options.items or Path(folder) / "phones.item"
        count, left_out = write_files(rows, Path(folder), options)
        error, cells = abx_error(Path(folder), options)
    print(
        f"ABX error rate {100 * error:.2f} %, chance is 50 % "
        f"({cells} cells of {count} items, {left_out} left out as too short)"
    )


if __name__ == "__main__":
    main()
