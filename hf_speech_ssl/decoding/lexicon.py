"""Which words a beam search may write, and how each is spelt with the tokenizer's tokens."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

from transformers import Wav2Vec2CTCTokenizer

from .ngram import open_text

logger = logging.getLogger(__name__)

Spelling = tuple[int, ...]
Lexicon = dict[str, set[Spelling]]


class Speller:
    """Words as token ids."""

    def __init__(self, tokenizer: Wav2Vec2CTCTokenizer) -> None:
        special = {*tokenizer.all_special_ids, tokenizer.word_delimiter_token_id}
        self.tokens = {token: index for token, index in tokenizer.get_vocab().items() if index not in special}
        self.delimiter = tokenizer.word_delimiter_token

    def token(self, token: str) -> int | None:
        """Its id, or that of its other case."""
        return next((self.tokens[one] for one in (token, token.lower(), token.upper()) if one in self.tokens), None)

    def missing(self, tokens: Iterable[str]) -> list[str]:
        return sorted({token for token in tokens if self.token(token) is None})

    def spell(self, tokens: Iterable[str]) -> Spelling:
        return tuple(index for token in tokens if (index := self.token(token)) is not None)


def spell_words(words: list[str], tokenizer: Wav2Vec2CTCTokenizer, source: str) -> Lexicon:
    """The words that the tokenizer can spell."""
    speller = Speller(tokenizer)
    lexicon = {word: {speller.spell(word)} for word in words if not speller.missing(word)}
    left_out = [word for word in words if word not in lexicon]
    if not lexicon:
        raise ValueError(
            f"The tokenizer can spell none of the {len(words)} words of {source}: {left_out[0]!r} needs "
            f"{speller.missing(left_out[0])}."
        )
    if left_out:
        logger.warning(
            "The tokenizer cannot spell %d of the %d words of %s, which will not be found: %s%s",
            *(len(left_out), len(words), source, ", ".join(left_out[:5]), ", ..." if len(left_out) > 5 else ""),
        )
    return lexicon


def read_lexicon(path: str | Path, tokenizer: Wav2Vec2CTCTokenizer) -> Lexicon:
    """The words of a lexicon file with their spellings."""
    speller = Speller(tokenizer)
    lexicon: Lexicon = {}
    with open_text(path) as file:
        for number, line in enumerate(file, start=1):
            word, _, spelling = (part.strip() for part in line.partition("\t"))
            if not word and not spelling:
                continue
            tokens = spelling.split() if spelling else list(word)
            if tokens[-1:] == [speller.delimiter]:
                tokens.pop()  # where other tools want it
            if not word or not tokens or len(word.split()) > 1:
                raise ValueError(
                    f"{path}, line {number}: needed one word, or 'word<TAB>s p e l l i n g', got {line.strip()!r}."
                )
            if missing := speller.missing(tokens):
                raise ValueError(
                    f"{path}, line {number}: the tokenizer has no {', '.join(map(repr, missing))} to spell {word!r} "
                    "with; spell it otherwise after a tab, or take it out."
                )
            lexicon.setdefault(word, set()).add(speller.spell(tokens))
    if not lexicon:
        raise ValueError(f"The lexicon {path} holds no words; needed: one word a line.")
    return lexicon
