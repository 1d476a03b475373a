"""Encoded audio of any kind as blocks of mono samples at its own rate."""

from __future__ import annotations

import io
import logging
import os
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any, BinaryIO, Protocol, TypeVar

import fsspec
import numpy as np
import soundfile
from numpy.typing import NDArray

from .audio_error import AudioError
from .containers import Recording, find_mpeg, find_recordings, unread_bytes
from .ffmpeg import FFmpegStream, decode_with_ffmpeg, has_ffmpeg
from .native_messages import without_libmpg123

logger = logging.getLogger(__name__)

_Result = TypeVar("_Result")
RATES = (1_000, 768_000)  # Hz: what is outside is a mistake, and resampling it could fill the memory
_BLOCK_SECONDS = 10  # decoded at once: what a header claims is never allocated before it has been read
_LOSSY = ("MPEG_LAYER_I", "MPEG_LAYER_II", "MPEG_LAYER_III", "VORBIS", "OPUS")
_LOSSY_SLACK = 0.01  # the length that is stated for these is sometimes an estimate
_UNREAD_BYTES = 16_384  # at the end of a file are not worth a refusal
_CANCELLED = 0.1  # mean power of the mix times channels over that of a channel; 1 where channels are independent


class OpenAudio(Protocol):
    """An encoded file that has been opened.

    Attributes:
        samplerate: in Hz.
        frames: samples per channel by the header; None where only decoding tells.
    """

    samplerate: int
    frames: int | None

    def blocks(self, begin: int = 0, end: int | None = None) -> Iterator[NDArray[np.float32]]:
        """The samples [begin, end), by default all, mixed down to mono: (samples,) of at most ten seconds each.

        Raises:
            AudioError: decoding breaks off, or the header promised more.
        """


class _SndFiles:
    """The recordings of a file, decoded by libsndfile one after the other."""

    def __init__(self, recordings: list[tuple[Recording, soundfile.SoundFile]], name: str):
        self._recordings, self._name = recordings, name
        self._is_damaged = False
        rates = sorted({file.samplerate for _, file in recordings})
        if len(rates) > 1:
            raise AudioError(
                name,
                "unread rest",
                f"{len(recordings)} recordings in one file with sampling rates of {rates} Hz; make a file of each.",
            )
        self.samplerate = rates[0]
        self.frames: int | None = sum(file.frames for _, file in recordings)
        if self.frames == 0:
            raise AudioError(name, "empty", "a header without any audio; copy or record it again.")

    def blocks(self, begin: int = 0, end: int | None = None) -> Iterator[NDArray[np.float32]]:
        return _mixed(self._blocks(begin, end), self._name)

    def _blocks(self, begin: int, end: int | None) -> Iterator[NDArray[np.float32]]:
        first = 0  # number of a recording's first sample in the file
        for recording, file in self._recordings:
            stop = file.frames if end is None else min(file.frames, end - first)
            if begin - first < file.frames and stop > 0:
                yield from self._decoded(recording, file, max(0, begin - first), stop)
            first += file.frames

    def _decoded(
        self, recording: Recording, file: soundfile.SoundFile, begin: int, end: int
    ) -> Iterator[NDArray[np.float32]]:
        frames = begin
        try:
            if begin and file.seekable():
                self._quietly(recording, partial(file.seek, begin))
            elif begin:
                file.read(begin)  # GSM
            while frames < end and len(block := self._read(recording, file, end - frames)):
                frames += len(block)
                yield block
        except soundfile.SoundFileError as error:
            raise AudioError(
                self._name,
                "truncated",
                f"decoding broke off after {frames} frames ({_message(error)}); copy the file again.",
            ) from error
        if frames < end - file.frames * _LOSSY_SLACK * (file.subtype in _LOSSY):
            raise AudioError(
                self._name,
                "truncated",
                f"the header promises {file.frames} frames, {frames} are there; copy the file again.",
            )
        if end == file.frames and (unread := unread_bytes(recording)) > _UNREAD_BYTES:
            raise AudioError(
                self._name,
                "unread rest",
                f"{unread} bytes behind {frames / self.samplerate:.2f} s of audio cannot be read; convert the file "
                f"to wav or flac with the program that wrote it.",
            )

    def _read(self, recording: Recording, file: soundfile.SoundFile, most: int) -> NDArray[np.float32]:
        most = min(most, _BLOCK_SECONDS * self.samplerate)
        return self._quietly(recording, lambda: file.read(most, dtype="float32", always_2d=True))

    def _quietly(self, recording: Recording, call: Callable[[], _Result]) -> _Result:
        """Call libsndfile, and say once in words of our own what libmpg123 says of an MP3."""
        if not recording.may_be_mpeg:
            return call()
        result, messages = without_libmpg123(call)
        if messages and not self._is_damaged:
            self._is_damaged = True
            logger.warning(
                "%s: damaged MP3, silent or distorted in places (libmpg123: %s).", self._name, messages[0].rstrip(".!")
            )
        return result


