"""Phrases that a beam search prefers: a trie of their tokens, and where in it the hypotheses stand."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase, Wav2Vec2CTCTokenizer

from .lexicon import Speller
from .text import word_starts


@dataclass
class HotNode:
    """A beginning of some phrases.

    Attributes:
        children: what may follow, by token.
        pending: the largest share of a phrase's boost that its first tokens have earned for now.
        boost: of the phrase that ends here; 0 where none does.
    """

    children: dict[int, HotNode] = field(default_factory=dict)
    pending: float = 0.0
    boost: float = 0.0


@dataclass(frozen=True)
class HotPlace:
    """Where a hypothesis stands.

    Attributes:
        earned: boosts of the phrases that it holds.
        nodes: beginnings of phrases that it ends with.
    """

    earned: float = 0.0
    nodes: tuple[HotNode, ...] = ()

    @property
    def bonus(self) -> float:
        """What is added to the score: it is taken back if the phrase that is begun does not follow."""
        return self.earned + max((node.pending for node in self.nodes), default=0.0)


class HotWords:
    """Adds to the score of hypotheses that hold certain phrases, as whole words.

    Each token of a phrase adds an equal share of its boost, so that the search does not drop a phrase before it ends;
    a phrase that breaks off, or goes on as a longer word, loses what it had.

    Args:
        tokenizer: says where words begin.
        phrases: boosts by phrase, each a number in units of log-probability: 5 to 15 find what is misspelt by a few
            letters, more writes a phrase where it was not said. A case that the tokenizer does not have is replaced.

    Raises:
        ValueError: a phrase is empty or cannot be spelt, or a boost is not positive.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, phrases: Mapping[str, float]) -> None:
        self.tokenizer, self.starts = tokenizer, word_starts(tokenizer)
        self.delimiter = getattr(tokenizer, "word_delimiter_token_id", None)
        self.root = HotNode()
        for phrase, boost in phrases.items():
            self._insert(phrase, boost)

    def advance(self, place: HotPlace, token: int, begins_word: bool) -> HotPlace:
        """The place behind one more token.

        Args:
            begins_word: whether it is the first token of a word.
        """
        earned = self.finish(place) if self.starts[token] else place.earned
        nodes = [child for node in place.nodes if (child := node.children.get(token)) is not None]
        if begins_word and (child := self.root.children.get(token)) is not None:
            nodes.append(child)
        return HotPlace(earned, tuple(nodes))

    def finish(self, place: HotPlace) -> float:
        """What a hypothesis has earned if its last word ends here."""
        return place.earned + sum(node.boost for node in place.nodes)

    def _insert(self, phrase: str, boost: float) -> None:
        if not (math.isfinite(boost) and boost > 0):
            raise ValueError(f"The boost of a hot word must be above 0, such as 8; {phrase!r} has {boost}.")
        ids = self._spell(phrase)
        node = self.root
        for place, token in enumerate(ids, start=1):
            node = node.children.setdefault(token, HotNode())
            node.pending = max(node.pending, boost * place / len(ids))
        node.boost = max(node.boost, boost)

    def _spell(self, phrase: str) -> list[int]:
        words = phrase.split()
        if not words:
            raise ValueError("A hot word is empty; name a word or a phrase.")
        if not isinstance(self.tokenizer, Wav2Vec2CTCTokenizer):
            ids = list(self.tokenizer(" ".join(words), add_special_tokens=False).input_ids)
            if self.tokenizer.unk_token_id in ids or not ids:
                raise ValueError(f"The tokenizer cannot spell the hot word {phrase!r}; spell it otherwise.")
            return ids
        speller, ids = Speller(self.tokenizer), []
        for word in words:
            if missing := speller.missing(word):
                raise ValueError(
                    f"The tokenizer has no {', '.join(map(repr, missing))} to spell the hot word {phrase!r} with; "
                    "spell it otherwise."
                )
            ids += [*([self.delimiter] if ids else []), *speller.spell(word)]
        return ids
