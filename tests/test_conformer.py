"""The encoder: each fast path against a slow one, and what every caller of a transformers model may switch on."""

import numpy as np
import pytest
import torch
from helpers import padded_features, tiny_birq
from torch import nn
from torch.nn import functional as F

from hf_speech_ssl import BiRQForCTC, BiRQModel
from hf_speech_ssl.modeling.layouts import WholeLayout
from hf_speech_ssl.modeling.modeling_conformer import RotaryEmbedding, rotate


def encoder(**overrides) -> BiRQModel:
    return BiRQModel(tiny_birq(**overrides)).eval()


def encode(model: BiRQModel, features: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    return model(features, attention_mask=mask).last_hidden_state


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("stacking", [1, 2, 3])
@pytest.mark.parametrize("window", [None, 6])
@torch.no_grad()
def test_padded_batch_equals_single_utterances(stacking: int, window: int | None, implementation: str):
    model = encoder(frame_stacking=stacking, attention_window=window)
    model.set_attn_implementation(implementation)
    lengths = (50, 31, 4, 40)
    features, mask = padded_features(*lengths)
    padding = 100 * torch.randn_like(features) * ~mask[..., None]  # the encoder must not look at it
    output = model(features + padding, attention_mask=mask.long())
    assert output.attention_mask.sum(-1).tolist() == [length // stacking for length in lengths]
    for row, frames, length in zip(features, output.last_hidden_state, lengths, strict=True):
        single = encode(model, row[None, :length])[0]
        torch.testing.assert_close(frames[: len(single)], single, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_utterance_without_a_whole_frame_stays_finite():
    features, mask = padded_features(40, 1)
    assert encode(encoder(), features, mask).isfinite().all()


def test_depthwise_convolution_equals_conv1d():
    module = encoder(conv_kernel_size=7).layers[0].convolution
    states = torch.randn(3, 20, 32, requires_grad=True)
    fast = module.convolve(F.pad(states, (0, 0, 3, 3)))
    slow = F.conv1d(states.mT, module.depthwise.weight[..., 0], module.depthwise.bias, padding=3, groups=32).mT
    torch.testing.assert_close(fast, slow, atol=1e-5, rtol=1e-5)
    weight = torch.randn_like(slow)
    for one, other in zip(
        torch.autograd.grad((fast * weight).sum(), (states, module.depthwise.weight)),
        torch.autograd.grad((slow * weight).sum(), (states, module.depthwise.weight)),
        strict=True,
    ):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_rotary_equals_complex_multiplication():
    config = tiny_birq(rope_theta=100.0)
    half = config.head_dim // 2
    vectors, positions = torch.randn(2, 9, 2, config.head_dim), torch.arange(9)
    angles = positions[:, None] * 100.0 ** (-2 * torch.arange(half) / config.head_dim)
    pairs = torch.complex(vectors[..., :half], vectors[..., half:]) * torch.exp(1j * angles)[:, None]
    turned = rotate(vectors, *RotaryEmbedding(config.head_dim, config.rope_theta)(positions))
    torch.testing.assert_close(turned, torch.cat([pairs.real, pairs.imag], -1))


def test_rotated_products_depend_on_the_distance_only():
    config = tiny_birq()
    query, key = torch.randn(1, 1, 2, config.head_dim), torch.randn(1, 1, 2, config.head_dim)

    def score(at: int, to: int) -> torch.Tensor:
        angles = [
            RotaryEmbedding(config.head_dim, config.rope_theta)(torch.tensor([position])) for position in (at, to)
        ]
        return (rotate(query, *angles[0]) * rotate(key, *angles[1])).sum(-1)

    torch.testing.assert_close(score(7, 3), score(1007, 1003), atol=1e-4, rtol=1e-4)
    assert (score(7, 3) - score(7, 4)).abs().max() > 1e-3


@pytest.mark.parametrize("window", [1, 4, 5])
def test_attention_window_reaches_half_its_width_to_either_side(window: int):
    model = encoder(attention_window=window, num_hidden_layers=1, conv_kernel_size=1, frame_stacking=1)
    features = torch.randn(1, 21, 80, requires_grad=True)
    (encode(model, features)[0, 10] * torch.randn(32)).sum().backward()
    seen = features.grad[0].abs().sum(-1).nonzero()[:, 0].tolist()
    assert seen == list(range(10 - window // 2, 10 + window // 2 + 1))


@pytest.mark.parametrize("window", [None, 6])
@torch.no_grad()
def test_eager_equals_sdpa(window: int | None):
    model, (features, mask) = encoder(attention_window=window), padded_features(40, 25)
    outputs = {}
    for name in ("sdpa", "eager"):
        model.set_attn_implementation(name)
        outputs[name] = encode(model, features, mask)[mask[:, ::2] & mask[:, 1::2]]
    torch.testing.assert_close(outputs["eager"], outputs["sdpa"], atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@torch.no_grad()
def test_flex_attention_equals_sdpa():
    model, (features, mask) = encoder(attention_window=6), padded_features(40, 26)
    wanted = encode(model, features, mask)
    model.requires_grad_(False).set_attn_implementation("flex_attention")
    real = mask[:, ::2]
    torch.testing.assert_close(encode(model, features, mask)[real], wanted[real], atol=1e-4, rtol=1e-4)


def test_hidden_states_and_attentions():
    model, (features, mask) = encoder(), padded_features(40, 26)
    output = model(features, attention_mask=mask, output_hidden_states=True)
    assert len(output.hidden_states) == 4
    torch.testing.assert_close(output.hidden_states[0], model.feature_projection(features.reshape(2, 20, 160)))
    assert torch.equal(output.hidden_states[-1], output.last_hidden_state)
    model.set_attn_implementation("eager")
    attentions = model(features, attention_mask=mask, output_attentions=True).attentions
    assert [tuple(weights.shape) for weights in attentions] == [(2, 2, 20, 20)] * 3
    torch.testing.assert_close(attentions[0].sum(-1), torch.ones(2, 2, 20))
    assert (attentions[0][1, :, :, 13:] == 0).all()


def gradients(model: nn.Module, features: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    torch.manual_seed(3)
    encode(model, features, mask).square().cos().sum().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.filterwarnings("ignore:.*activation_checkpointing_enable")
def test_gradient_checkpointing_gives_the_same_gradients():
    model = BiRQModel(tiny_birq(hidden_dropout=0.2, activation_dropout=0.1)).train()
    features, mask = padded_features(40, 26)
    wanted = gradients(model, features, mask)
    calls = []
    model.layers[0].feed_forward1.register_forward_hook(lambda *_: calls.append(1))
    model.gradient_checkpointing_enable()
    got = gradients(model, features, mask)
    assert len(calls) == 2, "blocks were not computed again"
    for name, gradient in wanted.items():
        torch.testing.assert_close(got[name], gradient, atol=1e-6, rtol=1e-5, msg=name)


@pytest.mark.parametrize("place", ["hidden_dropout", "activation_dropout", "attention_dropout"])
@torch.no_grad()
def test_dropout_acts_in_training_only(place: str):
    model, features = encoder(**{place: 0.5}), torch.randn(2, 40, 80)
    assert torch.equal(encode(model, features), encode(model, features))
    model.train()
    assert not torch.equal(encode(model, features), encode(model, features))


@torch.no_grad()
def test_layerdrop_skips_whole_blocks():
    model, features = encoder(num_hidden_layers=2, layerdrop=0.5), torch.randn(1, 20, 80)
    first, second = model.layers
    skipped = []
    around = None, model.rotary(torch.arange(10)), WholeLayout(10, None)
    start = model.feature_projection(features.reshape(1, 10, 160))
    ways = {
        "both": second(first(start, *around), *around),
        "first": first(start, *around),
        "second": second(start, *around),
        "none": start,
    }
    assert torch.equal(encode(model, features), ways["both"])
    model.train()
    for _ in range(100):
        output = encode(model, features)
        (way,) = [name for name, states in ways.items() if torch.allclose(states, output, atol=1e-6)]
        skipped.append(way)
    assert all(10 < skipped.count(way) < 45 for way in ways), skipped


@torch.no_grad()
def test_bfloat16_is_near_float32():
    model, (features, mask) = encoder(), padded_features(40, 26)
    wanted = encode(model, features, mask)[mask[:, ::2]]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        autocast = encode(model, features, mask)[mask[:, ::2]]
    cast = encode(model.to(torch.bfloat16), features, mask)[mask[:, ::2]]
    assert cast.dtype == torch.bfloat16
    for output in (autocast, cast):
        assert (output.float() - wanted).abs().mean() < 0.03


@pytest.mark.slow
@pytest.mark.parametrize("kind", [BiRQModel, BiRQForCTC])
@torch.no_grad()
def test_compiles_without_graph_breaks(kind: type):
    model = kind(tiny_birq(num_hidden_layers=2, attention_window=6)).eval()
    features, mask = padded_features(40, 26)
    compiled = torch.compile(model, fullgraph=True)
    torch.testing.assert_close(
        compiled(features, attention_mask=mask)[0], model(features, attention_mask=mask)[0], atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize(
    ("features", "mask", "message"),
    [
        (torch.zeros(2, 16_000), None, "feature extractor first"),
        (torch.zeros(2, 40, 79), None, r"\(batch, frames, 80\), got \(2, 40, 79\)"),
        (torch.zeros(2, 1, 80), None, "at least 2 frames"),
        (torch.zeros(2, 40, 80), torch.ones(2, 20), r"attention_mask must have the shape.*\(2, 40\), got \(2, 20\)"),
    ],
)
def test_refused_inputs(features: torch.Tensor, mask: torch.Tensor | None, message: str):
    with pytest.raises(ValueError, match=message):
        encoder()(features, attention_mask=mask)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("hiden_size", 8, "no field 'hiden_size'.*did you mean 'hidden_size'"),
        ("conv_kernel_size", 4, "must be odd"),
        ("num_attention_heads", 5, "even whole number"),
        ("attention_window", 0, "attention_window"),
        ("hidden_dropout", 1.0, r"hidden_dropout must lie in \[0, 1\)"),
        ("mask_time_prob", -0.1, "mask_time_prob"),
        ("mask_time_length", 0, "mask_time_length"),
        ("num_hidden_layers", 0, "num_hidden_layers"),
        ("hidden_size", "512", "hidden_size"),
        ("hidden_act", "silo", "hidden_act"),
        ("pad_token_id", 32, "blank"),
        ("ctc_loss_reduction", "none", "ctc_loss_reduction"),
    ],
)
def test_refused_settings(field: str, value, message: str):
    with pytest.raises(Exception, match=message):
        tiny_birq(**{field: value})


def test_frame_rates():
    config = tiny_birq(frame_stacking=4)
    assert (config.inputs_to_logits_ratio, config.frame_rate, config.stacked_size) == (640, 25.0, 320)
    lengths = BiRQModel(config)._get_feat_extract_output_lengths(torch.tensor([3, 4, 11]))
    np.testing.assert_array_equal(lengths, [0, 1, 2])
