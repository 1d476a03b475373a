"""Live transcription with a Chunk SSL model, CTC or transducer: samples in at any time, text out.

    transcriber = StreamingTranscriber(model, processor, chunk_duration_ms=320)
    for block in microphone:
        print(transcriber.accept(block).text)
    print(transcriber.finish())

The text at the end is the text of the offline pass with the same chunks over the whole signal. A chunk is transcribed
once the chunk after it, its look-ahead, has come in: the latency is between one and two chunk durations, at most one
without look-ahead (`num_lookahead_chunks=0`). Memory grows with a stream unless `left_context_chunks` bounds what it
remembers.

Shape letters: F feature frames.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, ProcessorMixin

from ..data.audio import SAMPLING_RATE
from ..decoding import Decoder, Hypothesis, StreamingText, decoder_frames, greedy_decoder, is_transducer
from ..decoding.text import word_starts
from ..modeling.cache import ConformerCache
from ..options import EndpointOptions
from .events import Event
from .stream import Stream
from .stream_input import StreamInput, extract_features
from .voice import SileroDetector, VoiceDetector, VoiceGate

_LEFT_CONTEXT_MS = 5120  # that a stream remembers where neither its model nor anybody else says how much


class StreamingBatch:
    """Many streams through one model: they join and leave at any time; those with a chunk ready share a step.

    Args:
        model: a `ChunkSSLForCTC` or `ChunkSSLForRNNT`.
        processor: its processor: feature extractor, and a tokenizer that has a word delimiter, or marks where words
            begin, as SentencePiece and byte-level BPE do.
        chunk_duration_ms: duration of a chunk, a whole number of encoder frames (40 ms each in the presets).
        left_context_chunks: chunks that a stream remembers; those of the model's config, or all, if absent.
        decoder: greedy by default.
        endpoints: rules that end segments of streams that join without rules of their own; none by default.
        detector: finds voices in the streams whose rules ask for a detector; silero-vad by default.

    Raises:
        ValueError: the model or its tokenizer cannot stream, or the duration is no whole number of frames.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        chunk_duration_ms: int = 320,
        left_context_chunks: int | None = None,
        decoder: Decoder[Any] | None = None,
        endpoints: EndpointOptions | None = None,
        detector: VoiceDetector | None = None,
    ):
        _check_can_stream(model, processor, decoder)
        if left_context_chunks is not None and left_context_chunks < 0:
            raise ValueError(f"left_context_chunks must be None (all) or at least 0, got {left_context_chunks}.")
        config = model.config
        frames, past = config.chunk_frames(chunk_duration_ms), left_context_chunks
        past = config.left_context_chunks if past is None else past
        self.model, self.extractor = model.eval(), processor.feature_extractor
        self.seconds_per_frame = config.inputs_to_logits_ratio / SAMPLING_RATE
        self.decoder = decoder or greedy_decoder(model, processor.tokenizer, self.seconds_per_frame)
        self.chunk_feature_frames = frames * config.frame_stacking
        self.left_context_frames = None if past is None else past * frames
        self.lookahead = bool(config.num_lookahead_chunks)
        self.endpoints = endpoints or EndpointOptions()
        self.detector = detector
        self.num_steps = 0  # that the encoder has taken
        self._joined = 0
        self._streams: list[weakref.ref[Stream]] = []  # whoever joined them holds them

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_streams": self.streams}  # references cannot be pickled

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state | {"_streams": [weakref.ref(stream) for stream in state["_streams"]]}

    @property
    def streams(self) -> list[Stream]:
        """The streams that have joined, have not left, and are still held by somebody."""
        return [stream for reference in self._streams if (stream := reference()) is not None]

    def join(self, endpoints: EndpointOptions | None = None) -> Stream:
        """A new stream. Hold it as long as it is needed.

        Args:
            endpoints: rules that end its segments; those of the batch by default.

        Raises:
            ImportError: the rules ask for a voice detector, and silero-vad is not installed.
        """
        self._joined += 1
        rules = self.endpoints if endpoints is None else endpoints
        audio = StreamInput(self.extractor, self._joined, self._gate(rules))
        stream = Stream(self._joined, audio, self.decoder, rules, self.seconds_per_frame)
        self._streams = [weakref.ref(one) for one in (*self.streams, stream)]
        return stream

    def _gate(self, rules: EndpointOptions) -> VoiceGate | None:
        if rules.voice_detector == "none":
            return None
        if self.detector is None:
            self.detector = SileroDetector()
        return VoiceGate(self.detector, rules)

    def accept(
        self, samples: Mapping[Stream, Any], sampling_rate: float = SAMPLING_RATE
    ) -> dict[Stream, StreamingText]:
        """Take any number of samples of any of the streams, and transcribe every chunk that is complete.

        Args:
            samples: for each stream that has some, an array of shape (samples,), (samples, channels) or (channels,
                samples); channels are averaged, integers of 8 to 32 bits scaled, another rate is resampled to 16 kHz.
            sampling_rate: of the samples, in Hz; a stream keeps the rate that it began with.

        Returns:
            The text so far of these streams.

        Raises:
            AudioError: a block cannot be used (NaN, no numbers, floats far beyond 1, another rate than before).
                Nothing of this call has been taken then, and every stream goes on with its next block.
            ValueError: a stream has left.
        """
        self.feed(samples, sampling_rate)
        return {stream: self.text(stream) for stream in samples}

    def feed(self, samples: Mapping[Stream, Any], sampling_rate: float = SAMPLING_RATE) -> None:
        """Do as `accept`, and return no text."""
        for stream in samples:
            self._check_here(stream)
        blocks = {stream: stream.input.check(block, sampling_rate) for stream, block in samples.items()}
        for stream, (block, channel_axis) in blocks.items():
            stream.input.add(block, channel_axis, sampling_rate)
        self._run(list(blocks))

    def text(self, stream: Stream) -> StreamingText:
        """The text of a stream so far, without spaces at its ends; its segments have a space between them."""
        return stream.text()

    def events(self, stream: Stream) -> list[Event]:
        """What has happened in a stream since the last call, in order; see [`hf_speech_ssl.recognition.events`].

        A stream that has been finished still tells its last events, once.
        """
        return stream.take_events()

    def set_hot_words(self, stream: Stream, phrases: Mapping[str, float]) -> None:
        """Prefer phrases in a stream from its next chunk on, instead of those before; see [`PrefixBeamDecoder`].

        Args:
            phrases: boosts by phrase, such as `{"anna karenina": 8.0}`; none for no hot words.

        Raises:
            ValueError: the decoder knows no hot words, a phrase cannot be spelt, or the stream has left.
        """
        self._check_here(stream)
        stream.set_hot_words(phrases)

    def finish(self, *streams: Stream) -> list[str]:
        """Transcribe what is left of these streams and let them leave; returns their whole texts.

        Raises:
            ValueError: one of them has left before. All others stay then.
        """
        return [hypotheses[0].text for hypotheses in self.finish_hypotheses(*streams)]

    def finish_hypotheses(self, *streams: Stream) -> list[list[Hypothesis]]:
        """Do as `finish`, and return the hypotheses of each stream, the best one first, with the times of words."""
        for stream in streams:
            self._check_here(stream)
        different = list(dict.fromkeys(streams))
        for stream in different:
            stream.input.end()
            stream.ended = True
        self._run(different)
        hypotheses = {stream: stream.finish() for stream in different}
        self.leave(*different)
        return [hypotheses[stream] for stream in streams]

    def leave(self, *streams: Stream) -> None:
        """Let streams go as they are: what is left of them is not transcribed, and their memory is freed.

        Raises:
            ValueError: one of them has left before. All others stay then.
        """
        for stream in streams:
            self._check_here(stream)
        self._streams = [weakref.ref(stream) for stream in self.streams if stream not in streams]
        for stream in streams:
            stream.cache = None
            stream.input.clear()

    def _check_here(self, stream: Stream) -> None:
        if stream not in self.streams:
            raise ValueError(f"Stream {stream.number} has left or belongs to another batch; call join() for one.")

    def _run(self, streams: list[Stream]) -> None:
        """Steps over all streams with a chunk to transcribe, until none has one."""
        while True:
            for stream in streams:
                stream.advance(self._frames_of_step)
            ready = [one for one in streams if one.input.num_frames >= self._frames_needed(one)]
            extract_features([one.input for one in ready], self._frames_of_step)
            for group in ([s for s in ready if s.cache is None], [s for s in ready if s.cache is not None]):
                if group:  # the first chunks of new streams have no cache to share a step with
                    self._step(group)
            for stream in ready:
                stream.apply_rules()
            closing = [] if ready else [one for one in streams if (gate := one.input.gate) and gate.closing]
            for stream in closing:
                stream.close()
            if not ready and not closing:
                return

    @property
    def _frames_of_step(self) -> int:
        """Feature frames of a chunk and its look-ahead."""
        return self.chunk_feature_frames * (1 + self.lookahead)

    def _frames_needed(self, stream: Stream) -> int:
        """Feature frames that a stream must have for a step: at the end of a segment those of one encoder frame."""
        return self.model.config.frame_stacking if stream.closing else self._frames_of_step

    @torch.inference_mode()
    def _step(self, streams: list[Stream]) -> None:
        """One chunk of each of these streams."""
        streams, cache = self._gather(streams)
        cache = ConformerCache(self.left_context_frames) if cache is None else cache
        size = self.chunk_feature_frames
        chunk, chunk_mask = self._stack([stream.input.features[:size] for stream in streams])
        ahead, ahead_mask = self._stack([stream.input.features[size : 2 * size] for stream in streams])
        inputs = {"attention_mask": chunk_mask, "past_key_values": cache, "use_cache": True}
        if self.lookahead and ahead_mask.any():
            inputs |= {"lookahead_features": ahead, "lookahead_attention_mask": ahead_mask}
        encode: Any = self.model.get_audio_features if is_transducer(self.model) else self.model
        output = encode(chunk, **inputs)
        lengths = (chunk_mask.sum(-1) // self.model.config.frame_stacking).tolist()
        self.decoder.step([stream.state for stream in streams], decoder_frames(output), lengths)
        self.num_steps += 1
        for row, (stream, length) in enumerate(zip(streams, lengths, strict=True)):
            stream.frames += length
            stream.cache, stream.row = output.past_key_values, row
            stream.input.drop(size)

    def _stack(self, features: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Pieces of at most a chunk, padded to one: (streams, chunk, mel bins) and the mask (streams, chunk)."""
        size = self.chunk_feature_frames
        batch = torch.full((len(features), size, self.extractor.feature_size), self.extractor.padding_value)
        lengths = torch.tensor([len(piece) for piece in features])
        for row, piece in zip(batch, features, strict=True):
            row[: len(piece)] = piece
        mask = torch.arange(size) < lengths[:, None]
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


def _check_can_stream(model: PreTrainedModel, processor: ProcessorMixin, decoder: Decoder[Any] | None) -> None:
    writes_text = hasattr(model, "ctc_head") or is_transducer(model)
    if not hasattr(model.config, "chunk_frames") or not writes_text:
        raise ValueError(
            f"{type(model).__name__} cannot stream: frames that see their chunks only and a head that writes text are "
            f"needed. Pass a ChunkSSLForCTC or ChunkSSLForRNNT."
        )
    tokenizer = processor.tokenizer
    if decoder is None and not (hasattr(tokenizer, "get_vocab") and any(word_starts(tokenizer))):
        raise ValueError(
            f"A tokenizer that says where words begin or end is needed to stream, such as Wav2Vec2CTCTokenizer, got "
            f"{type(tokenizer).__name__}."
        )


def bounded_left_context(config: Any, chunk_duration_ms: int, left_context_chunks: int | None = None) -> int:
    """Chunks that a stream remembers where memory must not grow.

    Those that are asked for; else as many as the model was made for; else those of 5.12 s.
    """
    past = config.left_context_chunks if left_context_chunks is None else left_context_chunks
    return -(-_LEFT_CONTEXT_MS // chunk_duration_ms) if past is None else int(past)


class StreamingTranscriber:
    """One live stream. Arguments and errors are those of [`StreamingBatch`]. `events` tells what has happened."""

    def __init__(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        chunk_duration_ms: int = 320,
        left_context_chunks: int | None = None,
        decoder: Decoder[Any] | None = None,
        endpoints: EndpointOptions | None = None,
        detector: VoiceDetector | None = None,
    ):
        self.batch = StreamingBatch(
            model, processor, chunk_duration_ms, left_context_chunks, decoder, endpoints, detector
        )
        self.stream = self.batch.join()
        self._last: list[Event] = []  # of a stream that has been finished

    def events(self) -> list[Event]:
        """What has happened since the last call, in order. After `finish` these are the last events of the stream."""
        last, self._last = self._last, []
        return [*last, *self.batch.events(self.stream)]

    def accept(self, samples: Any, sampling_rate: float = SAMPLING_RATE) -> StreamingText:
        """Take any number of samples and return the text so far."""
        return self.batch.accept({self.stream: samples}, sampling_rate)[self.stream]

    def set_hot_words(self, phrases: Mapping[str, float]) -> None:
        """Do as [`StreamingBatch.set_hot_words`], for this stream and those after it."""
        self.batch.set_hot_words(self.stream, phrases)

    def finish(self) -> str:
        """Transcribe what is left and return the whole text; the next `accept` begins a new stream."""
        text = self.batch.finish(self.stream)[0]
        self._last += self.batch.events(self.stream)
        hot_words, self.stream = self.stream.hot_words, self.batch.join()
        if hot_words:
            self.set_hot_words(hot_words)
        return text
