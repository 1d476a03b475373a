"""Ogg: where one recording ends and the next one begins ("chained" files, of which libsndfile reads the first)."""

from __future__ import annotations

from collections.abc import Iterator

from .splice import SplicedFile, end_of_id3

_BEGINS_STREAM = 0x02  # flag of a page
_READ = 1 << 16  # bytes searched at once for the next page where one is broken


def split_ogg(file: SplicedFile) -> list[SplicedFile]:
    """The recordings of an Ogg file, one after the other; a file of one recording is returned as it is.

    The streams of one recording all begin in its first pages. A page that begins a stream behind any other page
    therefore belongs to the next recording.
    """
    begins, in_front = [], False
    for position, flags in _pages(file, end_of_id3(file)):
        begins_stream = bool(flags & _BEGINS_STREAM)
        if begins_stream and not in_front:
            begins.append(position)
        in_front = begins_stream
    if len(begins) < 2:
        return [file]
    return [file.part(begin, end) for begin, end in zip(begins, [*begins[1:], file.size], strict=True)]


def _pages(file: SplicedFile, position: int) -> Iterator[tuple[int, int]]:
    """Position and flags of every page."""
    while position < file.size:
        head = file.at(position, 27 + 255)  # with the longest table of segments
        if head[:4] == b"OggS" and len(head) >= 27:
            segments = head[27 : 27 + head[26]]
            yield position, head[5]
            position += 27 + len(segments) + sum(segments)
            continue
        block = file.at(position + 1, _READ)
        found = block.find(b"OggS")
        position += 1 + (found if found >= 0 else max(1, len(block) - 3))
