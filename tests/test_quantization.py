"""The random-projection quantizer against a slow reference, and against everything that could change its codebook."""

from hashlib import sha256

import pytest
import torch
from helpers import tiny_birq
from torch import nn
from torch.nn import functional as F

from hf_speech_ssl import BiRQForCTC, BiRQForPreTraining
from hf_speech_ssl.modeling.label_statistics import label_statistics
from hf_speech_ssl.modeling.quantization import RandomProjectionQuantizer, nearest_entry


def quantizer(num_codebooks: int = 1, size: int = 50, seed: int = 0) -> RandomProjectionQuantizer:
    return RandomProjectionQuantizer(20, size, 6, num_codebooks, seed=seed, soft_input_dim=12)


def slow_labels(vectors: torch.Tensor, module: RandomProjectionQuantizer) -> torch.Tensor:
    """argmin_i || l2norm(c_i) - l2norm(P^T x) || (Chiu et al., Eq. 1) in float64, codebook by codebook."""
    columns = []
    for projection, codebook in zip(module.projection.double(), module.codebook.double(), strict=True):
        projected = F.normalize(vectors.double() @ projection, dim=-1)
        columns.append((projected[:, None] - F.normalize(codebook, dim=-1)).norm(dim=-1).argmin(-1))
    return torch.stack(columns, -1)


@pytest.mark.parametrize("num_codebooks", [1, 3])
@pytest.mark.parametrize("count", [0, 1, 700])
def test_hard_labels_equal_slow_reference(num_codebooks: int, count: int):
    module, vectors = quantizer(num_codebooks), torch.randn(count, 20)
    labels = module.labels(vectors)
    assert labels.dtype == torch.int64
    assert torch.equal(labels, slow_labels(vectors, module))


def test_nearest_entry_does_not_need_unit_vectors():
    vectors, codebook = torch.randn(1030, 6), torch.randn(40, 6) * torch.linspace(0.2, 3, 40)[:, None]
    assert torch.equal(nearest_entry(vectors, codebook), torch.cdist(vectors.double(), codebook.double()).argmin(-1))


def test_labels_do_not_depend_on_the_scale_of_the_input():
    module, vectors = quantizer(), torch.randn(200, 20)
    assert torch.equal(module.labels(vectors), module.labels(7 * vectors))


def test_soft_scores_are_minus_squared_distances():
    module, vectors = quantizer(3), torch.randn(9, 12, requires_grad=True)
    projected = torch.einsum("ni,cid->ncd", vectors, module.soft_projection)
    distances = (projected[:, :, None] - module.codebook).square().sum(-1)
    torch.testing.assert_close(module.soft_scores(vectors).softmax(-1), (-distances).softmax(-1))
    (gradient,) = torch.autograd.grad(module.soft_scores(vectors).logsumexp(-1).sum(), vectors)
    (wanted,) = torch.autograd.grad((projected.square().sum(-1) + (-distances).logsumexp(-1)).sum(), vectors)
    torch.testing.assert_close(gradient, wanted)


def test_values_are_drawn_as_the_paper_says():
    module = RandomProjectionQuantizer(160, 8192, 16)
    bound = (6 / (160 + 16)) ** 0.5
    assert module.projection.abs().max() <= bound
    assert module.projection.std() == pytest.approx(bound / 3**0.5, rel=0.05)
    assert abs(module.codebook.mean()) < 0.02
    assert module.codebook.std() == pytest.approx(1, rel=0.02)


def test_seed_and_global_generator():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = quantizer(seed=3)
    assert torch.equal(torch.get_rng_state(), state), "drew from the global generator"
    torch.manual_seed(2)
    second, other = quantizer(seed=3), quantizer(seed=4)
    for name, values in first.state_dict().items():
        assert torch.equal(values, second.state_dict()[name])
        assert not torch.equal(values, other.state_dict()[name])


def test_optimizers_see_nothing():
    assert list(quantizer().parameters()) == []
    assert set(quantizer().state_dict()) == {"codebook", "projection", "soft_projection"}


def quantizer_values(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: buffer.clone() for name, buffer in model.quantizer.named_buffers()}


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, values in one.items():
        assert values.dtype == torch.float32, name
        assert torch.equal(values, other[name]), name


CASTS = {
    "to": lambda model: model.to(torch.bfloat16),
    "half": lambda model: model.half(),
    "double": lambda model: model.double(),
    "twice": lambda model: model.to(torch.bfloat16).float(),
}


