"""The evaluations of a run, as the tables of its card and as results in the card's head."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import EvalResult

from ..json_files import is_hub_id
from ..run_folder import (
    ERROR_RATES,
    GREEDY,
    LAGGINGS,
    OFFLINE,
    SYNTHETIC,
    TRANSLATE,
    TRANSLATION_SCORES,
    Evaluation,
    MetricName,
    RunArguments,
    RunResults,
    mode_name,
)

RECOGNITION = "automatic-speech-recognition"  # the Hub's task of all models that write text
METRIC_NAMES = {"wer": "WER", "cer": "CER", "bleu": "BLEU", "chrf": "chrF"}


class _Evaluated(NamedTuple):
    """Which data was transcribed, and how."""

    dataset: str
    config: str | None
    split: str
    mode: str
    decoder: str


def eval_results(arguments: RunArguments, results: RunResults, evaluations: Sequence[Evaluation]) -> list[EvalResult]:
    """Error rates in percent, as is the custom there, or BLEU and chrF, for the Hub's `model-index`.

    Figures of the evaluation files of whole splits come first; the last evaluation of training fills in what they
    leave out.
    """
    found: dict[_Evaluated, dict[str, float | None]] = {}
    for one in evaluations:
        if not one.settings.get("max_samples"):
            for mode, scores in one.modes.items():
                what = _Evaluated(one.dataset, one.settings.get("dataset_config_name"), one.split, mode, one.decoder)
                names = TRANSLATION_SCORES if one.is_translation else ERROR_RATES
                found.setdefault(what, {name: scores[name]["value"] for name in names})
    for what, figures in _of_training(arguments, results):
        found.setdefault(what, figures)
    return [
        _eval_result(what, name, value)
        for what, figures in found.items()
        for name, value in figures.items()
        if value is not None and math.isfinite(value)
    ]


def _of_training(arguments: RunArguments, results: RunResults) -> Iterator[tuple[_Evaluated, dict[str, float | None]]]:
    """Figures of the last evaluation of training, if it was one of whole splits."""
    metrics = TRANSLATION_SCORES if arguments.get("task") == TRANSLATE else ERROR_RATES
    for split in arguments.eval_splits if not arguments.get("max_eval_samples") else []:
        for mode in map(mode_name, (0, *(arguments.get("eval_chunk_durations_ms") or []))):
            what = _Evaluated(arguments.dataset, arguments.get("dataset_config_name"), split, mode, GREEDY)
            names = {name: str(MetricName.among(arguments.eval_splits, split, name, mode)) for name in metrics}
            yield what, {name: results.metrics.get(names[name]) for name in metrics}


def _eval_result(what: _Evaluated, metric: str, value: float) -> EvalResult:
    name = METRIC_NAMES[metric]
    name += "" if what.mode == OFFLINE else f", chunks of {what.mode}"
    name += "" if what.decoder == GREEDY else f", {what.decoder}"
    return EvalResult(
        task_type=RECOGNITION if metric in ERROR_RATES else "translation",
        task_name="Speech recognition" if metric in ERROR_RATES else "Speech translation",
        # The Hub requires this field and links it to a data set: what is none must not look like one.
        dataset_type=what.dataset if is_hub_id(what.dataset) else f"{what.dataset} (not on the Hub)",
        dataset_name=what.dataset,
        dataset_config=what.config,
        dataset_split=what.split,
        metric_type=metric,
        metric_name=name,
        metric_value=round(100 * value if metric in ERROR_RATES else value, 2),
    )


def evaluation_values(evaluation: Evaluation) -> dict[str, Any]:
    """The table of an evaluation, its data and its method."""
    settings = evaluation.settings
    config, limit = settings.get("dataset_config_name"), settings.get("max_samples")
    data = f"Split `{evaluation.split}` of {dataset_text(evaluation.dataset)}"
    data += f", configuration `{config}`" if config else ""
    data += f", the first {limit:,} utterances only" if limit else ""
    heads, rows = (_translation_table if evaluation.is_translation else _error_table)(evaluation)
    if len(rows) == 1:
        heads, rows = heads[1:], [row[1:] for row in rows]
    method = f"{decoding_text(evaluation)} {interval_text(evaluation)}"
    return {"data": data, "heads": heads, "rows": rows, "method": method}


def _error_table(evaluation: Evaluation) -> tuple[list[str], list[list[str]]]:
    has_latency = any(scores.get("latency_ms") is not None for scores in evaluation.modes.values())
    heads = ["mode", *(METRIC_NAMES.get(name, name) for name in evaluation.rates), *(["latency"] * has_latency)]
    rows = []
    for mode, scores in evaluation.modes.items():
        row = [mode, *(rate_text(scores[name]) for name in evaluation.rates)]
        latency = scores.get("latency_ms")
        rows.append(row + ["" if latency is None else f"{latency:,.0f} ms"] * has_latency)
    return heads, rows


def _translation_table(evaluation: Evaluation) -> tuple[list[str], list[list[str]]]:
    lags = [lag for lag in LAGGINGS if any(scores.get(lag) is not None for scores in evaluation.modes.values())]
    rows = []
    for mode, scores in evaluation.modes.items():
        known = ["" if scores.get(lag) is None else f"{scores[lag]:,.0f} ms" for lag in lags]
        rows.append([mode, *(score_text(scores[name]) for name in TRANSLATION_SCORES), *known])
    return ["mode", *(METRIC_NAMES[name] for name in TRANSLATION_SCORES), *(lag.upper() for lag in lags)], rows


def rate_text(rate: Mapping[str, float | None]) -> str:
    """An error rate in percent, with its interval if it has one."""
    value, low, high = (rate[name] for name in ("value", "low", "high"))
    if value is None:
        return ""
    return f"{100 * value:.2f} %" + ("" if low is None or high is None else f" [{100 * low:.2f}, {100 * high:.2f}]")


def score_text(score: Mapping[str, float | None]) -> str:
    """A score of 100, with its interval if it has one."""
    value, low, high = (score[name] for name in ("value", "low", "high"))
    if value is None:
        return ""
    return f"{value:.1f}" + ("" if low is None or high is None else f" [{low:.1f}, {high:.1f}]")


def decoding_text(evaluation: Evaluation) -> str:
    """How the hypotheses of an evaluation were found."""
    settings = evaluation.settings
    sources = {"language model": settings.get("lm_path"), "lexicon": settings.get("lexicon_path")}
    named = [f"{what} `{Path(path).name}`" for what, path in sources.items() if path]
    if not named:
        return f"{evaluation.decoder.capitalize()} without a language model."
    beam = settings.get("beam_size")
    search = f"{evaluation.decoder.capitalize()}{f' ({beam} hypotheses)' if beam else ''}"
    return f"{search} with {' and '.join(named)}."


def interval_text(evaluation: Evaluation) -> str:
    """How the intervals of an evaluation were drawn, if they were; of translations sacrebleu's signatures, too."""
    settings, figure = evaluation.settings, "bleu" if evaluation.is_translation else "wer"
    text = "No confidence intervals were computed."
    if all(scores[figure]["low"] is not None for scores in evaluation.modes.values()):
        text = f"In brackets: {100 * settings.get('confidence', 0.95):g} % bootstrap intervals"
        if resamples := settings.get("num_resamples"):
            text += f" from {resamples:,} resamples of the {settings.get('resampled', 'utterances')}"
        text += "."
    if any(scores.get("laal") is not None for scores in evaluation.modes.values()):
        text += " Laggings count a word when its chunk and the look-ahead have come, without computation."
    signatures = settings.get("signatures") or {}
    return " ".join([text, *(f"{METRIC_NAMES[name]}: `{one}`." for name, one in signatures.items())])


def dataset_text(name: str) -> str:
    """A data set as Markdown, with a link if it is on the Hub."""
    if name == SYNTHETIC:
        return "synthetic speech from espeak-ng"
    return f"[`{name}`](https://huggingface.co/datasets/{name})" if is_hub_id(name) else f"`{name}`"
