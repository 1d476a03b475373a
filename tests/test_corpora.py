"""Corpora: folders of every kind, map-style and streamed, without a decoder of `datasets`."""

import io
import json
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from datasets import Audio, Dataset, DatasetDict, IterableDataset, Value

from hf_speech_ssl.data.audio import SAMPLING_RATE, load_audio
from hf_speech_ssl.data.batching import SpeechBatches
from hf_speech_ssl.data.corpora import EncodedAudio, keep_encoded, load_corpus

COUNTS = {"train": 5, "test": 2}


@pytest.fixture(autouse=True)
def without_torchcodec(monkeypatch) -> None:
    """Importing torchcodec fails, also where it is installed."""
    for module in ("torchcodec", "torchcodec.encoders", "torchcodec.decoders"):
        monkeypatch.setitem(sys.modules, module, None)


def tone(number: int) -> np.ndarray:
    return 0.5 * np.sin(np.arange(4000 + 400 * number) * (number + 1) / 10)


def cell(number: int) -> dict[str, bytes | str]:
    buffer = io.BytesIO()
    soundfile.write(buffer, tone(number), SAMPLING_RATE, format="FLAC")
    return {"path": f"{number}.flac", "bytes": buffer.getvalue()}


def table(count: int) -> Dataset:
    return Dataset.from_dict({"audio": [cell(i) for i in range(count)], "text": [f"text {i}" for i in range(count)]})


def make_audio_folder(folder: Path, metadata: bool) -> None:
    for split, count in COUNTS.items():
        (folder / split).mkdir(parents=True)
        for number in range(count):
            (folder / split / f"{number}.flac").write_bytes(cell(number)["bytes"])
        if metadata:
            lines = ["file_name,text", *(f"{number}.flac,text {number}" for number in range(count))]
            (folder / split / "metadata.csv").write_text("\n".join(lines))


def make_parquet(folder: Path) -> None:
    for split, count in COUNTS.items():
        table(count).to_parquet(str(folder / f"{split}.parquet"))


def make_parquet_with_audio_features(folder: Path) -> None:
    for split, count in COUNTS.items():
        table(count).cast_column("audio", Audio(sampling_rate=16_000)).to_parquet(str(folder / f"{split}.parquet"))


def make_saved(folder: Path) -> None:
    DatasetDict({split: table(count) for split, count in COUNTS.items()}).save_to_disk(str(folder / "saved"))
    for part in (folder / "saved").iterdir():
        part.rename(folder / part.name)


KINDS = {
    "audio folder": lambda folder: make_audio_folder(folder, metadata=True),
    "parquet": make_parquet,
    "parquet with audio features": make_parquet_with_audio_features,
    "saved": make_saved,
}


@pytest.fixture(params=KINDS)
def corpus(request, tmp_path) -> Path:
    (tmp_path / "corpus").mkdir()
    KINDS[request.param](tmp_path / "corpus")
    return tmp_path / "corpus"


@pytest.mark.parametrize("streaming", [False, True])
def test_every_kind_of_folder_gives_encoded_audio_with_texts(corpus: Path, tmp_path: Path, streaming: bool) -> None:
    for split, count in COUNTS.items():
        dataset = load_corpus(
            str(corpus), split=split, streaming=streaming, text_column="text", cache_dir=str(tmp_path / "cache")
        )
        assert isinstance(dataset, IterableDataset if streaming else Dataset)
        assert isinstance(dataset.features["audio"], Audio) and not dataset.features["audio"].decode
        rows = sorted(dataset, key=lambda row: row["text"])
        assert [row["text"] for row in rows] == [f"text {number}" for number in range(count)]
        for number, row in enumerate(rows):
            np.testing.assert_allclose(load_audio(row["audio"]), tone(number), atol=1e-4)


@pytest.mark.parametrize("streaming", [False, True])
def test_every_kind_of_folder_makes_batches(corpus: Path, tmp_path: Path, streaming: bool) -> None:
    dataset = load_corpus(str(corpus), streaming=streaming, cache_dir=str(tmp_path / "cache"))
    batches = SpeechBatches(dataset, batch_seconds=1.0, text_column="text", window_batches=1)
    run = list(batches.epoch(0))
    assert sorted(text for batch in run for text in batch.texts) == [f"text {number}" for number in range(5)]
    rest = batches.epoch(0, run[0].position)
    assert [batch.texts for batch in rest] == [batch.texts for batch in run[1:]]
    json.dumps(run[0].position.stream)
    assert not batches.skipped


@pytest.mark.parametrize("streaming", [False, True])
def test_a_folder_of_audio_without_metadata(tmp_path: Path, streaming: bool) -> None:
    make_audio_folder(tmp_path / "corpus", metadata=False)
    dataset = load_corpus(str(tmp_path / "corpus"), streaming=streaming, cache_dir=str(tmp_path / "cache"))
    assert sorted(Path(row["audio"]["path"]).name for row in dataset) == [f"{number}.flac" for number in range(5)]


