"""The head of a card: what the Hub filters by and shows beside it."""

from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from .architecture import TAGS
from .run_files import SYNTHETIC, Run, is_hub_id

LIBRARY = "transformers"
TASKS = {"ctc": "automatic-speech-recognition"}
COMMON_TAGS = ["speech", "self-supervised-learning", "hf-speech-ssl"]
MEASURED = ("wer", "cer")


def metadata(run: Run, license: str, language: str | list[str] | None) -> ModelCardData:
    """The metadata of a run's model; a data set or a base model that is not on the Hub is not named as if it were.

    Raises:
        ValueError: huggingface_hub finds something that the Hub would not take.
    """
    found = eval_results(run)
    base_model = run.pretrained
    return ModelCardData(
        license=license,
        language=language or run.arguments.get("language") or ("en" if run.dataset == SYNTHETIC else None),
        library_name=LIBRARY,
        pipeline_tag=pipeline_tag(run.kind),
        tags=[*COMMON_TAGS, *TAGS[run.config.model_type]],
        datasets=[run.dataset] if is_hub_id(run.dataset) else None,
        base_model=base_model if is_hub_id(base_model) else None,
        metrics=[name for name in MEASURED if any(one.metric_type == name for one in found)] or None,
        model_name=run.name,
        eval_results=found or None,
    )


def pipeline_tag(kind: str) -> str:
    """The Hub's name for what a kind of model does."""
    return TASKS.get(kind, "feature-extraction")


def eval_results(run: Run) -> list[EvalResult]:
    """Error rates for the Hub's `model-index`, in percent as is the custom there.

    They are those of the evaluation files, and for other splits those of training's last evaluation.
    """
    found: dict[tuple[Any, ...], EvalResult] = {}
    for evaluation in run.evaluations:
        for mode, scores in evaluation.modes.items():
            for metric in MEASURED:
                key = evaluation.dataset, evaluation.split, mode, metric
                found.setdefault(key, _eval_result(run, *key, scores[metric]["value"]))
    for split in run.eval_splits:
        for mode, prefix in _modes(run, split).items():
            for metric in MEASURED:
                value = run.results.get(f"{prefix}{metric}")
                if value is not None and (run.dataset, split, mode, metric) not in found:
                    key = run.dataset, split, mode, metric
                    found[key] = _eval_result(run, *key, value)
    return list(found.values())


def _modes(run: Run, split: str) -> dict[str, str]:
    """What the names in results.json begin with, for each mode that a split was evaluated in."""
    prefix = "eval_" if len(run.eval_splits) == 1 else f"eval_{split}_"
    durations = run.arguments.get("eval_chunk_durations_ms") or []
    return {"offline": prefix, **{f"{duration} ms": f"{prefix}{duration}ms_" for duration in durations}}


def _eval_result(run: Run, dataset: str, split: str, mode: str, metric: str, value: float) -> EvalResult:
    on_hub = is_hub_id(dataset)
    return EvalResult(
        task_type=TASKS["ctc"],
        task_name="Speech recognition",
        # The field is required, and read as the id of a data set on the Hub: what is none must not look like one.
        dataset_type=dataset if on_hub else f"{dataset} (not on the Hub)",
        dataset_name=dataset,
        dataset_config=run.arguments.get("dataset_config_name") if on_hub and dataset == run.dataset else None,
        dataset_split=split,
        metric_type=metric,
        metric_name=metric.upper() if mode == "offline" else f"{metric.upper()}, chunks of {mode}",
        metric_value=round(100 * value, 2),
    )
