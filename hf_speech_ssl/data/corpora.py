"""Where speech comes from: a Hub data set, a local folder or file, or the synthetic corpus, all as `datasets` objects.

The audio column always holds encoded audio (a path or the bytes of a file, never decoded), so that torchcodec and
ffmpeg are not needed: `hf_speech_ssl.data.audio` decodes it when a batch is made.
"""

import re
from collections.abc import Iterable
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

SpeechDataset: TypeAlias = "Dataset | IterableDataset"

_FILE_BUILDERS = {".parquet": "parquet", ".arrow": "arrow", ".tar": "webdataset"}
_HUB_ID = re.compile(r"\w[\w.-]*(/[\w.-]+)?")
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
        name_or_path: the id of a Hub data set; a local folder of audio files (`audiofolder`, with or without
            `metadata.csv`), of parquet files or made by `save_to_disk`; a parquet, arrow or tar file; or `synthetic`.
        config_name: the configuration of a Hub data set, or the options of `synthetic` as one string, such as
            "full" or "sentences=500,grammar=full,seed=1" (see `hf_speech_ssl.data.synthetic.parse_synthetic_options`).
        split: the split's name, or several joined by `+`; map-style data sets also take slices: `train[:10%]`.
        streaming: return an `IterableDataset` that reads while it is iterated.
        audio_column: the column with the audio.
        text_column: the column with the transcripts, if they are needed.
        revision: branch, tag or commit of a Hub data set.
        cache_dir: where `datasets` keeps what it downloads and prepares.
        token: for private Hub data sets.
        **synthetic_options: passed to `hf_speech_ssl.data.synthetic.build_synthetic`; refused for other corpora.

    Raises:
        FileNotFoundError: there is no such folder, file or Hub data set.
        ValueError: there is no such split or column; the message names those there are.
    """
    if synthetic_options and name_or_path != "synthetic":
        raise TypeError(f"{sorted(synthetic_options)} only apply to the corpus 'synthetic', not to {name_or_path!r}.")
    hub_options = {"revision": revision, "cache_dir": cache_dir, "token": token}
    parts = []
    for part in split.split("+"):
        dataset = _load_split(name_or_path, config_name, part.strip(), streaming, hub_options, synthetic_options)
        check_columns(dataset, [audio_column] if text_column is None else [audio_column, text_column], name_or_path)
        parts.append(keep_encoded(dataset, audio_column))
    return parts[0] if len(parts) == 1 else concatenate_datasets(parts)


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


def check_columns(dataset: SpeechDataset, columns: Iterable[str], name: str = "the data set") -> None:
    """Raise a ValueError that names the columns there are, unless all of `columns` are among them."""
    present = dataset.column_names or list(next(iter(dataset), {}))  # streams without features only show them so
    for column in columns:
        if column not in present:
            raise ValueError(f"{name} has no column {column!r}; its columns are {present}. Name one of them instead.")


def _load_split(
    name: str,
    config_name: str | None,
    split: str,
    streaming: bool,
    hub_options: dict[str, Any],
    synthetic_options: dict[str, Any],
) -> SpeechDataset:
    path = Path(name).expanduser()
    if name == "synthetic":
        dataset = _load_synthetic(split, config_name, hub_options["cache_dir"], synthetic_options)
    elif _is_saved(path):
        dataset = _load_saved(path, split)
    else:
        return _build(_find_builder(name, path, config_name, hub_options), name, split, streaming)
    return dataset.to_iterable_dataset(min(_STREAM_SHARDS, len(dataset))) if streaming else dataset


def _load_synthetic(split: str, config_name: str | None, cache_dir: str | None, options: dict[str, Any]) -> Dataset:
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
            raise ValueError(f"{path} is no data set: a folder or a file in {sorted(_FILE_BUILDERS)} is needed.")
        return load_dataset_builder(_FILE_BUILDERS[path.suffix], data_files=str(path), **hub_options)
    if not path.is_dir() and not _HUB_ID.fullmatch(name):
        raise FileNotFoundError(f"There is no folder or file {str(path)!r} (looked from {Path.cwd()}).")
    try:
        return load_dataset_builder(str(path) if path.is_dir() else name, config_name, **hub_options)
    except (FileNotFoundError, ConnectionError) as error:
        where = "holds no audio, parquet or arrow files" if path.is_dir() else "is no folder, nor found on the Hub"
        raise FileNotFoundError(f"{name!r} {where}: {error}") from error


def _build(builder: DatasetBuilder, name: str, split: str, streaming: bool) -> SpeechDataset:
    """`load_dataset` with audio features that are stored without torchcodec."""
    find_splits = builder._split_generators

    def find_splits_and_features(*args: Any, **kwargs: Any) -> Any:
        splits = find_splits(*args, **kwargs)  # folders of audio learn their features here, by listing the files
        features = builder.info.features or {}
        if any(isinstance(feature, Audio) for feature in features.values()):
            builder.info.features = Features(
                {column: EncodedAudio() if isinstance(f, Audio) else f for column, f in features.items()}
            )
        return splits

    builder._split_generators = find_splits_and_features
    if streaming:
        if hasattr(builder.config, "decode_num_threads"):
            builder.config.decode_num_threads = 0  # else folders on the Hub are decoded all the same, by torchcodec
        streams = builder.as_streaming_dataset()
        if split not in streams:
            raise _no_split(name, split, streams)
        return streams[split]
    builder.download_and_prepare()
    if _split_name(split) not in builder.info.splits:
        raise _no_split(name, split, builder.info.splits)
    return builder.as_dataset(split=split)


def _split_name(split: str) -> str:
    return split.split("[")[0]


def _no_split(name: str, split: str, splits: Iterable[Any]) -> ValueError:
    return ValueError(f"{name} has no split {split!r}; its splits are {[str(s) for s in splits]}.")
