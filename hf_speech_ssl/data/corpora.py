"""Where speech comes from: a Hub data set, a local folder or file, or the synthetic corpus, all as `datasets` objects.

Folders of audio files and tables that list them are read by `folders` and `tables`, everything else by `datasets`.
The audio column always holds encoded audio (a path or the bytes of a file, never decoded), so that torchcodec is not
needed: `hf_speech_ssl.data.audio` decodes it when a batch is made.
"""

import errno
import glob
import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from datasets import (
    Audio,
    Dataset,
    DatasetBuilder,
    DatasetDict,
    Features,
    IterableDataset,
    ReadInstruction,
    Value,
    concatenate_datasets,
    load_dataset_builder,
    load_from_disk,
)
from datasets.config import HF_DATASETS_CACHE

from .audio_files import AUDIO_SUFFIXES, search_folder, walk_files
from .ffmpeg import FFMPEG_SUFFIXES
from .folders import SPLITS, CorpusReport, FolderCorpus, read_folder, split_word
from .tables import PATH_COLUMNS, TABLE_SUFFIXES, Table, read_table

SpeechDataset: TypeAlias = "Dataset | IterableDataset"

_FILE_BUILDERS = {".parquet": "parquet", ".arrow": "arrow", ".tar": "webdataset"}
_HUB_ID = re.compile(r"\w[\w.-]*(/[\w.-]+)?")
_CARD = re.DOTALL | re.MULTILINE
_STREAM_SHARDS = 64  # pieces that a saved data set is streamed in; their order is what differs between epochs


class EncodedAudio(Audio):
    """`Audio(decode=False)` that also stores audio without torchcodec.

    `datasets` imports torchcodec's encoder to store even the path of a file, as `audiofolder` and WebDataset do, so
    that without it such data sets cannot be loaded at all, decoded or not.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{**kwargs, "decode": False})

    def encode_example(self, value: Any) -> dict[str, Any]:
        """A path, the bytes of a file, or `{"path", "bytes"}` -> `{"path", "bytes"}`."""
        if isinstance(value, dict):
            return {"bytes": value.get("bytes"), "path": value.get("path")}
        if isinstance(value, (bytes, bytearray)):
            return {"bytes": bytes(value), "path": None}
        return {"bytes": None, "path": str(value)}


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
    token: str | bool | None = None,
    **synthetic_options: Any,
) -> SpeechDataset:
    """Load one split of a corpus, its audio column left encoded.

    Args:
        name_or_path: the id of a Hub data set; a local folder of audio files (with or without `metadata.csv`), of
            parquet files or made by `save_to_disk`; a parquet, arrow or tar file; a table that lists audio files
            (csv, tsv, json lines); or `synthetic`.
        config_name: the configuration of a Hub data set, or the options of `synthetic` as one string, such as
            "full" or "sentences=500,grammar=full,seed=1" (see `hf_speech_ssl.data.synthetic.parse_synthetic_options`).
        split: the split's name, or several joined by `+`; map-style data sets also take slices: `train[:10%]`.
            In a folder of audio files, files belong to the split that a folder above them is called, see `folders`.
        streaming: return an `IterableDataset` that reads while it is iterated.
        audio_column: the column with the audio.
        text_column: the column with the transcripts, if they are needed; "json.text" is the entry `text` of a column.
        revision: branch, tag or commit of a Hub data set.
        cache_dir: where `datasets` keeps what it downloads and prepares.
        token: for private Hub data sets.
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
        token=token,
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
    named = {name: options.pop(name, None) for name in ("config_name", "streaming", "revision", "cache_dir", "token")}
    if options and name_or_path != "synthetic":
        raise TypeError(f"{sorted(options)} only apply to the corpus 'synthetic', not to {name_or_path!r}.")
    source = _open(name_or_path, named, options, audio_column)
    parts = []
    for part in split.split("+"):
        dataset = source.load(part.strip(), bool(named["streaming"]))
        if isinstance(dataset, Dataset) and len(dataset) == 0:
            raise ValueError(f"The split {part.strip()!r} of {name_or_path} is empty: it has no rows.")
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
    elif (path.is_dir() and not _is_packed(path)) and (folder := read_folder(path)):
        hint = f" It was read as a folder of audio files.{''.join(f' {remark}.' for remark in folder.remarks)}"
        return _Source(_as_source(partial(_load_folder, folder)), hint, partial(_report_folder, folder))
    elif tables := _find_tables(path):
        hint = f" The columns are those of {', '.join(str(one.path) for one in list(tables.values())[:3])}."
        load = partial(_load_table, name, tables, audio_column)
    else:
        hub_options = {option: named[option] for option in ("revision", "cache_dir", "token")}
        builder = _find_builder(name, path, named["config_name"], hub_options)
        hint = f" It was read by the builder {builder.dataset_name!r} of `datasets`.{_unused(path, builder)}"
        return _Source(partial(_build, builder, name), hint, partial(_report_rows, name))
    return _Source(_as_source(load), hint, partial(_report_rows, name))


