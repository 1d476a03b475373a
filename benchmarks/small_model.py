"""Train the small model that lies in `checkpoints/`, and measure it on speakers who are left out of its training.

    python benchmarks/small_model.py --folders an4 speechocean speech_commands

Folders hold audio files and a `metadata.csv` with the columns `file_name`, `text` and `speaker_id`. A seventh of each
folder's speakers is left out of everything and transcribed at the end; the card quotes the error rates. An interrupted
command continues where it was.
"""

import argparse
import json
import shutil
from pathlib import Path

from labels import REPOSITORY, call_script
from labels_data import Utterance, read_folder, split_speakers, write_table

from hf_speech_ssl.cli import main as hf_speech_ssl

TEST_SHARE = 7  # one of so many speakers
SEED = 9  # of the split
DURATIONS_MS = (160, 320, 640, 1280)
KEPT = ("*.json", "*.md", "*.png", "*.safetensors")  # files of the run folder that make the model
LEFT = ("run_arguments.json", "training_state.json", "evaluation-")  # beginnings of the names of files that stay
CODE_BESIDE = "The model's code lies beside its weights, and `trust_remote_code=True` runs it. With the package"
CODE_HERE = (
    "In this repository the model's code is that of the package: `import hf_speech_ssl` first. On the Hub it lies "
)
CODE_HERE += "beside the weights, and `trust_remote_code=True` runs it; with the package"


def split(folders: list[Path]) -> tuple[list[Utterance], dict[str, list[Utterance]]]:
    """Utterances to train on, and those of the left-out speakers by folder."""
    training, test = [], {}
    for folder in folders:
        utterances = read_folder(folder)
        number = len({one.speaker_id for one in utterances}) // TEST_SHARE
        left_out = set(split_speakers(folder, number, SEED)[0])
        test[folder.name] = [one for one in utterances if one.speaker_id in left_out]
        training += [one for one in utterances if one.speaker_id not in left_out]
    return training, test


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folders", type=Path, nargs="+", required=True)
    parser.add_argument("--pretraining_steps", type=int, default=3000)
    parser.add_argument("--finetuning_steps", type=int, default=5000)
    parser.add_argument("--work_dir", type=Path, default=REPOSITORY / "outputs" / "small_model")
    parser.add_argument("--output_dir", type=Path, default=REPOSITORY / "checkpoints" / "chunkssl-learned-tiny-en")
    return parser.parse_args()


def main() -> None:
    """Pretrain, fine-tune, evaluate, and copy the model."""
    options = parse_options()
    training, test = split(options.folders)
    table = write_table(options.work_dir / f"{'+'.join(folder.name for folder in options.folders)}.jsonl", training)
    pretrained, finetuned = options.work_dir / "pretrained", options.work_dir / options.output_dir.name
    shared = {"dataset_name": table, "seed": 0}
    call_script(
        "pretraining_scripts/run_chunkssl.py",
        pretrained,
        config_name="chunkssl-learned-tiny",
        max_steps=options.pretraining_steps,
        per_device_train_batch_seconds=16,
        learning_rate=1e-3,
        warmup_steps=0.2,
        lr_scheduler_type="linear",
        mixed_precision="bf16",
        **shared,
    )
    call_script(
        "finetuning_scripts/run_ctc.py",
        finetuned,
        model_name_or_path=pretrained,
        config_overrides="hidden_dropout=0.1",
        max_steps=options.finetuning_steps,
        learning_rate=2e-3,
        warmup_steps=0.1,
        hold_steps=0.4,
        freeze_encoder_steps=100,
        per_device_train_batch_seconds=24,
        eval_split_name="",
        load_best_model_at_end=False,
        **shared,
    )
    print("| left-out speakers of | WER %, offline | " + " | ".join(f"{one} ms" for one in DURATIONS_MS) + " |")
    for name, utterances in test.items():
        test_table = write_table(options.work_dir / f"{name}-left-out-speakers.jsonl", utterances)
        report = finetuned / f"evaluation-{name}.json"
        arguments = [str(finetuned), str(test_table), "--split_name", "train", "--output_file", str(report)]
        hf_speech_ssl(["evaluate", *arguments, "--chunk_durations_ms", *map(str, DURATIONS_MS)])
        modes = json.loads(report.read_text())["modes"]
        print(f"| {name} | " + " | ".join(f"{100 * mode['wer']['value']:.1f}" for mode in modes.values()) + " |")
    hf_speech_ssl(["card", str(finetuned), "--language", "en"])
    options.output_dir.mkdir(parents=True, exist_ok=True)
    for file in [file for pattern in KEPT for file in finetuned.glob(pattern) if not file.name.startswith(LEFT)]:
        shutil.copy(file, options.output_dir)
    card = options.output_dir / "README.md"
    card.write_text(card.read_text(encoding="utf-8").replace(CODE_BESIDE, CODE_HERE), encoding="utf-8")


if __name__ == "__main__":
    main()
