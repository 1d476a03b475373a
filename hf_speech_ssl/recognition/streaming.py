"""Live transcription with a Chunk SSL model: samples in at any time, text out.

    transcriber = StreamingTranscriber(model, processor, chunk_duration_ms=320)
    for block in microphone:
        print(transcriber.accept(block).text)
    print(transcriber.finish())

The text at the end is the text of the offline pass with the same chunks over the whole signal. A chunk is transcribed
once the chunk after it, its look-ahead, has been heard: the latency is between one and two chunk durations, at most
one without look-ahead (`num_lookahead_chunks=0`). Memory grows with a stream unless `left_context_chunks` bounds what
it remembers.

Shape letters: C encoder frames per chunk, F feature frames, T encoder frames.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import soxr
import torch
from transformers import PreTrainedModel, ProcessorMixin, Wav2Vec2CTCTokenizer

from ..data.audio import SAMPLING_RATE, AudioError, array_to_mono
from ..decoding import ctc_text
from ..modeling.cache import ConformerCache
from ..modeling.configuration_conformer import HOP_LENGTH
from ..modeling.feature_extraction_speech_ssl import FRAME_LENGTH, num_frames

_MANY_CHANNELS = 32  # an axis longer than that holds samples


@dataclass(frozen=True)
class StreamingText:
    """What has been understood so far.

    Attributes:
        text: everything; its last word may still grow.
        final: the words of `text` that will not change any more: it only ever grows, and `text` begins with it.
    """

    text: str
    final: str


@dataclass(eq=False)
class Stream:
    """One stream's place in a `StreamingBatch`: what it has heard but not used yet, its cache and its text."""

    number: int
    samples: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.float32))  # not yet in a whole frame
    features: torch.Tensor = field(default_factory=lambda: torch.zeros(0))  # (F, mel bins), not yet in a chunk
    cache: ConformerCache | None = None  # shared with the streams that took the last step together
    row: int = 0  # its place in that cache
    last_id: int = -1  # the token of the last frame: a repeat of it is no new token
    word: list[int] = field(default_factory=list)  # tokens of the last word
    words: str = ""  # the words before it, with the space behind
    resampler: soxr.ResampleStream | None = None
    rate: float = SAMPLING_RATE  # Hz, of what comes in
    channel_axis: int | None = None  # of its two-dimensional blocks, once one was long enough to tell
    heard_seconds: float = 0.0
    ended: bool = False


