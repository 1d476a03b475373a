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
from ..decoding.text import join_hypotheses, move_hypothesis, word_starts
from ..modeling.cache import ConformerCache
from ..options import EndpointOptions
from .events import Event, Reason
from .stream_events import StreamEvents
from .stream_input import StreamInput
from .voice import SileroDetector, VoiceDetector, VoiceGate, silence_rule

NOTHING = Hypothesis("", 0.0, [])  # what a segment without speech holds

_LEFT_CONTEXT_MS = 5120  # that a stream remembers where neither its model nor anybody else says how much


class Stream:
    """One stream of a `StreamingBatch`. A stream that nobody holds any more is let go, with its memory.

    Args:
        number: counts the streams of the batch.
        input: its audio.
        state: of the decoder.
    """

    def __init__(self, number: int, input: StreamInput, state: Any):
        self.number, self.input, self.state = number, input, state
        self.events = StreamEvents()
        self.before: Hypothesis | None = None  # of the segments that have ended
        self.begin = 0.0  # seconds at which the current segment begins
        self.frames = 0  # of that segment, which the decoder has had
        self.hot_words: Mapping[str, float] = {}
        self.told_silence = False  # whether the rule for silence without speech has come true
        self.cache: ConformerCache | None = None  # shared with the streams that took the last step together
        self.row = 0  # its place in that cache
        self.ended = False


