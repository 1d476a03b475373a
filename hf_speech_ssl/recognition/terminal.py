"""A live transcript on a terminal or in a pipe."""

import shutil
import sys
import time
from typing import TextIO

import numpy as np

from ..data.audio import AudioError
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
            columns = max(2, shutil.get_terminal_size().columns - 1)  # a row that is quite full may wrap
            self._leave_rows(text, len(final), columns)
            row = text[self.done :]
            self._rewrite(row if len(row) <= columns else "…" + row[1 - columns :])
        elif len(final) > self.done:
            self.output.write(final[self.done :])
            self.done = len(final)
        self.output.flush()

    def _leave_rows(self, text: str, final: int, columns: int) -> None:
        while len(text) - self.done > columns:
            end = text.rfind(" ", self.done + 1, min(self.done + columns, final) + 1)
            if end < 0:  # a word that fills more than a row
                end = text.find(" ", self.done + 1, final + 1)
            if end < 0:
                return
            self._rewrite(text[self.done : end])
            self.output.write("\n")
            self.done, self.row = end + 1, ""

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
