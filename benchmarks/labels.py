"""Whether pretraining helps: error rates after fine-tuning on few transcripts, by the labels of the pretraining.

    python benchmarks/labels.py --pretraining_folders DIR ... --finetuning_folder DIR [--rows scratch whitened ...]

Folders hold audio files and a `metadata.csv` with the columns `file_name`, `text` and `speaker_id`. The speakers of
the fine-tuning folder are shuffled once (`--split_seed`). The first of them are test speakers, who are left out of
everything; the next are fine-tuned on; the audio of the others is pretrained on if the folder is among the pretraining
folders. All rows have the same encoder, audio, updates and fine-tuning. One run of one row, with its seed, is one line
of `labels.jsonl`.

Lines are appended as runs end, and a run whose line is there is not repeated, so that the command can be interrupted
and continued, with more rows or seeds. The table is made anew from all lines; `--rows` without a name only does that.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from common import machine
from labels_data import Utterance, read_folder, split_speakers, write_table
from labels_report import write_report

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results"
LABEL_FACTS = ("accuracy", "_loss", "_used", "_label_perplexity", "_label_share", "_loudness")  # ends of log fields

# Config fields by row; all fields that are not named here are the preset's.
_PAPER = (
    "enhanced_loss_weight=0,projection_kind=random,codebook_size=4096,codebook_refinements=0,codebook_distance=cosine,"
    "unmasked_loss_weight=0"
)
_WHITENED = _PAPER.replace("random", "whitened")
_REFINED = (
    "enhanced_loss_weight=0,projection_kind=whitened,projection_updates=64,codebook_size=256,"
    "label_normalization=utterance_mean,codebook_distance=euclidean,codebook_refinements=5,"
    "codebook_refinement_interval=50,reseed_dead_entries=true,unmasked_loss_weight="
)
ROWS: dict[str, str | None] = {
    "scratch": None,
    "best-rq": _PAPER,
    "best-rq, 4 codebooks": f"{_PAPER},num_codebooks=4",
    "whitened": _WHITENED,
    "refined": f"{_REFINED}0",
    "refined, unmasked frames": f"{_REFINED}1",
    "best-rq, unmasked frames": _PAPER.replace("unmasked_loss_weight=0", "unmasked_loss_weight=1"),
    "birq": _PAPER.replace("enhanced_loss_weight=0", "enhanced_loss_weight=0.1"),
}


@dataclass(frozen=True)
class Run:
    """One line to be made: which pretraining, which fine-tuning.

    Args:
        speakers: whose transcripts are fine-tuned on.
        steps: updates of fine-tuning.
    """

    row: str
    seed: int
    speakers: int
    steps: int

    @property
    def folder_name(self) -> str:
        """The row and the seed, as the name of a folder."""
        return f"{self.row}-{self.seed}".replace(", ", "-").replace(" ", "_")


def call_script(script: str, output_dir: Path, **flags: Any) -> None:
    """Run a training script in a process of its own, unless it has finished in that folder; a killed run resumes."""
    if (output_dir / "results.json").exists():
        return
    flags |= {"output_dir": output_dir, "resume_from_checkpoint": "last", "report_to": "none", "eval_steps": 0}
    flags |= {"logging_steps": 50, "save_steps": 500, "save_total_limit": 1, "dataloader_num_workers": 1}
    command = [sys.executable, str(REPOSITORY / script)]
    for name, value in flags.items():
        command += [f"--{name}", str(value)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])}
    subprocess.run(command, check=True, env=environment)


class Benchmark:
    """The data of one command, and the runs on it.

    Args:
        options: the command line.
    """

    def __init__(self, options: argparse.Namespace):
        self.options = options
        self.test, self.others = split_speakers(
            options.finetuning_folder, options.num_test_speakers, options.split_seed, options.test_speakers
        )
        self.folder = options.work_dir / f"{options.preset}-{options.finetuning_folder.name}-{options.split_seed}"
        kept = {Path(one.audio) for one in self.spoken_by(self.test)}
        audio = [one for folder in options.pretraining_folders for one in read_folder(folder)]
        self.audio_table = write_table(
            self.folder / "pretraining.jsonl", (one for one in audio if Path(one.audio) not in kept)
        )
        self.test_table = write_table(self.folder / "test.jsonl", self.spoken_by(self.test))
        self.recipe = {
            "preset": options.preset,
            "finetuning_folder": options.finetuning_folder.name,
            "finetuning_rate": options.finetuning_rate,
            "finetuning_freeze_steps": options.finetuning_freeze_steps,
            "finetuning_config": options.finetuning_config,
            "num_test_speakers": len(self.test),
            "split_seed": options.split_seed,
        }
        self.pretraining = {
            "folders": [folder.name for folder in options.pretraining_folders],
            "updates": options.pretraining_steps,
            "seconds": options.pretraining_seconds,
            "rate": options.pretraining_rate,
        }

    def facts(self, run: Run) -> dict[str, Any]:
        """What a line says of how it was made. Two lines of equal facts are of the same run."""
        config = ROWS[run.row]
        pretraining = None if config is None else {**self.pretraining, "config": config}
        return {**asdict(run), "recipe": self.recipe, "pretraining": pretraining}

    def spoken_by(self, speakers: Sequence[str]) -> list[Utterance]:
        """Utterances of the fine-tuning folder."""
        return [one for one in read_folder(self.options.finetuning_folder) if one.speaker_id in set(speakers)]

    def line(self, run: Run) -> dict[str, Any]:
        """Pretrain if this row and seed are not pretrained yet, fine-tune, and transcribe the test speakers."""
        source, described = self.pretrain(run)
        options = self.options
        rate = options.finetuning_rate
        start = self.folder / run.folder_name if source is None else source
        recipe = f"{run.speakers}-speakers-{run.steps}-updates-{rate:g}-frozen-{options.finetuning_freeze_steps}"
        if options.finetuning_config:
            recipe += f"-{options.finetuning_config}"
        output_dir = start.with_name(f"{start.name}-{recipe}")
        table = write_table(self.folder / f"train-{run.speakers}.jsonl", self.spoken_by(self.others[: run.speakers]))
        model = {"config_name": options.preset} if source is None else {"model_name_or_path": source}
        call_script(
            "finetuning_scripts/run_ctc.py",
            output_dir,
            **model,
            dataset_name=table,
            eval_split_name="",
            load_best_model_at_end=False,
            max_steps=run.steps,
            learning_rate=rate,
            freeze_encoder_steps=options.finetuning_freeze_steps,
            **({"config_overrides": options.finetuning_config} if options.finetuning_config else {}),
            per_device_train_batch_seconds=24,
            seed=run.seed,
        )
        return {**self.facts(run), **described, **self.transcribe(output_dir)}

    def pretrain(self, run: Run) -> tuple[Path | None, dict[str, Any]]:
        """The pretrained model's folder (`None` from scratch), and what the run says of its labels."""
        fields = ROWS[run.row]
        if fields is None:
            return None, {}
        options = self.options
        length = f"{options.pretraining_steps}-updates-{options.pretraining_seconds:g}-s-{options.pretraining_rate:g}"
        output_dir = self.folder / f"{run.folder_name}-pretraining-{length}"
        call_script(
            "pretraining_scripts/run_birq.py",
            output_dir,
            config_name=options.preset,
            config_overrides=fields,
            dataset_name=self.audio_table,
            max_steps=options.pretraining_steps,
            per_device_train_batch_seconds=options.pretraining_seconds,
            learning_rate=options.pretraining_rate,
            warmup_steps=0.2,
            lr_scheduler_type="linear",
            mixed_precision=options.mixed_precision,
            seed=run.seed,
        )
        results = json.loads((output_dir / "results.json").read_text())
        log = (output_dir / "train_log.jsonl").read_text().splitlines()
        last = {name: value for line in log for name, value in json.loads(line).items() if name.endswith(LABEL_FACTS)}
        return output_dir, {
            "labels": last,
            "verdict": results.get("verdict"),
            "pretraining_hours": results["training_hours"],
        }

    def transcribe(self, model: Path) -> dict[str, Any]:
        """Error rates on the test speakers, and the counts of each utterance, which paired differences need."""
        from hf_speech_ssl.data.reading import UtteranceReader
        from hf_speech_ssl.decoding import GreedyDecoder
        from hf_speech_ssl.evaluation.scores import Scores
        from hf_speech_ssl.options import ReadingOptions
        from hf_speech_ssl.recognition.evaluation import CorpusEvaluator
        from hf_speech_ssl.recognition.recognizer import Recognizer

        recognizer = Recognizer.from_pretrained(str(model))
        decoder = GreedyDecoder(recognizer.tokenizer, recognizer.seconds_per_frame)
        evaluator = CorpusEvaluator(recognizer, decoder, [], "speaker_id", normalize=True)
        reading = ReadingOptions(dataset_name=str(self.test_table), split_name="train")
        scores = Scores(evaluator.transcribe(UtteranceReader(reading, "text", optional_columns=["speaker_id"])))
        (mode,) = scores.modes
        words, characters = scores.words[mode], scores.characters[mode]
        names = {speaker: number for number, speaker in enumerate(dict.fromkeys(scores.speakers or []))}
        return {
            "wer": scores.by_mode()[mode]["wer"],
            "cer": scores.by_mode()[mode]["cer"],
            "speaker": [names[speaker] for speaker in scores.speakers or []],
            "word_errors": [counts.errors for counts in words],
            "words": [counts.reference_length for counts in words],
            "character_errors": [counts.errors for counts in characters],
            "characters": [counts.reference_length for counts in characters],
        }


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pretraining_folders", type=Path, nargs="*", default=[])
    parser.add_argument("--finetuning_folder", type=Path)
    parser.add_argument(
        "--rows", nargs="*", default=list(ROWS), choices=list(ROWS), metavar="ROW", help=f"{list(ROWS)}"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--num_finetuning_speakers", type=int, nargs="+", default=[20])
    parser.add_argument("--finetuning_steps", type=int, nargs="+", default=[500, 1500])
    parser.add_argument("--num_test_speakers", type=int, default=14)
    parser.add_argument("--test_speakers", nargs="*", help="test speakers by name, instead of a random choice")
    parser.add_argument("--split_seed", type=int, default=9)
    parser.add_argument("--preset", default="birq-tiny")
    parser.add_argument("--pretraining_steps", type=int, default=2000)
    parser.add_argument("--pretraining_seconds", type=float, default=16, help="audio in a batch of pretraining")
    parser.add_argument("--pretraining_rate", type=float, default=1e-3)
    parser.add_argument("--finetuning_rate", type=float, default=2e-3)
    parser.add_argument("--finetuning_freeze_steps", type=int, default=100, help="updates of the head alone")
    parser.add_argument("--finetuning_config", default="hidden_dropout=0.1", help="as --config_overrides")
    parser.add_argument("--mixed_precision", default="bf16", help="of pretraining")
    parser.add_argument("--work_dir", type=Path, default=REPOSITORY / "outputs" / "labels")
    parser.add_argument("--output_dir", type=Path, default=RESULTS)
    return parser.parse_args()


def main() -> None:
    """Make the lines that are missing, and the table of all."""
    options = parse_options()
    options.output_dir.mkdir(parents=True, exist_ok=True)
    file = options.output_dir / "labels.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    if options.rows:
        benchmark = Benchmark(options)
        where = machine(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
        runs = [
            Run(row, seed, speakers, steps)
            for seed in options.seeds
            for steps in options.finetuning_steps
            for speakers in options.num_finetuning_speakers
            for row in options.rows
        ]
        for run in runs:
            facts = benchmark.facts(run)
            if any(facts.items() <= line.items() for line in lines):
                continue
            began = time.time()
            line = {**benchmark.line(run), "wall_seconds": round(time.time() - began), "machine": where}
            lines.append(line)
            with open(file, "a", encoding="utf-8") as results:
                results.write(json.dumps(line) + "\n")
            write_report(lines, list(ROWS), options.output_dir)
    print(write_report(lines, list(ROWS), options.output_dir))


if __name__ == "__main__":
    main()
