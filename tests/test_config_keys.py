"""Keys that are no fields of a configuration: refused where a person types them, kept where a file holds them."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from families import FAMILIES, Family, assert_same_outputs, every_family
from helpers import speech_like, tiny_birq
from test_pipeline import save_recognizer
from test_remote_code import run_without_the_package
from transformers import (
    AutoConfig,
    AutoModelForCTC,
    PreTrainedConfig,
    SpeechEncoderDecoderConfig,
    Trainer,
    TrainingArguments,
    pipeline,
)
from transformers import logging as transformers_logging
from transformers.trainer_utils import get_last_checkpoint

from hf_speech_ssl import BiRQConfig, FSQConfig
from hf_speech_ssl.modeling import configuration_conformer

CONFIGS = {**{name: family.config for name, family in FAMILIES.items()}, "fsq": FSQConfig(fsq_levels=[3, 3])}
every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
# What other tools, and transformers of other years, write into a config.json.
KEYS_OF_OTHERS = {
    "add_adapter": False,
    "attention_probs_dropout_prob": 1.5,
    "base_model_name_or_path": "someone/model",
    "bos_token_id": 1,
    "compression_config": {"format": "dense"},
    "feat_proj_dropout": 0.0,
    "finetuning_task": "asr",
    "gradient_checkpointing": True,
    "is_decoder": False,
    "key_of_next_year": [{"a": None}],
    "language": "da",
    "max_length": 20,
    "neuron": {"batch_size": 1},
    "note": "trained on Tuesday",
    "output_scores": False,
    "peft_type": "LORA",
    "pruned_heads": {},
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "task_specific_params": None,
    "tie_encoder_decoder": False,
    "tie_word_embeddings": True,
    "tokenizer_class": "Wav2Vec2CTCTokenizer",
    "torch_dtype": "float32",
    "torchscript": False,
    "transformers.js_config": {"use_external_data_format": False},
    "unsloth_fixed": True,
    "unsloth_version": "2026.1",
    "use_bfloat16": False,
    "use_cache": False,
}
DROPPED = {"max_length", "output_scores", "torch_dtype", "use_cache"}  # transformers keeps these elsewhere


@pytest.fixture
def warnings_of_keys() -> Iterator[list[str]]:
    """What the configurations warn of; transformers says each sentence once in a process."""
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    configuration_conformer.logger.addHandler(handler)
    transformers_logging.get_logger().warning_once.__func__.cache_clear()
    yield messages
    configuration_conformer.logger.removeHandler(handler)


def write_keys(folder: Path, keys: dict) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))


@every_config
def test_typed_keywords_are_refused_by_name(config: PreTrainedConfig):
    kind = type(config)
    with pytest.raises(ValueError, match="no field 'initialiser_range'.*did you mean 'initializer_range'"):
        kind(initialiser_range=0.1)
    with pytest.raises(ValueError, match="no field 'color'"):
        kind(color="red")
    with pytest.raises(ValueError, match="no field 'stacked_size'"):
        kind(stacked_size=80)
    with pytest.raises(ValueError, match="no field 'max_length'"):
        kind(max_length=3)
    with pytest.raises(ValueError, match="no field 'num_mel_bin'.*did you mean 'num_mel_bins'"):
        kind.from_preset(next(iter(kind._presets)), num_mel_bin=80)
    with pytest.raises(ValueError, match="no field 'num_mel_bin'"):
        AutoConfig.for_model(kind.model_type, num_mel_bin=80)


@every_config
def test_keys_in_a_file_are_kept_named_once_and_saved_again(config: PreTrainedConfig, tmp_path, warnings_of_keys):
    config.save_pretrained(tmp_path / "0")
    assert type(config).from_pretrained(tmp_path / "0").num_mel_bins == 80
    assert warnings_of_keys == []
    write_keys(tmp_path / "0", KEYS_OF_OTHERS)
    kept = {key: value for key, value in KEYS_OF_OTHERS.items() if key not in DROPPED}
    for round_trip in range(3):
        loaded = AutoConfig.from_pretrained(tmp_path / str(round_trip))
        assert {key: getattr(loaded, key) for key in kept} == kept
        loaded.save_pretrained(tmp_path / str(round_trip + 1))
    (message,) = warnings_of_keys
    assert all(f"'{key}'" in message for key in kept)
    assert not any(f"'{key}'" in message for key in DROPPED | {"auto_map", "model_type"})


@every_config
def test_the_warning_names_the_near_miss(config: PreTrainedConfig, tmp_path, warnings_of_keys):
    config.save_pretrained(tmp_path)
    write_keys(tmp_path, {"num_mel_bin": 40})
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert (loaded.num_mel_bins, loaded.num_mel_bin) == (80, 40)
    (message,) = warnings_of_keys
    assert "'num_mel_bin' (did you mean 'num_mel_bins'?)" in message


@every_config
def test_a_file_replaces_no_property_or_method(config: PreTrainedConfig, tmp_path, warnings_of_keys):
    config.save_pretrained(tmp_path)
    write_keys(tmp_path, {"frame_rate": 3.0, "validate": True, "from_preset": "x"})
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert loaded.frame_rate == config.frame_rate
    loaded.validate()
    (message,) = warnings_of_keys
    assert all(f"'{key}'" in message for key in ("frame_rate", "from_preset", "validate")) and "ignored" in message


def test_a_saved_config_may_come_as_keywords(tmp_path):
    """As transformers builds configurations that lie in another one's file, and as people copy them."""
    config = tiny_birq()
    config.update({"note": "a", "feat_proj_dropout": 0.1})
    assert BiRQConfig(**config.to_dict()).note == "a"
    assert BiRQConfig(**{**config.to_diff_dict(), "hidden_size": 16}).feat_proj_dropout == 0.1
    whole = SpeechEncoderDecoderConfig(encoder=config.to_dict(), decoder={"model_type": "gpt2"})
    whole.save_pretrained(tmp_path)
    assert SpeechEncoderDecoderConfig.from_pretrained(tmp_path).encoder.note == "a"
    config.to_json_file(tmp_path / "own.json")
    assert BiRQConfig.from_json_file(tmp_path / "own.json").note == "a"


