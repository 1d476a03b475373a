"""Chunk SSL's labels, losses and draws: against slow references, and what is refused."""

import math

import conformance
import pytest
import torch
from helpers import padded_features, tiny_chunkssl
from torch.nn import functional as F

from hf_speech_ssl import ChunkSSLConfig, ChunkSSLForCTC, ChunkSSLForPreTraining, FSQConfig, FSQModel
from hf_speech_ssl.modeling import modeling_chunkssl

LABELS = {
    "group": {},
    "full": {"loss_kind": "full"},
    "random projection": {"label_kind": "random_projection", "codebook_size": 7, "num_codebooks": 2},
}


def fsq_of(config: ChunkSSLConfig, **overrides) -> FSQModel:
    """A tokenizer that fits, with weights large enough for its labels to vary."""
    sizes = {name: getattr(config, name) for name in ChunkSSLForPreTraining.tokenizer_fields}
    return FSQModel(FSQConfig(**{**sizes, "initializer_range": 0.3, **overrides}))


def slow_labels(model: ChunkSSLForPreTraining, fsq: FSQModel, features, mask) -> torch.Tensor:
    """(B, T, R), one utterance after the other."""
    if model.config.label_kind == "random_projection":
        return torch.stack([model.quantizer.labels(row.reshape(-1, 320)) for row in features])
    digits = fsq.tokenize(features, mask)
    if model.config.loss_kind == "group":
        return digits
    first = model.config.fsq_levels[0]
    return digits[..., :1] + first * digits[..., 1:]


@pytest.mark.parametrize("kind", LABELS)
def test_loss_and_diagnostics_equal_slow_reference(kind):
    """One softmax per channel, losses added, mean over hidden frames; labels are those of the clean features."""
    model = ChunkSSLForPreTraining(tiny_chunkssl(**LABELS[kind])).eval()
    fsq = fsq_of(model.config)
    if kind != "random projection":
        model.load_tokenizer(fsq)
    features, mask = padded_features(96, 64)
    hidden = torch.rand(2, 24) < 0.7
    output = model(features, mask, mask_time_indices=hidden)

    hidden[:, :4] = hidden[1, 16:] = False  # the first chunk, and padding
    labels = slow_labels(model, fsq, features, mask)[hidden]
    sizes = {"group": [3, 5], "full": [15], "random projection": [7, 7]}[kind]
    assert output.num_masked_frames == len(labels) and output.logits.shape == (len(labels), sum(sizes))
    losses, hits = [], []
    for logits, row in zip(output.logits, labels, strict=True):
        channels = list(zip(logits.split(sizes), row, strict=True))
        losses.append(sum(F.cross_entropy(channel, label) for channel, label in channels))
        hits.append([bool(channel.argmax() == label) for channel, label in channels])
    torch.testing.assert_close(output.loss, torch.stack(losses).mean())
    assert output.accuracy.item() == pytest.approx(sum(map(sum, hits)) / len(hits) / len(sizes))
    assert output.frame_accuracy.item() == pytest.approx(sum(map(all, hits)) / len(hits))
    rows = [tuple(row) for row in labels.tolist()]
    shares = [rows.count(row) / len(rows) for row in set(rows)]
    assert len(shares) > 3
    assert output.distinct_labels.item() == pytest.approx(len(shares) / len(rows))
    assert output.codebook_perplexity.item() == pytest.approx(math.exp(-sum(p * math.log(p) for p in shares)))


