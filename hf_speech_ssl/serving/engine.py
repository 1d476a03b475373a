"""Runs the streams of all clients through one `StreamingBatch`, in a thread of its own.

Samples come in from any thread and wait with their stream. The engine works in rounds: in each, every stream that has
samples gives at most one chunk of them, and all chunks that are complete share a step of the model. So nobody waits
for a client that sends faster than others, and the busier the server is, the larger the batches become.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Condition, Thread
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..data.audio import check_rate
from ..decoding import StreamingText
from ..options import EndpointOptions
from ..recognition.events import Event, FinalEvent, PartialEvent
from ..recognition.stream import Stream
from ..recognition.streaming import StreamingBatch

logger = logging.getLogger(__name__)


class Busy(Exception):
    """There are as many streams as there may be, or the server is closing."""


@dataclass(frozen=True)
class Update:
    """What has happened in a stream since the update before. A listener that is slow must keep the events of all.

    Attributes:
        events: in order; segments that have ended have a `FinalEvent` with their text, words and times.
        seconds: of audio that has been taken in.
        ended: whether the stream is over, and this was all.
        error: why the stream has ended before its end.
    """

    events: Sequence[Event]
    seconds: float
    ended: bool = False
    error: BaseException | None = None


class Observer(Protocol):
    """Counts what the engine does; called in its thread."""

    def round(self, streams: int, seconds: float, audio_seconds: float) -> None:
        """A round has taken so many seconds for so many streams and seconds of audio."""

    def delay(self, seconds: float) -> None:
        """Samples have waited so long, from when they came in to when they had been transcribed."""


class Latest:
    """A listener that keeps the text of the latest segment, for a thread that waits for it."""

    def __init__(self) -> None:
        self.update = Update((), 0.0)
        self.text = StreamingText("", "")
        self._changed = Condition()

    def __call__(self, update: Update) -> None:
        with self._changed:
            self.update = update
            for event in update.events:
                if isinstance(event, PartialEvent):
                    self.text = StreamingText(event.text, event.final)
                elif isinstance(event, FinalEvent):
                    self.text = StreamingText(event.text, event.text)
            self._changed.notify_all()

    def wait_for(self, enough: Callable[[Update], bool]) -> Update:
        """The first update of which `enough` is true.

        Raises:
            RuntimeError: the stream has ended by an error.
        """
        with self._changed:
            self._changed.wait_for(lambda: enough(self.update) or self.update.error is not None)
        if self.update.error is not None:
            raise RuntimeError("The model failed.") from self.update.error
        return self.update


class LiveStream:
    """One client's stream. Its methods can be called in any thread.

    Args:
        engine: that it belongs to.
        rate: of its samples, in Hz.
        listener: is called in the engine's thread, after every round that took samples of this stream.
        endpoints: rules that end its segments; those of the batch if absent.
    """

    def __init__(
        self, engine: Engine, rate: float, listener: Callable[[Update], None], endpoints: EndpointOptions | None
    ):
        self.engine, self.rate, self.listener, self.endpoints = engine, rate, listener, endpoints
        self.stream: Stream | None = None  # of the batch, which the engine's thread alone may touch
        self.waiting: deque[tuple[NDArray[np.int16], float]] = deque()  # blocks, and when they came
        self.samples_waiting = 0
        self.samples_taken = 0
        self.ending = False
        self.gone = False

    @property
    def seconds_waiting(self) -> float:
        """Seconds of samples that no round has taken yet."""
        return self.samples_waiting / self.rate

    def feed(self, samples: NDArray[np.int16]) -> None:
        """Take samples, (n,) 16-bit mono. What comes after `finish` or `leave` is refused.

        Raises:
            ValueError: the stream has ended.
        """
        with self.engine.changed:
            if self.ending or self.gone:
                raise ValueError("The stream has ended; join for another one.")
            if len(samples):
                self.waiting.append((samples, time.monotonic()))
                self.samples_waiting += len(samples)
                self.engine.changed.notify()

    def finish(self) -> None:
        """Say that no samples will come: the listener gets the last update once all are transcribed."""
        with self.engine.changed:
            self.ending = True
            self.engine.changed.notify()

    def leave(self) -> None:
        """Drop the stream as it is; the listener is not called any more."""
        with self.engine.changed:
            self.gone = True
            self.waiting.clear()
            self.samples_waiting = 0
            self.engine.changed.notify()

    def take(self, seconds: float) -> tuple[NDArray[np.int16], float]:
        """At most so many seconds of what waits, and when the last of them came; the engine holds the lock."""
        wanted, came = round(seconds * self.rate), 0.0
        parts: list[NDArray[np.int16]] = []
        while self.waiting and wanted:
            block, came = self.waiting.popleft()
            if len(block) > wanted:
                self.waiting.appendleft((block[wanted:], came))
                block = block[:wanted]
            wanted -= len(block)
            parts.append(block)
        taken = np.concatenate(parts)
        self.samples_waiting -= len(taken)
        return taken, came


class Engine:
    """Owns a `StreamingBatch` and the thread that runs it.

    Args:
        batch: of a model; nobody else may touch it.
        chunk_duration_ms: of the batch.
        max_streams: that are there at the same time.
        observer: counts rounds and delays.
    """

    def __init__(
        self, batch: StreamingBatch, chunk_duration_ms: int, max_streams: int = 64, observer: Observer | None = None
    ):
        self.batch, self.round_seconds = batch, chunk_duration_ms / 1000
        self.max_streams, self.observer = max_streams, observer
        self.changed = Condition()
        self.streams: list[LiveStream] = []
        self.closing = False
        self.failure: BaseException | None = None
        self._thread = Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def running(self) -> bool:
        """Whether streams are served."""
        return self._thread.is_alive() and not self.closing

    @property
    def detects_voices(self) -> bool:
        """Whether rules of streams may ask for a voice detector."""
        return self.batch.detector is not None

    def join(
        self, listener: Callable[[Update], None], rate: float = 16_000, endpoints: EndpointOptions | None = None
    ) -> LiveStream:
        """A new stream.

        Args:
            rate: of its samples, in Hz.
            endpoints: rules that end its segments; those of the batch by default.

        Raises:
            AudioError: there is no such rate.
            Busy: there are `max_streams` already, or the engine is closing.
        """
        check_rate(rate, "the stream")
        with self.changed:
            if not self.running:
                raise Busy("The server is closing; connect to another one.")
            if sum(not one.gone for one in self.streams) >= self.max_streams:
                raise Busy(f"{self.max_streams} streams are open, as many as this server takes; try again later.")
            live = LiveStream(self, rate, listener, endpoints)
            self.streams.append(live)
            return live

    def close(self) -> None:
        """End the thread. Streams that are still there are dropped."""
        with self.changed:
            self.closing = True
            self.changed.notify()
        self._thread.join()
        left, self.streams = self.streams, []
        for one in left:
            one.stream = None
            if not one.gone:
                one.listener(Update((), 0.0, error=Busy("The server has closed.")))

    def _run(self) -> None:
        try:
            while self._round():
                pass
        except BaseException as error:  # the model failed, for everybody
            logger.exception("The engine has stopped.")
            with self.changed:
                self.failure = error
                left, self.streams = self.streams, []
            for live in left:
                live.listener(Update((), 0.0, error=error))

    def _round(self) -> bool:
        """Wait for work and do what there is for every stream; false once the engine closes."""
        with self.changed:
            self.changed.wait_for(
                lambda: self.closing or any(one.gone or one.ending or one.waiting for one in self.streams)
            )
            if self.closing:
                return False
            gone = [one for one in self.streams if one.gone]
            taken = {one: one.take(self.round_seconds) for one in self.streams if one.waiting}
            ending = [one for one in self.streams if one.ending and not one.waiting and not one.gone]
            self.streams = [one for one in self.streams if not one.gone and one not in ending]
        self.batch.leave(*(one.stream for one in gone if one.stream is not None))
        began = time.monotonic()
        self._feed({live: block for live, (block, _) in taken.items()})
        self.batch.finish(*map(self._stream, ending))
        updates = {one: self._update(one, ended=one in ending) for one in dict.fromkeys([*taken, *ending])}
        if self.observer is not None and taken:
            now = time.monotonic()
            audio_seconds = sum(len(block) / one.rate for one, (block, _) in taken.items())
            self.observer.round(len(taken), now - began, audio_seconds)
            for _, came in taken.values():
                self.observer.delay(now - came)
        for live, update in updates.items():
            if not live.gone:
                live.listener(update)
        return True

    def _feed(self, blocks: dict[LiveStream, NDArray[np.int16]]) -> None:
        """Feed the batch, all streams of a rate at once."""
        for rate in {one.rate for one in blocks}:
            of_rate = {one: block for one, block in blocks.items() if one.rate == rate}
            self.batch.feed({self._stream(one): block for one, block in of_rate.items()}, rate)
            for live, block in of_rate.items():
                live.samples_taken += len(block)

    def _update(self, live: LiveStream, ended: bool) -> Update:
        update = Update(self.batch.events(self._stream(live)), live.samples_taken / live.rate, ended)
        if ended:
            live.stream = None
        return update

    def _stream(self, live: LiveStream) -> Stream:
        if live.stream is None:
            live.stream = self.batch.join(live.endpoints)
        return live.stream
