"""One battery over all families: what every model of transformers is expected to do."""

import copy

import pytest
import torch
from families import FAMILIES, HEADS, Family, assert_same_outputs, every_family, run
from helpers import speech_like
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForAudioClassification,
    AutoModelForAudioFrameClassification,
    AutoModelForCTC,
    AutoModelForPreTraining,
    AutoModelForRNNT,
    AutoProcessor,
    Trainer,
    TrainingArguments,
    Wav2Vec2Processor,
)

from hf_speech_ssl import SpeechSSLFeatureExtractor
from hf_speech_ssl.decoding import build_ctc_processor

TRANSDUCER = {"encoder_projector", "decoder", "joint"}
AUTO_CLASSES = {
    "base": AutoModel,
    "pretraining": AutoModelForPreTraining,
    "ctc": AutoModelForCTC,
    "rnnt": AutoModelForRNNT,
    "classification": AutoModelForAudioClassification,
    "frame_classification": AutoModelForAudioFrameClassification,
}
NEW_WEIGHTS = {  # of a head, by their first part
    "base": set(),
    "ctc": {"ctc_head"},
    "rnnt": TRANSDUCER,
    "classification": {"classifier_projector", "classifier"},
    "frame_classification": {"classifier"},
}


def encoder_weights(model) -> dict[str, torch.Tensor]:
    return getattr(model, "encoder", model).state_dict()


def assert_same_weights(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, values in one.items():
        assert torch.equal(values, other[name]), name


@every_family
@pytest.mark.parametrize("head", HEADS)
def test_save_and_load(family: Family, head: str, tmp_path):
    model = family.build(head)
    model.save_pretrained(tmp_path)
    loaded, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert not loaded.training
    assert_same_weights(loaded.state_dict(), model.state_dict())
    assert_same_outputs(loaded, model)


@every_family
@pytest.mark.parametrize(("source", "target"), [(one, other) for one in HEADS for other in HEADS if one != other])
def test_checkpoints_load_into_each_other(family: Family, source: str, target: str, tmp_path):
    model = family.build(source)
    model.save_pretrained(tmp_path)
    if (source, target) == ("rnnt", "ctc"):  # pipeline() would write nonsense with it
        with pytest.raises(ValueError, match="loads with AutoModelForRNNT"):
            AutoModelForCTC.from_pretrained(tmp_path)
        return
    resized = {source, target} == {"classification", "frame_classification"}  # both have a `classifier`
    loaded, info = AUTO_CLASSES[target].from_pretrained(
        tmp_path, output_loading_info=True, ignore_mismatched_sizes=resized
    )
    assert type(loaded) is getattr(family, target)
    assert_same_weights(encoder_weights(loaded), encoder_weights(model))
    new = {name.split(".")[0] for name in [*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])]}
    assert new == {**NEW_WEIGHTS, "pretraining": family.own}[target]
    assert all(values.isfinite().all() for values in loaded.state_dict().values())
    assert run(loaded).isfinite().all()


@every_family
def test_ctc_head_gets_the_tokenizers_size(family: Family, tmp_path):
    family.build("pretraining").save_pretrained(tmp_path)
    model = AutoModelForCTC.from_pretrained(tmp_path, vocab_size=11, pad_token_id=3)
    assert model.ctc_head.out_features == run(model).shape[-1] == 11
    assert model.config.pad_token_id == 3


@every_family
@pytest.mark.parametrize("head", HEADS)
def test_auto_classes(family: Family, head: str, tmp_path):
    model = AUTO_CLASSES[head].from_config(copy.deepcopy(family.config))
    assert type(model) is getattr(family, head)
    model.save_pretrained(tmp_path)
    loaded = AUTO_CLASSES[head].from_pretrained(tmp_path)
    assert type(loaded) is type(model)
    assert_same_outputs(loaded, model)


@every_family
def test_auto_feature_extractor_and_processor(family: Family, tmp_path):
    extractor = SpeechSSLFeatureExtractor(mean=[1.0] * 80, variance=[2.0] * 80)
    family.build("pretraining").save_pretrained(tmp_path / "pretrained")
    extractor.save_pretrained(tmp_path / "pretrained")
    assert AutoFeatureExtractor.from_pretrained(tmp_path / "pretrained").to_dict() == extractor.to_dict()
    family.build("ctc").save_pretrained(tmp_path / "ctc")
    build_ctc_processor(["one two"], extractor).save_pretrained(tmp_path / "ctc")
    processor = AutoProcessor.from_pretrained(tmp_path / "ctc")
    assert isinstance(processor, Wav2Vec2Processor)
    assert processor.feature_extractor.to_dict() == extractor.to_dict()
    assert processor.tokenizer("two one").input_ids == processor(text="two one").input_ids
    assert AutoFeatureExtractor.from_pretrained(tmp_path / "ctc").mean == extractor.mean
    batch = processor([speech_like(0.3), speech_like(0.5)], sampling_rate=16_000, return_tensors="pt")
    assert batch.input_features.shape == (2, 48, 80)


