"""FLAC: the number of samples of a file that does not state it, and files in one.

A FLAC file written to a pipe states 0 samples, which means "unknown" and which libsndfile cannot read to the end.
Every frame counts the samples before it, so the last one tells the length.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from .splice import SplicedFile, end_of_id3, size_without_tags

_MARKER = b"fLaC"
_LENGTH = 8 + 13  # position of the number of samples in STREAMINFO, whose lower 36 bits it is
_SEARCHED = 1 << 15  # bytes, in which a frame begins
_SYNC = re.compile(rb"\xff[\xf8\xf9]")
_BLOCK_SIZES = {1: 192, **{code: 576 << (code - 2) for code in range(2, 6)}}
_BLOCK_SIZES |= {code: 256 << (code - 8) for code in range(8, 16)}


@dataclass(frozen=True)
class _Frame:
    position: int
    end: int  # samples of the recording up to the end of this frame


def repair_flac(file: SplicedFile) -> list[SplicedFile]:
    """The recordings of a FLAC file, each with its number of samples stated.

    Raises:
        EOFError: the last frame is not whole.
    """
    begin = end_of_id3(file)
    stated = _stated_samples(file, begin)
    last = _last_frame(file, begin)
    if stated and (last is None or last.end == stated) and _is_one_recording(file, begin):
        return [file]
    begins = _find_recordings(file, begin)
    ends = [*begins[1:], file.size]
    return [_with_length(file.part(first, end)) for first, end in zip(begins, ends, strict=True)]


def _with_length(file: SplicedFile) -> SplicedFile:
    """The same recording with its length stated, unless libsndfile will find out that it is cut off."""
    stated, last = _stated_samples(file, 0), _last_frame(file, 0)
    if last is None or last.end <= stated:
        return file
    end = size_without_tags(file)
    ends = {end, end + 1, end + 2, file.size}  # a checksum may end in the zeros that are taken for padding
    if all(_crc16(file.at(last.position, end - last.position)) for end in ends if end <= file.size):
        if stated:
            return file  # what follows is not FLAC
        raise EOFError("its last frame is not whole")
    upper = file.at(_LENGTH, 1)[0] & 0xF0 | last.end >> 32
    return file.replaced({_LENGTH: bytes([upper]) + (last.end & 0xFFFF_FFFF).to_bytes(4, "big")})


def _stated_samples(file: SplicedFile, begin: int) -> int:
    info = file.at(begin + 8, 34)
    return (info[13] & 0x0F) << 32 | int.from_bytes(info[14:18], "big") if len(info) == 34 else 0


def _find_recordings(file: SplicedFile, begin: int) -> list[int]:
    """Where recordings begin: at the marker with a block of stream information behind it."""
    data = file.at(0, file.size)
    begins, position = [begin], begin + 4
    while (position := data.find(_MARKER, position)) >= 0:
        if data[position + 4 : position + 8] in (b"\x00\x00\x00\x22", b"\x80\x00\x00\x22"):
            begins.append(position)
        position += 4
    return begins


def _is_one_recording(file: SplicedFile, begin: int) -> bool:
    """Whether the samples are counted on from quarter to quarter of the file: in two equally long recordings in one
    file, the second half counts anew. Most of the file is not read.
    """
    quarters = [begin + (file.size - begin) * part // 4 for part in range(4)]
    frames = [_frames(file, begin, quarter, min(file.size, quarter + _SEARCHED)) for quarter in quarters]
    first = [next(found, None) for found in frames]
    counts = [frame.end for frame in first if frame is not None]
    return file.at(begin, _SEARCHED).find(_MARKER, 4) < 0 and sorted(set(counts)) == counts


def _last_frame(file: SplicedFile, begin: int) -> _Frame | None:
    """The last frame whose header is right."""
    end = size_without_tags(file)
    for searched in (_SEARCHED, 16 * _SEARCHED):
        frames = list(_frames(file, begin, max(begin, end - searched), end))
        if frames:
            return frames[-1]
    return None


def _frames(file: SplicedFile, begin: int, start: int, end: int) -> Iterator[_Frame]:
    """The frames that begin in a stretch of the recording that begins at `begin`."""
    fixed_size = int.from_bytes(file.at(begin + 10, 2), "big")  # samples of all frames but the last
    data = file.at(start, end - start)
    for match in _SYNC.finditer(data):
        frame = _read_frame(data, match.start(), fixed_size)
        if frame is not None:
            yield _Frame(start + frame.position, frame.end)


def _read_frame(data: bytes, position: int, fixed_size: int) -> _Frame | None:
    head = data[position : position + 16]
    if len(head) < 6 or head[1] & 0xFE != 0xF8 or head[3] & 1:
        return None
    number, length = _coded_number(head[4:11])
    if length == 0:
        return None
    code, rate_code, end = head[2] >> 4, head[2] & 15, 4 + length
    if code in (6, 7):
        width = code - 5
        samples = int.from_bytes(head[end : end + width], "big") + 1
        end += width
    elif code in _BLOCK_SIZES:
        samples = _BLOCK_SIZES[code]
    else:
        return None
    end += {12: 1, 13: 2, 14: 2}.get(rate_code, 0)
    if len(head) <= end or rate_code == 15 or _crc8(head[:end]) != head[end]:
        return None
    is_variable = head[1] & 1
    return _Frame(position, (number if is_variable else number * fixed_size) + samples)


def _coded_number(data: bytes) -> tuple[int, int]:
    """A number in FLAC's long form of UTF-8, and its bytes; 0 bytes if it is none."""
    first = data[0]
    if first < 0x80:
        return first, 1
    length = 8 - (first ^ 0xFF).bit_length()
    if not 2 <= length <= 7 or len(data) < length:
        return 0, 0
    number = first & (0x7F >> length)
    for byte in data[1:length]:
        if byte >> 6 != 2:
            return 0, 0
        number = number << 6 | byte & 0x3F
    return number, length


def _table(polynomial: int, bits: int) -> list[int]:
    table = []
    for value in range(256):
        value <<= bits - 8
        for _ in range(8):
            value = value << 1 ^ (polynomial if value >> (bits - 1) else 0)
            value &= (1 << bits) - 1
        table.append(value)
    return table


_CRC8, _CRC16 = _table(0x07, 8), _table(0x8005, 16)


def _crc8(data: bytes) -> int:
    value = 0
    for byte in data:
        value = _CRC8[value ^ byte]
    return value


def _crc16(data: bytes) -> int:
    """0 over a whole frame with its checksum."""
    value = 0
    for byte in data:
        value = (value << 8 & 0xFFFF) ^ _CRC16[value >> 8 ^ byte]
    return value
