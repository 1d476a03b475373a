"""The finite scalar quantizer against its formula and vector-quantize-pytorch; the tokenizer and its training."""

import math
from functools import partial

import pytest
import torch
import vector_quantize_pytorch
from helpers import padded_features
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoFeatureExtractor, AutoModel

from hf_speech_ssl import FSQConfig, FSQModel, SpeechSSLFeatureExtractor
from hf_speech_ssl.modeling.finite_scalars import FiniteScalarQuantizer, level_statistics
from hf_speech_ssl.modeling.modeling_fsq import FSQTokenizer

LEVELS = st.lists(st.integers(2, 9), min_size=1, max_size=12)


def tiny_fsq(**overrides) -> FSQConfig:
    sizes = {"fsq_levels": [5, 4, 3, 2], "fsq_hidden_size": 24, "fsq_num_hidden_layers": 3}
    return FSQConfig(**{**sizes, **overrides})


def spread_values(rows: int, levels: list[int], seed: int) -> torch.Tensor:
    """Values over the whole range of tanh, saturated ones among them."""
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(rows, len(levels), generator=generator)


def slow_level(value: float, size: int) -> int:
    """round(b(z)) of one value, from the formulas (Tang and Tseng 2025; Mentzer et al. 2023, appendix A.1)."""
    if size % 2:
        return round(size // 2 * math.tanh(value))
    shift = math.atanh(0.5 / ((size - 1) / 2)) if size > 2 else 0.0
    return round((size - 1) / 2 * math.tanh(value + shift) - 0.5)


@settings(deadline=None)
@given(LEVELS, st.integers(0, 1000))
def test_digits_codes_and_indices_are_those_of_the_formulas(levels, seed):
    quantizer, values = FiniteScalarQuantizer(levels), spread_values(20, levels, seed)
    rows = [
        [slow_level(value, size) for value, size in zip(row, levels, strict=True)] for row in values.double().tolist()
    ]
    digits = [[level + size // 2 for level, size in zip(row, levels, strict=True)] for row in rows]
    indices = [sum(digit * math.prod(levels[:r]) for r, digit in enumerate(row)) for row in digits]
    codes = torch.tensor(rows) / torch.tensor([size // 2 for size in levels])
    assert quantizer.digits(values).tolist() == digits
    assert torch.equal(quantizer(values), codes)
    assert quantizer.indices_from_codes(codes).tolist() == indices


@settings(deadline=None)
@given(LEVELS, st.data())
def test_indices_digits_and_codes_convert_both_ways(levels, data):
    quantizer = FiniteScalarQuantizer(levels)
    assert quantizer.codebook_size == math.prod(levels) and quantizer.num_channels == len(levels)
    numbers = data.draw(st.lists(st.integers(0, quantizer.codebook_size - 1), min_size=1, max_size=20))
    indices = torch.tensor([numbers])
    digits, codes = quantizer.digits_from_indices(indices), quantizer.codes_from_indices(indices)
    assert digits.dtype == torch.int64 and digits.shape == (1, len(numbers), len(levels))
    assert ((digits >= 0) & (digits < torch.tensor(levels))).all() and codes.abs().max() <= 1
    assert torch.equal(quantizer.indices_from_digits(digits), indices)
    assert torch.equal(quantizer.indices_from_codes(codes), indices)
    assert torch.equal(quantizer.digits_from_codes(codes), digits)


def test_small_codebook_is_a_bijection_and_every_level_is_reached():
    levels = [2, 3, 4, 5]
    quantizer = FiniteScalarQuantizer(levels)
    assert len(quantizer.digits_from_indices(torch.arange(120)).unique(dim=0)) == 120
    ramp = torch.linspace(-6, 6, 2001)[:, None].expand(-1, 4)
    for channel, size in zip(quantizer.digits(ramp).T, levels, strict=True):
        assert channel.unique().tolist() == list(range(size)) and (channel.diff() >= 0).all()
    assert quantizer(torch.zeros(4)).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("levels", [[5] * 10 + [3] * 4, [9] * 19], ids=["791,015,625 entries", "beyond float64"])
def test_large_codebooks_keep_every_digit(levels):
    quantizer = FiniteScalarQuantizer(levels)
    last = math.prod(levels) - 1
    indices = torch.tensor([last, last - 1, last // 2, 0])
    assert torch.equal(quantizer.indices_from_codes(quantizer.codes_from_indices(indices)), indices)
    assert quantizer.digits_from_indices(indices)[0].tolist() == [size - 1 for size in levels]


def test_gradient_passes_the_rounding_unchanged():
    levels = [5, 3, 8]
    values = (spread_values(50, levels, 0) / 3).double().requires_grad_()
    FiniteScalarQuantizer(levels)(values).sum().backward()
    scale, shift = torch.tensor([1, 1, 3.5 / 4]), torch.tensor([0, 0, math.atanh(0.5 / 3.5)], dtype=torch.float64)
    torch.testing.assert_close(values.grad, scale * (1 - torch.tanh(values.detach() + shift) ** 2), atol=1e-7, rtol=0)


def test_rounding_happens_in_float32_whatever_is_around():
    levels = [9, 8, 5]
    quantizer, values = FiniteScalarQuantizer(levels).bfloat16(), spread_values(2000, levels, 0)
    expected = quantizer.digits(values)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(quantizer.digits(values), expected)
        assert torch.equal(quantizer.digits_from_codes(quantizer(values)), expected)
    halved = values.bfloat16()
    assert torch.equal(quantizer.digits(halved), quantizer.digits(halved.float()))
    assert quantizer(halved).dtype == torch.float32


@pytest.mark.parametrize("levels", [[8, 5, 5, 5], [7, 6, 4, 3], [5, 5, 5, 5, 3, 3, 3, 3]])
def test_agrees_with_vector_quantize_pytorch(levels):
    """Its bounds are 1 + eps times those of the paper, eps = 1e-3 by default: with eps = 0 everything agrees, and with
    the default only values within that margin of a border between two levels may differ."""
    theirs, ours = vector_quantize_pytorch.FSQ(levels), FiniteScalarQuantizer(levels)
    values = spread_values(20_000, levels, 0)
    bounded = ours.bound(values)
    to_border = (bounded - bounded.floor() - 0.5).abs()  # borders lie halfway between whole numbers
    codes, indices = theirs(values[None])
    digits = theirs.indices_to_level_indices(indices[0])
    differs = digits != ours.digits(values)
    assert (to_border[differs] <= 1e-3 * max(levels) / 2).all() and differs.float().mean() < 2e-3

    theirs.bound = partial(theirs.bound, eps=0.0)
    codes, indices = theirs(values[None])
    assert torch.equal(ours.indices_from_digits(ours.digits(values)), indices[0].long())
    torch.testing.assert_close(ours(values), codes[0], atol=1e-6, rtol=0)
    torch.testing.assert_close(ours.codes_from_indices(indices[0]), theirs.indices_to_codes(indices)[0])


def test_level_statistics_count_levels_and_codes():
    quantizer = FiniteScalarQuantizer([3, 5])
    digits, weights = torch.tensor([[0, 0], [0, 1], [2, 4], [0, 0], [0, 1]]), torch.tensor([1.0, 1, 0, 1, 1])
    statistics = level_statistics(digits, weights, quantizer)
    assert statistics["codebook_usage"] == 0.5  # 2 of the 4 codes that 4 frames can have
    torch.testing.assert_close(statistics["level_usage"], torch.tensor((1 / 3 + 2 / 5) / 2))
    torch.testing.assert_close(statistics["channel_perplexities"], torch.tensor([1.0, 2.0]))
    assert statistics["level_perplexity"] == 1.5
    assert all(value.isfinite().all() for value in level_statistics(digits[:0], weights[:0], quantizer).values())


@pytest.mark.parametrize(
    ("levels", "message"), [([], "a channel"), ([5, 1], "at least 2"), ([9] * 20, "too large for int64")]
)
def test_impossible_levels_are_refused(levels, message):
    with pytest.raises(ValueError, match=message):
        FiniteScalarQuantizer(levels)
    with pytest.raises(Exception, match=message):
        tiny_fsq(fsq_levels=levels)


def test_wrong_number_of_channels_is_refused():
    with pytest.raises(ValueError, match=r"4 channels, got shape \(7, 3\)"):
        FiniteScalarQuantizer([3] * 4)(torch.zeros(7, 3))


def test_normalization_is_over_the_real_frames_of_each_utterance():
    tokenizer = FSQTokenizer(tiny_fsq(num_mel_bins=2))
    stacked, mask = padded_features(40, 25, num_mel_bins=8)
    stacked[:, :, 3] = 5.0  # does not vary
    normalized = tokenizer.normalize(stacked, mask)
    for row, length in ((0, 40), (1, 25)):
        real = stacked[row, :length].double()
        slow = (real - real.mean(0)) / (real.var(0, unbiased=False) + 1e-5).sqrt()
        torch.testing.assert_close(normalized[row, :length].double(), slow, atol=1e-6, rtol=1e-5)
    assert (normalized[1, 25:] == 0).all()


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(4, 90), min_size=2, max_size=4), st.integers(0, 100))
def test_padded_batch_equals_single_utterances(lengths, seed):
    torch.manual_seed(seed)
    model = FSQModel(tiny_fsq()).double().eval()  # rounding borders are met by chance in float32
    features, mask = padded_features(*lengths)
    features = features.double().masked_fill(~mask[..., None], torch.nan)  # padding may hold anything
    batch, digits = model(features, attention_mask=mask), model.tokenize(features, mask)
    losses, counts = [], []
    for row, length in enumerate(lengths):
        single = model(features[row : row + 1, :length])
        tokens = length // 4
        assert torch.equal(batch.digits[row, :tokens], single.digits[0])
        assert torch.equal(digits[row, :tokens], single.digits[0])
        torch.testing.assert_close(batch.reconstruction[row, :tokens], single.reconstruction[0], atol=1e-5, rtol=1e-5)
        losses.append(single.loss * single.num_frames)
        counts.append(tokens)
    assert batch.num_frames == sum(counts)
    torch.testing.assert_close(batch.loss, sum(losses) / sum(counts), atol=1e-5, rtol=1e-5)


def test_loss_is_the_squared_error_of_the_normalized_stacks_and_explains_variance():
    model = FSQModel(tiny_fsq())
    features, mask = padded_features(60, 43)
    output = model(features, attention_mask=mask)
    stacked, frame_mask = model.stack_frames(features, mask)
    target = model.tokenizer.normalize(stacked, frame_mask)[frame_mask]
    slow = ((output.reconstruction[frame_mask] - target) ** 2).mean()
    torch.testing.assert_close(output.loss, slow)
    torch.testing.assert_close(output.explained_variance, 1 - slow.detach() / (target**2).mean())


def test_tokens_ignore_the_global_normalization_and_the_mode():
    model = FSQModel(tiny_fsq()).double()
    features = torch.randn(2, 60, 80, dtype=torch.float64)
    digits = model.tokenize(features)
    scale, shift = 0.5 + torch.rand(80, dtype=torch.float64), torch.randn(80, dtype=torch.float64)
    assert (model.tokenize(features * scale + shift) == digits).double().mean() > 0.999  # but for the variance floor
    assert torch.equal(model.eval().tokenize(features), digits)


@pytest.mark.filterwarnings("ignore:.*activation_checkpointing_enable")
def test_every_parameter_learns_with_and_without_checkpointing():
    model = FSQModel(tiny_fsq())
    features = torch.randn(2, 40, 80)
    model(features).loss.backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    assert all(gradient.abs().sum() > 0 for gradient in expected.values())
    model.zero_grad()
    model.gradient_checkpointing_enable()
    model.train()(features).loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name])


def test_training_restores_the_features_through_codes_that_do_not_collapse():
    """Features with five slow factors, which must get through the bottleneck; a constant explains nothing."""
    model = FSQModel(tiny_fsq(num_mel_bins=20, fsq_levels=[5, 5, 5, 3, 3, 3], fsq_hidden_size=48))
    mixing = torch.randn(5, 20)

    def draw(batch: int) -> torch.Tensor:
        factors = torch.randn(batch, 5, 120).cumsum(-1) / 8  # (B, 5, F), random walks
        return factors.transpose(1, 2) @ mixing + 0.1 * torch.randn(batch, 120, 20)

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.98))
    held_out = draw(16)
    before = model(held_out)
    for _ in range(100):
        optimizer.zero_grad()
        model(draw(8)).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    output = model(held_out)
    assert output.loss < 0.6 * before.loss and output.explained_variance > 0.4
    assert output.channel_perplexities.min() > 1.5 and output.codebook_usage > 0.3


def test_saved_and_loaded_with_the_auto_classes(tmp_path):
    model = FSQModel(tiny_fsq()).eval()
    features, mask = padded_features(60, 43)
    model.save_pretrained(tmp_path)
    SpeechSSLFeatureExtractor(frame_stacking=4).save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert type(loaded) is FSQModel and loaded.config.fsq_levels == [5, 4, 3, 2]
    assert torch.equal(loaded.tokenize(features, mask), model.tokenize(features, mask))
    assert type(AutoFeatureExtractor.from_pretrained(tmp_path)) is SpeechSSLFeatureExtractor
    tokenizer = FSQTokenizer(tiny_fsq())
    tokenizer.load_state_dict(loaded.tokenizer.state_dict())
    stacked, frame_mask = model.stack_frames(features, mask)
    assert torch.equal(tokenizer(stacked, frame_mask), model.tokenize(features, mask))


def test_presets_and_misspelt_fields():
    assert FSQConfig.from_preset("fsq-base").codebook_size == 6_834_375
    assert FSQConfig.from_preset("fsq-tiny", fsq_levels=[5, 5]).codebook_size == 25
    with pytest.raises(ValueError, match="fsq-tiny, fsq-base"):
        FSQConfig.from_preset("fsq-huge")
    with pytest.raises(ValueError, match="'fsq_level' .did you mean 'fsq_levels'"):
        FSQConfig(fsq_level=[5])
    with pytest.raises(Exception, match="fsq_hidden_size must be at least 1"):
        FSQConfig(fsq_hidden_size=0)


def test_features_of_the_wrong_shape_are_refused():
    model = FSQModel(tiny_fsq())
    with pytest.raises(ValueError, match=r"\(batch, frames, 80\), got \(2, 16000\)"):
        model(torch.zeros(2, 16_000))
    with pytest.raises(ValueError, match="at least 4 frames"):
        model.tokenize(torch.zeros(1, 3, 80))
