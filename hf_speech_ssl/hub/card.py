"""The model card, written from the files of the run's own folder alone."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from yaml import YAMLError

from ..families import FAMILIES, Family
from ..json_files import is_hub_id, write_text
from ..run_folder import CARD_FILE, CURVES_FILE, ERROR_RATES, SYNTHETIC, Evaluation, MetricName, RunArguments, read_log
from .architecture import architecture, codebook_entries, count_in_words, frame_ms, in_words
from .metadata import OUR_TAG, metadata
from .run_files import Run

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
    write_text(run.folder / CARD_FILE, str(card))
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
        "family": run.family.name,
        "config": run.config,
        "arguments": run.arguments.values,
        "results": run.results,
        "streams": run.family.streams,
        "dataset": dataset_in_words(run.arguments.dataset),
        "synthetic": run.arguments.dataset == SYNTHETIC,
        "from_scratch": run.arguments.pretrained is None,
        "pretrained": run.arguments.pretrained,
        "parameters": count_in_words(run.results.num_parameters),
        "frame_ms": frame_ms(run.config),
        "codebook_entries": f"{codebook_entries(run.config):,}",
        "audio": duration_in_words(run.results.audio_hours),
        "architecture": architecture(run.family, run.config, run.kind),
        "settings": {
            name: in_words(value) for name, value in settings.items() if value is not False and value not in (None, "")
        },
        "curves": CURVES_FILE if (run.folder / CURVES_FILE).is_file() else None,
        "evaluations": [evaluation_in_words(evaluation) for evaluation in run.evaluations],
        "metrics": metric_rows(run.results.metrics),
        "training_splits": training_splits_in_words(run.arguments),
        **compute_in_words(run),
        **citations(run.family),
    }


def evaluation_in_words(evaluation: Evaluation) -> dict[str, Any]:
    """One evaluation's table and what is to be said of it."""
    rows = []
    for mode, scores in evaluation.modes.items():
        latency = scores.get("latency_ms")
        rates = {name: rate_in_words(scores[name]) for name in Evaluation.rates}
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


def training_splits_in_words(arguments: RunArguments) -> str:
    """What was listened to in the evaluations of training."""
    names, limit = [f"`{name}`" for name in arguments.eval_splits], arguments.get("max_eval_samples")
    many = len(names) > 1
    words = f"the split{'s' * many} {' and '.join(names)}" if names else "a split that was not recorded"
    return words + (f", the first {limit:,} utterances{' of each' * many} only" if limit else "")


def metric_rows(metrics: Mapping[str, float]) -> dict[str, str]:
    """The results of training's last evaluation: error rates in percent, everything else as it is."""
    rows = {}
    for name, value in metrics.items():
        parsed = MetricName.parse(name)
        is_rate = parsed is not None and parsed.metric in ERROR_RATES
        rows[name.removeprefix("eval_")] = f"{100 * value:.2f} %" if is_rate else f"{value:.4g}"
    return rows


def citations(family: Family) -> dict[str, str]:
    """BibTeX of the family's papers, and of the other methods' own."""
    others = {other.papers[0].bibtex for other in FAMILIES} - {paper.bibtex for paper in family.papers}
    own = "\n".join(paper.bibtex for paper in family.papers)
    return {"citation": own, "other_citation": "\n".join(sorted(others))}


def compute_in_words(run: Run) -> dict[str, str | None]:
    """Time, rate, precision and memory, as far as the run's files have them."""
    hours, precision = run.results.training_hours, run.arguments.get("mixed_precision")
    memory = [values["peak_memory_gib"] for _, values in read_log(run.folder) if "peak_memory_gib" in values]
    return {
        "duration": duration_in_words(hours),
        "rate": f"{run.results.audio_hours / hours:,.1f}" if hours > 0 else None,
        "precision": "float32" if precision == "no" else precision,
        "memory": f"{max(memory):.1f}" if memory and math.isfinite(max(memory)) else None,
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
