"""From CTC logits to text: the best path, words with times, and the character tokenizer that CTC training needs."""

from .beam_search import BeamSearchDecoder, make_decoder
from .collapse import TokenSpan, greedy_ctc, greedy_ctc_spans
from .decoder import Decoder
from .greedy import GreedyDecoder
from .ngram import NGramModel, estimate_ngrams
from .text import Hypothesis, StreamingText, TimedText, character_times, ctc_text, word_times
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
    "BeamSearchDecoder",
    "Decoder",
    "GreedyDecoder",
    "Hypothesis",
    "NGramModel",
    "StreamingText",
    "TimedText",
    "TokenSpan",
    "build_ctc_processor",
    "build_ctc_tokenizer",
    "character_times",
    "ctc_text",
    "estimate_ngrams",
    "greedy_ctc",
    "greedy_ctc_spans",
    "make_decoder",
    "unknown_characters",
    "word_times",
]
