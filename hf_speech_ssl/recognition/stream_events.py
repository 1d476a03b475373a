"""The events of one stream: what has changed since they were last taken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..decoding import Hypothesis, StreamingText, TimedText
from .events import EndpointEvent, Event, FinalEvent, PartialEvent, Reason, Word, WordEvent


@dataclass
class StreamEvents:
    """Compares what a decoder writes with what has been told, and tells the difference.

    In all methods `begin` is where the segment begins, from which its decoder counts, and `time` where the stream is,
    both in seconds.

    Attributes:
        segment: number of the current segment.
    """

    segment: int = 0
    _events: list[Event] = field(default_factory=list)
    _words: int = 0  # of the segment that have been told as final
    _told: tuple[str, str] = ("", "")  # text and final text of the last `partial` event

    def take(self) -> list[Event]:
        """The events since the last call."""
        events, self._events = self._events, []
        return events

    def update(self, text: StreamingText, begin: float, time: float) -> None:
        """Tell the words that have become final, and the text of the segment if it has changed."""
        words = text.words or ()
        self._tell_words(words[: text.num_final_words], begin, time)
        if (text.text, text.final) != self._told:
            self._told = text.text, text.final
            tentative = [Word.of(one, begin, final=False) for one in words[text.num_final_words :]]
            self._events.append(PartialEvent(self.segment, time, text.text, text.final, tentative))

    def end(
        self,
        reason: Reason,
        end_of_speech: float | None,
        best: Hypothesis,
        begin: float,
        end: float,
        time: float | None = None,
    ) -> None:
        """End the segment by a rule at `end`, which is `time` but for words that are left to the next segment."""
        time = end if time is None else time
        self._tell_words(best.words or (), begin, time)
        self._events.append(EndpointEvent(self.segment, time, reason, end_of_speech))
        self.finish(best, begin, end, time)

    def finish(self, best: Hypothesis, begin: float, end: float, time: float | None = None) -> None:
        """Tell the final text of the segment."""
        time = end if time is None else time
        self._tell_words(best.words or (), begin, time)
        words = None if best.words is None else [Word.of(one, begin, final=True) for one in best.words]
        self._events.append(FinalEvent(self.segment, time, best.text, words, begin, end))
        self.segment, self._words, self._told = self.segment + 1, 0, ("", "")

    def _tell_words(self, words: Sequence[TimedText], begin: float, time: float) -> None:
        for one in words[self._words :]:
            self._events.append(WordEvent(self.segment, time, Word.of(one, begin, final=True)))
        self._words = max(self._words, len(words))
