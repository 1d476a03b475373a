"""Sound files whose headers are wrong, missing or not the only ones: read to the end, or refused by name."""

import io
import shutil
import struct
import subprocess

import numpy as np
import pytest
import soundfile
from helpers import speech_like

from hf_speech_ssl.data.audio import SAMPLING_RATE, AudioError, audio_duration, load_audio
from hf_speech_ssl.data.audio_stream import stream_audio
from hf_speech_ssl.data.containers.mpeg import read_header
from hf_speech_ssl.data.containers.splice import SplicedFile, size_without_tags

SPEECH = speech_like(4.0)
LOUD_THEN_QUIET = SPEECH * np.repeat([8.0, 0.01], len(SPEECH) // 2).astype(np.float32)


def encode(format: str, subtype: str | None = None, samples: np.ndarray = SPEECH, **options) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, SAMPLING_RATE, format=format, subtype=subtype, **options)
    return buffer.getvalue()


def vbr_mp3(samples: np.ndarray = LOUD_THEN_QUIET) -> bytes:
    return encode("MP3", samples=samples, bitrate_mode="VARIABLE", compression_level=0.5)


def without_index(mp3: bytes) -> bytes:
    """The same frames without the first one, which holds no audio but their number."""
    header = read_header(mp3, 0)
    assert header is not None and mp3[header.index_offset :][:4] in (b"Xing", b"Info")
    return mp3[header.size :]


def patched(data: bytes, position: int, new: bytes) -> bytes:
    return data[:position] + new + data[position + len(new) :]


def size_field(data: bytes, name: bytes = b"data") -> int:
    return data.index(name) + len(name)


def reason(source) -> str:
    with pytest.raises(AudioError) as caught:
        load_audio(source, name="the file")
    assert str(caught.value).startswith("the file: ")
    return caught.value.reason


def assert_whole(data: bytes, seconds: float = 4.0, tolerance: float = 0.1) -> None:
    """All readers agree that it holds so many seconds."""
    assert len(load_audio(data)) / SAMPLING_RATE == pytest.approx(seconds, abs=tolerance)
    assert audio_duration(data) == pytest.approx(seconds, abs=tolerance)
    assert sum(map(len, stream_audio(data))) / SAMPLING_RATE == pytest.approx(seconds, abs=tolerance)


def assert_is_speech(data: bytes, tolerance: float = 1e-4) -> None:
    np.testing.assert_allclose(load_audio(data), SPEECH, atol=tolerance)
    assert audio_duration(data) == 4.0


# --- MP3


def test_libsndfile_alone_loses_the_end_of_an_mp3_without_index() -> None:
    """What the tests below are about: if this fails, libsndfile has learnt it."""
    with soundfile.SoundFile(io.BytesIO(without_index(vbr_mp3()))) as file:
        assert file.frames < 0.8 * len(SPEECH)


JUNK = np.random.default_rng(0).bytes(3000)
MP3S = {
    "no index": lambda: (without_index(vbr_mp3()), 4),
    "no index, an ID3v2 tag": lambda: (b"ID3\x03\0\0\0\0\x01\x00" + bytes(128) + without_index(vbr_mp3()), 4),
    "two in one": lambda: (vbr_mp3() + vbr_mp3(), 8),
    "two in one without index": lambda: (2 * without_index(vbr_mp3()), 8),
    "constant, then variable": lambda: (encode("MP3", bitrate_mode="CONSTANT") + without_index(vbr_mp3()), 8),
    "a tag between two": lambda: (vbr_mp3() + b"ID3\x03\0\0\0\0\x01\x00" + bytes(128) + vbr_mp3(), 8),
    "constant, zeros behind": lambda: (without_index(encode("MP3", bitrate_mode="CONSTANT")) + bytes(30_000), 4),
    "constant, noise behind": lambda: (without_index(encode("MP3", bitrate_mode="CONSTANT")) + JUNK, 4),
    "noise in front": lambda: (JUNK + encode("MP3", bitrate_mode="CONSTANT"), 4),
    "noise in front, no index": lambda: (JUNK + without_index(vbr_mp3()), 4),
    "noise in the middle": lambda: (vbr_mp3() + JUNK + without_index(vbr_mp3()), 8),
    "half a frame in front": lambda: (without_index(vbr_mp3())[100:], 4),
}


