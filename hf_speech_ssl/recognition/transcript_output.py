"""Transcripts as text, JSON and subtitles, on standard output or as files."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

from tqdm.auto import tqdm

from ..data.audio_files import AudioFile
from ..decoding import Hypothesis, TimedText
from ..json_files import finite, write_text
from .long_form import Transcript
from .subtitles import format_srt, format_vtt, make_cues

Format: TypeAlias = Literal["text", "json", "srt", "vtt"]
SUBTITLES = ("srt", "vtt")
_SUFFIXES = {"text": ".txt", "json": ".json", "srt": ".srt", "vtt": ".vtt"}


class TranscriptWriter(Protocol):
    """Writes the transcript of a file."""

    def __call__(self, file: AudioFile, transcript: Transcript) -> None:
        """Write it.

        Raises:
            OSError: the output cannot be written.
        """


def make_writer(files: Sequence[AudioFile], format: Format, output_dir: str | None) -> TranscriptWriter:
    """Make the writer of some files' transcripts.

    Args:
        output_dir: folder for NAME.txt (.json, .srt, .vtt), over older ones; what was found in a sub-folder goes into
            a sub-folder of the same name. Standard output if absent: JSON as a line per file, text as a line per file
            with its path and a tab before it where there are several.

    Raises:
        ValueError: two files have the same output, or subtitles of several files have one output.
        OSError: the folder cannot be made.
    """
    return _LineWriter(files, format) if output_dir is None else _FileWriter(files, format, Path(output_dir))


class _LineWriter:
    """Writes to standard output."""

    def __init__(self, files: Sequence[AudioFile], format: Format) -> None:
        if format in SUBTITLES and len(files) > 1:
            raise ValueError(
                f"Subtitles of {len(files)} files cannot share standard output: name a folder with --output_dir."
            )
        self.format, self.names_files = format, format == "text" and len(files) > 1

    def __call__(self, file: AudioFile, transcript: Transcript) -> None:
        path = f"{file.path}\t" if self.names_files else ""
        tqdm.write(path + format_transcript(file, transcript, self.format), file=sys.stdout, end="")
        sys.stdout.flush()


class _FileWriter:
    """Writes files; a reader never sees half of one."""

    def __init__(self, files: Sequence[AudioFile], format: Format, output_dir: Path) -> None:
        self.format = format
        self.outputs = {file: output_dir / file.below.with_suffix(_SUFFIXES[format]) for file in files}
        owners: dict[Path, AudioFile] = {}
        for file, output in self.outputs.items():
            if (other := owners.setdefault(output, file)) is not file:
                raise ValueError(
                    f"{other.path} and {file.path} would both be written to {output}: transcribe them one by one into "
                    f"different folders, or give the folder above them, whose sub-folders are kept apart."
                )
        output_dir.mkdir(parents=True, exist_ok=True)

    def __call__(self, file: AudioFile, transcript: Transcript) -> None:
        output = self.outputs[file]
        output.parent.mkdir(parents=True, exist_ok=True)
        write_text(output, format_transcript(file, transcript, self.format))


def format_transcript(file: AudioFile, transcript: Transcript, format: Format) -> str:
    """A transcript as the text of a file, with a new line at its end.

    JSON is an object on one line: `file`, `duration` (s), `text`, `score` and `words` (`word`, `start`, `end` in s;
    null where the tokenizer does not tell words apart), and `alternatives` where there are any (`text`, `score`).
    """
    best = transcript.hypotheses[0]
    if format == "text":
        return _text(best) + "\n"
    if format == "json":
        return json.dumps(finite(_as_json(file, transcript)), ensure_ascii=False, allow_nan=False) + "\n"
    cues = make_cues(best.words or [])
    return format_srt(cues) if format == "srt" else format_vtt(cues)


def _as_json(file: AudioFile, transcript: Transcript) -> dict[str, Any]:
    best, *others = transcript.hypotheses
    record: dict[str, Any] = {
        "file": file.path,
        "duration": round(transcript.seconds, 3),
        "text": _text(best),
        "score": round(best.score, 4),
        "words": None if best.words is None else [_word(word) for word in best.words],
    }
    if others:
        record["alternatives"] = [{"text": _text(one), "score": round(one.score, 4)} for one in others]
    return record


def _text(hypothesis: Hypothesis) -> str:
    """With one space between words: a tokenizer writes as many as the model emits delimiters."""
    return " ".join(hypothesis.text.split())


def _word(word: TimedText) -> dict[str, Any]:
    return {"word": word.text, "start": round(word.start, 3), "end": round(word.end, 3)}
