"""Blocks of a file are the file; a window of samples moves over them and holds no more than it shows."""

import numpy as np
import pytest
import soundfile
from helpers import speech_like
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_speech_ssl.data.audio import AudioError, load_audio
from hf_speech_ssl.data.audio_stream import SampleWindow, stream_audio


@pytest.mark.parametrize("rate", [16_000, 8_000, 44_100])
@pytest.mark.parametrize("channels", [1, 2])
def test_blocks_together_are_the_file(tmp_path, rate: int, channels: int) -> None:
    """25 s: two blocks and a rest."""
    samples = np.resize(speech_like(2.0), (25 * rate + 7, channels))
    soundfile.write(tmp_path / "a.flac", samples, rate)
    blocks = list(stream_audio(tmp_path / "a.flac"))
    assert len(blocks) >= 3 and all(len(block) and block.dtype == np.float32 for block in blocks)
    whole = load_audio(tmp_path / "a.flac")
    together = np.concatenate(blocks)
    assert len(together) == len(whole)
    np.testing.assert_allclose(together, whole, atol=1e-6)


def write(path, samples, rate: int = 16_000, **options) -> None:
    soundfile.write(path, np.asarray(samples, dtype=np.float32), rate, subtype="FLOAT", format="WAV", **options)


BAD = {
    "silent": lambda path: write(path, np.full(20_000, 0.25), rate=8_000),
    "not finite": lambda path: write(path, [0.1, np.nan] * 800),
    "too short": lambda path: write(path, [0.1, 0.2] * 100),
    "not audio": lambda path: path.write_text("no audio at all"),
    "empty": lambda path: write(path, np.zeros(0)),
    "missing": lambda path: None,
    "truncated": lambda path: (write(path, speech_like(1.0)), path.write_bytes(path.read_bytes()[:30_000])),
}


@pytest.mark.parametrize("reason", BAD)
def test_what_load_audio_refuses_is_refused(tmp_path, reason: str) -> None:
    path = tmp_path / "bad.wav"
    BAD[reason](path)
    for read in (load_audio, lambda source: list(stream_audio(source))):
        with pytest.raises(AudioError, match="bad.wav") as caught:
            read(path)
        assert caught.value.reason == reason


def test_the_least_number_of_samples_is_the_callers(tmp_path) -> None:
    write(tmp_path / "a.wav", speech_like(0.05))
    assert sum(map(len, stream_audio(tmp_path / "a.wav", min_samples=800))) == 800
    with pytest.raises(AudioError, match="800 samples at 16 kHz, at least 801"):
        list(stream_audio(tmp_path / "a.wav", min_samples=801))


@given(
    cuts=st.lists(st.integers(1, 9), min_size=0, max_size=12),
    moves=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=1, max_size=8),
)
@settings(max_examples=200, deadline=None)
def test_a_window_shows_what_lies_there(cuts: list[int], moves: list[tuple[int, int]]) -> None:
    whole = np.arange(sum(cuts), dtype=np.float32)
    window = SampleWindow(np.split(whole, np.cumsum(cuts)[:-1]) if cuts else [])
    begin = 0
    for ahead, size in moves:
        begin += ahead
        np.testing.assert_array_equal(window.between(begin, begin + size), whole[begin : begin + size])
        assert window.ends_before(begin + size) == (len(whole) <= begin + size)


def test_a_window_holds_no_more_than_it_shows() -> None:
    window = SampleWindow(np.ones(100, dtype=np.float32) for _ in range(1000))
    for begin in range(0, 90_000, 50):
        window.between(begin, begin + 300)
        assert len(window._held) <= 500
    with pytest.raises(ValueError, match="only moves forward: sample 5 is gone"):
        window.between(5, 10)
