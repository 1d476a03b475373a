"""What OpenAI's clients ask for by `turn_detection`, and the rules that end a stream's segments therefore.

A session begins without: that is the only value that OpenAI's model takes whose deltas come while audio comes in, as
they do here (gpt-realtime-whisper), and clients that commit by hand need to ask for nothing.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from ..options import EndpointOptions

_OF_A_DETECTOR = ("prefix_padding_ms", "threshold")  # what only a voice detector makes something of


@dataclass(frozen=True)
class TurnDetection:
    """Turns end with silence, as by OpenAI's `server_vad`, whose fields and defaults these are.

    Silence is what silero-vad finds no voice in where the server has it, else what the model finds no words in.

    Attributes:
        silence_duration_ms: of silence behind speech, by which a turn ends.
        idle_timeout_ms: of silence before speech, which the client is told of, once each time; never if absent.
        prefix_padding_ms: of audio before a voice is noticed that belong to its turn.
        threshold: probability at which a voice begins.

    Raises:
        ValueError: a field is no number, or too large or small.
    """

    silence_duration_ms: float = 500
    idle_timeout_ms: float | None = None
    prefix_padding_ms: float = 300
    threshold: float = 0.5

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if name == "idle_timeout_ms" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise ValueError(f"turn_detection.{name} must be a number, got {value!r}.")
            if value < 0 or (value == 0 and name not in _OF_A_DETECTOR):
                least = "at least" if name in _OF_A_DETECTOR else "above"
                raise ValueError(f"turn_detection.{name} must be {least} 0, got {value}.")
        if self.threshold > 1:
            raise ValueError(f"turn_detection.threshold must be between 0 and 1, got {self.threshold}.")

    @staticmethod
    def fields(voice_detector: bool) -> dict[str, Any]:
        """The names of the fields that change something, with or without a voice detector."""
        names = ["type", *TurnDetection.__dataclass_fields__]
        return {name: {} for name in names if voice_detector or name not in _OF_A_DETECTOR}

    @classmethod
    def of(cls, values: dict[str, Any]) -> TurnDetection:
        """What a client asks for. Fields that are absent or null have their defaults."""
        known = {name: value for name, value in values.items() if name in cls.__dataclass_fields__}
        return cls(**{name: value for name, value in known.items() if value is not None})

    def describe(self, voice_detector: bool) -> dict[str, Any]:
        """The fields that change something, as `session.updated` has them."""
        fields = {"type": "server_vad", **asdict(self)}
        return {name: fields[name] for name in self.fields(voice_detector)}

    def rules(self, voice_detector: bool) -> EndpointOptions:
        """The rules for a stream."""
        return EndpointOptions(
            silence_seconds=self.silence_duration_ms / 1000,
            no_speech_seconds=None if self.idle_timeout_ms is None else self.idle_timeout_ms / 1000,
            voice_detector="silero" if voice_detector else "none",
            voice_threshold=self.threshold,
            padding_seconds=self.prefix_padding_ms / 1000,
        )
