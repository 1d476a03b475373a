"""Parts of recordings: segments by columns, long recordings in pieces; times and texts of every type."""

import io
from collections import Counter
from datetime import timedelta

import numpy as np
import pytest
import soundfile
import torch
from datasets import ClassLabel, Dataset, Features, Value

from hf_speech_ssl.data.audio import SAMPLING_RATE, AudioError
from hf_speech_ssl.data.batching import SpeechBatches
from hf_speech_ssl.data.segments import NotSeconds, StatedTimes, TimeColumns, to_seconds
from hf_speech_ssl.data.texts import TextColumn, read_transcripts

AUDIO = {"bytes": Value("binary"), "path": Value("string")}


def ramp(seconds: float, number: int = 0) -> np.ndarray:
    """Audio in which a sample tells its time: 1/32768 every 10 ms, and the recording's number in the first one."""
    samples = np.arange(round(seconds * SAMPLING_RATE)) // 160 / 32768
    return samples + number / 4


@pytest.fixture(scope="module")
def paths(tmp_path_factory) -> list[str]:
    """Recordings of 20 s, 3 s and 61.5 s."""
    folder = tmp_path_factory.mktemp("ramps")
    for number, (suffix, seconds) in enumerate((("wav", 20.0), ("flac", 3.0), ("wav", 61.5))):
        soundfile.write(folder / f"{number}.{suffix}", ramp(seconds, number), SAMPLING_RATE, subtype="PCM_16")
    return [str(folder / name) for name in ("0.wav", "1.flac", "2.wav")]


def batches_of(columns: dict, streaming: bool = False, features: Features | None = None, **options) -> SpeechBatches:
    dataset = Dataset.from_dict(columns, features=features)
    source = dataset.to_iterable_dataset(num_shards=1) if streaming else dataset
    return SpeechBatches(source, **{"batch_seconds": 40.0, "max_seconds": 30.0, **options})


def spans(batches: SpeechBatches, epoch: int = 0) -> list[tuple[int, float, float]]:
    """(recording, begin, end) of everything that comes out, by what the samples tell."""
    found = []
    for batch in batches.epoch(epoch):
        for waveform, length in zip(batch.waveforms, batch.lengths, strict=True):
            samples = waveform[: int(length)].numpy() * 32768
            number = int(samples[0] // 8192)
            begin = round((samples[0] - 8192 * number) / 100, 2)
            found.append((number, begin, round(begin + len(samples) / SAMPLING_RATE, 2)))
            end = (samples[-1] - 8192 * number) / 100 + 0.01
            assert end == pytest.approx(found[-1][2], abs=0.011)
    return sorted(found)


# --- segments


SEGMENTS = {
    "NeMo": {"offset": [0.0, 2.5, 17.0], "duration": [2.5, 4.0, 3.0]},
    "start and end": {"start": [0.0, 2.5, 17.0], "end": [2.5, 6.5, 20.0]},
    "start and duration": {"start_time": [0.0, 2.5, 17.0], "duration": [2.5, 4.0, 3.0]},
    "begin and end": {"begin_time": [0, 2.5, 17], "end_time": [2.5, 6.5, 20.3]},
    "strings": {"start": ["0", "2.5", "0:00:17"], "end": ["2.5", "6.50", "00:20"]},
    "time spans": {
        "start": [timedelta(seconds=s) for s in (0, 2.5, 17)],
        "end": [timedelta(seconds=s) for s in (2.5, 6.5, 20)],
    },
}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("case", SEGMENTS)
@pytest.mark.parametrize("with_texts", [False, True])
def test_segments_are_cut_out_of_their_recording(paths, case: str, streaming: bool, with_texts: bool) -> None:
    columns = {"audio": [paths[0]] * 3, "text": ["a", "b", "c"], **SEGMENTS[case]}
    batches = batches_of(columns, streaming, text_column="text" if with_texts else None)
    assert spans(batches) == [(0, 0.0, 2.5), (0, 2.5, 6.5), (0, 17.0, 20.0)]
    assert not batches.skipped
    if not streaming:
        assert batches.count_steps(0) == len(list(batches.epoch(0)))


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_whole_files_and_segments_may_be_mixed_whatever_comes_first(paths, streaming: bool, seed: int) -> None:
    columns = {
        "audio": [paths[0], paths[0], paths[1], paths[2]],
        "offset": [0.0, 5.0, 0.0, None],
        "duration": [20.0, 1.0, 3.0, 61.5],
    }
    assert spans(batches_of(columns, streaming, seed=seed, max_seconds=62)) == [
        (0, 0.0, 20.0), (0, 5.0, 6.0), (1, 0.0, 3.0), (2, 0.0, 61.5),
    ]  # fmt: skip


def test_an_offset_alone_goes_to_the_end(paths) -> None:
    assert spans(batches_of({"audio": [paths[0]], "offset": [17.5]})) == [(0, 17.5, 20.0)]


def test_audio_that_is_as_long_as_its_segment_has_been_cut_already(paths) -> None:
    """Many data sets of the Hub keep the times in the original."""
    columns = {"audio": [paths[1], paths[0]], "begin_time": [100.0, 300.0], "end_time": [103.0, 320.01]}
    assert spans(batches_of(columns)) == [(0, 0.0, 20.0), (1, 0.0, 3.0)]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"start": [16_000], "end": [32_000]}, r"Columns \['start', 'end'\].*16000 to 32000 s of 20.00 s"),
        ({"offset": [-1.0], "duration": [3.0]}, "must hold a segment"),
        ({"start": [3.0], "end": [2.0]}, "must hold a segment"),
        ({"start": [[1.0]], "end": [[2.0]]}, "Column 'start' must hold seconds, but it holds .1.0. in example"),
        ({"start": ["monday"], "end": ["tuesday"]}, "Column 'start' must hold seconds, but it holds 'monday'"),
        ({"start": [3.0]}, "Column 'start' says where a segment begins.*add 'end' or 'duration'"),
    ],
)
def test_columns_that_are_no_segments_are_refused_by_name(paths, columns: dict, message: str, streaming: bool) -> None:
    with pytest.raises(ValueError, match=message):
        list(batches_of({"audio": [paths[0]], **columns}, streaming).epoch(0))