class StreamingBatch:
    """Many streams through one model: they join and leave at any time; those with a chunk ready share a step.

    Args:
        model: a `ChunkSSLForCTC` or `ChunkSSLForRNNT`.
        processor: its processor: feature extractor, and a tokenizer that has a word delimiter, or marks where words
            begin, as SentencePiece and byte-level BPE do.
        chunk_duration_ms: duration of a chunk, a whole number of encoder frames (40 ms each in the presets).
        left_context_chunks: chunks that a stream remembers; those of the model's config, or all, if absent.
        decoder: greedy by default.
        endpoints: rules that end segments of a stream; none by default.
        detector: finds voices, where the rules ask for a detector; silero-vad by default.

    Raises:
        ImportError: silero-vad is asked for and not installed.
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
        if detector is None and self.endpoints.voice_detector == "silero":
            self.detector = SileroDetector()
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

    def join(self) -> Stream:
        """A new stream. Hold it as long as it is needed."""
        self._joined += 1
        gate = None if self.detector is None else VoiceGate(self.detector, self.endpoints)
        stream = Stream(self._joined, StreamInput(self.extractor, self._joined, gate), self.decoder.start())
        self._streams = [weakref.ref(one) for one in (*self.streams, stream)]
        return stream

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
        here, before = self.decoder.hypothesis(stream.state), stream.before
        if before is None:
            return here
        final = before.text if not here.final else f"{before.text} {here.final}".strip()
        words = None
        if before.words is not None and here.words is not None:
            words = [*before.words, *(one.moved(stream.begin) for one in here.words)]
        return StreamingText(
            f"{before.text} {here.text}".strip(),
            final,
            words,
            len(before.words or ()) + here.num_final_words,
            here.end + stream.begin,
        )

    def events(self, stream: Stream) -> list[Event]:
        """What has happened in a stream since the last call, in order; see [`hf_speech_ssl.recognition.events`].

        A stream that has been finished still tells its last events, once.
        """
        if not stream.ended:
            self._update_events(stream)
        return stream.events.take()

    def set_hot_words(self, stream: Stream, phrases: Mapping[str, float]) -> None:
        """Prefer phrases in a stream from its next chunk on, instead of those before; see [`PrefixBeamDecoder`].

        Args:
            phrases: boosts by phrase, such as `{"anna karenina": 8.0}`; none for no hot words.

        Raises:
            ValueError: the decoder knows no hot words, a phrase cannot be spelt, or the stream has left.
        """
        self._check_here(stream)
        self.decoder.set_hot_words(stream.state, phrases)
        stream.hot_words = dict(phrases)

    def _next_state(self, stream: Stream) -> Any:
        """The decoder's state for the next segment of a stream."""
        state = self.decoder.start()
        if stream.hot_words:
            self.decoder.set_hot_words(state, stream.hot_words)
        return state

    def _update_events(self, stream: Stream) -> None:
        stream.events.update(self.decoder.hypothesis(stream.state), stream.begin, self._seconds(stream))

    def _seconds(self, stream: Stream) -> float:
        """Seconds of audio that have been transcribed, or skipped."""
        return stream.begin + stream.frames * self.seconds_per_frame

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
        hypotheses = {stream: self.decoder.finish(stream.state) for stream in different}
        for stream, (best, *_) in hypotheses.items():
            gate = stream.input.gate
            if gate is None or gate.open or not stream.events.segment:  # else nothing came after the last segment
                stream.events.finish(best, stream.begin, stream.input.seconds)
            hypotheses[stream] = [_joined(stream, one) for one in hypotheses[stream]]
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
            stream.cache, stream.input.features = None, stream.input.features[:0]

    def _check_here(self, stream: Stream) -> None:
        if stream not in self.streams:
            raise ValueError(f"Stream {stream.number} has left or belongs to another batch; call join() for one.")

    def _run(self, streams: list[Stream]) -> None:
        """Steps over all streams with a chunk to transcribe, until none has one."""
        while True:
            for stream in streams:
                self._advance(stream)
            ready = [stream for stream in streams if self._is_ready(stream)]
            for group in ([s for s in ready if s.cache is None], [s for s in ready if s.cache is not None]):
                if group:  # the first chunks of new streams have no cache to share a step with
                    self._step(group)
            for stream in ready:
                self._apply_rules(stream)
            closing = [] if ready else [one for one in streams if (gate := one.input.gate) and gate.closing]
            for stream in closing:
                self._close(stream)
            if not ready and not closing:
                return

    def _advance(self, stream: Stream) -> None:
        """Let the gate of a stream look at what has come, until a chunk is ready or a segment ends."""
        gate = stream.input.gate
        if gate is None:
            return
        stream.input.advance(self.chunk_feature_frames * (1 + self.lookahead))
        if gate.unheard is not None:
            stream.events.end("no_speech", None, NOTHING, stream.begin, gate.unheard / SAMPLING_RATE)
            gate.unheard = None
        if gate.opened:
            gate.opened, stream.begin, stream.frames = False, gate.begin / SAMPLING_RATE, 0

    def _is_ready(self, stream: Stream) -> bool:
        gate = stream.input.gate
        if stream.ended or (gate is not None and gate.closing):
            return len(stream.input.features) >= self.model.config.frame_stacking
        return len(stream.input.features) >= self.chunk_feature_frames * (1 + self.lookahead)

    def _apply_rules(self, stream: Stream) -> None:
        """End the segment of a stream if a rule holds, after a step. A gate has the rules on silence to itself."""
        rules = self.endpoints
        if rules == EndpointOptions():
            return
        text, seconds = self.decoder.hypothesis(stream.state), stream.frames * self.seconds_per_frame
        last = text.words[-1].end if text.words else text.end
        end_of_speech = stream.begin + last if text.text else None
        if rules.max_segment_seconds is not None and seconds >= rules.max_segment_seconds:
            hypotheses, state, kept = self.decoder.divide(stream.state)
            self._end_segment(stream, "length", hypotheses[0], end_of_speech, kept)
            stream.state = state
        elif stream.input.gate is None:
            reason = silence_rule(rules, seconds - text.end, spoken=bool(text.text))
            if reason == "silence" or (reason == "no_speech" and not stream.told_silence):
                best = self.decoder.finish(stream.state)[0]
                self._end_segment(stream, reason, best, end_of_speech, 0)
                stream.state = self._next_state(stream)
            stream.told_silence = reason == "no_speech" or (stream.told_silence and not text.text)

    def _close(self, stream: Stream) -> None:
        """End the segment of a stream in which the voice has been silent; the next one knows nothing of it."""
        gate = stream.input.gate
        assert gate is not None
        best = self.decoder.finish(stream.state)[0]
        stream.frames = 0
        begin, stream.begin = stream.begin, gate.position / SAMPLING_RATE
        stream.events.end("silence", gate.voice_end / SAMPLING_RATE, best, begin, stream.begin)
        stream.before = _joined(stream, best, begin)
        stream.state, stream.cache = self._next_state(stream), None
        stream.input.clear()
        gate.close()

    def _end_segment(
        self, stream: Stream, reason: Reason, best: Hypothesis, end_of_speech: float | None, kept: int
    ) -> None:
        """End the segment of a stream whose audio goes on; its last `kept` frames belong to the next one."""
        end = self._seconds(stream) - kept * self.seconds_per_frame
        stream.events.end(reason, end_of_speech, best, stream.begin, end, self._seconds(stream))
        stream.before = _joined(stream, best)
        stream.begin, stream.frames = end, kept

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


def _joined(stream: Stream, best: Hypothesis, begin: float | None = None) -> Hypothesis:
    """A hypothesis of the current segment behind those of the segments before it, on the clock of the stream."""
    moved = move_hypothesis(best, stream.begin if begin is None else begin)
    return moved if stream.before is None else join_hypotheses(stream.before, moved, begins_word=True)


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
