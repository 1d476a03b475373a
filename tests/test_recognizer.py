"""Any CTC model of Transformers: batches against single utterances, lengths, times, and what is refused."""

import json
from pathlib import Path

import pytest
import torch
from families import FAMILIES
from helpers import speech_like
from tokenizers import Tokenizer
from tokenizers.decoders import Metaspace
from tokenizers.models import WordLevel
from transformers import (
    HubertConfig,
    HubertForCTC,
    LasrCTCConfig,
    LasrFeatureExtractor,
    LasrForCTC,
    LasrProcessor,
    ParakeetCTCConfig,
    ParakeetFeatureExtractor,
    ParakeetForCTC,
    ParakeetProcessor,
    ParakeetTokenizer,
    PreTrainedModel,
    ProcessorMixin,
    SeamlessM4TFeatureExtractor,
    Wav2Vec2BertConfig,
    Wav2Vec2BertForCTC,
    Wav2Vec2BertProcessor,
    Wav2Vec2Config,
    Wav2Vec2ConformerConfig,
    Wav2Vec2ConformerForCTC,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    Wav2Vec2Model,
    Wav2Vec2Processor,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from hf_speech_ssl import SpeechSSLFeatureExtractor
from hf_speech_ssl.decoding import build_ctc_tokenizer
from hf_speech_ssl.recognition.recognizer import Recognizer

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
WAVES = SIZES | {"conv_dim": [16] * 7, "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2}
LAYER_NORM = WAVES | {"feat_extract_norm": "layer", "do_stable_layer_norm": True}
MELS = SIZES | {"num_mel_bins": 80, "subsampling_conv_channels": 8}
LETTERS = ["a", "b", "c", "d"]


def lively(model: PreTrainedModel) -> PreTrainedModel:
    """The model with large random weights, so that it makes much of its input."""
    torch.manual_seed(3)
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if weights.ndim > 1 and "feature_extractor" not in name:
                weights.normal_(0, weights[0].numel() ** -0.5)
    return model


def ours(family: str, alphabet: str = "abcd ") -> tuple[PreTrainedModel, ProcessorMixin]:
    tokenizer = build_ctc_tokenizer([alphabet])
    model = lively(FAMILIES[family].build("ctc", vocab_size=len(tokenizer)))
    model.ctc_head.bias.data[:3] = -4.0  # letters are what it says, not blanks or spaces
    return model, Wav2Vec2Processor(SpeechSSLFeatureExtractor(), tokenizer)


def wav2vec(model: type, config: type, mask: bool, **sizes) -> tuple[PreTrainedModel, ProcessorMixin]:
    tokenizer = build_ctc_tokenizer(["abcd "])
    extractor = Wav2Vec2FeatureExtractor(return_attention_mask=mask)
    return model(config(vocab_size=len(tokenizer), **sizes)), Wav2Vec2Processor(extractor, tokenizer)


def wav2vec_bert() -> tuple[PreTrainedModel, ProcessorMixin]:
    tokenizer = build_ctc_tokenizer(["abcd "])
    config = Wav2Vec2BertConfig(vocab_size=len(tokenizer), **SIZES)
    return Wav2Vec2BertForCTC(config), Wav2Vec2BertProcessor(SeamlessM4TFeatureExtractor(), tokenizer)


def word_pieces() -> ParakeetTokenizer:
    vocabulary = {"<pad>": 0, "<unk>": 1} | {"▁" + letter: 2 + at for at, letter in enumerate(LETTERS)}
    backend = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    backend.decoder = Metaspace()
    return ParakeetTokenizer(tokenizer_object=backend, pad_token="<pad>", unk_token="<unk>")


def parakeet() -> tuple[PreTrainedModel, ProcessorMixin]:
    config = ParakeetCTCConfig(vocab_size=6, pad_token_id=0, encoder_config=MELS | {"conv_kernel_size": 5})
    return ParakeetForCTC(config), ParakeetProcessor(ParakeetFeatureExtractor(), word_pieces())


def lasr() -> tuple[PreTrainedModel, ProcessorMixin]:
    encoder = SIZES | {"num_mel_bins": 128, "subsampling_conv_channels": 8, "conv_kernel_size": 5}
    config = LasrCTCConfig(vocab_size=6, pad_token_id=0, encoder_config=encoder)
    return LasrForCTC(config), LasrProcessor(LasrFeatureExtractor(), word_pieces())


# Each with samples between two frames of logits.
MODELS = {
    "birq": (lambda: ours("birq"), 320),
    "chunkssl": (lambda: ours("chunkssl"), 640),
    "wav2vec2-group": (lambda: wav2vec(Wav2Vec2ForCTC, Wav2Vec2Config, False, **WAVES), 320),
    "wav2vec2-layer": (lambda: wav2vec(Wav2Vec2ForCTC, Wav2Vec2Config, True, **LAYER_NORM), 320),
    "hubert": (lambda: wav2vec(HubertForCTC, HubertConfig, True, **LAYER_NORM), 320),
    "conformer": (lambda: wav2vec(Wav2Vec2ConformerForCTC, Wav2Vec2ConformerConfig, True, **LAYER_NORM), 320),
    "wav2vec2-bert": (wav2vec_bert, 320),
    "parakeet": (parakeet, 1280),
    "lasr": (lasr, 640),
}


@pytest.fixture(scope="module", params=MODELS)
def saved(request, tmp_path_factory) -> tuple[str, Path]:
    """The name of a kind of model, and a folder with a random tiny one."""
    model, processor = MODELS[request.param][0]()
    folder = tmp_path_factory.mktemp(request.param)
    lively(model).save_pretrained(folder)
    processor.save_pretrained(folder)
    return request.param, folder


@pytest.fixture(scope="module")
def recognizer(saved) -> Recognizer:
    return Recognizer.from_pretrained(str(saved[1]), device="cpu")


def test_a_batch_says_of_each_utterance_what_it_says_of_that_one_alone(recognizer):
    waveforms = [speech_like(seconds, seed) for seed, seconds in enumerate((1.0, 2.31, 0.4, 1.7))]
    together, lengths = recognizer.decoder_frames(waveforms)
    assert together.dtype == torch.float32 and len(together) == 4 and together.shape[1] - int(lengths.max()) in (0, 1)
    assert torch.allclose(together[1].exp().sum(-1), torch.ones(together.shape[1]), atol=1e-4)
    for row, length, waveform in zip(together, lengths, waveforms, strict=True):
        alone, (own_length,) = recognizer.decoder_frames([waveform])
        assert own_length == length > 0
        torch.testing.assert_close(row[:length], alone[0, :length], rtol=0, atol=2e-3)
    # The utterances are told apart, else all this says nothing.
    shortest = int(lengths.min())
    assert (together[0, :shortest] - together[1, :shortest]).abs().max() > 0.05


def test_frames_have_lengths_and_times_of_the_samples(saved, recognizer):
    hop = MODELS[saved[0]][1]
    assert recognizer.seconds_per_frame == pytest.approx(hop / 16_000)
    for seconds in (1.0, 3.3):
        _, (length,) = recognizer.decoder_frames([speech_like(seconds)])
        assert abs(int(length) - seconds / recognizer.seconds_per_frame) <= 4  # convolutions without padding


def test_padding_is_tried_out_before_it_is_trusted(saved, recognizer):
    # Their frames see no padding; group norm takes statistics over it and Conformer's convolution runs into it.
    pads = {name: name not in ("wav2vec2-group", "conformer") for name in MODELS}
    assert recognizer._pads_well == pads[saved[0]]


def test_readings_are_texts_of_the_tokenizer(recognizer):
    readings = recognizer.recognize([speech_like(1.0), speech_like(2.0)])
    assert [len(one) for one in readings] == [1, 1]
    assert set("".join(one[0].text for one in readings)) <= {*LETTERS, " ", "[", "U", "N", "K", "]"}
    assert any(one[0].text for one in readings)


def test_the_shortest_audio_is_heard(recognizer):
    readings = recognizer.recognize([speech_like(0.025), speech_like(1.0)])
    assert len(readings) == 2


def test_chunks_are_those_of_the_model():
    model, processor = ours("chunkssl")
    recognizer = Recognizer(model, processor)
    assert recognizer.works_in_chunks
    waveforms = [speech_like(1.9, 1), speech_like(1.2, 2)]
    for duration in (160, 320):
        together, lengths = recognizer.decoder_frames(waveforms, duration)
        for row, length, waveform in zip(together, lengths, waveforms, strict=True):
            inputs = processor.feature_extractor(waveform, sampling_rate=16_000, return_tensors="pt")
            with torch.no_grad():
                logits = model(**inputs, chunk_size=duration // 40).logits[0]
            torch.testing.assert_close(row[:length], logits.log_softmax(-1), rtol=0, atol=1e-5)
    offline, _ = recognizer.decoder_frames(waveforms)
    assert (offline - together).abs().max() > 1e-4


def test_latency_is_the_wait_for_the_chunk_and_its_lookahead():
    model, processor = ours("chunkssl")
    assert Recognizer(model, processor).latency_ms(160) == (320, 240)
    model.config.num_lookahead_chunks = 0
    assert Recognizer(model, processor).latency_ms(160) == (160, 80)
    with pytest.raises(ValueError, match="whole number of encoder frames"):
        Recognizer(model, processor).latency_ms(100)
    with pytest.raises(ValueError, match="0 ms stands for whole utterances"):
        Recognizer(model, processor).latency_ms(0)
    with pytest.raises(ValueError, match="BiRQForCTC takes whole utterances"):
        Recognizer(*ours("birq")).latency_ms(160)


# --- what is refused


def refusal(folder: Path | str, **options) -> str:
    with pytest.raises((OSError, ValueError)) as caught:
        Recognizer.from_pretrained(str(folder), device="cpu", **options)
    return str(caught.value)


@pytest.mark.parametrize("head", ["base", "pretraining"])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_encoder_without_a_head_is_refused(family, head, tmp_path):
    FAMILIES[family].build(head).save_pretrained(tmp_path)
    ours(family)[1].save_pretrained(tmp_path)
    message = refusal(tmp_path)
    assert "ctc_head" in message and "fine-tune it first" in message


def test_an_encoder_of_another_family_without_a_head_is_refused(tmp_path):
    Wav2Vec2Model(Wav2Vec2Config(**WAVES)).save_pretrained(tmp_path)
    assert "lm_head" in refusal(tmp_path)


def test_a_weight_that_only_training_needs_may_be_absent(tmp_path):
    model, processor = wav2vec(Wav2Vec2ForCTC, Wav2Vec2Config, False, **WAVES)
    weights = {name: value for name, value in model.state_dict().items() if "masked_spec_embed" not in name}
    assert len(weights) == len(model.state_dict()) - 1
    model.save_pretrained(tmp_path, state_dict=weights)
    processor.save_pretrained(tmp_path)
    assert Recognizer.from_pretrained(str(tmp_path), device="cpu").seconds_per_frame == 0.02


def test_models_that_are_no_ctc_models_are_refused(tmp_path):
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "vocab_size": 60}
    sizes |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "pad_token_id": 0, "bos_token_id": 1}
    sizes |= {"eos_token_id": 2, "decoder_start_token_id": 1}
    WhisperForConditionalGeneration(WhisperConfig(**sizes)).save_pretrained(tmp_path)
    assert "(whisper) is no CTC model" in refusal(tmp_path)


def test_a_folder_without_a_processor_is_refused(tmp_path):
    model, processor = ours("birq")
    model.save_pretrained(tmp_path)
    assert "no processor" in refusal(tmp_path)
    processor.feature_extractor.save_pretrained(tmp_path)
    assert "tokenizer" in refusal(tmp_path)


def test_broken_weights_are_refused(tmp_path):
    model, processor = ours("birq")
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"vocab_size": 99}))
    assert "weights" in refusal(tmp_path) and "cannot be loaded" in refusal(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"xx")
    assert "cannot be loaded" in refusal(tmp_path)


