"""From decoded tokens to text, and to words with times."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
from transformers import PreTrainedTokenizerBase, Wav2Vec2CTCTokenizer

from .collapse import TokenSpan
from .scripts import may_divide

WORD_START = "\u2581"  # SentencePiece's mark of the beginning of a word, a low block
WORD_MARKS = (WORD_START, "Ġ")  # and that of byte-level BPE
LONGEST_WORD = 60  # tokens; more without a delimiter are divided
LONGEST_PAUSE = 1.0  # seconds; a longer pause divides what no delimiter divides


@dataclass(frozen=True)
class TimedText:
    """A character or a word, with the seconds from where it begins to be emitted to where it ends.

    Attributes:
        joined: whether no space stands between this word and the one before it.
        confidence: of a word, between 0 and 1; `None` where the decoder has none. It is the product over the word's
            tokens of the probability that the model gives each at its best frame. `benchmarks/confidence.py` measures
            how often words of a confidence are right.
    """

    text: str
    start: float
    end: float
    joined: bool = False
    confidence: float | None = field(default=None, compare=False)

    def moved(self, seconds: float) -> TimedText:
        """The same that many seconds later."""
        return replace(self, start=self.start + seconds, end=self.end + seconds)


@dataclass(frozen=True)
class Hypothesis:
    """One possible transcript of an utterance.

    Attributes:
        text: as the tokenizer writes it, spaces between words.
        score: the higher the better, comparable within one utterance and decoder only: a log-probability, language
            model and word bonus included where there are any.
        words: the same text with times; `None` where the tokenizer does not say where words end. Where it has no
            spaces, as in Chinese or Thai, its characters.
    """

    text: str
    score: float
    words: list[TimedText] | None = None


@dataclass(frozen=True)
class StreamingText:
    """The transcript of a stream so far.

    Attributes:
        text: everything; its last word may still grow.
        final: the part of `text` that will not change any more: it only ever grows, and `text` begins with it.
        words: the words of `text` with times; `None` where the tokenizer or the decoder does not tell them.
        num_final_words: so many of them, from the first on, will not change any more.
        end: seconds at which the last token ends; 0 where there is none.
    """

    text: str
    final: str
    words: Sequence[TimedText] | None = None
    num_final_words: int = 0
    end: float = 0.0


class Spelling(Protocol):
    """How the tokens of a tokenizer make words."""

    def is_delimiter(self, token_id: int) -> bool:
        """Whether a token stands between words and belongs to none."""

    def begins_word(self, token_id: int) -> bool:
        """Whether a token is the first one of a word."""

    def piece(self, token_id: int) -> str:
        """The characters of a token."""

    def text(self, token_ids: Sequence[int]) -> str:
        """The text of the tokens of a word, merged already."""


@dataclass(frozen=True)
class CharacterSpelling:
    """Characters, with a delimiter between words."""

    tokenizer: Wav2Vec2CTCTokenizer

    def is_delimiter(self, token_id: int) -> bool:
        return token_id == self.tokenizer.word_delimiter_token_id

    def begins_word(self, token_id: int) -> bool:
        return False

    def piece(self, token_id: int) -> str:
        return str(self.tokenizer.convert_ids_to_tokens(token_id))

    def text(self, token_ids: Sequence[int]) -> str:
        return ctc_text(token_ids, self.tokenizer)


@dataclass(frozen=True)
class PieceSpelling:
    """Pieces of words, as of SentencePiece or BPE, of which the first one of a word begins with a mark."""

    tokenizer: PreTrainedTokenizerBase

    def is_delimiter(self, token_id: int) -> bool:
        return False

    def begins_word(self, token_id: int) -> bool:
        return str(self.tokenizer.convert_ids_to_tokens(token_id)).startswith(WORD_MARKS)

    def piece(self, token_id: int) -> str:
        return str(self.tokenizer.convert_ids_to_tokens(token_id)).lstrip("".join(WORD_MARKS))

    def text(self, token_ids: Sequence[int]) -> str:
        return decoded(token_ids, self.tokenizer).strip()


class TextBuilder(Protocol):
    """Makes text of tokens that come one after the other."""

    def add(self, span: TokenSpan) -> None:
        """Append a token."""

    def extend(self, end_frame: int, log_prob: float) -> None:
        """Move the end of the last token, which goes on in frames that came later."""

    def partial(self) -> StreamingText:
        """The text so far."""

    def divide(self, frames: int) -> tuple[TextBuilder, int]:
        """Leave the last word, which may still grow, to another builder, unless it is the only one.

        Args:
            frames: that have come.

        Returns:
            The other builder, whose frames count from the beginning of that word, and that frame.
        """

    def fork(self) -> TextBuilder:
        """A copy that goes on by itself."""

    def finished(self) -> tuple[str, list[TimedText] | None]:
        """The whole text, and its words with times."""


@dataclass
class WordText:
    """Text in words with times. What a token costs does not depend on how many came before it.

    A word ends at a delimiter, or where the next one begins. Where there is neither, it ends between characters of a
    script without spaces, at a pause of a second, and, if it has 60 tokens, at its longest pause. A word that has
    ended does not change any more.

    Args:
        spelling: how tokens make words.
        seconds_per_frame: seconds between two frames.
        space: what stands between words.
    """

    spelling: Spelling
    seconds_per_frame: float
    space: str = " "
    words: list[TimedText] = field(default_factory=list)  # that have ended
    _text: str = ""  # of these words, with the spaces between them and behind them
    _new: list[str] = field(default_factory=list)  # what is not yet in that text
    _last_word: list[TokenSpan] = field(default_factory=list)
    _joined: bool = False  # whether the last word follows the word before it without a space
    _end_frame: int = 0  # after the last token

    def __post_init__(self) -> None:
        _check_frame(self.seconds_per_frame)

    def add(self, span: TokenSpan) -> None:
        self._end_frame = span.end_frame
        delimiter = self.spelling.is_delimiter(span.token_id)
        if delimiter or self.spelling.begins_word(span.token_id):
            self._end_word(len(self._last_word))
            self._new.append(self.space)
            self._joined = False
        elif self._last_word:
            self._divide_before(span)
        if not delimiter:
            self._last_word.append(span)

    def extend(self, end_frame: int, log_prob: float) -> None:
        self._end_frame = end_frame
        if self._last_word:
            last = self._last_word[-1]
            best = log_prob if last.log_prob is None else max(last.log_prob, log_prob)
            self._last_word[-1] = last._replace(end_frame=end_frame, log_prob=best)

    def partial(self) -> StreamingText:
        ended, words = self._ended_text(), self.words
        if text := self._text_of(self._last_word):
            words = [*words, self._timed(text, self._last_word)]
        end = self._end_frame * self.seconds_per_frame
        return StreamingText((ended + text).strip(), ended.strip(), words, len(self.words), end)

    def divide(self, frames: int) -> tuple[WordText, int]:
        rest = WordText(self.spelling, self.seconds_per_frame, self.space)
        if not self.words or not self._last_word:
            return rest, frames
        begin = self._last_word[0].start_frame
        moved = [one._replace(start_frame=one.start_frame - begin, end_frame=one.end_frame - begin)
                 for one in self._last_word]  # fmt: skip
        self._last_word, rest._last_word, rest._end_frame = [], moved, self._end_frame - begin
        return rest, begin

    def fork(self) -> WordText:
        return replace(self, words=list(self.words), _new=list(self._new), _last_word=list(self._last_word))

    def finished(self) -> tuple[str, list[TimedText]]:
        self._end_word(len(self._last_word))
        return self._ended_text().strip(), self.words

    def _ended_text(self) -> str:
        if self._new:
            self._text, self._new = self._text + "".join(self._new), []
        return self._text

    def _divide_before(self, span: TokenSpan) -> None:
        last = self._last_word[-1]
        before, after = (self.spelling.piece(one.token_id) for one in (last, span))
        pause = (span.start_frame - last.end_frame) * self.seconds_per_frame
        if pause >= LONGEST_PAUSE or (before and after and may_divide(before, after)):
            self._end_word(len(self._last_word))
        elif len(self._last_word) == LONGEST_WORD:
            ends = np.array([one.end_frame for one in self._last_word])
            starts = np.array([one.start_frame for one in [*self._last_word[1:], span]])
            half = LONGEST_WORD // 2
            self._end_word(half + 1 + int(np.argmax((starts - ends)[half:])))

    def _end_word(self, length: int) -> None:
        """End a word after so many tokens; the others are the beginning of the next one."""
        ended, self._last_word = self._last_word[:length], self._last_word[length:]
        if text := self._text_of(ended):
            self.words.append(self._timed(text, ended))
            self._new.append(text)
        self._joined = bool(ended)

    def _timed(self, text: str, spans: Sequence[TokenSpan]) -> TimedText:
        start, end = spans[0].start_frame * self.seconds_per_frame, spans[-1].end_frame * self.seconds_per_frame
        return TimedText(text, start, end, self._joined, word_confidence(spans))

    def _text_of(self, spans: Sequence[TokenSpan]) -> str:
        return self.spelling.text([span.token_id for span in spans]) if spans else ""


@dataclass
class PlainText:
    """The text of a tokenizer that does not mark where words begin; its words have no times.

    Args:
        tokenizer: with a pad token, the blank.
        seconds_per_frame: seconds between two frames.
    """

    tokenizer: PreTrainedTokenizerBase
    seconds_per_frame: float
    _ids: list[int] = field(default_factory=list)
    _end_frame: int = 0

    def add(self, span: TokenSpan) -> None:
        self._ids.append(span.token_id)
        self._end_frame = span.end_frame

    def extend(self, end_frame: int, log_prob: float) -> None:
        self._end_frame = end_frame

    def fork(self) -> PlainText:
        return replace(self, _ids=list(self._ids))

    def partial(self) -> StreamingText:
        text, _ = self.finished()
        end = self._end_frame * self.seconds_per_frame
        return StreamingText(text, text.rpartition(" ")[0].rstrip(), end=end)

    def divide(self, frames: int) -> tuple[PlainText, int]:
        return PlainText(self.tokenizer, self.seconds_per_frame), frames

    def finished(self) -> tuple[str, None]:
        return decoded(self._ids, self.tokenizer).strip(), None


def make_text_builder(tokenizer: PreTrainedTokenizerBase, seconds_per_frame: float) -> TextBuilder:
    """The builder for a tokenizer."""
    spelling = make_spelling(tokenizer)
    if spelling is None:
        return PlainText(tokenizer, seconds_per_frame)
    return WordText(spelling, seconds_per_frame, getattr(tokenizer, "replace_word_delimiter_char", " "))


def make_spelling(tokenizer: PreTrainedTokenizerBase) -> Spelling | None:
    """How a tokenizer's tokens make words; `None` where they do not tell."""
    if isinstance(tokenizer, Wav2Vec2CTCTokenizer):
        return CharacterSpelling(tokenizer)
    return PieceSpelling(tokenizer) if any(word_starts(tokenizer)) else None


