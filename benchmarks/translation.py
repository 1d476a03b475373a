"""Translation of English speech into German: BLEU against lagging in chunks of 160 to 1600 ms, and offline.

    python benchmarks/translation.py [--threads 1] [--language de] [--ctc_steps 2000] [--max_steps 4000]

A `chunkssl-tiny` encoder is trained with CTC on the English transcripts of the synthetic corpus (`grammar=clauses`),
and then with a transducer on the translations. The one model is scored in all modes on the test split, whose sentences
and voices are in no other. German verbs stand last in subordinate clauses and behind auxiliaries, so that the model
must wait for them. A word comes with the end of its chunk and of the look-ahead; computation is not included.

A killed run goes on where it stopped; what is done is not done again.
"""

import argparse
from pathlib import Path
from typing import Any

from common import argument_parser, machine, markdown, pin, write_results
from labels import call_script

CHUNKS_MS = [160, 320, 640, 1280, 1600]
LEAST_BLEU, MOST_LOST = 60.0, 0.15  # offline; share that chunks of 640 ms may lose
SCHEDULE = {"lr_scheduler_type": "tri_stage", "warmup_steps": 0.1, "hold_steps": 0.4, "num_anneals": 10}
SPEC_AUGMENT = "num_time_masks=2,max_time_mask_share=0.05,num_feature_masks=2,max_feature_mask_width=15"
FIELDS = f"hidden_dropout=0.1,streaming_durations_ms={CHUNKS_MS},mask_time_prob=0,mask_feature_prob=0,{SPEC_AUGMENT}"


def train(options: argparse.Namespace) -> Path:
    """The folder of the translator; what has been trained already is kept."""
    shared: dict[str, Any] = {
        "dataset_name": "synthetic",
        "dataset_config_name": options.synthetic_config,
        "eval_split_name": "",
        "load_best_model_at_end": False,
        "learning_rate": options.learning_rate,
        "per_device_train_batch_seconds": options.batch_seconds,
        "weight_decay": 0.0,
        "mixed_precision": options.mixed_precision,
        "seed": options.seed,
        "config_overrides": FIELDS.replace(" ", ""),
        **SCHEDULE,
    }
    recognizer = options.work_dir / f"ctc-{options.ctc_steps}"
    call_script(
        "finetuning_scripts/run_ctc.py",
        recognizer,
        config_name="chunkssl-tiny",
        max_steps=options.ctc_steps,
        **shared,
    )
    translator = options.work_dir / f"{options.language}-{options.max_steps}"
    call_script(
        "finetuning_scripts/run_rnnt.py",
        translator,
        task="translate",
        translation_column_name=f"text_{options.language}",
        model_name_or_path=recognizer,
        vocabulary_size=options.vocabulary_size,
        freeze_encoder_steps=0.02,
        max_steps=options.max_steps,
        **shared,
    )
    return translator


def evaluate(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Scores and laggings in every mode; the instance logs lie beside the model."""
    from hf_speech_ssl.commands.evaluate import EvaluateOptions
    from hf_speech_ssl.commands.evaluate import evaluate as run_command
    from hf_speech_ssl.options import DecodingOptions, LoadingOptions, ReadingOptions

    report = run_command(
        EvaluateOptions(
            model_name_or_path=str(folder),
            translation_column_name=f"text_{options.language}",
            chunk_durations_ms=CHUNKS_MS,
            instance_log_dir=str(folder / "instances"),
            output_file=str(folder / "evaluation.json"),
        ),
        ReadingOptions(
            dataset_name="synthetic",
            dataset_config_name=options.synthetic_config,
            split_name="test",
            batch_seconds=30.0,
        ),
        LoadingOptions(device="cpu"),
        DecodingOptions(),
    )
    return {mode: dict(scores) for mode, scores in report.modes.items()}


def table(modes: dict[str, Any]) -> str:
    """A row for each mode."""

    def score(estimate: dict[str, Any]) -> str:
        return f"{estimate['value']:.1f} [{estimate['low']:.1f}, {estimate['high']:.1f}]"

    def number(value: float | None) -> str:
        return "" if value is None else f"{value:.0f}"

    late = ("al", "laal", "yaal", "without_yaal")
    rows = [
        [mode, score(one["bleu"]), score(one["chrf"]), *(number(one.get(figure)) for figure in late)]
        for mode, one in modes.items()
    ]
    header = ["mode", "BLEU", "chrF", "AL, ms", "LAAL, ms", "YAAL, ms", "recordings without YAAL"]
    return markdown(header, rows)


def verdict(modes: dict[str, Any]) -> str:
    """Whether the bars are met."""
    offline, streaming = modes["offline"]["bleu"]["value"], modes["640 ms"]["bleu"]["value"]
    lost = 1 - streaming / offline if offline else 1.0
    return (
        f"Offline BLEU {offline:.1f} (bar: {LEAST_BLEU:.0f}); chunks of 640 ms lose {100 * lost:.1f} % of it (bar: "
        f"{100 * MOST_LOST:.0f} %). {'Met' if offline >= LEAST_BLEU and lost <= MOST_LOST else 'Not met'}."
    )


def draw(modes: dict[str, Any], path: Path) -> None:
    """BLEU over LAAL and YAAL."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for lag in ("laal", "yaal"):
        known = [(mode, one[lag], one["bleu"]["value"]) for mode, one in modes.items() if one.get(lag) is not None]
        axes.plot([x for _, x, _ in known], [y for *_, y in known], marker="o", label=lag.upper())
        for mode, x, y in known:
            if lag == "laal":
                axes.annotate(mode, (x, y), textcoords="offset points", xytext=(-4, 6), ha="right")
    axes.axhline(modes["offline"]["bleu"]["value"], linestyle="--", color="gray", label="offline")
    axes.set_xlabel("lagging without computation, ms")
    axes.set_ylabel("BLEU")
    axes.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argument_parser(__doc__, repeats=1)
    parser.set_defaults(threads=1)
    parser.add_argument("--language", default="de", choices=["de", "es"])
    parser.add_argument(
        "--synthetic_config", default="sentences=4000,eval_sentences=300,grammar=clauses,languages=de+es"
    )
    parser.add_argument("--ctc_steps", type=int, default=2000)
    parser.add_argument("--max_steps", type=int, default=4000)
    parser.add_argument("--learning_rate", type=float, default=2e-3)
    parser.add_argument("--batch_seconds", type=float, default=32.0)
    parser.add_argument("--vocabulary_size", type=int, default=160)
    parser.add_argument("--mixed_precision", default="bf16", choices=["no", "bf16"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work_dir", type=Path, default=Path(__file__).parents[1] / "outputs" / "translation")
    options = parser.parse_args()
    options.work_dir = options.work_dir.resolve()
    options.work_dir.mkdir(parents=True, exist_ok=True)
    where = machine(options.threads)
    pin(options.threads)
    modes = evaluate(options, train(options))
    name = f"translation_{options.language}"
    options.output_dir.mkdir(parents=True, exist_ok=True)
    draw(modes, options.output_dir / f"{name}.png")
    facts = (
        f"English to {options.language}, `{options.synthetic_config}`, {modes['offline']['utterances']} utterances "
    )
    facts += f"of the test split; {options.ctc_steps} updates of CTC and {options.max_steps} of the transducer, of "
    facts += f"{options.batch_seconds:g} s each; mixed precision: {options.mixed_precision}."
    write_results(
        options.output_dir,
        name,
        where,
        [facts, verdict(modes), table(modes), f"![BLEU over lagging]({name}.png)"],
        modes,
    )


if __name__ == "__main__":
    main()