class _FFmpegAudio:
    """A file that ffmpeg decodes."""

    def __init__(self, stream: FFmpegStream, name: str):
        self._stream, self._name = stream, name
        self.frames: int | None = None
        self.samplerate: int = stream.samplerate

    def blocks(self, begin: int = 0, end: int | None = None) -> Iterator[NDArray[np.float32]]:
        return _mixed(self._blocks(begin, end), self._name)

    def _blocks(self, begin: int, end: int | None) -> Iterator[NDArray[np.float32]]:
        first = 0
        for block in self._stream.blocks(_BLOCK_SECONDS * self.samplerate):
            if len(wanted := block[max(0, begin - first) : None if end is None else max(0, end - first)]):
                yield wanted
            first += len(block)
            if end is not None and first >= end:
                return


def is_remote(path: Any) -> bool:
    """Whether a path is a URL (`hf://`, `https://`, `zip://...::hf://`), as streamed data sets hold them."""
    return isinstance(path, str) and "://" in path


def is_read_once(path: Any) -> bool:
    """Whether a path can be read only once, as pipes can: `-` (standard input), `/dev/stdin`, `<(...)`, a named pipe.

    Reading the header of such a file takes it away from the next reader.
    """
    if path == "-":
        return True
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError, TypeError):
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISBLK(mode))


@contextmanager
def open_audio(source: Any, name: str) -> Iterator[OpenAudio]:
    """Open any encoded source of `load_audio`; `-` is standard input.

    Raises:
        AudioError: as `load_audio`.
    """
    if isinstance(source, dict):
        if source.get("bytes") is None and source.get("path") is None:
            raise AudioError(name, "missing", f"neither 'bytes' nor 'path' is set; the keys are {sorted(source)}.")
        source = source["bytes"] if source.get("bytes") is not None else source["path"]
    with ExitStack() as stack:
        path = source if isinstance(source, (str, os.PathLike)) and not is_remote(source) else None
        if isinstance(source, (str, os.PathLike)):
            source = stack.enter_context(_open_path(source, name))
        elif isinstance(source, (bytes, bytearray, memoryview)):
            source = io.BytesIO(source)
        if not hasattr(source, "read") or isinstance(source, io.TextIOBase):
            what = type(source).__name__
            raise AudioError(name, "not audio", f"a path, bytes, a binary file or a dictionary is needed, got {what}.")
        if not source.seekable():
            source, path = io.BytesIO(source.read()), None  # a pipe, in one pass
        audio = _open_file(source, path, name, stack)
        if not RATES[0] <= audio.samplerate <= RATES[1]:
            raise AudioError(
                name,
                "not audio",
                f"its header states a sampling rate of {audio.samplerate} Hz, {RATES[0]} to {RATES[1]} are read; "
                f"write the header again.",
            )
        yield audio