def test_a_segment_behind_its_recording_is_skipped_by_name(paths) -> None:
    batches = batches_of({"audio": [paths[0]] * 2, "start": [1.0, 30.0], "end": [2.0, 31.0]}, shuffle=False)
    assert spans(batches) == [(0, 1.0, 2.0)]
    assert batches.skipped.by_reason == {"bad segment": 1}


def test_what_counts_as_seconds() -> None:
    for value, seconds in (
        ("7.5", 7.5),
        (" 1:02:03.5 ", 3723.5),
        ("02:03", 123.0),
        (7, 7.0),
        (None, None),
        ("", None),
    ):
        assert to_seconds(value) == seconds
    assert to_seconds(float("nan")) is None and to_seconds(timedelta(minutes=1)) == 60.0
    for value in ("1:2:3:4", "a", [1], {"s": 1}, b"1"):
        with pytest.raises(NotSeconds):
            to_seconds(value)
    assert TimeColumns.find(["audio", "text"]).names == []
    assert StatedTimes(duration=2.0, begin=1.0).segment(9.0) == (1.0, 3.0)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    "durations", [["20.0", "3"], ["00:00:20", "0:03"], [timedelta(seconds=20), timedelta(seconds=3)]]
)
def test_durations_of_other_types(paths, durations: list, streaming: bool) -> None:
    batches = batches_of({"audio": paths[:2], "duration": durations}, streaming)
    assert spans(batches) == [(0, 0.0, 20.0), (1, 0.0, 3.0)]
    with pytest.raises(ValueError, match="Column 'duration' must hold seconds, but it holds .20.0. in example"):
        list(batches_of({"audio": paths[:1], "duration": [[20.0]]}, streaming).epoch(0))


# --- long recordings


@pytest.mark.parametrize("streaming", [False, True])
def test_pretraining_cuts_what_is_too_long_and_loses_nothing(paths, streaming: bool) -> None:
    batches = batches_of({"audio": paths}, streaming, max_seconds=8.0, batch_seconds=17.0)
    expected = [(0, 0.0, 8.0), (0, 8.0, 16.0), (0, 16.0, 20.0), (1, 0.0, 3.0)]
    expected += [(2, 8.0 * part, 8.0 * part + 8) for part in range(7)] + [(2, 56.0, 61.5)]
    assert spans(batches) == expected
    assert not batches.skipped
    if not streaming:
        assert batches.count_steps(0) == len(list(batches.epoch(0)))


def test_the_last_piece_is_never_too_short(paths) -> None:
    batches = batches_of({"audio": [paths[2]]}, max_seconds=30.6)  # 30.6, 30.6 and 0.3 s
    assert spans(batches) == [(2, 0.0, 30.6), (2, 30.6, 46.05), (2, 46.05, 61.5)]


def test_pieces_of_a_recording_are_spread_over_batches(tmp_path) -> None:
    for number in range(3):
        soundfile.write(tmp_path / f"{number}.wav", ramp(40.0, number), SAMPLING_RATE, subtype="PCM_16")
    columns = {"audio": [str(tmp_path / f"{number}.wav") for number in range(3)]}
    run = list(batches_of(columns, max_seconds=2.0, batch_seconds=8.0).epoch(0))
    recordings = [{int(row[0] * 4) for row in batch.waveforms} for batch in run]
    assert sum(len(one) > 1 for one in recordings) > len(run) / 2


@pytest.mark.parametrize("streaming", [False, True])
def test_pieces_resume_and_are_shared_among_processes(paths, streaming: bool) -> None:
    def batches(**options) -> SpeechBatches:
        columns = {"audio": paths * 2}
        return batches_of(columns, streaming, max_seconds=4.0, batch_seconds=9.0, window_batches=2, **options)

    whole = [batch.waveforms for batch in batches().epoch(1)]
    for done, batch in enumerate(batches().epoch(1), start=1):
        rest = [later.waveforms for later in batches().epoch(1, batch.position)]
        assert len(rest) == len(whole) - done
        assert all(torch.equal(a, b) for a, b in zip(rest, whole[done:], strict=True))
    shares = [spans(batches(process_index=index, num_processes=2), epoch=1) for index in range(2)]
    assert Counter(shares[0] + shares[1]) == Counter(spans(batches(), epoch=1))


