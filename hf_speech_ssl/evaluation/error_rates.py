"""Word and character error rates over jiwer: as sums of counts, and as metrics of the library `evaluate`.

Hypotheses are called predictions here, as in `evaluate`. Texts are compared as they are, except that runs of white
space count as one space; `normalize_text` does more.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import datasets
import evaluate
import jiwer

_CITATION = "Morris, Maier and Green, From WER and RIL to MER and WIL, Interspeech 2004. Alignment: jiwer."
_INPUTS = """
Args:
    predictions (`list[str]`): the recognized texts.
    references (`list[str]`): the true texts, one for each prediction, in the same order.
"""


@dataclass(frozen=True)
class ErrorCounts:
    """Edit operations of a minimal alignment, summed over utterances; counts of batches or processes add up."""

    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0
    hits: int = 0

    def __add__(self, other: ErrorCounts) -> ErrorCounts:
        return ErrorCounts(
            self.substitutions + other.substitutions,
            self.deletions + other.deletions,
            self.insertions + other.insertions,
            self.hits + other.hits,
        )

    @property
    def reference_length(self) -> int:
        """Words or characters in the references."""
        return self.hits + self.substitutions + self.deletions

    @property
    def errors(self) -> int:
        """substitutions + deletions + insertions."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float:
        """errors / reference_length: a fraction, which can exceed 1.

        Raises:
            ValueError: if the references hold nothing at all: jiwer returns the bare number of insertions there,
                which is no rate.
        """
        if self.reference_length == 0:
            raise ValueError(
                f"An error rate needs references with text, got only empty ones ({self.insertions} insertions): "
                "check the text column and the normalization. Single empty references among others are fine."
            )
        return self.errors / self.reference_length


def count_word_errors(predictions: Sequence[str], references: Sequence[str]) -> ErrorCounts:
    """Word errors of `predictions` against `references`, summed over the utterances. Words are split at white space.

    An utterance whose reference is empty has no words to get right: every predicted word is an insertion, which
    counts in the numerator of the rate over the whole set. (jiwer, given such an utterance alone, returns the number
    of insertions as its "rate".) Empty lists give counts of zero.

    Raises:
        ValueError: if the two lists differ in length.
        TypeError: if an entry is not a string (None is not an empty transcript), or a list is one bare string.
    """
    return _count_errors(predictions, references, jiwer.process_words)


def count_character_errors(predictions: Sequence[str], references: Sequence[str]) -> ErrorCounts:
    """As `count_word_errors`, over characters; the spaces between words count as characters."""
    return _count_errors(predictions, references, jiwer.process_characters)


def align_words(prediction: str, reference: str) -> list[tuple[str | None, str | None]]:
    """A minimal alignment of the words of one utterance, the one whose edits `count_word_errors` counts.

    Returns:
        (reference, prediction) pairs in order: equal words are hits, different ones substitutions; `None` in the
        place of the predicted word is a deletion, in the place of the reference an insertion.
    """
    result = jiwer.process_words(" ".join(reference.split()), " ".join(prediction.split()))
    pairs: list[tuple[str | None, str | None]] = []
    for part in result.alignments[0]:
        true = result.references[0][part.ref_start_idx : part.ref_end_idx]
        recognized = result.hypotheses[0][part.hyp_start_idx : part.hyp_end_idx]
        pairs += itertools.zip_longest(true, recognized)  # the shorter one is empty, or they are equally long
    return pairs


def _count_errors(predictions: Sequence[str], references: Sequence[str], align: Callable[..., Any]) -> ErrorCounts:
    _check_texts(predictions, references)
    if len(references) == 0:
        return ErrorCounts()
    # jiwer splits at spaces only, and counts each space of a run as a character.
    result = align([" ".join(text.split()) for text in references], [" ".join(text.split()) for text in predictions])
    return ErrorCounts(result.substitutions, result.deletions, result.insertions, result.hits)


def _check_texts(predictions: Any, references: Any) -> None:
    for name, texts in (("predictions", predictions), ("references", references)):
        if texts is None or isinstance(texts, str):
            raise TypeError(f"{name} must be a list of strings, got {texts!r}.")
        for index, text in enumerate(texts):
            if not isinstance(text, str):
                raise TypeError(
                    f"{name}[{index}] is {text!r}, not a string: leave out examples without a transcript, or write "
                    "an empty string for audio without speech."
                )
    if len(predictions) != len(references):
        raise ValueError(
            f"Got {len(predictions)} predictions for {len(references)} references: they must come in pairs."
        )


class _ErrorRate(evaluate.Metric):  # type: ignore[misc]  # `evaluate` has no types
    """The base of both metrics: `compute(predictions=, references=)`, `add`, `add_batch`, all without network.

    Texts are kept in memory unless `num_process` is above 1 or `keep_in_memory=False`, where `evaluate` wants files.
    """

    name_of_rate: ClassVar[str]
    unit: ClassVar[str]

    def __init__(
        self,
        config_name: str | None = None,
        keep_in_memory: bool | None = None,
        num_process: int = 1,
        **kwargs: Any,
    ) -> None:
        in_memory = num_process == 1 if keep_in_memory is None else keep_in_memory
        super().__init__(config_name, keep_in_memory=in_memory, num_process=num_process, **kwargs)

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=type(self).__doc__ or "",
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": text, "references": text}),
        )

    def add(self, *, prediction: Any = None, reference: Any = None, **kwargs: Any) -> None:
        """Add one prediction and its reference."""
        _check_texts([prediction], [reference])
        super().add(prediction=prediction, reference=reference, **kwargs)

    def add_batch(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> None:
        """Add predictions and their references."""
        # evaluate takes a string for a list of characters and None for a text; and it checks the first entry only.
        _check_texts(predictions, references)
        super().add_batch(predictions=list(predictions), references=list(references), **kwargs)

    def compute(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> dict[str, Any] | None:
        """The rate and its counts over everything added so far and, if given, `predictions` and `references`.

        Returns:
            the rate (a fraction) under "wer" or "cer", the counts of substitutions, deletions and insertions, and the
            length of the references ("num_words" or "num_characters"); None on processes other than the first.

        Raises:
            ValueError: if nothing was added, the lists differ in length or all references are empty.
            TypeError: if an entry is not a string.
        """
        if self.writer is None and predictions is None and references is None:
            raise ValueError(
                f"There is nothing to compute the {self.name_of_rate} of: pass predictions= and references= with at "
                "least one text each, or call add_batch first."
            )
        return super().compute(predictions=predictions, references=references, **kwargs)

    @staticmethod
    def count_errors(predictions: Sequence[str], references: Sequence[str]) -> ErrorCounts:
        raise NotImplementedError

    def _compute(self, *, predictions: Sequence[str], references: Sequence[str]) -> dict[str, Any]:
        counts = self.count_errors(predictions, references)
        return {
            self.name_of_rate: counts.rate,
            f"{self.unit}_substitutions": counts.substitutions,
            f"{self.unit}_deletions": counts.deletions,
            f"{self.unit}_insertions": counts.insertions,
            f"num_{self.unit}s": counts.reference_length,
        }


class WordErrorRate(_ErrorRate):
    """Word error rate over all utterances together: all word errors divided by all reference words."""

    name_of_rate = "wer"
    unit = "word"
    count_errors = staticmethod(count_word_errors)


class CharacterErrorRate(_ErrorRate):
    """Character error rate over all utterances together: all character errors divided by all reference characters."""

    name_of_rate = "cer"
    unit = "character"
    count_errors = staticmethod(count_character_errors)
