"""Audio files to text, subtitles or JSON with word times."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from ..data.audio import SAMPLING_RATE, AudioError, audio_duration, is_remote
from ..data.audio_files import AudioFile, find_audio_files
from ..decoding import Hypothesis, TimedText, make_decoder
from ..recognition.long_form import LongFormRecognizer, Transcript
from ..recognition.recognizer import Recognizer
from ..recognition.subtitles import format_srt, format_vtt, make_cues

_SUFFIXES = {"text": ".txt", "json": ".json", "srt": ".srt", "vtt": ".vtt"}
_BAR = "{percentage:3.0f}% |{bar}| {n:.0f}/{total:.0f} s of audio [{elapsed}<{remaining}]"


def transcribe(
    sources: Sequence[str],
    model_name_or_path: str,
    format: str = "text",
    output_dir: str | None = None,
    chunk_duration_ms: int = 0,
    batch_seconds: float = 60.0,
    window_seconds: float = 30.0,
    lm_path: str | None = None,
    lexicon_path: str | None = None,
    lm_weight: float = 1.0,
    word_bonus: float = 0.0,
    beam_size: int = 50,
    num_best: int = 1,
    **loading: Any,
) -> None:
    """Transcribe audio files, each as soon as it is understood; a progress bar shows on a terminal.

    A file that cannot be used is reported on standard error, and the others go on.

    Args:
        sources: files, URLs, folders or patterns, as in [`find_audio_files`].
        model_name_or_path: folder or Hub id of any CTC model.
        format: "text"; "json", one object per file with `file`, `duration` (s), `text`, `score` and `words` (`word`,
            `start`, `end` in s; null where the tokenizer does not tell words apart), and `alternatives` where there
            are any (`text`, `score`); subtitles as "srt" or "vtt".
        output_dir: where NAME.txt (.json, .srt, .vtt) is written, over an older one; what was found in a sub-folder
            goes into a sub-folder of the same name. Standard output by default: JSON as a line per file, text as a
            line per file with its path and a tab before it where there are several.
        chunk_duration_ms: Chunk SSL: hear in chunks of this duration; 0 hears whole.
        batch_seconds, window_seconds: as in [`LongFormRecognizer`].
        lm_path, lexicon_path, lm_weight, word_bonus, beam_size: as in [`make_decoder`].
        num_best: with "json", readings of every file of up to two minutes; a longer one has the best one only.
        **loading: revision, trust_remote_code and device, as in [`Recognizer.from_pretrained`].

    Raises:
        ValueError: there are no files, two of them have the same output, subtitles are asked of several files without
            a folder or of a model without word times, or, at the end, some files could not be transcribed.
        OSError: there is no such model, or an output cannot be written.
    """
    if num_best != 1 and format != "json":
        raise ValueError(f"Only JSON holds several readings: give --format json, not {format}, with a num_best.")
    files, problems = find_audio_files(sources)
    for problem in problems if files else ():
        print(problem, file=sys.stderr)
    if not files:
        raise ValueError("\n".join(problems))
    write = _file_writer(files, format, output_dir) if output_dir is not None else _line_writer(files, format)
    recognizer = Recognizer.from_pretrained(model_name_or_path, **loading)
    search = (lm_path, lexicon_path, lm_weight, word_bonus, beam_size, num_best)
    decoder = make_decoder(recognizer.tokenizer, recognizer.seconds_per_frame, *search)
    _try_out(recognizer, chunk_duration_ms, format)

    began, done, seconds = time.perf_counter(), 0, 0.0
    with tqdm(total=_total_seconds(files), bar_format=_BAR, disable=None, file=sys.stderr) as bar:
        long_form = LongFormRecognizer(
            recognizer, decoder, chunk_duration_ms, batch_seconds, window_seconds, progress=bar.update
        )
        for file, result in zip(files, long_form.transcribe(file.path for file in files), strict=True):
            if isinstance(result, AudioError):
                tqdm.write(str(result), file=sys.stderr)
                continue
            write(file, _formatted(file, result, format))
            done, seconds = done + 1, seconds + result.seconds
    busy = time.perf_counter() - began
    if done:
        where = "" if output_dir is None else f"; written to {output_dir}"
        print(
            f"{_count(done, 'file')}, {seconds:.1f} s of audio in {busy:.1f} s: real-time factor {busy / seconds:.3f}"
            + where,
            file=sys.stderr,
        )
    if failed := len(files) - done + len(problems):
        raise ValueError(f"{failed} of {_count(done + failed, 'file')} failed; the lines above say why.")


def _try_out(recognizer: Recognizer, chunk_duration_ms: int, format: str) -> None:
    """Hear a second of nothing, so that a model or chunks that will not do are refused before the work begins."""
    silence = np.zeros(SAMPLING_RATE, dtype=np.float32)
    [[reading, *_]] = recognizer.recognize([silence], chunk_duration_ms=chunk_duration_ms)
    if format in ("srt", "vtt") and reading.words is None:
        raise ValueError(
            f"Subtitles need word times, which a {type(recognizer.tokenizer).__name__} does not give: a "
            f"Wav2Vec2CTCTokenizer does. Use --format text or json."
        )


def _total_seconds(files: Sequence[AudioFile]) -> float:
    """What the headers promise; files that cannot be read are reported later."""
    total = 0.0
    for file in files:
        with contextlib.suppress(AudioError):
            total += 0.0 if is_remote(file.path) else audio_duration(file.path)  # a URL would be read whole
    return total


def _formatted(file: AudioFile, result: Transcript, format: str) -> str:
    best = result.readings[0]
    if format == "text":
        return _text(best) + "\n"
    if format == "json":
        return json.dumps(_as_json(file, result), ensure_ascii=False) + "\n"
    cues = make_cues(best.words or [])
    return format_srt(cues) if format == "srt" else format_vtt(cues)


def _as_json(file: AudioFile, result: Transcript) -> dict[str, Any]:
    best, *others = result.readings
    record: dict[str, Any] = {
        "file": file.path,
        "duration": round(result.seconds, 3),
        "text": _text(best),
        "score": round(best.score, 4),
        "words": None if best.words is None else [_word(word) for word in best.words],
    }
    if others:
        record["alternatives"] = [{"text": _text(one), "score": round(one.score, 4)} for one in others]
    return record


def _text(reading: Hypothesis) -> str:
    """With one space between words: a tokenizer writes as many as the model says delimiters."""
    return " ".join(reading.text.split())


def _word(word: TimedText) -> dict[str, Any]:
    return {"word": word.text, "start": round(word.start, 3), "end": round(word.end, 3)}


def _line_writer(files: Sequence[AudioFile], format: str) -> Callable[[AudioFile, str], None]:
    """Writes to standard output."""
    if format in ("srt", "vtt") and len(files) > 1:
        raise ValueError(
            f"Subtitles of {len(files)} files cannot share standard output: name a folder with --output_dir."
        )

    def write(file: AudioFile, text: str) -> None:
        path = f"{file.path}\t" if format == "text" and len(files) > 1 else ""
        tqdm.write(path + text, file=sys.stdout, end="")
        sys.stdout.flush()

    return write


def _file_writer(files: Sequence[AudioFile], format: str, output_dir: str) -> Callable[[AudioFile, str], None]:
    """Writes files; a reader never sees half of one."""
    outputs = {file: Path(output_dir) / file.below.with_suffix(_SUFFIXES[format]) for file in files}
    owners: dict[Path, AudioFile] = {}
    for file, output in outputs.items():
        if (other := owners.setdefault(output, file)) is not file:
            raise ValueError(
                f"{other.path} and {file.path} would both be written to {output}: transcribe them one by one into "
                f"different folders, or give the folder above them, whose sub-folders are kept apart."
            )
    Path(output_dir).mkdir(parents=True, exist_ok=True)

    def write(file: AudioFile, text: str) -> None:
        output = outputs[file]
        output.parent.mkdir(parents=True, exist_ok=True)
        unfinished = output.with_name(output.name + ".part")
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(output)

    return write


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")
