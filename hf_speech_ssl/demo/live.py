"""Live transcripts of many visitors at once: blocks of samples come in, numbered, and the text so far goes out.

The streams run in the server's engine, where those of all visitors share the model's steps.
"""

from __future__ import annotations

import base64
import binascii
import time
import weakref
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.audio import AudioError, load_audio
from ..recognition.packing import can_pack, pack_layers
from ..recognition.recognizer import Recognizer
from ..recognition.streaming import StreamingBatch
from ..serving.engine import Busy, Engine, Latest, LiveStream

MAX_SECONDS = 300.0  # of one recording
MAX_RECORDINGS = 16  # at once
KEPT_SECONDS = 15.0  # of each recording's beginning, for its picture
IDLE_SECONDS = 120.0  # without a block until a recording counts as left


class Refused(ValueError):
    """A message that the page cannot use; its text is for the visitor."""


@dataclass
class _Recording:
    """One visitor's recording, from the first block to its picture."""

    live: LiveStream
    latest: Latest
    ended: bool = False
    blocks: int = 0  # that have come, used or left out
    samples: int = 0
    kept: list[NDArray[np.int16]] = field(default_factory=list)
    last_block_at: float = field(default_factory=time.monotonic)
    lock: Lock = field(default_factory=Lock)


class LiveTranscripts:
    """Transcribes what browsers send, each recording by itself.

    A browser names its recording by a random id that nobody else knows, and numbers its blocks: a block that comes
    twice, because its answer was lost on the way, is used once.

    Args:
        recognizer: of a Chunk SSL model.
        chunk_duration_ms: duration of a chunk.

    Raises:
        ValueError: the model cannot work in chunks, or not in such ones.
    """

    def __init__(self, recognizer: Recognizer, chunk_duration_ms: int = 320):
        self.recognizer = recognizer
        batch = StreamingBatch(recognizer.model, recognizer.processor, chunk_duration_ms)
        if can_pack(recognizer.model):
            pack_layers(recognizer.model)
        self._engine = Engine(batch, chunk_duration_ms, MAX_RECORDINGS)
        # Resamplers that live until Python ends are reported as leaks on the terminal.
        weakref.finalize(self, self._engine.close)
        self._recordings: dict[str, _Recording] = {}
        self._lock = Lock()

    def accept(self, message: Any) -> dict[str, Any]:
        """One block of a recording.

        Args:
            message: `recording`, its id; `number`, from 0 on; `rate`, in Hz; `samples`, 16-bit little-endian mono
                in base64; `last`, whether the recording ends here.

        Returns:
            `final`, the words that stay, and `tentative`, what may still change; `seconds` accepted; `ended`, whether
            that was all; `problem`, words for the visitor where the block was left out. Where the recording cannot
            go on, only the last two. Nothing is raised.
        """
        try:
            name, number, rate, block, last = _read(message)
            recording = self._find(name, number, rate)
            with recording.lock:
                problem = self._take(recording, number, rate, block, last)
                return _answer(recording, problem)
        except Refused as error:
            return {"ended": True, "problem": str(error)}

    def samples(self, name: str) -> NDArray[np.float32] | None:
        """The beginning of a recording that has ended, (samples,) at 16 kHz, handed out once; `None` if there is no
        such recording or nothing to see in it.
        """
        with self._lock:
            recording = self._recordings.pop(name, None)
        if recording is None:
            return None
        recording.live.leave()
        if not recording.kept:
            return None
        try:
            rate = recording.live.rate
            return load_audio({"array": np.concatenate(recording.kept), "sampling_rate": rate}, name="it")
        except AudioError:  # silence, or a click on the button and another
            return None

    def _find(self, name: str, number: int, rate: float) -> _Recording:
        """The recording of that name, a new one at block 0."""
        now = time.monotonic()
        with self._lock:
            left = [key for key, one in self._recordings.items() if now - one.last_block_at > IDLE_SECONDS]
            for key in left:
                self._recordings.pop(key).live.leave()
            recording = self._recordings.get(name)
            if recording is None:
                if number:
                    raise Refused("The recording was interrupted for too long. Please start again.")
                latest = Latest()
                try:
                    live = self._engine.join(latest, rate)
                except Busy as error:
                    running = sum(not one.ended for one in self._recordings.values())
                    raise Refused(
                        f"{running} people are speaking to this page just now. Please try again in a minute."
                    ) from error
                recording = self._recordings[name] = _Recording(live, latest)
            recording.last_block_at = now
            return recording

    @staticmethod
    def _take(recording: _Recording, number: int, rate: float, block: NDArray[np.int16], last: bool) -> str:
        """Accept a block unless it came before; returns what the visitor should know, if anything."""
        live, problem = recording.live, ""
        if number < recording.blocks or recording.ended:
            return ""
        if number > recording.blocks:
            raise Refused("A part of the recording was lost on the way. Please start again.")
        recording.blocks += 1
        seconds = recording.samples / live.rate
        if rate != live.rate:
            problem = f"{len(block) / rate:.1f} s were left out: at {rate:g} Hz, where {live.rate:g} Hz came before."
        else:
            if seconds < KEPT_SECONDS and len(block):
                recording.kept.append(block)
            live.feed(block)
            recording.samples += len(block)
            seconds = recording.samples / live.rate
            recording.latest.wait_for(lambda update: update.seconds >= seconds)
        if seconds > MAX_SECONDS and not last:
            last, problem = True, f"Recordings end after {MAX_SECONDS / 60:g} minutes here."
        if last:
            live.finish()
            recording.latest.wait_for(lambda update: update.ended)
            recording.ended = True
        return problem


def _read(message: Any) -> tuple[str, int, float, NDArray[np.int16], bool]:
    """A message's parts; what comes over the network may be anything."""
    try:
        name, number, rate = str(message["recording"]), int(message["number"]), float(message["rate"])
        data = base64.b64decode(message["samples"], validate=True)
        block = np.frombuffer(data, dtype="<i2")
    except (TypeError, KeyError, ValueError, OverflowError, binascii.Error) as error:
        raise Refused(f"The browser sent no audio that can be read ({error}).") from error
    if not (0 < len(name) <= 64 and number >= 0 and 1000 <= rate <= 768_000):
        raise Refused(f"The browser sent a block numbered {number} at {rate:g} Hz, which cannot be.")
    return name, number, rate, block, bool(message.get("last"))


def _answer(recording: _Recording, problem: str) -> dict[str, Any]:
    text = recording.latest.text
    return {
        "final": text.final,
        "tentative": text.text[len(text.final) :],  # with the space between the two
        "seconds": recording.samples / recording.live.rate,
        "ended": recording.ended,
        "problem": problem,
    }
