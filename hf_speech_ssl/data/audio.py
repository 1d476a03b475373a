"""Reads any audio file or array as 16 kHz mono float32, or refuses it with the reason.

soundfile (libsndfile: wav, flac, ogg, opus, mp3, aiff ...) decodes and soxr resamples; both release the interpreter's
lock while they work, so that threads decode in parallel. What libsndfile does not read, the program ffmpeg does where
it is installed. torchcodec is not needed.
"""

import math
import os
from collections.abc import Iterable
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import soxr

from .audio_error import AudioError, SkippedAudio
from .sound_file import RATES, is_read_once, is_remote, mix_down, open_audio

__all__ = [
    "MIN_SAMPLES",
    "SAMPLING_RATE",
    "AudioError",
    "AudioSource",
    "SkippedAudio",
    "array_to_mono",
    "audio_duration",
    "audio_name",
    "check_rate",
    "check_samples",
    "is_read_once",
    "is_remote",
    "load_audio",
    "open_audio",
]

SAMPLING_RATE = 16_000  # Hz, of everything that leaves this file
MIN_SAMPLES = 400  # 25 ms, one analysis window of the features

AudioSource: TypeAlias = "str | os.PathLike[str] | bytes | BinaryIO | dict[str, Any]"

LOUDEST = 32.0  # the feature extractor's own; importing it from there would import torch


def load_audio(
    source: AudioSource,
    *,
    name: str | None = None,
    min_samples: int = MIN_SAMPLES,
    max_seconds: float | None = None,
    segment: tuple[float, float] | None = None,
) -> np.ndarray:
    """Read audio of any rate and channel count as 16 kHz mono.

    Args:
        source: a path or URL, the bytes of a file, an open binary file, `{"path", "bytes"}` (what a `datasets` audio
            column with `decode=False` holds) or `{"array" or "raw", "sampling_rate"}` with samples of shape
            (samples,), (samples, channels) or (channels, samples): the shorter axis is taken for the channels.
            Integer samples are scaled to [-1, 1).
        name: how errors call the audio; the path by default.
        min_samples: fewer samples at 16 kHz are refused; one 25 ms frame by default.
        max_seconds: longer audio is refused, before it is decoded where the header tells.
        segment: begin and end in seconds of the part to read; all by default. The end may be infinite.

    Returns:
        float32 samples of shape (samples,) at 16 kHz.

    Raises:
        AudioError: empty, truncated, not audio, silent (constant), NaN or infinite, too short or too long. A truncated
            ogg or opus file that still ends on a whole page cannot be told from a short one and is accepted.
    """
    name = name or audio_name(source)
    begin, end = segment or (0.0, math.inf)
    if isinstance(source, dict) and ("array" in source or "raw" in source):
        waveform, rate = array_to_mono(source, name)
        waveform = waveform[round(begin * rate) : _sample(end, rate)]
        _check_length(len(waveform) / rate, max_seconds, name)
    else:
        with open_audio(source, name) as audio:
            rate = audio.samplerate
            _check_length(min(end, (audio.frames or 0) / rate) - begin, max_seconds, name)
            waveform = _joined(audio.blocks(round(begin * rate), _sample(end, rate)), rate, max_seconds, name)
    if len(waveform) == 0:
        raise AudioError(name, "empty", "it holds no samples; remove it or record it again.")
    check_samples(waveform, name)
    if waveform.min() == waveform.max():
        raise AudioError(name, "silent", "all samples are equal; speech is needed.")
    if rate != SAMPLING_RATE:
        waveform = soxr.resample(waveform, rate, SAMPLING_RATE)
    if len(waveform) < min_samples:
        raise AudioError(name, "too short", f"{len(waveform)} samples at 16 kHz, at least {min_samples} are needed.")
    return waveform


def audio_duration(source: AudioSource, *, name: str | None = None) -> float:
    """Seconds of audio, from the header: nothing is decoded but what ffmpeg has to read.

    Raises:
        AudioError: the header cannot be read, or promises more than the file holds.
    """
    name = name or audio_name(source)
    if isinstance(source, dict) and ("array" in source or "raw" in source):
        waveform, rate = array_to_mono(source, name)
        return len(waveform) / rate
    with open_audio(source, name) as audio:
        frames = sum(map(len, audio.blocks())) if audio.frames is None else audio.frames
        return float(frames / audio.samplerate)


