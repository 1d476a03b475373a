"""The model card of a run, written from the files in the run's folder and nothing else."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.errors import StrictDataclassError

from ..families import FAMILIES, Family, family_of
from ..json_files import is_hub_id, read_json, write_text
from ..modeling.configuration_conformer import SpeechSSLConfig
from ..run_folder import (
    CARD_FILE,
    CONFIG_FILE,
    CURVES_FILE,
    ERROR_RATES,
    SYNTHETIC,
    TRANSLATE,
    Evaluation,
    LogEntry,
    MetricName,
    RunArguments,
    RunResults,
    read_log,
)
from ..verdict import Verdict
from .card_results import METRIC_NAMES, RECOGNITION, dataset_text, eval_results, evaluation_values

TEMPLATE = Path(__file__).parents[1] / "model_cards" / "template.md"
OUR_TAG = "hf-speech-ssl"
AUTO_CLASSES = {
    "ctc": "AutoModelForCTC",
    "rnnt": "AutoModelForRNNT",
    "classification": "AutoModelForAudioClassification",
    "frame_classification": "AutoModelForAudioFrameClassification",
}
TEXT_HEADS, CLASSIFICATION_HEADS = ("ctc", "rnnt"), ("classification", "frame_classification")
TASKS = dict.fromkeys(TEXT_HEADS, RECOGNITION)
TASKS |= dict.fromkeys(CLASSIFICATION_HEADS, "audio-classification")
TASKS |= dict.fromkeys(("encoder", "tokenizer"), "feature-extraction")
# The flags that say how a run was made; paths and bookkeeping are left out of the card.
SHOWN_SETTINGS = """config_name config_overrides model_name_or_path fsq_model_name_or_path from_scratch
    per_device_train_batch_seconds gradient_accumulation_steps learning_rate lr_scheduler_type warmup_steps hold_steps
    weight_decay adam_beta1 adam_beta2 max_grad_norm freeze_encoder freeze_feature_projection freeze_encoder_steps
    max_train_samples max_duration_in_seconds seed""".split()
# What a field of the configuration without a value stands for.
ABSENT = {"attention_window": "the whole utterance", "left_context_chunks": "all"}


@dataclass(frozen=True)
class FinishedRun:
    """The folder of a finished run.

    Args:
        config: of the model, defaults filled in.
        architecture: name of the class that was saved.
    """

    folder: Path
    family: Family
    config: SpeechSSLConfig
    architecture: str
    results: RunResults
    arguments: RunArguments
    evaluations: list[Evaluation]

    @classmethod
    def read(cls, folder: str | Path) -> "FinishedRun":
        """Read config.json, results.json, run_arguments.json and the evaluations that there are.

        Raises:
            FileNotFoundError: there is no such folder, or one of the three files is not in it.
            ValueError: a file is no JSON or lacks something, or the model is of no family of this package.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise FileNotFoundError(f"There is no folder {folder}; name the output folder of a finished run.")
        try:
            values = read_json(folder / CONFIG_FILE)
            results, arguments = RunResults.read(folder), RunArguments.read(folder, ["dataset_name"])
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{error} A model card needs the output folder of a finished run.") from error
        family = family_of(values.get("model_type"))
        if family is None:
            known = ", ".join(one.model_type for one in FAMILIES)
            raise ValueError(f"{folder} holds a model of type {values.get('model_type')!r}, not one of {known}.")
        try:
            config = family.config_class.from_dict(values)
        except (StrictDataclassError, ValueError) as error:
            raise ValueError(f"{folder / CONFIG_FILE} is no configuration of {family.name}: {error}") from error
        architecture = (values.get("architectures") or [""])[0]
        return cls(folder, family, config, architecture, results, arguments, Evaluation.read_all(folder))

    @property
    def name(self) -> str:
        """The model's repository, or its folder."""
        return str(self.arguments.get("hub_model_id") or self.folder.resolve().name)

    @property
    def kind(self) -> str:
        """A head of `AUTO_CLASSES`, "tokenizer" or "encoder"."""
        return head_kind(self.architecture) or self.family.kind

    @property
    def translates(self) -> bool:
        """Whether the model was trained to write another language."""
        return self.arguments.get("task") == TRANSLATE


