"""The utterances of a split, in batches: all of them once, and those that cannot be used left out by name."""

import logging
from pathlib import Path

import numpy as np
import pytest
import soundfile
from datasets import Dataset, Features, Value
from helpers import speech_like

from hf_speech_ssl.data.audio import load_audio
from hf_speech_ssl.data.reading import UtteranceReader
from hf_speech_ssl.options import ReadingOptions

SECONDS = [1.0, 3.0, 0.5, 2.0, 1.5, 2.5, 0.7]
AUDIO = {"bytes": Value("binary"), "path": Value("string")}


@pytest.fixture
def corpus(tmp_path):
    """Makes a saved data set of WAV files; `change` changes its rows before that."""

    def make(change=lambda rows: None, **more_features) -> str:
        rows = []
        for index, seconds in enumerate(SECONDS):
            path = tmp_path / f"{index}.wav"
            soundfile.write(path, speech_like(seconds, index), 16_000)
            rows.append({"audio": {"path": str(path), "bytes": None}, "text": f"text {index}", "mark": index * 10})
        change(rows)
        features = Features({"audio": AUDIO, "text": Value("string"), "mark": Value("int64"), **more_features})
        Dataset.from_list(rows, features=features).save_to_disk(tmp_path / "saved")
        return str(tmp_path / "saved")

    return make


def reader_of(name: str, text_column_name=None, columns=(), optional_columns=(), **options) -> UtteranceReader:
    options = ReadingOptions(name, **{"split_name": "train", **options})
    return UtteranceReader(options, text_column_name, columns, optional_columns)


def read(name: str, **options) -> dict[int, object]:
    """The utterances by their row."""
    utterances = [one for batch in reader_of(name, **options) for one in batch]
    assert len({one.index for one in utterances}) == len(utterances)
    return {one.index: one for one in utterances}


def test_every_row_comes_once_with_its_own_audio_text_and_columns(corpus, tmp_path):
    name = corpus()
    utterances = read(name, text_column_name="text", columns=["mark"], optional_columns=["speaker_id"])
    assert sorted(utterances) == list(range(7))
    for index, one in utterances.items():
        assert (one.text, one.columns) == (f"text {index}", {"mark": 10 * index})
        assert Path(one.name) == tmp_path / f"{index}.wav"
        assert one.waveform.dtype == np.float32 and one.seconds == SECONDS[index]
        assert np.array_equal(one.waveform, load_audio(tmp_path / f"{index}.wav"))
    assert [one.columns for one in read(name, optional_columns=["mark", "none"], max_samples=1).values()] == [
        {"mark": 0}
    ]
    assert all(one.text == "" and one.columns == {} for one in read(name).values())


def test_batches_keep_to_their_size_and_lengths_come_together(corpus):
    reader = reader_of(corpus(), batch_seconds=3.0)
    batches = [[one.index for one in batch] for batch in reader]
    assert sorted(sum(batches, [])) == list(range(7))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(SECONDS[index] for index in batch) <= 3.0
    assert [2, 6] in [sorted(batch) for batch in batches]  # the two shortest ones
    assert batches == [[one.index for one in batch] for batch in reader]  # a second pass is the same
    tight = reader_of(corpus(), batch_seconds=0.1)
    assert [len(batch) for batch in tight] == [1] * 7


def test_windows_follow_the_order_of_the_data_set(corpus):
    """Lengths are sorted within a window of 16 batches, so that memory is bounded and the beginning comes first."""
    order = [one.index for batch in reader_of(corpus(), batch_seconds=0.2) for one in batch]
    windows = [order[:2], order[2:]]  # 16 batches of 0.2 s are full with the first two rows
    assert set(windows[0]) == {0, 1}


def test_the_first_so_many(corpus):
    name = corpus()
    assert sorted(read(name, max_samples=3)) == [0, 1, 2]
    assert len(reader_of(name, max_samples=3)) == 3
    assert sorted(read(name, max_samples=100)) == list(range(7))


def broken(rows: list[dict]) -> None:
    folder = Path(rows[0]["audio"]["path"]).parent
    (folder / "1.wav").write_bytes(b"this is no audio")
    (folder / "2.wav").write_bytes(b"")
    soundfile.write(folder / "3.wav", np.zeros(16_000), 16_000)
    soundfile.write(folder / "4.wav", speech_like(0.02), 16_000)
    (folder / "5.wav").unlink()
    rows[6]["text"] = None


def test_what_cannot_be_used_is_left_out_with_a_reason(corpus, caplog):
    reader = reader_of(corpus(broken), text_column_name="text")
    with caplog.at_level(logging.WARNING):
        assert [one.index for batch in reader for one in batch] == [0]
    reasons = ["not audio", "empty", "silent", "too short", "missing", "no transcript"]
    assert reader.skipped.by_reason == dict.fromkeys(reasons, 1)
    for index in range(1, 7):
        assert f"{index}.wav" in caplog.text
    # A transcript is needed only where one is asked for; the second pass counts no file twice.
    assert sorted(read(corpus(broken))) == [0, 6]
    list(reader)
    assert len(reader.skipped) == 6


def test_a_stated_duration_spares_the_header_and_errors_turn_up_on_decoding(corpus):
    def state(rows: list[dict]) -> None:
        broken(rows)
        for row, seconds in zip(rows, SECONDS, strict=True):
            row["duration"] = seconds

    reader = reader_of(corpus(state, duration=Value("float64")), text_column_name="text")
    assert [one.index for batch in reader for one in batch] == [0]
    assert len(reader.skipped) == 6


def test_an_empty_transcript_is_one(corpus):
    def say_nothing(rows: list[dict]) -> None:
        rows[2]["text"] = ""

    assert read(corpus(say_nothing), text_column_name="text")[2].text == ""


def test_a_consumer_may_leave_early(corpus):
    for batch in reader_of(corpus(), batch_seconds=1.0):
        assert batch
        break


def test_errors_say_what_is_missing(corpus):
    name = corpus()
    with pytest.raises(FileNotFoundError, match="nowhere"):
        reader_of("./nowhere")
    for options, match in (
        ({"audio_column_name": "sound"}, "'sound'"),
        ({"text_column_name": "words"}, "'words'"),
        ({"text_column_name": "audio"}, "'audio'.*not text"),
        ({"columns": ["speaker"]}, "'speaker'"),
        ({"max_samples": 0}, "above 0"),
        ({"batch_seconds": 0.0}, "above 0"),
        ({"batch_seconds": float("nan")}, "above 0"),
    ):
        with pytest.raises(ValueError, match=match):
            reader_of(name, **options)
    with pytest.raises(ValueError, match="test"):
        reader_of(name, split_name="test")


def test_a_split_without_usable_audio_is_an_error(corpus):
    def ruin(rows: list[dict]) -> None:
        for row in rows:
            Path(row["audio"]["path"]).write_bytes(b"")

    with pytest.raises(ValueError, match="no usable audio.*7 empty"):
        read(corpus(ruin))
