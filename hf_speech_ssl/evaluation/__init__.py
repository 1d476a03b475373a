"""Evaluation: error rates of transcripts with intervals, and how much pretraining labels know of phones."""

from .bootstrap import Estimate, bootstrap_ratios
from .error_rates import (
    CharacterErrorRate,
    ErrorCounts,
    WordErrorRate,
    align_words,
    count_character_errors,
    count_word_errors,
)
from .label_quality import IGNORED_PHONE_ID, LabelQuality, phone_ids_at_frames
from .normalization import normalize_text

__all__ = [
    "IGNORED_PHONE_ID",
    "CharacterErrorRate",
    "ErrorCounts",
    "Estimate",
    "LabelQuality",
    "WordErrorRate",
    "align_words",
    "bootstrap_ratios",
    "count_character_errors",
    "count_word_errors",
    "normalize_text",
    "phone_ids_at_frames",
]
