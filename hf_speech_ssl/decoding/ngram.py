"""N-gram language models of words: estimated from sentences, written as ARPA, their words read back.

The estimator is our own because the usual one, KenLM's `lmplz`, is a C++ program that pip does not bring. It smooths
as Witten and Bell (1991), interpolated: with h' the history h without its first word,

    P(w | h) = (count(h w) + types(h) P(w | h')) / (count(h) + types(h)),

types(h) being the number of different words seen after h; below the unigrams lies the uniform distribution over the
seen words, `</s>` and `<unk>`. These weights exist for any text. Modified Kneser-Ney takes its discounts from how many
n-grams occur once, twice, three and four times, and a few sentences, or sentences of a grammar, may have none such.
A million words take some seconds and half a gigabyte. For a large corpus of natural text `lmplz` is the better tool;
what it writes is read here as well.
"""

from __future__ import annotations

import gzip
import math
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

SENTENCE_START, SENTENCE_END, UNKNOWN_WORD = "<s>", "</s>", "<unk>"
MIN_ORDER, MAX_ORDER = 2, 6  # what KenLM reads

_KENLM_MAGIC = b"mmap lm http://kheafield.com/code"
_ARPA_SPACE = re.compile("[\t ]+")  # and no other white space: words may hold a no-break space
LOG_ZERO = -99.0  # ARPA's log10 of zero
_INFINITY = re.compile(rb"(^|[\t ])-inf(?:inity)?(?=[\t\r\n ]|$)", re.IGNORECASE | re.MULTILINE)
_MAKE_ONE = "make one with hf-speech-ssl ngram, or KenLM's lmplz and build_binary"

NGram = tuple[str, ...]


@dataclass(frozen=True)
class NGramModel:
    """An interpolated n-gram model, as an ARPA file holds it.

    Attributes:
        probabilities: for each length from 1 on, P(last word | the words before) of every n-gram seen.
        backoffs: for each history seen, the weight of P(w | h') where h w has not been seen.
    """

    probabilities: list[dict[NGram, float]]
    backoffs: dict[NGram, float]

    @property
    def order(self) -> int:
        """Words in the longest n-gram."""
        return len(self.probabilities)

    def write_arpa(self, path: str | Path) -> None:
        """Write the model as ARPA text, the same model always as the same bytes; its folder is made.

        Raises:
            OSError: it cannot be written.
        """
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with open(path, "w", encoding="utf-8", newline="\n") as file:
            file.write("\\data\\\n")
            file.writelines(
                f"ngram {order}={len(ngrams)}\n" for order, ngrams in enumerate(self.probabilities, start=1)
            )
            for order, ngrams in enumerate(self.probabilities, start=1):
                file.write(f"\n\\{order}-grams:\n")
                file.writelines(self._arpa_line(ngram, ngrams[ngram]) for ngram in sorted(ngrams))
            file.write("\n\\end\\\n")

    def _arpa_line(self, ngram: NGram, probability: float) -> str:
        log_probability = math.log10(probability) if probability else LOG_ZERO
        backoff = f"\t{math.log10(self.backoffs[ngram]):.7f}" if ngram in self.backoffs else ""
        return f"{log_probability:.7f}\t{' '.join(ngram)}{backoff}\n"


def estimate_ngrams(sentences: Iterable[str], order: int = 4) -> NGramModel:
    """An n-gram model by interpolated Witten-Bell smoothing.

    Args:
        sentences: words separated by white space, taken as they are; empty ones are left out. `<unk>` counts as the
            unknown word.
        order: words in the longest n-gram, 2 to 6.

    Raises:
        ValueError: there is no word, a sentence holds `<s>` or `</s>`, or the order is out of its range.
    """
    if not MIN_ORDER <= order <= MAX_ORDER:
        raise ValueError(f"order must be {MIN_ORDER} to {MAX_ORDER}, which is what KenLM reads, got {order}.")
    counts = _count(sentences, order)
    unigrams = counts[0]
    if not unigrams:
        raise ValueError("There are no sentences to make a language model from: all texts are empty.")
    unigrams[(UNKNOWN_WORD,)] += 0
    types = sum(count > 0 for count in unigrams.values())
    floor = types / len(unigrams)  # types times the uniform probability
    total = unigrams.total() + types
    probabilities = [{ngram: (count + floor) / total for ngram, count in unigrams.items()}]
    probabilities[0][(SENTENCE_START,)] = 0.0
    backoffs: dict[NGram, float] = {}
    for ngrams in counts[1:]:
        after: Counter[NGram] = Counter()
        types_after = Counter(ngram[:-1] for ngram in ngrams)
        for ngram, count in ngrams.items():
            after[ngram[:-1]] += count
        shorter = probabilities[-1]
        probabilities.append(
            {
                ngram: (count + types_after[ngram[:-1]] * shorter[ngram[1:]])
                / (after[ngram[:-1]] + types_after[ngram[:-1]])
                for ngram, count in ngrams.items()
            }
        )
        backoffs |= {history: number / (after[history] + number) for history, number in types_after.items()}
    return NGramModel(probabilities, backoffs)


