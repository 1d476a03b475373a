"""The whole way on two CPU cores, without a network: pretrain BiRQ, fine-tune with CTC, transcribe a WAV file.

    make quickstart

Every step is a command that would be the same for real data and real sizes; it is printed before it runs. The speech
is synthetic (espeak-ng, a small grammar), and the test sentences and voices are none of the training's.
"""

import argparse
import shlex
import subprocess
import sys
import time
from pathlib import Path

from hf_speech_ssl.run_folder import RunResults

ROOT = Path(__file__).resolve().parent.parent
SPEECH = "grammar=small,levels=varied,sentences=2000,eval_sentences=150"
DATA = ["--dataset_name", "synthetic", "--dataset_config_name", SPEECH]


def run(title: str, script: str, *arguments: str) -> None:
    """Print a command and run it.

    Raises:
        SystemExit: it failed; its own output says why.
    """
    print(f"\n== {title}\n$ python {shlex.join([script, *arguments])}\n", flush=True)
    if code := subprocess.run([sys.executable, script, *arguments], cwd=ROOT, check=False).returncode:
        sys.exit(f"{title}: {script} ended with exit code {code}; its last lines above say why.")


def train(output_dir: Path) -> None:
    """Pretraining, and fine-tuning from it and from nothing on the same transcripts."""
    pretrained = str(output_dir / "pretrained")
    recipe = ["--text_column_name", "text", "--max_train_samples", "1000", "--max_steps", "800"]
    recipe += ["--per_device_train_batch_seconds", "24"]
    recipe += ["--learning_rate", "2e-3", "--warmup_steps", "0.1", "--hold_steps", "0.4"]
    recipe += ["--eval_split_name", "test", "--eval_steps", "0", "--save_steps", "0", "--logging_steps", "50"]
    run(
        "Pretrain a tiny BiRQ encoder on audio alone",
        "pretraining_scripts/run_birq.py",
        *("--config_name", "birq-tiny", "--output_dir", pretrained, *DATA, "--max_steps", "300"),
        *("--per_device_train_batch_seconds", "24"),
        *("--learning_rate", "1e-3", "--lr_scheduler_type", "constant", "--warmup_steps", "0.1"),
        *("--save_steps", "0", "--logging_steps", "50"),
    )
    run(
        "Fine-tune it on the transcripts of 1,000 sentences",
        "finetuning_scripts/run_ctc.py",
        *("--model_name_or_path", pretrained, "--output_dir", str(output_dir / "ctc"), *DATA, *recipe),
    )
    run(
        "The same without pretraining, to compare",
        "finetuning_scripts/run_ctc.py",
        *("--model_name_or_path", pretrained, "--from_scratch"),
        *("--output_dir", str(output_dir / "ctc-from-scratch"), *DATA, *recipe),
    )


def transcribe(output_dir: Path) -> list[tuple[str, str]]:
    """Write WAV files of unseen voices, and transcribe them with `pipeline`; (reference, hypothesis) each."""
    import soundfile
    from transformers import pipeline

    import hf_speech_ssl  # noqa: F401 - registers the model with pipeline
    from hf_speech_ssl.data.audio import load_audio
    from hf_speech_ssl.data.corpora import load_corpus

    test = load_corpus("synthetic", config_name=SPEECH, split="test")
    recognizer = pipeline("automatic-speech-recognition", str(output_dir / "ctc"))
    results = []
    for index in range(3):
        path = output_dir / f"test-{index}.wav"
        soundfile.write(path, load_audio(test[index]["audio"]), 16_000)
        samples, rate = soundfile.read(path, dtype="float32")  # with ffmpeg installed, pipeline reads paths itself
        hypothesis = recognizer({"raw": samples, "sampling_rate": rate})["text"]
        results.append((test[index]["text"], hypothesis))
        print(f"\n{path.name}\n  reference:  {test[index]['text']}\n  hypothesis: {hypothesis}")
    return results


def word_error_rate(folder: Path) -> float:
    """WER on the test split, from a run's own results."""
    return RunResults.read(folder).metrics["eval_wer"]


def main() -> None:
    """Train, transcribe, compare."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--output_dir", type=Path, default=ROOT / "outputs" / "quickstart", help="for all models")
    output_dir = arguments.parse_args().output_dir
    began = time.perf_counter()
    train(output_dir)
    transcribe(output_dir)
    print("\n| encoder | WER on unseen voices and sentences |\n|---|---|")
    for name, folder in (("pretrained as `birq-tiny`", "ctc"), ("from scratch", "ctc-from-scratch")):
        print(f"| {name} | {100 * word_error_rate(output_dir / folder):.1f} % |")
    print(f"\n{(time.perf_counter() - began) / 60:.1f} minutes. Models and cards are in {output_dir}.")


if __name__ == "__main__":
    main()
