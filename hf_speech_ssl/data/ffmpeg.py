"""Decode what libsndfile cannot read (m4a, mp4, webm, aac, amr, wma, 3gp ...) with ffmpeg, if it is installed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from .audio_error import AudioError

# Names of files that hold audio which libsndfile does not read and ffmpeg does.
FFMPEG_SUFFIXES = frozenset(
    ".3g2 .3gp .aac .ac3 .amr .ape .awb .dts .eac3 .flv .m4a .m4b .m4v .mka .mkv .mov .mp4 .mpc .ra .rm .spx "
    ".tta .webm .wma .wmv .wv".split()
)
# Formats that have a beginning of their own: ffmpeg would take headerless samples for raw AMR, and text for a film.
_FORMATS = (
    "aac,ac3,aiff,amr,ape,asf,au,avi,caf,dts,eac3,flac,flv,matroska,mov,mpc,mpc8,mpeg,mpegts,nistsphere,ogg,rm,tta,voc,"
    "w64,wav,wv"
)
_SLACK, _SLACK_SECONDS = 0.01, 0.5  # by which durations in headers are off
_LEVEL = re.compile(r"^(\[[^\]]* @ 0x\w+\] )?\[(error|fatal)\] ")
_DURATION = re.compile(r"Duration: (\d+):(\d+):([\d.]+)")
_HEADER = 68 + 4096  # bytes within which ffmpeg's WAV header ends


def has_ffmpeg() -> bool:
    """Whether the program can be found."""
    return shutil.which("ffmpeg") is not None


class FFmpegStream:
    """Float samples of one audio stream, as ffmpeg decodes them.

    Attributes:
        samplerate: in Hz.
        channels: of every block.
    """

    def __init__(self, process: subprocess.Popen[bytes], errors: BinaryIO, name: str):
        assert process.stdout is not None
        self._process, self._errors, self._name = process, errors, name
        self._output = process.stdout
        head = self._output.read(44)
        if len(head) < 44:
            process.wait()
            raise AudioError(name, "not audio", f"neither libsndfile nor ffmpeg can read it ({self._complaint()}).")
        self.channels = int.from_bytes(head[22:24], "little")
        self.samplerate = int.from_bytes(head[24:28], "little")
        self._skip_to_samples(head)

    def _skip_to_samples(self, head: bytes) -> None:
        while b"data" not in head[12:] and len(head) < _HEADER:
            head += self._output.read(2)
        self._output.read(max(0, head.index(b"data") + 8 - len(head)))
        self._rest = head[head.index(b"data") + 8 :]

    def blocks(self, frames: int) -> Iterator[NDArray[np.float32]]:
        """(frames, channels) until the end.

        Raises:
            AudioError: "truncated": ffmpeg says that the file is cut off.
        """
        width = 4 * self.channels
        data, self._rest = self._rest, b""
        seconds = 0.0
        while True:
            data += self._output.read(frames * width - len(data))
            whole = len(data) // width
            if not whole:
                break
            yield np.frombuffer(data[: whole * width], dtype="<f4").reshape(whole, self.channels)
            data = data[whole * width :]
            seconds += whole / self.samplerate
        failed = self._process.wait() != 0
        complaint = self._complaint()
        if failed or "partial file" in complaint or "runcat" in complaint:
            raise AudioError(self._name, "truncated", f"decoding broke off ({complaint}); copy the file again.")
        if (stated := self._stated_seconds()) and seconds < stated * (1 - _SLACK) - _SLACK_SECONDS:
            raise AudioError(
                self._name,
                "truncated",
                f"its header promises {stated:.2f} s, {seconds:.2f} s are there; copy the file again.",
            )

    def _log(self) -> str:
        self._errors.seek(0)
        return self._errors.read().decode(errors="replace")

    def _complaint(self) -> str:
        lines = [_LEVEL.sub("", line) for line in self._log().splitlines() if "[error]" in line or "[fatal]" in line]
        return "; ".join(re.sub("^file:.*: ", "", line) for line in lines[-2:]) or "no audio in it"

    def _stated_seconds(self) -> float:
        """The duration in the file's header; 0 where there is none, or where it may be that of a film."""
        log = self._log()
        found = _DURATION.search(log)
        if found is None or "Estimating duration" in log or "Video:" in log:
            return 0.0
        hours, minutes, seconds = map(float, found.groups())
        return 3600 * hours + 60 * minutes + seconds


@contextmanager
def decode_with_ffmpeg(source: str | os.PathLike[str] | BinaryIO, name: str) -> Iterator[FFmpegStream]:
    """Decode the first audio stream of a file.

    Args:
        source: the path of a regular file, or an open file, which is copied to disk: mp4 is not read in order.

    Raises:
        AudioError: "not audio": ffmpeg cannot read it either.
    """
    with tempfile.TemporaryFile() as errors, tempfile.NamedTemporaryFile(prefix="speech-") as copy:
        if not isinstance(source, (str, os.PathLike)):
            source.seek(0)
            shutil.copyfileobj(source, copy)
            copy.flush()
            source = copy.name
        path = os.path.abspath(os.fspath(source))  # an absolute one is neither a flag nor a URL
        command = ["ffmpeg", "-nostdin", "-nostats", "-v", "level+info", "-protocol_whitelist", "file,pipe"]
        command += ["-format_whitelist", _FORMATS, "-i", f"file:{path}"]
        command += ["-map", "0:a:0", "-f", "wav", "-c:a", "pcm_f32le", "pipe:1"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors) as process:
            try:
                yield FFmpegStream(process, errors, name)
            finally:
                process.kill()