def test_fine_tuning_counts_and_names_what_is_too_long(paths, caplog) -> None:
    columns = {"audio": paths, "text": ["a", "b", "c"]}
    with caplog.at_level("WARNING"):
        batches = batches_of(columns, text_column="text", max_seconds=30.0)
        assert spans(batches) == [(0, 0.0, 20.0), (1, 0.0, 3.0)]
    assert (
        batches.skipped.by_reason == {"too long": 1}
        and "2.wav: too long: 61.50 s, the limit is 30.00 s" in caplog.text
    )
    assert len(spans(batches_of(columns, text_column="text", cut_long=True))) == 5


def test_a_silent_piece_is_named_by_its_place(tmp_path) -> None:
    samples = ramp(9.0)
    samples[3 * SAMPLING_RATE : 6 * SAMPLING_RATE] = 0
    soundfile.write(tmp_path / "talk.wav", samples, SAMPLING_RATE, subtype="PCM_16")
    batches = batches_of({"audio": [str(tmp_path / "talk.wav")]}, max_seconds=3.0)
    assert spans(batches) == [(0, 0.0, 3.0), (0, 6.0, 9.0)]
    with pytest.raises(AudioError, match=r"talk.wav \(3.00 to 6.00 s\): silent"):
        list(batches_of({"audio": [str(tmp_path / "talk.wav")]}, max_seconds=3.0, on_bad_audio="raise").epoch(0))


# --- texts


def texts_of(values: list, feature=None, column: str = "text", streaming: bool = False) -> list[str]:
    buffer = io.BytesIO()
    soundfile.write(buffer, ramp(1.0), SAMPLING_RATE, format="FLAC")
    columns = {"audio": [{"bytes": buffer.getvalue(), "path": None}] * len(values), "text": values}
    dataset = Dataset.from_dict(columns)
    if feature is not None:
        dataset = dataset.cast_column("text", feature)
    source = dataset.to_iterable_dataset(num_shards=1) if streaming else dataset
    batches = SpeechBatches(source, batch_seconds=99.0, text_column=column, shuffle=False)
    return sorted(text for batch in batches.epoch(0) for text in batch.texts)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("values", "feature", "expected"),
    [
        (["b", "a"], Value("large_string"), ["a", "b"]),
        ([0, 7, 30], None, ["0", "30", "7"]),
        ([1.0, 2.5, None], None, ["1", "2.5"]),
        ([0, 1, 0], ClassLabel(names=["no", "yes"]), ["no", "no", "yes"]),
        (["null", "nan", ""], None, ["", "nan", "null"]),
    ],
)
def test_numbers_and_classes_are_texts(values: list, feature, expected: list[str], streaming: bool) -> None:
    assert texts_of(values, feature, streaming=streaming) == expected


def test_an_entry_of_a_json_column_is_a_text() -> None:
    assert texts_of([{"text": "a", "lang": "en"}, {"text": "b", "lang": "en"}], column="text.text") == ["a", "b"]
    with pytest.raises(ValueError, match=r"holds entries \['lang', 'text'\], not text.*for example text"):
        texts_of([{"text": "a", "lang": "en"}])
    with pytest.raises(ValueError, match="text"):
        texts_of([{"text": "a"}], column="text.words")


@pytest.mark.parametrize("values", [[True, False], [["a"]], [b"a"]])
def test_other_types_are_refused_by_name(values: list) -> None:
    with pytest.raises(ValueError, match="Column 'text' of .* holds .*, not text"):
        texts_of(values)


def test_empty_and_missing_transcripts_are_counted() -> None:
    dataset = Dataset.from_dict({"text": ["a", "", "...", "...", None, "b"]})
    found = read_transcripts(dataset, "text", normalize=lambda text: text.replace(".", ""))
    assert found.texts == ["a", "b"] and found.missing == 1 and found.empty == Counter({"...": 2, "": 1})
    assert found.remark() == (
        "1 rows have no transcript and are skipped; 3 transcripts are empty after normalization ('...', '') and are "
        "learned as silence"
    )
    assert read_transcripts(dataset, "text", most=1).texts == ["a"]
    marked = Dataset.from_dict({"text": ["a <unk> b", "[laughter] [laughter]", "{NOISE} it is 5 % of 100%", "%h a"]})
    assert read_transcripts(marked, "text").remark() == (
        "marks in the transcripts are learned as words ([laughter] 2, <unk> 1, {NOISE} 1, %h 1): take out what "
        "nobody says"
    )
    for values in ([None, None], ["", None]):
        with pytest.raises(ValueError, match="Column 'text' has no transcript: . rows without a text"):
            read_transcripts(Dataset.from_dict({"text": values}).cast_column("text", Value("string")), "text")
    assert TextColumn.of(dataset, "text").name == "text"
