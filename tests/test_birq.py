"""BiRQ pretraining: the loss and its gradient against references, and what a step may and may not look at."""

import contextlib

import pytest
import torch
from helpers import padded_features, tiny_birq
from torch.nn import functional as F

from hf_speech_ssl import BiRQConfig, BiRQForPreTraining
from hf_speech_ssl.modeling.modeling_birq import describe_soft_labels

K = 2  # of tiny_birq's three blocks
MODES = {
    "best-rq": {"enhanced_loss_weight": 0.0},
    "birq": {"enhanced_loss_weight": 0.1},
    "detached": {"enhanced_loss_weight": 0.1, "detach_enhanced_labels": True},
    "no anchor": {"enhanced_loss_weight": 1.0, "anchor_loss_weight": 0.0},
}


def build(**overrides) -> BiRQForPreTraining:
    """A model in training mode, the same weights at every call; hidden frames become zeros."""
    torch.manual_seed(1)
    return BiRQForPreTraining(tiny_birq(**{"label_layer": K, "mask_noise_std": 0.0, **overrides})).train()


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    features, mask = padded_features(40, 26)  # 20 and 13 encoder frames
    hidden = torch.zeros(2, 20, dtype=torch.bool)
    hidden[0, 3:9], hidden[1, 8:11] = True, True
    return {"input_features": features, "attention_mask": mask, "mask_time_indices": hidden}


def encoder_input(batch: dict[str, torch.Tensor], hide: bool) -> dict[str, torch.Tensor]:
    """The same batch for the bare encoder, with the hidden frames zeroed or not."""
    hidden = batch["mask_time_indices"].repeat_interleave(2, dim=1)[..., None]
    features = batch["input_features"]
    return {
        "input_features": features.masked_fill(hidden, 0.0) if hide else features,
        "attention_mask": batch["attention_mask"],
    }


