"""Where speech comes from: a Hub data set, a local folder or file, or the synthetic corpus, all as `datasets` objects.

Folders of audio files and tables that list them are read by `folders` and `tables`, everything else by `datasets`.
The audio column always holds encoded audio (a path or the bytes of a file, never decoded), so that torchcodec is not
needed: `hf_speech_ssl.data.audio` decodes it when a batch is made.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Audio, Dataset, Value, concatenate_datasets, load_from_disk
from datasets.packaged_modules.audiofolder.audiofolder import AudioFolder

from .audio_files import walk_files
from .builders import (
    EncodedAudio,
    SpeechDataset,
    build_split,
    find_builder,
    is_packed,
    no_rows,
    no_split,
    select_part,
    split_name,
    unused_audio,
)
from .folders import SPLITS, CorpusReport, FolderCorpus, read_folder, split_word
from .tables import PATH_COLUMNS, TABLE_SUFFIXES, Table, read_table
from .translation_corpora import find_translation_corpus

__all__ = [
    "CorpusReport",
    "EncodedAudio",
    "SpeechDataset",
    "check_columns",
    "keep_encoded",
    "load_corpus",
    "load_corpus_with_report",
]

_STREAM_SHARDS = 64  # pieces that a saved data set is streamed in; their order is what differs between epochs


def load_corpus(
    name_or_path: str,
    *,
    config_name: str | None = None,
    split: str = "train",
    streaming: bool = False,
    audio_column: str = "audio",
    text_column: str | None = None,
    revision: str | None = None,
    cache_dir: str | None = None,
    **synthetic_options: Any,
) -> SpeechDataset:
    """Load one split of a corpus, its audio column left encoded.

    Args:
        name_or_path: the id of a Hub data set; a local folder of audio files (with or without `metadata.csv`), of
            parquet files or made by `save_to_disk`; a parquet, arrow or tar file; a table that lists audio files
            (csv, tsv, json lines); MuST-C or CoVoST as they are unpacked (see `translation_corpora`); or `synthetic`.
        config_name: the configuration of a Hub data set, or the options of `synthetic` as one string, such as
            "full" or "sentences=500,grammar=full,seed=1" (see `hf_speech_ssl.data.synthetic.parse_synthetic_options`).
        split: the split's name, or several joined by `+`; map-style data sets also take slices: `train[:10%]`.
            In a folder of audio files, files belong to the split that a folder above them is called, see `folders`.
        streaming: return an `IterableDataset` that reads while it is iterated.
        audio_column: the column with the audio.
        text_column: the column with the transcripts, if they are needed; "json.text" is the entry `text` of a column.
        revision: branch, tag or commit of a Hub data set.
        cache_dir: where `datasets` keeps what it downloads and prepares.
        **synthetic_options: passed to `hf_speech_ssl.data.synthetic.build_synthetic`; refused for other corpora.

    Raises:
        FileNotFoundError: there is no such folder, file or Hub data set.
        ValueError: there is no such split or column; the message names those there are.
    """
    return load_corpus_with_report(
        name_or_path,
        config_name=config_name,
        split=split,
        streaming=streaming,
        audio_column=audio_column,
        text_column=text_column,
        revision=revision,
        cache_dir=cache_dir,
        **synthetic_options,
    )[0]


def load_corpus_with_report(
    name_or_path: str,
    *,
    split: str = "train",
    audio_column: str = "audio",
    text_column: str | None = None,
    **options: Any,
) -> tuple[SpeechDataset, CorpusReport]:
    """`load_corpus`, and what of the corpus the split uses. The arguments are the same."""
    named = {name: options.pop(name, None) for name in ("config_name", "streaming", "revision", "cache_dir")}
    if options and name_or_path != "synthetic":
        raise TypeError(f"{sorted(options)} only apply to the corpus 'synthetic', not to {name_or_path!r}.")
    source = _open(name_or_path, named, options, audio_column)
    parts = []
    for part in split.split("+"):
        dataset = source.load(part.strip(), bool(named["streaming"]))
        if isinstance(dataset, Dataset) and len(dataset) == 0:
            raise no_rows(name_or_path, part.strip())
        columns = [audio_column] if text_column is None else [audio_column, text_column]
        check_columns(dataset, columns, name_or_path, source.hint)
        parts.append(keep_encoded(dataset, audio_column))
    dataset = parts[0] if len(parts) == 1 else concatenate_datasets(parts)
    return dataset, source.report(split, dataset)


def keep_encoded(dataset: SpeechDataset, audio_column: str = "audio") -> SpeechDataset:
    """Cast a column of paths, bytes or audio so that reading a row never decodes it; arrays stay as they are."""
    features = dataset.features
    feature = None if features is None else features.get(audio_column)
    holds_files = feature in (Value("string"), Value("large_string"), Value("binary"), Value("large_binary"))
    holds_cells = isinstance(feature, dict) and set(feature) <= {"path", "bytes"}
    if feature == Value("large_string"):  # as pandas and Polars write paths, which `datasets` casts to no audio
        dataset = dataset.cast_column(audio_column, Value("string"))
    if isinstance(feature, Audio) or holds_files or holds_cells:
        return dataset.cast_column(audio_column, EncodedAudio())
    return dataset


def check_columns(dataset: SpeechDataset, columns: Iterable[str], name: str = "the data set", hint: str = "") -> None:
    """Raise a ValueError that names the columns there are, unless all of `columns` are among them.

    Args:
        hint: how the columns came about, as the end of the message.
    """
    present = dataset.column_names or list(next(iter(dataset), {}))  # streams without features only show them so
    for column in columns:
        if column not in present and column.partition(".")[0] not in present:
            raise ValueError(f"{name} has no column {column!r}; its columns are {present}. Name one of them.{hint}")


@dataclass(frozen=True)
class _Source:
    """A corpus that has been found.

    Attributes:
        load: gives a split, as a stream or not.
        hint: how it was read, as the end of a message.
        report: what of the corpus the named split, loaded as this data set, uses.
    """

    load: Callable[[str, bool], SpeechDataset]
    hint: str
    report: Callable[[str, SpeechDataset], CorpusReport]


def _open(name: str, named: dict[str, Any], synthetic_options: dict[str, Any], audio_column: str) -> _Source:
    path, hint = Path(name).expanduser(), ""
    if name == "synthetic":
        load = partial(_load_synthetic, named["config_name"], named["cache_dir"], synthetic_options)
    elif _is_saved(path):
        load = partial(_load_saved, path)
    elif audio_column != "audio" and any(audio_column in one.columns for one in _find_tables(path).values()):
        load = partial(_load_table, name, _find_tables(path), audio_column)
    elif path.is_dir() and not is_packed(path) and (splits := find_translation_corpus(path)):
        hint = f" They were read from {', '.join(str(one.path) for one in list(splits.values())[:3])}."
        load = partial(_load_table, name, splits, audio_column)
    elif (path.is_dir() and not is_packed(path)) and (folder := read_folder(path)):
        hint = f" It was read as a folder of audio files.{''.join(f' {remark}.' for remark in folder.remarks)}"
        return _Source(_as_source(partial(_load_folder, folder)), hint, partial(_report_folder, folder))
    elif tables := _find_tables(path):
        hint = f" The columns are those of {', '.join(str(one.path) for one in list(tables.values())[:3])}."
        load = partial(_load_table, name, tables, audio_column)
    elif path.is_dir() and not is_packed(path):
        raise FileNotFoundError(
            f"{name!r} holds no audio, no table of audio files and no data set, but {_what_is_in(path)}."
        )
    else:
        hub_options = {option: named[option] for option in ("revision", "cache_dir")}
        builder = find_builder(name, path, named["config_name"], hub_options)
        remarks = () if isinstance(builder, AudioFolder) else tuple(unused_audio(path))
        hint = (
            f" It was read by the builder {type(builder).__name__} of `datasets`.{''.join(f' {r}.' for r in remarks)}"
        )
        return _Source(partial(build_split, builder, name), hint, partial(_report_rows, name, remarks))
    return _Source(_as_source(load), hint, partial(_report_rows, name, ()))


def _what_is_in(path: Path) -> str:
    counts = Counter(below.suffix or "without a suffix" for below in walk_files(path))
    return ", ".join(f"{count} {suffix}" for suffix, count in counts.most_common()) or "nothing"


def _as_source(load: Callable[[str], Dataset]) -> Callable[[str, bool], SpeechDataset]:
    """A loader of map-style data sets that also gives streams."""

    def load_either(split: str, streaming: bool) -> SpeechDataset:
        dataset = load(split)
        is_stream = streaming and len(dataset) > 0  # what is empty is refused as such
        return dataset.to_iterable_dataset(min(_STREAM_SHARDS, len(dataset))) if is_stream else dataset

    return load_either


def _report_rows(name: str, remarks: tuple[str, ...], split: str, dataset: SpeechDataset) -> CorpusReport:
    rows = len(dataset) if isinstance(dataset, Dataset) else None
    return CorpusReport(name, split, rows, rows, remarks=remarks)


def _report_folder(folder: FolderCorpus, split: str, dataset: SpeechDataset) -> CorpusReport:
    names = [split_name(part.strip()) for part in split.split("+")]
    rows = len(dataset) if isinstance(dataset, Dataset) else sum(len(folder.columns[name]["audio"]) for name in names)
    return folder.report("+".join(names), rows)


def _find_tables(path: Path) -> dict[str, Table]:
    """The tables that list audio files elsewhere, by the split that they are called after; a file alone is "train"."""
    suffixes = TABLE_SUFFIXES - {".parquet"}
    if path.is_file():
        return {"train": read_table(path)} if path.suffix.lower() in suffixes else {}
    if not path.is_dir() or is_packed(path):
        return {}
    by_split: dict[str, Table] = {}
    for below in sorted(walk_files(path)):
        if below.suffix.lower() in suffixes and (table := _listing(path / below)) is not None:
            by_split.setdefault(split_word(below.stem) or below.stem, table)
    if len(by_split) == 1:
        return {"train": next(iter(by_split.values()))} if by_split.keys().isdisjoint(SPLITS) else by_split
    return by_split


def _listing(path: Path) -> Table | None:
    """A table that lists audio files; other JSON files, such as settings, are none."""
    try:
        table = read_table(path)
    except ValueError:
        if path.suffix.lower() == ".json":
            return None
        raise
    return None if table.path_column is None else table


def _load_table(name: str, tables: dict[str, Table], audio_column: str, split: str) -> Dataset:
    own = split_name(split)
    if own not in tables:
        raise no_split(name, own, tables)
    table = tables[own]
    columns = dict(table.columns)
    for column, values in table.columns.items():
        if column in (*PATH_COLUMNS, audio_column) and any(isinstance(value, str) for value in values):
            columns[column] = table.resolved(column)
    if "audio" not in columns and table.path_column is not None:
        columns["audio"] = columns[table.path_column]
    return select_part(_from_columns(columns), own, split)


def _load_folder(folder: FolderCorpus, split: str) -> Dataset:
    name = split_name(split)
    if name not in folder.columns:
        raise no_split(folder.name, name, folder.columns, "".join(f" {remark}." for remark in folder.remarks))
    return select_part(_from_columns(folder.columns[name]), name, split)


def _from_columns(columns: dict[str, list[Any]]) -> Dataset:
    dataset = Dataset.from_dict(columns)
    empty = [column for column, feature in dataset.features.items() if feature == Value("null")]
    for column in empty:
        dataset = dataset.cast_column(column, Value("string"))
    return dataset


def _load_synthetic(config_name: str | None, cache_dir: str | None, options: dict[str, Any], split: str) -> Dataset:
    from .synthetic import build_synthetic, parse_synthetic_options  # needs espeak-ng, which other corpora do not

    name = split_name(split)
    options = {**parse_synthetic_options(config_name, name), **options}
    if cache_dir is not None:
        options = {**options, "cache_dir": cache_dir}
    return select_part(build_synthetic(split=name, **options), name, split)


def _is_saved(path: Path) -> bool:
    return (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()


def _load_saved(path: Path, split: str) -> Dataset:
    name = split_name(split)
    if (path / "dataset_dict.json").is_file():
        splits = json.loads((path / "dataset_dict.json").read_text("utf-8"))["splits"]
        if name not in splits:
            raise no_split(str(path), name, splits)
        return select_part(_from_disk(path / name, name), name, split)
    saved = _from_disk(path, name)
    own_name = str(saved.split or "train")
    if name not in (own_name, "train"):  # one data set saved alone is asked for by its own name or as "train"
        raise no_split(str(path), name, [own_name])
    return select_part(saved, name, split)


def _from_disk(path: Path, split: str) -> Dataset:
    try:
        saved = load_from_disk(str(path))
    except IndexError as error:  # `datasets` saves a data set without rows, and cannot read it
        raise no_rows(str(path), split) from error
    assert isinstance(saved, Dataset)
    return saved
