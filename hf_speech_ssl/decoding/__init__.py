"""From CTC logits to text: the best path, words with times, and the character tokenizer that CTC training needs."""

from .greedy import TokenSpan, greedy_ctc, greedy_ctc_spans
from .text import Decoder, GreedyDecoder, Hypothesis, TimedText, character_times, ctc_text, word_times
from .vocabulary import (
    BLANK_TOKEN,
    UNKNOWN_TOKEN,
    WORD_DELIMITER_TOKEN,
    build_ctc_processor,
    build_ctc_tokenizer,
    unknown_characters,
)

__all__ = [
    "BLANK_TOKEN",
    "UNKNOWN_TOKEN",
    "WORD_DELIMITER_TOKEN",
    "Decoder",
    "GreedyDecoder",
    "Hypothesis",
    "TimedText",
    "TokenSpan",
    "build_ctc_processor",
    "build_ctc_tokenizer",
    "character_times",
    "ctc_text",
    "greedy_ctc",
    "greedy_ctc_spans",
    "unknown_characters",
    "word_times",
]
