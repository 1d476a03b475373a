"""MP3 and the other MPEG audio layers, counted frame by frame.

libsndfile stops at the number of frames that a file states at its beginning, or that libmpg123 guesses from its first
frame and its size. Where that number is wrong or missing, the frames are counted here and stated in front of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from .splice import SplicedFile, end_of_id3, size_without_tags

_BITRATES = {  # kbit/s by (MPEG 1, layer)
    (True, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RATES = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}  # Hz by version
_SYNC = re.compile(rb"\xff[\xe2-\xff]")
_MIDDLE_BITRATE = 9  # index of a bit rate at which a frame holds an index, at every sampling rate
_SLACK_BYTES = 3000  # two frames, by which writers miscount
_LEAST_FRAMES = 4  # a shorter run beside a longer one is a coincidence in what is no audio


@dataclass(frozen=True)
class Header:
    """The four bytes at the beginning of a frame."""

    version: int  # 3 is MPEG 1, 2 is MPEG 2, 0 is MPEG 2.5
    layer: int
    rate: int  # Hz
    mono: bool
    size: int  # bytes of the frame

    @property
    def kind(self) -> tuple[int, int, int, bool]:
        """What stays the same within a recording."""
        return self.version, self.layer, self.rate, self.mono

    @property
    def index_offset(self) -> int:
        """Where a Xing index lies in a frame of layer 3, in bytes."""
        return 4 + ((17 if self.mono else 32) if self.version == 3 else (9 if self.mono else 17))


@dataclass
class _Run:
    """Frames of one kind, as stretches of the file."""

    kind: tuple[int, int, int, bool]
    first: bytes
    frames: int
    stretches: list[range]


def read_header(data: bytes, position: int) -> Header | None:
    """The header of a frame, or None where there is none or its size is not stated ("free format")."""
    return _parse(data[position : position + 4])


@lru_cache(maxsize=4096)  # a file has few different ones, and hours of frames
def _parse(header: bytes) -> Header | None:
    word = int.from_bytes(header, "big")
    if len(header) < 4 or word >> 21 != 0x7FF:
        return None
    version, layer_bits = word >> 19 & 3, word >> 17 & 3
    bitrate_index, rate_index = word >> 12 & 15, word >> 10 & 3
    if version == 1 or layer_bits == 0 or bitrate_index in (0, 15) or rate_index == 3:
        return None
    layer = 4 - layer_bits
    bitrate = 1000 * _BITRATES[version == 3, layer][bitrate_index - 1]
    rate, padding = _RATES[version][rate_index], word >> 9 & 1
    if layer == 1:
        size = (12 * bitrate // rate + padding) * 4
    else:
        size = (72 if layer == 3 and version != 3 else 144) * bitrate // rate + padding
    return Header(version, layer, rate, (word >> 6 & 3) == 3, size)


def repair_mpeg(file: SplicedFile, trusts_index: bool = True) -> list[SplicedFile] | None:
    """The recordings of an MPEG file, with the true number of frames stated in front of each.

    Args:
        trusts_index: leave a file as it is whose own index covers it.

    Returns:
        Parts to decode one after the other; the file itself where its own index covers it; None where no frames were
        found.

    Raises:
        EOFError: the file's index promises more than the file holds; with what is missing.
    """
    begin, end = end_of_id3(file), size_without_tags(file)
    head = file.at(begin, 2048)
    stated_frames, stated_bytes = _stated_length(head)
    slack = max(_SLACK_BYTES, stated_bytes // 1000)
    if stated_bytes - (file.size - begin) > slack:
        raise EOFError(f"the header promises {stated_bytes} bytes, {file.size - begin} are there")
    is_known = head[36:40] != b"VBRI"  # which libmpg123 does not look at
    if trusts_index and is_known and stated_frames and stated_bytes and end - begin - stated_bytes <= slack:
        return [file.part(0, max(end, begin + stated_bytes))]  # libmpg123 complains about tags behind the audio
    data = file.at(0, file.size)
    runs = [run for run in _runs(data, begin, file.size) if run.frames]
    runs = [run for run in runs if run.frames >= _LEAST_FRAMES] or runs
    if not runs:
        return None
    if stated_frames > 1.01 * sum(run.frames for run in runs) + 2:
        raise EOFError(f"the header promises {stated_frames} frames, {sum(run.frames for run in runs)} are there")
    if any(run.kind[1] != 3 for run in runs):  # only layer 3 has an index; the others have one bit rate
        return [file.part(runs[0].stretches[0].start, runs[-1].stretches[-1].stop)]
    return [file_of_run(file, run) for run in runs]


def covered_share(file: SplicedFile) -> float:
    """How much of a file is MPEG frames, for one that does not begin with them."""
    runs = list(_runs(file.at(0, file.size), 0, file.size))
    return sum(len(stretch) for run in runs for stretch in run.stretches) / max(1, file.size)


def file_of_run(file: SplicedFile, run: _Run) -> SplicedFile:
    """The frames of a run behind a frame that states their number."""
    word = int.from_bytes(run.first, "big")
    word = word & ~(0xF << 12) & ~(1 << 9) | _MIDDLE_BITRATE << 12 | 1 << 16  # no padding, no checksum
    first = word.to_bytes(4, "big")
    header = read_header(first, 0)
    assert header is not None
    index = bytearray(header.size)
    index[:4] = first
    size = header.size + sum(len(stretch) for stretch in run.stretches)
    fields = b"Xing" + (3).to_bytes(4, "big") + run.frames.to_bytes(4, "big") + size.to_bytes(4, "big")
    index[header.index_offset : header.index_offset + len(fields)] = fields
    return file.joined([bytes(index), *run.stretches])


def _stated_length(data: bytes) -> tuple[int, int]:
    """Frames and bytes that the index in a first frame states; 0 where it does not."""
    header = read_header(data, 0)
    if header is None or header.layer != 3:
        return 0, 0
    at = header.index_offset
    if data[at : at + 4] in (b"Xing", b"Info"):
        flags, numbers = int.from_bytes(data[at + 4 : at + 8], "big"), at + 8
        frames = _number(data, numbers) if flags & 1 else 0
        return frames, _number(data, numbers + 4 * (flags & 1)) if flags & 2 else 0
    if data[36:40] == b"VBRI":
        return _number(data, 50), _number(data, 46)
    return 0, 0


def _number(data: bytes, position: int) -> int:
    return int.from_bytes(data[position : position + 4], "big")


def _is_index(data: bytes, position: int, header: Header) -> bool:
    at = position + header.index_offset
    return header.layer == 3 and (
        data[at : at + 4] in (b"Xing", b"Info") or data[position + 36 : position + 40] == b"VBRI"
    )


def _runs(data: bytes, position: int, end: int) -> Iterator[_Run]:
    """Runs of frames of the same kind; what is no frame is passed over, and so are indices."""
    run: _Run | None = None
    while (position := _next_frame(data, position, end, run)) < end:
        header = read_header(data, position)
        assert header is not None
        is_index = _is_index(data, position, header)
        if run is None or is_index or header.kind != run.kind:
            if run is not None:
                yield run
            run = _Run(header.kind, data[position : position + 4], 0, [])
        if not is_index:
            run.frames += 1
            stop = min(position + header.size, end)
            if run.stretches and run.stretches[-1].stop == position:
                run.stretches[-1] = range(run.stretches[-1].start, stop)
            else:
                run.stretches.append(range(position, stop))
        position += header.size
    if run is not None:
        yield run


def _next_frame(data: bytes, position: int, end: int, run: _Run | None) -> int:
    """The position of the next frame: right here, or where two frames of a kind follow each other."""
    header = read_header(data, position)
    if header is not None and run is not None and header.kind == run.kind and position + header.size <= end:
        return position
    for match in _SYNC.finditer(data, position, end):
        first = read_header(data, match.start())
        if first is None or match.start() + first.size > end:
            continue
        following = read_header(data, match.start() + first.size)
        if following is not None and following.kind == first.kind:
            return match.start()
        if run is not None and first.kind == run.kind and match.start() + first.size == end:
            return match.start()
    return end
