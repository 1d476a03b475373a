"""espeak-ng through ctypes: text and a voice -> samples, with the times of the phones and words.

The library and its data come from the pip package `espeakng-loader`; nothing is installed on the system. Times are
those that espeak-ng reports with its audio; a pause or a closure is no part of the phone before it.
"""

import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

SAMPLING_RATE = 22_050  # Hz, of all espeak-ng voices used here

# Names and values of speak_lib.h.
_OUTPUT_SYNCHRONOUS = 2
_INITIALIZE_PHONEME_EVENTS = 0x0001
_INITIALIZE_DONT_EXIT = 0x8000
_RATE, _PITCH = 1, 3
_POS_CHARACTER = 1
_CHARS_UTF8 = 1
_EVENT_LIST_TERMINATED, _EVENT_WORD, _EVENT_PHONEME = 0, 1, 7

# espeak-ng keeps its state in globals: one utterance at a time in a process.
_lock = threading.Lock()


@dataclass(frozen=True)
class Segment:
    """A phone or a word, from sample `start` up to sample `end`."""

    label: str
    start: int
    end: int


@dataclass(frozen=True)
class Speech:
    """One utterance: int16 samples of shape (samples,) at 22.05 kHz, and its phones and words in samples."""

    samples: np.ndarray
    phones: list[Segment]
    words: list[Segment]


def speak(text: str, voice: str, *, words_per_minute: int = 175, pitch: int = 50) -> Speech:
    """Say a text.

    Bit-identical whenever the arguments, the espeak-ng build and the C library are the same, whatever was said before.
    Reseeds the C library's `rand`, which espeak-ng draws breath noise from.

    Args:
        text: lower-case words separated by single spaces.
        voice: language and variant as espeak-ng names them, e.g. "en-us+Annie".
        words_per_minute: 80 to 400.
        pitch: 0 to 99; 50 is the voice's own.

    Raises:
        ImportError: espeakng-loader is not installed.
        ValueError: the voice does not exist, or espeak-ng says two of the words as one ("of the"), so that a word has
            no time of its own.
        RuntimeError: the library cannot be loaded afresh.
    """
    _check_variant(voice)
    recorder = _Recorder()
    with _lock, _fresh_library(recorder) as library:
        if library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise ValueError(f"espeak-ng has no voice {voice!r}; needed: a language such as 'en-us' and its variant.")
        library.espeak_SetParameter(_RATE, words_per_minute, 0)
        library.espeak_SetParameter(_PITCH, pitch, 0)
        encoded = text.encode()
        library.espeak_Synth(encoded, len(encoded) + 1, 0, _POS_CHARACTER, 0, _CHARS_UTF8, None, None)
    samples = np.concatenate([*recorder.blocks, np.zeros(0, np.int16)])
    placed = _phones(recorder.events, samples)
    return Speech(samples, [phone for _, phone in placed], _words(text, placed))


class _EventId(ctypes.Union):
    _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8)]


class _Event(ctypes.Structure):
    """espeak_EVENT."""

    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),  # characters from 1, of the word that the event belongs to
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),  # ms
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _EventId),
    ]


_SynthCallback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


@dataclass(frozen=True)
class _Mark:
    """What is kept of an event: the start of a word (no phone name) or of a phone."""

    sample: int
    text_position: int
    phone: str | None


@dataclass
class _Recorder:
    """Collects what espeak-ng hands to its callback."""

    blocks: list[np.ndarray] = field(default_factory=list)
    events: list[_Mark] = field(default_factory=list)

    def __call__(self, samples: Any, num_samples: int, events: Any) -> int:
        if samples and num_samples > 0:
            self.blocks.append(np.ctypeslib.as_array(samples, (num_samples,)).copy())
        for event in events:  # ends at the terminator, never at the end of an array
            if event.type == _EVENT_LIST_TERMINATED:
                break
            if event.type == _EVENT_WORD:
                self.events.append(_Mark(event.sample, event.text_position, None))
            elif event.type == _EVENT_PHONEME:
                self.events.append(_Mark(event.sample, event.text_position, event.id.string.decode()))
        return 0


def _loader() -> ModuleType:
    try:
        import espeakng_loader
    except ImportError as error:
        raise ImportError(
            "The synthetic corpus needs espeak-ng, which is not installed: pip install espeakng-loader"
        ) from error
    return espeakng_loader


