"""Decoding, resampling and refusing."""

import io
import logging
import math
import os
import pickle
import threading

import numpy as np
import pytest
import soundfile
import torch

from hf_speech_ssl.data.audio import SAMPLING_RATE, AudioError, SkippedAudio, audio_duration, is_read_once, load_audio

NOISE = np.random.default_rng(0).uniform(-0.5, 0.5, SAMPLING_RATE).astype(np.float32)
LOSSLESS = [("WAV", "PCM_16"), ("WAV", "FLOAT"), ("FLAC", "PCM_16"), ("AIFF", "PCM_16"), ("AU", "PCM_16")]
LOSSLESS += [("W64", "PCM_16"), ("RF64", "PCM_16"), ("WAVEX", "PCM_24")]
LOSSY = [("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III")]


def encode(waveform: np.ndarray, rate: int = SAMPLING_RATE, format: str = "WAV", subtype: str | None = None) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, waveform, rate, format=format, subtype=subtype)
    return buffer.getvalue()


def refusal(source, **limits) -> AudioError:
    with pytest.raises(AudioError) as caught:
        load_audio(source, **limits)
    assert caught.value.name in str(caught.value) and caught.value.reason in str(caught.value)
    return caught.value


def tone(frequency: float, seconds: float, rate: int) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)


@pytest.mark.parametrize(("format", "subtype"), LOSSLESS)
def test_lossless_formats_come_back_as_they_were(format: str, subtype: str) -> None:
    waveform = load_audio(encode(NOISE, format=format, subtype=subtype))
    assert waveform.dtype == np.float32 and waveform.shape == NOISE.shape
    np.testing.assert_allclose(waveform, NOISE, atol=1 / 32768)


@pytest.mark.parametrize(("format", "subtype"), LOSSY)
def test_lossy_formats_keep_the_tone(format: str, subtype: str) -> None:
    data = encode(tone(440, 1.0, SAMPLING_RATE), format=format, subtype=subtype)
    waveform = load_audio(data)
    assert audio_duration(data) == pytest.approx(1.0, abs=0.1)
    assert np.abs(np.fft.rfft(waveform[:SAMPLING_RATE])).argmax() == pytest.approx(440, abs=2)


def test_every_kind_of_source_gives_the_same(tmp_path) -> None:
    data = encode(NOISE)
    path = tmp_path / "noise.wav"
    path.write_bytes(data)
    sources = [path, str(path), data, io.BytesIO(data), {"path": str(path), "bytes": None}, f"file://{path}"]
    sources += [{"path": "noise.wav", "bytes": data}, {"bytes": data}]
    for source in sources:
        np.testing.assert_array_equal(load_audio(source), load_audio(path))
    with open(path, "rb") as file:
        np.testing.assert_array_equal(load_audio(file), load_audio(path))
        assert not file.closed
    for key in ("array", "raw"):
        for samples in (NOISE, NOISE.astype(np.float64), NOISE.tolist(), torch.from_numpy(NOISE)):
            np.testing.assert_array_equal(load_audio({key: samples, "sampling_rate": SAMPLING_RATE}), NOISE)


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 48_000, 96_000])
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_any_rate_and_channel_count_becomes_16_khz_mono(rate: int, channels: int) -> None:
    data = encode(np.stack([tone(1000, 0.5, rate)] * channels, axis=1), rate)
    waveform = load_audio(data)
    assert waveform.ndim == 1 and abs(len(waveform) - 8000) <= 1
    assert audio_duration(data) == pytest.approx(0.5, abs=1e-3)
    middle = slice(500, -500)  # the filter rings at the ends
    np.testing.assert_allclose(waveform[middle], tone(1000, 0.6, SAMPLING_RATE)[: len(waveform)][middle], atol=2e-3)


def test_channels_are_averaged_whichever_axis_they_lie_on() -> None:
    stereo = np.stack([NOISE, NOISE[::-1]], axis=1)
    expected = (NOISE + NOISE[::-1]) / 2
    for samples in (stereo, stereo.T):
        loaded = load_audio({"array": samples, "sampling_rate": SAMPLING_RATE})
        np.testing.assert_allclose(loaded, expected, atol=1e-7)
    np.testing.assert_allclose(load_audio(encode(stereo, subtype="FLOAT")), expected, atol=1e-7)


@pytest.mark.parametrize(
    ("dtype", "scale", "offset"), [(np.int16, 2**15, 0), (np.int32, 2**31, 0), (np.uint8, 128, 128)]
)
def test_integer_samples_are_scaled(dtype: type, scale: int, offset: int) -> None:
    samples = (NOISE * scale + offset).astype(dtype)
    loaded = load_audio({"array": samples, "sampling_rate": SAMPLING_RATE})
    np.testing.assert_allclose(loaded, NOISE, atol=1 / scale)


