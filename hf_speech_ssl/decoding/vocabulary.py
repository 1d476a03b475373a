"""The character tokenizer that CTC training needs, made from the transcripts, and the check of these."""

from __future__ import annotations

import json
import logging
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from transformers import (
    PreTrainedTokenizerBase,
    SequenceFeatureExtractor,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2Processor,
)

logger = logging.getLogger(__name__)

BLANK_TOKEN = "[PAD]"
UNKNOWN_TOKEN = "[UNK]"
WORD_DELIMITER_TOKEN = "|"
_FEW_CHARACTERS, _MANY_CHARACTERS = 10, 10_000  # fewer than 10 of one kind among so many are rare
_SHOWN_CHARACTERS = 40  # in a warning


def build_ctc_tokenizer(texts: Iterable[str]) -> Wav2Vec2CTCTokenizer:
    """A character tokenizer over exactly the characters of `texts`, taken as they are: normalize them first.

    Ids: 0 the blank (and padding) `[PAD]`, 1 `[UNK]`, 2 the word delimiter `|`, then the characters in the order of
    their code points: the same texts in any order give the same ids. The model needs `vocab_size=len(tokenizer)` and
    `pad_token_id=tokenizer.pad_token_id`.

    `Wav2Vec2CTCTokenizer` is the tokenizer with which the speech recognition pipeline gives right word times. Its
    `do_lower_case` is left off: it UPPER-cases what it reads and so wants an upper-case vocabulary. Frame ids must be
    decoded with the default `skip_special_tokens=False`: True takes blanks out before repeats are merged, and the
    two l of "hello" become one.

    Args:
        texts: transcripts, read once. Single empty ones are fine.

    Raises:
        TypeError: if `texts` is one bare string, or an entry is not a string (None: an example without transcript).
        ValueError: if there are no texts, or none with a character; if a text holds a character that the tokenizer
            gives another meaning ("|", "[PAD]") or white space other than the plain space.
    """
    counts = check_texts(texts)
    if rare := rare_characters(counts):
        logger.warning("Rare characters in the vocabulary, each a label of its own: %s.", _described(rare))
    characters = sorted(counts)
    tokens = [BLANK_TOKEN, UNKNOWN_TOKEN, WORD_DELIMITER_TOKEN, *characters]
    with tempfile.TemporaryDirectory() as folder:  # the tokenizer reads its vocabulary from a file, once
        vocab_file = Path(folder) / "vocab.json"
        vocab_file.write_text(json.dumps({token: index for index, token in enumerate(tokens)}), encoding="utf-8")
        # Without bos and eos set to None, <s> and </s> are added behind the vocabulary: two logits without a use.
        return Wav2Vec2CTCTokenizer(
            str(vocab_file),
            bos_token=None,
            eos_token=None,
            unk_token=UNKNOWN_TOKEN,
            pad_token=BLANK_TOKEN,
            word_delimiter_token=WORD_DELIMITER_TOKEN,
        )


def build_ctc_processor(texts: Iterable[str], feature_extractor: SequenceFeatureExtractor) -> Wav2Vec2Processor:
    """`build_ctc_tokenizer(texts)` and the feature extractor (any), as one processor that saves and loads together.

    Raises:
        TypeError: if `feature_extractor` is none; otherwise as `build_ctc_tokenizer`.
    """
    if not isinstance(feature_extractor, SequenceFeatureExtractor):
        raise TypeError(f"Expected a feature extractor, got {type(feature_extractor).__name__}.")
    return Wav2Vec2Processor(feature_extractor, build_ctc_tokenizer(texts))


def unknown_characters(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Characters of `texts` that the tokenizer can only read as `[UNK]`, with their counts, the most frequent first.

    Worth a look before training (labels that are `[UNK]`) and before evaluation (errors that no model can avoid).
    """
    special = [token for token in tokenizer.all_special_tokens if len(token) > 1]
    known = {" "}.union(*(token for token in tokenizer.get_vocab() if token not in special))
    counts = Counter(char for text in texts for char in text if char not in known)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def rare_characters(counts: Mapping[str, int]) -> dict[str, int]:
    """The characters that a vocabulary is better without, with their counts, the rarest first.

    These are such as cannot be learned, fewer than 10 among at least 10,000, and such as cannot be seen: controls,
    formats, and marks at the beginning of a text are mistakes of whoever typed it.
    """
    enough = sum(counts.values()) >= _MANY_CHARACTERS
    rare = {
        char: count
        for char, count in counts.items()
        if (enough and count < _FEW_CHARACTERS) or unicodedata.category(char) in ("Cc", "Cf", "Cn", "Co", "Cs", "Me")
    }
    return dict(sorted(rare.items(), key=lambda item: (item[1], item[0])))


def _described(counts: Mapping[str, int]) -> str:
    shown = []
    for char, count in list(counts.items())[:_SHOWN_CHARACTERS]:
        name = f"U+{ord(char):04X} {unicodedata.name(char, 'without a name')} ({count})"
        shown.append(f"{char} {name}" if char.isprintable() else name)
    return ", ".join(shown) + (f" and {len(counts) - len(shown)} more" if len(counts) > len(shown) else "")


def check_texts(texts: Iterable[str], reserved: Sequence[str] = (WORD_DELIMITER_TOKEN, BLANK_TOKEN)) -> Counter[str]:
    """How often each character comes in all texts, but for spaces; each text checked.

    Args:
        reserved: what a tokenizer gives another meaning, and no text may hold.

    Raises:
        TypeError, ValueError: see `build_ctc_tokenizer`.
    """
    if isinstance(texts, str):
        raise TypeError(f"texts must be a list of strings, got one string: {texts[:40]!r}.")
    characters: Counter[str] = Counter()
    index = -1
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(
                f"Text {index} is {text!r}, not a string: drop examples without a transcript, and check the name of "
                "the text column."
            )
        taken = [token for token in reserved if token in text]
        odd_space = sorted({char for char in text if char.isspace() and char != " "})
        if taken or odd_space:
            raise ValueError(
                f"Text {index} holds {(taken + odd_space)!r}, which a tokenizer cannot write: take it "
                f"out, or leave the normalization of texts on (--normalize_text True; in Python, pass the texts "
                f"through hf_speech_ssl.evaluation.normalize_text). The text: {text[:80]!r}"
            )
        characters.update(text)
    if index < 0:
        raise ValueError("There are no texts to build a vocabulary from: the dataset or its split is empty.")
    del characters[" "]
    if not characters:
        raise ValueError(f"All {index + 1} texts are empty: check the name of the text column.")
    return characters