def test_a_folder_or_device_that_does_not_exist_is_refused(tmp_path, monkeypatch):
    assert "There is no model folder" in refusal(tmp_path / "nothing")
    assert "There is no model folder" in refusal("./nothing")
    assert f"{str(tmp_path)!r} holds no model" in refusal(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    unknown = refusal("no-such-model-here")
    assert unknown.startswith("There is no folder 'no-such-model-here' here") and "\n" not in unknown
    model, processor = ours("birq")
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    for device in ("gpu", "cuda:99", "meta:"):
        with pytest.raises(ValueError, match="There is no device"):
            Recognizer.from_pretrained(str(tmp_path), device=device)


def test_processors_of_another_rate_or_without_a_blank_are_refused():
    model, processor = wav2vec(Wav2Vec2ForCTC, Wav2Vec2Config, False, **WAVES)
    processor.feature_extractor.sampling_rate = 8_000
    with pytest.raises(ValueError, match="needs audio at 8000 Hz"):
        Recognizer(model, processor)
    processor.feature_extractor.sampling_rate = 16_000
    processor.tokenizer.pad_token = None
    with pytest.raises(ValueError, match="no pad token"):
        Recognizer(model, processor)
    with pytest.raises(ValueError, match="no feature extractor"):
        Recognizer(model, processor.feature_extractor)
