"""One stream of a `StreamingBatch`: its audio, what its decoder has written, and where its segments end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..data.audio import SAMPLING_RATE
from ..decoding import Decoder, Hypothesis, StreamingText
from ..decoding.text import join_hypotheses, move_hypothesis
from ..modeling.cache import ConformerCache
from ..options import EndpointOptions
from .events import Event, Reason
from .stream_events import StreamEvents
from .stream_input import StreamInput
from .voice import silence_rule

NOTHING = Hypothesis("", 0.0, [])  # what a segment without speech holds


class Stream:
    """A stream that nobody holds any more is let go, with its memory. `StreamingBatch.join` makes them.

    Args:
        number: counts the streams of the batch.
        input: its audio; with a gate if its rules ask for a voice detector.
        decoder: writes its text.
        endpoints: rules that end its segments.
        seconds_per_frame: seconds between two frames of the encoder.
    """

    def __init__(
        self,
        number: int,
        input: StreamInput,
        decoder: Decoder[Any],
        endpoints: EndpointOptions,
        seconds_per_frame: float,
    ):
        self.number, self.input, self.decoder, self.endpoints = number, input, decoder, endpoints
        self.seconds_per_frame = seconds_per_frame
        self.state: Any = decoder.start()  # of the decoder, in the current segment
        self.before: Hypothesis | None = None  # of the segments that have ended
        self.begin = 0.0  # seconds at which the current segment begins
        self.frames = 0  # of that segment, which the decoder has had
        self.hot_words: Mapping[str, float] = {}
        self.cache: ConformerCache | None = None  # shared with the streams that took the last step together
        self.row = 0  # its place in that cache
        self.ended = False
        self._events = StreamEvents()
        self._told: tuple[float, int] | None = None  # beginning and frames of the segment when events were last made
        self._told_silence = False  # whether the rule for silence without speech has come true

    @property
    def closing(self) -> bool:
        """Whether no more audio comes in this segment: the voice has been silent, or the stream has ended."""
        return self.ended or (self.input.gate is not None and self.input.gate.closing)

    @property
    def seconds(self) -> float:
        """Seconds of audio that have been transcribed, or skipped."""
        return self.begin + self.frames * self.seconds_per_frame

    def text(self) -> StreamingText:
        """The text so far, without spaces at its ends; segments have a space between them."""
        here, before = self.decoder.hypothesis(self.state), self.before
        if before is None:
            return here
        final = before.text if not here.final else f"{before.text} {here.final}".strip()
        words = None
        if before.words is not None and here.words is not None:
            words = [*before.words, *(one.moved(self.begin) for one in here.words)]
        return StreamingText(
            f"{before.text} {here.text}".strip(),
            final,
            words,
            len(before.words or ()) + here.num_final_words,
            here.end + self.begin,
        )

    def take_events(self) -> list[Event]:
        """What has happened since the last call; see [`StreamingBatch.events`]."""
        moment = self.begin, self.frames
        if not self.ended and moment != self._told:
            self._told = moment
            self._events.update(self.decoder.hypothesis(self.state), self.begin, self.seconds)
        return self._events.take()

    def set_hot_words(self, phrases: Mapping[str, float]) -> None:
        """Prefer phrases from the next chunk on; see [`StreamingBatch.set_hot_words`]."""
        self.decoder.set_hot_words(self.state, phrases)
        self.hot_words = dict(phrases)

    def advance(self, feature_frames: int) -> None:
        """Let the gate look at what has come, until so many feature frames are there or a segment ends."""
        gate = self.input.gate
        if gate is None:
            return
        self.input.advance(feature_frames)
        if gate.unheard is not None:
            self._events.end("no_speech", None, NOTHING, self.begin, gate.unheard / SAMPLING_RATE)
            gate.unheard = None
        if gate.opened:
            gate.opened, self.begin, self.frames = False, gate.begin / SAMPLING_RATE, 0
            self._events.begin_speech(self.begin, self.begin)

    def apply_rules(self) -> None:
        """End the segment if a rule holds, after a step. A gate has the rules on silence to itself."""
        rules = self.endpoints
        if rules == EndpointOptions():
            return
        text, seconds = self.decoder.hypothesis(self.state), self.frames * self.seconds_per_frame
        last = text.words[-1].end if text.words else text.end
        end_of_speech = self.begin + last if text.text else None
        if rules.max_segment_seconds is not None and seconds >= rules.max_segment_seconds:
            hypotheses, state, kept = self.decoder.divide(self.state)
            self._end_segment("length", hypotheses[0], end_of_speech, kept)
            self.state = state
        elif self.input.gate is None:
            reason = silence_rule(rules, seconds - text.end, spoken=bool(text.text))
            if reason == "silence" or (reason == "no_speech" and not self._told_silence):
                self._end_segment(reason, self.decoder.finish(self.state)[0], end_of_speech, kept=0)
                self._start_decoder()
            self._told_silence = reason == "no_speech" or (self._told_silence and not text.text)

    def close(self) -> None:
        """End a segment in which the voice has been silent; the next one knows nothing of it."""
        gate = self.input.gate
        assert gate is not None
        best = self.decoder.finish(self.state)[0]
        end = gate.position / SAMPLING_RATE
        self._events.end("silence", gate.voice_end / SAMPLING_RATE, best, self.begin, end)
        self.before = self._whole(best)
        self.begin, self.frames, self.cache = end, 0, None
        self._start_decoder()
        self.input.clear()
        gate.close()

    def finish(self) -> list[Hypothesis]:
        """The hypotheses of the whole stream, the best one first, after its last chunk."""
        hypotheses = self.decoder.finish(self.state)
        gate = self.input.gate
        if gate is None or gate.open or not self._events.segment:  # else nothing came after the last segment
            self._events.finish(hypotheses[0], self.begin, self.input.seconds)
        return [self._whole(one) for one in hypotheses]

    def _end_segment(self, reason: Reason, best: Hypothesis, end_of_speech: float | None, kept: int) -> None:
        """End a segment whose audio goes on; its last `kept` frames belong to the next one."""
        end = self.seconds - kept * self.seconds_per_frame
        self._events.end(reason, end_of_speech, best, self.begin, end, self.seconds)
        self.before = self._whole(best)
        self.begin, self.frames = end, kept

    def _start_decoder(self) -> None:
        self.state = self.decoder.start()
        if self.hot_words:
            self.decoder.set_hot_words(self.state, self.hot_words)

    def _whole(self, best: Hypothesis) -> Hypothesis:
        """A hypothesis of the current segment behind those before it, on the clock of the stream."""
        moved = move_hypothesis(best, self.begin)
        return moved if self.before is None else join_hypotheses(self.before, moved, begins_word=True)