@pytest.mark.parametrize("streaming", [False, True])
def test_single_files(tmp_path: Path, streaming: bool) -> None:
    make_parquet(tmp_path)
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        for number in range(3):
            for suffix, data in (("flac", cell(number)["bytes"]), ("txt", f"text {number}".encode())):
                member = tarfile.TarInfo(f"{number}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    options = {"streaming": streaming, "cache_dir": str(tmp_path / "cache")}
    assert len(list(load_corpus(str(tmp_path / "train.parquet"), **options))) == 5
    rows = list(load_corpus(str(tmp_path / "shard.tar"), audio_column="flac", text_column="txt", **options))
    assert [row["txt"] for row in rows] == ["text 0", "text 1", "text 2"]
    np.testing.assert_allclose(load_audio(rows[2]["flac"]), tone(2), atol=1e-4)


def test_parts_and_sums_of_splits(corpus: Path, tmp_path: Path) -> None:
    options = {"cache_dir": str(tmp_path / "cache")}
    assert load_corpus(str(corpus), split="train[1:3]", **options)["text"][:] == ["text 1", "text 2"]
    assert load_corpus(str(corpus), split="train[-2:]", **options)["text"][:] == ["text 3", "text 4"]
    assert len(load_corpus(str(corpus), split="train[:60%] + test", **options)) == 5
    assert len(list(load_corpus(str(corpus), split="train+test", streaming=True, **options))) == 7


@pytest.mark.parametrize("streaming", [False, True])
def test_errors_name_what_there_is(corpus: Path, tmp_path: Path, streaming: bool) -> None:
    options = {"streaming": streaming, "cache_dir": str(tmp_path / "cache")}
    with pytest.raises(ValueError, match="no split 'dev'; its splits are .*test"):
        load_corpus(str(corpus), split="dev", **options)
    with pytest.raises(ValueError, match="no column 'sentence'; its columns are .*audio.*text"):
        load_corpus(str(corpus), text_column="sentence", **options)
    with pytest.raises(ValueError, match="no column 'speech'"):
        load_corpus(str(corpus), audio_column="speech", **options)
    with pytest.raises(TypeError, match="seed.* only apply to the corpus 'synthetic'"):
        load_corpus(str(corpus), seed=1, **options)


def test_missing_corpora(tmp_path: Path) -> None:
    for name in (tmp_path / "none", "./none", "~/none/at/all", "some/path/to/none"):
        with pytest.raises(FileNotFoundError, match="no folder or file"):
            load_corpus(str(name))
    with pytest.raises(FileNotFoundError, match="is no folder, nor found on the Hub"):
        load_corpus("nobody/nothing", cache_dir=str(tmp_path / "cache"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no audio"):
        load_corpus(str(tmp_path / "empty"))
    (tmp_path / "notes.txt").write_text("notes")
    with pytest.raises(ValueError, match="is no data set"):
        load_corpus(str(tmp_path / "notes.txt"))


def test_one_saved_data_set_is_its_own_split(tmp_path: Path) -> None:
    table(3).save_to_disk(str(tmp_path / "saved"))
    assert len(load_corpus(str(tmp_path / "saved"))) == 3
    with pytest.raises(ValueError, match=r"no split 'test'; its splits are \['train'\]"):
        load_corpus(str(tmp_path / "saved"), split="test")


def test_paths_and_bytes_become_audio_and_arrays_stay(tmp_path: Path) -> None:
    (tmp_path / "0.flac").write_bytes(cell(0)["bytes"])
    path = str(tmp_path / "0.flac")
    columns = [Dataset.from_dict({"audio": [value]}) for value in (path, cell(0)["bytes"], cell(0))]
    columns += [columns[0].cast_column("audio", Value("large_string"))]  # as pandas writes text
    columns += [columns[1].cast_column("audio", Value("large_binary"))]
    for column in columns:
        dataset = keep_encoded(column)
        assert isinstance(dataset.features["audio"], EncodedAudio)
        np.testing.assert_allclose(load_audio(dataset[0]["audio"]), tone(0), atol=1e-4)
    arrays = Dataset.from_dict({"audio": [{"array": tone(0), "sampling_rate": SAMPLING_RATE}]})
    (batch,) = SpeechBatches(arrays, batch_seconds=1.0).epoch(0)
    np.testing.assert_allclose(batch.waveforms[0].numpy(), tone(0), atol=1e-6)


def test_synthetic_speech(tmp_path: Path) -> None:
    pytest.importorskip("espeakng_loader")
    options = {"cache_dir": str(tmp_path), "num_sentences": 4, "text_column": "text"}
    dataset = load_corpus("synthetic", split="test", seed=3, **options)
    assert len(dataset) == 4 and all(len(load_audio(row["audio"])) > 4000 for row in dataset)
    assert load_corpus("synthetic", split="test[:2]", seed=3, **options)["text"][:] == dataset["text"][:2]
    assert len(list(load_corpus("synthetic", split="test", seed=3, streaming=True, **options))) == 4
