"""What `datasets` reads by itself: the Hub, and local files of parquet, arrow and tar."""

import errno
import glob
import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from datasets import (
    Audio,
    Dataset,
    DatasetBuilder,
    Features,
    IterableDataset,
    ReadInstruction,
    load_dataset_builder,
)
from datasets.config import HF_DATASETS_CACHE

from .audio_files import AUDIO_SUFFIXES, search_folder, walk_files
from .ffmpeg import FFMPEG_SUFFIXES
from .folders import split_word
from .tables import TABLE_SUFFIXES

SpeechDataset: TypeAlias = "Dataset | IterableDataset"

_FILE_BUILDERS = {".parquet": "parquet", ".arrow": "arrow", ".tar": "webdataset"}
_HUB_ID = re.compile(r"\w[\w.-]*(/[\w.-]+)?")
_CARD = re.DOTALL | re.MULTILINE


class EncodedAudio(Audio):  # type: ignore[misc]  # `datasets` has no types
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


def is_packed(path: Path) -> bool:
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


def find_builder(name: str, path: Path, config_name: str | None, hub_options: dict[str, Any]) -> DatasetBuilder:
    """Find the builder of a file, a folder or a Hub data set; raises FileNotFoundError if there is none."""
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


def unused_audio(path: Path) -> list[str]:
    """A remark about audio files in a folder of which a builder reads other files."""
    number = search_folder(path).num_audio if path.is_dir() else 0
    return [f"{number} audio files lie there unused"] if number else []


def build_split(builder: DatasetBuilder, name: str, split: str, streaming: bool) -> SpeechDataset:
    """`load_dataset` with audio features that are stored without torchcodec."""
    _store_encoded(builder)
    if streaming:
        if hasattr(builder.config, "decode_num_threads"):
            builder.config.decode_num_threads = 0  # else folders on the Hub are decoded all the same, by torchcodec
        streams = builder.as_streaming_dataset()
        if split not in streams:
            raise no_split(name, split, streams)
        return streams[split]
    with _names_cache(builder.cache_dir):
        builder.download_and_prepare()
    if split_name(split) not in builder.info.splits:
        raise no_split(name, split, builder.info.splits)
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


def select_part(dataset: Dataset, name: str, split: str) -> Dataset:
    """Apply the slice of `train[:10%]`; without one, the data set itself."""
    if split == name:
        return dataset
    (part,) = ReadInstruction.from_spec(split).to_absolute({name: len(dataset)})
    return dataset.select(range(part.from_ or 0, len(dataset) if part.to is None else part.to))


def split_name(split: str) -> str:
    """The name in front of a slice: `train` of `train[:10%]`."""
    return split.split("[", maxsplit=1)[0]


def no_split(name: str, split: str, splits: Iterable[Any], hint: str = "") -> ValueError:
    """The error of a split that does not exist, with those that do."""
    return ValueError(f"{name} has no split {split!r}; its splits are {sorted(map(str, splits))}.{hint}")


def no_rows(name: str, split: str) -> ValueError:
    """The error of a split without rows."""
    return ValueError(f"The split {split!r} of {name} is empty: it has no rows.")
