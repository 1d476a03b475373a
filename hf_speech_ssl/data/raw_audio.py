"""Audio without a header, as microphones and pipes deliver it, in mono blocks."""

from __future__ import annotations

from collections.abc import Iterator
from io import BufferedReader
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .audio import AudioError

NAME = "standard input"
BLOCK_SECONDS = 0.1  # of audio, handed over at once
SAMPLE_FORMATS = {"s16": "<i2", "f32": "<f4"}
_HEADERS = {b"RIFF": "wav", b"RF64": "wav", b"fLaC": "flac", b"OggS": "ogg", b"ID3\x03": "mp3", b"ID3\x04": "mp3"}
_CHECKED_BYTES = 2048  # of the beginning, to tell formats apart
_AUDIBLE = (1e-6, 8.0)  # floats of audio, but for zeros


def raw_blocks(
    stream: BufferedReader, sampling_rate: float, sample_format: str = "s16", num_channels: int = 1
) -> Iterator[NDArray[np.float32] | NDArray[np.int16]]:
    """Read little-endian samples as they arrive, the channels mixed down.

    Args:
        stream: hands out what has arrived, as buffered binary files do.
        sampling_rate: in Hz.
        sample_format: a key of `SAMPLE_FORMATS`.
        num_channels: interleaved channels.

    Yields:
        (samples,) in the stream's own sample format where it is mono, else float32. A sample that comes in parts waits
        for the rest of it.

    Raises:
        AudioError: the bytes are those of an audio file, or of another sample format.
    """
    kind = np.dtype(SAMPLE_FORMATS[sample_format])
    frame_bytes = kind.itemsize * num_channels
    waiting, checked = b"", False
    while data := stream.read1(max(1, int(BLOCK_SECONDS * sampling_rate)) * frame_bytes):
        waiting += data
        if not checked and len(waiting) >= _CHECKED_BYTES:
            _check_beginning(waiting, sample_format, num_channels)
            checked = True
        if checked:
            whole = len(waiting) // frame_bytes * frame_bytes
            yield _samples(waiting[:whole], kind, num_channels)
            waiting = waiting[whole:]
    if not checked:
        _check_beginning(waiting, sample_format, num_channels)
        yield _samples(waiting[: len(waiting) // frame_bytes * frame_bytes], kind, num_channels)


def _samples(data: bytes, kind: np.dtype[Any], num_channels: int) -> NDArray[np.float32] | NDArray[np.int16]:
    samples = np.frombuffer(data, dtype=kind)
    if num_channels == 1:
        return samples
    scale = 2.0**15 if kind.kind == "i" else 1.0
    return (samples.reshape(-1, num_channels).mean(axis=1) / scale).astype(np.float32)


def _check_beginning(data: bytes, sample_format: str, num_channels: int) -> None:
    """Refuse what would be heard as noise."""
    if data[:4] in _HEADERS:
        raise AudioError(
            NAME,
            "bad array",
            f"a {_HEADERS[data[:4]]} file came in, raw samples are needed; name the file instead of '-', or send them "
            "raw (arecord -t raw, sox -t raw, ffmpeg -f s16le).",
        )
    if len(data) < _CHECKED_BYTES:
        return
    if sample_format == "s16" and _are_floats(data):
        raise AudioError(
            NAME, "bad array", "32-bit floats came in; give --sample_format f32, or send 16-bit integers."
        )
    if sample_format == "f32" and not _are_floats(data):
        raise AudioError(
            NAME,
            "bad array",
            "these are no 32-bit floats of audio; give --sample_format s16 if they are 16-bit integers.",
        )
    if num_channels == 1 and _are_equal_pairs(data, sample_format):
        raise AudioError(
            NAME, "bad array", "every sample comes twice, as in stereo; give --num_channels 2, or send one channel."
        )


def _are_floats(data: bytes) -> bool:
    """Whether the bytes, as floats, are what audio has. Of 16-bit integers many are NaN or next to nothing."""
    values = np.abs(np.frombuffer(data[: len(data) // 4 * 4], dtype="<f4"))
    sound = (values > _AUDIBLE[0]) & (values < _AUDIBLE[1])
    return bool(sound.any() and np.mean(sound | (values == 0)) > 0.99)


def _are_equal_pairs(data: bytes, sample_format: str) -> bool:
    kind = np.dtype(SAMPLE_FORMATS[sample_format])
    pairs = np.frombuffer(data[: len(data) // (2 * kind.itemsize) * 2 * kind.itemsize], dtype=kind).reshape(-1, 2)
    return bool((pairs[:, 0] == pairs[:, 1]).all() and len(np.unique(pairs)) > 8)
