"""Realtime transcription over a connection: events of a client in, events of the server out.

Two dialects are spoken, and a client's first events tell which it speaks:

- that of OpenAI's transcription sessions: `session.update` with a `session` object, 24 kHz unless it names a rate;
  `input_audio_buffer.append`, `.commit` and `.clear`. Back come `conversation.item.input_audio_transcription.delta`
  while audio comes in, and `.completed` after a commit, or at the end of a turn if the session has `turn_detection`.
- that of vLLM: `session.update` with a `model`, 16 kHz; `commit` with `final: false` begins, with `final: true` ends.
  Back come `transcription.delta` and `transcription.done`.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import json
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..data.audio import AudioError, check_rate
from ..recognition.events import Event
from .engine import Busy, Engine, LiveStream, Update
from .limits import Limits
from .turn_detection import TurnDetection
from .turns import OpenAITurns, Turns, VLLMTurns

OPENAI_RATE, VLLM_RATE = 24_000, 16_000  # Hz, of clients that name none


class BadEvent(ValueError):
    """An event that cannot be used; the connection goes on.

    Args:
        code: a word for programs.
        message: a sentence for people.
    """

    def __init__(self, code: str, message: str):
        super().__init__(message)
        self.code = code


class SessionOver(Exception):
    """The connection may not go on; its text says why."""


@dataclass
class _Utterance:
    """What comes between two commits of a client: one stream, of one or more turns.

    Attributes:
        live: its stream.
        events: that the client has not been told of.
        update: the latest one.
        cleared: whether the client has dropped it.
        changed, taken: set when there is a later update, for who writes to the client and who reads from it.
    """

    live: LiveStream
    events: list[Event] = field(default_factory=list)
    update: Update | None = None
    cleared: bool = False
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    taken: asyncio.Event = field(default_factory=asyncio.Event)

    def note(self, update: Update) -> None:
        """Take what the engine has to say."""
        self.events += update.events
        self.update = update
        self.changed.set()
        self.taken.set()

    def check(self) -> None:
        """Raise SessionOver if the model failed."""
        if self.update is not None and self.update.error is not None:
            raise SessionOver("The model failed.")


class RealtimeSession:
    """One client's connection. Its methods are called in the event loop, one after the other.

    Args:
        engine: that transcribes.
        model: the name that clients know it by.
        limits: of the server.
        send: gives the client an event.
    """

    def __init__(self, engine: Engine, model: str, limits: Limits, send: Callable[[dict[str, Any]], Awaitable[None]]):
        self.engine, self.model, self.limits, self._send = engine, model, limits, send
        self.name = f"sess_{uuid.uuid4().hex}"
        self.vllm = False
        self.turn_detection: TurnDetection | None = None
        self.rate: float = OPENAI_RATE
        self.seconds = 0.0  # of audio in all
        self._utterance: _Utterance | None = None
        self._writer: asyncio.Task[None] | None = None
        self._turns: Turns = OpenAITurns()

    async def start(self) -> None:
        """Greet the client."""
        await self._event("session.created", id=self.name, created=int(time.time()), session=self._describe())

    async def handle(self, message: str) -> None:
        """Take an event. What cannot be used is answered by an error event.

        Raises:
            SessionOver: the connection may not go on.
        """
        event: dict[str, Any] = {}
        try:
            event = _parse(message)
            await self._handle(event)
        except BadEvent as error:
            await self._error("invalid_request_error", error.code, str(error), event)
        except Busy as error:
            await self._error("server_error", "server_busy", str(error), event)

    async def finish(self) -> None:
        """Transcribe what is left, as after a commit."""
        utterance, writer = self._utterance, self._writer
        if utterance is not None and writer is not None:
            utterance.live.finish()
            await writer
            self._utterance = self._writer = None
            utterance.check()

    def abandon(self) -> None:
        """Drop what is left, because the client has gone."""
        if self._writer is not None:
            self._writer.cancel()
        if self._utterance is not None:
            self._utterance.live.leave()
        self._writer = self._utterance = None

    async def _handle(self, event: dict[str, Any]) -> None:
        kind = event.get("type")
        if kind == "session.update":
            await self._update_session(event)
        elif kind == "input_audio_buffer.append":
            await self._append(event.get("audio"))
        elif kind == "input_audio_buffer.commit":
            if "final" in event:
                self._speak_vllm()
            if event.get("final", True):
                await self._commit()
        elif kind == "input_audio_buffer.clear":
            await self._clear()
        else:
            raise BadEvent(
                "unknown_event",
                f"There is no event {kind!r} here; there are session.update and input_audio_buffer.append, .commit "
                f"and .clear.",
            )

    async def _update_session(self, event: dict[str, Any]) -> None:
        if "session" not in event:
            self._speak_vllm()
            self._check_model(event.get("model"))
            return
        source = _object(event["session"], "session")
        if source.get("type", "transcription") != "transcription":
            raise BadEvent("unsupported", f"Sessions are of type 'transcription' here, not {source['type']!r}.")
        audio = _object(_object(source.get("audio"), "audio").get("input"), "input")
        self._check_model(_object(audio.get("transcription"), "transcription").get("model"))
        form = _object(audio.get("format"), "format")
        if form.get("type", "audio/pcm") != "audio/pcm":
            raise BadEvent("unsupported", f"Audio must come as audio/pcm, 16-bit mono, not as {form['type']!r}.")
        rate, detection = form.get("rate", self.rate), self.turn_detection
        if "turn_detection" in audio:
            detection = _turn_detection(audio["turn_detection"])
        if (rate, detection) != (self.rate, self.turn_detection) and self._utterance is not None:
            raise BadEvent(
                "unsupported",
                "The rate and turn_detection cannot change while there is audio that is neither committed nor "
                "cleared: send input_audio_buffer.commit or .clear before.",
            )
        try:
            self.rate = check_rate(rate, "format")
        except AudioError as error:
            raise BadEvent("invalid_value", error.detail) from error
        self.turn_detection = detection
        ignored = _unknown(source, self._fields())
        await self._event("session.updated", session=self._describe(), **({"ignored": ignored} if ignored else {}))

    def _fields(self) -> dict[str, Any]:
        """The fields of a session that change something here; `session.updated` names the others that came."""
        turns = TurnDetection.fields(self.engine.detects_voices)
        audio = {"format": {"type": {}, "rate": {}}, "transcription": {"model": {}}, "turn_detection": turns}
        return {"type": {}, "audio": {"input": audio}}

    def _check_model(self, name: Any) -> None:
        if name not in (None, self.model):
            raise BadEvent("model_not_found", f"There is no model {name!r} here, but {self.model!r}.")

    def _speak_vllm(self) -> None:
        if not self.vllm and self._utterance is None:
            self.vllm, self.rate, self.turn_detection, self._turns = True, VLLM_RATE, None, VLLMTurns()

    async def _append(self, audio: Any) -> None:
        try:
            data = base64.b64decode(audio, validate=True)
            samples = np.frombuffer(data, dtype="<i2")
        except (TypeError, ValueError, binascii.Error) as error:
            raise BadEvent("invalid_audio", f"'audio' must be 16-bit samples in base64 ({error}).") from error
        if self._utterance is None:
            self._utterance = self._begin()
        utterance = self._utterance
        utterance.check()
        utterance.live.feed(samples.astype(np.int16, copy=False))
        self.seconds += len(samples) / self.rate
        if self.seconds > self.limits.max_seconds:
            await self.finish()
            raise SessionOver(f"Connections end after {self.limits.max_seconds:g} s of audio here; connect again.")
        # A client that sends faster than the engine transcribes waits here: its events are not read meanwhile.
        while utterance.live.seconds_waiting > self.limits.max_seconds_waiting:
            await _wait(utterance.taken)
            utterance.check()

    def _begin(self) -> _Utterance:
        loop = asyncio.get_running_loop()
        holder: list[_Utterance] = []

        def listen(update: Update) -> None:  # in the engine's thread
            with contextlib.suppress(RuntimeError):  # the loop has closed, and with it the connection
                loop.call_soon_threadsafe(holder[0].note, update)

        detection = self.turn_detection
        rules = None if detection is None else detection.rules(self.engine.detects_voices)
        holder.append(_Utterance(self.engine.join(listen, self.rate, rules)))
        self._turns.begin(self.seconds, detected=detection is not None)
        self._writer = asyncio.create_task(self._write(holder[0]))
        # A client that has gone ends it by an error, which the connection's own end tells of.
        self._writer.add_done_callback(lambda task: task.cancelled() or task.exception())
        return holder[0]

    async def _commit(self) -> None:
        if self._utterance is None:
            raise BadEvent("input_audio_buffer_commit_empty", "No audio came since the last commit.")
        completed = self._turns.completed
        await self.finish()
        if self._turns.completed == completed:
            raise BadEvent("input_audio_buffer_commit_empty", "Nobody has spoken since the last turn.")

    async def _clear(self) -> None:
        """Drop the audio that is left; turns that have ended are still told."""
        utterance, writer = self._utterance, self._writer
        if utterance is not None and writer is not None:
            utterance.live.leave()
            utterance.cleared = True
            utterance.changed.set()
            await writer
        self._utterance = self._writer = None
        await self._event("input_audio_buffer.cleared")

    async def _write(self, utterance: _Utterance) -> None:
        """Tell the client what happens in the stream, to its end."""
        while True:
            await _wait(utterance.changed)
            update, cleared = utterance.update, utterance.cleared
            events, utterance.events = utterance.events, []
            for event in events:
                for kind, values in self._turns.tell(event):
                    await self._event(kind, **values)
            if update is not None and update.error is not None:
                await self._error("server_error", "transcription_failed", "The model failed; its log says why.", {})
            if cleared or (update is not None and (update.ended or update.error is not None)):
                return

    def _describe(self) -> dict[str, Any]:
        detection = self.turn_detection
        return {
            "id": self.name,
            "object": "realtime.transcription_session",
            "type": "transcription",
            "audio": {
                "input": {
                    "format": {"type": "audio/pcm", "rate": self.rate},
                    "transcription": {"model": self.model},
                    "turn_detection": None if detection is None else detection.describe(self.engine.detects_voices),
                }
            },
        }

    async def _event(self, kind: str, **values: Any) -> None:
        await self._send({"type": kind, "event_id": f"event_{uuid.uuid4().hex}", **values})

    async def _error(self, kind: str, code: str, message: str, event: dict[str, Any]) -> None:
        if self.vllm:
            await self._event("error", error=message, code=code)
            return
        cause = event.get("event_id")
        await self._event(
            "error", error={"type": kind, "code": code, "message": message, "param": None, "event_id": cause}
        )


async def _wait(event: asyncio.Event) -> None:
    await event.wait()
    event.clear()


def _parse(message: str) -> dict[str, Any]:
    try:
        event = json.loads(message)
    except ValueError as error:
        raise BadEvent("invalid_json", f"The event is no JSON ({error}).") from error
    if not isinstance(event, dict):
        raise BadEvent("invalid_json", "An event must be a JSON object with a type.")
    return event


def _unknown(values: dict[str, Any], known: dict[str, Any], above: str = "") -> list[str]:
    """The names of the fields that `known` does not have, with those of the objects that they are in."""
    found = []
    for name, value in values.items():
        if name not in known:
            found += [above + name] if value is not None else []
        elif isinstance(value, dict):
            found += _unknown(value, known[name], f"{above}{name}.")
    return found


def _turn_detection(value: Any) -> TurnDetection | None:
    if value is None:
        return None
    values = _object(value, "turn_detection")
    if values.get("type") != "server_vad":
        raise BadEvent(
            "unsupported", f"turn_detection must be null or of type 'server_vad', not {values.get('type')!r}."
        )
    try:
        return TurnDetection.of(values)
    except ValueError as error:
        raise BadEvent("invalid_value", str(error)) from error


def _object(value: Any, name: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise BadEvent("invalid_value", f"'{name}' must be an object.")
    return value
