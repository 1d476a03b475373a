"""Whether pretraining helps: error rates after fine-tuning on few transcripts, by the labels of the pretraining.

    python benchmarks/labels.py --pretraining_folders DIR ... --finetuning_folder DIR [--rows scratch whitened ...]

Folders hold audio files and a `metadata.csv` with the columns `file_name`, `text` and `speaker_id`. The speakers of
the fine-tuning folder are shuffled once (`--split_seed`). The first of them are test speakers, who are left out of
everything; the next are fine-tuned on; the audio of the others is pretrained on if the folder is among the pretraining
folders. With `--test_folder`, its utterances are the test, and the fine-tuning folder leaves out no speakers. All rows
have the same encoder, audio, updates and fine-tuning. One run of one row, with its seed, is one line of
`labels.jsonl`.

Settings are chosen by other speakers than the test's: with `--num_development_speakers 12` the last 12 of the shuffled
speakers are transcribed instead. Their audio is pretrained on, their transcripts are not used, and the runs are the
same as those of the test, so that nothing is trained twice.

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
from labels_data import Utterance, read_folder, read_table, split_speakers, write_table
from labels_report import write_report

from hf_speech_ssl.families import family_of_preset

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results"
# Ends of log fields.
WINDOW_FACTS = ("labels_used", "label_perplexity", "top_label_share", "label_loudness")
LABEL_FACTS = ("accuracy", "loss", *WINDOW_FACTS)
NUM_NOTES = 20  # of the label statistics over a pretraining run

# Config fields by row; all fields that are not named here are the preset's.
_RANDOM = "projection_kind=random,codebook_size=4096,codebook_refinements=0,codebook_distance=cosine"
_PAPER = f"enhanced_loss_weight=0,{_RANDOM},unmasked_loss_weight=0"
_LEARNED = (
    "projection_kind=whitened,projection_updates=64,codebook_size=256,label_normalization=utterance_mean,"
    "codebook_distance=euclidean,codebook_refinements=5,codebook_refinement_interval=50,reseed_dead_entries=true"
)
_REFINED = f"enhanced_loss_weight=0,{_LEARNED},unmasked_loss_weight="
_DISTILLED = (
    "second_codebook_size=256,distillation_loss_weight=0.5,distillation_kmeans_weight=0.1,distillation_start=600,"
    "codebook_replacements=[1000,1500]"
)
_PAPERS_ENHANCED = "enhanced_label_kind=gumbel,enhanced_warmup_updates=0,label_encoder_decay=0"
_CLUSTERS = (
    "enhanced_loss_weight=0.6,enhanced_label_kind=clusters,enhanced_warmup_updates=400,label_encoder_decay=0.99"
)
_PROJECTED = "label_kind=random_projection"
ROWS: dict[str, dict[str, str | None]] = {
    "birq": {
        "scratch": None,
        "best-rq": _PAPER,
        "best-rq, 4 codebooks": f"{_PAPER},num_codebooks=4",
        "whitened": _PAPER.replace("random", "whitened"),
        "refined": f"{_REFINED}0",
        "refined, unmasked frames": f"{_REFINED}1",
        # The entries move until update 314; the copy learns from 30 % of 2,000 updates on.
        "distilled": f"{_REFINED}1,{_DISTILLED}",
        "best-rq, unmasked frames": _PAPER.replace("unmasked_loss_weight=0", "unmasked_loss_weight=1"),
        "birq": f"{_PAPER.replace('enhanced_loss_weight=0', 'enhanced_loss_weight=0.1')},{_PAPERS_ENHANCED}",
        "birq, whitened": f"{_PAPER.replace('random', 'whitened')},{_CLUSTERS}".replace("enhanced_loss_weight=0,", ""),
        "birq, refined": f"{_LEARNED},unmasked_loss_weight=1,{_CLUSTERS}",
    },
    "chunkssl": {
        "scratch": None,
        "random projection": f"{_PROJECTED},{_RANDOM},unmasked_loss_weight=0",
        "refined": f"{_PROJECTED},{_LEARNED},unmasked_loss_weight=0",
        "refined, unmasked frames": f"{_PROJECTED},{_LEARNED},unmasked_loss_weight=1",
        "distilled": f"{_PROJECTED},{_LEARNED},unmasked_loss_weight=1,{_DISTILLED}",
        "fsq": "label_kind=fsq,unmasked_loss_weight=0",
        "fsq, unmasked frames": "label_kind=fsq,unmasked_loss_weight=1",
    },
}
ROWS_HELP = "; ".join(f"{family}: {', '.join(map(repr, rows))}" for family, rows in ROWS.items())
ROW_NAMES = list(dict.fromkeys(name for rows in ROWS.values() for name in rows))


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


def with_fields(*configs: str | None) -> str:
    """Config fields as a training script's `--config_overrides` takes them, of several such texts."""
    return ",".join(filter(None, configs))


