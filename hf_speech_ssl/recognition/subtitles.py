"""Words with times as subtitles that a person can read: SubRip (SRT) and WebVTT."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..decoding.scripts import columns, split_columns
from ..decoding.text import TimedText

LINE_LENGTH = 42  # columns, what broadcasters allow; a Chinese character fills two
MAX_LINES = 2
MAX_SECONDS = 7.0  # that a cue stays
MIN_SECONDS = 1.0  # that a cue stays where the next one leaves it room
PAUSE_SECONDS = 0.8  # of silence end a cue
_SENTENCE_END = (".", "?", "!", "。", "？", "！")
_SENTENCE_BONUS = 0.5  # a break there is as good as a pause longer by so many seconds


@dataclass(frozen=True)
class Cue:
    """What is on the screen from `start` to `end`, in whole milliseconds."""

    start: int
    end: int
    lines: tuple[str, ...]


def make_cues(words: Sequence[TimedText]) -> list[Cue]:
    """Break words into cues of at most two lines of 42 columns and 7 s.

    A cue ends at a pause of 0.8 s. Where it has to end before one, it does at the longest pause, or the end of a
    sentence, in its second half. A short cue stays for a second if nothing follows in it.

    Args:
        words: in the order in which they are spoken. White space within a word becomes one space; a word that is
            longer than a line is divided. Words that are joined have no space between them.

    Returns:
        Cues that follow each other without an overlap, none of them empty.
    """
    words = _readable(words)
    cues: list[Cue] = []
    begin = 0
    while begin < len(words):
        end = _end_of_cue(words, begin)
        shown = words[begin:end]
        # Times that overlap or have no duration would make players drop a cue.
        start = max(_milliseconds(shown[0].start), cues[-1].end if cues else 0)
        stays = max(_milliseconds(shown[-1].end), start + 1)
        least = start + _milliseconds(MIN_SECONDS)
        if end < len(words):
            least = min(least, _milliseconds(words[end].start))
        cues.append(Cue(start, max(stays, least), tuple(_lines(shown))))
        begin = end
    return cues


@dataclass
class CueStream:
    """The cues of words that come one after the other; together they are those of all words.

    Attributes:
        number: of cues that have been shown; whoever shows them counts.
    """

    number: int = 0
    _words: list[TimedText] = field(default_factory=list)  # of the last cue that is complete, and those behind it
    _has_shown: bool = False  # whether the first cue of these words is complete

    def add(self, words: Sequence[TimedText]) -> list[Cue]:
        """The cues that are complete, because a word of the next one has come."""
        self._words += words
        complete = []
        while len(cues := make_cues(self._words)) > 1 + self._has_shown:
            if self._has_shown:  # the words before it only say where the next cue may begin
                self._words = [one for one in self._words if _milliseconds(one.start) >= cues[1].start]
                cues = make_cues(self._words)
            complete.append(cues[0])
            self._has_shown = True
        return complete

    def finish(self) -> list[Cue]:
        """The last cues."""
        return make_cues(self._words)[self._has_shown :]


def format_srt(cues: Sequence[Cue], first: int = 1) -> str:
    """A SubRip file, or a part of it. The format knows no escapes: an arrow "-->" in a text is written as "->".

    Args:
        first: number of the first cue.
    """
    blocks = []
    for number, cue in enumerate(cues, start=first):
        lines = re.sub("--+>", "->", "\n".join(cue.lines))
        blocks.append(f"{number}\n{_clock(cue.start, ',')} --> {_clock(cue.end, ',')}\n{lines}\n")
    return "\n".join(blocks)


def format_vtt(cues: Sequence[Cue]) -> str:
    """A WebVTT file; "&", "<" and ">" are escaped, as they begin markup there."""
    blocks = ["WEBVTT\n"]
    for cue in cues:
        lines = html.escape("\n".join(cue.lines), quote=False)
        blocks.append(f"{_clock(cue.start, '.')} --> {_clock(cue.end, '.')}\n{lines}\n")
    return "\n".join(blocks)


def _readable(words: Sequence[TimedText]) -> list[TimedText]:
    """The words with something in them, divided where they do not fit into a line, none of them too long to show."""
    readable = []
    for word in words:
        pieces = [
            (piece, word.joined if not (part or index) else index > 0)
            for part, text in enumerate(word.text.split())
            for index, piece in enumerate(split_columns(text, LINE_LENGTH))
        ]
        step = max(0.0, word.end - word.start) / max(1, len(pieces))
        for index, (piece, joined) in enumerate(pieces):
            start = word.start + index * step
            readable.append(TimedText(piece, start, start + min(step, MAX_SECONDS), joined))
    return readable


def _end_of_cue(words: Sequence[TimedText], begin: int) -> int:
    """The index of the word after the cue that begins with word `begin`."""
    end = begin + 1
    while end < len(words) and _pause_before(words, end) < PAUSE_SECONDS:
        if not _fits(words[begin : end + 1]):
            middle = begin + (end - begin + 1) // 2
            return max(range(middle, end + 1), key=lambda place: (_worth(words, place), place))
        end += 1
    return end


def _pause_before(words: Sequence[TimedText], place: int) -> float:
    return words[place].start - words[place - 1].end


def _worth(words: Sequence[TimedText], place: int) -> float:
    """How good it is to end a cue before word `place`."""
    return _pause_before(words, place) + _SENTENCE_BONUS * words[place - 1].text.endswith(_SENTENCE_END)


def _fits(words: Sequence[TimedText]) -> bool:
    return words[-1].end - words[0].start <= MAX_SECONDS and len(_lines(words)) <= MAX_LINES


def _lines(words: Sequence[TimedText]) -> list[str]:
    """As few lines as possible, of about equal length."""
    needed = len(_wrap(words, LINE_LENGTH))
    narrowest = columns("".join(word.text for word in words)) // needed
    widths = range(max(narrowest, *(columns(word.text) for word in words), 1), LINE_LENGTH + 1)
    return next(lines for width in widths if len(lines := _wrap(words, width)) == needed)


def _wrap(words: Sequence[TimedText], width: int) -> list[str]:
    """Fill one line after the other."""
    lines: list[str] = []
    for word in words:
        space = "" if word.joined else " "
        if lines and columns(lines[-1] + space + word.text) <= width:
            lines[-1] += space + word.text
        else:
            lines.append(word.text)
    return lines


def _milliseconds(seconds: float) -> int:
    return max(0, round(seconds * 1000))


def _clock(milliseconds: int, separator: str) -> str:
    seconds, rest = divmod(milliseconds, 1000)
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}{separator}{rest:03d}"
