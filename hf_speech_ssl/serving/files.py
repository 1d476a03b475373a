"""Transcripts of uploaded files, in the form of OpenAI's `/v1/audio/transcriptions`."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from ..data.audio import AudioError, audio_duration
from ..data.audio_files import AudioFile
from ..decoding import Hypothesis
from ..recognition.long_form import LongFormRecognizer, Transcript
from ..recognition.recognizer import Recognizer
from ..recognition.subtitles import make_cues
from ..recognition.transcript_output import Format, format_transcript
from .limits import Limits, Refused

FORMATS: dict[str, Format] = {"text": "text", "srt": "srt", "vtt": "vtt"}  # that are files of their own
_JSON_FORMATS = ("json", "verbose_json")
# Fields of OpenAI's that change nothing with a CTC model of one language; the answer names those that came.
_IGNORED = ("language", "prompt", "temperature", "chunking_strategy", "include", "include[]")


@dataclass(frozen=True)
class FileRequest:
    """What a client asks of a file.

    Attributes:
        format: json, text, srt, vtt or verbose_json.
        words: whether verbose JSON has words.
        segments: whether it has segments.
        ignored: names of the fields that change nothing here.
    """

    format: str
    words: bool
    segments: bool
    ignored: tuple[str, ...]

    @classmethod
    def of(cls, fields: Mapping[str, Any], granularities: list[str], model: str) -> FileRequest:
        """Read the fields of a form.

        Raises:
            Refused: one asks for what there is not.
        """
        if fields.get("model", model) != model:
            raise Refused(404, "model_not_found", f"There is no model {fields['model']!r} here, but {model!r}.")
        asked = fields.get("response_format", "json")
        if asked not in (*_JSON_FORMATS, *FORMATS):
            choices = ", ".join((*_JSON_FORMATS, *FORMATS))
            raise Refused(400, "invalid_value", f"response_format must be one of {choices}, got {asked!r}.")
        if str(fields.get("stream", "false")).lower() not in ("false", "0", ""):
            raise Refused(400, "unsupported", "Files are not streamed; connect to /v1/realtime for that.")
        if unknown := set(granularities) - {"word", "segment"}:
            raise Refused(400, "invalid_value", f"timestamp_granularities[] are word and segment, not {unknown}.")
        ignored = tuple(name for name in _IGNORED if fields.get(name) not in (None, ""))
        return cls(asked, "word" in granularities, not granularities or "segment" in granularities, ignored)


class FileTranscriber:
    """Transcribes files one after the other, in a thread of its own.

    Args:
        recognizer: of any CTC model.
        limits: of the server.
    """

    def __init__(self, recognizer: Recognizer, limits: Limits):
        self.long_form = LongFormRecognizer(recognizer)
        self.limits = limits
        self.open = 0  # files that are transcribed or wait for it
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="files")

    async def transcribe(self, name: str, data: bytes) -> Transcript:
        """The transcript of a file.

        Args:
            name: as the client calls it; its ending tells nothing.
            data: its bytes, in any form that the package reads.

        Raises:
            Refused: it is no audio, too long, or there are too many files.
        """
        if self.open >= self.limits.max_files:
            raise Refused(503, "server_busy", f"{self.open} files are being transcribed; try again later.")
        self.open += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._transcribe, name, data)
        finally:
            self.open -= 1

    def close(self) -> None:
        """Finish the files that have begun."""
        self._thread.shutdown()

    def _transcribe(self, name: str, data: bytes) -> Transcript:
        source = {"path": name, "bytes": data}
        try:
            seconds = audio_duration(source)
            if seconds > self.limits.max_seconds:
                raise Refused(413, "too_long", f"{name} has {seconds:g} s; {self.limits.max_seconds:g} s are taken.")
            [result] = self.long_form.transcribe([source])
        except AudioError as error:
            raise Refused(400, "invalid_audio", str(error)) from error
        if isinstance(result, Transcript):
            return result
        if result.reason == "silent":
            return Transcript(name, seconds, [Hypothesis("", 0.0, [])])
        raise Refused(400, "invalid_audio", str(result)) from result


def as_text(transcript: Transcript, format: Format) -> str:
    """A transcript as text or subtitles.

    Raises:
        Refused: subtitles are asked of a model whose words have no times.
    """
    if format != "text" and transcript.hypotheses[0].words is None:
        raise Refused(400, "unsupported", "Subtitles need word times, which this model's tokenizer does not give.")
    return format_transcript(AudioFile(transcript.name, PurePath(transcript.name)), transcript, format)


def as_json(transcript: Transcript, request: FileRequest) -> dict[str, Any]:
    """A transcript as OpenAI's JSON; verbose JSON has the duration, and words and segments with times."""
    best = transcript.hypotheses[0]
    usage = {"type": "duration", "seconds": round(transcript.seconds, 3)}
    answer: dict[str, Any] = {"text": " ".join(best.text.split()), "usage": usage}
    if request.format == "json":
        return answer
    answer |= {"task": "transcribe", "duration": round(transcript.seconds, 3)}
    words = best.words or []
    if request.words:
        answer["words"] = [{"word": one.text, "start": round(one.start, 3), "end": round(one.end, 3)} for one in words]
    if request.segments:
        answer["segments"] = [
            {"id": number, "start": cue.start / 1000, "end": cue.end / 1000, "text": " ".join(cue.lines)}
            for number, cue in enumerate(make_cues(words))
        ]
    return answer
