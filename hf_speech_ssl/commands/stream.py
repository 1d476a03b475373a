"""hf-speech-ssl stream: a transcript that grows in the terminal while audio comes in."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from types import FrameType
from typing import TYPE_CHECKING, Literal, cast

from ..options import DecodingOptions, EndpointOptions, LoadingOptions, argument, flag, required_flag
from ..paths import check_file, check_model_folder

if TYPE_CHECKING:
    from io import BufferedReader

    import numpy as np

_BOOST = 8.0  # of a hot word that names none


@dataclass(frozen=True, kw_only=True)
class StreamOptions:
    """What is transcribed, and in which chunks."""

    source: str = argument("an audio file, or - for raw samples on standard input", "FILE|-")
    model_name_or_path: str = required_flag("folder or Hub id of a Chunk SSL CTC model or transducer")
    chunk_duration_ms: int = flag(320, "duration of a chunk; text is one to two chunks late")
    left_context_chunks: int | None = flag(
        None, "chunks that are remembered; by default as many as the model was made for, or all, and memory grows"
    )
    format: Literal["text", "json", "srt"] = flag(
        "text", "text as it grows; events, one JSON object a line; or subtitles, each once it is complete"
    )
    hot_words: list[str] = flag(
        [],
        "words or phrases to prefer: 'anna karenina', or 'anna karenina=12' for another boost than 8",
        "PHRASE",
    )
    sampling_rate: int = flag(16_000, "of raw samples, in Hz")
    sample_format: Literal["s16", "f32"] = flag("s16", "raw samples: 16-bit integers or 32-bit floats, little-endian")
    num_channels: int = flag(1, "interleaved channels of raw samples, mixed down")

    @property
    def boosts(self) -> dict[str, float]:
        """The hot words with their boosts.

        Raises:
            ValueError: a boost is no number.
        """
        boosts = {}
        for one in self.hot_words:
            phrase, equals, boost = one.rpartition("=")
            try:
                boosts[phrase if equals else one] = float(boost) if equals else _BOOST
            except ValueError:
                raise ValueError(f"--hot_words {one!r}: {boost!r} is no number; write 'phrase=8'.") from None
        return boosts


def stream(
    options: StreamOptions, loading: LoadingOptions, decoding: DecodingOptions, endpoints: EndpointOptions
) -> str:
    """Transcribe a file, or raw audio from standard input, and print the text as it grows.

    Decoding is greedy unless hot words, a language model, a lexicon or the size of a beam are given.

    Returns:
        The whole text. The real-time factor (compute time over audio time) goes to standard error.

    Raises:
        AudioError: the source is not audio, or breaks off. Blocks that cannot be used are reported on standard error
            and left out.
        KeyboardInterrupt: Ctrl-C. As after a file that breaks off, what came before is transcribed.
    """
    check_model_folder(options.model_name_or_path)
    for path in (decoding.lm_path, decoding.lexicon_path):
        check_file(path)
    boosts = options.boosts
    from ..data.audio import AudioError

    with _open(options) as (blocks, rate):
        from ..recognition.packing import can_pack, pack_layers
        from ..recognition.recognizer import Recognizer
        from ..recognition.streaming import StreamingTranscriber
        from ..recognition.terminal import LiveTranscript, make_view

        recognizer = Recognizer.from_pretrained(options.model_name_or_path, **asdict(loading))
        transcriber = StreamingTranscriber(
            recognizer.model,
            recognizer.processor,
            options.chunk_duration_ms,
            options.left_context_chunks,
            recognizer.make_live_decoder(decoding, bool(boosts)),
            endpoints,
        )
        if boosts:
            transcriber.set_hot_words(boosts)
        if can_pack(recognizer.model):
            pack_layers(recognizer.model)
        live = LiveTranscript(transcriber, make_view(sys.stdout, options.format))
        text = ""
        try:
            for block in _until_interrupted(blocks, waits=options.source == "-"):
                live.accept(block, rate)
        finally:
            if live.seconds:
                text = live.finish()
    if not live.seconds:
        name = "standard input" if options.source == "-" else options.source
        raise AudioError(name, "empty", "no audio came in; check what writes it.")
    return text


@contextmanager
def _open(options: StreamOptions) -> Iterator[tuple[Iterator[np.ndarray], float]]:
    """Mono samples (n,), a tenth of a second at a time, and their rate."""
    import numpy as np

    from ..data.audio import AudioError, check_rate, open_audio
    from ..data.raw_audio import BLOCK_SECONDS, NAME, raw_blocks

    if options.source != "-":
        with open_audio(options.source, options.source) as audio:
            size = max(1, int(BLOCK_SECONDS * audio.samplerate))
            yield (
                (part for block in audio.blocks() for part in np.split(block, range(size, len(block), size))),
                audio.samplerate,
            )
        return
    check_rate(options.sampling_rate, NAME)
    if options.num_channels < 1:
        raise ValueError(f"--num_channels must be at least 1, got {options.num_channels}.")
    if sys.stdin is None or sys.stdin.isatty():
        raise AudioError(
            NAME,
            "missing",
            "nothing is piped in; for a microphone: arecord -q -t raw -f S16_LE -r 16000 | hf-speech-ssl stream - ...",
        )
    stdin = cast("BufferedReader", sys.stdin.buffer)
    raw = raw_blocks(stdin, options.sampling_rate, options.sample_format, options.num_channels)
    yield raw, options.sampling_rate


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
