"""Where in a stream there is a voice, and which of its audio the encoder needs to see therefore.

Positions are samples at 16 kHz since the stream began.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..data.audio import SAMPLING_RATE
from ..modeling.configuration_conformer import HOP_LENGTH
from ..options import EndpointOptions
from .events import Reason

WINDOW = 512  # samples that a detector looks at
_CONTEXT = 64  # samples before its window that silero-vad sees again
_LESS, _LEAST = 0.15, 0.01  # a voice ends so far below the probability at which it begins, as silero-vad has it


class VoiceDetector(Protocol):
    """Tells how likely a window of a stream holds a voice."""

    def start(self) -> Any:
        """The state of a stream that has just begun."""

    def __call__(self, state: Any, window: NDArray[np.float32]) -> tuple[float, Any]:
        """The probability of a voice in the next window (512,), and the state after it."""


class SileroDetector:
    """silero-vad, the network that its package brings, on one thread of onnxruntime.

    Raises:
        ImportError: silero-vad or onnxruntime is not installed.
    """

    def __init__(self) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise ImportError(_missing("onnxruntime")) from error
        # The package itself is not imported: it would bring a model in torch, and readers of audio.
        found = importlib.util.find_spec("silero_vad")
        if found is None or not found.submodule_search_locations:
            raise ImportError(_missing("silero-vad"))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        file = Path(found.submodule_search_locations[0], "data", "silero_vad_16k_op15.onnx")
        self._session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        self._rate = np.array(SAMPLING_RATE, dtype=np.int64)

    def __reduce__(self) -> tuple[type[SileroDetector], tuple[()]]:
        return SileroDetector, ()  # a session cannot be copied

    def start(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        return np.zeros((2, 1, 128), np.float32), np.zeros(_CONTEXT, np.float32)

    def __call__(self, state: Any, window: NDArray[np.float32]) -> tuple[float, Any]:
        memory, before = state
        inputs = {"input": np.concatenate([before, window])[None], "state": memory, "sr": self._rate}
        probability, memory = self._session.run(None, inputs)
        return float(probability[0, 0]), (memory, window[-_CONTEXT:])


def installed_detector() -> VoiceDetector | None:
    """silero-vad, where it is installed."""
    try:
        return SileroDetector()
    except ImportError:
        return None


def _missing(name: str) -> str:
    return f"The voice detector needs {name}, which is not installed: pip install 'hf-speech-ssl[vad]'."


@dataclass
class VoiceGate:
    """Lets the audio of segments with a voice through to the encoder, and nothing else.

    A segment begins `rules.padding_seconds` before a voice is noticed, not before the end of the segment before it,
    and ends when the voice has been silent for `rules.silence_seconds`. What it decides depends on windows of 32 ms
    that are counted from the beginning of the stream, not on the blocks that samples come in.

    Attributes:
        queue: samples that have not been looked at.
        position: of the first of them.
        begin: of the current or last segment.
        voice_end: where its voice was last noticed.
        open: whether a segment has begun and not ended.
        opened: whether it has just begun; whoever reads it clears it.
        closing: whether the segment has ended, and `close` has not been called.
        unheard: where the rule for silence without any speech has come true; whoever reads it clears it.
    """

    detector: VoiceDetector
    rules: EndpointOptions
    queue: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    position: int = 0
    begin: int = 0
    voice_end: int = 0
    open: bool = False
    opened: bool = False
    closing: bool = False
    unheard: int | None = None
    _state: Any = None
    _recent: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    _silent_since: int | None = 0  # position; `None` once the rule for silence without speech has come true

    def __post_init__(self) -> None:
        self._state = self.detector.start()

    def add(self, samples: NDArray[np.float32]) -> None:
        """Take samples of the stream."""
        self.queue = np.concatenate([self.queue, samples])

    def next(self, ended: bool) -> NDArray[np.float32] | None:
        """Look at the next window.

        Args:
            ended: whether no more samples will come.

        Returns:
            The samples that the encoder needs to see, perhaps none; `None` if there is no whole window, or the segment
            has ended.
        """
        if self.closing:
            return None
        if len(self.queue) < WINDOW:
            rest, self.queue = self.queue, self.queue[:0] if ended else self.queue
            if not ended or not len(rest):
                return None
            self.position += len(rest)
            return rest if self.open else rest[:0]  # less than a window is no voice of its own
        window, self.queue = self.queue[:WINDOW], self.queue[WINDOW:]
        self.position += WINDOW
        probability, self._state = self.detector(self._state, window)
        return self._in_segment(window, probability) if self.open else self._in_silence(window, probability)

    def close(self) -> None:
        """End the segment; the next one begins with samples that come after it."""
        self.open = self.closing = False
        self._recent, self._silent_since = self._recent[:0], self.position

    def _in_segment(self, window: NDArray[np.float32], probability: float) -> NDArray[np.float32]:
        silence = self.rules.silence_seconds
        if probability >= max(self.rules.voice_threshold - _LESS, _LEAST):
            self.voice_end = self.position
        elif silence is not None and self.position - self.voice_end >= silence * SAMPLING_RATE:
            self.closing = True
        return window

    def _in_silence(self, window: NDArray[np.float32], probability: float) -> NDArray[np.float32]:
        recent = np.concatenate([self._recent, window])
        if probability >= self.rules.voice_threshold:
            # Feature frames begin at whole hops.
            self.begin = -(-(self.position - len(recent)) // HOP_LENGTH) * HOP_LENGTH
            self.open = self.opened = True
            self.voice_end = self.position
            return recent[self.begin - (self.position - len(recent)) :]
        self._recent = recent[max(0, len(recent) - round(self.rules.padding_seconds * SAMPLING_RATE)) :]
        since, longest = self._silent_since, self.rules.no_speech_seconds
        if since is not None and longest is not None and self.position - since >= longest * SAMPLING_RATE:
            self.unheard, self._silent_since = self.position, None
        return window[:0]


def silence_rule(rules: EndpointOptions, silent: float, spoken: bool) -> Reason | None:
    """Which of the two rules on silence holds.

    Args:
        silent: seconds since the last word, or since the segment began.
        spoken: whether there is a word in the segment.
    """
    limit = rules.silence_seconds if spoken else rules.no_speech_seconds
    if limit is None or silent < limit:
        return None
    return "silence" if spoken else "no_speech"