def _as_source(load: Callable[[str], Dataset]) -> Callable[[str, bool], SpeechDataset]:
    """A loader of map-style data sets that also gives streams."""

    def load_either(split: str, streaming: bool) -> SpeechDataset:
        dataset = load(split)
        return dataset.to_iterable_dataset(max(1, min(_STREAM_SHARDS, len(dataset)))) if streaming else dataset

    return load_either


def _report_rows(name: str, split: str, dataset: SpeechDataset) -> CorpusReport:
    rows = len(dataset) if isinstance(dataset, Dataset) else -1
    return CorpusReport(name, split, rows, rows)


def _report_folder(folder: FolderCorpus, split: str, dataset: SpeechDataset) -> CorpusReport:
    names = [_split_name(part.strip()) for part in split.split("+")]
    rows = len(dataset) if isinstance(dataset, Dataset) else sum(len(folder.columns[name]["audio"]) for name in names)
    return folder.report("+".join(names), rows)


def _is_packed(path: Path) -> bool:
    """Whether a folder is a data set in a few large files, or says itself how `datasets` is to read it."""
    card = path / "README.md"
    if card.is_file() and re.match(
        r"---\n.*^(configs|dataset_info):.*^---$", card.read_text("utf-8", "replace"), _CARD
    ):
        return True
    packed, files = set(_FILE_BUILDERS) | {".zip", ".tgz", ".gz"}, Counter[bool]()
    for below in walk_files(path):
        is_packed = below.suffix in packed and below.stem != "metadata"
        if is_packed or below.suffix.lower() in AUDIO_SUFFIXES | FFMPEG_SUFFIXES:
            with suppress(OSError):
                files[is_packed] += (path / below).stat().st_size
    return files[True] > files[False]


def _find_tables(path: Path) -> dict[str, Table]:
    """The tables that list audio files elsewhere, by the split that they are called after; a file alone is "train"."""
    suffixes = TABLE_SUFFIXES - {".parquet"}
    if path.is_file():
        return {"train": read_table(path)} if path.suffix.lower() in suffixes else {}
    if not path.is_dir() or _is_packed(path):
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
    own = _split_name(split)
    if own not in tables:
        raise _no_split(name, own, tables)
    table = tables[own]
    columns = dict(table.columns)
    for column in columns:
        if column in (*PATH_COLUMNS, audio_column) and any(isinstance(value, str) for value in columns[column]):
            columns[column] = table.resolved(column)
    if "audio" not in columns and table.path_column is not None:
        columns["audio"] = columns[table.path_column]
    return _select(_from_columns(columns), own, split)


def _load_folder(folder: FolderCorpus, split: str) -> Dataset:
    name = _split_name(split)
    if name not in folder.columns:
        raise _no_split(folder.name, name, folder.columns, "".join(f" {remark}." for remark in folder.remarks))
    return _select(_from_columns(folder.columns[name]), name, split)


def _from_columns(columns: dict[str, list[Any]]) -> Dataset:
    dataset = Dataset.from_dict(columns)
    empty = [column for column, feature in dataset.features.items() if feature == Value("null")]
    for column in empty:
        dataset = dataset.cast_column(column, Value("string"))
    return dataset


def _load_synthetic(config_name: str | None, cache_dir: str | None, options: dict[str, Any], split: str) -> Dataset:
    from .synthetic import build_synthetic, parse_synthetic_options  # needs espeak-ng, which other corpora do not

    name = _split_name(split)
    options = {**parse_synthetic_options(config_name, name), **options}
    if cache_dir is not None:
        options = {**options, "cache_dir": cache_dir}
    return _select(build_synthetic(split=name, **options), name, split)


