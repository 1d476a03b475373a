"""Whether BiRQ's enhanced labels stay alive over thousands of updates, and whether the encoder is better for them.

    python benchmarks/enhanced_labels.py --pretraining_folders an4 speechocean ... --finetuning_folder an4
    python benchmarks/enhanced_labels.py --corpora synthetic
    python benchmarks/enhanced_labels.py ... --sizes 8x256 --rows "birq, refined" --encoder_config label_layer=2

Encoders of two sizes are pretrained on recorded speech (folders as of `labels.py`, whose test speakers are left out
here too) and on synthetic speech of varied levels, with the rows of `labels.py` that are named. Of each run one line
is written to `enhanced_labels.jsonl`: the use of both kinds of labels in windows of 50,000 frames over the course of
training, and what `hf-speech-ssl probe` measures on synthetic speech, on other voices and sentences.

Lines are appended as runs end. A run whose line is there is not repeated, and a killed one resumes.
"""

import argparse
import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from common import machine, markdown
from labels import REPOSITORY, RESULTS, call_script, process_environment, with_fields
from labels import ROWS as ALL_ROWS
from labels_data import read_folder, split_speakers, write_table

ROWS = ALL_ROWS["birq"]
SIZES = {
    "4x144": "",
    "8x256": "hidden_size=256,num_hidden_layers=8,intermediate_size=1024",
}
CORPORA = ("recorded", "synthetic")
CURVE = ("accuracy", "enhanced_accuracy", "anchor_label_perplexity", "enhanced_label_perplexity")
CURVE += ("enhanced_top_label_share", "enhanced_label_loudness")
NOTE = (
    "Window perplexity: of the labels of 50,000 frames in training, the lowest and the last of all windows after the "
    "first tenth of the updates. Accuracy: of the anchor labels of masked frames, at the end of training. Probe: "
    "phones named by a linear layer on the best block, synthetic speech of other voices; purity: of labels, that of "
    "the same labels shuffled behind the slash."
)


@dataclass(frozen=True)
class Run:
    """One line to be made.

    Args:
        config: the fields of its row, and behind them those that the command line changes.
    """

    size: str
    corpus: str
    row: str
    seed: int
    updates: int
    seconds: float
    rate: float
    config: str

    @property
    def folder_name(self) -> str:
        """Its settings, as the name of a folder."""
        row = self.row.replace(", ", "-").replace(" ", "_")
        name = f"{self.size}-{self.corpus}-{row}-{self.seed}-{self.updates}-updates-{self.seconds:g}-s"
        return "-".join(filter(None, (name, changed_fields(self.row, self.config))))


def changed_fields(row: str, config: str) -> str:
    """The fields of a run that are not those of its row."""
    return config.removeprefix(ROWS[row] or "").strip(",")


def data_flags(options: argparse.Namespace, corpus: str) -> dict[str, Any]:
    """The flags of a training script that name a corpus."""
    if corpus == "synthetic":
        return {"dataset_name": "synthetic", "dataset_config_name": options.synthetic}
    if options.finetuning_folder is None or not options.pretraining_folders:
        raise SystemExit(
            "Recorded speech needs --pretraining_folders and --finetuning_folder. Or --corpora synthetic."
        )
    test, _ = split_speakers(options.finetuning_folder, options.num_test_speakers, options.split_seed)
    kept = {one.audio for one in read_folder(options.finetuning_folder) if one.speaker_id in set(test)}
    audio = [one for folder in options.pretraining_folders for one in read_folder(folder)]
    table = write_table(options.work_dir / "recorded.jsonl", (one for one in audio if one.audio not in kept))
    return {"dataset_name": table}


def pretrain(run: Run, options: argparse.Namespace) -> Path:
    """Pretrain, unless that has been done; returns the model's folder."""
    output_dir: Path = options.work_dir / run.folder_name
    fields = ",".join(filter(None, (run.config, SIZES[run.size])))
    call_script(
        "pretraining_scripts/run_birq.py",
        output_dir,
        config_name=options.preset,
        config_overrides=fields,
        **data_flags(options, run.corpus),
        max_steps=run.updates,
        per_device_train_batch_seconds=run.seconds,
        learning_rate=run.rate,
        warmup_steps=0.2,
        lr_scheduler_type="linear",
        mixed_precision=options.mixed_precision,
        seed=run.seed,
    )
    return output_dir


def probe(model: Path, options: argparse.Namespace) -> dict[str, Any]:
    """What the probe says of layers and labels, on synthetic speech."""
    report = model / "probe.json"
    if not report.exists():
        command = [sys.executable, "-m", "hf_speech_ssl.cli", "probe", str(model), "synthetic"]
        command += ["--dataset_config_name", options.synthetic_probe, "--output_file", str(report)]
        subprocess.run(command, check=True, env=process_environment())
    values: dict[str, Any] = json.loads(report.read_text())
    return values


