"""Sums up transcripts: error rates with intervals in every mode, speakers, worst utterances.

Shape letters: U utterances, K figures.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ..run_folder import ERROR_KINDS
from .bootstrap import Estimate, bootstrap_ratios
from .error_rates import ErrorCounts, align_words, count_character_errors, count_word_errors

MIN_SPEAKERS = 10  # fewer of them are too few to draw from: the intervals would come out too narrow


@dataclass(frozen=True)
class Transcript:
    """One utterance with its reference and its hypotheses.

    Args:
        name: for people, such as its path.
        index: its row in the data set.
        seconds: its duration.
        reference: the true text.
        hypotheses: the recognized text, by mode; the other modes are compared with the first.
        speaker: the speaker's name, if the data set has it.
    """

    name: str
    index: int
    seconds: float
    reference: str
    hypotheses: Mapping[str, str]
    speaker: str | None = None


class Scores:
    """Figures of transcripts; rates are fractions.

    Args:
        transcripts: of one split, all of them in the same modes.
        num_resamples: of the bootstrap; 0 gives no intervals.
        seed: of the bootstrap.

    Raises:
        ValueError: there is no transcript, or no reference has a word.
    """

    def __init__(self, transcripts: Sequence[Transcript], num_resamples: int = 1000, seed: int = 0) -> None:
        if not transcripts:
            raise ValueError("There is nothing to score: no utterance was transcribed.")
        self.transcripts = sorted(transcripts, key=lambda transcript: transcript.index)
        self.num_resamples, self.seed = num_resamples, seed
        self.modes = list(self.transcripts[0].hypotheses)
        self.words = {mode: self._count(count_word_errors, mode) for mode in self.modes}
        self.characters = {mode: self._count(count_character_errors, mode) for mode in self.modes}
        _ = _total(self.words[self.modes[0]]).rate  # refuses references without a word, with a clear message

    def _count(self, count: Any, mode: str) -> list[ErrorCounts]:
        return [count([one.hypotheses[mode]], [one.reference]) for one in self.transcripts]

    @cached_property
    def speakers(self) -> list[str] | None:
        """The speaker of each utterance, where all are known."""
        known = [one.speaker for one in self.transcripts if one.speaker is not None]
        return known if len(known) == len(self.transcripts) else None

    @property
    def resampled(self) -> str:
        """The units that the bootstrap draws: "speakers" if there are enough of them, else "utterances"."""
        return "speakers" if self.speakers is not None and len(set(self.speakers)) >= MIN_SPEAKERS else "utterances"

    def by_mode(self) -> dict[str, dict[str, Any]]:
        """Figures of every mode.

        "wer", "cer", "substitutions", "deletions" and "insertions" (of words, as shares of the reference words) are
        {"value", "low", "high"}; the counts behind them follow. Modes after the first have "wer_change", the
        difference of their WER to the first mode's, paired by utterance.
        """
        figures: list[tuple[str, str, list[int], list[int]]] = []
        first = [counts.errors for counts in self.words[self.modes[0]]]
        for mode in self.modes:
            words, characters = self.words[mode], self.characters[mode]
            lengths = [counts.reference_length for counts in words]
            figures.append((mode, "wer", [counts.errors for counts in words], lengths))
            sizes = [counts.reference_length for counts in characters]
            figures.append((mode, "cer", [counts.errors for counts in characters], sizes))
            figures += [(mode, kind, [getattr(counts, kind) for counts in words], lengths) for kind in ERROR_KINDS]
            if mode != self.modes[0]:
                change = [counts.errors - base for counts, base in zip(words, first, strict=True)]
                figures.append((mode, "wer_change", change, lengths))
        report: dict[str, dict[str, Any]] = {mode: {} for mode in self.modes}
        for (mode, name, _, _), estimate in zip(figures, self._estimates(figures), strict=True):
            report[mode][name] = asdict(estimate)
        for mode in self.modes:
            total, letters = _total(self.words[mode]), _total(self.characters[mode])
            report[mode] |= {
                "utterances": len(self.transcripts),
                "words": total.reference_length,
                "characters": letters.reference_length,
                "word_errors": total.errors,
                "character_errors": letters.errors,
                "correct_utterances": sum(counts.errors == 0 for counts in self.words[mode]),
            }
            for kind in ERROR_KINDS:
                report[mode][kind]["count"] = getattr(total, kind)
        return report

    def _estimates(self, figures: list[tuple[str, str, list[int], list[int]]]) -> list[Estimate]:
        tops, bottoms = (np.array([figure[part] for figure in figures]).T for part in (2, 3))  # (U, K)
        groups = self.speakers if self.resampled == "speakers" else None
        return bootstrap_ratios(tops, bottoms, groups, self.num_resamples, self.seed)

    def by_speaker(self) -> list[dict[str, Any]]:
        """Rates of every speaker in the first mode, the highest WER first.

        Rates of a speaker without a reference word are `None`. The list is empty if the data set does not have the
        speaker of every utterance.
        """
        rows: dict[str, list[int]] = {}
        for index, speaker in enumerate(self.speakers or []):
            rows.setdefault(speaker, []).append(index)
        mode, entries = self.modes[0], []
        for speaker, indices in rows.items():
            words = _total([self.words[mode][index] for index in indices])
            characters = _total([self.characters[mode][index] for index in indices])
            length = words.reference_length
            entries.append(
                {
                    "speaker": speaker,
                    "utterances": len(indices),
                    "seconds": sum(self.transcripts[index].seconds for index in indices),
                    "words": length,
                    "wer": words.rate if length else None,
                    "cer": characters.rate if length else None,
                    **{kind: getattr(words, kind) / length if length else None for kind in ERROR_KINDS},
                }
            )
        return sorted(entries, key=lambda entry: -1.0 if entry["wer"] is None else entry["wer"], reverse=True)

    def worst(self, count: int) -> list[dict[str, Any]]:
        """The utterances with the most word errors in the first mode, those without errors left out.

        "alignment" holds (reference, hypothesis) pairs, as in [`align_words`].
        """
        mode = self.modes[0]
        errors = [counts.errors for counts in self.words[mode]]
        lengths = [counts.reference_length for counts in self.words[mode]]
        order = sorted(range(len(errors)), key=lambda index: (-errors[index], lengths[index], index))
        entries = []
        for index in [index for index in order if errors[index]][:count]:
            one = self.transcripts[index]
            entries.append(
                {
                    "name": one.name,
                    "index": one.index,
                    "speaker": one.speaker,
                    "seconds": one.seconds,
                    "errors": errors[index],
                    "words": lengths[index],
                    "reference": one.reference,
                    "hypothesis": one.hypotheses[mode],
                    "alignment": align_words(one.hypotheses[mode], one.reference),
                }
            )
        return entries


def _total(counts: Sequence[ErrorCounts]) -> ErrorCounts:
    return sum(counts, ErrorCounts())
