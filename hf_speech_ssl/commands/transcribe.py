"""hf-speech-ssl transcribe: audio files to text, subtitles or JSON with word times."""

from __future__ import annotations

import contextlib
import glob
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Literal

from ..options import DecodingOptions, LoadingOptions, argument, flag, required_flag
from ..paths import check_file, check_model_folder

if TYPE_CHECKING:
    from ..data.audio_files import AudioFile
    from ..recognition.long_form import Transcript
    from ..recognition.recognizer import Recognizer

STANDARD_INPUT = "-"
_BAR = "{percentage:3.0f}% |{bar}| {n:.0f}/{total:.0f} s of audio [{elapsed}<{remaining}]"


@dataclass(frozen=True, kw_only=True)
class TranscribeOptions:
    """What is transcribed, and what is written."""

    sources: list[str] = argument(
        "audio files, folders of them with all sub-folders, globs, URLs, or - for a file on standard input", "FILE"
    )
    model_name_or_path: str = required_flag("folder or Hub id of any CTC model, or of a transducer of this package")
    format: Literal["text", "json", "srt", "vtt"] = flag("text", "what is written; json has word times")
    output_dir: str | None = flag(
        None,
        "write NAME.txt (.json, .srt, .vtt) there, over older ones, in the sub-folders of a folder's files; standard "
        "output by default",
    )
    chunk_duration_ms: int = flag(0, "Chunk SSL: transcribe in chunks of this duration; 0 takes whole utterances")
    batch_seconds: float = flag(60.0, "seconds of padded audio in a batch")
    window_seconds: float = flag(
        30.0,
        "longer files are transcribed in windows of this duration, or in chunks that remember as much; shorter "
        "windows suit models trained on short utterances",
    )
    num_best: int = flag(1, "json: hypotheses of each file of up to two minutes, the others as its alternatives")

    def __post_init__(self) -> None:
        if self.num_best != 1 and self.format != "json":
            raise ValueError(f"Only JSON holds several hypotheses: give --format json, not {self.format}.")


def transcribe(options: TranscribeOptions, loading: LoadingOptions, decoding: DecodingOptions) -> None:
    """Transcribe audio files, each as soon as it is done; a progress bar shows on a terminal.

    A file that cannot be used is reported on standard error, and the others go on.

    Raises:
        ValueError: there are no files, two of them have the same output, subtitles are asked of several files without
            a folder or of a model without word times, or, at the end, some files could not be transcribed.
        OSError: there is no such model, or no output can be written.
    """
    files, problems = _find(options.sources)
    check_model_folder(options.model_name_or_path)
    for path in (decoding.lm_path, decoding.lexicon_path):
        check_file(path)
    # What takes time is imported only now, when the command line is right.
    from tqdm.auto import tqdm

    from ..data.audio import AudioError
    from ..recognition.long_form import LongFormRecognizer
    from ..recognition.recognizer import Recognizer
    from ..recognition.transcript_output import make_writer

    write = make_writer(files, options.format, options.output_dir)
    recognizer = Recognizer.from_pretrained(options.model_name_or_path, **asdict(loading))
    decoder = recognizer.make_decoder(decoding, options.num_best)
    _try_out(recognizer, options)

    began, done, seconds = time.perf_counter(), 0, 0.0
    with tqdm(total=_total_seconds(files), bar_format=_BAR, disable=None, file=sys.stderr) as bar:
        long_form = LongFormRecognizer(
            recognizer,
            decoder,
            options.chunk_duration_ms,
            options.batch_seconds,
            options.window_seconds,
            progress=bar.update,
        )
        results = long_form.transcribe(_audio(file.path) for file in files)
        for file, result in zip(files, results, strict=True):
            try:
                transcript = _transcript(file, result)
                write(file, transcript)
            except (AudioError, OSError) as error:
                if isinstance(error, BrokenPipeError):
                    raise
                tqdm.write(_named(file, error), file=sys.stderr)
                continue
            done, seconds = done + 1, seconds + transcript.seconds
    if done:
        _report(done, seconds, time.perf_counter() - began, options.output_dir)
    if failed := len(files) - done + len(problems):
        raise ValueError(f"{failed} of {_count(done + failed, 'file')} failed; the lines above say why.")


