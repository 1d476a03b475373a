"""What a checkpoint is, asked in one place; PEFT adapters; what is missing is said, with what to do."""

import json
import sys
from pathlib import Path

import peft
import pytest
import soundfile
import torch
from families import FAMILIES
from helpers import speech_like
from transformers import (
    AutoModel,
    AutoModelForAudioClassification,
    AutoModelForCTC,
    AutoModelForRNNT,
    PreTrainedModel,
    Wav2Vec2Config,
    Wav2Vec2Model,
    Wav2Vec2Processor,
)

from hf_speech_ssl import FSQConfig, FSQModel, SpeechSSLFeatureExtractor
from hf_speech_ssl.cli import main
from hf_speech_ssl.decoding import build_ctc_tokenizer
from hf_speech_ssl.loading import CheckpointKind, find_checkpoint
from hf_speech_ssl.recognition.recognizer import Recognizer

CPU = torch.device("cpu")
PROCESSOR = Wav2Vec2Processor(SpeechSSLFeatureExtractor(), build_ctc_tokenizer(["abcd "]))
VOCABULARY = len(PROCESSOR.tokenizer)


def save(folder: Path, *parts) -> str:
    for part in parts:
        part.save_pretrained(folder)
    return str(folder)


def wav2vec2() -> PreTrainedModel:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return Wav2Vec2Model(Wav2Vec2Config(conv_dim=[8] * 7, num_conv_pos_embedding_groups=2, **sizes))


CHECKPOINTS = {
    "base": (lambda: FAMILIES["birq"].build("base"), CheckpointKind.ENCODER, True),
    "pretraining": (lambda: FAMILIES["chunkssl"].build("pretraining"), CheckpointKind.PRETRAINING, True),
    "ctc": (lambda: FAMILIES["birq"].build("ctc"), CheckpointKind.CTC, True),
    "tokenizer": (
        lambda: FSQModel(FSQConfig(fsq_levels=[3, 5], fsq_hidden_size=16, fsq_num_hidden_layers=1)),
        CheckpointKind.LABEL_TOKENIZER,
        True,
    ),
    "another family": (wav2vec2, CheckpointKind.ENCODER, False),
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_checkpoint_is_known_by_its_configuration(name, tmp_path):
    build, kind, is_ours = CHECKPOINTS[name]
    folder = save(tmp_path, build())
    (tmp_path / "model.safetensors").unlink()
    checkpoint = find_checkpoint(folder)
    assert (checkpoint.kind, checkpoint.family is not None, checkpoint.adapter) == (kind, is_ours, None)


def test_weights_that_are_missing_are_named_with_what_to_do(tmp_path):
    checkpoint = find_checkpoint(save(tmp_path, FAMILIES["birq"].build("base")))
    with pytest.raises(ValueError, match=r"lacks weights of BiRQForCTC: ctc_head\.bias, .*\. Fine-tune it\."):
        checkpoint.load_model(AutoModelForCTC, CPU, if_missing="Fine-tune it.")
    assert checkpoint.load_model(AutoModel, CPU, if_missing="").dtype == torch.float32


def test_why_an_encoder_has_no_processor_is_said(tmp_path):
    checkpoint = find_checkpoint(save(tmp_path, FAMILIES["birq"].build("base"), PROCESSOR.feature_extractor))
    with pytest.raises(ValueError, match="has a feature extractor and no tokenizer.*AutoFeatureExtractor"):
        checkpoint.load_processor()
    assert checkpoint.load_feature_extractor().feature_size == 80


# --- PEFT adapters


def adapt(model: PreTrainedModel, folder: Path, *parts, **options) -> tuple[str, PreTrainedModel]:
    """A folder with a LoRA adapter far from zero, and the model that it makes."""
    torch.manual_seed(5)
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["qkv_proj", "up_proj"], **options))
    with torch.no_grad():
        for name, weights in adapted.named_parameters():
            if weights.requires_grad:
                weights.normal_(0, 0.2, generator=torch.Generator().manual_seed(len(name)))
    adapted.save_pretrained(folder)
    return save(folder, *parts), adapted.eval()


def log_probs_of(model: torch.nn.Module) -> torch.Tensor:
    inputs = PROCESSOR.feature_extractor(speech_like(1.0), sampling_rate=16_000, return_tensors="pt")
    with torch.no_grad():
        return model(**inputs).logits.log_softmax(-1)


@pytest.mark.parametrize("processor_of", ["adapter", "base"])
def test_an_adapter_folder_is_opened_as_the_model_that_it_makes(processor_of, tmp_path):
    parts = {"adapter": (), "base": ()} | {processor_of: (PROCESSOR,)}
    base = save(tmp_path / "base", FAMILIES["birq"].build("ctc", vocab_size=VOCABULARY), *parts["base"])
    model = AutoModelForCTC.from_pretrained(base)
    plain = log_probs_of(model)
    folder, adapted = adapt(model, tmp_path / "adapter", *parts["adapter"])
    checkpoint = find_checkpoint(folder)
    assert checkpoint.kind is CheckpointKind.CTC and checkpoint.adapter.base == base
    recognizer = Recognizer.from_checkpoint(checkpoint, "cpu")
    assert type(recognizer.model.encoder.layers[0].attention.qkv_proj) is torch.nn.Linear  # merged
    got, wanted = recognizer.decoder_frames([speech_like(1.0)])[0], log_probs_of(adapted)
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5)
    assert (got - plain).abs().max() > 0.01


