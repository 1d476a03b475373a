"""The classification heads: learned averages of layers, padding, losses, live frames, pipeline."""

import numpy as np
import pytest
import torch
from families import Family, every_family, example_batch
from helpers import speech_like, tiny_birq
from torch.nn import functional as F
from transformers import pipeline

from hf_speech_ssl import (
    BiRQForAudioFrameClassification,
    BiRQForSequenceClassification,
    SpeechSSLFeatureExtractor,
)

HEADS = ("classification", "frame_classification")
every_head = pytest.mark.parametrize("head", HEADS)
LENGTHS = (400, 260)
WEIGHTED = {"use_weighted_layer_sum": True, "num_labels": 3}


def uneven(model):
    """The model with layer weights that are not all the same."""
    with torch.no_grad():
        model.layer_weights.copy_(torch.linspace(-1, 2, len(model.layer_weights)))
    return model


@every_family
@every_head
@pytest.mark.parametrize("weighted", [False, True])
@torch.no_grad()
def test_padded_utterances_are_as_if_alone(family: Family, head: str, weighted: bool):
    model = family.build(head, num_labels=3, use_weighted_layer_sum=weighted)
    features, mask = example_batch()
    together = model(features, attention_mask=mask).logits
    for row, length, logits in zip(features, LENGTHS, together, strict=True):
        alone = model(row[None, :length]).logits[0]
        torch.testing.assert_close(logits[: len(alone)], alone, atol=1e-5, rtol=1e-4)


@every_family
@every_head
@torch.no_grad()
def test_learned_average_of_layers(family: Family, head: str):
    model = uneven(family.build(head, **WEIGHTED))
    features, mask = example_batch()
    layers = model.encoder(features, attention_mask=mask, output_hidden_states=True).hidden_states
    assert len(layers) == len(model.layer_weights) == model.config.num_hidden_layers + 1
    weights = torch.linspace(-1, 2, len(layers)).exp()
    frames = sum(weight * layer for weight, layer in zip(weights / weights.sum(), layers, strict=True))
    if head == "classification":
        frames = model.classifier_projector(frames)
        real = mask[:, :: model.config.frame_stacking][:, : frames.shape[1]]
        frames = torch.stack([row[keep].mean(0) for row, keep in zip(frames, real, strict=True)])
    output = model(features, attention_mask=mask)
    torch.testing.assert_close(output.logits, model.classifier(frames), atol=1e-5, rtol=1e-4)
    assert output.hidden_states is None
    assert len(model(features, attention_mask=mask, output_hidden_states=True).hidden_states) == len(layers)


@every_family
@every_head
def test_new_layer_weights_average_evenly_and_all_weights_learn(family: Family, head: str, tmp_path):
    """From a pretraining checkpoint, where none of the head's weights are in the file."""
    family.build("pretraining").save_pretrained(tmp_path)
    model = getattr(family, head).from_pretrained(tmp_path, **WEIGHTED).train()
    assert torch.equal(model.layer_weights.softmax(-1), torch.full((4,), 0.25))
    features, mask = example_batch()
    frames = mask.sum(-1).amax() // model.config.frame_stacking
    labels = torch.tensor([1, 2]) if head == "classification" else torch.randint(3, (2, int(frames)))
    model(features, attention_mask=mask, labels=labels).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name
    model.zero_grad()
    model.freeze_base_model()
    model(features, attention_mask=mask, labels=labels).loss.backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == name.startswith("encoder."), name


@torch.no_grad()
def test_losses_of_utterances():
    features, labels = torch.randn(3, 40, 80), torch.tensor([2, -100, 0])
    model = BiRQForSequenceClassification(tiny_birq(num_labels=3)).eval()
    output = model(features, labels=labels)
    torch.testing.assert_close(output.loss, F.cross_entropy(output.logits[[0, 2]], labels[[0, 2]]))
    assert model(features, labels=torch.full((3,), -100)).loss == 0
    several = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    for kind, loss in (("multi_label_classification", F.binary_cross_entropy_with_logits), ("regression", F.mse_loss)):
        model.config.problem_type = kind
        output = model(features, labels=several)
        torch.testing.assert_close(output.loss, loss(output.logits, several))