@every_family
def test_keywords_of_loading_replace_what_a_file_holds(family: Family, tmp_path):
    family.build("ctc").save_pretrained(tmp_path)
    write_keys(tmp_path, {"note": "a"})
    model = AutoModelForCTC.from_pretrained(tmp_path, note="b", final_dropout=0.5)
    assert (model.config.note, model.config.final_dropout) == ("b", 0.5)
    with pytest.raises(TypeError, match="hiddn_size"):
        AutoModelForCTC.from_pretrained(tmp_path, hiddn_size=48)


@every_family
def test_what_trainer_saves_with_a_tokenizer_loads(family: Family, tmp_path):
    model, processor = save_recognizer(family, tmp_path / "start")
    processor.tokenizer.bos_token, processor.tokenizer.eos_token = "a", "b"
    # The keys of the official CTC recipe, run_speech_recognition_ctc.py.
    model.config.update({"feat_proj_dropout": 0.0, "gradient_checkpointing": False, "layerdrop": 0.0})
    arguments = TrainingArguments(
        tmp_path / "run", max_steps=1, save_steps=1, use_cpu=True, report_to="none", disable_tqdm=True
    )
    examples = [{"input_features": torch.randn(64, 80), "labels": torch.tensor([3, 4])}]
    trainer = Trainer(model, arguments, train_dataset=examples, processing_class=processor.tokenizer)
    trainer.data_collator = lambda rows: {key: torch.stack([row[key] for row in rows]) for key in rows[0]}
    trainer.train()
    saved = Path(get_last_checkpoint(tmp_path / "run"))
    assert "bos_token_id" in json.loads((saved / "config.json").read_text())
    loaded = AutoModelForCTC.from_pretrained(saved)
    assert_same_outputs(loaded, model)
    loaded.save_pretrained(tmp_path / "again")
    assert AutoConfig.from_pretrained(tmp_path / "again").feat_proj_dropout == 0.0


REMOTE_PROGRAM = """
from pathlib import Path
import torch
from transformers import AutoModelForCTC, pipeline

source, target = map(Path, sys.argv[1:])
model = AutoModelForCTC.from_pretrained(source, trust_remote_code=True)
model.config.second_note = "b"
model.save_pretrained(target / "again")
model = AutoModelForCTC.from_pretrained(target / "again", trust_remote_code=True)
wave = torch.load(source / "wave.pt", weights_only=False)
text = pipeline("automatic-speech-recognition", str(source), trust_remote_code=True)(wave)["text"]
torch.save({"notes": (model.config.note, model.config.second_note), "text": text}, target / "outputs.pt")
"""


@pytest.mark.slow
def test_keys_survive_remote_code(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    save_recognizer(FAMILIES["birq"], source)
    write_keys(source, {**KEYS_OF_OTHERS, "note": "a"})
    wave = speech_like(0.5)
    torch.save(wave, source / "wave.pt")
    found = run_without_the_package(source, target, REMOTE_PROGRAM)
    assert found["notes"] == ("a", "b")
    assert found["text"] == pipeline("automatic-speech-recognition", str(source))(wave.copy())["text"]
    loaded = AutoConfig.from_pretrained(target / "again")
    assert type(loaded) is BiRQConfig and loaded.second_note == "b" and loaded.key_of_next_year == [{"a": None}]
