"""The audio of one stream: blocks of samples in, feature frames out.

Shape letters: F feature frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import soxr
import torch
from numpy.typing import NDArray
from torch.nn.utils.rnn import pad_sequence

from ..data.audio import SAMPLING_RATE, AudioError, array_to_mono
from ..modeling.configuration_conformer import HOP_LENGTH
from ..modeling.feature_extraction_speech_ssl import FRAME_LENGTH, num_frames
from .voice import VoiceGate

_MANY_CHANNELS = 32  # an axis longer than that holds samples


class StreamInput:
    """Turns blocks of samples into feature frames; where the blocks end changes nothing.

    Args:
        extractor: a `SpeechSSLFeatureExtractor`.
        number: of the stream, for messages.
        gate: lets audio with a voice through, and no other; all audio without one.
    """

    def __init__(self, extractor: Any, number: int, gate: VoiceGate | None = None):
        self.extractor, self.number, self.gate = extractor, number, gate
        self.ended = False
        self.samples: NDArray[np.float32] = np.zeros(0, dtype=np.float32)  # at 16 kHz, not yet turned into features
        self.features = torch.zeros(0, extractor.feature_size)  # (F, mel bins), not yet used
        self.seconds = 0.0  # of audio that came in
        self.rate: float = SAMPLING_RATE  # Hz, of what comes in
        self.channel_axis: int | None = None  # of two-dimensional blocks, once one was long enough to tell
        self._resampler: soxr.ResampleStream | None = None

    @property
    def num_frames(self) -> int:
        """Feature frames that are there or can be made of the samples."""
        return len(self.features) + num_frames(len(self.samples))

    def __getstate__(self) -> dict[str, Any]:
        if self._resampler is not None:
            raise TypeError(
                f"A stream at {self.rate:g} Hz cannot be copied or pickled after its first block: the state of its "
                f"resampler cannot be read. Copy it before, or feed it {SAMPLING_RATE} Hz."
            )
        return self.__dict__

    def check(self, block: Any, rate: float) -> tuple[NDArray[np.float32], int | None]:
        """A block as mono samples, and the axis of its channels; nothing changes.

        Raises:
            AudioError: the block cannot be used.
        """
        name, axis = f"stream {self.number} at {self.seconds:.2f} s", self.channel_axis
        block = _as_array(block, name)
        if block.size == 0:
            return np.zeros(0, dtype=np.float32), axis
        if axis is None and block.ndim == 2 and max(block.shape) > _MANY_CHANNELS:
            axis = int(np.argmin(block.shape))
        mono, rate = array_to_mono({"array": block, "sampling_rate": rate}, name, axis)
        if not np.isfinite(mono).all():
            raise AudioError(name, "not finite", "the block holds NaN or infinite samples; it was left out.")
        if self.seconds and rate != self.rate:
            raise AudioError(
                name, "bad array", f"the stream began at {self.rate:g} Hz and now brings {rate:g} Hz; join anew."
            )
        return mono, axis

    def add(self, block: NDArray[np.float32], channel_axis: int | None, rate: float) -> None:
        """Take a block that `check` returned."""
        self.channel_axis = channel_axis
        if not len(block):
            return
        if not self.seconds and rate != SAMPLING_RATE:
            self.rate, self._resampler = rate, soxr.ResampleStream(rate, SAMPLING_RATE, 1, dtype="float32")
        self.seconds += len(block) / self.rate
        self._take(block if self._resampler is None else self._resampler.resample_chunk(block))

    def end(self) -> None:
        """Take what is left in the resampler; no more will come."""
        self.ended = True
        if self._resampler is not None:
            self._take(self._resampler.resample_chunk(np.zeros(0, dtype=np.float32), last=True))

    def advance(self, frames: int) -> None:
        """Let the gate look at what has come, until so many feature frames are there or a segment ends."""
        while self.gate is not None and self.num_frames < frames:
            block = self.gate.next(self.ended)
            if block is None:
                return
            self.samples = np.concatenate([self.samples, block])

    def clear(self) -> None:
        """Forget what no step has used, at the end of a segment or of the stream."""
        self.samples, self.features = self.samples[:0], self.features[:0]

    def _take(self, block: NDArray[np.float32]) -> None:
        if self.gate is None:
            self.samples = np.concatenate([self.samples, block])
        else:
            self.gate.add(block)

    def drop(self, frames: int) -> None:
        """Forget the first feature frames, which have been used."""
        self.features = self.features[frames:]


def extract_features(inputs: Sequence[StreamInput], frames: int) -> None:
    """Turn samples of streams into features in one call, until each has so many frames or all that it can have."""
    counts = [min(one.num_frames, frames) - len(one.features) for one in inputs]
    lacking = [(one, count) for one, count in zip(inputs, counts, strict=True) if count > 0]
    if not lacking:
        return
    used = [torch.from_numpy(one.samples[: (count - 1) * HOP_LENGTH + FRAME_LENGTH]) for one, count in lacking]
    lengths = torch.tensor([len(one) for one in used])
    rows, _ = inputs[0].extractor.extract(pad_sequence(used, batch_first=True), lengths)
    for (one, count), row in zip(lacking, rows, strict=True):
        one.features = torch.cat([one.features, row[:count]])
        one.samples = one.samples[count * HOP_LENGTH :]


def _as_array(block: Any, name: str) -> NDArray[Any]:
    try:
        if isinstance(block, torch.Tensor):
            block = block.detach().cpu()
            block = (block.float() if block.dtype == torch.bfloat16 else block).numpy()  # numpy has no bfloat16
        return np.asarray(block)
    except (TypeError, ValueError, RuntimeError) as error:  # ragged lists, sparse tensors
        raise AudioError(name, "bad array", f"it cannot become a numpy array ({error}).") from error
