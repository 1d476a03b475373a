"""Where the best path of a long recording is cut, so that its parts can be decoded one by one.

Shape letters: T frames.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class PartCutter:
    """Cuts a recording into parts at the beginning of words.

    Args:
        blank: token id of the blank.
        delimiter: token id of the word delimiter, if there is one.
        frames: frames in a part at least; at most twice as many.
    """

    def __init__(self, blank: int, delimiter: int | None, frames: int):
        self.blank, self.delimiter, self.frames = blank, blank if delimiter is None else delimiter, frames

    def best_cut(self, ids: NDArray[np.int64]) -> int:
        """Where to cut the best path (T,), not before `frames`.

        A cut lies where a token begins, so that no token is in two parts: at the delimiter with the longest pause
        around it, or at any token where there is no delimiter.
        """
        starts = np.flatnonzero((ids[1:] != ids[:-1]) & (ids[1:] != self.blank)) + 1
        starts = starts[starts >= self.frames]
        delimiters = starts[ids[starts] == self.delimiter]
        candidates = delimiters if len(delimiters) else starts
        if not len(candidates):
            return len(ids)  # one token or blank for as long as a part
        # A pause reaches from the last frame with a character to the next one.
        silent = np.isin(ids, [self.blank, self.delimiter])
        frames = np.arange(len(ids))
        before = np.maximum.accumulate(np.where(silent, 0, frames))[candidates - 1]
        after = np.minimum.accumulate(np.where(silent, len(ids), frames)[::-1])[::-1][candidates]
        return int(candidates[np.argmax(after - before)])

    def first_is_delimiter(self, ids: NDArray[np.int64]) -> bool:
        """Whether the first token of a path is the delimiter, or there is none."""
        tokens = ids[ids != self.blank]
        return not len(tokens) or bool(tokens[0] == self.delimiter)

    def last_is_delimiter(self, ids: NDArray[np.int64]) -> bool:
        """Whether the last token of a path is the delimiter, or there is none."""
        return self.first_is_delimiter(ids[::-1])
