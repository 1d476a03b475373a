"""From decoded CTC tokens to text, and to words with times.

Shape letters: B utterances, T frames of logits, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase, Wav2Vec2CTCTokenizer

from .greedy import TokenSpan, greedy_ctc_spans


@dataclass(frozen=True)
class TimedText:
    """A character or a word, with the seconds from where it begins to be emitted to where it ends."""

    text: str
    start: float
    end: float


@dataclass(frozen=True)
class Hypothesis:
    """One reading of an utterance.

    Attributes:
        text: as the tokenizer writes it, spaces between words.
        score: the higher the better, comparable within one utterance and decoder only: a log-probability, language
            model and word bonus included where there are any.
        words: the same text with times; `None` where the tokenizer does not say where words end.
    """

    text: str
    score: float
    words: list[TimedText] | None = None


class Decoder(Protocol):
    """From (B, T, V) log-probabilities and (B,) lengths to the best readings of each utterance, the best one first."""

    def __call__(self, log_probs: torch.Tensor, lengths: torch.Tensor) -> list[list[Hypothesis]]: ...


@dataclass(frozen=True)
class GreedyDecoder:
    """The best path, one reading per utterance.

    Args:
        tokenizer: of any CTC model; words get times with `Wav2Vec2CTCTokenizer`, the one that has a word delimiter.
        seconds_per_frame: `config.inputs_to_logits_ratio / feature_extractor.sampling_rate`.
    """

    tokenizer: PreTrainedTokenizerBase
    seconds_per_frame: float

    def __call__(self, log_probs: torch.Tensor, lengths: torch.Tensor) -> list[list[Hypothesis]]:
        best = log_probs.amax(-1).cumsum(-1)  # (B, T)
        readings = []
        for row, spans in enumerate(greedy_ctc_spans(log_probs, lengths, self.tokenizer.pad_token_id)):
            score = float(best[row, lengths[row] - 1]) if lengths[row] else 0.0
            readings.append([Hypothesis(*self._text_and_words(spans, score))])
        return readings

    def _text_and_words(self, spans: list[TokenSpan], score: float) -> tuple[str, float, list[TimedText] | None]:
        if not isinstance(self.tokenizer, Wav2Vec2CTCTokenizer):
            # Tokenizers that merge repeats themselves need a blank in between to keep double letters.
            ids = [one for span in spans for one in (span.token_id, self.tokenizer.pad_token_id)]
            return str(self.tokenizer.decode(ids, skip_special_tokens=True)), score, None
        words = word_times(spans, self.tokenizer, self.seconds_per_frame)
        return ctc_text([span.token_id for span in spans], self.tokenizer), score, words


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
        ValueError: if seconds_per_frame is not positive.
    """
    if not (np.isfinite(seconds_per_frame) and seconds_per_frame > 0):
        raise ValueError(f"seconds_per_frame must be positive, got {seconds_per_frame}.")
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

    Arguments and errors as in `character_times`.
    """
    words: list[TimedText] = []
    in_word = False
    for char in character_times(spans, tokenizer, seconds_per_frame):
        if char.text == tokenizer.replace_word_delimiter_char:
            in_word = False
        elif in_word:
            words[-1] = TimedText(words[-1].text + char.text, words[-1].start, char.end)
        else:
            words.append(char)
            in_word = True
    return words
