"""The synthetic corpus: speech from espeak-ng with text, speakers and the times of phones and words."""

from .corpus import build_synthetic, parse_synthetic_options

__all__ = ["build_synthetic", "parse_synthetic_options"]
