"""WAV, RF64, BW64, W64, AIFF, CAF and AU: how many bytes of audio a file has, whatever its header states.

A recorder that crashed leaves a size of 0, a writer to a pipe leaves 0 or the largest number, and files that were put
together hold more than the first header states. Only the sizes of chunks are looked at: byte rates and sample counts
of the header are often wrong where the samples are whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from .splice import SplicedFile, size_without_tags

_SLACK_BYTES = 64  # sloppy writers are off by a header's few bytes; that is no lost speech
_UNREAD_BYTES = 16_384  # behind the audio are not worth a refusal: half a second of 16-bit samples at 16 kHz
_UNKNOWN = 0x7FFF_0000  # writers to a pipe put 32-bit sizes from here up: "until the end of the file"
_UNKNOWN_64 = 1 << 62
_MPEG_IN_WAV = 0x55  # format tag
_W64_RIFF = b"riff" + bytes.fromhex("2e91cf11a5d628db04c10000")  # W64 names chunks by GUIDs
_W64_DATA = b"data" + bytes.fromhex("f3acd3118cd100c04f8edb8a")


class UnreadRest(ValueError):
    """Bytes behind the audio that are nothing known; with (stated, behind) in bytes."""


@dataclass(frozen=True)
class _Layout:
    """How a kind of file writes its chunks.

    Attributes:
        first: where the first chunk begins.
        name, width, order: bytes of a chunk's name and of its size, and the order of the size's bytes.
        inclusive: whether sizes count the chunk's own header.
        alignment: chunks begin at multiples of so many bytes.
        audio: name of the chunk with the samples.
        in_front: bytes of that chunk in front of the samples.
    """

    first: int
    name: int
    width: int
    order: Literal["little", "big"]
    inclusive: bool
    alignment: int
    audio: bytes
    in_front: int = 0

    @property
    def unknown(self) -> int:
        """The least size that stands for "until the end of the file"."""
        return _UNKNOWN if self.width == 4 else _UNKNOWN_64


@dataclass(frozen=True)
class _Chunk:
    """A chunk: its name, where its contents begin, and the size of these that the file states."""

    name: bytes
    start: int
    size: int


def layout_of(head: bytes) -> _Layout | None:
    """The layout of the file that begins so; None for files of other kinds. AU is not made of chunks."""
    if head[:4] in (b"RIFF", b"RF64", b"BW64", b"RIFX") and head[8:12] == b"WAVE":
        return _Layout(12, 4, 4, "big" if head[:4] == b"RIFX" else "little", False, 2, b"data")
    if head[:16] == _W64_RIFF:
        return _Layout(40, 16, 8, "little", True, 8, _W64_DATA)
    if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        return _Layout(12, 4, 4, "big", False, 2, b"SSND", in_front=8)
    if head[:4] == b"caff":
        return _Layout(8, 4, 8, "big", False, 1, b"data", in_front=4)
    return None


def repair_chunked(file: SplicedFile) -> list[SplicedFile]:
    """The recordings of a file of chunks, each with the sizes that it has.

    Raises:
        EOFError: a size promises more than the file holds; with what is missing.
        UnreadRest: much follows the audio that is no chunk.
    """
    layout = layout_of(file.at(0, 40))
    assert layout is not None
    file = _with_padding(file, layout)
    audio, others = None, {}
    for chunk in _chunks(file, layout, layout.first):
        if chunk.name == layout.audio:
            audio = chunk
            break
        others[chunk.name] = chunk
    if audio is None:
        return [file]
    long_sizes = others.get(b"ds64")
    stated = audio.size
    if long_sizes is not None and audio.size >= _UNKNOWN:
        stated = int.from_bytes(file.at(long_sizes.start + 8, 8), "little")
        stated = 0 if stated >= _UNKNOWN_64 else stated
    present = file.size - audio.start
    is_open = audio.size >= layout.unknown and not (long_sizes and stated)
    if not is_open and stated > present + _SLACK_BYTES:
        raise EOFError(f"the header promises {stated} bytes, {present} are there")
    if is_open or (stated <= layout.in_front and not _is_end(file, layout, audio.start)):
        return [_with_size(file, layout, audio, long_sizes)]
    end = audio.start + min(stated, present)
    rest = _recordings_behind(file, layout, end, stated)
    own = file if not rest else file.part(0, end)
    return [_as_rf64(own), *rest]


def repair_au(file: SplicedFile) -> SplicedFile:
    """An AU file with the size that it has.

    Raises:
        EOFError, UnreadRest: as `repair_chunked`.
    """
    order: Literal["little", "big"] = "big" if file.at(0, 4) == b".snd" else "little"
    start, stated = (int.from_bytes(file.at(place, 4), order) for place in (4, 8))
    present = file.size - start
    if 0 < stated < _UNKNOWN:
        if stated > present + _SLACK_BYTES:
            raise EOFError(f"the header promises {stated} bytes, {present} are there")
        _check_rest(file, start + stated, stated)
        return file
    return file.replaced({8: max(0, present).to_bytes(4, order)})


def mpeg_in_wav(file: SplicedFile) -> SplicedFile | None:
    """The MP3 inside a WAV file, if that is what it holds."""
    layout = layout_of(file.at(0, 40))
    if layout is None or layout.audio != b"data":
        return None
    for chunk in _chunks(file, layout, layout.first):
        if chunk.name == b"fmt ":
            tag = int.from_bytes(file.at(chunk.start, 2), layout.order)
            if tag != _MPEG_IN_WAV:
                return None
        if chunk.name == b"data":
            size = chunk.size if 0 < chunk.size < layout.unknown else file.size
            return file.part(chunk.start, min(chunk.start + size, file.size))
    return None


def _chunks(file: SplicedFile, layout: _Layout, position: int) -> Iterator[_Chunk]:
    head = layout.name + layout.width
    while len(data := file.at(position, head)) == head:
        size = int.from_bytes(data[layout.name :], layout.order)
        size -= head if layout.inclusive else 0
        yield _Chunk(data[: layout.name], position + head, max(0, size))
        position += head + max(0, size)
        position += -position % layout.alignment


def _with_padding(file: SplicedFile, layout: _Layout) -> SplicedFile:
    """The same file with a byte behind each odd chunk in front of the audio whose writer has forgotten it."""
    for chunk in _chunks(file, layout, layout.first):
        end = chunk.start + chunk.size
        if chunk.name == layout.audio or layout.alignment != 2:
            break
        if end % 2 and file.at(end, 4) in (b"fmt ", b"data", b"fact", b"LIST", b"COMM", b"SSND"):
            return _with_padding(file.joined([range(end), b"\0", range(end, file.size)]), layout)
    return file


def _is_end(file: SplicedFile, layout: _Layout, position: int) -> bool:
    """Whether there is nothing at a position, or nothing but chunks up to the end of the file."""
    for chunk in _chunks(file, layout, position):
        is_name = all(32 <= byte < 127 for byte in chunk.name[:4])
        if not is_name or chunk.start + chunk.size > file.size + _SLACK_BYTES:
            return False
        position = chunk.start + chunk.size
    return file.size - position <= _SLACK_BYTES


def _with_size(file: SplicedFile, layout: _Layout, audio: _Chunk, long_sizes: _Chunk | None) -> SplicedFile:
    """The same file, its audio reaching to its end."""
    present = file.size - audio.start
    if long_sizes is not None:
        sizes = (file.size - 8).to_bytes(8, "little") + present.to_bytes(8, "little") + bytes(8)
        return _as_rf64(file.replaced({long_sizes.start: sizes}))
    stated = present + (layout.name + layout.width) * layout.inclusive
    changes = {audio.start - layout.width: _number(stated, layout)}
    if layout.audio == b"SSND":
        changes[4] = _number(file.size - 8, layout)
    return file.replaced(changes)


def _number(value: int, layout: _Layout) -> bytes:
    return min(value, (1 << 8 * layout.width) - 1).to_bytes(layout.width, layout.order)


def _as_rf64(file: SplicedFile) -> SplicedFile:
    """BW64, which libsndfile does not know by its name, is RF64."""
    return file.replaced({0: b"RF64"}) if file.at(0, 4) == b"BW64" else file


def _recordings_behind(file: SplicedFile, layout: _Layout, end: int, stated: int) -> list[SplicedFile]:
    """The recordings behind one that ends at `end`."""
    for begin in (end, end + end % 2):
        if layout_of(file.at(begin, 40)) is not None:
            return repair_chunked(file.part(begin, file.size))
    aligned = end + -end % layout.alignment
    if not (_is_end(file, layout, aligned) or _is_end(file, layout, end)):
        _check_rest(file, end, stated)
    return []


def _check_rest(file: SplicedFile, end: int, stated: int) -> None:
    behind = size_without_tags(file) - end
    if behind > _UNREAD_BYTES:
        raise UnreadRest(stated, behind)