@every_family
def test_config_round_trip(family: Family, tmp_path):
    config = type(family.config)(**{**family.config.to_diff_dict(), "hidden_size": 48, "vocab_size": 77})
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is type(config)
    assert {**loaded.to_dict(), "_name_or_path": ""} == config.to_dict()
    assert (loaded.hidden_size, loaded.vocab_size) == (48, 77)
    heads = {auto.__name__ for auto in AUTO_CLASSES.values()}
    assert set(loaded.auto_map) == {"AutoConfig", "AutoModelForTDT", *heads}
    assert AutoConfig.from_pretrained(tmp_path, hidden_size=64).hidden_size == 64


@every_family
def test_the_heads_freeze_as_in_transformers(family: Family):
    """The official CTC recipe calls `freeze_feature_encoder` by default."""
    for head in HEADS:
        model = family.build(head)
        everything = [parameter for parameter in model.parameters() if parameter.requires_grad]
        model.freeze_feature_encoder()
        projection = list(model.base_model.feature_projection.parameters())
        assert sum(parameter.requires_grad for parameter in model.parameters()) == len(everything) - len(projection)
        model.freeze_base_model()
        assert not any(parameter.requires_grad for parameter in model.base_model.parameters())


def train_one_step(model, examples: list[dict], batch_size: int, folder) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and weights after one step of plain gradient descent over all examples with transformers' Trainer."""
    arguments = TrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=len(examples) // batch_size,
        max_steps=1,
        learning_rate=0.1,
        optim="sgd",
        max_grad_norm=0.0,
        lr_scheduler_type="constant",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    trainer = Trainer(model.train(), arguments, train_dataset=examples)
    loss = trainer.train().training_loss
    return loss, {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@every_family
@pytest.mark.parametrize("head", [head for head in HEADS if head != "base"])
def test_gradient_accumulation_in_trainer(family: Family, head: str, tmp_path):
    """One batch of 4 and 4 batches of 1 are the same step: the mean must not be taken twice, nor left out."""
    model = family.build(head)
    frames = 64
    hidden = torch.zeros(frames // model.config.frame_stacking, dtype=torch.bool)
    hidden[10:14] = True
    extra = {
        "pretraining": {"mask_time_indices": hidden},
        "classification": {"labels": torch.tensor(1)},
        "frame_classification": {"labels": hidden.long()},
    }.get(head, {"labels": torch.tensor([1, 2, 3])})
    examples = [{"input_features": torch.randn(frames, 80), **extra} for _ in range(4)]
    loss, weights = train_one_step(model, examples, 4, tmp_path)
    loss_in_parts, weights_in_parts = train_one_step(family.build(head), examples, 1, tmp_path)
    start = dict(family.build(head).named_parameters())
    assert loss_in_parts == pytest.approx(loss, rel=1e-4)
    for name, after in weights.items():
        moved, moved_in_parts = after - start[name], weights_in_parts[name] - start[name]
        torch.testing.assert_close(moved_in_parts, moved, atol=1e-6, rtol=1e-3, msg=name)


@every_family
def test_pretraining_output_is_what_the_loop_logs(family: Family):
    features, mask = torch.randn(2, 400, 80), torch.ones(2, 400)
    output = family.build("pretraining")(features, attention_mask=mask)
    scalars = {name: value for name, value in output.items() if name != "logits"}
    assert {"loss", "num_masked_frames", "accuracy", "codebook_perplexity"} <= scalars.keys()
    assert all(value.ndim == 0 for value in scalars.values())
    assert [name for name, value in output.items() if value.requires_grad] == ["loss", "logits"]
    assert len(output.logits) == output.num_masked_frames > 0


def test_every_registered_family_is_in_the_battery():
    import hf_speech_ssl

    exported = {name.removesuffix("ForPreTraining") for name in hf_speech_ssl.__all__ if "ForPreTraining" in name}
    assert exported == {family.pretraining.__name__.removesuffix("ForPreTraining") for family in FAMILIES.values()}