def _count(sentences: Iterable[str], order: int) -> list[Counter[NGram]]:
    """How often each n-gram that ends in a word or `</s>` occurs, by length."""
    counts: list[Counter[NGram]] = [Counter() for _ in range(order)]
    for index, sentence in enumerate(sentences):
        words = sentence.split()
        if SENTENCE_START in words or SENTENCE_END in words:
            raise ValueError(
                f"Sentence {index} holds {SENTENCE_START} or {SENTENCE_END}, which the model adds itself: take it "
                f"out. The sentence: {sentence[:80]!r}"
            )
        if not words:
            continue
        tokens = (SENTENCE_START, *words, SENTENCE_END)
        for end in range(2, len(tokens) + 1):
            for length in range(1, min(order, end) + 1):
                counts[length - 1][tokens[end - length : end]] += 1
    return counts


def language_model_words(path: str | Path) -> list[str] | None:
    """The words that an ARPA file knows but for `<s>`, `</s>` and `<unk>`; None for a KenLM binary, which hides them.

    Args:
        path: an ARPA file, or one compressed with gzip, or a KenLM binary.

    Raises:
        OSError: there is no such file.
        ValueError: it is neither.
    """
    with open(path, "rb") as file:
        if file.read(len(_KENLM_MAGIC)) == _KENLM_MAGIC:
            return None
    with open_text(path) as text:
        try:
            words = list(_unigrams(text, str(path)))
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{path} is neither UTF-8 text ({error}), as ARPA files are, nor a KenLM binary: convert it, for "
                f"instance with iconv, or {_MAKE_ONE}."
            ) from error
    if not words:
        raise ValueError(f"{path} holds no words: it is no usable ARPA file.")
    return words


def _unigrams(lines: Iterable[str], path: str) -> Iterator[str]:
    place = "before"
    for number, line in enumerate(lines, start=1):
        entry = line.strip("\t\r\n ")
        if not entry:
            continue
        if place == "before":
            if entry != "\\data\\":
                raise ValueError(
                    f"{path} is neither ARPA (its first line would be \\data\\) nor a KenLM binary: it begins with "
                    f"{entry[:40]!r}; {_MAKE_ONE}."
                )
            place = "counts"
        elif entry == "\\1-grams:":
            place = "unigrams"
        elif place == "unigrams" and entry.startswith("\\"):
            return
        elif place == "unigrams":
            fields = _ARPA_SPACE.split(entry)
            if len(fields) not in (2, 3):
                raise ValueError(f"{path}, line {number}: needed 'log10 word' or 'log10 word backoff', got {entry!r}.")
            if fields[1].lower() not in (SENTENCE_START, SENTENCE_END, UNKNOWN_WORD):
                yield fields[1]


@contextmanager
def finite_arpa(path: str | Path) -> Iterator[Path]:
    """An ARPA file without minus infinity, which some tools write for zero and KenLM refuses or carries into every
    score: a copy with -99 in its place, where there is any. A KenLM binary is left as it is.
    """
    source, opener = Path(path), gzip.open if str(path).endswith(".gz") else open
    with opener(source, "rb") as file:
        if file.read(len(_KENLM_MAGIC)) == _KENLM_MAGIC or not any(b"-inf" in line.lower() for line in file):
            yield source
            return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "finite.arpa"
        with opener(source, "rb") as file, open(copy, "wb") as output:
            output.writelines(_INFINITY.sub(rb"\g<1>%.1f" % LOG_ZERO, line) for line in file)
        yield copy


@contextmanager
def open_text(path: str | Path) -> Iterator[TextIO]:
    """A UTF-8 text file to read, uncompressed on the way if its name ends in .gz.

    Raises:
        OSError: it cannot be read, or is no gzip file though its name says so.
        ValueError: it is not UTF-8.
    """
    opener = gzip.open if str(path).endswith(".gz") else open
    with opener(path, "rt", encoding="utf-8-sig") as file:
        try:
            yield file
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8 text ({error}); convert it, for instance with iconv.") from error
        except EOFError as error:
            raise ValueError(f"{path} is cut off: {error}") from error


def read_sentences(paths: Iterable[str | Path]) -> Iterator[str]:
    """The lines of text files, one after the other. Errors as in [`open_text`]."""
    for path in paths:
        with open_text(path) as file:
            yield from file
