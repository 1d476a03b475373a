"""A transcript that grows in the terminal while audio comes in from a file or from standard input."""

import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TextIO

import numpy as np

from ..data.audio import AudioError, check_rate, open_audio
from ..recognition.packing import can_pack, pack_layers
from ..recognition.recognizer import Recognizer
from ..recognition.streaming import StreamingTranscriber

BLOCK_SECONDS = 0.1  # of audio, handed over at once
_FILES = {b"RIFF": "wav", b"RF64": "wav", b"fLaC": "flac", b"OggS": "ogg", b"ID3\x03": "mp3", b"ID3\x04": "mp3"}


def stream_to_terminal(
    model_name_or_path: str,
    source: str,
    chunk_duration_ms: int = 320,
    left_context_chunks: int | None = None,
    sampling_rate: int = 16_000,
    output: TextIO | None = None,
    **loading: Any,
) -> str:
    """Transcribe a file, or raw audio from standard input, and print the text as it grows.

    Args:
        model_name_or_path: folder or Hub id of a Chunk SSL model with a CTC head.
        source: an audio file, or `-` for raw 16-bit little-endian mono samples on standard input.
        chunk_duration_ms: duration of a chunk.
        left_context_chunks: chunks that are remembered; those of the model's config, or all, if absent.
        sampling_rate: of raw samples, in Hz; a file knows its own.
        output: where the text goes, standard output by default; on a terminal the last row is rewritten, elsewhere
            final words are appended.
        **loading: revision, trust_remote_code and device, as in [`Recognizer.from_pretrained`].

    Returns:
        The whole text. The real-time factor (compute time over audio time) goes to standard error.

    Raises:
        AudioError: the source is not audio, or breaks off. Blocks that cannot be used are reported on standard error
            and left out.
        KeyboardInterrupt: Ctrl-C. As after a file that breaks off, what was heard is transcribed before.
    """
    with _open(source, sampling_rate) as (blocks, rate):
        recognizer = Recognizer.from_pretrained(model_name_or_path, **loading)
        transcriber = StreamingTranscriber(
            recognizer.model, recognizer.processor, chunk_duration_ms, left_context_chunks
        )
        if can_pack(recognizer.model):
            pack_layers(recognizer.model)
        live = _Live(transcriber, _Screen(output or sys.stdout))
        text = ""
        try:
            for block in _until_interrupted(blocks, waits=source == "-"):
                live.hear(block, rate)
        finally:
            if live.seconds:
                text = live.finish()
    if not live.seconds:
        raise AudioError(
            "standard input" if source == "-" else source, "empty", "no audio came in; check what writes it."
        )
    return text


class _Live:
    """Hands blocks to a transcriber, shows what it says and takes the time."""

    def __init__(self, transcriber: StreamingTranscriber, screen: "_Screen"):
        self.transcriber, self.screen = transcriber, screen
        self.seconds = self.busy = 0.0

    def hear(self, block: np.ndarray, rate: float) -> None:
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
        began = time.perf_counter()
        text = self.transcriber.finish()
        self.busy += time.perf_counter() - began
        self.screen.close(text)
        factor = self.busy / self.seconds
        print(f"{self.seconds:.1f} s of audio in {self.busy:.2f} s: real-time factor {factor:.3f}", file=sys.stderr)
        return text


class _Screen:
    """The growing text. On a terminal the last row is rewritten, and rows of final words are left above it; elsewhere
    final words are appended."""

    def __init__(self, output: TextIO):
        self.output, self.live, self.row = output, output.isatty(), ""
        self.done = 0  # characters that stay as they are

    def show(self, text: str, final: str) -> None:
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
        """A line on standard error, above the row that is rewritten."""
        if self.live:
            self._rewrite("")
            self.output.flush()
        print(message, file=sys.stderr)

    def close(self, text: str) -> None:
        if self.live:
            self.show(text, text)
            self._rewrite(text[self.done :])
        else:
            self.output.write(text[self.done :])
        self.output.write("\n")
        self.output.flush()


def _until_interrupted(blocks: Iterable[np.ndarray], waits: bool) -> Iterator[np.ndarray]:
    """Blocks until Ctrl-C, which raises KeyboardInterrupt here and not in the middle of a step; a second one at once.

    Where a block may keep one waiting, the wait is over, too. Files do not, and libsndfile would print and swallow it.
    """
    state = {"waiting": False, "asked": False}

    def note(number: int, frame: FrameType | None) -> None:
        if state["waiting"] or state["asked"]:
            raise KeyboardInterrupt
        state["asked"] = True

    in_main_thread = threading.current_thread() is threading.main_thread()  # Python refuses handlers elsewhere
    previous = signal.signal(signal.SIGINT, note) if in_main_thread else None
    source = iter(blocks)
    try:
        while True:
            state["waiting"] = waits
            if state["asked"]:
                raise KeyboardInterrupt
            block = next(source, None)
            state["waiting"] = False
            if block is None:
                return
            yield block
    finally:
        if in_main_thread:
            signal.signal(signal.SIGINT, previous)


@contextmanager
def _open(source: str, sampling_rate: int) -> Iterator[tuple[Iterator[np.ndarray], float]]:
    """Mono samples (n,), a tenth of a second at a time, and their rate."""
    if source != "-":
        with open_audio(source, source) as audio:
            yield _cut(audio.blocks(), max(1, int(BLOCK_SECONDS * audio.samplerate))), audio.samplerate
        return
    check_rate(sampling_rate, "standard input")
    if sys.stdin is None or sys.stdin.isatty():
        raise AudioError(
            "standard input",
            "missing",
            "nothing is piped in; for a microphone: arecord -q -t raw -f S16_LE -r 16000 | hf-speech-ssl stream - ...",
        )
    yield _raw_blocks(sys.stdin.buffer, sampling_rate), sampling_rate


def _cut(blocks: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    for block in blocks:
        yield from np.split(block, range(size, len(block), size))


def _raw_blocks(stdin: Any, sampling_rate: int) -> Iterator[np.ndarray]:
    """16-bit samples as they arrive; an odd byte waits for its other half."""
    rest, begun = b"", False
    while data := stdin.read1(int(BLOCK_SECONDS * sampling_rate) * 2):
        data = rest + data
        if not begun and data[:4] in _FILES:
            raise AudioError(
                "standard input",
                "bad array",
                f"a {_FILES[data[:4]]} file came in, raw 16-bit samples are needed; name the file instead of '-', or "
                f"send them raw (arecord -t raw, sox -t raw, ffmpeg -f s16le).",
            )
        begun = begun or len(data) >= 4
        whole = len(data) // 2 * 2
        rest = data[whole:]
        yield np.frombuffer(data[:whole], dtype="<i2")
