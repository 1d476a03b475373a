"""Error rates of transcripts, with confidence intervals."""

from .bootstrap import Estimate, bootstrap_ratios
from .error_rates import (
    CharacterErrorRate,
    ErrorCounts,
    WordErrorRate,
    align_words,
    count_character_errors,
    count_word_errors,
)
from .normalization import normalize_text

__all__ = [
    "CharacterErrorRate",
    "ErrorCounts",
    "Estimate",
    "WordErrorRate",
    "align_words",
    "bootstrap_ratios",
    "count_character_errors",
    "count_word_errors",
    "normalize_text",
]