def head_kind(architecture: str) -> str | None:
    """The head of a class, where it writes text or names classes: a key of `AUTO_CLASSES`."""
    heads = {name.partition(":")[2]: head for family in FAMILIES for head, name in family.models.items()}
    head = heads.get(architecture)
    return head if head in AUTO_CLASSES else None


def write_model_card(
    folder: str | Path, license: str = "apache-2.0", language: str | list[str] | None = None
) -> ModelCard:
    """Write README.md, the model card with the Hub's metadata, into the folder of a finished run.

    It is made from config.json, results.json, run_arguments.json, train_log.jsonl and every `evaluation*.json`, which
    `hf-speech-ssl evaluate --output_file` writes and which has confidence intervals.

    Args:
        license: of the weights, as the Hub abbreviates it.
        language: ISO 639 codes of the audio; English where the data is our synthetic speech, else left out.

    Raises:
        FileNotFoundError: there is no such folder, or it lacks config.json, results.json or run_arguments.json.
        ValueError: one of the files is no JSON or lacks something, or the model is of no family of this package.
    """
    run = FinishedRun.read(folder)
    card = ModelCard.from_template(
        metadata(run, license, language), template_path=str(TEMPLATE), **template_values(run), license=license
    )
    write_text(run.folder / CARD_FILE, str(card))
    return card


def metadata(run: FinishedRun, license: str, language: str | list[str] | None) -> ModelCardData:
    """The head of the card, which the Hub filters by; data sets and base models appear if they are on the Hub."""
    results = eval_results(run.arguments, run.results, run.evaluations)
    common = common_metadata(run.kind, run.family)
    if run.translates:
        common["tags"] = [*common["tags"], "speech-translation"]
    dataset, base_model = run.arguments.dataset, run.arguments.pretrained
    return ModelCardData(
        license=license,
        language=language or run.arguments.get("language") or ("en" if dataset == SYNTHETIC else None),
        datasets=[dataset] if is_hub_id(dataset) else None,
        base_model=base_model if is_hub_id(base_model) else None,
        metrics=[name for name in METRIC_NAMES if any(one.metric_type == name for one in results)] or None,
        model_name=run.name,
        eval_results=results or None,
        **common,
    )


def common_metadata(kind: str, family: Family | None) -> dict[str, Any]:
    """Library, task and tags of a kind of model."""
    tags = ["speech", "self-supervised-learning", OUR_TAG, *(family.tags if family else ())]
    return {"library_name": "transformers", "pipeline_tag": TASKS[kind], "tags": tags}


def template_values(run: FinishedRun) -> dict[str, Any]:
    """Values of the template's placeholders."""
    settings = {name: run.arguments.get(name) for name in SHOWN_SETTINGS}
    log = read_log(run.folder)
    trained = [entry.values for entry in log if not entry.is_evaluation]
    return {
        "name": run.name,
        "kind": run.kind,
        "writes_text": run.kind in TEXT_HEADS,
        "translates": run.translates,
        "names_classes": run.kind in CLASSIFICATION_HEADS,
        "auto_class": AUTO_CLASSES.get(run.kind, "AutoModel"),
        "family": run.family.name,
        "config": run.config,
        "arguments": run.arguments.values,
        "results": run.results,
        "streams": run.family.streams,
        "dataset": dataset_text(run.arguments.dataset),
        "synthetic": run.arguments.dataset == SYNTHETIC,
        "from_scratch": run.arguments.pretrained is None,
        "pretrained": run.arguments.pretrained,
        "parameters": count_text(run.results.num_parameters),
        "frame_ms": frame_ms(run.config),
        "codebook_entries": f"{codebook_entries(run.config):,}",
        "audio": duration_text(run.results.audio_hours),
        "architecture": config_rows(run.family, run.config, run.kind),
        "settings": {
            name: value_text(value)
            for name, value in settings.items()
            if value is not False and value not in (None, "")
        },
        "curves": CURVES_FILE if (run.folder / CURVES_FILE).is_file() else None,
        "evaluations": [evaluation_values(one) for one in run.evaluations],
        "metrics": metric_rows(run.results.metrics, run.arguments.eval_splits),
        "verdict": verdict_values(run.results.verdict or Verdict.from_log(trained)),
        "training_splits": training_splits_text(run.arguments),
        **compute_values(run, log),
        **citations(run.family),
    }