def line(run: Run, options: argparse.Namespace) -> dict[str, Any]:
    """Figures of one run."""
    model = pretrain(run, options)
    log = [json.loads(text) for text in (model / "train_log.jsonl").read_text().splitlines()]
    curve = [{name: values[name] for name in ("step", *CURVE) if name in values} for values in log]
    results = json.loads((model / "results.json").read_text())
    report = probe(model, options)
    return {
        **asdict(run),
        "curve": [values for values in curve if "accuracy" in values],
        "layers": report["layers"],
        "labels": report["labels"],
        "pretraining_hours": results["training_hours"],
        "machine": machine(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))),
    }


def row_of_table(values: dict[str, Any]) -> list[str]:
    """One run in the table."""
    late = [one for one in values["curve"] if one["step"] > values["updates"] / 10]
    row = ", ".join(filter(None, (values["row"], changed_fields(values["row"], values["config"]))))
    cells = [values["size"], values["corpus"], row, str(values["seed"])]
    for kind in ("anchor", "enhanced"):
        windows = [one[f"{kind}_label_perplexity"] for one in late if f"{kind}_label_perplexity" in one]
        cells.append(f"{min(windows):.0f}, {windows[-1]:.0f}" if windows else "")
    cells.append(f"{100 * values['curve'][-1]['accuracy']:.1f}")
    best = max(values["layers"], key=lambda layer: layer.get("accuracy", 0.0))
    cells.append(f"{100 * best['accuracy']:.1f} (layer {best['layer']})")
    labels = {one["name"].split()[0]: one for one in values["labels"]}
    for kind in ("anchor", "enhanced"):
        one = labels.get(kind)
        cells.append(f"{one['phone_purity']:.3f} / {one['shuffled_phone_purity']:.3f}" if one else "")
        cells.append(f"{one['pnmi']:.3f}" if one else "")
    return [*cells, f"{values['pretraining_hours']:.2f}"]


def write_report(lines: list[dict[str, Any]], output_dir: Path) -> str:
    """Write enhanced_labels.md, and return its text."""
    header = ["encoder", "corpus", "row", "seed", "anchors: window perplexity", "enhanced: window perplexity"]
    header += ["accuracy %", "probe %", "anchors: purity", "PNMI", "enhanced: purity", "PNMI", "hours"]
    groups: dict[tuple[int, float, float], list[list[str]]] = {}
    for one in sorted(lines, key=lambda one: (one["size"], one["corpus"], list(ROWS).index(one["row"]), one["seed"])):
        groups.setdefault((one["updates"], one["seconds"], one["rate"]), []).append(row_of_table(one))
    parts = [NOTE]
    for (updates, seconds, rate), cells in groups.items():
        parts += [f"## {updates:,} updates of {seconds:g} s at {rate:g}", markdown(header, cells)]
    parts.append("Machines: " + " ".join(sorted({one["machine"].split(", load")[0] + "." for one in lines})))
    text = "\n\n".join(parts) + "\n"
    (output_dir / "enhanced_labels.md").write_text(text, encoding="utf-8")
    return text


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pretraining_folders", type=Path, nargs="*", default=[])
    parser.add_argument("--finetuning_folder", type=Path, help="whose test speakers are left out")
    parser.add_argument("--num_test_speakers", type=int, default=14)
    parser.add_argument("--split_seed", type=int, default=9)
    parser.add_argument("--sizes", nargs="*", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--corpora", nargs="+", default=list(CORPORA), choices=list(CORPORA))
    rows = [row for row, fields in ROWS.items() if fields is not None]
    parser.add_argument("--rows", nargs="+", default=["refined, unmasked frames", "birq, refined"], choices=rows)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--preset", default="birq-tiny")
    parser.add_argument("--encoder_config", default="", help="config fields to change, as label_layer=2")
    parser.add_argument("--updates", type=int, default=5000)
    parser.add_argument("--seconds", type=float, default=16, help="audio in a batch")
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--synthetic", default="hours=5,grammar=full,levels=varied", help="the corpus to pretrain on")
    parser.add_argument(
        "--synthetic_probe", default="sentences=600,eval_sentences=200,grammar=full,levels=varied,seed=1"
    )
    parser.add_argument("--mixed_precision", default="no", help="bf16 where the processor has it")
    parser.add_argument("--work_dir", type=Path, default=REPOSITORY / "outputs" / "enhanced_labels")
    parser.add_argument("--output_dir", type=Path, default=RESULTS)
    return parser.parse_args()


def main() -> None:
    """Make the lines that are missing, and the table of all."""
    options = parse_options()
    options.output_dir.mkdir(parents=True, exist_ok=True)
    file = options.output_dir / "enhanced_labels.jsonl"
    lines = [json.loads(text) for text in file.read_text().splitlines()] if file.exists() else []
    runs = [
        Run(size, corpus, row, seed, options.updates, options.seconds, options.rate, config)
        for size in options.sizes
        for seed in options.seeds
        for corpus in options.corpora
        for row in options.rows
        for config in [with_fields(ROWS[row], options.encoder_config)]
    ]
    for run in runs:
        if any(asdict(run).items() <= one.items() for one in lines):
            continue
        lines.append(line(run, options))
        with open(file, "a", encoding="utf-8") as results:
            results.write(json.dumps(lines[-1]) + "\n")
        write_report(lines, options.output_dir)
    print(write_report(lines, options.output_dir) if lines else "There are no lines yet.")


if __name__ == "__main__":
    main()
