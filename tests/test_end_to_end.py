"""A model trained on synthetic speech understands it, and knows when words end. Some minutes: `make test-slow`."""

import sys
from pathlib import Path

import numpy as np
import pytest
from transformers import pipeline

from hf_speech_ssl.data.audio import load_audio
from hf_speech_ssl.data.corpora import load_corpus

pytest.importorskip("espeakng_loader")
sys.path.append(str(Path(__file__).parent.parent / "finetuning_scripts"))

import run_ctc

SPEECH = "sentences=1000,eval_sentences=150"
# An encoder that sees 200 ms to either side: CTC with a wider view is free to say letters early or late, and does, by
# up to 0.3 s on this corpus.
NEARSIGHTED = "attention_window=1,conv_kernel_size=3"


@pytest.fixture(scope="module")
def recognizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ctc")
    flags = f"--config_name birq-tiny --config_overrides {NEARSIGHTED} --dataset_name synthetic --output_dir {folder} "
    flags += f"--dataset_config_name {SPEECH} --eval_split_name test --eval_steps 0 --save_steps 0 --report_to none "
    flags += "--max_steps 700 --per_device_train_batch_seconds 24 --learning_rate 2e-3 --warmup_steps 0.1 "
    flags += "--hold_steps 0.4"
    metrics = run_ctc.main(flags.split())
    return pipeline("automatic-speech-recognition", str(folder)), metrics


@pytest.mark.slow
def test_unseen_voices_are_understood(recognizer):
    assert recognizer[1]["eval_wer"] < 0.5  # 0.36 after 600 updates


@pytest.mark.slow
def test_word_ends_are_within_100_ms_of_the_true_ones(recognizer):
    late = []
    for example in load_corpus("synthetic", config_name=SPEECH, split="test"):
        audio = {"raw": load_audio(example["audio"]), "sampling_rate": 16_000}
        heard = recognizer[0](audio, return_timestamps="word")
        if heard["text"] == example["text"]:
            pairs = zip(heard["chunks"], example["words"], strict=True)
            late += [chunk["timestamp"][1] - word["end"] for chunk, word in pairs]
    assert len(late) > 100
    assert np.mean(np.abs(late) <= 0.1) > 0.98
    assert abs(np.mean(late)) < 0.03
