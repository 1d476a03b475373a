"""BLEU and chrF of translations over sacrebleu, with bootstrap intervals; texts are compared as they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..run_folder import TRANSLATION_SCORES
from .bootstrap import Estimate

if TYPE_CHECKING:
    from sacrebleu.metrics.base import Metric


def score_translations(
    hypotheses: Sequence[str],
    references: Sequence[str],
    num_resamples: int = 0,
    signatures: dict[str, str] | None = None,
) -> dict[str, Estimate]:
    """Scores of a corpus, of 100: BLEU over sacrebleu's own tokens of cased text, and chrF2.

    Args:
        hypotheses, references: one of each an utterance. A reference that is empty counts as it does in sacrebleu.
        num_resamples: of the utterances, for 95 % intervals (Koehn, EMNLP 2004); 0 gives none.
        signatures: gets sacrebleu's signature of each score, by which figures of others can be compared.

    Returns:
        "bleu" and "chrf".

    Raises:
        ImportError: sacrebleu is not installed.
        ValueError: the lists differ in length, or are empty.
    """
    if len(hypotheses) != len(references) or not references:
        raise ValueError(
            f"Got {len(hypotheses)} translations for {len(references)} references: they must come in pairs."
        )
    scores = {}
    for name, metric in zip(TRANSLATION_SCORES, load_metrics(), strict=True):
        resampled = num_resamples if len(references) > 1 else 0
        result: Any = metric.corpus_score(list(hypotheses), [list(references)], n_bootstrap=max(1, resampled))
        scores[name] = _estimate(result, bool(resampled))
        if signatures is not None:
            signatures[name] = str(metric.get_signature())
    return scores


def sentence_scores(hypotheses: Sequence[str], references: Sequence[str]) -> list[float]:
    """The chrF2 of each translation."""
    _, chrf = load_metrics()
    return [
        chrf.sentence_score(hypothesis, [reference]).score
        for hypothesis, reference in zip(hypotheses, references, strict=True)
    ]


def load_metrics() -> tuple[Metric, Metric]:
    """BLEU and chrF.

    Raises:
        ImportError: sacrebleu is not installed.
    """
    try:
        from sacrebleu.metrics.bleu import BLEU
        from sacrebleu.metrics.chrf import CHRF
    except ImportError as error:
        raise ImportError(
            "Scores of translations need sacrebleu, which is not installed: pip install 'hf-speech-ssl[translation]' "
            "(pip install sacrebleu)."
        ) from error
    return BLEU(), CHRF()


def _estimate(result: Any, has_interval: bool) -> Estimate:
    if not has_interval:
        return Estimate(float(result.score), None, None)
    # sacrebleu shows mean and half-width in its text only, rounded. Its interval is symmetric, and may pass the ends.
    low, high = max(0.0, result._mean - result._ci), min(100.0, result._mean + result._ci)
    return Estimate(float(result.score), float(low), float(high))
