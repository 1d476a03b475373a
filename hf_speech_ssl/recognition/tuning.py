"""The weight of a language model and the word bonus that go with it: a grid over a development set."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from tqdm.auto import tqdm

from ..data.reading import UtteranceReader
from ..decoding import BeamSearchDecoder, Decoder, TransducerBeamDecoder
from ..evaluation import ErrorCounts, count_word_errors, normalize_text
from .recognizer import Recognizer


@dataclass(frozen=True)
class Trial:
    """Word errors of the development set with one pair of weights."""

    lm_weight: float
    word_bonus: float
    errors: ErrorCounts

    @property
    def flags(self) -> list[str]:
        """The flags that decode with these weights."""
        return ["--lm_weight", f"{self.lm_weight:g}", "--word_bonus", f"{self.word_bonus:g}"]

    def as_dict(self) -> dict[str, Any]:
        """The trial as JSON has it."""
        counts = asdict(self.errors)
        return {"lm_weight": self.lm_weight, "word_bonus": self.word_bonus, "wer": self.errors.rate, **counts}

    def edges(self, trials: Sequence[Trial]) -> list[str]:
        """Where the trial has the smallest or largest value that was tried; a weight of 0 has nothing beyond."""
        edges = []
        for name in ("lm_weight", "word_bonus"):
            tried, value = {getattr(trial, name) for trial in trials}, getattr(self, name)
            for side, extreme in (("smallest", min(tried)), ("largest", max(tried))):
                if len(tried) > 1 and value == extreme and not (name == "lm_weight" and value == 0):
                    edges.append(f"The best {name}, {value:g}, is the {side} one tried: try others beyond it.")
        return edges


class Grid:
    """All pairs of weights, each with its decoder.

    Raises:
        ValueError: there is nothing to choose from, or a number is out of its range.
    """

    def __init__(self, search: Decoder[Any], lm_weights: Sequence[float], word_bonuses: Sequence[float]) -> None:
        assert isinstance(search, BeamSearchDecoder | TransducerBeamDecoder)  # greedy decoding has no weights
        if not lm_weights or not word_bonuses:
            raise ValueError("There is nothing to choose from: give at least one of lm_weights and of word_bonuses.")
        pairs = itertools.product(sorted(set(lm_weights)), sorted(set(word_bonuses)))
        self.decoders = {pair: search.reweighted(*pair) for pair in pairs}

    def try_all(self, log_probs: Sequence[torch.Tensor], references: Sequence[str]) -> list[Trial]:
        """Decode with every pair."""
        decoders = tqdm(self.decoders.items(), desc="decode", unit="pair", leave=False, disable=None)
        found = [(pair, word_errors(decoder, log_probs, references)) for pair, decoder in decoders]
        return [Trial(weight, bonus, errors) for (weight, bonus), errors in found]


def log_probabilities(recognizer: Recognizer, reader: UtteranceReader) -> tuple[list[torch.Tensor], list[str]]:
    """Compute (1, T, V) log-probabilities of every utterance; beside them its text after [`normalize_text`]."""
    found: list[torch.Tensor] = []
    references: list[str] = []
    with tqdm(total=len(reader), desc="log-probabilities", unit="utt", leave=False, disable=None) as bar:
        for batch in reader:
            log_probs, lengths = recognizer.decoder_frames([utterance.waveform for utterance in batch])
            found.extend(one[None, :length].clone() for one, length in zip(log_probs, lengths.tolist(), strict=True))
            references.extend(normalize_text(utterance.text) for utterance in batch)
            bar.update(len(batch))
    return found, references


def word_errors(decoder: Decoder[Any], log_probs: Sequence[torch.Tensor], references: Sequence[str]) -> ErrorCounts:
    """Count the word errors of a decoder on what [`log_probabilities`] returned."""
    hypotheses = [decoder(one, torch.tensor([one.shape[1]]))[0][0].text for one in log_probs]
    return count_word_errors([normalize_text(text) for text in hypotheses], references)


def choose(trials: Sequence[Trial]) -> Trial:
    """The trial with the lowest WER; of several the one that is not at the grid's edge, then the smallest numbers."""
    return min(
        trials,
        key=lambda trial: (
            trial.errors.rate,
            len(trial.edges(trials)),
            abs(trial.word_bonus),
            trial.lm_weight,
            trial.word_bonus,
        ),
    )


def grid_table(trials: Sequence[Trial], best: Trial, greedy: ErrorCounts) -> str:
    """The grid, and the best pair beside greedy decoding."""
    rates = {(trial.lm_weight, trial.word_bonus): trial.errors.rate for trial in trials}
    weights, bonuses = (sorted({key[axis] for key in rates}) for axis in (0, 1))
    lines = ["WER (%) by lm_weight (down) and word_bonus (across)", _row("", [f"{bonus:g}" for bonus in bonuses])]
    lines += [_row(f"{w:g}", [f"{100 * rates[w, b]:.2f}" for b in bonuses]) for w in weights]
    return "\n".join([*lines, "", f"Greedy: {greedy.rate:.2%}. Best: {best.errors.rate:.2%}"])


def _row(head: str, cells: Sequence[str]) -> str:
    return f"{head:>8} | " + " ".join(f"{cell:>7}" for cell in cells)
