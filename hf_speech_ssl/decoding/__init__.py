"""From a model's frames to text: greedy and beam search, words with times, and the tokenizers that training needs."""

from .beam_search import BeamSearchDecoder, make_decoder
from .collapse import TokenSpan, greedy_ctc, greedy_ctc_spans
from .decoder import Decoder, decoder_frames
from .greedy import GreedyDecoder
from .ngram import NGramModel, estimate_ngrams
from .pieces import build_piece_processor, build_piece_tokenizer
from .prefix_beam import PrefixBeamDecoder
from .text import Hypothesis, StreamingText, TimedText, character_times, ctc_text, word_times
from .transducer import TransducerGreedyDecoder, greedy_decoder, is_transducer
from .transducer_beam import TransducerBeamDecoder, make_transducer_decoder
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
    "PrefixBeamDecoder",
    "StreamingText",
    "TimedText",
    "TokenSpan",
    "TransducerBeamDecoder",
    "TransducerGreedyDecoder",
    "build_ctc_processor",
    "build_ctc_tokenizer",
    "build_piece_processor",
    "build_piece_tokenizer",
    "character_times",
    "ctc_text",
    "decoder_frames",
    "estimate_ngrams",
    "greedy_ctc",
    "greedy_ctc_spans",
    "greedy_decoder",
    "is_transducer",
    "make_decoder",
    "make_transducer_decoder",
    "unknown_characters",
    "word_times",
]
