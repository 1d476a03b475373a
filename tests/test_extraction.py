"""Features and units as data sets: which frames, when they are, of recordings of any length, and what was skipped."""

import json

import numpy as np
import pytest
import soundfile
import torch
from datasets import load_dataset
from families import FAMILIES
from helpers import speech_like, tiny_birq
from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

from hf_speech_ssl import BiRQForPreTraining, SpeechSSLFeatureExtractor
from hf_speech_ssl.cli import main
from hf_speech_ssl.extraction.frames import FrameExtractor, FrameTimes, parse_layers
from hf_speech_ssl.extraction.units import Clusters, FrameSample, join_runs
from hf_speech_ssl.options import FrameOptions
from hf_speech_ssl.probing.encoders import load_encoder, pretraining_encoder

SECONDS = (0.9, 0.5, 1.3)
EXTRACTOR = SpeechSSLFeatureExtractor(mean=[6.0] * 80, variance=[2.0] * 80)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Three recordings of two speakers, and a file that is none."""
    folder = tmp_path_factory.mktemp("corpus")
    rows = ["file_name,speaker_id"]
    for number, seconds in enumerate(SECONDS):
        soundfile.write(folder / f"{number}.wav", speech_like(seconds, number), 16_000, subtype="FLOAT")
        rows.append(f"{number}.wav,{'ab'[number % 2]}")
    (folder / "broken.wav").write_bytes(b"RIFF nothing")
    (folder / "metadata.csv").write_text("\n".join([*rows, "broken.wav,c"]))
    return folder


@pytest.fixture(scope="module")
def birq(tmp_path_factory):
    """A pretraining checkpoint with two kinds of labels."""
    folder = tmp_path_factory.mktemp("birq")
    torch.manual_seed(5)
    BiRQForPreTraining(tiny_birq()).save_pretrained(folder)
    EXTRACTOR.save_pretrained(folder)
    return folder


def build(family: str, **overrides):
    return pretraining_encoder(FAMILIES[family].build("pretraining", **overrides), EXTRACTOR)


def extract(encoder, *seconds: float, **options) -> list[np.ndarray]:
    waves = [speech_like(one, number) for number, one in enumerate(seconds)]
    return [one.values for one in FrameExtractor(encoder, FrameOptions(**options))(waves)]


def rows(folder, split: str = "train") -> list[dict]:
    dataset = load_dataset("parquet", data_files=str(folder / f"{split}.parquet"), cache_dir=str(folder / "cache"))
    return list(dataset["train"].sort("index"))


def test_features_come_back_as_a_data_set(corpus, birq, tmp_path, capsys):
    command = ["features", str(birq), str(corpus), "--output_dir", str(tmp_path), "--layers", "1", "3"]
    assert main([*command, "--columns", "speaker_id"]) == 0
    found = rows(tmp_path)
    assert [(row["index"], row["speaker_id"]) for row in found] == [(0, "a"), (1, "b"), (2, "a")]
    encoder = load_encoder(str(birq), device="cpu")
    for row, seconds, number in zip(found, SECONDS, range(3), strict=True):
        with torch.inference_mode():
            [alone] = encoder([speech_like(seconds, number)])
        wanted = (alone.layers[1] + alone.layers[3]) / 2
        np.testing.assert_allclose(row["features"], wanted, atol=1e-5)
        assert row["name"].endswith(f"{number}.wav")
        centers = (np.array(row["start_s"]) + row["end_s"]) / 2
        np.testing.assert_allclose(centers, 0.0175 + 0.02 * np.arange(len(wanted)), atol=1e-6)
        assert row["start_s"][1:] == row["end_s"][:-1]
    report = json.loads((tmp_path / "train.json").read_text())
    assert report["layers"] == [1, 3] and report["frame_rate"] == 50
    assert (report["recordings"], sum(report["skipped"].values())) == (3, 1)
    assert report["frames"] == sum(len(row["features"]) for row in found)
    assert report["seconds"] == pytest.approx(sum(SECONDS))
    assert "3 recordings, 1 skipped (not audio)" in capsys.readouterr().out


def test_arrays_of_each_recording(corpus, birq, tmp_path):
    command = ["features", str(birq), str(corpus), "--output_dir", str(tmp_path), "--format", "npz"]
    assert main([*command, "--columns", "speaker_id"]) == 0
    files = sorted((tmp_path / "train").iterdir())
    assert [file.name for file in files] == ["000000.npz", "000001.npz", "000002.npz"]
    encoder = load_encoder(str(birq), device="cpu")
    for file, seconds, number in zip(files, SECONDS, range(3), strict=True):
        saved = np.load(file)
        [wanted] = FrameExtractor(encoder, FrameOptions())([speech_like(seconds, number)])
        np.testing.assert_allclose(saved["features"], wanted.values, atol=1e-5)
        np.testing.assert_allclose(saved["end_s"], wanted.times.ends, atol=1e-6)
        assert str(saved["speaker_id"]) == "aba"[number]


@pytest.mark.parametrize("lookahead", [0, 1])
@pytest.mark.parametrize("past", [None, 2])
def test_chunks_of_long_recordings_are_the_whole(lookahead: int, past: int | None):
    encoder = build("chunkssl", num_lookahead_chunks=lookahead, left_context_chunks=past, initializer_range=0.2)
    for seconds in (2.0, 2.23):
        chunks = {"chunk_duration_ms": 160, "layers": ["2", "last"]}
        [whole], [pieces] = (extract(encoder, seconds, **chunks, window_seconds=limit) for limit in (10.0, 1.0))
        np.testing.assert_allclose(pieces, whole, atol=2e-5)
        [offline] = extract(encoder, seconds, layers=["2", "last"])
        assert np.abs(offline - whole).max() > 1e-2
    [stacked], [pieces] = (
        extract(encoder, 2.0, chunk_duration_ms=160, layers=["0"], window_seconds=limit) for limit in (10.0, 1.0)
    )
    np.testing.assert_allclose(pieces, stacked, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_windows_are_the_whole_where_the_model_looks_no_further(family: str):
    encoder = build(family, conv_kernel_size=3)
    with torch.no_grad():
        for layer in encoder.model.layers:
            layer.attention.out_proj.weight.zero_()
    lengths = (3.0, 0.4, 7.31)
    whole, windows = (extract(encoder, *lengths, layers=["all"], window_seconds=limit) for limit in (10.0, 2.0))
    for one, other in zip(windows, whole, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_long_recordings_of_other_encoders(tmp_path):
    torch.manual_seed(2)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    position = {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
    Wav2Vec2Model(Wav2Vec2Config(**sizes, **position, conv_dim=(24,) * 7)).save_pretrained(tmp_path)
    Wav2Vec2FeatureExtractor().save_pretrained(tmp_path)
    encoder = load_encoder(str(tmp_path), device="cpu")
    waves = [speech_like(5.0)]
    [whole], [windows] = (
        FrameExtractor(encoder, FrameOptions(layers=["all"], window_seconds=limit))(waves) for limit in (10.0, 2.0)
    )
    assert windows.values.shape == whole.values.shape == (249, 16)
    np.testing.assert_allclose(windows.times.starts, whole.times.starts)
    with pytest.raises(ValueError, match="A Wav2Vec2Model does not work in chunks"):
        FrameExtractor(encoder, FrameOptions(chunk_duration_ms=320))


def test_layers_by_name_and_number():
    assert parse_layers(["last"], 5) == [4] and parse_layers(["all"], 5) == [1, 2, 3, 4]
    assert parse_layers(["3", "1", "3"], 5) == [1, 3]
    for word in ("5", "-1", "first"):
        with pytest.raises(ValueError, match=f"no layer '{word}'.*0 .* to 4 .*last, or all"):
            parse_layers([word], 5)
    with pytest.raises(ValueError, match="Layers of 32 and 160 features cannot be averaged: leave layer 0"):
        FrameExtractor(build("birq"), FrameOptions(layers=["0", "1"]))


def test_clusters_of_frames(corpus, birq, tmp_path):
    from sklearn.metrics import pairwise_distances_argmin

    command = ["units", str(birq), str(corpus), "--layers", "2", "--output_dir"]
    assert main([*command, str(tmp_path / "one"), "--num_units", "7"]) == 0
    centers = np.load(tmp_path / "one" / "kmeans.npz")["centers"]
    assert centers.shape == (7, 32)
    frames = extract(load_encoder(str(birq), device="cpu"), *SECONDS, layers=["2"])
    found = rows(tmp_path / "one")
    for row, values in zip(found, frames, strict=True):
        assert row["units"] == pairwise_distances_argmin(values, centers).tolist()
    assert len({unit for row in found for unit in row["units"]}) == 7
    # Centers are the means of their frames, but for the steps of mini-batches.
    values, units = np.concatenate(frames), np.concatenate([row["units"] for row in found])
    spread = sum(np.square(values[units == unit] - values[units == unit].mean(0)).sum() for unit in range(7))
    assert np.square(values - centers[units]).sum() < 1.1 * spread < 0.9 * np.square(values - values.mean(0)).sum()

    again = [*command, str(tmp_path / "two"), "--kmeans_path", str(tmp_path / "one" / "kmeans.npz"), "--deduplicate"]
    assert main(again) == 0
    for run, row in zip(rows(tmp_path / "two"), found, strict=True):
        units, starts, ends = join_runs(*(np.array(row[key]) for key in ("units", "start_s", "end_s")))
        assert (run["units"], run["start_s"], run["end_s"]) == (units.tolist(), starts.tolist(), ends.tolist())
    report = json.loads((tmp_path / "two" / "train.json").read_text())
    assert report["frames"] == len(values) > report["rows"] and report["num_units"] == 7
    assert main([*command, str(tmp_path / "three"), "--num_units", "500"]) == 1


def test_runs_keep_the_times_of_all_their_frames():
    times = FrameTimes(6, 50.0)
    units, starts, ends = join_runs(np.array([4, 4, 1, 4, 4, 4], np.int32), times.starts, times.ends)
    assert units.tolist() == [4, 1, 4]
    np.testing.assert_allclose(starts, [0, 0.04, 0.06])
    np.testing.assert_allclose(ends, [0.04, 0.06, 0.12])
    assert [len(part) for part in join_runs(np.zeros(0, np.int32), np.zeros(0), np.zeros(0))] == [0, 0, 0]


def test_own_labels(corpus, birq, tmp_path, capsys):
    command = ["units", str(birq), str(corpus), "--output_dir", str(tmp_path), "--labels"]
    assert main([*command, "enhanced"]) == 0
    model = BiRQForPreTraining.from_pretrained(birq)
    found = rows(tmp_path)
    for row, seconds, number in zip(found, SECONDS, range(3), strict=True):
        inputs = EXTRACTOR(speech_like(seconds, number), sampling_rate=16_000, return_tensors="pt")
        labels = model.make_labels(**inputs)[0]["enhanced"].ids[0, :, 0]
        assert row["units"] == labels.tolist()
    report = json.loads((tmp_path / "train.json").read_text())
    assert (report["units"], report["num_units"]) == ("labels: enhanced (block 2)", 24)
    assert main([*command, "own"]) == 1
    assert "2 of the model's kinds of labels, which are 'anchor', 'enhanced (block 2)'" in capsys.readouterr().err
    assert main([*command, "anchor", "--layers", "2"]) == 1
    assert "leave --layers" in capsys.readouterr().err
    FAMILIES["birq"].build("ctc").save_pretrained(tmp_path / "ctc")
    EXTRACTOR.save_pretrained(tmp_path / "ctc")
    other = ["units", str(tmp_path / "ctc"), str(corpus), "--output_dir", str(tmp_path), "--labels", "own"]
    assert main(other) == 1
    assert "name a pretraining checkpoint or a tokenizer" in capsys.readouterr().err


def test_every_frame_is_as_likely_to_be_drawn():
    counts = np.zeros(40)
    for seed in range(400):
        sample = FrameSample(10, seed)
        for part in np.split(np.arange(40, dtype=np.float32)[:, None], [3, 17, 18]):
            sample.add(part)
        counts[sample.frames[:, 0].astype(int)] += 1
    assert counts.sum() == 4000 and counts.min() > 60 and counts.max() < 140
    few = FrameSample(50, 0)
    few.add(np.arange(4, dtype=np.float32)[:, None])
    assert few.frames[:, 0].tolist() == [0, 1, 2, 3]


def test_clusters_of_other_frames_are_refused(tmp_path):
    clusters = Clusters(np.eye(3, dtype=np.float32))
    with pytest.raises(ValueError, match="frames with 3 features, got 5"):
        clusters(np.zeros((2, 5), np.float32))
    (tmp_path / "kmeans.npz").write_bytes(b"no")
    with pytest.raises(ValueError, match="holds no clusters"):
        Clusters.load(tmp_path / "kmeans.npz")