@pytest.mark.parametrize("cast", CASTS.values(), ids=CASTS.keys())
def test_casting_the_model_leaves_the_codebook(cast):
    model = BiRQForPreTraining(tiny_birq(num_codebooks=2))
    before = quantizer_values(model)
    assert_same(quantizer_values(cast(model)), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saved_and_loaded_bit_for_bit(tmp_path, dtype: torch.dtype):
    model = BiRQForPreTraining(tiny_birq())
    for buffer in model.quantizer.buffers():
        buffer.add_(torch.randn_like(buffer))  # values that no seed would draw
    before = quantizer_values(model)
    model.to(dtype).save_pretrained(tmp_path)
    loaded = BiRQForPreTraining.from_pretrained(tmp_path, dtype=dtype)
    assert loaded.encoder.feature_projection.weight.dtype == dtype
    assert_same(quantizer_values(loaded), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_drawn_again_from_the_seed_where_the_checkpoint_has_none(tmp_path, dtype: torch.dtype):
    BiRQForCTC(tiny_birq(quantizer_seed=5)).save_pretrained(tmp_path)
    fresh = BiRQForPreTraining(tiny_birq(quantizer_seed=5))
    assert_same(quantizer_values(BiRQForPreTraining.from_pretrained(tmp_path, dtype=dtype)), quantizer_values(fresh))


def test_built_without_memory_and_then_initialized():
    with torch.device("meta"):
        model = BiRQForPreTraining(tiny_birq())
    fresh = BiRQForPreTraining(tiny_birq())
    assert_same(quantizer_values(model), quantizer_values(fresh))
    model.to_empty(device="cpu")
    for buffer in model.quantizer.buffers():
        buffer.fill_(torch.nan)
    model._init_weights(model.quantizer)
    assert_same(quantizer_values(model), quantizer_values(fresh))


@pytest.mark.parametrize("cast", ["autocast", "bfloat16 model"])
def test_lower_precision_gives_the_same_labels(cast: str):
    module, vectors = quantizer(2), torch.randn(500, 20)
    wanted = module.labels(vectors)
    if cast == "autocast":
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(module.labels(vectors), wanted)
            assert module.soft_scores(torch.randn(3, 12)).dtype == torch.float32
    else:
        assert torch.equal(module.to(torch.bfloat16).labels(vectors), wanted)


def test_statistics_equal_slow_reference():
    labels = torch.randint(0, 10, (200, 3)) * torch.tensor([1, 0, 1])
    usage, perplexity = [], []
    for column in labels.T:
        shares = torch.stack([(column == entry).double().mean() for entry in range(12)])
        used = shares[shares > 0]
        usage.append(len(used) / 12)
        perplexity.append((-(used * used.log()).sum()).exp())
    statistics = label_statistics(labels, 12, torch.ones(len(labels)))
    assert statistics["codebook_usage"].item() == pytest.approx(sum(usage) / 3)
    assert statistics["codebook_perplexity"].item() == pytest.approx(sum(perplexity).item() / 3, rel=1e-5)


@pytest.mark.parametrize(("labels", "perplexity"), [(torch.zeros(8, 1), 1), (torch.arange(8)[:, None], 8)])
def test_perplexity_of_one_and_of_all_entries(labels: torch.Tensor, perplexity: int):
    assert label_statistics(labels.long(), 8, torch.ones(8))["codebook_perplexity"].item() == pytest.approx(perplexity)


def test_statistics_of_no_labels_are_finite():
    assert all(
        value.isfinite() for value in label_statistics(torch.zeros(0, 2, dtype=torch.long), 8, torch.zeros(0)).values()
    )


def test_values_and_labels_are_those_of_version_0_1():
    """A seed gives the codebooks that it gave in version 0.1, to the bit: old checkpoints rely on it."""
    module = RandomProjectionQuantizer(20, 50, 6, 2, seed=3, soft_input_dim=12)
    hashes = {name: sha256(values.numpy().tobytes()).hexdigest()[:16] for name, values in module.named_buffers()}
    wanted = {"codebook": "590314a2176eff30", "projection": "f837ab56e5a3d4ed", "soft_projection": "333ac75eb73b8acf"}
    assert hashes == wanted
    vectors = torch.linspace(-3, 3, 160).view(8, 20).sin() * torch.arange(1, 21)
    labels = [[42, 25], [31, 32], [31, 32], [21, 32], [44, 33], [44, 21], [44, 21], [22, 26]]
    assert module.labels(vectors).tolist() == labels