def _find(sources: Sequence[str]) -> tuple[list[AudioFile], list[str]]:
    """The files, and what to say of sources that have none.

    Raises:
        ValueError: there is no file at all.
    """
    missing = [source for source in sources if _is_missing(source)]
    if len(missing) == len(sources):
        raise ValueError("\n".join(f"{path}: there is no such file." for path in missing))
    from ..data.audio_files import AudioFile, find_audio_files

    found = find_audio_files([source for source in sources if source != STANDARD_INPUT])
    files, problems = found.files, found.problems
    if STANDARD_INPUT in sources:
        files.insert(0, AudioFile(STANDARD_INPUT, PurePath("standard-input")))
    if not files:
        raise ValueError("\n".join(problems))
    for line in (*found.notes(), *problems):
        print(line, file=sys.stderr)
    return files, problems


def _is_missing(path: str) -> bool:
    return path != STANDARD_INPUT and "://" not in path and not glob.has_magic(path) and not os.path.exists(path)


def _audio(path: str) -> Any:
    """What a file is opened by; a pipe can be read once only, and is read now."""
    from ..data.audio import is_read_once

    if not is_read_once(path):
        return path
    if path == STANDARD_INPUT:
        return {"path": "standard input", "bytes": sys.stdin.buffer.read()}
    return {"path": path, "bytes": Path(path).read_bytes()}


def _total_seconds(files: Sequence[AudioFile]) -> float:
    """What the headers promise; files that cannot be read are reported later."""
    from ..data.audio import AudioError, audio_duration, is_read_once, is_remote

    total = 0.0
    for file in files:
        with contextlib.suppress(AudioError):
            # A URL would be read whole, and a pipe would be empty afterwards.
            total += 0.0 if is_remote(file.path) or is_read_once(file.path) else audio_duration(file.path)
    return total


def _try_out(recognizer: Recognizer, options: TranscribeOptions) -> None:
    """Transcribe a second of nothing, so that a model or chunks that will not do are refused before the work."""
    import numpy as np

    from ..data.audio import SAMPLING_RATE

    silence = np.zeros(SAMPLING_RATE, dtype=np.float32)
    [[hypothesis, *_]] = recognizer.recognize([silence], chunk_duration_ms=options.chunk_duration_ms)
    if options.format in ("srt", "vtt") and hypothesis.words is None:
        raise ValueError(
            f"Subtitles need word times, which a {type(recognizer.tokenizer).__name__} does not give: a "
            f"Wav2Vec2CTCTokenizer does. Use --format text or json."
        )


def _transcript(file: AudioFile, result: Transcript | Exception) -> Transcript:
    """The transcript; an empty one, with a warning, of a silent recording, which is an answer and no failure.

    Raises:
        AudioError: the file cannot be used.
    """
    from ..data.audio import AudioError, audio_duration, is_read_once
    from ..decoding import Hypothesis
    from ..recognition.long_form import Transcript

    if isinstance(result, Transcript):
        return result
    if not (isinstance(result, AudioError) and result.reason == "silent"):
        raise result
    print(f"{result} Its transcript is empty.", file=sys.stderr)
    seconds = 0.0 if is_read_once(file.path) else audio_duration(file.path)
    return Transcript(file.path, seconds, [Hypothesis("", 0.0, [])])


def _named(file: AudioFile, error: Exception) -> str:
    return str(error) if file.path in str(error) else f"{file.path}: {error}"


def _report(done: int, seconds: float, busy: float, output_dir: str | None) -> None:
    where = "" if output_dir is None else f"; written to {output_dir}"
    factor = f": real-time factor {busy / seconds:.3f}" if seconds else ""
    print(f"{_count(done, 'file')}, {seconds:.1f} s of audio in {busy:.1f} s{factor}{where}", file=sys.stderr)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")