def _check_variant(voice: str) -> None:
    """espeak-ng itself takes the default voice for a variant that does not exist, and says nothing."""
    variant = voice.partition("+")[2]
    if variant and not Path(_loader().get_data_path(), "voices", "!v", variant).is_file():
        raise ValueError(f"espeak-ng has no voice variant {variant!r} ({voice!r}); needed: one such as 'en-us+Annie'.")


@contextmanager
def _fresh_library(recorder: _Recorder) -> Iterator[ctypes.CDLL]:
    """espeak-ng as on its very first call, unloaded afterwards.

    The phase of the last wave, filters and echoes of one utterance leak into the next, even across
    `espeak_Terminate`, and change its samples and its length. Loading the library again (0.3 ms) clears them.
    """
    if os.name != "posix":
        raise RuntimeError("The synthetic corpus needs Linux or macOS: it unloads espeak-ng between sentences.")
    import _ctypes  # holds dlclose, which ctypes uses and does not show

    espeakng_loader = _loader()
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    callback = _SynthCallback(recorder)
    try:
        if library.espeak_ng_GetSampleRate() != 0:
            raise RuntimeError(
                "espeak-ng is in use by another package in this process (phonemizer, perhaps), so that its state "
                "cannot be cleared between sentences: build the synthetic corpus in a process of its own."
            )
        options = _INITIALIZE_PHONEME_EVENTS | _INITIALIZE_DONT_EXIT
        rate = library.espeak_Initialize(_OUTPUT_SYNCHRONOUS, 0, espeakng_loader.get_data_path().encode(), options)
        if rate != SAMPLING_RATE:
            raise RuntimeError(
                f"espeak-ng did not start: it returned {rate}, needed {SAMPLING_RATE} (Hz). Reinstall espeakng-loader."
            )
        library.espeak_SetSynthCallback(callback)
        # Two generators: its own (pitch flutter) and the C library's (breath).
        library.espeak_ng_SetRandSeed(ctypes.c_long(1))
        ctypes.CDLL(None).srand(1)
        yield library
        library.espeak_Terminate()
    finally:
        _ctypes.dlclose(library._handle)


def _phones(marks: list[_Mark], samples: np.ndarray) -> list[tuple[int, Segment]]:
    """Phones with the text position of their word; pauses ("_:") end the phone before them and are left out."""
    starts: list[tuple[int, str, int]] = []  # sample, phone, text position
    word_start = 0
    for mark in marks:
        if mark.phone is None:
            word_start = mark.sample
            continue
        start = mark.sample
        if starts and not _is_pause(starts[-1][1]):
            previous = starts[-1][0]
            if previous < word_start < start:
                start = word_start  # the closure of a stop, or the glide into a vowel, belongs to the new word
            elif not _is_pause(mark.phone):
                # A stop is marked at its release. Its closure is digital silence, except in voices with an echo.
                start = max(_silence_start(samples, start), previous + 1)
        starts.append((start, mark.phone, mark.text_position))
    ends = [start for start, _, _ in starts[1:]] + [len(samples)]
    return [
        (position, Segment(phone.lstrip("',%="), start, end))  # without marks of stress
        for (start, phone, position), end in zip(starts, ends, strict=True)
        if not _is_pause(phone) and end > start
    ]


def _is_pause(phone: str) -> bool:
    return phone.startswith("_")


def _silence_start(samples: np.ndarray, end: int) -> int:
    """Where the run of zero samples begins that ends before sample `end`."""
    sounding = np.flatnonzero(samples[:end])
    return int(sounding[-1]) + 1 if len(sounding) else end


def _words(text: str, phones: list[tuple[int, Segment]]) -> list[Segment]:
    """From the start of a word's first phone to the end of its last.

    Not espeak-ng's own word events: in "turn on" it reports "on" where the "n" before it begins.
    """
    words, first = [], 1
    for word in text.split(" "):
        own = [phone for position, phone in phones if first <= position < first + len(word)]
        if not own:
            raise ValueError(f"espeak-ng gives {word!r} in {text!r} no time of its own: reword the sentence.")
        words.append(Segment(word, own[0].start, own[-1].end))
        first += len(word) + 1
    return words
