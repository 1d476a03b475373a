"""espeak-ng says the same thing the same way, and its times are where the sound is."""

import _ctypes
import ctypes
import sys

import numpy as np
import pytest

espeakng_loader = pytest.importorskip("espeakng_loader", reason="needs the extra `synthetic`")

from hf_speech_ssl.data.synthetic.espeak import SAMPLING_RATE, speak  # noqa: E402


def sounding(samples: np.ndarray) -> np.ndarray:
    """True where a window of 5 ms around the sample is louder than -45 dB of the loudest one."""
    power = np.convolve(samples.astype(float) ** 2, np.ones(SAMPLING_RATE // 200), mode="same")
    return power > power.max() * 10**-4.5


@pytest.mark.parametrize("voice", ["en-us+Annie", "en+Reed", "en-029+f2"])
def test_samples_do_not_depend_on_what_was_said_before(voice):
    first = speak("call maria two nine", voice)
    speak("stop", "en-gb-scotland+croak", words_per_minute=150, pitch=60)
    again = speak("call maria two nine", voice)
    assert np.array_equal(first.samples, again.samples)
    assert first.phones == again.phones
    assert first.words == again.words


def test_words_in_pauses_start_and_end_where_their_sound_does():
    speech = speak("please, open, anna, it's, window, stop, peter", "en-us+rob", words_per_minute=160)
    loud = np.flatnonzero(sounding(speech.samples))
    for word, following in zip(speech.words, [*speech.words[1:], None], strict=True):
        middle = (word.start + word.end) // 2
        until = len(speech.samples) if following is None else following.start - SAMPLING_RATE // 50
        assert abs(loud[loud < until].max() - word.end) < 0.03 * SAMPLING_RATE, word
        since = loud[(loud > word.start - SAMPLING_RATE // 20) & (loud < middle)].min()
        assert abs(since - word.start) < 0.03 * SAMPLING_RATE, word


@pytest.mark.parametrize(("text", "label"), [("see peter", "p"), ("see peter", "t"), ("maker", "k")])
def test_a_closure_belongs_to_its_stop(text, label):
    speech = speak(text, "en+rob")
    number = [phone.label for phone in speech.phones].index(label)
    before, stop = speech.phones[number - 1 : number + 1]
    loud = sounding(speech.samples)
    assert before.end == stop.start
    assert loud[before.start : before.end].mean() > 0.9
    assert 0.02 < (~loud[stop.start : stop.end]).sum() / SAMPLING_RATE < 0.1


def test_phones_are_named_without_stress_and_tile_their_words():
    speech = speak("open seven", "en-us+rob")
    assert [phone.label for phone in speech.phones] == ["oU", "p", "@", "n", "s", "E", "v", "@", "n"]
    assert all(a.end == b.start for a, b in zip(speech.phones, speech.phones[1:], strict=False))
    assert [(word.label, word.start, word.end) for word in speech.words] == [
        ("open", speech.phones[0].start, speech.phones[3].end),
        ("seven", speech.phones[4].start, speech.phones[8].end),
    ]


def test_rate_and_pitch_are_heard():
    def fundamental(samples: np.ndarray) -> float:
        power = np.abs(np.fft.rfft(samples.astype(float), 1 << 16)) ** 2
        shortest, longest = SAMPLING_RATE // 200, SAMPLING_RATE // 70
        return SAMPLING_RATE / (shortest + np.fft.irfft(power)[shortest:longest].argmax())

    low, high = (speak("anna", "en-us+rob", pitch=pitch).samples for pitch in (30, 70))
    assert fundamental(high) > 1.2 * fundamental(low)
    slow, fast = (len(speak("anna", "en-us+rob", words_per_minute=rate).samples) for rate in (120, 240))
    assert fast < 0.7 * slow


def test_a_library_that_cannot_be_cleared_is_refused():
    held = ctypes.CDLL(espeakng_loader.get_library_path())
    assert held.espeak_Initialize(2, 0, espeakng_loader.get_data_path().encode(), 0) == SAMPLING_RATE
    try:
        with pytest.raises(RuntimeError, match="in use by another package"):
            speak("open", "en-us+rob")
    finally:
        held.espeak_Terminate()
        _ctypes.dlclose(held._handle)
    assert speak("open", "en-us+rob").words


def test_errors_say_what_to_do(monkeypatch):
    with pytest.raises(ValueError, match="no voice variant 'nobody'"):
        speak("open", "en-us+nobody")
    with pytest.raises(ValueError, match="no voice 'en-nowhere'"):
        speak("open", "en-nowhere")
    with pytest.raises(ValueError, match="'the'.*'in the garden'.*reword"):
        speak("in the garden", "en-us+rob")
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(ImportError, match="pip install espeakng-loader"):
        speak("open", "en-us+rob")
