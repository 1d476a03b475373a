"""A live transcript on a terminal or in a pipe."""

import shutil
import sys
import time
from typing import TextIO

import numpy as np

from ..data.audio import AudioError
from ..decoding.scripts import columns, may_divide, split_columns
from .streaming import StreamingTranscriber


class LiveTranscript:
    """Hands blocks of audio to a transcriber, shows its text and takes the time."""

    def __init__(self, transcriber: StreamingTranscriber, screen: "Screen") -> None:
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
        self.screen.show(result.text, result.final)

    def finish(self) -> str:
        """Show and return the whole text; the real-time factor goes to standard error."""
        began = time.perf_counter()
        text = self.transcriber.finish()
        self.busy += time.perf_counter() - began
        self.screen.close(text)
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


def _last_columns(text: str, width: int) -> str:
    return split_columns(text[::-1], width)[0][::-1]
