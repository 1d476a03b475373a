"""The model card, written from the files of the run's own folder alone."""

import math
import re
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from yaml import YAMLError

from .architecture import FAMILY_NAMES, architecture, codebook_entries, count_in_words, frame_ms, in_words
from .citations import OTHER, OWN
from .curves import CURVES_FILE, LOG_FILE, read_curves
from .metadata import OUR_TAG, metadata
from .privacy import is_hub_id
from .run_files import RATES, SYNTHETIC, Evaluation, Run

TEMPLATE = Path(__file__).parents[1] / "model_cards" / "template.md"
# The flags that say how a run was made; paths and bookkeeping are left out of the card.
SHOWN_SETTINGS = """config_name config_overrides model_name_or_path fsq_model_name_or_path from_scratch
    per_device_train_batch_seconds gradient_accumulation_steps learning_rate lr_scheduler_type warmup_steps hold_steps
    weight_decay adam_beta1 adam_beta2 max_grad_norm freeze_encoder freeze_feature_projection freeze_encoder_steps
    max_train_samples max_duration_in_seconds seed""".split()


def write_model_card(
    folder: str | Path, license: str = "apache-2.0", language: str | list[str] | None = None
) -> ModelCard:
    """Write README.md, the model card with the Hub's metadata, into the folder of a finished run.

    What it says comes from config.json, results.json, run_arguments.json and train_log.jsonl; error rates with
    confidence intervals from every `evaluation*.json` that `hf-speech-ssl evaluate --output_file` has left there. Of
    local paths the last part alone is named.

    Args:
        license: of the weights, as the Hub abbreviates it.
        language: ISO 639 codes of what was spoken; English where the data is our synthetic speech, else left out.

    Raises:
        FileNotFoundError: there is no such folder, or it lacks config.json, results.json or run_arguments.json.
        ValueError: one of the files is no JSON or lacks something, or the model is of no family of this package.
    """
    run = Run.read(folder)
    card = ModelCard.from_template(
        metadata(run, license, language), template_path=str(TEMPLATE), **words_of(run), license=license
    )
    card.save(run.folder / "README.md")
    return card


def addressed(card: str, repo_id: str, revision: str | None = None) -> str:
    """A card of this package with snippets that load the model from a repository, or from a branch of it.

    A card is written with the name that the run knew. One that is not ours comes back as it is.
    """
    if OUR_TAG not in card:
        return card
    try:
        data = ModelCard(card).data
    except (ValueError, YAMLError):
        return card  # the Hub will say what is wrong with its head
    if OUR_TAG not in (data.get("tags") or []):
        return card
    name = str(data.get("model_name"))
    word = re.escape(name)
    branch = revision if revision != "main" else None
    in_python = f'"{repo_id}"' + (f', revision="{branch}"' if branch else "")
    in_terminal = repo_id + (f" --revision {branch}" if branch else "")
    card = card.replace(f'"{name}"', in_python)
    card = re.sub(rf"(`hf-speech-ssl [^`]*(?:name_or_path|demo) ){word}(?=[ `])", rf"\g<1>{in_terminal}", card)
    return re.sub(rf"(\.py --(?:fsq_)?model_name_or_path ){word}(?= )", rf"\g<1>{repo_id}", card)


def words_of(run: Run) -> dict[str, Any]:
    """All that the template's placeholders stand for."""
    settings = {name: run.arguments.get(name) for name in SHOWN_SETTINGS}
    return {
        "name": run.name,
        "kind": run.kind,
        "family": FAMILY_NAMES[run.config.model_type],
        "config": run.config,
        "arguments": run.arguments,
        "results": run.results,
        "streams": run.config.model_type == "chunkssl",
        "dataset": dataset_in_words(run.dataset),
        "synthetic": run.dataset == SYNTHETIC,
        "from_scratch": run.pretrained is None,
        "pretrained": run.pretrained,
        "parameters": count_in_words(run.results["num_parameters"]),
        "frame_ms": frame_ms(run.config),
        "codebook_entries": f"{codebook_entries(run.config):,}",
        "audio": duration_in_words(run.results["audio_hours"]),
        "architecture": architecture(run.config, run.kind),
        "settings": {
            name: in_words(value) for name, value in settings.items() if value is not False and value not in (None, "")
        },
        "curves": CURVES_FILE if (run.folder / CURVES_FILE).is_file() else None,
        "evaluations": [evaluation_in_words(evaluation) for evaluation in run.evaluations],
        "metrics": metric_rows(run.results),
        "training_splits": training_splits_in_words(run),
        **compute_in_words(run),
        "citation": "\n".join(OWN[run.config.model_type]),
        "other_citation": OTHER[run.config.model_type],
    }


