"""Any audio file or array -> 16 kHz mono float32, or a refusal that says what is wrong with it.

soundfile (libsndfile: wav, flac, ogg, opus, mp3, aiff ...) decodes and soxr resamples; both release the interpreter's
lock while they work, so that threads decode in parallel. Neither torchcodec nor ffmpeg is needed.
"""

import io
import logging
import os
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any, BinaryIO, TypeAlias

import fsspec
import numpy as np
import soundfile
import soxr

logger = logging.getLogger(__name__)

SAMPLING_RATE = 16_000  # Hz, of everything that leaves this file
MIN_SAMPLES = 400  # 25 ms, one analysis window of the features

AudioSource: TypeAlias = "str | os.PathLike[str] | bytes | BinaryIO | dict[str, Any]"

_RATES = (1_000, 768_000)  # Hz: what is outside is a mistake, and resampling it could fill the memory
_LOUDEST = 32.0  # floats overshoot 1 by some decibels when they were mixed or decoded, not by thirty
_BLOCK = 1 << 20  # frames decoded at once: what a header claims is never allocated before it has been read
_SLACK_BYTES = 64  # sloppy writers are off by a header's few bytes; that is no lost speech
_UNKNOWN_SIZE = 0x7FFF_0000  # writers to a pipe put sizes from here up: "until the end of the file"
_LOSSY_SLACK = 0.01  # the length of an MP3 without an index is an estimate
_SIZE_MISMATCH = re.compile(r":\s*(\d+) \(should be (\d+)\)")  # libsndfile's log, RIFF, W64, AIFF and AU alike


class AudioError(ValueError):
    """Audio that cannot be used.

    Attributes:
        name: the file, as the user knows it.
        reason: one of "empty", "truncated", "not audio", "missing", "silent", "not finite", "too short", "too long",
            "bad array"; reports count by it. Data sets add "no transcript".
    """

    def __init__(self, name: str, reason: str, detail: str) -> None:
        super().__init__(f"{name}: {reason}: {detail}")
        self.name = name
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type["AudioError"], tuple[str, str, str]]:
        return type(self), (self.name, self.reason, self.detail)


class SkippedAudio:
    """The files that were left out: a warning for each, once, and the counts by reason."""

    def __init__(self) -> None:
        self._reasons: dict[str, str] = {}
        self._lock = Lock()

    def add(self, error: AudioError) -> None:
        """Count a file and warn, unless this has been done in an earlier epoch."""
        with self._lock:
            known = error.name in self._reasons
            self._reasons[error.name] = error.reason
        if not known:
            logger.warning("Skipped %s", error)

    @property
    def by_reason(self) -> dict[str, int]:
        """Number of files for each reason."""
        with self._lock:
            return dict(Counter(self._reasons.values()))

    def __len__(self) -> int:
        return len(self._reasons)

    def __str__(self) -> str:
        counts = ", ".join(f"{count} {reason}" for reason, count in sorted(self.by_reason.items()))
        return f"{len(self)} audio files skipped" + (f": {counts}" if counts else "")


