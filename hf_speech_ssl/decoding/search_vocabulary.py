"""What a beam search searches in: words, their spellings and their language model, as flashlight-text wants them."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import Wav2Vec2CTCTokenizer

from .lexicon import Lexicon, Spelling, read_lexicon, spell_words
from .ngram import LOG_ZERO, finite_arpa, language_model_words

logger = logging.getLogger(__name__)

MAX_WORDS_OF_ONE_SPELLING = 6  # flashlight's tries hold no more
_MANY_UNKNOWN = 0.1  # share of the lexicon that a language model may not know without a warning
_NO_WORD = "\x00"  # in no language model: what it scores is what an unknown word scores


@dataclass(frozen=True)
class SearchVocabulary:
    """What flashlight searches in: the lexicon's words, their spellings as a trie, their language model."""

    words: list[str]
    trie: Any
    language_model: Any
    largest_id: int


def load_search_vocabulary(
    tokenizer: Wav2Vec2CTCTokenizer, lm_path: str | Path | None, lexicon_path: str | Path | None
) -> SearchVocabulary:
    """Read a language model and a lexicon; at least one of them is needed.

    Raises:
        ImportError, OSError, ValueError: as in [`BeamSearchDecoder`].
    """
    flashlight = import_flashlight()
    if tokenizer.word_delimiter_token not in tokenizer.get_vocab():
        raise ValueError("The tokenizer has no word delimiter, so there are no words to find: decode greedily.")
    known = None if lm_path is None else language_model_words(lm_path)
    if lexicon_path is not None:
        lexicon = read_lexicon(lexicon_path, tokenizer)
    elif known is None:
        raise ValueError(
            f"{lm_path} is a KenLM binary, whose words cannot be listed: give a lexicon too, one word a line, or the "
            "ARPA file."
        )
    else:
        lexicon = spell_words(known, tokenizer, str(lm_path))
    words = list(lexicon)
    model = flashlight.ZeroLM() if lm_path is None else _load_kenlm(lm_path, words)
    if lm_path is not None and lexicon_path is not None:
        _check_coverage(model, words, known, f"The language model {lm_path}", f"the lexicon {lexicon_path}")
    trie, largest_id = _build_trie(lexicon, model, tokenizer)
    return SearchVocabulary(words, trie, model, largest_id)


def load_word_model(path: str | Path) -> tuple[dict[str, int], Any]:
    """Read a language model for a search without a lexicon: its words' indices, and the model, as flashlight has it.

    The index behind the last one stands for an unknown word.

    Raises:
        ImportError: flashlight-text is not installed. OSError: there is no such file.
        ValueError: it is no language model, or a KenLM binary, whose words cannot be listed.
    """
    import_flashlight()
    words = language_model_words(path)
    if words is None:
        raise ValueError(f"{path} is a KenLM binary, whose words cannot be listed: give the ARPA file.")
    return {word: index for index, word in enumerate(words)}, _load_kenlm(path, words)


def _load_kenlm(path: str | Path, words: list[str]) -> Any:
    from flashlight.lib.text.decoder.kenlm import KenLM
    from flashlight.lib.text.dictionary import Dictionary

    dictionary = Dictionary()
    for word in (*words, _NO_WORD):
        dictionary.add_entry(word)
    try:
        with finite_arpa(path) as finite:
            return KenLM(str(finite), dictionary)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"KenLM cannot read the language model {path}; make it anew. It says: {reason}") from error


def _check_coverage(model: Any, words: list[str], known: list[str] | None, name: str, lexicon: str) -> None:
    """Warn of a language model that counts many of the lexicon's words as unknown; refuse one that counts all."""
    if known is None:  # a KenLM binary hides its words: those with the score of an unknown word are unknown
        start = model.start(False)
        unknown_score = model.score(start, len(words))[1]
        missing = [word for index, word in enumerate(words) if model.score(start, index)[1] == unknown_score]
    else:
        missing = sorted(set(words).difference(known))
    advice = "write both in the same case and normalization, or make the model of text with these words"
    example = f"{missing[0]!r}" if missing else ""
    if len(missing) == len(words):
        hint = "" if known is None else f" (it knows {known[0]!r})"
        raise ValueError(f"{name} knows none of the words of {lexicon}, such as {example}{hint}: {advice}.")
    if len(missing) > _MANY_UNKNOWN * len(words):
        logger.warning(
            "%s knows %.1f %% of the %d words of %s; the others, such as %s, count as its unknown word: %s.",
            *(name, 100 * (1 - len(missing) / len(words)), len(words), lexicon, example, advice),
        )


def _build_trie(lexicon: Lexicon, model: Any, tokenizer: Wav2Vec2CTCTokenizer) -> tuple[Any, int]:
    """The spellings, each with a delimiter at its end, and the largest token id in them."""
    flashlight = import_flashlight()
    delimiter, blank = tokenizer.word_delimiter_token_id, tokenizer.pad_token_id
    largest_id = max(delimiter, blank, *(max(spelling) for spellings in lexicon.values() for spelling in spellings))
    trie, start = flashlight.Trie(largest_id + 1, delimiter), model.start(False)
    homographs: dict[Spelling, list[str]] = {}
    for index, (word, spellings) in enumerate(lexicon.items()):
        score = max(model.score(start, index)[1], LOG_ZERO)
        for spelling in sorted(spellings):
            trie.insert([*spelling, delimiter], index, score)
            homographs.setdefault(spelling, []).append(word)
    worst = max(homographs.values(), key=len)
    if len(worst) > MAX_WORDS_OF_ONE_SPELLING:
        raise ValueError(
            f"At most {MAX_WORDS_OF_ONE_SPELLING} words can share a spelling, but {len(worst)} do: {', '.join(worst)}."
        )
    trie.smear(flashlight.SmearingMode.MAX)  # a word's beginning is worth its best word: pruning looks ahead
    return trie, largest_id


def import_flashlight() -> Any:
    """Import flashlight's decoder.

    Raises:
        ImportError: it is not installed.
    """
    try:
        from flashlight.lib.text import decoder
    except ImportError as error:
        raise ImportError(f"Beam search needs flashlight-text: pip install 'hf-speech-ssl[lm]' ({error}).") from error
    return decoder
