"""From a finished run to what is shown of it: results, curves, card, then the upload."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from hf_speech_ssl import hub
from hf_speech_ssl.run_folder import RunResults

RESULTS = {
    "eval_wer": 0.25,
    "updates": 2,
    "audio_hours": 0.1,
    "training_hours": 0.01,
    "num_parameters": 1_000,
    "num_processes": 1,
    "device": "CPU",
}


@pytest.fixture
def run(tmp_path):
    """The folder of a run that has ended and is not published yet."""
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["BiRQForCTC"], "model_type": "birq"}))
    arguments = {"dataset_name": "synthetic", "eval_split_name": "test", "config_name": "birq-tiny"}
    (tmp_path / "run_arguments.json").write_text(json.dumps(arguments))
    (tmp_path / "results.json").write_text(json.dumps(RESULTS))
    lines = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}, {"step": 2, "eval_wer": 0.25}]
    (tmp_path / "train_log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def test_publishing_writes_results_curves_and_card_and_then_uploads(run, monkeypatch):
    pushed = []

    def push_folder(folder, repo_id):
        pushed.append((repo_id, {path.name for path in folder.iterdir()}))

    monkeypatch.setattr(hub, "push_folder", push_folder)
    hub.publish(run, RunResults.read(run))
    assert not pushed
    card = (run / "README.md").read_text()
    assert "![Training curves](training_curves.png)" in card and "25.00 %" in card
    assert (run / "training_curves.png").stat().st_size > 1000
    assert json.loads((run / "results.json").read_text()).items() >= RESULTS.items()

    for file in ("README.md", "training_curves.png"):
        (run / file).unlink()
    hub.publish(run, RunResults.read(run), push_to_hub=True, hub_model_id="me/my-model")
    hub.publish(run, RunResults.read(run), push_to_hub=True)
    assert [repo_id for repo_id, _ in pushed] == ["me/my-model", run.name]
    assert {"README.md", "training_curves.png", "results.json"} <= pushed[0][1]


def test_what_could_not_be_pushed_is_said_before_training(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_some")
    hub.check_push(tmp_path / "good"), hub.check_push(tmp_path / "not good", "me/good")
    for folder, name in (("not good", None), ("good", "me/not good")):
        with pytest.raises(ValueError, match="not good' cannot be a repository, give user/name"):
            hub.check_push(tmp_path / folder, name)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(OSError, match="not logged in"):
        hub.check_push(tmp_path / "good")


@pytest.mark.slow
def test_the_templates_are_in_the_wheel(tmp_path):
    root = Path(__file__).parent.parent
    command = "pip wheel -q --no-deps --no-build-isolation -w".split()
    subprocess.run([sys.executable, "-m", *command, str(tmp_path), str(root)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {f"hf_speech_ssl/model_cards/{name}.md" for name in ("template", "presets_template")} <= set(names)
