"""hf-speech-ssl features, hf-speech-ssl units: an encoder's frames, or units of them, with times, as data sets."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..options import FrameOptions, LoadingOptions, ReadingOptions, UnitOptions, argument, flag, required_flag
from ..paths import check_file, check_model_folder

if TYPE_CHECKING:
    from ..data.reading import UtteranceReader
    from ..extraction.writing import NpzWriter, ParquetWriter
    from ..probing.encoders import SpeechEncoder


@dataclass(frozen=True, kw_only=True)
class ExtractOptions:
    """Which model, and what is written where."""

    model_name_or_path: str = argument("folder or Hub id of an encoder, of this package or any other", "MODEL")
    output_dir: str = required_flag("folder to write to: SPLIT.parquet, or npz files in SPLIT/, and SPLIT.json")
    format: Literal["parquet", "npz"] = flag(
        "parquet", "one file that `datasets` reads, or a file of arrays for each recording"
    )
    columns: list[str] = flag([], "columns of the data set to keep, such as speaker_id and text")


def features(
    options: ExtractOptions, frame_options: FrameOptions, reading: ReadingOptions, loading: LoadingOptions
) -> dict[str, Any]:
    """Write the frames of a layer, or of an average of layers, with their times.

    Returns:
        What SPLIT.json holds: the model, its layers, counts of recordings, frames and what was skipped.

    Raises:
        OSError, ValueError: no such model, data set, split, column, layer or chunk.
    """
    encoder, reader = _open(options, reading, loading)
    from ..extraction.frames import FrameExtractor
    from ..extraction.writing import write_rows

    extract = FrameExtractor(encoder, frame_options)
    with _writer(options, reader, reading.split_name) as writer:
        counts = write_rows(reader, writer, "features", extract)
    return _report(options, reading, {**asdict(frame_options), "layers": extract.layers, **counts})


def units(
    options: ExtractOptions,
    unit_options: UnitOptions,
    frame_options: FrameOptions,
    reading: ReadingOptions,
    loading: LoadingOptions,
) -> dict[str, Any]:
    """Write the units of a split's recordings with their times, and kmeans.npz where clusters were fitted.

    Returns:
        What SPLIT.json holds: the model, where the units come from, how many occur, counts as those of `features`.

    Raises:
        OSError, ValueError: as [`features`]; or the model has no such labels, or there are fewer frames than units.
        ImportError: k-means needs scikit-learn, which is not installed.
    """
    check_file(unit_options.kmeans_path)
    if unit_options.labels is not None and frame_options != FrameOptions():
        raise ValueError(
            "Labels are made of whole recordings and of no layer: leave --layers, --chunk_duration_ms and "
            "--window_seconds out, or --labels."
        )
    encoder, reader = _open(options, reading, loading)
    from ..extraction.frames import FrameExtractor
    from ..extraction.units import ClusterUnits, LabelUnits, fit_clusters
    from ..extraction.writing import write_rows

    extract: ClusterUnits | LabelUnits
    if unit_options.labels is not None:
        extract = LabelUnits(encoder, unit_options.labels)
    else:
        frames = FrameExtractor(encoder, frame_options)
        clusters = fit_clusters(reader, frames, unit_options)
        clusters.save(Path(options.output_dir) / "kmeans.npz")
        extract = ClusterUnits(frames, clusters)
    with _writer(options, reader, reading.split_name) as writer:
        counts = write_rows(reader, writer, "units", extract, unit_options.deduplicate)
    return _report(options, reading, {**extract.description, "deduplicated": unit_options.deduplicate, **counts})


def _open(
    options: ExtractOptions, reading: ReadingOptions, loading: LoadingOptions
) -> tuple[SpeechEncoder, UtteranceReader]:
    check_model_folder(options.model_name_or_path)
    Path(options.output_dir).mkdir(parents=True, exist_ok=True)
    from ..data.reading import UtteranceReader
    from ..probing.encoders import load_encoder

    reader = UtteranceReader(reading, columns=options.columns)
    return load_encoder(options.model_name_or_path, **asdict(loading)), reader


def _writer(options: ExtractOptions, reader: UtteranceReader, split: str) -> ParquetWriter | NpzWriter:
    from ..extraction.writing import NpzWriter, ParquetWriter

    folder = Path(options.output_dir)
    if options.format == "npz":
        return NpzWriter(folder / split)
    types = reader.dataset.features.arrow_schema
    return ParquetWriter(folder / f"{split}.parquet", {name: types.field(name).type for name in options.columns})


def _report(options: ExtractOptions, reading: ReadingOptions, facts: dict[str, Any]) -> dict[str, Any]:
    """Write and print what was done."""
    from ..json_files import shareable, write_json

    source = {"dataset": reading.dataset_name, "split": reading.split_name, "max_samples": reading.max_samples}
    report: dict[str, Any] = shareable({"model": options.model_name_or_path, **source, **facts})
    write_json(Path(options.output_dir) / f"{reading.split_name}.json", report)
    skipped = "".join(f", {count} skipped ({reason})" for reason, count in facts["skipped"].items())
    print(
        f"{facts['recordings']} recordings{skipped}, {facts['seconds']:.1f} s of audio, {facts['frames']} frames; "
        f"written to {options.output_dir}"
    )
    return report
