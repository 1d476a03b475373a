"""The model card, written from the files of the run's own folder: config.json, results.json, run_arguments.json."""

import json
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from .citations import BEST_RQ, BIRQ, CHUNK_SSL, FSQ

TEMPLATE = Path(__file__).parents[1] / "model_cards" / "template.md"
RESULTS_FILE = "results.json"
ARGUMENTS_FILE = "run_arguments.json"

# What each model type is called, the Hub's tags for it, and whom to cite.
FAMILIES = {
    "birq": ("BiRQ", ["birq", "best-rq"], [BIRQ, BEST_RQ]),
    "chunkssl": ("Chunk SSL", ["chunk-ssl", "streaming"], [CHUNK_SSL, FSQ]),
    "speech_fsq": ("FSQ", ["fsq", "chunk-ssl"], [CHUNK_SSL, FSQ]),
}
# The flags that say how a run was made; paths and bookkeeping are left out of the card.
SHOWN_SETTINGS = """config_name config_overrides model_name_or_path from_scratch dataset_name dataset_config_name
    train_split_name max_train_samples per_device_train_batch_seconds gradient_accumulation_steps learning_rate
    lr_scheduler_type warmup_steps hold_steps weight_decay adam_beta1 adam_beta2 max_grad_norm freeze_encoder_steps
    mixed_precision max_duration_in_seconds seed""".split()


def write_model_card(folder: str | Path, license: str = "apache-2.0") -> ModelCard:
    """Write README.md, the model card with the Hub's metadata, into the folder of a finished run.

    Raises:
        FileNotFoundError: the folder lacks config.json, results.json or run_arguments.json.
        ValueError: the model is of no family of this package.
    """
    folder = Path(folder)
    config, results, arguments = (_read(folder, name) for name in ("config.json", RESULTS_FILE, ARGUMENTS_FILE))
    if config.get("model_type") not in FAMILIES:
        raise ValueError(f"{folder} holds a model of type {config.get('model_type')!r}, not one of {list(FAMILIES)}.")
    family, tags, citations = FAMILIES[config["model_type"]]
    kind = _kind(config)
    name = arguments.get("hub_model_id") or folder.resolve().name
    dataset = arguments["dataset_name"]
    synthetic = dataset == "synthetic"
    card = ModelCard.from_template(
        _metadata(name, kind, tags, license, results, arguments),
        template_path=str(TEMPLATE),
        name=name,
        kind=kind,
        family=family,
        config=config,
        arguments=arguments,
        results={**results, "num_parameters_in_words": _in_words(results["num_parameters"])},
        dataset="synthetic speech from espeak-ng" if synthetic else f"`{dataset}`",
        synthetic=synthetic,
        duration=_duration(results["training_hours"]),
        from_scratch=bool(arguments.get("from_scratch") or arguments.get("config_name")),
        frame_ms=10 * config.get("frame_stacking", 1),
        codebook_size=_product(config.get("fsq_levels", [])),
        settings={key: arguments[key] for key in SHOWN_SETTINGS if arguments.get(key) not in (None, False, "")},
        metrics=_metric_rows(results),
        license=license,
        citation="\n".join(citations),
    )
    card.save(folder / "README.md")
    return card


def _metadata(
    name: str, kind: str, tags: list[str], license: str, results: dict[str, Any], arguments: dict[str, Any]
) -> ModelCardData:
    """The card's head: what the Hub filters and shows."""
    on_hub = "/" in arguments["dataset_name"]
    pretrained = arguments.get("model_name_or_path") or ""
    return ModelCardData(
        license=license,
        library_name="transformers",
        pipeline_tag="automatic-speech-recognition" if kind == "ctc" else "feature-extraction",
        tags=["speech", "self-supervised-learning", *tags],
        datasets=[arguments["dataset_name"]] if on_hub else None,
        base_model=pretrained if "/" in pretrained and not arguments.get("from_scratch") else None,
        metrics=["wer", "cer"] if kind == "ctc" else None,
        model_name=name,
        eval_results=_eval_results(results, arguments) or None,
    )


def _eval_results(results: dict[str, Any], arguments: dict[str, Any]) -> list[EvalResult]:
    """The error rates of every evaluation split, for the Hub's `model-index`; in percent, as is the custom there."""
    splits = [split.strip() for split in (arguments.get("eval_split_name") or "").split(",") if split.strip()]
    found = []
    for split in splits:
        prefix = "eval" if len(splits) == 1 else f"eval_{split}"
        for metric in ("wer", "cer"):
            if (value := results.get(f"{prefix}_{metric}")) is not None:
                found.append(
                    EvalResult(
                        task_type="automatic-speech-recognition",
                        task_name="Speech recognition",
                        dataset_type=arguments["dataset_name"],
                        dataset_name=arguments["dataset_name"],
                        dataset_config=arguments.get("dataset_config_name"),
                        dataset_split=split,
                        metric_type=metric,
                        metric_name=metric.upper(),
                        metric_value=round(100 * value, 2),
                    )
                )
    return found


def _metric_rows(results: dict[str, Any]) -> dict[str, str]:
    """The table of results: error rates in percent, everything else as it is."""
    rows = {}
    for name, value in results.items():
        if name.startswith("eval_"):
            is_rate = name.endswith(("_wer", "_cer"))
            rows[name.removeprefix("eval_")] = f"{100 * value:.2f} %" if is_rate else f"{value:.4g}"
    return rows


def _kind(config: dict[str, Any]) -> str:
    architecture = (config.get("architectures") or [""])[0]
    if architecture.endswith("ForCTC"):
        return "ctc"
    return "tokenizer" if config["model_type"] == "speech_fsq" else "encoder"


def _duration(hours: float) -> str:
    return f"{hours:.1f} hours" if hours >= 1 else f"{60 * hours:.1f} minutes"


def _in_words(count: int) -> str:
    return f"{count / 1e6:.1f} million" if count >= 1e6 else f"{count:,}"


def _product(levels: list[int]) -> int:
    product = 1
    for level in levels:
        product *= level
    return product


def _read(folder: Path, name: str) -> dict[str, Any]:
    file = folder / name
    if not file.is_file():
        raise FileNotFoundError(f"{folder} has no {name}: a model card is written from the folder of a finished run.")
    return dict(json.loads(file.read_text()))
