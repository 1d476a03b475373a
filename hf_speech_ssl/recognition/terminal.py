"""A live transcript on a terminal or in a pipe: as text, as events, or as subtitles."""

import shutil
import sys
import time
from collections.abc import Callable, Sequence
from typing import Protocol, TextIO

import numpy as np

from ..data.audio import AudioError
from ..decoding import StreamingText, TimedText
from ..decoding.scripts import columns, may_divide, split_columns
from .events import Event, Word, WordEvent, event_json
from .streaming import StreamingTranscriber
from .subtitles import Cue, CueStream, format_srt


class View(Protocol):
    """Shows a transcript that grows."""

    def update(self, text: StreamingText, events: Sequence[Event]) -> None:
        """Show the text so far; `events` is what has happened since the last call."""

    def interrupt(self, message: str) -> None:
        """Print a line on standard error."""

    def end(self, text: str, events: Sequence[Event]) -> None:
        """Show the whole text, at the end."""


class LiveTranscript:
    """Hands blocks of audio to a transcriber, shows its text and takes the time."""

    def __init__(self, transcriber: StreamingTranscriber, screen: View) -> None:
        self.transcriber, self.screen = transcriber, screen
        self.seconds = self.busy = 0.0

    def accept(self, block: np.ndarray, rate: float) -> None:
        """Transcribe a block; one that cannot be used is reported and left out."""
        began = time.perf_counter()
        try:
            result = self.transcriber.accept(block, rate)
        except AudioError as error:
            self.screen.interrupt(f"Left out: {error}")
            return
        self.busy += time.perf_counter() - began
        self.seconds += len(block) / rate
        self.screen.update(result, self.transcriber.events())

    def finish(self) -> str:
        """Show and return the whole text; the real-time factor goes to standard error."""
        began = time.perf_counter()
        text = self.transcriber.finish()
        self.busy += time.perf_counter() - began
        self.screen.end(text, self.transcriber.events())
        factor = self.busy / self.seconds
        print(f"{self.seconds:.1f} s of audio in {self.busy:.2f} s: real-time factor {factor:.3f}", file=sys.stderr)
        return text


class Screen:
    """Shows a text that grows.

    On a terminal the last row is rewritten, and rows of final words are left above it; elsewhere final words are
    appended.
    """

    def __init__(self, output: TextIO) -> None:
        self.output, self.live, self.row = output, output.isatty(), ""
        self.done = 0  # characters that stay as they are

    def update(self, text: StreamingText, events: Sequence[Event]) -> None:
        self.show(text.text, text.final)

    def end(self, text: str, events: Sequence[Event]) -> None:
        self.close(text)

    def show(self, text: str, final: str) -> None:
        """Show the text so far, of which the beginning `final` stays."""
        if self.live:
            width = max(4, shutil.get_terminal_size().columns - 1)  # a row that is quite full may wrap
            self._leave_rows(text, len(final), width)
            row = text[self.done :]
            self._rewrite(row if columns(row) <= width else "…" + _last_columns(row, width - 1))
        elif len(final) > self.done:
            self.output.write(final[self.done :])
            self.done = len(final)
        self.output.flush()

    def _leave_rows(self, text: str, final: int, width: int) -> None:
        while columns(text[self.done :]) > width:
            fits = self.done + len(split_columns(text[self.done :], width)[0])
            if fits > final:
                return
            end = self._end_of_row(text, fits, final)
            if end is None:
                return
            self._rewrite(text[self.done : end])
            self.output.write("\n")
            self.done, self.row = end + text.startswith(" ", end), ""

    def _end_of_row(self, text: str, fits: int, final: int) -> int | None:
        """Where a row ends that has room up to `fits`: at a space, or where a script without spaces may be divided."""
        places = (
            end for end in range(fits, self.done, -1) if text[end] == " " or may_divide(text[end - 1], text[end])
        )
        if (end := next(places, None)) is not None:
            return end
        end = text.find(" ", self.done + 1, final + 1)  # after a word that fills more than a row
        return end if end >= 0 else None

    def _rewrite(self, row: str) -> None:
        if row != self.row:
            self.output.write("\r\033[K" + row)  # back to the first column, erase the row
            self.row = row

    def interrupt(self, message: str) -> None:
        """Print a line on standard error, above the row that is rewritten."""
        if self.live:
            self._rewrite("")
            self.output.flush()
        print(message, file=sys.stderr)

    def close(self, text: str) -> None:
        """Show the whole text."""
        if self.live:
            self.show(text, text)
            self._rewrite(text[self.done :])
        else:
            self.output.write(text[self.done :])
        self.output.write("\n")
        self.output.flush()


class EventLines:
    """Prints events, one JSON object a line."""

    def __init__(self, output: TextIO) -> None:
        self.output = output

    def update(self, text: StreamingText, events: Sequence[Event]) -> None:
        for event in events:
            self.output.write(event_json(event) + "\n")
        self.output.flush()

    def interrupt(self, message: str) -> None:
        print(message, file=sys.stderr)

    def end(self, text: str, events: Sequence[Event]) -> None:
        self.update(StreamingText(text, text), events)


class LiveSubtitles(EventLines):
    """Prints SubRip cues, each as soon as a word that is final shows where it ends."""

    def __init__(self, output: TextIO) -> None:
        super().__init__(output)
        self.cues = CueStream()

    def update(self, text: StreamingText, events: Sequence[Event]) -> None:
        self._write(self.cues.add([_timed(one.word) for one in events if isinstance(one, WordEvent)]))

    def end(self, text: str, events: Sequence[Event]) -> None:
        self.update(StreamingText(text, text), events)
        self._write(self.cues.finish())

    def _write(self, cues: Sequence[Cue]) -> None:
        for cue in cues:
            self.output.write(("\n" if self.cues.number else "") + format_srt([cue], self.cues.number + 1))
            self.cues.number += 1
        self.output.flush()


def make_view(output: TextIO, format: str) -> View:
    """The view for "text", "json" or "srt"."""
    kinds: dict[str, Callable[[TextIO], View]] = {"text": Screen, "json": EventLines, "srt": LiveSubtitles}
    return kinds[format](output)


def _timed(word: Word) -> TimedText:
    return TimedText(word.text, word.start, word.end, word.joined, word.confidence)


def _last_columns(text: str, width: int) -> str:
    return split_columns(text[::-1], width)[0][::-1]
