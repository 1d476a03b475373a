"""From decoded tokens to text, and to words with times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
from transformers import PreTrainedTokenizerBase, Wav2Vec2CTCTokenizer

from .collapse import TokenSpan
from .scripts import may_divide

LONGEST_WORD = 60  # characters; more without a delimiter are divided
WORD_START = "\u2581"  # SentencePiece's mark of the beginning of a word, a low block
LONGEST_PAUSE = 1.0  # seconds; a longer pause divides what no delimiter divides


@dataclass(frozen=True)
class TimedText:
    """A character or a word, with the seconds from where it begins to be emitted to where it ends.

    Attributes:
        joined: whether no space stands between this word and the one before it.
    """

    text: str
    start: float
    end: float
    joined: bool = False


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
    """

    text: str
    final: str


class TextBuilder(Protocol):
    """Makes text of tokens that come one after the other."""

    def add(self, span: TokenSpan) -> None:
        """Append a token."""

    def extend(self, end_frame: int) -> None:
        """Move the end of the last token, which goes on in frames that came later."""

    def partial(self) -> StreamingText:
        """The text so far."""

    def fork(self) -> TextBuilder:
        """A copy, for tokens that may turn out to be others."""

    def finished(self) -> tuple[str, list[TimedText] | None]:
        """The whole text, and its words with times."""


@dataclass
class CharacterText:
    """The text of a character tokenizer. What a token costs does not depend on how many came before it.

    A word ends at a delimiter. Where there is none, it ends between characters of a script without spaces, at a pause
    of a second, and, if it has 60 characters, at its longest pause. A word that has ended does not change any more.

    Args:
        tokenizer: with a word delimiter.
        seconds_per_frame: seconds between two frames.
    """

    tokenizer: Wav2Vec2CTCTokenizer
    seconds_per_frame: float
    words: list[TimedText] = field(default_factory=list)  # that have ended
    _text: str = ""  # of these words, with the spaces between them and behind them
    _new: list[str] = field(default_factory=list)  # what is not yet in that text
    _last_word: list[TokenSpan] = field(default_factory=list)
    _joined: bool = False  # whether the last word follows the word before it without a space

    def __post_init__(self) -> None:
        _check_frame(self.seconds_per_frame)

    def add(self, span: TokenSpan) -> None:
        if span.token_id == self.tokenizer.word_delimiter_token_id:
            self._end_word(len(self._last_word))
            self._new.append(self.tokenizer.replace_word_delimiter_char)
            self._joined = False
            return
        if self._last_word:
            self._divide_before(span)
        self._last_word.append(span)

    def extend(self, end_frame: int) -> None:
        if self._last_word:
            self._last_word[-1] = self._last_word[-1]._replace(end_frame=end_frame)

    def partial(self) -> StreamingText:
        ended = self._ended_text()
        return StreamingText((ended + self._text_of(self._last_word)).strip(), ended.strip())

    def fork(self) -> CharacterText:
        lists = {"words": self.words, "_new": self._new, "_last_word": self._last_word}
        return replace(self, **{name: list(values) for name, values in lists.items()})

    def finished(self) -> tuple[str, list[TimedText]]:
        self._end_word(len(self._last_word))
        return self._ended_text().strip(), self.words

    def _ended_text(self) -> str:
        if self._new:
            self._text, self._new = self._text + "".join(self._new), []
        return self._text

    def _divide_before(self, span: TokenSpan) -> None:
        last = self._last_word[-1]
        before, after = (str(self.tokenizer.convert_ids_to_tokens(one.token_id)) for one in (last, span))
        pause = (span.start_frame - last.end_frame) * self.seconds_per_frame
        if pause >= LONGEST_PAUSE or may_divide(before, after):
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
            start, end = (ended[0].start_frame, ended[-1].end_frame)
            self.words.append(
                TimedText(text, start * self.seconds_per_frame, end * self.seconds_per_frame, self._joined)
            )
            self._new.append(text)
        self._joined = bool(ended)

    def _text_of(self, spans: Sequence[TokenSpan]) -> str:
        return ctc_text([span.token_id for span in spans], self.tokenizer) if spans else ""


