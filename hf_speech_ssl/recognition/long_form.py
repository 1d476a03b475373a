"""Audio files of any number and length through any recognizer: short ones in batches, long ones in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..data.audio import SAMPLING_RATE, AudioError, AudioSource, audio_name
from ..data.audio_stream import SampleWindow, stream_audio
from ..data.planning import plan_steps
from ..decoding import Decoder, Hypothesis
from ..modeling.configuration_conformer import HOP_LENGTH
from ..modeling.feature_extraction_speech_ssl import FRAME_LENGTH
from .recognizer import Recognizer
from .streaming import StreamingBatch
from .windows import cut_windows

_POOL_SECONDS = 600.0  # of short audio, sorted by length together


@dataclass(frozen=True)
class Transcript:
    """The transcript of a file.

    Attributes:
        name: the file, as errors call it.
        seconds: its duration.
        hypotheses: the best one first, at least one; a recording of more than two minutes has one.
    """

    name: str
    seconds: float
    hypotheses: list[Hypothesis]


@dataclass(frozen=True)
class LongFormRecognizer:
    """Transcribes audio files one after the other, whatever their number and length.

    Files of up to `window_seconds` are transcribed whole. Longer ones are transcribed

    - in windows of `window_seconds`, of which the first and the last sixth only lend context: the frames in between
      are put together, and are those of the whole file where the model looks no further than the context. A feature
      extractor that normalizes each utterance (wav2vec 2.0; not ours) normalizes each window.
    - with `chunk_duration_ms` chunk by chunk, each one remembering those before it. This is the pass over the whole
      file, but that a model with unlimited left context remembers the last `window_seconds` only.

    Args:
        recognizer: the model.
        decoder: greedy by default.
        chunk_duration_ms: Chunk SSL: duration of a chunk; 0 for whole utterances or windows.
        batch_seconds: bound on the padded length of a batch of files or windows; one is the least.
        window_seconds: of a recording, given to the model at once. Not much more than the utterances that it was
            trained on serves best.
        progress: called with seconds of audio that are done.

    Raises:
        ValueError: batch_seconds is not positive, or a window is shorter than a second.
    """

    recognizer: Recognizer
    decoder: Decoder[Any] | None = None
    chunk_duration_ms: int = 0
    batch_seconds: float = 60.0
    window_seconds: float = 30.0
    progress: Callable[[float], object] = field(default=lambda seconds: None)

    def __post_init__(self) -> None:
        if not (self.batch_seconds > 0 and math.isfinite(self.batch_seconds)):
            raise ValueError(f"batch_seconds must be a positive number, got {self.batch_seconds}.")
        if not (self.window_seconds >= 1 and math.isfinite(self.window_seconds)):
            raise ValueError(f"window_seconds must be a number of at least 1, got {self.window_seconds}.")

    def transcribe(self, sources: Iterable[AudioSource]) -> Iterator[Transcript | AudioError]:
        """Transcribe files.

        Args:
            sources: what [`stream_audio`] reads.

        Yields:
            For each source, in their order, its transcript or why there is none.
        """
        pool: list[_Short | AudioError] = []
        seconds = 0.0
        for source in sources:
            opened = self._open(source)
            if isinstance(opened, _Long):
                yield from self._transcribe_short(pool)
                pool, seconds = [], 0.0
                yield self._transcribe_long(opened)
                continue
            pool.append(opened)
            seconds += opened.seconds if isinstance(opened, _Short) else 0.0
            if seconds >= _POOL_SECONDS:
                yield from self._transcribe_short(pool)
                pool, seconds = [], 0.0
        yield from self._transcribe_short(pool)

    def recognize(self, samples: SampleWindow) -> list[Hypothesis]:
        """The hypotheses of a recording of any length, the best one first.

        Args:
            samples: of the recording, at 16 kHz.

        Raises:
            ValueError: the model's frames do not come at the stride that it claims.
        """
        decoder = self.decoder or self.recognizer.greedy()
        if self.chunk_duration_ms:
            return self._recognize_in_chunks(samples, decoder)
        state = decoder.start()
        for frames in self._windowed(samples):
            decoder.step([state], frames[None], [len(frames)])
        return decoder.finish(state)

    def _recognize_in_chunks(self, samples: SampleWindow, decoder: Decoder[Any]) -> list[Hypothesis]:
        model, processor = self.recognizer.model, self.recognizer.processor
        past = model.config.left_context_chunks
        if past is None:
            past = max(1, int(1000 * self.window_seconds / self.chunk_duration_ms))
        batch = StreamingBatch(model, processor, self.chunk_duration_ms, past, decoder)
        stream = batch.join()
        block, begin = round(self.window_seconds * SAMPLING_RATE), 0
        while not samples.ends_before(begin):
            batch.feed({stream: samples.between(begin, begin + block)})
            begin += block
        return batch.finish_hypotheses(stream)[0]

    def _windowed(self, samples: SampleWindow) -> Iterator[torch.Tensor]:
        size = round(self.window_seconds / self.recognizer.seconds_per_frame)
        stride = round(self.recognizer.seconds_per_frame * SAMPLING_RATE)
        together = max(1, int(self.batch_seconds / self.window_seconds))
        windows = cut_windows(samples, size, stride)
        while batch := list(islice(windows, together)):
            frames, lengths = self.recognizer.decoder_frames([window.waveform for window in batch])
            for window, row, length in zip(batch, frames, lengths.tolist(), strict=True):
                yield window.kept(row[:length])

    def _open(self, source: AudioSource) -> _Short | _Long | AudioError:
        """Read the beginning of a file, and all of it if that is its end."""
        stride = round(self.recognizer.seconds_per_frame * SAMPLING_RATE)
        least = stride + FRAME_LENGTH - HOP_LENGTH  # samples in the first frame
        blocks = _Counted(stream_audio(source, min_samples=least))
        samples = SampleWindow(blocks)
        end = round(self.window_seconds * SAMPLING_RATE)
        try:
            waveform = samples.between(0, end)
        except AudioError as error:
            return error
        if samples.ends_before(end):
            return _Short(audio_name(source), waveform)
        self.progress(blocks.seconds)
        blocks.progress = self.progress
        return _Long(audio_name(source), samples, blocks)

    def _transcribe_long(self, recording: _Long) -> Transcript | AudioError:
        try:
            hypotheses = self.recognize(recording.samples)
        except AudioError as error:
            return error
        return Transcript(recording.name, recording.blocks.seconds, hypotheses)

    def _transcribe_short(self, pool: list[_Short | AudioError]) -> Iterator[Transcript | AudioError]:
        """Transcribe files in batches of similar length."""
        decoder = self.decoder or self.recognizer.greedy()
        results: dict[int, Transcript | AudioError] = {
            i: one for i, one in enumerate(pool) if isinstance(one, AudioError)
        }
        whole = [(i, one) for i, one in enumerate(pool) if isinstance(one, _Short)]
        for (batch,) in plan_steps([one.seconds for _, one in whole], batch_seconds=self.batch_seconds):
            waveforms = [whole[row][1].waveform for row in batch]
            frames, lengths = self.recognizer.decoder_frames(waveforms, self.chunk_duration_ms)
            for row, hypotheses in zip(batch, decoder(frames, lengths), strict=True):
                place, one = whole[row]
                results[place] = Transcript(one.name, one.seconds, hypotheses)
                self.progress(one.seconds)
        yield from (results[place] for place in range(len(pool)))


@dataclass(frozen=True)
class _Short:
    """A file that is transcribed whole."""

    name: str
    waveform: NDArray[np.float32]

    @property
    def seconds(self) -> float:
        return len(self.waveform) / SAMPLING_RATE


class _Counted:
    """Blocks of samples that report how much has been read."""

    def __init__(self, blocks: Iterator[NDArray[np.float32]]):
        self._blocks = blocks
        self.seconds = 0.0
        self.progress: Callable[[float], object] = lambda seconds: None

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        for block in self._blocks:
            self.seconds += len(block) / SAMPLING_RATE
            self.progress(len(block) / SAMPLING_RATE)
            yield block


@dataclass(frozen=True)
class _Long:
    """A file of which the beginning has been read."""

    name: str
    samples: SampleWindow
    blocks: _Counted
