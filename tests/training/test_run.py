"""What a run records of itself before it trains."""

import json

import pytest

from hf_speech_ssl.training.processes import make_accelerator
from hf_speech_ssl.training.run import start_trackers
from hf_speech_ssl.training.settings import PretrainingSettings, TrainingSettings


@pytest.mark.parametrize("local", ["/data/ana/model", "../ana/model", "ana/outputs/model"])
def test_neither_arguments_nor_trackers_hold_folders(local, tmp_path):
    folder = tmp_path / "ana" / "run"
    settings = TrainingSettings(output_dir=str(folder), max_steps=1, report_to="tensorboard")
    accelerator = make_accelerator(settings)
    start_trackers(accelerator, settings, PretrainingSettings(model_name_or_path=local)).write(folder)
    accelerator.end_training()
    arguments = json.loads((folder / "run_arguments.json").read_text())
    assert (arguments["output_dir"], arguments["model_name_or_path"]) == ("run", "model")
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert any("tfevents" in path.name for path in files) and any(path.name == "hparams.yml" for path in files)
    assert not [path for path in files if b"ana" in path.read_bytes()]