def audio_name(source: Any, row_label: str | None = None) -> str:
    """What to call audio in a message.

    Args:
        source: any source of `load_audio`.
        row_label: its row in a data set, such as "example 7". Tables of audio keep only the last name of a file, or
            none, so that the row is needed to find it again.
    """
    path = source.get("path") if isinstance(source, dict) else source
    if not isinstance(path, (str, os.PathLike)):
        return row_label or str(getattr(path, "name", "audio without a path"))
    path = os.fspath(path)
    return path if row_label is None or os.path.basename(path) != path else f"{path} ({row_label})"


def _sample(seconds: float, rate: float) -> int | None:
    return None if math.isinf(seconds) else round(seconds * rate)


def _joined(blocks: Iterable[np.ndarray], rate: float, max_seconds: float | None, name: str) -> np.ndarray:
    parts: list[np.ndarray] = []
    frames = 0
    for block in blocks:
        parts.append(block)
        frames += len(block)
        _check_length(frames / rate, max_seconds, name)  # where the header promised less
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.float32)


def array_to_mono(source: dict[str, Any], name: str, channel_axis: int | None = None) -> tuple[np.ndarray, float]:
    """Mono float32 samples and their rate from `{"array" or "raw", "sampling_rate"}`.

    Args:
        channel_axis: of two-dimensional samples; the shorter axis, if absent.

    Raises:
        AudioError: "bad array": no real samples of one or two dimensions, a scale that cannot be known, no such rate.
    """
    rate = check_rate(source.get("sampling_rate"), name)
    try:
        samples = np.asarray(source["array"] if source.get("array") is not None else source.get("raw"))
    except (TypeError, ValueError, RuntimeError) as error:  # ragged lists, tensors on a GPU
        raise AudioError(name, "bad array", f"it cannot become a numpy array ({error}).") from error
    if samples.dtype.kind not in "iuf" or samples.ndim not in (1, 2):
        raise AudioError(
            name,
            "bad array",
            f"real samples of shape (samples,) or (samples, channels) are needed, "
            f"got {samples.dtype} of shape {samples.shape}.",
        )
    samples = _scaled(samples, name)
    if samples.ndim == 2 and samples.size:
        axis = int(np.argmin(samples.shape)) if channel_axis is None else channel_axis
        samples, _ = mix_down(np.moveaxis(samples, axis, 1).astype(np.float64))
    return np.ascontiguousarray(samples.ravel(), dtype=np.float32), rate


def check_rate(rate: Any, name: str) -> float:
    """A sampling rate in Hz as a float; raises `AudioError` for what no recording has."""
    if not isinstance(rate, (int, float, np.integer, np.floating)) or not RATES[0] <= rate <= RATES[1]:
        raise AudioError(
            name, "bad array", f"'sampling_rate' must be a number of Hz from {RATES[0]} to {RATES[1]}, got {rate!r}."
        )
    return float(rate)


def check_samples(samples: np.ndarray, name: str) -> None:
    """Refuse decoded samples that are no numbers, or floats in the range of integers."""
    if not np.isfinite(samples).all():
        raise AudioError(name, "not finite", "some samples are NaN or infinite; write the file again.")
    if (peak := float(np.abs(samples).max(initial=0.0))) > LOUDEST:
        raise AudioError(
            name,
            "too loud",
            f"floats must lie in [-1, 1], got {peak:g}; divide by what stands for 1 (32768 if they were int16) and "
            f"write the file again.",
        )


def _scaled(samples: np.ndarray, name: str) -> np.ndarray:
    """Integers by the range of their type, floats as they are."""
    if samples.dtype.kind == "f":
        peak = float(np.abs(samples).max(initial=0.0))
        if LOUDEST < peak < float("inf"):
            raise AudioError(
                name,
                "bad array",
                f"floats must lie in [-1, 1], got {peak:g}; divide by what stands for 1 (32768 if they were int16).",
            )
        return samples
    if samples.dtype.itemsize > 4:
        raise AudioError(
            name, "bad array", f"the full scale of {samples.dtype} samples is unknown; pass int16, int32 or floats."
        )
    limits = np.iinfo(samples.dtype)
    offset = 0 if limits.min < 0 else (limits.max + 1) // 2  # unsigned PCM is centered at half its range
    return (samples.astype(np.float64) - offset) / (offset or limits.max + 1)


def _check_length(seconds: float, max_seconds: float | None, name: str) -> None:
    if max_seconds is not None and seconds > max_seconds:
        raise AudioError(
            name, "too long", f"{seconds:.2f} s, the limit is {max_seconds:.2f} s; cut it up or raise the limit."
        )
