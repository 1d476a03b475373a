"""Folders of runs that an earlier version left are read as those of today.

The folders of tests/run_folders were written by commit 3aabe21 (version 0.1.0): four updates of BiRQ pretraining and
six of Chunk SSL fine-tuning on synthetic speech, then `hf-speech-ssl evaluate --chunk_durations_ms 320`. Weights, code
and pictures are left out.
"""

import math
import shutil
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from hf_speech_ssl.hub import draw_training_curves, write_model_card
from hf_speech_ssl.hub.card import FinishedRun
from hf_speech_ssl.hub.short_card import addressed
from hf_speech_ssl.run_folder import MetricName, TrainingState, read_log

FOLDERS = Path(__file__).parent / "run_folders"


@pytest.fixture(params=["birq", "chunkssl_ctc"])
def folder(request, tmp_path):
    return shutil.copytree(FOLDERS / request.param, tmp_path / request.param)


def test_every_figure_is_found_again():
    run = FinishedRun.read(FOLDERS / "chunkssl_ctc")
    assert (run.kind, run.family.name, run.results.updates, run.results.final_model_step) == ("ctc", "Chunk SSL", 6, 6)
    assert run.arguments.eval_splits == ["validation", "test"] and run.arguments.pretrained is None
    assert run.results.metrics[str(MetricName("wer", "test", "320 ms"))] == 14 / 9
    assert len(run.results.metrics) == 12 and not run.results.other and run.results.verdict is None
    (evaluation,) = run.evaluations
    assert list(evaluation.modes) == ["offline", "320 ms"] and evaluation.settings["num_resamples"] == 1000
    log = read_log(run.folder)
    assert [step for step, _ in log] == [2, 3, 4, 6, 6]
    assert all(math.isfinite(value) for _, values in log for value in values.values())
    names = [MetricName.parse(name, run.arguments.eval_splits) for name in log[-1].values]
    assert {name.split for name in names} == {"validation", "test"}
    assert {name.mode for name in names} == {"offline", "320 ms"}
    states = [TrainingState.read(run.folder / f"checkpoint-{step}") for step in (3, 6)]
    assert [state.step for state in states] == [3, 6] and states[1].audio_seconds == 3600 * run.results.audio_hours


def test_curves_and_card_are_written_anew(folder):
    before = ModelCard.load(folder / "README.md")
    assert draw_training_curves(folder)
    after = write_model_card(folder)
    assert after.data.tags == before.data.tags and after.data.pipeline_tag == before.data.pipeline_tag
    if folder.name == "chunkssl_ctc":
        found = {result.metric_name for result in after.data.eval_results}
        assert {"WER", "CER", "WER, chunks of 320 ms", "CER, chunks of 320 ms"} == found


def test_a_card_of_before_is_valid_and_gets_the_address_of_its_repository(folder):
    card = (folder / "README.md").read_text()
    name = ModelCard(card).data["model_name"]
    moved = addressed(card, "me/speech", "v1")
    assert f'"{name}"' in card and f'"{name}"' not in moved
    assert 'from_pretrained("me/speech", revision="v1"' in moved
    assert ModelCard(moved).data.to_dict() == ModelCard(card).data.to_dict()
