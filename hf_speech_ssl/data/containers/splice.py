"""A read-only file that is put together from bytes and from stretches of another file."""

from __future__ import annotations

import bisect
import io
import itertools
from collections.abc import Sequence
from typing import Any, BinaryIO


class SplicedFile(io.RawIOBase):
    """Reads pieces one after the other as one file, so that a wrong header can be replaced without a copy.

    Args:
        file: where stretches are read from; its own position moves.
        pieces: bytes, which stand for themselves, and ranges of positions in `file`.

    Attributes:
        size: bytes of all pieces together.
        end_of_reading: the position right after the last byte that anybody read.
    """

    def __init__(self, file: BinaryIO, pieces: Sequence[bytes | range]):
        self._file = file
        self._pieces = [piece for piece in pieces if len(piece)]
        self._starts = [0, *itertools.accumulate(len(piece) for piece in self._pieces)]
        self.size = self._starts[-1]
        self.end_of_reading = 0
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a position; one before the beginning, which libsndfile tries in broken files, is the beginning."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer, but at the end of the file: libsndfile takes a short read for the end."""
        view = memoryview(buffer).cast("B")
        filled = 0
        index = bisect.bisect_right(self._starts, self._position) - 1
        while filled < len(view) and index < len(self._pieces):
            piece, offset = self._pieces[index], self._position - self._starts[index]
            part = self._read_piece(piece, offset, len(view) - filled)
            view[filled : filled + len(part)] = part
            filled += len(part)
            self._position += len(part)
            if self._position < self._starts[index + 1]:
                break  # the buffer is full, or the file has become shorter
            index += 1
        self.end_of_reading = max(self.end_of_reading, self._position)
        return filled

    def _read_piece(self, piece: bytes | range, offset: int, size: int) -> bytes:
        if isinstance(piece, bytes):
            return piece[offset : offset + size]
        self._file.seek(piece.start + offset)
        return self._file.read(min(size, len(piece) - offset))

    def part(self, begin: int, end: int) -> SplicedFile:
        """The bytes [begin, end) as a file of their own."""
        pieces: list[bytes | range] = []
        for start, piece in zip(self._starts, self._pieces, strict=False):
            pieces.append(piece[max(0, begin - start) : max(0, end - start)])
        return SplicedFile(self._file, pieces)

    def joined(self, pieces: Sequence[bytes | range]) -> SplicedFile:
        """A file of bytes and of stretches of this one."""
        flat: list[bytes | range] = []
        for piece in pieces:
            flat += [piece] if isinstance(piece, bytes) else self.part(piece.start, piece.stop)._pieces
        return SplicedFile(self._file, flat)

    def replaced(self, changes: dict[int, bytes]) -> SplicedFile:
        """The same file with other bytes at some positions."""
        pieces: list[bytes | range] = []
        done = 0
        for position, new in sorted(changes.items()):
            pieces += [range(done, position), new]
            done = position + len(new)
        return self.joined([*pieces, range(done, self.size)])

    def at(self, position: int, size: int) -> bytes:
        """Up to `size` bytes from a position on; what is read so is not counted in `end_of_reading`."""
        counted = self.end_of_reading
        self.seek(position)
        data = self.read(size) or b""
        self.end_of_reading = counted
        return data


def size_without_tags(file: SplicedFile) -> int:
    """The bytes in front of what players write behind the audio: ID3v1, APE and Lyrics3 tags, and zeros."""
    end = file.size
    while True:
        before = end
        end = _before_zeros(file, end)
        tail = file.at(max(0, end - 160), min(160, end))
        if file.at(max(0, before - 128), 3) == b"TAG":  # its fields are padded with zeros
            end = before - 128
        elif tail[-32:-24] == b"APETAGEX" or file.at(before - 32, 8) == b"APETAGEX":
            footer = file.at(before - 32, 32)
            header = 32 * bool(footer[23] & 0x80)
            end = before - int.from_bytes(footer[12:16], "little") - header
        elif tail[-9:] == b"LYRICS200" and tail[-15:-9].isdigit():
            end -= 15 + int(tail[-15:-9])
        elif tail[-9:] == b"LYRICSEND":
            begin = file.at(max(0, end - 5200), 5200).rfind(b"LYRICSBEGIN")
            end = end if begin < 0 else max(0, end - 5200) + begin
        elif tail[-10:-7] == b"3DI":  # the footer of an ID3v2 tag
            end -= 20 + synchsafe(tail[-4:])
        if end >= before or end <= 0:
            return max(0, min(end, before))


def synchsafe(data: bytes) -> int:
    """A number in ID3v2's bytes of seven bits."""
    return sum((byte & 0x7F) << (7 * place) for place, byte in enumerate(reversed(data)))


def end_of_id3(file: SplicedFile, position: int = 0) -> int:
    """The position behind all ID3v2 tags that lie at `position`."""
    while (header := file.at(position, 10))[:3] == b"ID3" and len(header) == 10:
        position += 10 + synchsafe(header[6:]) + 10 * bool(header[5] & 0x10)
    return position


def _before_zeros(file: SplicedFile, end: int) -> int:
    while end > 0:
        begin = max(0, end - 65_536)
        block = file.at(begin, end - begin).rstrip(b"\0")
        if block:
            return begin + len(block)
        end = begin
    return 0