def test_an_adapter_of_an_encoder_brings_its_own_head_and_vocabulary(tmp_path, capsys):
    base = save(tmp_path / "base", FAMILIES["birq"].build("pretraining"), PROCESSOR.feature_extractor)
    model = AutoModelForCTC.from_pretrained(base, vocab_size=VOCABULARY)
    folder, adapted = adapt(model, tmp_path / "adapter", PROCESSOR, modules_to_save=["ctc_head"])
    got = Recognizer.from_pretrained(folder, device="cpu").decoder_frames([speech_like(1.0)])[0]
    torch.testing.assert_close(got, log_probs_of(adapted), rtol=0, atol=1e-4)
    soundfile.write(tmp_path / "a.wav", speech_like(1.0), 16_000)
    assert main(["transcribe", str(tmp_path / "a.wav"), "--model_name_or_path", folder, "--device", "cpu"]) == 0
    assert set(capsys.readouterr().out.strip()) <= set("abcd ")
    without_head, _ = adapt(AutoModelForCTC.from_pretrained(base, vocab_size=VOCABULARY), tmp_path / "none", PROCESSOR)
    with pytest.raises(ValueError, match="lacks weights of BiRQForCTC: ctc_head"):
        Recognizer.from_pretrained(without_head, device="cpu")


def test_an_adapter_does_what_its_base_or_its_own_head_does(tmp_path):
    base = save(tmp_path / "rnnt", FAMILIES["birq"].build("rnnt", vocab_size=VOCABULARY), PROCESSOR)
    folder, adapted = adapt(AutoModelForRNNT.from_pretrained(base), tmp_path / "adapter", PROCESSOR)
    checkpoint = find_checkpoint(folder)
    assert checkpoint.kind is CheckpointKind.TRANSDUCER and checkpoint.writes_text
    recognizer = Recognizer.from_checkpoint(checkpoint, "cpu")
    assert type(recognizer.model) is FAMILIES["birq"].rnnt
    merged = adapted.merge_and_unload().state_dict()
    torch.testing.assert_close(recognizer.model.state_dict(), merged, rtol=0, atol=1e-5)

    base = save(tmp_path / "classes", FAMILIES["birq"].build("classification"), PROCESSOR.feature_extractor)
    model = AutoModelForAudioClassification.from_pretrained(base)
    folder, _ = adapt(model, tmp_path / "speakers", modules_to_save=["classifier"])
    assert find_checkpoint(folder).kind is CheckpointKind.ENCODER
    with pytest.raises(ValueError, match="lacks weights of BiRQForCTC: ctc_head"):
        Recognizer.from_pretrained(folder, device="cpu")


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_lora_learns_with_activation_checkpointing_and_is_opened_again(use_reentrant, tmp_path):
    base = save(tmp_path / "base", FAMILIES["birq"].build("ctc", vocab_size=VOCABULARY + 3))
    model = AutoModelForCTC.from_pretrained(base, vocab_size=VOCABULARY, ignore_mismatched_sizes=True)
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    config = peft.LoraConfig(target_modules=["qkv_proj"], modules_to_save=["ctc_head"])
    adapted = peft.get_peft_model(model, config).train()
    trained = {name: weights for name, weights in adapted.named_parameters() if weights.requires_grad}
    optimizer = torch.optim.SGD(trained.values(), lr=0.1)
    inputs = PROCESSOR.feature_extractor(speech_like(1.0), sampling_rate=16_000, return_tensors="pt")
    adapted(**inputs, labels=torch.tensor([[3, 4, 5]])).loss.backward()
    assert all(weights.grad.abs().sum() > 0 for name, weights in trained.items() if "lora_B" in name)
    optimizer.step()
    adapted.save_pretrained(tmp_path / "adapter")  # PEFT compares the vocabulary with the base's, and saves more
    folder, wanted = save(tmp_path / "adapter", PROCESSOR), log_probs_of(adapted.eval())
    opened = AutoModelForCTC.from_pretrained(folder, vocab_size=VOCABULARY, ignore_mismatched_sizes=True).eval()
    torch.testing.assert_close(log_probs_of(opened), wanted, rtol=0, atol=1e-5)
    got = Recognizer.from_pretrained(folder, device="cpu").decoder_frames([speech_like(1.0)])[0]
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5)


def test_an_adapter_whose_base_has_other_sizes_is_refused(tmp_path):
    base = save(tmp_path / "base", FAMILIES["birq"].build("ctc", vocab_size=VOCABULARY))
    folder, _ = adapt(
        AutoModelForCTC.from_pretrained(base), tmp_path / "adapter", PROCESSOR, modules_to_save=["ctc_head"]
    )
    config = tmp_path / "base" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"conv_kernel_size": 3}))
    with pytest.raises(ValueError, match=r"lacks weights of BiRQForCTC: encoder\.layers\.0\.convolution"):
        Recognizer.from_pretrained(folder, device="cpu")


def test_an_adapter_that_cannot_be_opened_says_why(tmp_path, monkeypatch):
    base = save(tmp_path / "base", FAMILIES["birq"].build("ctc", vocab_size=VOCABULARY), PROCESSOR)
    folder, _ = adapt(AutoModelForCTC.from_pretrained(base), tmp_path / "adapter")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "peft", None)
        with pytest.raises(ImportError, match="is a PEFT adapter: pip install peft"):
            Recognizer.from_pretrained(folder, device="cpu")
    config = tmp_path / "adapter" / "adapter_config.json"
    for name, message in ((str(tmp_path / "gone"), "adapter of .*gone, which cannot be opened"), (None, "no base")):
        config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": name}))
        with pytest.raises((OSError, ValueError), match=message):
            Recognizer.from_pretrained(folder, device="cpu")
