"""The utterances of the synthetic corpus: who says what, how, and in what room; each a function of its number alone.

What a worker process runs: numpy, soxr and soundfile, and nothing that starts threads.
"""

import io
import random
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import soundfile
import soxr

from . import espeak
from .grammar import draw_with_translations

SAMPLING_RATE = 16_000  # Hz

ACCENTS = (
    "en", "en-029", "en-gb-scotland", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-gb-x-rp", "en-us", "en-us-nyc",
)  # fmt: skip

# 78 of the 104 voice variants that espeakng-loader 0.2.4 ships; docs/LOG.md has the reasons against the others.
# Voices with nearly the same long-term spectrum stand in one split, so that an unseen voice is one.
VOICES = {
    "train": (
        "Alex", "Andrea", "Andy", "AnxiousAndy", "Denis", "Diogo", "Henrique", "Hugo", "Jacky", "Lee", "Mario",
        "Michael", "Mike", "Mr serious", "Nguyen", "Reed", "Storm", "Tweaky", "adam", "anika", "antonio", "aunty",
        "belinda", "benjamin", "boris", "croak", "david", "ed", "edward2", "f1", "f4", "grandma", "grandpa", "ian",
        "iven2", "iven3", "iven4", "john", "klatt", "klatt2", "klatt3", "klatt4", "klatt6", "m1", "m2", "m3", "m4",
        "m5", "m6", "m7", "m8", "marcelo", "max", "mike2", "norbert", "pablo", "paul", "pedro", "quincy", "sandro",
        "travis", "victor",
    ),
    "validation": ("Gene", "Gene2", "f2", "f3", "gustave", "linda", "michel", "miguel"),
    "test": ("Annie", "edward", "f5", "klatt5", "rob", "robert", "steph", "steph2"),
}  # fmt: skip

LEVELS = ("equal", "varied")

_WORDS_PER_MINUTE = (140, 200)
_PITCH = (35, 65)  # of espeak-ng's 0 to 99
_SILENCE_S = (0.1, 0.3)  # before and after the speech
_LEVEL_DBFS = (-30.0, -20.0)  # RMS of the speech
# With varied levels every voice is up to 20 dB softer than that, and each of its utterances by up to 10 dB more.
_VOICE_GAIN_DB, _UTTERANCE_GAIN_DB = (-20.0, 0.0), (-10.0, 0.0)
_VARIED_SNR_DB = (5.0, 40.0)
_DRY_SHARE = 0.3  # of the utterances have no room where levels are varied
_PEAK = 0.95


@dataclass(frozen=True)
class Recipe:
    """All that a corpus depends on, but for the number of the utterance."""

    split: str
    grammar: str
    seed: int
    noise_snr_db: float | None
    reverberation: bool
    levels: str = "equal"
    languages: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Surroundings:
    """How loud an utterance is, and what is around it."""

    gain_db: float
    noise_snr_db: float | None
    reverberation: bool


def utterance(recipe: Recipe, index: int) -> dict[str, Any]:
    """Row `index` of the corpus: audio (FLAC, 16 kHz, 16 bit), text and translations, speaker, times (s).

    A speaker is a voice variant with an accent and a pitch; the rate changes from sentence to sentence.
    """
    rng = random.Random(f"{recipe.seed}/{recipe.split}/{index}")
    sentence = draw_with_translations(recipe.grammar, recipe.split, rng)
    text = sentence.english
    variant, accent = rng.choice(VOICES[recipe.split]), rng.choice(ACCENTS)
    speaker = f"{variant.replace(' ', '_')}.{accent}"
    pitch = random.Random(speaker).randint(*_PITCH)
    speech = espeak.speak(text, f"{accent}+{variant}", words_per_minute=rng.randint(*_WORDS_PER_MINUTE), pitch=pitch)
    lead, tail = (round(rng.uniform(*_SILENCE_S) * SAMPLING_RATE) for _ in range(2))
    waveform = place(speech, lead, tail, level_dbfs=rng.uniform(*_LEVEL_DBFS))
    # Streams of their own: the words and the voice are the same with and without room and noise.
    streams = np.random.SeedSequence([recipe.seed, zlib.crc32(recipe.split.encode()), index]).spawn(3)
    room_rng, noise_rng, level_rng = (np.random.default_rng(stream) for stream in streams)
    around = _surroundings(recipe, speaker, level_rng)
    waveform *= 10 ** (around.gain_db / 20)
    if around.reverberation:
        waveform = reverberate(waveform, room_rng)
    if around.noise_snr_db is not None:
        end = lead + round(len(speech.samples) * SAMPLING_RATE / espeak.SAMPLING_RATE)
        waveform = add_noise(waveform, around.noise_snr_db, noise_rng, speech=slice(lead, end))
    waveform *= min(1.0, _PEAK / np.abs(waveform).max())
    encoded = io.BytesIO()
    soundfile.write(encoded, waveform, SAMPLING_RATE, format="FLAC", subtype="PCM_16")
    return {
        "audio": {"path": f"{recipe.split}-{index:06d}.flac", "bytes": encoded.getvalue()},
        "text": text,
        **{translation_column(language): sentence.translations[language] for language in recipe.languages},
        "speaker_id": speaker,
        "duration": len(waveform) / SAMPLING_RATE,
        "phones": [{"phone": s.label, **_seconds(s, lead)} for s in speech.phones],
        "words": [{"word": s.label, **_seconds(s, lead)} for s in speech.words],
    }


