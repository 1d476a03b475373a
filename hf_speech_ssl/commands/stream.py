"""A transcript that grows in the terminal while audio comes in from a file or from standard input."""

import sys
import time
from collections.abc import Iterator
from typing import Any, TextIO

import numpy as np
import soundfile

from ..data.audio import AudioError
from ..packing import can_pack, pack_layers
from ..recognizer import Recognizer
from ..streaming import StreamingTranscriber

BLOCK_SECONDS = 0.1  # of audio, handed over at once


def stream_to_terminal(
    model_name_or_path: str,
    source: str,
    chunk_duration_ms: int = 320,
    sampling_rate: int = 16_000,
    output: TextIO | None = None,
    **loading: Any,
) -> str:
    """Transcribe a file, or raw audio from standard input, and print the text as it grows.

    Args:
        model_name_or_path: folder or Hub id of a Chunk SSL model with a CTC head.
        source: an audio file, or `-` for raw 16-bit little-endian mono samples on standard input.
        chunk_duration_ms: duration of a chunk.
        sampling_rate: of raw samples, in Hz; a file knows its own.
        output: where the text goes, standard output by default; on a terminal one line is rewritten, elsewhere final
            words are appended.
        **loading: revision, trust_remote_code and device, as in [`Recognizer.from_pretrained`].

    Returns:
        The whole text. The real-time factor (compute time over audio time) goes to standard error.

    Raises:
        AudioError: the file is not audio. Blocks that cannot be used are reported on standard error and left out.
    """
    recognizer = Recognizer.from_pretrained(model_name_or_path, **loading)
    transcriber = StreamingTranscriber(recognizer.model, recognizer.processor, chunk_duration_ms)
    if can_pack(recognizer.model):
        pack_layers(recognizer.model)
    screen = _Screen(output or sys.stdout)
    seconds = busy = 0.0
    for block, rate in _blocks(source, sampling_rate):
        began = time.perf_counter()
        try:
            result = transcriber.accept(block, rate)
        except AudioError as error:
            print(f"Left out: {error}", file=sys.stderr)
            continue
        busy += time.perf_counter() - began
        seconds += len(block) / rate
        screen.show(result.text, result.final)
    began = time.perf_counter()
    text = transcriber.finish()
    busy += time.perf_counter() - began
    screen.close(text)
    if seconds:
        print(f"{seconds:.1f} s of audio in {busy:.2f} s: real-time factor {busy / seconds:.3f}", file=sys.stderr)
    else:
        print("No audio came in.", file=sys.stderr)
    return text


class _Screen:
    """One growing line: rewritten on a terminal, appended to elsewhere."""

    def __init__(self, output: TextIO):
        self.output, self.live, self.shown = output, output.isatty(), ""

    def show(self, text: str, final: str) -> None:
        if self.live and text != self.shown:
            self.output.write("\r\033[K" + text)  # back to the first column, erase the line
            self.shown = text
        elif not self.live and len(final) > len(self.shown):
            self.output.write(final[len(self.shown) :])
            self.shown = final
        self.output.flush()

    def close(self, text: str) -> None:
        self.output.write(("\r\033[K" + text if self.live else text[len(self.shown) :]) + "\n")
        self.output.flush()


def _blocks(source: str, sampling_rate: int) -> Iterator[tuple[np.ndarray, int]]:
    """Samples (n,) or (n, channels) with their rate, a tenth of a second at a time."""
    if source == "-":
        yield from _raw_blocks(sys.stdin.buffer, sampling_rate)
        return
    try:
        with soundfile.SoundFile(source) as file:
            for block in file.blocks(int(BLOCK_SECONDS * file.samplerate), dtype="float32"):
                yield block, file.samplerate
    except soundfile.SoundFileError as error:
        raise AudioError(
            source, "not audio", f"libsndfile cannot read it ({error}); give a wav or flac file."
        ) from error


def _raw_blocks(stdin: Any, sampling_rate: int) -> Iterator[tuple[np.ndarray, int]]:
    """16-bit samples as they arrive; an odd byte waits for its other half."""
    rest = b""
    while data := stdin.read1(int(BLOCK_SECONDS * sampling_rate) * 2):
        data = rest + data
        whole = len(data) // 2 * 2
        rest = data[whole:]
        yield np.frombuffer(data[:whole], dtype="<i2"), sampling_rate