@pytest.mark.parametrize(("format", "subtype"), [*LOSSLESS, ("MP3", "MPEG_LAYER_III")])
def test_truncated_files_are_refused(format: str, subtype: str) -> None:
    data = encode(NOISE, format=format, subtype=subtype)
    for share in (0.4, 0.9):
        assert refusal(data[: int(len(data) * share)]).reason == "truncated"


def test_a_header_alone_is_empty_and_a_piped_header_is_fine() -> None:
    assert refusal(encode(NOISE[:0])).reason == "empty"
    data = bytearray(encode(NOISE))
    size = data.index(b"data") + 4
    data[4:8] = data[size : size + 4] = b"\xff\xff\xff\xff"  # as ffmpeg writes to a pipe
    assert load_audio(bytes(data)).shape == NOISE.shape


@pytest.mark.parametrize(
    ("reason", "source"),
    [
        ("empty", b""),
        ("empty", {"array": [], "sampling_rate": 16_000}),
        ("not audio", b"a text that was renamed to .wav\n" * 9),
        ("not audio", b"RIFF"),
        ("not audio", io.StringIO("text")),
        ("not audio", 17),
        ("missing", {"path": None, "bytes": None}),
        ("missing", "/no/such/file.wav"),
        ("missing", {"path": "/no/such/file.wav", "bytes": None}),
        ("silent", encode(np.zeros(SAMPLING_RATE))),
        ("silent", encode(np.full(SAMPLING_RATE, 0.25))),
        ("silent", encode(np.zeros((SAMPLING_RATE, 2)))),
        ("not finite", encode(np.where(np.arange(SAMPLING_RATE) == 99, np.nan, NOISE), subtype="FLOAT")),
        ("not finite", {"array": np.append(NOISE, np.inf), "sampling_rate": 16_000}),
        ("too short", encode(NOISE[:399])),
        ("too short", encode(NOISE[:160])),
        ("bad array", {"array": NOISE}),
        ("bad array", {"array": NOISE, "sampling_rate": 0}),
        ("bad array", {"array": NOISE, "sampling_rate": 1}),  # a minute's samples would be days
        ("bad array", {"array": NOISE, "sampling_rate": 1e9}),
        ("bad array", {"array": NOISE * 30_000, "sampling_rate": 16_000}),
        ("bad array", {"array": (NOISE * 30_000).astype(np.int64), "sampling_rate": 16_000}),
        ("bad array", {"array": NOISE, "sampling_rate": "16000"}),
        ("bad array", {"array": NOISE[None, None], "sampling_rate": 16_000}),
        ("bad array", {"array": [[0.1], [0.2, 0.3]], "sampling_rate": 16_000}),
        ("bad array", {"array": ["a"], "sampling_rate": 16_000}),
        ("bad array", {"raw": None, "sampling_rate": 16_000}),
    ],
)
def test_bad_audio_is_refused_with_its_reason(reason: str, source) -> None:
    error = refusal(source, name="the source")
    assert (error.name, error.reason) == ("the source", reason)


def test_a_folder_and_headerless_samples_are_refused(tmp_path) -> None:
    assert refusal(tmp_path).reason == "missing"
    (tmp_path / "samples.raw").write_bytes(NOISE.tobytes())
    assert refusal(tmp_path / "samples.raw").reason == "not audio"


def test_limits_are_exact() -> None:
    assert load_audio(encode(NOISE[:400])).shape == (400,)
    assert refusal(encode(NOISE), min_samples=SAMPLING_RATE + 1).reason == "too short"
    assert load_audio(encode(NOISE), max_seconds=1.0).shape == NOISE.shape
    assert refusal(encode(NOISE), max_seconds=0.999).reason == "too long"
    assert refusal({"array": NOISE, "sampling_rate": 8000}, max_seconds=1.5).reason == "too long"


@pytest.mark.parametrize("share", [1.0, 0.9])
@pytest.mark.parametrize("loudest", [0, 1])
def test_of_channels_that_cancel_the_louder_one_is_used_and_that_is_said(caplog, share: float, loudest: int) -> None:
    """A microphone with its poles swapped, and one that is a little less sensitive."""
    channels = [NOISE * 0.5, -NOISE * 0.5 * share][:: 1 if loudest == 0 else -1]
    with caplog.at_level(logging.WARNING):
        waveform = load_audio(encode(np.stack(channels, axis=1), subtype="FLOAT"), name="call.wav")
    assert "call.wav: its channels cancel" in caplog.text
    np.testing.assert_array_equal(waveform, channels[0 if share == 1.0 else loudest])
    array = {"array": np.stack(channels, axis=1), "sampling_rate": SAMPLING_RATE}
    np.testing.assert_array_equal(load_audio(array), waveform)