def evaluation_in_words(evaluation: Evaluation) -> dict[str, Any]:
    """One evaluation's table and what is to be said of it."""
    rows = []
    for mode, scores in evaluation.modes.items():
        latency = scores.get("latency_ms")
        rates = {name: rate_in_words(scores[name]) for name in RATES}
        rows.append({"mode": mode, **rates, "latency": "" if latency is None else f"{latency:,.0f} ms"})
    return {
        "data": evaluated_data_in_words(evaluation),
        "rows": rows,
        "has_modes": len(rows) > 1,
        "has_latency": any(row["latency"] for row in rows),
        "method": f"{decoding_in_words(evaluation)} {interval_in_words(evaluation)}",
    }


def evaluated_data_in_words(evaluation: Evaluation) -> str:
    """What was listened to."""
    settings = evaluation.settings
    config, limit = settings.get("dataset_config_name"), settings.get("max_samples")
    words = f"Split `{evaluation.split}` of {dataset_in_words(evaluation.dataset)}"
    words += f", configuration `{config}`" if config else ""
    return words + (f", the first {limit:,} utterances only" if limit else "")


def interval_in_words(evaluation: Evaluation) -> str:
    """How the intervals of an evaluation were drawn, if they were."""
    settings = evaluation.settings
    if any(scores["wer"]["low"] is None for scores in evaluation.modes.values()):
        return "No confidence intervals were computed."
    words = f"In brackets: {100 * settings.get('confidence', 0.95):g} % bootstrap intervals"
    if resamples := settings.get("num_resamples"):
        words += f" from {resamples:,} resamples of the {settings.get('resampled', 'utterances')}"
    return f"{words}."


def decoding_in_words(evaluation: Evaluation) -> str:
    """How an evaluation's transcripts were found."""
    settings = evaluation.settings
    sources = {"language model": settings.get("lm_path"), "lexicon": settings.get("lexicon_path")}
    named = [f"{what} `{Path(path).name}`" for what, path in sources.items() if path]
    if not named:
        return f"{evaluation.decoder.capitalize()} without a language model."
    beam = settings.get("beam_size")
    search = f"{evaluation.decoder.capitalize()}{f' ({beam} hypotheses)' if beam else ''}"
    return f"{search} with {' and '.join(named)}."


def rate_in_words(rate: dict[str, float | None]) -> str:
    """An error rate in percent, with its interval if it has one."""
    value, low, high = (rate[name] for name in ("value", "low", "high"))
    if value is None:
        return ""
    return f"{100 * value:.2f} %" + ("" if low is None or high is None else f" [{100 * low:.2f}, {100 * high:.2f}]")


def training_splits_in_words(run: Run) -> str:
    """What was listened to in the evaluations of training."""
    names, limit = [f"`{name}`" for name in run.eval_splits], run.arguments.get("max_eval_samples")
    many = len(names) > 1
    words = f"the split{'s' * many} {' and '.join(names)}" if names else "a split that was not recorded"
    return words + (f", the first {limit:,} utterances{' of each' * many} only" if limit else "")


def metric_rows(results: dict[str, Any]) -> dict[str, str]:
    """The results of training's last evaluation: error rates in percent, everything else as it is."""
    rows = {}
    for name, value in results.items():
        if name.startswith("eval_"):
            is_rate = name.endswith(("_wer", "_cer"))
            rows[name.removeprefix("eval_")] = f"{100 * value:.2f} %" if is_rate else f"{value:.4g}"
    return rows


def compute_in_words(run: Run) -> dict[str, str | None]:
    """Time, rate, precision and memory, as far as the run's files have them."""
    hours, precision = run.results["training_hours"], run.arguments.get("mixed_precision")
    memory = read_curves(run.folder / LOG_FILE).get("peak_memory_gib", {})
    return {
        "duration": duration_in_words(hours),
        "rate": f"{run.results['audio_hours'] / hours:,.1f}" if hours > 0 else None,
        "precision": "float32" if precision == "no" else precision,
        "memory": f"{max(memory.values()):.1f}" if memory and math.isfinite(max(memory.values())) else None,
    }


def dataset_in_words(name: str) -> str:
    """A data set in a sentence, linked if it is one of the Hub."""
    if name == SYNTHETIC:
        return "synthetic speech from espeak-ng"
    return f"[`{name}`](https://huggingface.co/datasets/{name})" if is_hub_id(name) else f"`{name}`"


def duration_in_words(hours: float) -> str:
    """Hours, or minutes or seconds where it is less than one."""
    if hours >= 1:
        return f"{hours:,.1f} hours"
    return f"{60 * hours:.1f} minutes" if 60 * hours >= 1 else f"{3600 * hours:.1f} seconds"