@torch.no_grad()
def test_loss_of_frames_counts_real_frames_only():
    features, mask = example_batch()
    labels = torch.randint(4, (2, 200))
    model = BiRQForAudioFrameClassification(tiny_birq(num_labels=4)).eval()
    output = model(features, attention_mask=mask, labels=labels)
    real = torch.arange(200) < torch.tensor([200, 130])[:, None]
    wanted = F.cross_entropy(output.logits[real], labels[real])
    torch.testing.assert_close(output.loss, wanted)
    others = labels.masked_fill(~real, -100)
    assert torch.equal(model(features, attention_mask=mask, labels=others).loss, output.loss)
    one_hot = F.one_hot(labels, 4).float()
    assert torch.equal(model(features, attention_mask=mask, labels=one_hot).loss, output.loss)
    model.config.problem_type = "multi_label_classification"
    at_once = torch.rand(2, 200, 4).round()  # several speakers in a frame
    output = model(features, attention_mask=mask, labels=at_once)
    wanted = F.binary_cross_entropy_with_logits(output.logits[real], at_once[real])
    torch.testing.assert_close(output.loss, wanted)


def test_refused_labels():
    features = torch.randn(2, 40, 80)
    model = BiRQForSequenceClassification(tiny_birq(num_labels=3))
    with pytest.raises(ValueError, match="below num_labels = 3, got 3.*num_labels="):
        model(features, labels=torch.tensor([0, 3]))
    with pytest.raises(ValueError, match=r"shape \(2,\), got torch.float32 of shape \(2, 3\).*problem_type"):
        model(features, labels=torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"shape \(2, 20\), got torch.int64 of shape \(2, 19\)"):
        BiRQForAudioFrameClassification(tiny_birq())(features, labels=torch.zeros(2, 19, dtype=torch.long))


@torch.no_grad()
def test_live_frames_are_those_of_the_chunked_pass():
    """Frame by frame classes of a live stream, from a learned average of layers."""
    from families import FAMILIES

    model = uneven(FAMILIES["chunkssl"].build("frame_classification", **WEIGHTED))
    features = torch.randn(1, 160, 80)
    whole = model(features, chunk_size=10).logits
    cache, pieces = None, []
    for chunk, ahead in zip(features.split(40, 1), [*features.split(40, 1)[1:], None], strict=True):
        output = model(chunk, lookahead_features=ahead, past_key_values=cache, use_cache=True)
        cache = output.cache
        pieces.append(output.logits)
    torch.testing.assert_close(torch.cat(pieces, 1), whole, atol=1e-5, rtol=1e-4)


@every_family
def test_pipeline(family: Family, tmp_path, caplog):
    """Classes by name, from a folder; a batch gives what its utterances give alone."""
    waves = [speech_like(seconds, seed) for seed, seconds in enumerate((1.0, 0.6, 1.4))]
    extractor = SpeechSSLFeatureExtractor(mean=[6.0] * 80, variance=[2.0] * 80)
    names = {0: "bed", 1: "cat", 2: "happy"}
    model = family.build("classification", id2label=names, label2id={name: i for i, name in names.items()})
    with torch.no_grad():
        model.classifier.weight.mul_(50)
    model.save_pretrained(tmp_path)
    extractor.save_pretrained(tmp_path)
    classify = pipeline("audio-classification", str(tmp_path))
    assert "not supported" not in caplog.text
    alone = [classify(wave.copy(), top_k=None) for wave in waves]
    for wave, answer in zip(waves, alone, strict=True):
        with torch.no_grad():
            logits = model(**extractor(wave, sampling_rate=16_000, return_tensors="pt")).logits[0]
        scores = dict(zip(names.values(), logits.softmax(-1).tolist(), strict=True))
        assert {one["label"]: one["score"] for one in answer} == pytest.approx(scores, abs=1e-6)
    together = classify([wave.copy() for wave in waves], batch_size=3, top_k=None)
    for one, other in zip(together, alone, strict=True):
        assert [each["label"] for each in one] == [each["label"] for each in other]
        np.testing.assert_allclose([each["score"] for each in one], [each["score"] for each in other], atol=1e-5)
