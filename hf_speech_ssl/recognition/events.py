"""What happens in a live stream, in order, as plain dataclasses that become JSON.

A stream consists of segments: what is said between two endpoints. In each comes `speech` once there is any, then any
number of `word` and `partial` events, then `endpoint` if an endpoint rule ended the segment, and `final`. All times
are seconds since the stream began.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Literal, TypeAlias

from ..decoding.text import TimedText
from ..json_files import finite

Reason: TypeAlias = Literal["silence", "no_speech", "length"]


@dataclass(frozen=True)
class Word:
    """A word of a stream.

    Attributes:
        text: as the tokenizer writes it.
        start, end: in seconds.
        confidence: between 0 and 1, see [`TimedText`]; `None` where the decoder has none.
        final: whether it will not change any more.
        joined: whether no space stands between this word and the one before it.
    """

    text: str
    start: float
    end: float
    confidence: float | None
    final: bool
    joined: bool = False

    @classmethod
    def of(cls, word: TimedText, offset: float, final: bool) -> Word:
        """A decoder's word, whose times count from `offset` seconds on."""
        return cls(word.text, word.start + offset, word.end + offset, word.confidence, final, word.joined)


@dataclass(frozen=True)
class SpeechEvent:
    """Somebody has begun to speak: a voice detector, or the first text of the segment, says so.

    Attributes:
        segment: counts the segments of the stream from 0.
        time: seconds of audio that had been transcribed.
        start: seconds at which the audio of the voice, or its first word, begins. A beam search may still find another
            first word, which begins earlier or later.
    """

    segment: int
    time: float
    start: float
    type: Literal["speech"] = field(default="speech", init=False)


@dataclass(frozen=True)
class PartialEvent:
    """The text of the current segment has changed, or words of it have become final.

    Attributes:
        segment, time: as in [`SpeechEvent`].
        text: of the segment so far.
        final: the beginning of `text` that will not change any more.
        words: the words of `text` that may still change; those before them came as `word` events.
    """

    segment: int
    time: float
    text: str
    final: str
    words: list[Word]
    type: Literal["partial"] = field(default="partial", init=False)


@dataclass(frozen=True)
class WordEvent:
    """A word has become final.

    Attributes:
        segment, time: as in [`SpeechEvent`].
        word: the word, whose `final` is true.
    """

    segment: int
    time: float
    word: Word
    type: Literal["word"] = field(default="word", init=False)


@dataclass(frozen=True)
class EndpointEvent:
    """A rule has ended the segment.

    Attributes:
        segment, time: as in [`SpeechEvent`].
        reason: "silence" after speech, "no_speech" where there was none, or the "length" of the segment.
        end_of_speech: seconds at which the last word, or the voice, ended; `None` where there was none.
    """

    segment: int
    time: float
    reason: Reason
    end_of_speech: float | None
    type: Literal["endpoint"] = field(default="endpoint", init=False)


@dataclass(frozen=True)
class FinalEvent:
    """A segment is over: at an endpoint, or at the end of the stream.

    Attributes:
        segment, time: as in [`SpeechEvent`].
        text: the whole text of the segment, perhaps empty.
        words: all its words; `None` where the tokenizer does not tell words apart.
        start, end: seconds at which its audio begins and ends.
    """

    segment: int
    time: float
    text: str
    words: list[Word] | None
    start: float
    end: float
    type: Literal["final"] = field(default="final", init=False)


Event: TypeAlias = SpeechEvent | PartialEvent | WordEvent | EndpointEvent | FinalEvent


def event_json(event: Event) -> str:
    """An event as a JSON object on one line; times and confidences have three decimals."""
    return json.dumps(_rounded(finite(asdict(event))), ensure_ascii=False, allow_nan=False)


def _rounded(value: object) -> object:
    if isinstance(value, dict):
        return {name: _rounded(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_rounded(one) for one in value]
    return round(value, 3) if isinstance(value, float) else value
