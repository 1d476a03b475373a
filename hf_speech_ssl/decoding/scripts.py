"""Where a text may be divided that has no spaces: between which of its characters, and how wide they are."""

from __future__ import annotations

import unicodedata
from bisect import bisect_right

# First and last code points of scripts that put no spaces between words. Korean does, so Hangul is not among them.
_WITHOUT_SPACES = [
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x0F00, 0x109F),  # Tibetan, Burmese
    (0x1780, 0x17FF),  # Khmer
    (0x1950, 0x19FF),  # Tai Le, New Tai Lue, Khmer symbols
    (0x1A20, 0x1AAF),  # Tai Tham
    (0x3001, 0x30FF),  # CJK punctuation, Hiragana, Katakana
    (0x31F0, 0x31FF),  # Katakana extensions
    (0x3400, 0x4DBF),  # Han
    (0x4E00, 0x9FFF),
    (0xA980, 0xA9DF),  # Javanese
    (0xF900, 0xFAFF),
    (0xFF00, 0xFF9F),  # full-width forms, half-width Katakana
    (0x20000, 0x3FFFF),
]
_STARTS = [first for first, _ in _WITHOUT_SPACES]
_BEFORE_THEIR_CONSONANT = frozenset("เแโใไເແໂໃໄ")  # vowels of Thai and Lao
_AFTER_THEIR_CONSONANT = frozenset("ะาำๅๆฯະາຳຽໆຯ")
_OPENING, _CLOSING = ("Ps", "Pi"), ("Mn", "Mc", "Me", "Lm", "Pe", "Pf", "Po")


def may_divide(before: str, after: str) -> bool:
    """Whether a text may be divided between two pieces of it: one of the characters that meet there is of a script
    without spaces, and neither belongs to the other, as marks and closing punctuation do.

    Args:
        before, after: not empty; only the last and the first character count.
    """
    last, first = before[-1], after[0]
    if last.isascii() and first.isascii():
        return False
    if last in _BEFORE_THEIR_CONSONANT or first in _AFTER_THEIR_CONSONANT:
        return False
    if unicodedata.category(last) in _OPENING or unicodedata.category(first) in _CLOSING:
        return False
    return _is_without_spaces(last) or _is_without_spaces(first)


def columns(text: str) -> int:
    """How many columns a text fills in a fixed-width font: two for a wide character, none for a combining mark."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(char) else 1 + (unicodedata.east_asian_width(char) in ("W", "F")) for char in text
    )


def split_columns(text: str, width: int) -> list[str]:
    """A text in pieces that fill at most so many columns, at least 2; marks stay with their characters."""
    pieces, filled = [""], 0
    for char in text:
        filled += columns(char)
        if filled > width:
            pieces.append("")
            filled = columns(char)
        pieces[-1] += char
    return pieces if text else []


def _is_without_spaces(char: str) -> bool:
    place = bisect_right(_STARTS, ord(char)) - 1
    return place >= 0 and ord(char) <= _WITHOUT_SPACES[place][1]
