"""Decoding of log-probabilities that come piece by piece: what is held never grows with the recording.

Shape letters: T frames of logits, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from .text import Decoder, Hypothesis, TimedText

PART_SECONDS = 60.0  # up to twice as much is decoded at once
_SPACES = ("▁", "Ġ", " ")  # tokens that begin a word begin with one: SentencePiece, byte-level BPE, plain vocabularies


def decode_pieces(
    pieces: Iterable[torch.Tensor],
    decoder: Decoder,
    tokenizer: PreTrainedTokenizerBase,
    seconds_per_frame: float,
    part_seconds: float = PART_SECONDS,
) -> list[Hypothesis]:
    """The reading of a recording of any length.

    Up to twice `part_seconds` is decoded whole. More is cut where a word begins, at the longest pause that offers
    itself, and the best readings of the parts are joined. Greedy decoding gives what it gives on the whole; a beam
    search takes a cut for the end of a sentence.

    Args:
        pieces: (T, V) log-probabilities each, one after the other.
        decoder: of the parts.
        tokenizer: tells which tokens begin a word.
        seconds_per_frame: seconds between two frames.
        part_seconds: the least duration of a part but the last.

    Returns:
        The readings, the best one first; of a recording in parts only the best one. Never empty.
    """
    cutter = _Cutter(tokenizer, max(1, round(part_seconds / seconds_per_frame)))
    whole: list[Hypothesis] = []
    place = 0
    for part, begins_word in cutter.parts(pieces):
        readings = decoder(part[None], torch.tensor([len(part)]))[0] or [Hypothesis("", 0.0, [])]
        if place:
            readings = [_joined(whole[0], _moved(readings[0], place * seconds_per_frame), begins_word)]
        whole = readings
        place += len(part)
    return whole or [Hypothesis("", 0.0, [])]


class _Cutter:
    """Cuts the log-probabilities of a recording into parts that can be decoded one by one.

    Args:
        tokenizer: with a word delimiter, or with tokens that bring their own space, or with neither.
        frames: in a part at least; at most twice as many.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, frames: int):
        self.frames, self.blank = frames, tokenizer.pad_token_id
        delimiter = getattr(tokenizer, "word_delimiter_token", None)
        spaces = _SPACES if delimiter is None else (delimiter,)
        vocabulary = tokenizer.get_vocab()
        self.spaces = [vocabulary[token] for token in spaces if token in vocabulary]  # that write nothing but a space
        starts = [index for token, index in vocabulary.items() if delimiter is None and token.startswith(spaces)]
        self.beginnings = starts + self.spaces  # of words

    def parts(self, pieces: Iterable[torch.Tensor]) -> Iterator[tuple[torch.Tensor, bool]]:
        """The frames in parts (T, V), and whether a part begins with a new word."""
        held, count = [], 0
        begins_word = True
        for piece in pieces:
            held.append(piece)
            count += len(piece)
            while count > 2 * self.frames:
                together = torch.cat(held)
                ids = together[: 2 * self.frames].argmax(-1).numpy()
                cut = self.best_cut(ids)
                yield together[:cut].clone(), begins_word
                # What follows begins a word if it says so itself, or if a space stands last.
                said = ids[:cut][ids[:cut] != self.blank]
                after_space = bool(np.isin(said[-1:], self.spaces).any()) or (begins_word and not len(said))
                held, count = [together[cut:].clone()], count - cut
                begins_word = after_space or self._begins_word(held[0])
        if count:
            yield torch.cat(held), begins_word

    def _begins_word(self, part: torch.Tensor) -> bool:
        ids = part.argmax(-1).numpy()
        return bool(np.isin(ids[ids != self.blank][:1], self.beginnings).any())

    def best_cut(self, ids: NDArray[np.int64]) -> int:
        """Where to cut the best path (T,), not before `frames`.

        A cut lies where a token begins, so that no token is in two parts: at the beginning of the word with the
        longest pause before it, or of any token where no word begins.
        """
        starts = np.flatnonzero((ids[1:] != ids[:-1]) & (ids[1:] != self.blank)) + 1
        starts = starts[starts >= self.frames]
        words = starts[np.isin(ids[starts], self.beginnings)]
        candidates = words if len(words) else starts
        if not len(candidates):
            return len(ids)  # one token or blank for as long as a part
        # A pause reaches from the last frame that says something to the next one.
        silent = np.isin(ids, [self.blank, *self.spaces])
        frames = np.arange(len(ids))
        before = np.maximum.accumulate(np.where(silent, 0, frames))[candidates - 1]
        after = np.minimum.accumulate(np.where(silent, len(ids), frames)[::-1])[::-1][candidates]
        return int(candidates[np.argmax(after - before)])


def _moved(reading: Hypothesis, seconds: float) -> Hypothesis:
    if reading.words is None:
        return reading
    words = [TimedText(word.text, word.start + seconds, word.end + seconds) for word in reading.words]
    return Hypothesis(reading.text, reading.score, words)


def _joined(first: Hypothesis, second: Hypothesis, begins_word: bool) -> Hypothesis:
    """Two readings as one; unless a word begins between them, the last and the first word are one."""
    space = " " if begins_word and first.text and second.text else ""
    words = None
    if first.words is not None and second.words is not None:
        words = first.words + second.words
        if not begins_word and first.words and second.words:
            last, rest = first.words[-1], second.words[0]
            words = [*first.words[:-1], TimedText(last.text + rest.text, last.start, rest.end), *second.words[1:]]
    return Hypothesis(first.text + space + second.text, first.score + second.score, words)