def training_splits_text(arguments: RunArguments) -> str:
    """The data of the evaluations of training."""
    names, limit = [f"`{name}`" for name in arguments.eval_splits], arguments.get("max_eval_samples")
    many = len(names) > 1
    text = f"the split{'s' * many} {' and '.join(names)}" if names else "a split that was not recorded"
    return text + (f", the first {limit:,} utterances{' of each' * many} only" if limit else "")


def metric_rows(metrics: Mapping[str, float], splits: Sequence[str]) -> dict[str, str]:
    """Figures of training's last evaluation: error rates in percent, everything else as it is."""
    rows = {}
    for name, value in metrics.items():
        parsed = MetricName.parse(name, splits)
        if parsed is not None and math.isfinite(value):
            is_rate = parsed.metric in ERROR_RATES
            rows[parsed.label] = f"{100 * value:.2f} %" if is_rate else f"{value:.4g}"
    return rows


def verdict_values(verdict: Verdict | None) -> dict[str, Any] | None:
    """The tables of pretraining's verdict."""
    if verdict is None:
        return None
    labels = [
        {
            "kind": use.kind or "all",
            "used": f"{use.entries_used:,}" + (f" of {use.codebook_size:,}" if use.codebook_size else ""),
            "perplexity": f"{use.perplexity:,.0f}",
            "commonest": percent_text(use.commonest_share),
            "accuracy": percent_text(use.accuracy),
            "loudness": percent_text(use.loudness),
        }
        for use in verdict.labels
    ]
    return {"labels": labels, "layers": verdict.layers, "remarks": verdict.remarks}


def compute_values(run: FinishedRun, log: Sequence[LogEntry]) -> dict[str, str | None]:
    """Time, rate, precision and memory, as far as the run's files have them."""
    hours, precision = run.results.training_hours, run.arguments.get("mixed_precision")
    memory = [values["peak_memory_gib"] for _, values in log if "peak_memory_gib" in values]
    return {
        "duration": duration_text(hours),
        "rate": f"{run.results.audio_hours / hours:,.1f}" if hours > 0 else None,
        "precision": "float32" if precision == "no" else precision,
        "memory": f"{max(memory):.1f}" if memory and math.isfinite(max(memory)) else None,
    }


def citations(family: Family) -> dict[str, str]:
    """BibTeX of the family's papers, and of the other methods' own."""
    others = {other.papers[0].bibtex for other in FAMILIES} - {paper.bibtex for paper in family.papers}
    return {
        "citation": "\n".join(paper.bibtex for paper in family.papers),
        "other_citation": "\n".join(sorted(others)),
    }


def config_rows(family: Family, config: SpeechSSLConfig, kind: str) -> dict[str, str]:
    """The fields of a configuration that matter for a kind of model, by name."""
    values = {name: getattr(config, name, None) for name in family.shown_fields(config, kind)}
    if "label_layer" in values:
        values["label_layer"] = getattr(config, "enhanced_label_layer", None)  # what its absence stands for
    return {name: value_text(ABSENT.get(name) if value is None else value) for name, value in values.items()}


def frame_ms(config: SpeechSSLConfig) -> int:
    """Milliseconds of audio in one frame of the model."""
    return round(1000 / config.frame_rate)


def codebook_entries(config: SpeechSSLConfig) -> int:
    """Labels that the tokenizer of a configuration with `fsq_levels` can give; 1 without."""
    return math.prod(getattr(config, "fsq_levels", []))


def value_text(value: Any) -> str:
    """A field's value in the cell of a table."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    if isinstance(value, float):
        return str(float(f"{value:.6g}"))  # a third is 0.333333
    return f"{value:,}" if isinstance(value, int) else str(value).replace("|", "\\|")


def percent_text(share: float | None) -> str:
    """A share in percent."""
    return "" if share is None or not math.isfinite(share) else f"{100 * share:.1f} %"


def count_text(count: int) -> str:
    """A number of parameters."""
    return f"{count / 1e6:.1f} million" if count >= 1e6 else f"{count:,}"


def duration_text(hours: float) -> str:
    """Hours, or minutes or seconds where it is less than one."""
    if hours >= 1:
        return f"{hours:,.1f} hours"
    return f"{60 * hours:.1f} minutes" if 60 * hours >= 1 else f"{3600 * hours:.1f} seconds"