@pytest.mark.parametrize("kind", ["group", "random projection"])
def test_unmasked_loss_is_that_of_the_clean_chunks_and_of_the_rest_of_their_copies(kind):
    """Without a mask, the clean chunks are what the encoder in chunks gives."""
    config = tiny_chunkssl(**LABELS[kind], unmasked_loss_weight=0.6)
    model = ChunkSSLForPreTraining(config).eval()
    features, mask = padded_features(96, 64)
    hidden = torch.rand(2, 24) < 0.5
    output = model(features, mask, mask_time_indices=hidden, chunk_size=4)
    real, sizes = mask[:, ::4], config.label_sizes
    labels = model.label(*model.encoder.stack_frames(features, mask))

    def losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        channels = zip(logits.split(sizes, -1), labels.unbind(-1), strict=True)
        return sum(F.cross_entropy(channel, label, reduction="none") for channel, label in channels)

    # In the order of the layout: clean chunks but the last, and the copies of all but the first.
    clean = real[:, :20]
    copies, masked = real[:, 4:], (hidden & real)[:, 4:]
    in_layout = torch.cat([clean, copies], dim=1)
    logits = torch.zeros(2, 40, sum(sizes)).index_put(in_layout.nonzero(as_tuple=True), output.logits)
    of_copies = losses(logits[:, 20:][copies & masked], labels[:, 4:][copies & masked])
    rest = losses(logits[:, 20:][copies & ~masked], labels[:, 4:][copies & ~masked])
    of_clean = losses(logits[:, :20][clean], labels[:, :20][clean])
    unmasked = 0.2 * (rest.sum() + of_clean.sum()) / masked.sum()
    torch.testing.assert_close(output.unmasked_loss, unmasked)
    torch.testing.assert_close(output.loss, of_copies.mean() + unmasked)
    assert output.num_masked_frames == masked.sum()
    unmasked_logits = model(features, mask, mask_time_indices=hidden & False, chunk_size=4).logits
    logits = torch.zeros(2, 40, sum(sizes)).index_put(in_layout.nonzero(as_tuple=True), unmasked_logits)
    states = model.encoder(features, mask, chunk_size=4).last_hidden_state[:, :20]
    torch.testing.assert_close(logits[:, :20][clean], model.prediction_head(states[clean]))


def test_the_tokenizer_is_frozen_and_keeps_its_precision():
    model = ChunkSSLForPreTraining(tiny_chunkssl())
    fsq = fsq_of(model.config)
    model.load_tokenizer(fsq)
    assert not any(name.startswith("tokenizer") for name, _ in model.named_parameters())
    model.requires_grad_(True).to(torch.bfloat16)
    kept = model.tokenizer.module.state_dict()
    for name, value in fsq.tokenizer.state_dict().items():
        assert torch.equal(kept[name], value) and not kept[name].requires_grad, name
    output = model(torch.randn(2, 80, 80))
    output.loss.backward()
    assert output.loss.isfinite() and output.logits.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"fsq_levels": [5, 3]}, r"fsq_levels is \[5, 3\] there and \[3, 5\] here"),
        ({"fsq_hidden_size": 8}, "fsq_hidden_size is 8 there and 16 here"),
        ({"frame_stacking": 2}, "frame_stacking is 2 there and 4 here"),
    ],
)
def test_a_tokenizer_of_another_size_is_refused(sizes, message):
    model = ChunkSSLForPreTraining(tiny_chunkssl())
    with pytest.raises(ValueError, match=message):
        model.load_tokenizer(fsq_of(model.config, **sizes))
    with pytest.raises(ValueError, match='label_kind="fsq"'):
        ChunkSSLForPreTraining(tiny_chunkssl(label_kind="random_projection")).load_tokenizer(fsq_of(model.config))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"loss_kind": "full"}, "all 6,834,375 entries"),
        ({"fsq_levels": [5, 1]}, "at least 2 levels"),
        ({"fsq_levels": [9] * 20}, "too large for int64"),
        ({"chunk_durations_ms": [100]}, "whole number of encoder frames of 40 ms, got 100 ms"),
        ({"streaming_durations_ms": [0]}, "got 0 ms"),
        ({"attention_window": 8}, "left_context_chunks"),
    ],
)
def test_senseless_configurations_are_refused(fields, message):
    with pytest.raises(Exception, match=message):
        ChunkSSLConfig(**fields)


