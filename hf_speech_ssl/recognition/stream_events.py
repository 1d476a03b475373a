"""The events of one stream: what has changed since they were last taken."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..decoding import Hypothesis, StreamingText
from .events import EndpointEvent, Event, FinalEvent, PartialEvent, Reason, SpeechEvent, Word, WordEvent


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
    _spoken: bool = False  # whether `speech` has been told of the segment
    _words: int = 0  # of the segment that have been told as final
    _told: tuple[str, str] = ("", "")  # text and final text of the last `partial` event

    def take(self) -> list[Event]:
        """The events since the last call."""
        events, self._events = self._events, []
        return events

    def begin_speech(self, start: float, time: float) -> None:
        """Tell that somebody has begun to speak at `start`, unless it has been told."""
        if not self._spoken:
            self._spoken = True
            self._events.append(SpeechEvent(self.segment, time, start))

    def update(self, text: StreamingText, begin: float, time: float) -> None:
        """Tell the words that have become final, and the text of the segment if it has changed."""
        words = text.words or ()
        self._tell(text, text.num_final_words, begin, time)
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
        self._tell(best, None, begin, time)
        self._events.append(EndpointEvent(self.segment, time, reason, end_of_speech))
        self.finish(best, begin, end, time)

    def finish(self, best: Hypothesis, begin: float, end: float, time: float | None = None) -> None:
        """Tell the final text of the segment."""
        time = end if time is None else time
        self._tell(best, None, begin, time)
        words = None if best.words is None else [Word.of(one, begin, final=True) for one in best.words]
        self._events.append(FinalEvent(self.segment, time, best.text, words, begin, end))
        self.segment, self._spoken, self._words, self._told = self.segment + 1, False, 0, ("", "")

    def _tell(self, text: StreamingText | Hypothesis, num_final_words: int | None, begin: float, time: float) -> None:
        """Tell that there is speech, and the words of the segment that are final, unless they have been told."""
        words = text.words or ()
        if text.text:
            self.begin_speech(begin + (words[0].start if words else 0.0), time)
        final = words[:num_final_words]
        for one in final[self._words :]:
            self._events.append(WordEvent(self.segment, time, Word.of(one, begin, final=True)))
        self._words = max(self._words, len(final))
