"""What a sound file really holds, where libsndfile would believe a wrong header."""

from __future__ import annotations

from dataclasses import dataclass
from typing import BinaryIO

from ..audio_error import AudioError
from .chunked import UnreadRest, layout_of, mpeg_in_wav, repair_au, repair_chunked
from .flac import repair_flac
from .mpeg import covered_share, read_header, repair_mpeg
from .ogg import split_ogg
from .splice import SplicedFile, end_of_id3, size_without_tags

__all__ = ["Recording", "find_mpeg", "find_recordings", "unread_bytes"]

_LEAST_SHARE = 0.5  # of a file without a known beginning must be MPEG frames for it to be taken for MP3


@dataclass(frozen=True)
class Recording:
    """A stretch of a file that libsndfile can read to its end.

    Attributes:
        file: the encoded audio, its header corrected.
        is_measured: whether its length was compared with the file; otherwise see `unread_bytes`.
        may_be_mpeg: whether libsndfile may read it with libmpg123, which writes to standard error.
    """

    file: SplicedFile
    is_measured: bool = True
    may_be_mpeg: bool = False


def find_recordings(source: BinaryIO, size: int, name: str) -> list[Recording]:
    """The recordings in an encoded file, to be read one after the other. Most files hold one.

    Args:
        source: a seekable file of `size` bytes.
        name: how errors call the file.

    Raises:
        AudioError: "truncated": the header promises more than there is. "unread rest": much follows the audio that
            cannot be read.
    """
    file = SplicedFile(source, [range(size)])
    try:
        return _find(file)
    except EOFError as error:
        raise AudioError(name, "truncated", f"{error}; copy the file again.") from error
    except UnreadRest as error:
        raise AudioError(
            name,
            "unread rest",
            "the header states {} bytes of audio, and {} bytes follow that it does not mention. If they are audio, "
            "write the header again: ffmpeg -ignore_length 1 -i OLD.wav NEW.wav; if not, cut them off.".format(
                *error.args
            ),
        ) from error


def find_mpeg(source: BinaryIO, size: int, name: str) -> list[Recording]:
    """The MP3 in a file that libsndfile cannot open: one that begins with the rest of a frame, or with a damaged one.

    Empty if there is none.
    """
    file = SplicedFile(source, [range(size)])
    if covered_share(file) < _LEAST_SHARE:
        return []
    return [Recording(part, may_be_mpeg=True) for part in repair_mpeg(file, trusts_index=False) or []]


def unread_bytes(recording: Recording) -> int:
    """Bytes between the place where decoding ended and the end of the file, without the tags of players."""
    if recording.is_measured:
        return 0
    return max(0, size_without_tags(recording.file) - recording.file.end_of_reading)


def _find(file: SplicedFile) -> list[Recording]:
    begin = end_of_id3(file)
    head = file.at(begin, 40)
    body = file.part(begin, file.size) if begin else file  # players' tags in front belong to MP3 alone
    if layout_of(head) is not None:
        parts = repair_chunked(body)
        inside = mpeg_in_wav(parts[0]) if len(parts) == 1 else None
        mpeg = (inside and repair_mpeg(inside)) or []
        return [Recording(part, may_be_mpeg=True) for part in mpeg] or [Recording(part) for part in parts]
    if head[:4] in (b".snd", b"dns."):
        return [Recording(repair_au(body))]
    if head[:4] == b"fLaC":
        return [Recording(part, is_measured=False) for part in repair_flac(file)]
    if head[:4] == b"OggS":
        return [Recording(part) for part in split_ogg(body)]
    if begin or read_header(head, 0) is not None:
        parts = repair_mpeg(file) or []
        return [Recording(part, may_be_mpeg=True) for part in parts] or [_unknown(file)]
    return [_unknown(file)]


def _unknown(file: SplicedFile) -> Recording:
    return Recording(file, is_measured=False, may_be_mpeg=True)
