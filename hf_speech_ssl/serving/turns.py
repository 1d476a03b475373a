"""What clients are told of the segments of their streams, in the events of OpenAI's and of vLLM's realtime clients.

A segment of a stream is an item of OpenAI's clients: a turn that a rule ends, or what they commit themselves. The
deltas of an item put together are its transcript. They bring words that will not change any more.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from ..recognition.events import EndpointEvent, Event, FinalEvent, PartialEvent, SpeechEvent

_TRANSCRIPTION = "conversation.item.input_audio_transcription"

Told: TypeAlias = Iterator[tuple[str, dict[str, Any]]]  # types of events, and what they hold


class Turns(Protocol):
    """Turns what happens in the streams of a connection, one after the other, into events for its client.

    Attributes:
        completed: transcripts that the client has.
    """

    completed: int

    def begin(self, seconds: float, detected: bool) -> None:
        """A stream begins.

        Args:
            seconds: of audio that came in the connection before it.
            detected: whether rules end its turns.
        """

    def tell(self, event: Event) -> Told:
        """What the client is told."""


@dataclass
class OpenAITurns:
    """`speech_started`, `.delta`, `speech_stopped`, `committed`, `.completed`: see [`Turns`]."""

    completed: int = 0
    _detected: bool = False
    _offset: float = 0.0
    _previous: str | None = None  # the item before
    _item: str = ""
    _sent: int = 0  # characters of its transcript
    _spoken: bool = False
    _endpoint: EndpointEvent | None = None

    def begin(self, seconds: float, detected: bool) -> None:
        self._offset, self._detected = seconds, detected
        self._next_item()

    def tell(self, event: Event) -> Told:
        if isinstance(event, SpeechEvent):
            self._spoken = True
            if self._detected:
                start = self._milliseconds(event.start)
                yield "input_audio_buffer.speech_started", {"audio_start_ms": start, "item_id": self._item}
        elif isinstance(event, PartialEvent):
            yield from self._tell_text(event.final)
        elif isinstance(event, EndpointEvent):
            self._endpoint = event
        elif isinstance(event, FinalEvent):
            if self._endpoint is not None or self._spoken or not self._detected:  # else there is nothing but silence
                yield from self._tell_end(event)
            self._next_item()

    def _tell_end(self, final: FinalEvent) -> Told:
        item = {"item_id": self._item}
        start, end = self._milliseconds(final.start), self._milliseconds(final.end)
        if self._endpoint is not None and self._endpoint.reason == "no_speech":
            yield "input_audio_buffer.timeout_triggered", {"audio_start_ms": start, "audio_end_ms": end, **item}
        elif self._endpoint is not None:
            yield "input_audio_buffer.speech_stopped", {"audio_end_ms": end, **item}
        yield "input_audio_buffer.committed", {**item, "previous_item_id": self._previous}
        yield from self._tell_text(final.text)
        transcript = {"transcript": final.text, "usage": _usage(final)}
        yield f"{_TRANSCRIPTION}.completed", {**item, "content_index": 0, **transcript}
        self.completed, self._previous = self.completed + 1, self._item

    def _tell_text(self, text: str) -> Told:
        if delta := text[self._sent :]:
            self._sent = len(text)
            yield f"{_TRANSCRIPTION}.delta", {"item_id": self._item, "content_index": 0, "delta": delta}

    def _next_item(self) -> None:
        self._item, self._sent = f"item_{uuid.uuid4().hex}", 0
        self._spoken, self._endpoint = False, None

    def _milliseconds(self, seconds: float) -> int:
        return round(1000 * (self._offset + seconds))


@dataclass
class VLLMTurns:
    """`transcription.delta`, `transcription.done`: see [`Turns`]. There are no rules on ends in this dialect."""

    completed: int = 0
    _sent: int = 0

    def begin(self, seconds: float, detected: bool) -> None:
        self._sent = 0

    def tell(self, event: Event) -> Told:
        if isinstance(event, PartialEvent | FinalEvent):
            text = event.final if isinstance(event, PartialEvent) else event.text
            if delta := text[self._sent :]:
                self._sent = len(text)
                yield "transcription.delta", {"delta": delta}
        if isinstance(event, FinalEvent):
            yield "transcription.done", {"text": event.text, "usage": _usage(event)}
            self.completed += 1


def _usage(final: FinalEvent) -> dict[str, Any]:
    return {"type": "duration", "seconds": round(final.end - final.start, 3)}
