"""A long audio file as 16 kHz mono blocks, one after the other: what is held never grows with the file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import soxr
from numpy.typing import NDArray

from .audio import MIN_SAMPLES, SAMPLING_RATE, AudioError, AudioSource, audio_name, check_samples, open_audio


def stream_audio(
    source: AudioSource, *, name: str | None = None, min_samples: int = MIN_SAMPLES
) -> Iterator[NDArray[np.float32]]:
    """Read an audio file of any rate, channel count and length.

    Args:
        source: a path or URL, the bytes of a file, an open binary file or `{"path", "bytes"}`. A URL and bytes are
            held whole as they are; only what is decoded comes in blocks.
        name: how errors call the audio; the path by default.
        min_samples: fewer samples at 16 kHz are refused; one 25 ms frame by default.

    Yields:
        float32 (samples,) at 16 kHz, none of them empty; together they are what `load_audio` returns.

    Raises:
        AudioError: as `load_audio`; what is known only at the end (silent, truncated, too short) is raised there.
    """
    name = name or audio_name(source)
    count = 0
    with open_audio(source, name) as audio:
        for block in _resampled(_checked(audio.blocks(), name), audio.samplerate):
            count += len(block)
            yield block
    if count < min_samples:
        raise AudioError(name, "too short", f"{count} samples at 16 kHz, at least {min_samples} are needed.")


def _checked(blocks: Iterable[NDArray[np.float32]], name: str) -> Iterator[NDArray[np.float32]]:
    """The same blocks, at the file's own rate: a constant would no longer be one behind the resampler."""
    lowest, highest = np.inf, -np.inf
    for block in blocks:
        check_samples(block, name)
        lowest, highest = min(lowest, block.min()), max(highest, block.max())
        yield block
    if lowest == highest:
        raise AudioError(name, "silent", "all samples are equal; speech is needed.")
    if lowest > highest:
        raise AudioError(name, "empty", "it holds no samples; remove it or record it again.")


def _resampled(blocks: Iterable[NDArray[np.float32]], rate: int) -> Iterator[NDArray[np.float32]]:
    """Blocks at 16 kHz, none of them empty."""
    if rate == SAMPLING_RATE:
        yield from blocks
        return
    resampler = soxr.ResampleStream(rate, SAMPLING_RATE, 1, dtype="float32")
    for block in blocks:
        if len(resampled := resampler.resample_chunk(block)):
            yield resampled
    if len(resampled := resampler.resample_chunk(np.zeros(0, dtype=np.float32), last=True)):
        yield resampled


class SampleWindow:
    """A stretch of a stream of samples that only moves forward.

    Args:
        blocks: of samples, from `stream_audio`.
    """

    def __init__(self, blocks: Iterable[NDArray[np.float32]]):
        self._blocks = iter(blocks)
        self._held = np.zeros(0, dtype=np.float32)
        self._first = 0  # position of the first sample held
        self._ended = False

    def between(self, begin: int, end: int) -> NDArray[np.float32]:
        """Samples [begin, end) of the stream, fewer where it ends before; what lies before `begin` is forgotten.

        Raises:
            ValueError: samples that have been forgotten are asked for.
            AudioError: from the stream.
        """
        if begin < self._first:
            raise ValueError(
                f"The window only moves forward: sample {begin} is gone, {self._first} is the first left."
            )
        self._forget(begin)
        while not self._ended and self._first + len(self._held) <= end:  # one more, to know whether the stream goes on
            block = next(self._blocks, None)
            if block is None:
                self._ended = True
            else:
                self._held = np.concatenate([self._held, block]) if len(self._held) else block
                self._forget(begin)
        return self._held[max(0, begin - self._first) : max(0, end - self._first)]

    def ends_before(self, sample: int) -> bool:
        """Whether the stream, as far as `between` has read it, ends at position `sample` or before it."""
        return self._ended and self._first + len(self._held) <= sample

    def _forget(self, begin: int) -> None:
        gone = min(max(0, begin - self._first), len(self._held))
        self._held = self._held[gone:]
        self._first += gone