class StreamingBatch:
    """Many streams through one model: they join, speak and leave at any time; those with a chunk ready share a step.

    Args:
        model: a `ChunkSSLForCTC`.
        processor: its processor: feature extractor and character CTC tokenizer (`Wav2Vec2CTCTokenizer`).
        chunk_duration_ms: duration of a chunk, a whole number of encoder frames (40 ms each in the presets).
        left_context_chunks: chunks that a stream remembers; those of the model's config, or all, if absent.

    Raises:
        ValueError: the model or its tokenizer cannot stream, or the duration is no whole number of frames.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        chunk_duration_ms: int = 320,
        left_context_chunks: int | None = None,
    ):
        if not hasattr(model.config, "chunk_frames") or not hasattr(model, "ctc_head"):
            raise ValueError(
                f"{type(model).__name__} cannot stream: frames that see their chunks only and a CTC head are needed. "
                f"Pass a ChunkSSLForCTC."
            )
        self.tokenizer = processor.tokenizer
        if not isinstance(self.tokenizer, Wav2Vec2CTCTokenizer):
            raise ValueError(
                f"A Wav2Vec2CTCTokenizer, which says where words end, is needed to stream, got "
                f"{type(self.tokenizer).__name__}."
            )
        if left_context_chunks is not None and left_context_chunks < 0:
            raise ValueError(f"left_context_chunks must be None (all) or at least 0, got {left_context_chunks}.")
        frames, past = model.config.chunk_frames(chunk_duration_ms), left_context_chunks
        past = model.config.left_context_chunks if past is None else past
        self.model = model.eval()
        self.extractor = processor.feature_extractor
        self.chunk_size = frames * model.config.frame_stacking  # feature frames
        self.left_context_frames = None if past is None else past * frames
        self.lookahead = bool(model.config.num_lookahead_chunks)
        self.streams: list[Stream] = []
        self.joined = 0

    def join(self) -> Stream:
        """A new stream."""
        self.joined += 1
        self.streams.append(Stream(self.joined, features=torch.zeros(0, self.extractor.feature_size)))
        return self.streams[-1]

    def accept(
        self, samples: Mapping[Stream, Any], sampling_rate: float = SAMPLING_RATE
    ) -> dict[Stream, StreamingText]:
        """Hear any number of samples of any of the streams, and transcribe every chunk that is complete.

        Args:
            samples: for each stream that has some, an array of shape (samples,), (samples, channels) or (channels,
                samples); channels are averaged, integers of 8 to 32 bits scaled, another rate is resampled to 16 kHz.
            sampling_rate: of the samples, in Hz; a stream keeps the rate that it began with.

        Returns:
            The text so far of these streams.

        Raises:
            AudioError: a block cannot be used (NaN, no numbers, floats far beyond 1, another rate than before).
                Nothing of this call has been heard then, and every stream goes on with its next block.
            ValueError: a stream has left.
        """
        blocks = {stream: self._checked(stream, block, sampling_rate) for stream, block in samples.items()}
        for stream, (block, channel_axis) in blocks.items():
            stream.channel_axis = channel_axis
            self._hear(stream, block, sampling_rate)
        self._run(list(blocks))
        return {stream: self.text(stream) for stream in blocks}

    def text(self, stream: Stream) -> StreamingText:
        """The text of a stream so far, without spaces at its ends."""
        words = stream.words + ctc_text(stream.word, self.tokenizer)
        return StreamingText(words.strip(), stream.words.strip())

    def finish(self, *streams: Stream) -> list[str]:
        """Transcribe what is left of these streams and let them leave; returns their whole texts.

        Raises:
            ValueError: one of them has left before. All others stay then.
        """
        for stream in streams:
            self._check_here(stream)
        for stream in dict.fromkeys(streams):  # each once
            if stream.resampler is not None:
                self._extract(stream, stream.resampler.resample_chunk(np.zeros(0, dtype=np.float32), last=True))
            stream.ended = True
        self._run(list(streams))
        self.streams = [stream for stream in self.streams if stream not in streams]
        for stream in streams:
            stream.cache, stream.features = None, stream.features[:0]
        return [self.text(stream).text for stream in streams]

    def _check_here(self, stream: Stream) -> None:
        if stream not in self.streams:
            raise ValueError(f"Stream {stream.number} has finished or belongs to another batch; call join() for one.")

    def _checked(self, stream: Stream, block: Any, rate: float) -> tuple[np.ndarray, int | None]:
        """A block as mono float32 samples with the axis of the stream's channels, or the reason why it is refused."""
        self._check_here(stream)
        name, axis = f"stream {stream.number} at {stream.heard_seconds:.2f} s", stream.channel_axis
        block = _as_array(block, name)
        if block.size == 0:
            return np.zeros(0, dtype=np.float32), axis
        if axis is None and block.ndim == 2 and max(block.shape) > _MANY_CHANNELS:
            axis = int(np.argmin(block.shape))
        mono, rate = array_to_mono({"array": block, "sampling_rate": rate}, name, axis)
        if not np.isfinite(mono).all():
            raise AudioError(name, "not finite", "the block holds NaN or infinite samples; it was left out.")
        if stream.heard_seconds and rate != stream.rate:
            raise AudioError(
                name, "bad array", f"the stream began at {stream.rate:g} Hz and now brings {rate:g} Hz; join anew."
            )
        return mono, axis

    def _hear(self, stream: Stream, block: np.ndarray, rate: float) -> None:
        if not len(block):
            return
        if not stream.heard_seconds and rate != SAMPLING_RATE:
            stream.rate, stream.resampler = rate, soxr.ResampleStream(rate, SAMPLING_RATE, 1, dtype="float32")
        stream.heard_seconds += len(block) / stream.rate
        self._extract(stream, block if stream.resampler is None else stream.resampler.resample_chunk(block))

    def _extract(self, stream: Stream, block: np.ndarray) -> None:
        """Turn all whole frames of the samples into features; the rest waits for the next block."""
        samples = np.concatenate([stream.samples, block])
        frames = num_frames(len(samples))
        stream.samples = samples[frames * HOP_LENGTH :]
        if frames:
            used = torch.from_numpy(samples[: (frames - 1) * HOP_LENGTH + FRAME_LENGTH])[None]
            features, _ = self.extractor.extract(used, torch.tensor([used.shape[1]]))
            stream.features = torch.cat([stream.features, features[0]])

    def _run(self, streams: list[Stream]) -> None:
        """Steps over all streams with a chunk to transcribe, until none has one."""
        while ready := [stream for stream in streams if self._is_ready(stream)]:
            for group in ([s for s in ready if s.cache is None], [s for s in ready if s.cache is not None]):
                if group:  # the first chunks of new streams have no cache to share a step with
                    self._step(group)

    def _is_ready(self, stream: Stream) -> bool:
        if stream.ended:
            return len(stream.features) >= self.model.config.frame_stacking
        return len(stream.features) >= self.chunk_size * (1 + self.lookahead)

    @torch.inference_mode()
    def _step(self, streams: list[Stream]) -> None:
        """One chunk of each of these streams."""
        streams, cache = self._gather(streams)
        cache = ConformerCache(self.left_context_frames) if cache is None else cache
        size = self.chunk_size
        chunk, chunk_mask = self._stack([stream.features[:size] for stream in streams])
        ahead, ahead_mask = self._stack([stream.features[size : 2 * size] for stream in streams])
        inputs = {"attention_mask": chunk_mask, "past_key_values": cache, "use_cache": True}
        if self.lookahead and ahead_mask.any():
            inputs |= {"lookahead_features": ahead, "lookahead_attention_mask": ahead_mask}
        output = self.model(chunk, **inputs)
        if output.logits.isnan().any():
            raise ValueError("The logits hold NaN: the model is broken, by diverged training for example.")
        frames = chunk_mask.sum(-1) // self.model.config.frame_stacking
        best = output.logits.argmax(-1).tolist()
        for row, (stream, ids, length) in enumerate(zip(streams, best, frames.tolist(), strict=True)):
            stream.cache, stream.row = output.past_key_values, row
            self._write(stream, ids[:length])
            stream.features = stream.features[size:]

    def _stack(self, features: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Pieces of at most a chunk, padded to one: (streams, chunk, mel bins) and the mask (streams, chunk)."""
        batch = torch.full((len(features), self.chunk_size, self.extractor.feature_size), self.extractor.padding_value)
        lengths = torch.tensor([len(piece) for piece in features])
        for row, piece in zip(batch, features, strict=True):
            row[: len(piece)] = piece
        mask = torch.arange(self.chunk_size) < lengths[:, None]
        return batch.to(self.model.device), mask.to(self.model.device)

    def _gather(self, streams: list[Stream]) -> tuple[list[Stream], ConformerCache | None]:
        """The streams in the order of the rows of one cache; no cache at their first chunks.

        Nothing is copied while the same streams step together. Otherwise a cache is divided into those who step and
        those who stay behind, so that no tensor outlives the streams it belongs to.
        """
        gathered, caches = [], []
        for cache in {stream.cache: None for stream in streams}:  # each once, in this order
            if cache is None:
                return streams, None
            owners = sorted((one for one in self.streams if one.cache is cache), key=lambda one: one.row)
            going = [one for one in owners if one in streams]
            if len(going) < cache.num_streams:
                self._divide(cache, [one for one in owners if one not in streams])
                cache = self._divide(cache, going)
            gathered += going
            caches.append(cache)
        return gathered, caches[0] if len(caches) == 1 else ConformerCache.stack(caches)

    @staticmethod
    def _divide(cache: ConformerCache, part: list[Stream]) -> ConformerCache:
        """Give these of a cache's streams a cache of their own."""
        own = cache.select(torch.tensor([stream.row for stream in part], dtype=torch.long))
        for row, stream in enumerate(part):
            stream.cache, stream.row = own, row
        return own

    def _write(self, stream: Stream, ids: list[int]) -> None:
        """Append a chunk's best tokens: repeats and blanks go, a word delimiter makes the word before it final."""
        new = [now for before, now in pairwise([stream.last_id, *ids]) if now != before]
        stream.last_id = ids[-1] if ids else stream.last_id
        for token_id in new:
            if token_id == self.tokenizer.word_delimiter_token_id:
                stream.words += ctc_text(stream.word, self.tokenizer) + self.tokenizer.replace_word_delimiter_char
                stream.word = []
            elif token_id != self.model.config.pad_token_id:
                stream.word.append(token_id)


def _as_array(block: Any, name: str) -> np.ndarray:
    try:
        if isinstance(block, torch.Tensor):
            block = block.detach().cpu()
            block = (block.float() if block.dtype == torch.bfloat16 else block).numpy()  # numpy has no bfloat16
        return np.asarray(block)
    except (TypeError, ValueError, RuntimeError) as error:  # ragged lists, sparse tensors
        raise AudioError(name, "bad array", f"it cannot become a numpy array ({error}).") from error


class StreamingTranscriber:
    """One live stream. Arguments and errors are those of [`StreamingBatch`]."""

    def __init__(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        chunk_duration_ms: int = 320,
        left_context_chunks: int | None = None,
    ):
        self.batch = StreamingBatch(model, processor, chunk_duration_ms, left_context_chunks)
        self.stream = self.batch.join()

    def accept(self, samples: Any, sampling_rate: float = SAMPLING_RATE) -> StreamingText:
        """Hear any number of samples and return the text so far."""
        return self.batch.accept({self.stream: samples}, sampling_rate)[self.stream]

    def finish(self) -> str:
        """Transcribe what is left and return the whole text; the next `accept` begins a new stream."""
        text = self.batch.finish(self.stream)[0]
        self.stream = self.batch.join()
        return text