def reference_log_probs(model: BiRQForPreTraining, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    encoded = model.encoder(**encoder_input(batch, hide=True)).last_hidden_state[batch["mask_time_indices"]]
    config = model.config
    return model.prediction_head(encoded).view(-1, config.num_codebooks, config.codebook_size).log_softmax(-1)


def reference_anchor_loss(model: BiRQForPreTraining, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    anchors = model.quantizer.labels(batch["input_features"].reshape(2, 20, 160)[batch["mask_time_indices"]])
    return F.nll_loss(reference_log_probs(model, batch).flatten(0, 1), anchors.flatten())


def record_calls(model: BiRQForPreTraining) -> list[tuple[int, int]]:
    """(block, utterances) of every block call from here on."""
    calls: list[tuple[int, int]] = []
    for index, layer in enumerate(model.encoder.layers):
        layer.register_forward_hook(lambda _, args, __, index=index: calls.append((index, len(args[0]))))
    return calls


@pytest.mark.parametrize("num_codebooks", [1, 3])
def test_best_rq_equals_reference(batch, num_codebooks: int):
    model = build(enhanced_loss_weight=0.0, anchor_loss_weight=1.5, num_codebooks=num_codebooks)
    output = model(**batch)
    torch.testing.assert_close(output.loss, 1.5 * reference_anchor_loss(model, batch))
    torch.testing.assert_close(output.logits.log_softmax(-1), reference_log_probs(model, batch))
    assert output.num_masked_frames == 9
    assert output.enhanced_loss is None
    best = output.logits.argmax(-1) == model.quantizer.labels(
        batch["input_features"].reshape(2, 20, 160)[batch["mask_time_indices"]]
    )
    assert output.accuracy == best.float().mean()


@pytest.mark.parametrize("num_codebooks", [1, 3])
@pytest.mark.parametrize("detach", [False, True])
def test_birq_equals_two_separate_passes(batch, monkeypatch, num_codebooks: int, detach: bool):
    """w1 F + w2 G with the labels of Eq. 4, from one pass over the masked and one over the clean utterances."""
    weights = {"enhanced_loss_weight": 0.3, "anchor_loss_weight": 2.0, "gumbel_temperature": 0.7}
    model = build(num_codebooks=num_codebooks, detach_enhanced_labels=detach, **weights)
    uniform = torch.rand(9, num_codebooks, 24)
    uniform[0, 0, 0] = 0.0  # which rand may give
    monkeypatch.setattr(torch, "rand_like", lambda scores: uniform.clone())
    output = model(**batch)

    clean = model.encoder(**encoder_input(batch, hide=False), output_hidden_states=True).hidden_states[K]
    rows = []
    for states, real in zip(clean.clone(), batch["attention_mask"][:, ::2].bool(), strict=True):
        spread = (states[real].var(0, correction=0) + 1e-5).sqrt()
        rows.append((states - states[real].mean(0)) / spread)
    clean = torch.stack(rows)
    projected = torch.einsum("nd,cde->nce", clean[batch["mask_time_indices"]], model.quantizer.soft_projection)
    distances = (projected[:, :, None] - model.quantizer.codebook).square().sum(-1)
    labels = ((-distances - (-uniform.log()).log()) / 0.7).softmax(-1)
    enhanced = -(labels * reference_log_probs(model, batch)).sum(-1).mean()
    anchor = reference_anchor_loss(model, batch)
    torch.testing.assert_close(output.anchor_loss, anchor)
    torch.testing.assert_close(output.enhanced_loss, enhanced)
    torch.testing.assert_close(output.loss, 0.3 * enhanced + 2.0 * anchor)


@torch.no_grad()
def test_enhanced_labels_are_gumbel_softmax_samples():
    """The likeliest entry of a sample is distributed as the softmax of minus the squared distances (Gumbel-max)."""
    model, draws = build(num_codebooks=2), 20_000
    state = 0.3 * torch.randn(1, 32)
    labels = model.enhanced_labels(state.expand(draws, -1))
    torch.testing.assert_close(labels.sum(-1), torch.ones(draws, 2))
    chances = model.quantizer.soft_scores(state)[0].softmax(-1)
    shares = F.one_hot(labels.argmax(-1), 24).float().mean(0)
    assert ((shares - chances).abs() < 5 * (chances * (1 - chances) / draws).sqrt() + 1e-4).all()


@pytest.mark.parametrize(
    ("mode", "wanted"),
    [
        ("best-rq", [(0, 2), (1, 2), (2, 2)]),
        ("birq", [(0, 4), (1, 4), (2, 2)]),
        ("detached", [(0, 2), (1, 2), (2, 2), (0, 2), (1, 2)]),
    ],
)
def test_blocks_run_no_more_than_needed(batch, mode: str, wanted: list):
    model = build(**MODES[mode])
    calls = record_calls(model)
    model(**batch)
    assert calls == wanted


@pytest.mark.parametrize("mode", ["birq", "detached"])
def test_labels_are_blind_to_the_mask(batch, monkeypatch, mode: str):
    model, seen = build(**MODES[mode]), []
    soft_scores, hard_labels = model.quantizer.soft_scores, model.quantizer.labels
    monkeypatch.setattr(model.quantizer, "soft_scores", lambda states: seen.append(states) or soft_scores(states))
    monkeypatch.setattr(model.quantizer, "labels", lambda frames: seen.append(frames) or hard_labels(frames))
    model(**batch)
    model(**{**batch, "mask_time_indices": torch.ones(2, 20)})
    few_frames, few_states, all_frames, all_states = seen
    places = batch["mask_time_indices"][batch["attention_mask"][:, ::2]]  # of the few among all real frames
    assert torch.equal(few_frames, all_frames[places])
    torch.testing.assert_close(few_states, all_states[places], atol=1e-5, rtol=1e-5)
    masked = model.encoder(**encoder_input(batch, hide=True), output_hidden_states=True).hidden_states[K]
    assert (few_states - masked[batch["mask_time_indices"]]).abs().max() > 0.1


def test_hidden_frames_become_noise_and_others_stay():
    model, stacked = build(mask_noise_std=0.1), torch.randn(4, 200, 160)
    hidden = torch.rand(4, 200) < 0.5
    noised = model.replace_by_noise(stacked, hidden)
    assert torch.equal(noised[~hidden], stacked[~hidden])
    assert noised[hidden].std().item() == pytest.approx(0.1, rel=0.02)
    assert abs(noised[hidden].mean().item()) < 0.002


def test_masks_are_drawn_anew_and_never_over_padding(batch):
    model = build()
    counts = {int(model(batch["input_features"], batch["attention_mask"]).num_masked_frames) for _ in range(20)}
    assert len(counts) > 3
    everything = model(**{**batch, "mask_time_indices": torch.ones(2, 20)})
    assert everything.num_masked_frames == 20 + 13
    assert len(everything.logits) == 33


def directional_derivatives(loss, parameters: list[torch.Tensor], eps: float) -> tuple[float, float]:
    """Along one random direction: from the gradient, and from central differences."""
    gradients = torch.autograd.grad(loss(), parameters, allow_unused=True)
    directions = [torch.randn_like(parameter) for parameter in parameters]
    pairs = zip(gradients, directions, strict=True)
    analytic = sum((gradient * direction).sum().item() for gradient, direction in pairs if gradient is not None)
    values = []
    with torch.no_grad():
        for step in (eps, -2 * eps, eps):  # the last one returns to the start
            for parameter, direction in zip(parameters, directions, strict=True):
                parameter.add_(step * direction)
            values.append(loss().item())
    return analytic, (values[0] - values[1]) / (2 * eps)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("part", ["encoder.feature_projection", "encoder.layers.0", "encoder.layers.2", ""])
def test_gradient_equals_finite_differences(batch, monkeypatch, mode: str, part: str):
    """In float64 throughout: every cast to float32 on the way is made one to float64. Reseeding repeats the noise."""
    model = build(**MODES[mode]).double()
    for name, buffer in model.quantizer.named_buffers():
        model.quantizer._buffers[name] = buffer.double()
    batch["input_features"] = batch["input_features"].double()
    monkeypatch.setattr(torch, "float32", torch.float64)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)

    def loss() -> torch.Tensor:
        torch.manual_seed(5)
        return model(**batch).loss

    assert loss().dtype == torch.float64
    parameters = [parameter for name, parameter in model.named_parameters() if name.startswith(part)]
    analytic, numeric = directional_derivatives(loss, parameters, eps=1e-7)
    equal = analytic == pytest.approx(numeric, rel=1e-6)
    # Detached labels are where the two must differ: moving blocks 1..k moves the labels, and the gradient ignores it.
    assert equal == (mode != "detached" or part == "encoder.layers.2")


def test_detached_gradient_is_that_of_constant_labels(batch, monkeypatch):
    labels = torch.rand(9, 1, 24).softmax(-1)
    gradients = []
    for detach in (True, False):
        model = build(detach_enhanced_labels=detach, enhanced_loss_weight=1.0)
        monkeypatch.setattr(model, "enhanced_labels", lambda states: labels + 0.0 * states.sum())
        model(**batch).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], atol=1e-6, rtol=1e-5, msg=name)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("setting", ["plain", "autocast", "checkpointing"])
