"""The head of a card: what the Hub filters by and shows beside it."""

import math
from dataclasses import dataclass

from huggingface_hub import EvalResult, ModelCardData

from ..json_files import is_hub_id
from ..run_folder import ERROR_RATES, GREEDY, OFFLINE, SYNTHETIC, MetricName, mode_name
from .run_files import Run

LIBRARY = "transformers"
TASKS = {"ctc": "automatic-speech-recognition"}
OUR_TAG = "hf-speech-ssl"
COMMON_TAGS = ["speech", "self-supervised-learning", OUR_TAG]


def metadata(run: Run, license: str, language: str | list[str] | None) -> ModelCardData:
    """The metadata of a run's model; a data set or a base model that is not on the Hub is not named as if it were.

    Raises:
        ValueError: huggingface_hub finds something that the Hub would not take.
    """
    found = eval_results(run)
    base_model = run.arguments.pretrained
    return ModelCardData(
        license=license,
        language=language or run.arguments.get("language") or ("en" if run.arguments.dataset == SYNTHETIC else None),
        library_name=LIBRARY,
        pipeline_tag=pipeline_tag(run.kind),
        tags=[*COMMON_TAGS, *run.family.tags],
        datasets=[run.arguments.dataset] if is_hub_id(run.arguments.dataset) else None,
        base_model=base_model if is_hub_id(base_model) else None,
        metrics=[name for name in ERROR_RATES if any(one.metric_type == name for one in found)] or None,
        model_name=run.name,
        eval_results=found or None,
    )


def pipeline_tag(kind: str) -> str:
    """The Hub's name for what a kind of model does."""
    return TASKS.get(kind, "feature-extraction")


def eval_results(run: Run) -> list[EvalResult]:
    """Error rates for the Hub's `model-index`, in percent as is the custom there.

    They are those of the evaluation files, where these heard whole splits, and for what they leave out those of
    training's last evaluation.
    """
    found: dict[_Heard, dict[str, float]] = {}
    for evaluation in run.evaluations:
        if evaluation.settings.get("max_samples"):
            continue
        config = evaluation.settings.get("dataset_config_name")
        for mode, scores in evaluation.modes.items():
            heard = _Heard(evaluation.dataset, config, evaluation.split, mode, evaluation.decoder)
            found.setdefault(heard, _numbers({name: scores[name]["value"] for name in ERROR_RATES}))
    for split in run.arguments.eval_splits if not run.arguments.get("max_eval_samples") else []:
        for mode in map(mode_name, (0, *(run.arguments.get("eval_chunk_durations_ms") or []))):
            heard = _Heard(run.arguments.dataset, run.arguments.get("dataset_config_name"), split, mode, GREEDY)
            found.setdefault(heard, _numbers({name: _of_training(run, split, name, mode) for name in ERROR_RATES}))
    return [_eval_result(heard, name, value) for heard, rates in found.items() for name, value in rates.items()]


@dataclass(frozen=True)
class _Heard:
    """What was transcribed, and how."""

    dataset: str
    config: str | None
    split: str
    mode: str
    decoder: str


def _numbers(rates: dict[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in rates.items() if value is not None and math.isfinite(value)}


def _of_training(run: Run, split: str, metric: str, mode: str) -> float | None:
    return run.results.metrics.get(str(MetricName.among(run.arguments.eval_splits, split, metric, mode)))


def _eval_result(heard: _Heard, metric: str, value: float) -> EvalResult:
    name = metric.upper()
    name += "" if heard.mode == OFFLINE else f", chunks of {heard.mode}"
    name += "" if heard.decoder == GREEDY else f", {heard.decoder}"
    return EvalResult(
        task_type=TASKS["ctc"],
        task_name="Speech recognition",
        # The field is required, and read as the id of a data set on the Hub: what is none must not look like one.
        dataset_type=heard.dataset if is_hub_id(heard.dataset) else f"{heard.dataset} (not on the Hub)",
        dataset_name=heard.dataset,
        dataset_config=heard.config,
        dataset_split=heard.split,
        metric_type=metric,
        metric_name=name,
        metric_value=round(100 * value, 2),
    )
