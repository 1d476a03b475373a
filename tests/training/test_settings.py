import pytest

from hf_speech_ssl import BiRQConfig
from hf_speech_ssl.modeling.configuration_chunkssl import ChunkSSLConfig
from hf_speech_ssl.options import parse_settings
from hf_speech_ssl.training.building import parse_config_overrides
from hf_speech_ssl.training.settings import TrainingSettings


def test_config_overrides_are_typed():
    text = "hidden_size=128, hidden_dropout=0.0,label_layer=none,detach_enhanced_labels=true,hidden_act=gelu"
    overrides = parse_config_overrides(text, BiRQConfig)
    assert overrides == {
        "hidden_size": 128,
        "hidden_dropout": 0.0,
        "label_layer": None,
        "detach_enhanced_labels": True,
        "hidden_act": "gelu",
    }
    config = BiRQConfig.from_preset("birq-tiny", **overrides)
    assert (config.hidden_size, config.hidden_act) == (128, "gelu")
    assert parse_config_overrides("chunk_durations_ms=[640,1280],chunk_size=8", ChunkSSLConfig) == {
        "chunk_durations_ms": [640, 1280],
        "chunk_size": 8,
    }
    assert parse_config_overrides(None, BiRQConfig) == {}


def test_misspelt_overrides_are_refused_by_name():
    with pytest.raises(ValueError, match="no field 'hiden_size'.*Did you mean hidden_size"):
        parse_config_overrides("hiden_size=128", BiRQConfig)
    with pytest.raises(ValueError, match="name=value"):
        parse_config_overrides("hidden_size", BiRQConfig)


def test_the_parser_reads_the_settings_and_shows_their_defaults():
    (settings,) = parse_settings(
        ["--output_dir", "out", "--warmup_steps", "0.1", "--load_best_model_at_end", "false"],
        "A script.",
        [TrainingSettings],
        weight_decay=0.5,
        load_best_model_at_end=True,
    )
    assert (settings.warmup_steps, settings.torch_compile, settings.max_steps) == (0.1, False, None)
    assert (settings.weight_decay, settings.load_best_model_at_end) == (0.5, False)


@pytest.mark.parametrize(
    "flag", [{"max_steps": 0}, {"learning_rate": -1}, {"save_total_limit": 0}, {"eval_steps": -1}]
)
def test_senseless_settings_are_refused_by_name(flag):
    with pytest.raises(ValueError, match=next(iter(flag))):
        TrainingSettings(output_dir="out", **flag)