@pytest.mark.filterwarnings("ignore:.*activation_checkpointing_enable")
def test_every_parameter_receives_a_gradient(batch, mode: str, setting: str):
    model = build(**MODES[mode])
    if setting == "checkpointing":
        model.gradient_checkpointing_enable()
    autocast = torch.autocast("cpu", dtype=torch.bfloat16) if setting == "autocast" else contextlib.nullcontext()
    with autocast:
        output = model(**batch)
    output.loss.backward()
    assert output.loss.dtype == torch.float32
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@pytest.mark.parametrize("mode", MODES)
def test_a_step_without_masked_frames_is_zero_and_harmless(batch, mode: str):
    model = build(**MODES[mode], num_codebooks=2)
    output = model(**{**batch, "mask_time_indices": torch.zeros(2, 20)})
    output.loss.backward()
    assert output.loss == 0
    assert output.num_masked_frames == 0
    assert output.logits.shape == (0, 2, 24)
    assert all(value.isfinite().all() for value in output.values())
    for name, parameter in model.named_parameters():  # a process that has no gradient would hold up the others
        assert parameter.grad is not None, name
        assert not parameter.grad.any(), name


def test_soft_label_statistics():
    labels = (3 * torch.randn(7, 2, 5)).softmax(-1)
    mean = labels.mean(0)
    perplexity = (-(mean * mean.log()).sum(-1)).exp().mean()
    statistics = describe_soft_labels(labels, torch.ones(7))
    torch.testing.assert_close(statistics["enhanced_perplexity"], perplexity)
    torch.testing.assert_close(statistics["enhanced_confidence"], labels.max(-1).values.mean())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"codebok_size": 5}, "no field 'codebok_size'.*did you mean 'codebook_size'"),
        ({"codebook_size": 0}, "codebook_size must be at least 1"),
        ({"label_layer": 4}, "label_layer counts blocks from 1.*num_hidden_layers = 3, got 4"),
        ({"gumbel_temperature": 0}, "gumbel_temperature"),
        ({"enhanced_loss_weight": -0.1}, "enhanced_loss_weight"),
        ({"mask_start_prob": 1.5}, "mask_start_prob"),
        ({"mask_noise_std": -1.0}, "mask_noise_std"),
        ({"codebook_dim": 2.5}, "codebook_dim"),
    ],
)
def test_refused_settings(settings: dict, message: str):
    with pytest.raises(Exception, match=message):
        tiny_birq(**settings)


def test_refused_mask():
    with pytest.raises(ValueError, match=r"one entry per encoder frame, \(1, 20\), got \(1, 40\)"):
        build()(torch.zeros(1, 40, 80), mask_time_indices=torch.ones(1, 40))


def test_presets():
    assert [BiRQConfig(num_hidden_layers=blocks).enhanced_label_layer for blocks in (1, 5, 10, 12)] == [1, 3, 7, 8]
    base = BiRQConfig.from_preset("birq-base", codebook_size=7)
    assert (base.num_hidden_layers, base.hidden_size, base.codebook_size) == (12, 512, 7)
    with pytest.raises(ValueError, match="birq-tiny, birq-base"):
        BiRQConfig.from_preset("birq-huge")


@pytest.mark.parametrize(("name", "millions"), [("birq-c1", 137), ("birq-c2", 155), ("birq-c3", 275)])
def test_presets_are_near_the_papers_sizes(name: str, millions: int):
    with torch.device("meta"):
        model = BiRQForPreTraining(BiRQConfig.from_preset(name))
    assert model.num_parameters() == pytest.approx(millions * 1e6, rel=0.1)