@pytest.mark.parametrize("stacking", range(1, 13))
def test_chunk_durations_are_counted_in_whole_frames(stacking):
    durations = [10 * stacking * frames for frames in (1, 7, 96)]
    config = ChunkSSLConfig(
        frame_stacking=stacking, chunk_durations_ms=durations, streaming_durations_ms=durations[:1]
    )
    assert [config.chunk_frames(duration) for duration in durations] == [1, 7, 96]
    with pytest.raises(ValueError, match="whole number"):
        config.chunk_frames(durations[-1] + 5)


def test_published_sizes():
    """Tang and Tseng count 79 M and 337 M; without relative positions it is less."""
    for preset, millions in (("chunkssl-base", 72.9), ("chunkssl-large", 326.5)):
        with torch.device("meta"):
            model = ChunkSSLForPreTraining(ChunkSSLConfig.from_preset(preset))
        assert round(model.num_parameters() / 1e6, 1) == millions


def test_chunk_durations_that_would_leave_nothing_to_predict_are_out_of_the_draw():
    model = ChunkSSLForPreTraining(tiny_chunkssl(chunk_durations_ms=[160, 320, 640]))

    def durations(frames: int) -> set[float]:
        return {model(torch.randn(1, 4 * frames, 80)).chunk_duration_ms.item() for _ in range(40)}

    assert [durations(frames) for frames in (17, 16, 8)] == [{160, 320, 640}, {160, 320}, {160}]
    assert durations(4) == {160, 320, 640}, "nothing can be predicted whatever is drawn"


def test_fine_tuning_draws_offline_and_streaming_steps(monkeypatch):
    model = ChunkSSLForCTC(tiny_chunkssl(streaming_durations_ms=[160, 320], streaming_prob=0.25))
    drawn = [model.draw_chunk_size() for _ in range(2000)]
    assert set(drawn) == {0, 4, 8}
    assert drawn.count(0) / 2000 == pytest.approx(0.75, abs=0.05)
    assert drawn.count(4) / 2000 == pytest.approx(0.125, abs=0.04)

    sizes = []
    layout = modeling_chunkssl.ChunkLayout
    monkeypatch.setattr(
        modeling_chunkssl, "ChunkLayout", lambda *args, **kw: sizes.append(args[1]) or layout(*args, **kw)
    )
    features = torch.randn(1, 64, 80)
    monkeypatch.setattr(model, "draw_chunk_size", lambda: 8)
    model.train()(features)
    model.train()(features, chunk_size=4)
    model.train()(features, chunk_size=0)
    model.eval()(features)
    assert sizes == [8, 4]


def test_an_untrained_tokenizer_has_the_same_weights_wherever_it_is_built():
    """Its weights are buffers, which transformers expects to be what the configuration says."""
    torch.manual_seed(1)
    one = ChunkSSLForPreTraining(tiny_chunkssl())
    with torch.device("meta"):
        other = ChunkSSLForPreTraining(tiny_chunkssl())
    other.to_empty(device="cpu").init_weights()
    buffers = dict(other.named_buffers())
    for name, values in one.named_buffers():
        assert torch.equal(buffers[name], values), name
    assert one.tokenizer.module.code_proj.weight.std() > 0.1


@torch.no_grad()
def test_outputs_are_the_same_as_a_tuple():
    """Transformers' own test of this has utterances too short for a mask: the exception in conformance.py."""
    (name,) = conformance.EXCEPTIONS
    assert name.startswith("ChunkSSLForPreTraining::")
    model = ChunkSSLForPreTraining(tiny_chunkssl(chunk_durations_ms=[640])).eval()
    short = model(torch.randn(2, 64, 80))
    assert short.num_masked_frames == 0 and short.logits.numel() == 0
    features = torch.randn(2, 128, 80)
    output = model(features, output_hidden_states=True)
    in_order = model(features, output_hidden_states=True, return_dict=False)
    assert output.num_masked_frames > 0 and len(in_order) == len(output.to_tuple())
    for one, other in zip(in_order, output.to_tuple(), strict=True):
        torch.testing.assert_close(one, other)