def load_audio(
    source: AudioSource,
    *,
    name: str | None = None,
    min_samples: int = MIN_SAMPLES,
    max_seconds: float | None = None,
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

    Returns:
        float32 samples of shape (samples,) at 16 kHz.

    Raises:
        AudioError: empty, truncated, not audio, silent (constant), NaN or infinite, too short or too long. A truncated
            ogg or opus file that still ends on a whole page cannot be told from a short one and is accepted.
    """
    name = name or audio_name(source)
    if isinstance(source, dict) and ("array" in source or "raw" in source):
        waveform, rate = array_to_mono(source, name)
        _check_length(len(waveform) / rate, max_seconds, name)
    else:
        with open_audio(source, name) as file:
            rate = file.samplerate
            _check_length(file.frames / rate, max_seconds, name)
            waveform = _decode(file, max_seconds, name)
    if len(waveform) == 0:
        raise AudioError(name, "empty", "it holds no samples; remove it or record it again.")
    if not np.isfinite(waveform).all():
        raise AudioError(name, "not finite", "some samples are NaN or infinite; write the file again.")
    if waveform.min() == waveform.max():
        raise AudioError(name, "silent", "all samples are equal after mixing down to mono; speech is needed.")
    if rate != SAMPLING_RATE:
        waveform = soxr.resample(waveform, rate, SAMPLING_RATE)
    if len(waveform) < min_samples:
        raise AudioError(name, "too short", f"{len(waveform)} samples at 16 kHz, at least {min_samples} are needed.")
    return waveform


def audio_duration(source: AudioSource, *, name: str | None = None) -> float:
    """Seconds of audio, from the header alone: nothing is decoded.

    Raises:
        AudioError: the header cannot be read, or promises more than the file holds.
    """
    name = name or audio_name(source)
    if isinstance(source, dict) and ("array" in source or "raw" in source):
        waveform, rate = array_to_mono(source, name)
        return len(waveform) / rate
    with open_audio(source, name) as file:
        return float(file.frames / file.samplerate)


def audio_name(source: Any, place: str | None = None) -> str:
    """What to call audio in a message.

    Args:
        source: any source of `load_audio`.
        place: where it stands in a data set, such as "example 7". Tables of audio keep only the last name of a file,
            or none, so that the place is needed to find it again.
    """
    path = source.get("path") if isinstance(source, dict) else source
    if not isinstance(path, (str, os.PathLike)):
        return place or str(getattr(path, "name", "audio without a path"))
    path = os.fspath(path)
    return path if place is None or os.path.basename(path) != path else f"{path} ({place})"


def is_remote(path: Any) -> bool:
    """Whether a path is a URL (`hf://`, `https://`, `zip://...::hf://`), as streamed data sets hold them."""
    return isinstance(path, str) and "://" in path


@contextmanager
def open_audio(source: Any, name: str) -> Iterator[soundfile.SoundFile]:
    """The open sound file of any encoded source of `load_audio`; raises `AudioError` as `load_audio` does."""
    if isinstance(source, dict):
        if source.get("bytes") is None and source.get("path") is None:
            raise AudioError(name, "missing", f"neither 'bytes' nor 'path' is set; the keys are {sorted(source)}.")
        source = source["bytes"] if source.get("bytes") is not None else source["path"]
    if isinstance(source, (str, os.PathLike)):
        with _open_path(source, name) as file, open_audio(file, name) as audio:
            yield audio
        return
    if isinstance(source, (bytes, bytearray, memoryview)):
        source = io.BytesIO(source)
    if not hasattr(source, "read") or isinstance(source, io.TextIOBase):
        raise AudioError(
            name, "not audio", f"a path, bytes, a binary file or a dictionary is needed, got {type(source).__name__}."
        )
    if not source.seekable():
        source = io.BytesIO(source.read())
    if not source.read(1):
        raise AudioError(name, "empty", "the file has 0 bytes; copy or record it again.")
    source.seek(0)
    try:
        file = soundfile.SoundFile(source)
    except (soundfile.SoundFileError, TypeError) as error:
        raise AudioError(
            name, "not audio", f"libsndfile cannot read it ({_message(error)}); convert it to wav or flac."
        ) from error
    with file:
        _check_complete(file, name)
        yield file


def _open_path(path: "str | os.PathLike[str]", name: str) -> BinaryIO:
    try:
        if not is_remote(path):
            return open(path, "rb")
        with fsspec.open(path, "rb") as file:
            return io.BytesIO(file.read())  # once, whole: libsndfile seeks, and each seek would be a request
    except OSError as error:
        raise AudioError(name, "missing", f"it cannot be opened ({error}); check the path.") from error


def _check_complete(file: soundfile.SoundFile, name: str) -> None:
    """Compare the sizes in the header with the file; libsndfile shortens its frame count silently and only logs it."""
    for promised, actual in _SIZE_MISMATCH.findall(file.extra_info):
        if int(actual) + _SLACK_BYTES < int(promised) < _UNKNOWN_SIZE:
            raise AudioError(
                name, "truncated", f"the header promises {promised} bytes, {actual} are there; copy the file again."
            )
    if file.frames == 0:
        raise AudioError(name, "empty", "a header without any audio; copy or record it again.")


def _decode(file: soundfile.SoundFile, max_seconds: float | None, name: str) -> np.ndarray:
    blocks: list[np.ndarray] = []
    frames = 0
    for block in mono_blocks(file, name):
        blocks.append(block)
        frames += len(block)
        _check_length(frames / file.samplerate, max_seconds, name)  # where the header promised less
    return np.concatenate(blocks) if blocks else np.zeros(0, dtype=np.float32)


def mono_blocks(file: soundfile.SoundFile, name: str, block_frames: int = _BLOCK) -> Iterator[np.ndarray]:
    """All of an open file at its own rate: float32 (samples,), `block_frames` at most.

    Raises:
        AudioError: decoding breaks off, or the header promised more.
    """
    frames = 0
    try:
        while len(block := file.read(block_frames, dtype="float32", always_2d=True)):  # (frames, channels)
            frames += len(block)
            yield block[:, 0] if block.shape[1] == 1 else block.mean(axis=1)
    except soundfile.SoundFileError as error:
        raise AudioError(
            name, "truncated", f"decoding broke off after {frames} frames ({_message(error)}); copy the file again."
        ) from error
    lossy = file.format in ("MP3", "OGG")
    if frames < file.frames * (1 - _LOSSY_SLACK * lossy):
        raise AudioError(
            name, "truncated", f"the header promises {file.frames} frames, {frames} are there; copy the file again."
        )


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
    if samples.ndim == 2:
        axis = int(np.argmin(samples.shape)) if channel_axis is None else channel_axis
        samples = samples.mean(axis=axis if samples.size else 0, dtype=np.float64)
    return np.ascontiguousarray(samples, dtype=np.float32), rate


def check_rate(rate: Any, name: str) -> float:
    """A sampling rate in Hz as a float; raises `AudioError` for what no recording has."""
    if not isinstance(rate, (int, float, np.integer, np.floating)) or not _RATES[0] <= rate <= _RATES[1]:
        raise AudioError(
            name, "bad array", f"'sampling_rate' must be a number of Hz from {_RATES[0]} to {_RATES[1]}, got {rate!r}."
        )
    return float(rate)


def _scaled(samples: np.ndarray, name: str) -> np.ndarray:
    """Integers by the range of their type, floats as they are."""
    if samples.dtype.kind == "f":
        peak = float(np.abs(samples).max(initial=0.0))
        if _LOUDEST < peak < float("inf"):
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


def _message(error: Exception) -> str:
    """libsndfile's own words, without the address of the file object that soundfile puts before them."""
    return str(getattr(error, "error_string", error)).removeprefix("Error : ").rstrip(".")