def word_confidence(spans: Sequence[TokenSpan]) -> float | None:
    """The confidence of a word's tokens, see [`TimedText`]; `None` where one of them has no probability."""
    known = [span.log_prob for span in spans if span.log_prob is not None]
    return math.exp(min(0.0, sum(known))) if len(known) == len(spans) else None


def word_starts(tokenizer: PreTrainedTokenizerBase) -> list[bool]:
    """For each token id, whether a word begins with it, or behind it if it is a word delimiter."""
    delimiter = getattr(tokenizer, "word_delimiter_token", None)
    pieces = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    return [piece == delimiter or str(piece).startswith(WORD_MARKS) for piece in pieces]


def decoded(token_ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
    """The text of tokens that are merged already."""
    # Tokenizers that merge repeats themselves need a blank in between to keep double letters.
    apart = [token for token_id in token_ids for token in (token_id, tokenizer.pad_token_id)]
    return str(tokenizer.decode(apart, skip_special_tokens=True))


def ctc_text(token_ids: Sequence[int], tokenizer: Wav2Vec2CTCTokenizer) -> str:
    """The text of token ids that are merged already (by `greedy_ctc` or a beam search), or of label ids."""
    return tokenizer.decode(list(token_ids), group_tokens=False)


def character_times(
    spans: Sequence[TokenSpan], tokenizer: Wav2Vec2CTCTokenizer, seconds_per_frame: float
) -> list[TimedText]:
    """Characters with times; spaces between words are characters too.

    Args:
        spans: of one utterance, from `greedy_ctc_spans`.
        seconds_per_frame: `config.inputs_to_logits_ratio / feature_extractor.sampling_rate`.

    Raises:
        ValueError: seconds_per_frame is not positive.
    """
    _check_frame(seconds_per_frame)
    tokens = tokenizer.convert_ids_to_tokens([span.token_id for span in spans])
    return [
        TimedText(
            tokenizer.replace_word_delimiter_char if token == tokenizer.word_delimiter_token else token,
            span.start_frame * seconds_per_frame,
            span.end_frame * seconds_per_frame,
        )
        for token, span in zip(tokens, spans, strict=True)
    ]


def word_times(
    spans: Sequence[TokenSpan], tokenizer: Wav2Vec2CTCTokenizer, seconds_per_frame: float
) -> list[TimedText]:
    """Words with times, from the first frame of the first character to the last frame of the last one.

    Arguments and errors as in `character_times`; see [`WordText`] for where words end.
    """
    builder = WordText(CharacterSpelling(tokenizer), seconds_per_frame, tokenizer.replace_word_delimiter_char)
    for span in spans:
        builder.add(span)
    return builder.finished()[1]


def _check_frame(seconds: float) -> None:
    if not (np.isfinite(seconds) and seconds > 0):
        raise ValueError(f"seconds_per_frame must be positive, got {seconds}.")


def move_hypothesis(hypothesis: Hypothesis, seconds: float) -> Hypothesis:
    """The same hypothesis that many seconds later."""
    if hypothesis.words is None:
        return hypothesis
    return Hypothesis(hypothesis.text, hypothesis.score, [word.moved(seconds) for word in hypothesis.words])


def _one_word(first: TimedText, second: TimedText) -> TimedText:
    """The two halves of a word."""
    confidence = None
    if first.confidence is not None and second.confidence is not None:
        confidence = first.confidence * second.confidence
    return TimedText(first.text + second.text, first.start, second.end, first.joined, confidence)


def join_hypotheses(first: Hypothesis, second: Hypothesis, begins_word: bool) -> Hypothesis:
    """Two hypotheses of parts that follow each other as one.

    Args:
        begins_word: whether the second part begins with a new word. Otherwise the last and the first word are one, or
            two without a space between them where their script has none.
    """
    space = " " if begins_word and first.text and second.text else ""
    words = None
    if first.words is not None and second.words is not None:
        words = first.words + second.words
        if not begins_word and first.words and second.words:
            last, rest = first.words[-1], second.words[0]
            if may_divide(last.text, rest.text) or rest.start - last.end >= LONGEST_PAUSE:
                middle = [last, replace(rest, joined=True)]
            else:
                middle = [_one_word(last, rest)]
            words = [*first.words[:-1], *middle, *second.words[1:]]
    return Hypothesis(first.text + space + second.text, first.score + second.score, words)