@pytest.mark.parametrize("case", MP3S)
def test_an_mp3_is_read_to_its_end_whatever_it_says_of_its_length(case: str) -> None:
    data, seconds = MP3S[case]()
    assert_whole(data, seconds, tolerance=0.2)


def test_an_mp3_without_index_is_the_same_audio_as_with_one() -> None:
    with_index, without = load_audio(vbr_mp3()), load_audio(without_index(vbr_mp3()))
    cut = len(without) - len(with_index)  # the padding at both ends, which only an index tells
    best = max(np.corrcoef(without[lag:][: len(with_index)], with_index)[0, 1] for lag in range(cut + 1))
    assert 0 <= cut < 2000 and best > 0.999


def with_index(data: bytes, index: bytes) -> bytes:
    """The frames of an MP3 behind a first frame with another index."""
    header = read_header(data, 0)
    assert header is not None
    at = 36 if index.startswith(b"VBRI") else header.index_offset
    return data[:4] + bytes(at - 4) + index + bytes(header.size - at - len(index)) + data[header.size :]


@pytest.mark.parametrize("kind", ["frames and bytes", "frames", "bytes", "VBRI"])
def test_an_mp3_that_is_cut_off_is_refused_by_what_its_index_states(kind: str) -> None:
    data = vbr_mp3()
    at = data.index(b"Xing") + 8
    frames, size = data[at : at + 4], data[at + 4 : at + 8]
    assert int.from_bytes(size, "big") == len(data)
    index = {
        "frames and bytes": b"Xing\0\0\0\3" + frames + size,
        "frames": b"Xing\0\0\0\1" + frames,
        "bytes": b"Xing\0\0\0\2" + size,
        "VBRI": b"VBRI\0\1\0\0\0\x50" + size + frames,
    }[kind]
    assert_whole(with_index(data, index))
    assert reason(with_index(data, index)[: len(data) * 3 // 4]) == "truncated"


def tags_behind(data: bytes) -> bytes:
    ape = b"x" * 20_000
    ape += b"APETAGEX" + struct.pack("<IIII", 2000, len(ape) + 32, 1, 0) + bytes(8)
    lyrics = b"LYRICSBEGIN" + b"a" * 20_000
    lyrics += f"{len(lyrics):06}LYRICS200".encode()
    return data + ape + lyrics + b"TAG" + bytes(125)


@pytest.mark.parametrize("format", ["MP3", "FLAC", "WAV"])
def test_tags_behind_the_audio_are_no_lost_audio(format: str) -> None:
    data = encode(format)
    spliced = SplicedFile(io.BytesIO(tags_behind(data)), [range(len(tags_behind(data)))])
    assert 0 <= len(data) - size_without_tags(spliced) < 200  # zeros at the end of the audio are taken for padding
    assert_whole(tags_behind(data))


def test_an_mp3_with_a_damaged_frame_behind_its_index_is_read() -> None:
    """libmpg123 gives up, and libsndfile says that the file does not exist."""
    data = encode("MP3", bitrate_mode="CONSTANT")
    first = read_header(data, 0)
    assert first is not None
    second = read_header(data, first.size)
    assert second is not None
    damaged = patched(data, first.size + second.size + 1, b"\xff")
    with pytest.raises(soundfile.SoundFileError):
        soundfile.SoundFile(io.BytesIO(damaged))
    assert_whole(damaged)


def test_what_only_looks_like_mp3_is_refused() -> None:
    assert reason(encode("MP3", bitrate_mode="CONSTANT")[288:358]) == "not audio"


def test_an_mp3_of_another_rate_behind_is_refused_by_name() -> None:
    other = io.BytesIO()
    soundfile.write(other, SPEECH, 44_100, format="MP3")
    assert reason(vbr_mp3() + other.getvalue()) == "unread rest"


# --- Ogg, FLAC


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_all_recordings_of_a_chained_ogg_file_are_read(subtype: str) -> None:
    data = encode("OGG", subtype)
    whole = load_audio(data)
    np.testing.assert_array_equal(load_audio(data + data), np.concatenate([whole, whole]))
    assert_whole(3 * data, 12.0)


def test_tags_in_front_of_ogg_are_no_mp3() -> None:
    data = encode("OGG", "VORBIS")
    tagged = b"ID3\x03\0\0\0\0\x07\x68" + bytes(1000) + data
    np.testing.assert_array_equal(load_audio(tagged), load_audio(data))


def unknown_length(flac: bytes) -> bytes:
    return patched(flac, 21, bytes([flac[21] & 0xF0, 0, 0, 0, 0]))


@pytest.mark.parametrize("samples", [SPEECH, SPEECH[:-1000], np.zeros(4096 * 4) + 0.25 * (np.arange(4096 * 4) < 8000)])
def test_flac_of_unknown_length_is_read_whole(samples: np.ndarray) -> None:
    data = unknown_length(encode("FLAC", samples=samples))
    np.testing.assert_allclose(load_audio(data), samples, atol=1e-4)
    assert audio_duration(data) == len(samples) / SAMPLING_RATE


def test_flac_of_unknown_length_that_is_cut_off_is_refused() -> None:
    data = unknown_length(encode("FLAC"))
    assert reason(data[: len(data) - 500]) == "truncated"


def test_flac_files_in_one_are_read_to_the_end() -> None:
    known = encode("FLAC")
    for data in (known + known, unknown_length(known) * 2, known + unknown_length(known)):
        assert_whole(data, 8.0)


def test_flac_that_states_less_than_it_holds_is_read_whole() -> None:
    assert_is_speech(patched(encode("FLAC"), 22, (20_000).to_bytes(4, "big")))


# --- WAV and its relatives


def wav_of_size(size: int, riff: int | None = None) -> bytes:
    data = encode("WAV", "PCM_16")
    data = patched(data, size_field(data), struct.pack("<I", size))
    return data if riff is None else patched(data, 4, struct.pack("<I", riff))


def rf64_of_size(size: int) -> bytes:
    data = encode("RF64", "PCM_16")
    return patched(data, size_field(data, b"ds64") + 4, struct.pack("<QQQ", size, size, 0))


def big_endian(format: str, name: bytes, width: int, size: int) -> bytes:
    data = encode(format, "PCM_16")
    return patched(data, size_field(data, name), (size & (1 << 8 * width) - 1).to_bytes(width, "big"))


def w64_of_size(size: int) -> bytes:
    data = encode("W64", "PCM_16")
    return patched(data, data.index(b"data\xf3\xac") + 16, struct.pack("<Q", size))


def au_of_size(size: int) -> bytes:
    return patched(encode("AU", "PCM_16"), 8, struct.pack(">I", size))


def bw64(data: bytes) -> bytes:
    return b"BW64" + data[4:]


def wrong_byte_rate() -> bytes:
    data = encode("WAV", "PCM_16")
    return patched(data, 28, struct.pack("<I", 64_000))


def with_a_comment() -> bytes:
    """A text that looks like a complaint of libsndfile about a size."""
    data = encode("WAV", "PCM_16")
    text = b"\ndata : 999999 (should be 3)\nRIFF : 999999 (should be 3)\n\0"
    text += b"\0" * (len(text) % 2)
    comment = b"INFOICMT" + struct.pack("<I", len(text)) + text
    return data[:36] + b"LIST" + struct.pack("<I", len(comment)) + comment + data[36:]


def with_chunks(in_front: bytes, behind: bytes) -> bytes:
    """Chunks in front of the format and behind it."""
    data = encode("WAV", "PCM_16")
    return data[:12] + in_front + data[12:36] + behind + data[36:]


WHOLE = {
    "WAV, an ID3 tag in front": lambda: b"ID3\x03\0\0\0\0\x07\x68" + bytes(1000) + encode("WAV", "PCM_16"),
    "AIFF, an ID3 tag in front": lambda: b"ID3\x03\0\0\0\0\x07\x68" + bytes(1000) + encode("AIFF", "PCM_16"),
    "WAV, odd chunks without padding": lambda: with_chunks(b"junk\5\0\0\0abcde", b"note\3\0\0\0abc"),
    "WAV, odd chunks with padding": lambda: with_chunks(b"junk\5\0\0\0abcde\0", b"note\3\0\0\0abc\0"),
    "WAV, data 0": lambda: wav_of_size(0),
    "WAV, data and RIFF 0": lambda: wav_of_size(0, 0),
    "WAV, INT32_MAX": lambda: wav_of_size(0x7FFFFFFF),
    "WAV, -1": lambda: wav_of_size(0xFFFFFFFF, 0xFFFFFFFF),
    "WAV, 44 too many": lambda: wav_of_size(2 * len(SPEECH) + 44),
    "WAV, byte rate": wrong_byte_rate,
    "WAV, a comment": with_a_comment,
    "RF64, 0": lambda: rf64_of_size(0),
    "RF64, -1": lambda: rf64_of_size(0xFFFF_FFFF_FFFF_FFFF),
    "BW64": lambda: bw64(encode("RF64", "PCM_16")),
    "BW64, 0": lambda: bw64(rf64_of_size(0)),
    "W64, 0": lambda: w64_of_size(0),
    "W64, only its header": lambda: w64_of_size(24),
    "W64, the largest": lambda: w64_of_size(0x7FFF_FFFF_FFFF_FFFF),
    "AIFF, 0": lambda: patched(big_endian("AIFF", b"SSND", 4, 0), 4, bytes(4)),
    "AIFF, 8": lambda: big_endian("AIFF", b"SSND", 4, 8),
    "AIFF, -1": lambda: big_endian("AIFF", b"SSND", 4, -1),
    "CAF, -1": lambda: big_endian("CAF", b"data", 8, -1),
    "CAF, 0": lambda: big_endian("CAF", b"data", 8, 0),
    "AU, -1": lambda: au_of_size(0xFFFFFFFF),
    "AU, 0": lambda: au_of_size(0),
}


@pytest.mark.parametrize("case", WHOLE)
def test_samples_that_are_there_are_read_whatever_the_header_says_of_their_size(case: str) -> None:
    data = WHOLE[case]()
    waveform = load_audio(data)
    assert -1 <= len(waveform) - len(SPEECH) < 4200  # CAF pads its header's chunk, which counts to the end of the file
    np.testing.assert_allclose(waveform[: len(SPEECH)], SPEECH[: len(waveform)], atol=1e-4)
    assert audio_duration(data) == len(waveform) / SAMPLING_RATE


def test_recordings_in_one_wav_file_are_all_read() -> None:
    data = encode("WAV", "PCM_16")
    np.testing.assert_allclose(load_audio(data + data), np.concatenate([SPEECH, SPEECH]), atol=1e-4)
    assert audio_duration(data + data + data) == 12.0


def test_chunks_behind_the_audio_are_none_and_unknown_bytes_are_refused() -> None:
    data = encode("WAV", "PCM_16")
    chunk = b"LIST" + struct.pack("<I", 40_000) + bytes(range(1, 201)) * 200
    assert_is_speech(data + chunk)
    assert_is_speech(data + bytes(40_000))
    stale = patched(data, size_field(data), struct.pack("<I", 40_000))  # as of a recorder's last update
    with pytest.raises(AudioError, match="unread rest.*40000 bytes of audio, and [0-9]+ bytes follow.*ignore_length"):
        load_audio(stale)


def test_a_header_of_an_empty_recording_with_chunks_behind_is_empty() -> None:
    data = encode("WAV", "PCM_16", samples=SPEECH[:0])
    assert reason(data + b"LIST" + struct.pack("<I", 4000) + b"INFO" + b"x" * 3996) == "empty"


@pytest.mark.parametrize("subtype", ["ULAW", "ALAW", "IMA_ADPCM", "MS_ADPCM", "GSM610", "G721_32", "NMS_ADPCM_16"])
@pytest.mark.parametrize("byte_rate", [None, 1, 10**6])
def test_codecs_inside_wav_have_rules_of_their_own(subtype: str, byte_rate: int | None) -> None:
    data = encode("WAV", subtype)
    if byte_rate is not None:
        data = patched(data, 28, struct.pack("<I", byte_rate))
    assert_whole(data)
    assert_whole(patched(data, size_field(data), bytes(4)))
    assert reason(data[: len(data) // 2]) == "truncated"


@pytest.mark.parametrize("index", [True, False])
def test_mp3_inside_wav_is_read_to_its_end(index: bool) -> None:
    mp3 = vbr_mp3() if index else without_index(vbr_mp3())
    format_chunk = struct.pack(
        "<4sIHHIIHHHHIHHH", b"fmt ", 30, 0x55, 1, SAMPLING_RATE, 2000, 1, 0, 12, 1, 2, 288, 1, 0
    )
    data = format_chunk + b"data" + struct.pack("<I", len(mp3)) + mp3
    assert_whole(b"RIFF" + struct.pack("<I", len(data) + 4) + b"WAVE" + data)


def test_bytes_that_libsndfile_leaves_are_noticed(monkeypatch) -> None:
    """The guard behind the rules: decoding ends long before the file does."""
    monkeypatch.setattr("hf_speech_ssl.data.containers.repair_flac", lambda file: [file])
    assert reason(2 * encode("FLAC")) == "unread rest"


# --- what was not downloaded, and headers that cannot be


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n", "git lfs pull"),
        (b"\n<!DOCTYPE html><html>404</html>", "web page"),
        (b"PK\3\4" + bytes(99), "archive; unpack"),
    ],
)
def test_what_lies_in_the_place_of_audio_is_named(data: bytes, words: str) -> None:
    with pytest.raises(AudioError, match=f"the file: not audio: .*{words}"):
        load_audio(data, name="the file")


@pytest.mark.parametrize("rate", [1, 999, 10**9])
def test_a_sampling_rate_that_no_recording_has_is_refused(rate: int) -> None:
    data = patched(encode("WAV", "PCM_16"), 24, struct.pack("<I", rate))
    with pytest.raises(AudioError, match=f"not audio: its header states a sampling rate of {rate} Hz"):
        load_audio(data, name="the file")


def test_floats_in_the_range_of_integers_are_refused_by_all_readers() -> None:
    data = encode("WAV", "FLOAT", 32768 * SPEECH)
    assert reason(data) == "too loud"
    with pytest.raises(AudioError, match="too loud: .*32768"):
        list(stream_audio(data))
    assert_whole(encode("WAV", "FLOAT", 4 * SPEECH))


# --- what ffmpeg reads

with_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")


def ffmpeg_file(path, *flags: str):
    wav = path.with_name("source.wav")
    soundfile.write(wav, SPEECH, SAMPLING_RATE)
    subprocess.run(["ffmpeg", "-v", "error", "-y", "-i", str(wav), *flags, str(path)], check=True)
    return path


@with_ffmpeg
@pytest.mark.parametrize("name", ["memo.m4a", "film.mp4", "talk.webm", "a.aac", "a.wma", "note: a b.m4a"])
def test_what_libsndfile_cannot_read_ffmpeg_does(tmp_path, name: str) -> None:
    path = ffmpeg_file(tmp_path / name)
    for source in (path, path.read_bytes(), io.BytesIO(path.read_bytes())):
        waveform = load_audio(source)
        assert len(waveform) == pytest.approx(4 * SAMPLING_RATE, abs=3000)
        assert np.square(waveform).mean() == pytest.approx(np.square(SPEECH).mean(), rel=0.3)
    assert audio_duration(path) == len(waveform) / SAMPLING_RATE
    assert sum(map(len, stream_audio(path))) == len(waveform)


@with_ffmpeg
def test_what_ffmpeg_finds_cut_off_is_refused(tmp_path) -> None:
    for name, flags in (("a.m4a", ["-movflags", "+faststart"]), ("a.webm", [])):
        path = ffmpeg_file(tmp_path / name, *flags)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        assert reason(path) == "truncated"


@with_ffmpeg
def test_what_is_no_audio_is_not_made_into_some(tmp_path) -> None:
    for data in (SPEECH.tobytes(), b"a text that was renamed\n" * 99, bytes(range(1, 256)) * 50):
        assert reason(data) == "not audio"
    film = tmp_path / "silent.mp4"
    subprocess.run(["ffmpeg", "-v", "error", "-f", "lavfi", "-i", "testsrc=d=1:s=32x32", str(film)], check=True)
    assert reason(film) == "not audio"