def test_channels_that_are_independent_or_dead_are_still_averaged(caplog) -> None:
    other = np.random.default_rng(1).uniform(-0.5, 0.5, SAMPLING_RATE).astype(np.float32)
    for second in (other, other * 0):
        stereo = np.stack([NOISE, second], axis=1)
        np.testing.assert_array_equal(load_audio(encode(stereo, subtype="FLOAT")), stereo.mean(axis=1))
    assert not caplog.records


def test_a_pipe_is_read_in_one_pass(tmp_path, monkeypatch) -> None:
    pipe = tmp_path / "pipe.wav"
    os.mkfifo(pipe)
    assert is_read_once(pipe) and is_read_once("-") and not is_read_once(tmp_path) and not is_read_once("none.wav")
    writer = threading.Thread(target=lambda: pipe.write_bytes(encode(NOISE)))
    writer.start()
    np.testing.assert_array_equal(load_audio(pipe), load_audio(encode(NOISE)))
    writer.join()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(encode(NOISE))))
    np.testing.assert_array_equal(load_audio("-"), load_audio(encode(NOISE)))


def test_a_name_that_is_no_utf_8_is_read(tmp_path) -> None:
    path = os.fsencode(tmp_path) + b"/caf\xe9.wav"
    with open(path, "wb") as file:
        file.write(encode(NOISE))
    assert load_audio(os.fsdecode(path)).shape == NOISE.shape


def test_a_header_that_promises_years_allocates_nothing() -> None:
    data = bytearray(encode(NOISE, format="FLAC"))
    data[21] |= 0x0F  # the upper bits of the 36-bit sample count in STREAMINFO
    data[22:26] = b"\xff\xff\xff\xff"
    assert audio_duration(bytes(data)) > 10**6
    assert refusal(bytes(data), max_seconds=40.0).reason == "too long"
    assert refusal(bytes(data)).reason == "truncated"


def test_without_ffmpeg_the_message_says_what_it_would_read(monkeypatch) -> None:
    monkeypatch.setenv("PATH", "")
    error = refusal(b"\0\0\0\x20ftypM4A " + bytes(1000))
    assert error.reason == "not audio" and "install ffmpeg" in error.detail and "m4a" in error.detail


def test_duration_reads_the_header_alone(tmp_path) -> None:
    path = tmp_path / "noise.flac"
    path.write_bytes(encode(NOISE, format="FLAC")[:500])  # the header is whole, the samples are not
    assert audio_duration(path) == 1.0
    assert audio_duration({"array": NOISE, "sampling_rate": 8000}) == 2.0
    with pytest.raises(AudioError, match="not audio"):
        audio_duration(b"nothing")


def test_the_error_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(refusal(b"")))
    assert (error.name, error.reason) == ("audio without a path", "empty")


def test_skipped_files_are_warned_of_once_and_counted(caplog) -> None:
    skipped = SkippedAudio()
    with caplog.at_level(logging.WARNING):
        for name, reason in [("a.wav", "empty"), ("b.wav", "silent"), ("a.wav", "empty"), ("c.wav", "empty")]:
            skipped.add(AudioError(name, reason, "as the test wants."))
    assert [record.getMessage().split(":")[0] for record in caplog.records] == [f"Skipped {x}.wav" for x in "abc"]
    assert str(skipped) == "3 audio files skipped: 2 empty, 1 silent"


@pytest.mark.parametrize(
    ("format", "subtype"), [*LOSSLESS, *LOSSY, ("WAV", "GSM610"), ("WAV", "MS_ADPCM"), ("array", None)]
)
def test_a_segment_is_the_part_of_the_whole(format: str, subtype: str | None) -> None:
    """Also where it crosses the border of two blocks of ten seconds."""
    long = np.tile(NOISE, 25)[: 24 * SAMPLING_RATE]
    source = (
        {"array": long, "sampling_rate": SAMPLING_RATE}
        if format == "array"
        else encode(long, SAMPLING_RATE, format, subtype)
    )
    whole = load_audio(source)
    for begin, end in ((0.0, 1.5), (9.25, 11.5), (20.125, math.inf), (3.0, 23.0)):
        part = load_audio(source, segment=(begin, end))
        stop = None if math.isinf(end) else round(end * SAMPLING_RATE)
        np.testing.assert_allclose(part, whole[round(begin * SAMPLING_RATE) : stop], atol=1e-6)
    assert refusal(source, segment=(99.0, 100.0)).reason == "empty"
    assert refusal(source, segment=(1.0, 9.0), max_seconds=7.0).reason == "too long"


def test_a_segment_of_recordings_in_one_file_crosses_their_border() -> None:
    data = encode(NOISE, format="OGG", subtype="VORBIS")
    np.testing.assert_allclose(load_audio(3 * data, segment=(0.5, 2.5)), load_audio(3 * data)[8_000:40_000], atol=1e-6)