def translation_column(language: str) -> str:
    """The column with the translations into a language."""
    return f"text_{language}"


def _surroundings(recipe: Recipe, speaker: str, rng: np.random.Generator) -> _Surroundings:
    """What the recipe says, or drawn for the voice and the utterance where levels are varied."""
    if recipe.levels == "equal":
        return _Surroundings(0.0, recipe.noise_snr_db, recipe.reverberation)
    of_voice = random.Random(f"level/{speaker}").uniform(*_VOICE_GAIN_DB)
    gain = of_voice + rng.uniform(*_UTTERANCE_GAIN_DB)
    snr = rng.uniform(*_VARIED_SNR_DB) if recipe.noise_snr_db is None else recipe.noise_snr_db
    return _Surroundings(gain, snr, recipe.reverberation or rng.random() >= _DRY_SHARE)


def reverberate(waveform: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A room around the speech: the direct sound stays where it is, a tail of decaying noise follows.

    Reverberation time (-60 dB) 0.2 to 0.6 s, direct sound 0 to 10 dB above the tail's energy, first reflection after
    2 to 10 ms.

    Returns:
        As many samples as came in.
    """
    seconds = rng.uniform(0.2, 0.6)
    direct_db = rng.uniform(0.0, 10.0)
    first_reflection = int(rng.uniform(0.002, 0.010) * SAMPLING_RATE)
    time = np.arange(int(seconds * SAMPLING_RATE)) / SAMPLING_RATE
    response = rng.standard_normal(len(time)) * 10 ** (-3 * time / seconds)
    response[:first_reflection] = 0
    response *= np.sqrt(10 ** (-direct_db / 10) / np.sum(response**2))
    response[0] = 1
    size = _fft_size(len(waveform) + len(response))
    return np.fft.irfft(np.fft.rfft(waveform, size) * np.fft.rfft(response, size), size)[: len(waveform)]


def add_noise(waveform: np.ndarray, snr_db: float, rng: np.random.Generator, *, speech: slice) -> np.ndarray:
    """Stationary noise whose spectrum falls as f^-a, a from 0 (white) to 2 (brown).

    Args:
        snr_db: mean power of the samples in `speech` over the mean power of the noise.
    """
    size = _fft_size(len(waveform))
    spectrum = np.fft.rfft(rng.standard_normal(size))
    spectrum[0] = 0
    spectrum[1:] *= np.arange(1, len(spectrum)) ** (-rng.uniform(0.0, 2.0) / 2)
    noise = np.fft.irfft(spectrum, size)[: len(waveform)]
    power = np.mean(waveform[speech] ** 2) * 10 ** (-snr_db / 10)
    return waveform + noise * np.sqrt(power / np.mean(noise**2))


def _fft_size(length: int) -> int:
    """The power of two from `length` on: one of another length can take 20 times as long."""
    return 1 << (length - 1).bit_length()


def place(speech: espeak.Speech, lead: int, tail: int, *, level_dbfs: float) -> np.ndarray:
    """Speech at 16 kHz and the given level, with `lead` and `tail` samples of silence around it."""
    samples = soxr.resample(speech.samples.astype(np.float64) / 32768, espeak.SAMPLING_RATE, SAMPLING_RATE)
    samples *= 10 ** (level_dbfs / 20) / np.sqrt(np.mean(samples**2))
    return np.pad(samples, (lead, tail))


def _seconds(segment: espeak.Segment, lead: int) -> dict[str, float]:
    offset = lead / SAMPLING_RATE
    return {
        "start": offset + segment.start / espeak.SAMPLING_RATE,
        "end": offset + segment.end / espeak.SAMPLING_RATE,
    }