def _is_saved(path: Path) -> bool:
    return (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()


def _load_saved(path: Path, split: str) -> Dataset:
    saved = load_from_disk(str(path))
    name = _split_name(split)
    if isinstance(saved, DatasetDict):
        if name not in saved:
            raise _no_split(str(path), name, saved)
        return _select(saved[name], name, split)
    own_name = str(saved.split or "train")
    if name not in (own_name, "train"):  # one data set saved alone is asked for by its own name or as "train"
        raise _no_split(str(path), name, [own_name])
    return _select(saved, name, split)


def _select(dataset: Dataset, name: str, split: str) -> Dataset:
    """Apply the slice of `train[:10%]`; without one, the data set itself."""
    if split == name:
        return dataset
    (part,) = ReadInstruction.from_spec(split).to_absolute({name: len(dataset)})
    return dataset.select(range(part.from_ or 0, len(dataset) if part.to is None else part.to))


def _find_builder(name: str, path: Path, config_name: str | None, hub_options: dict[str, Any]) -> DatasetBuilder:
    if path.is_file():
        if path.suffix not in _FILE_BUILDERS:
            kinds = sorted({*_FILE_BUILDERS, *TABLE_SUFFIXES})
            raise ValueError(f"{path} is no data set: a folder or a file in {kinds} is needed.")
        files = str(_plain_link(path.parent, hub_options["cache_dir"]) / path.name)
        return _loaded(_FILE_BUILDERS[path.suffix], data_files=glob.escape(files), **hub_options)
    if not path.is_dir() and not _HUB_ID.fullmatch(name):
        raise FileNotFoundError(f"There is no folder or file {str(path)!r} (looked from {Path.cwd()}).")
    try:
        if path.is_dir() and not _is_plain(path.resolve()):
            return _builder_of_files(path, hub_options)
        return _loaded(str(path.resolve()) if path.is_dir() else name, config_name, **hub_options)
    except (FileNotFoundError, ConnectionError) as error:
        where = "holds no audio, parquet or arrow files" if path.is_dir() else "is no folder, nor found on the Hub"
        raise FileNotFoundError(f"{name!r} {where}: {error}") from error


def _loaded(*args: Any, **options: Any) -> DatasetBuilder:
    with _names_cache(options["cache_dir"]):
        return load_dataset_builder(*args, **options)


@contextmanager
def _names_cache(cache_dir: str | None) -> Iterator[None]:
    """Add the way out to the error of a cache folder that cannot be written."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC):
            raise
        raise OSError(
            f"`datasets` cannot write to its cache, {cache_dir or HF_DATASETS_CACHE} ({error}). Name a folder that "
            f"can be written with --dataset_cache_dir."
        ) from error


def _is_plain(path: Path) -> bool:
    """Whether `datasets` takes a path for itself: brackets and stars are patterns to it, and `::` joins URLs."""
    return not glob.has_magic(str(path)) and "::" not in str(path)


def _plain_link(folder: Path, cache_dir: str | None) -> Path:
    """A way to a folder that `datasets` can follow: itself, or a link in the cache."""
    folder = folder.resolve()
    if _is_plain(folder):
        return folder
    link = Path(cache_dir or HF_DATASETS_CACHE) / "links" / hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
    with _names_cache(cache_dir):
        link.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            link.symlink_to(folder)
    return link


def _builder_of_files(path: Path, hub_options: dict[str, Any]) -> DatasetBuilder:
    """The packed files of a folder whose path `datasets` cannot search, by the split words in their names."""
    link = _plain_link(path, hub_options["cache_dir"])
    files = [below for below in sorted(walk_files(path)) if below.suffix in _FILE_BUILDERS]
    if not files:
        raise FileNotFoundError(f"there are only files of other kinds in {path}")
    suffix = Counter(below.suffix for below in files).most_common(1)[0][0]
    by_split: dict[str, list[str]] = {}
    for below in files:
        if below.suffix == suffix:
            words = filter(None, map(split_word, below.parts))
            by_split.setdefault(next(words, "train"), []).append(glob.escape(str(link / below)))
    return _loaded(_FILE_BUILDERS[suffix], data_files=by_split, **hub_options)


def _unused(path: Path, builder: DatasetBuilder) -> str:
    """What lies in a folder beside the files that a builder reads."""
    if not path.is_dir():
        return ""
    found = search_folder(path)
    return f" {len(found.files)} audio files lie there unused." if found.files else ""


def _build(builder: DatasetBuilder, name: str, split: str, streaming: bool) -> SpeechDataset:
    """`load_dataset` with audio features that are stored without torchcodec."""
    _store_encoded(builder)
    if streaming:
        if hasattr(builder.config, "decode_num_threads"):
            builder.config.decode_num_threads = 0  # else folders on the Hub are decoded all the same, by torchcodec
        streams = builder.as_streaming_dataset()
        if split not in streams:
            raise _no_split(name, split, streams)
        return streams[split]
    with _names_cache(builder.cache_dir):
        builder.download_and_prepare()
    if _split_name(split) not in builder.info.splits:
        raise _no_split(name, split, builder.info.splits)
    return builder.as_dataset(split=split)


def _store_encoded(builder: DatasetBuilder) -> None:
    if isinstance(builder._split_generators, _FindsSplits):
        return
    builder._split_generators = _FindsSplits(builder, builder._split_generators)


@dataclass(frozen=True)
class _FindsSplits:
    """Replaces a builder's way to its splits, at whose end its features are known."""

    builder: DatasetBuilder
    find_splits: Callable[..., Any]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        splits = self.find_splits(*args, **kwargs)  # folders of audio learn their features here, by listing the files
        features = self.builder.info.features or {}
        if any(isinstance(feature, Audio) for feature in features.values()):
            self.builder.info.features = Features(
                {column: EncodedAudio() if isinstance(f, Audio) else f for column, f in features.items()}
            )
        return splits


def _split_name(split: str) -> str:
    return split.split("[")[0]


def _no_split(name: str, split: str, splits: Iterable[Any], hint: str = "") -> ValueError:
    return ValueError(f"{name} has no split {split!r}; its splits are {sorted(map(str, splits))}.{hint}")