@dataclass
class SentencePieceText:
    """The text of a tokenizer whose pieces say where words begin: "▁" stands before a word. Words have times.

    In a script without spaces, a word ends with a piece; see [`may_divide`].

    Args:
        tokenizer: with a pad token, the blank.
        seconds_per_frame: seconds between two frames.
    """

    tokenizer: PreTrainedTokenizerBase
    seconds_per_frame: float
    words: list[TimedText] = field(default_factory=list)  # that have ended
    _text: str = ""  # of these words
    _last_word: list[TokenSpan] = field(default_factory=list)
    _last_text: str = ""
    _joined: bool = False

    def __post_init__(self) -> None:
        _check_frame(self.seconds_per_frame)

    def add(self, span: TokenSpan) -> None:
        piece = str(self.tokenizer.convert_ids_to_tokens(span.token_id))
        if piece.startswith(WORD_START):
            self._end_word(joined=False)
        elif self._last_text and may_divide(self._last_text, piece):
            self._end_word(joined=True)
        self._last_word.append(span)
        self._last_text = decoded([one.token_id for one in self._last_word], self.tokenizer).strip()

    def extend(self, end_frame: int) -> None:
        if self._last_word:
            self._last_word[-1] = self._last_word[-1]._replace(end_frame=end_frame)

    def partial(self) -> StreamingText:
        return StreamingText(self._with_space(self._last_text), self._text)

    def fork(self) -> SentencePieceText:
        return replace(self, words=list(self.words), _last_word=list(self._last_word))

    def finished(self) -> tuple[str, list[TimedText]]:
        self._end_word(joined=False)
        return self._text, self.words

    def _with_space(self, text: str) -> str:
        return f"{self._text}{'' if self._joined or not self._text or not text else ' '}{text}"

    def _end_word(self, joined: bool) -> None:
        """End the last word, if there is one; the next one follows it with or without a space."""
        if self._last_text:
            start, end = self._last_word[0].start_frame, self._last_word[-1].end_frame
            times = (start * self.seconds_per_frame, end * self.seconds_per_frame)
            self.words.append(TimedText(self._last_text, *times, self._joined))
            self._text, self._joined = self._with_space(self._last_text), joined
        self._last_word, self._last_text = [], ""


@dataclass
class PieceText:
    """The text of a tokenizer whose tokens are pieces of anything; its words have no times.

    Args:
        tokenizer: with a pad token, the blank.
    """

    tokenizer: PreTrainedTokenizerBase
    _ids: list[int] = field(default_factory=list)

    def add(self, span: TokenSpan) -> None:
        self._ids.append(span.token_id)

    def extend(self, end_frame: int) -> None:
        pass  # tokens have no times

    def fork(self) -> PieceText:
        return replace(self, _ids=list(self._ids))

    def partial(self) -> StreamingText:
        text, _ = self.finished()
        return StreamingText(text, text.rpartition(" ")[0].rstrip())

    def finished(self) -> tuple[str, None]:
        return decoded(self._ids, self.tokenizer), None


def make_text_builder(tokenizer: PreTrainedTokenizerBase, seconds_per_frame: float) -> TextBuilder:
    """The builder for a tokenizer."""
    if isinstance(tokenizer, Wav2Vec2CTCTokenizer):
        return CharacterText(tokenizer, seconds_per_frame)
    if has_word_starts(tokenizer):
        return SentencePieceText(tokenizer, seconds_per_frame)
    return PieceText(tokenizer)


def has_word_starts(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the pieces that begin words are marked, as SentencePiece does it."""
    return any(piece.startswith(WORD_START) for piece in tokenizer.get_vocab())


def word_starts(tokenizer: PreTrainedTokenizerBase) -> list[bool]:
    """For each token id, whether a word begins with it, or behind it if it is a word delimiter."""
    delimiter = getattr(tokenizer, "word_delimiter_token", None)
    pieces = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    return [piece == delimiter or str(piece).startswith(WORD_START) for piece in pieces]


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

    Arguments and errors as in `character_times`; see [`CharacterText`] for where words end.
    """
    builder = CharacterText(tokenizer, seconds_per_frame)
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
    words = [TimedText(word.text, word.start + seconds, word.end + seconds, word.joined) for word in hypothesis.words]
    return Hypothesis(hypothesis.text, hypothesis.score, words)


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
                middle = [last, TimedText(rest.text, rest.start, rest.end, joined=True)]
            else:
                middle = [TimedText(last.text + rest.text, last.start, rest.end, last.joined)]
            words = [*first.words[:-1], *middle, *second.words[1:]]
    return Hypothesis(first.text + space + second.text, first.score + second.score, words)