def process_environment() -> dict[str, str]:
    """The environment of a process that imports the code of this repository."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])}


def call_script(script: str, output_dir: Path, **flags: Any) -> float | None:
    """Run a training script in a process of its own, unless it has finished in that folder; a killed run resumes.

    Returns:
        Its peak memory in GiB; `None` of a run that was resumed or had finished without a note of it.
    """
    peak_file = output_dir.with_name(f"{output_dir.name}.peak_gib")
    if (output_dir / "results.json").exists():
        return float(peak_file.read_text()) if peak_file.exists() else None
    resumed = output_dir.exists()
    flags |= {"output_dir": output_dir, "resume_from_checkpoint": "last", "report_to": "none", "eval_steps": 0}
    flags |= {"logging_steps": 50, "save_steps": 500, "save_total_limit": 1, "dataloader_num_workers": 1}
    command = [sys.executable, str(REPOSITORY / script)]
    for name, value in flags.items():
        command += [f"--{name}", str(value)]
    process = subprocess.Popen(command, env=process_environment())
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise subprocess.CalledProcessError(os.waitstatus_to_exitcode(status), command)
    if resumed:
        return None
    peak = round(usage.ru_maxrss / 2**20, 2)
    peak_file.write_text(str(peak))
    return peak


class Benchmark:
    """The data of one command, and the runs on it.

    Args:
        options: the command line.
    """

    def __init__(self, options: argparse.Namespace):
        self.options = options
        self.family = family_of_preset(options.preset)
        self.rows = ROWS[self.family.presets]
        num_test_speakers = 0 if options.test_folder else options.num_test_speakers
        test, self.others = split_speakers(
            options.finetuning_folder, num_test_speakers, options.split_seed, options.test_speakers
        )
        test_utterances = read_folder(options.test_folder) if options.test_folder else self.spoken_by(test)
        kept = {Path(one.audio) for one in test_utterances}
        names = [folder.name for folder in (options.finetuning_folder, options.test_folder) if folder]
        parts = [options.preset, options.encoder_config, *names, str(options.split_seed)]
        self.folder = options.work_dir / "-".join(filter(None, parts))
        audio = [one for folder in options.pretraining_folders for one in read_folder(folder)]
        audio = [one for one in audio if Path(one.audio) not in kept]
        self.audio_table = self.folder / "pretraining.jsonl"
        if not self.audio_table.exists():
            write_table(self.audio_table, audio)
        elif read_table(self.audio_table) != audio:
            raise SystemExit(
                f"{self.folder} holds runs that were pretrained on other audio than --pretraining_folders names. Give "
                "another --work_dir, or delete that folder."
            )
        num_test_speakers = len({one.speaker_id for one in test_utterances})
        table_name = "test.jsonl"
        if number := options.num_development_speakers:
            self.others, development = self.others[:-number], self.others[-number:]
            test_utterances, table_name = self.spoken_by(development), f"development-{number}.jsonl"
        self.test_table = write_table(self.folder / table_name, test_utterances)
        recipe = {
            "preset": options.preset,
            "encoder_config": options.encoder_config,
            "finetuning_folder": options.finetuning_folder.name,
            "finetuning_rate": options.finetuning_rate,
            "finetuning_freeze_steps": options.finetuning_freeze_steps or None,
            "finetuning_config": options.finetuning_config,
            "test_folder": options.test_folder and options.test_folder.name,
            "num_test_speakers": num_test_speakers,
            "num_development_speakers": options.num_development_speakers or None,
            "split_seed": options.split_seed,
        }
        self.recipe = {name: value for name, value in recipe.items() if value not in (None, "")}
        self.pretraining = {
            "folders": [folder.name for folder in options.pretraining_folders],
            "updates": options.pretraining_steps,
            "seconds": options.pretraining_seconds,
            "rate": options.pretraining_rate,
        }

    def facts(self, run: Run) -> dict[str, Any]:
        """What a line says of how it was made. Two lines of equal facts are of the same run."""
        config = self.rows[run.row]
        changed = self.options.pretraining_config
        pretraining = None if config is None else {**self.pretraining, "config": with_fields(config, changed)}
        if pretraining and changed:
            pretraining["changed"] = changed
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
        fields = with_fields(options.finetuning_config, options.encoder_config if source is None else "")
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
            **({"config_overrides": fields} if fields else {}),
            per_device_train_batch_seconds=24,
            seed=run.seed,
        )
        return {**self.facts(run), **described, **self.transcribe(output_dir)}

    def pretrain(self, run: Run) -> tuple[Path | None, dict[str, Any]]:
        """The pretrained model's folder (`None` from scratch), and what the run says of its labels."""
        fields = self.rows[run.row]
        if fields is None:
            return None, {}
        options = self.options
        length = f"{options.pretraining_steps}-updates-{options.pretraining_seconds:g}-s-{options.pretraining_rate:g}"
        output_dir = self.folder / "-".join(
            filter(None, [run.folder_name, "pretraining", length, options.pretraining_config])
        )
        tokenizer = {"fsq_model_name_or_path": self.tokenizer(run.seed)} if "label_kind=fsq" in fields else {}
        peak = call_script(
            self.family.script,
            output_dir,
            config_name=options.preset,
            config_overrides=with_fields(fields, options.pretraining_config, options.encoder_config),
            **tokenizer,
            **self.pretraining_flags(run.seed),
        )
        results = json.loads((output_dir / "results.json").read_text())
        log = [json.loads(line) for line in (output_dir / "train_log.jsonl").read_text().splitlines()]
        every = max(1, options.pretraining_steps // NUM_NOTES)
        return output_dir, {
            "labels": {name: value for line in log for name, value in line.items() if name.endswith(LABEL_FACTS)},
            "label_history": [
                {name: value for name, value in line.items() if name == "step" or name.endswith(WINDOW_FACTS)}
                for line in log
                if line["step"] % every == 0 and any(name.endswith(WINDOW_FACTS) for name in line)
            ],
            "verdict": results.get("verdict"),
            "pretraining_hours": results["training_hours"],
            "mixed_precision": options.mixed_precision,
            "peak_memory_gib": peak,
            **({"probe": self.probe(output_dir)} if options.probe_config else {}),
        }

    def probe(self, model: Path) -> dict[str, Any]:
        """Accuracy of phone probes by layer, with those on random weights, and purity and PNMI of the labels."""
        from hf_speech_ssl.commands.probe import ProbeOptions, probe
        from hf_speech_ssl.options import LoadingOptions, ReadingOptions

        reading = ReadingOptions(
            dataset_name="synthetic", dataset_config_name=self.options.probe_config, split_name="train"
        )
        report = probe(ProbeOptions(model_name_or_path=str(model)), reading, LoadingOptions())
        layers = [
            {name: layer[name] for name in ("what", "accuracy", "random_accuracy")} for layer in report["layers"]
        ]
        return {"config": self.options.probe_config, "layers": layers, "labels": report["labels"]}

    def tokenizer(self, seed: int) -> Path:
        """The tokenizer that FSQ labels come from, trained on the same audio."""
        output_dir = self.folder / f"fsq-{seed}"
        flags = self.pretraining_flags(seed) | {"max_steps": self.options.tokenizer_steps}
        call_script("pretraining_scripts/run_fsq.py", output_dir, config_name="fsq-tiny", **flags)
        return output_dir

    def pretraining_flags(self, seed: int) -> dict[str, Any]:
        """What all pretraining runs share."""
        options = self.options
        return {
            "dataset_name": self.audio_table,
            "max_steps": options.pretraining_steps,
            "per_device_train_batch_seconds": options.pretraining_seconds,
            "learning_rate": options.pretraining_rate,
            "warmup_steps": 0.2,
            "lr_scheduler_type": "linear",
            "mixed_precision": options.mixed_precision,
            "seed": seed,
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
        durations = self.options.chunk_durations_ms if self.family.streams else []
        evaluator = CorpusEvaluator(recognizer, decoder, durations, "speaker_id", normalize=True)
        reading = ReadingOptions(dataset_name=str(self.test_table), split_name="train")
        scores = Scores(evaluator.transcribe(UtteranceReader(reading, "text", optional_columns=["speaker_id"])))
        offline, *chunked = scores.modes
        words, characters, rates = scores.words[offline], scores.characters[offline], scores.by_mode()
        names = {speaker: number for number, speaker in enumerate(dict.fromkeys(scores.speakers or []))}
        return {
            "wer": rates[offline]["wer"],
            "cer": rates[offline]["cer"],
            "speaker": [names[speaker] for speaker in scores.speakers or []],
            "word_errors": [counts.errors for counts in words],
            "words": [counts.reference_length for counts in words],
            "character_errors": [counts.errors for counts in characters],
            "characters": [counts.reference_length for counts in characters],
            "wer_in_chunks": {mode: rates[mode]["wer"]["value"] for mode in chunked},
        }


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pretraining_folders", type=Path, nargs="*", default=[])
    parser.add_argument("--finetuning_folder", type=Path)
    parser.add_argument("--test_folder", type=Path, help="the test, instead of speakers of the fine-tuning folder")
    parser.add_argument("--rows", nargs="*", metavar="ROW", help=f"all of the preset's family: {ROWS_HELP}")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--num_finetuning_speakers", type=int, nargs="+", default=[20])
    parser.add_argument("--finetuning_steps", type=int, nargs="+", default=[500, 1500])
    parser.add_argument("--num_test_speakers", type=int, default=14)
    parser.add_argument("--test_speakers", nargs="*", help="test speakers by name, instead of a random choice")
    parser.add_argument("--num_development_speakers", type=int, default=0, help="transcribe these, not the test's")
    parser.add_argument("--split_seed", type=int, default=9)
    parser.add_argument("--preset", default="birq-tiny")
    parser.add_argument("--encoder_config", default="", help="config fields of all rows, as num_hidden_layers=4")
    parser.add_argument("--pretraining_config", default="", help="of the pretrained rows alone, as mask_length=10")
    parser.add_argument("--tokenizer_steps", type=int, default=1000, help="updates of the tokenizer of FSQ rows")
    parser.add_argument("--chunk_durations_ms", type=int, nargs="*", default=[160, 320, 640, 1280])
    parser.add_argument("--pretraining_steps", type=int, default=2000)
    parser.add_argument("--pretraining_seconds", type=float, default=16, help="audio in a batch of pretraining")
    parser.add_argument("--pretraining_rate", type=float, default=1e-3)
    parser.add_argument("--finetuning_rate", type=float, default=2e-3)
    parser.add_argument("--finetuning_freeze_steps", type=int, default=100, help="updates of the head alone")
    parser.add_argument("--finetuning_config", default="hidden_dropout=0.1", help="as --config_overrides")
    parser.add_argument("--mixed_precision", default="no", help="of pretraining: bf16 where the processor has it")
    parser.add_argument("--probe_config", help="of the synthetic corpus, as levels=varied,sentences=300: phone probes")
    parser.add_argument("--work_dir", type=Path, default=REPOSITORY / "outputs" / "labels")
    parser.add_argument("--output_dir", type=Path, default=RESULTS)
    options = parser.parse_args()
    known = list(ROWS[family_of_preset(options.preset).presets])
    options.rows = known if options.rows is None else options.rows
    if unknown := [row for row in options.rows if row not in known]:
        parser.error(f"no such rows of {options.preset}: {', '.join(unknown)}. There are: {', '.join(known)}.")
    return options


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
            Run(row, seed, min(speakers, len(benchmark.others)), steps)
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
            write_report(lines, ROW_NAMES, options.output_dir)
    if not lines:
        raise SystemExit(f"{file} has no lines, and --rows names no row to make one of.")
    print(write_report(lines, ROW_NAMES, options.output_dir))


if __name__ == "__main__":
    main()