def _open_path(path: str | os.PathLike[str], name: str) -> BinaryIO:
    try:
        if path == "-":
            return io.BytesIO(sys.stdin.buffer.read())
        if not is_remote(path):
            return open(path, "rb")
        with fsspec.open(path, "rb") as file:
            return io.BytesIO(file.read())  # once, whole: libsndfile seeks, and each seek would be a request
    except OSError as error:
        raise AudioError(name, "missing", f"it cannot be opened ({error}); check the path.") from error


def _open_file(source: BinaryIO, path: str | os.PathLike[str] | None, name: str, stack: ExitStack) -> OpenAudio:
    size = source.seek(0, io.SEEK_END)
    if size == 0:
        raise AudioError(name, "empty", "the file has 0 bytes; copy or record it again.")
    try:
        return _open_recordings(find_recordings(source, size, name), name, stack)
    except (soundfile.SoundFileError, TypeError) as error:
        with suppress(soundfile.SoundFileError, EOFError):  # its frames or its index are broken
            if recordings := find_mpeg(source, size, name):
                return _open_recordings(recordings, name, stack)
        if stand_in := _stand_in(source):
            raise AudioError(name, "not audio", stand_in) from error
        if not has_ffmpeg():
            raise AudioError(
                name,
                "not audio",
                f"libsndfile cannot read it ({_message(error)}). If it is audio (m4a, mp4, webm, aac, amr, wma ...), "
                f"install ffmpeg, which is then used, or convert it to wav or flac.",
            ) from error
    return _FFmpegAudio(stack.enter_context(decode_with_ffmpeg(path or source, name)), name)


def _stand_in(source: BinaryIO) -> str:
    """What lies in the place of audio after an incomplete download, and what to do; nothing where it is none of it."""
    source.seek(0)
    head = source.read(64).lstrip().lower()
    if head.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS, not the file itself; fetch the files with: git lfs pull"
    if head.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "it is a web page, not the file that was asked for; download it again."
    if head.startswith((b"pk\3\4", b"\x1f\x8b", b"7z\xbc\xaf", b"rar!")):
        return "it is an archive; unpack it first."
    return ""


def _open_recordings(recordings: list[Recording], name: str, stack: ExitStack) -> OpenAudio:
    opened = []
    for recording in recordings:
        recording.file.seek(0)
        open_recording = partial(soundfile.SoundFile, recording.file)
        file = without_libmpg123(open_recording)[0] if recording.may_be_mpeg else open_recording()
        opened.append((recording, stack.enter_context(file)))
    return _SndFiles(opened, name)


def _mixed(blocks: Iterable[NDArray[np.float32]], name: str) -> Iterator[NDArray[np.float32]]:
    cancelled = False
    for block in blocks:
        mono, cancels = mix_down(block)
        if cancels and not cancelled:
            cancelled = True
            logger.warning("%s: its channels cancel each other out when mixed; the louder one is used there.", name)
        yield mono


def mix_down(samples: NDArray[Any]) -> tuple[NDArray[np.float32], bool]:
    """Mono float32 samples from (samples, channels), and whether the channels cancel each other out.

    The mean of the channels, but where they cancel (a microphone with its poles swapped): the loudest channel.
    """
    if samples.shape[1] == 1:
        return np.ascontiguousarray(samples[:, 0], dtype=np.float32), False
    mean = samples.mean(axis=1, dtype=np.float64 if samples.dtype == np.float64 else None)
    power = np.square(samples, dtype=np.float64).mean(axis=0) if len(samples) else np.zeros(1)
    if np.square(mean, dtype=np.float64).sum() * samples.shape[1] < _CANCELLED * power.mean() * len(samples):
        return np.ascontiguousarray(samples[:, int(power.argmax())], dtype=np.float32), True
    return np.ascontiguousarray(mean, dtype=np.float32), False


def _message(error: Exception) -> str:
    """libsndfile's own words, without the address of the file object that soundfile puts before them."""
    return str(getattr(error, "error_string", error)).removeprefix("Error : ").rstrip(".")
