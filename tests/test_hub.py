"""The model card: written from a run's own files, with metadata that the Hub understands."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from hf_speech_ssl import hub

RESULTS = {
    "eval_validation_wer": 0.1234,
    "eval_validation_cer": 0.05,
    "eval_test_wer": 0.2,
    "eval_test_loss": 1.5,
    "updates": 10,
    "skipped_files": 2,
    "audio_hours": 5.0,
    "training_hours": 0.5,
    "num_parameters": 137_000_000,
    "num_processes": 4,
    "device": "CPU",
}
ARGUMENTS = {
    "dataset_name": "openslr/librispeech_asr",
    "dataset_config_name": "clean",
    "train_split_name": "train.100",
    "eval_split_name": "validation,test",
    "model_name_or_path": "someone/birq-base",
    "normalize_text": True,
    "learning_rate": 1e-3,
}


def folder_of_run(folder, architecture="BiRQForCTC", model_type="birq", results=RESULTS, **arguments):
    config = {"architectures": [architecture], "model_type": model_type, "hidden_size": 512, "frame_stacking": 2}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "run_arguments.json").write_text(json.dumps({**ARGUMENTS, **arguments}))
    return folder


def test_the_card_of_a_ctc_model(tmp_path):
    hub.write_model_card(folder_of_run(tmp_path))
    card = ModelCard.load(tmp_path / "README.md")
    assert (card.data.pipeline_tag, card.data.library_name) == ("automatic-speech-recognition", "transformers")
    assert card.data.base_model == "someone/birq-base" and card.data.datasets == ["openslr/librispeech_asr"]
    found = {(r.dataset_split, r.metric_type, r.metric_value) for r in card.data.eval_results}
    assert found == {("validation", "wer", 12.34), ("validation", "cer", 5.0), ("test", "wer", 20.0)}
    for words in ("137.0 million", "12.34 %", "2 files", "4 x CPU, 30.0 minutes", "2509.15430", "pipeline("):
        assert words in card.text, words
    assert "{{" not in card.text.split("```bibtex")[0] and "None" not in card.text


def test_the_card_of_an_encoder_on_local_data_claims_no_hub_data(tmp_path):
    folder = folder_of_run(
        tmp_path, "BiRQForPreTraining", dataset_name="my_audio", model_name_or_path=None, eval_split_name=None
    )
    hub.write_model_card(folder)
    metadata = yaml.safe_load((tmp_path / "README.md").read_text().split("---")[1])
    assert metadata["pipeline_tag"] == "feature-extraction" and not {"datasets", "base_model"} & set(metadata)
    assert "AutoModel.from_pretrained" in (tmp_path / "README.md").read_text()


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no config.json"):
        hub.write_model_card(tmp_path)
    with pytest.raises(ValueError, match="type 'bert'"):
        hub.write_model_card(folder_of_run(tmp_path, model_type="bert"))


@pytest.mark.slow
def test_the_template_is_in_the_wheel(tmp_path):
    root = Path(__file__).parent.parent
    command = "pip wheel -q --no-deps --no-build-isolation -w".split()
    subprocess.run([sys.executable, "-m", *command, str(tmp_path), str(root)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert "hf_speech_ssl/model_cards/template.md" in zipfile.ZipFile(wheel).namelist()
