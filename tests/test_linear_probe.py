"""Linear probes against full-batch logistic regression, the spread against its formula."""

import numpy as np
import pytest
import torch

from hf_speech_ssl.probing import LabelQuality
from hf_speech_ssl.probing.collapse import FrameSpread
from hf_speech_ssl.probing.linear_probe import LinearProbes


def clouds(frames: int, width: int, phones: int, distance: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Frames of Gaussian clouds whose centers lie `distance` from 0, the same for all seeds, and their phones."""
    centers = torch.randn(phones, width, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(phones, (frames,), generator=generator)
    noise = torch.randn(frames, width, generator=generator)
    return distance * torch.nn.functional.normalize(centers, dim=-1)[targets] + noise, targets


def slow_regression(frames: torch.Tensor, targets: torch.Tensor, phones: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The minimum of the same objective by full-batch L-BFGS in float64, in terms of standardized features."""
    x = ((frames - frames.mean(0)) / frames.std(0, correction=0)).double()
    weight = torch.zeros(x.shape[1] + 1, phones, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight], max_iter=300, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        scores = x @ weight[:-1] + weight[-1]
        value = torch.nn.functional.cross_entropy(scores, targets) + weight[:-1].square().sum() / 2 / len(x)
        value.backward()
        return value

    optimizer.step(loss)
    return weight[:-1].detach(), weight[-1].detach()


def mix(frames: torch.Tensor) -> torch.Tensor:
    """The same frames in features that nearly all say the same, as those of encoders do."""
    return 3 * frames + 20 * frames.sum(1, keepdim=True) - 7


def test_probes_of_layers_of_any_width_reach_what_a_slow_regression_reaches():
    phones, widths = 6, (5, 12)
    known, fresh = ([clouds(4000, width, phones, 2.0, seed) for width in widths] for seed in (1, 2))
    targets, fresh_targets = known[0][1], fresh[0][1]  # a seed draws the same phones for every width
    layers, fresh_layers = ([mix(frames) for frames, _ in drawn] for drawn in (known, fresh))
    scores = LinearProbes(layers, targets, phones, num_epochs=10).scores(fresh_layers)
    for frames, fresh_frames, ours in zip(layers, fresh_layers, scores, strict=True):
        weight, bias = slow_regression(frames, targets, phones)
        best = ((fresh_frames - frames.mean(0)) / frames.std(0, correction=0)).double() @ weight + bias
        losses = [torch.nn.functional.cross_entropy(one, fresh_targets).item() for one in (best, ours)]
        hits = [(one.argmax(-1) == fresh_targets).double().mean().item() for one in (best, ours)]
        assert losses[1] == pytest.approx(losses[0], rel=0.02)
        assert hits[1] == pytest.approx(hits[0], abs=0.01)
        assert 0.3 < hits[0] < 0.95  # neither hopeless nor trivial


def test_separable_frames_are_told_apart_and_random_phones_are_not():
    frames, targets = clouds(2000, 8, 4, 12.0, seed=1)
    fresh, fresh_targets = clouds(2000, 8, 4, 12.0, seed=2)
    random = torch.randint(4, (2000,), generator=torch.Generator().manual_seed(3))
    for labels, low, high in ((targets, 1.0, 1.0), (random, 0.21, 0.29)):  # 4 standard errors about 1 / 4
        probes = LinearProbes([frames.half()], labels, 4)
        truth = fresh_targets if labels is targets else random.flip(0)
        assert low <= (probes.predict([fresh.half()])[0] == truth.numpy()).mean() <= high


def test_the_seed_decides_and_layers_do_not_disturb_each_other():
    frames, targets = clouds(600, 6, 3, 1.0, seed=1)
    other = torch.randn(600, 4)
    both = LinearProbes([frames, other], targets, 3, num_epochs=2, seed=5)
    again = LinearProbes([frames], targets, 3, num_epochs=2, seed=5)
    torch.testing.assert_close(both.weights[0], again.weights[0])
    assert not torch.allclose(LinearProbes([frames], targets, 3, num_epochs=2, seed=6).weights[0], again.weights[0])


def test_features_that_do_not_vary_are_left_out_and_scales_do_not_matter():
    frames, targets = clouds(600, 6, 3, 2.0, seed=1)
    scaled = torch.cat([1000 * frames + 5, torch.full((600, 1), 3.0)], dim=1)
    plain, shifted = LinearProbes([frames], targets, 3), LinearProbes([scaled], targets, 3)
    later = torch.cat([1000 * frames + 5, torch.randn(600, 1) * 1e6], dim=1)  # varies now, where it did not
    assert (plain.predict([frames]) == shifted.predict([later])).mean() > 0.995


def test_probes_refuse_what_they_cannot_be_fitted_to():
    frames, targets = clouds(60, 6, 3, 2.0, seed=1)
    for arguments, message in (
        (([frames[:20]], targets[:20], 3), "20 examples of 3 targets"),
        (([frames], torch.zeros(60, dtype=torch.long), 3), "at least two targets"),
        (([frames[:-1]], targets, 3), "60 targets"),
        (([], targets, 3), "0 layers"),
        (([frames], targets, 2), r"lie in \[0, 2\)"),
        (([frames], targets, 3, 0), "num_epochs"),
    ):
        with pytest.raises(ValueError, match=message):
            LinearProbes(*arguments)


def test_spread_is_the_covariance_s_effective_rank_and_the_mean_cosine_of_pairs():
    frames = torch.randn(50, 7) * torch.tensor([5.0, 3, 1, 1, 1, 0.1, 0]) + 0.5
    spread = FrameSpread()
    for piece in frames.split([1, 30, 19]):
        spread.update(piece)
    shares = np.linalg.eigvalsh(np.cov(frames.double().numpy().T, bias=True)).clip(1e-300)
    shares /= shares.sum()
    cosines = torch.nn.functional.cosine_similarity(frames[:, None], frames[None], dim=-1)
    measured = spread.compute()
    assert measured["effective_rank"] == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-4)
    assert measured["mean_cosine"] == pytest.approx((cosines.sum().item() - 50) / (50 * 49), abs=1e-5)


def test_spread_tells_collapse_from_an_offset():
    noise = torch.randn(2000, 16)

    def measure(frames: torch.Tensor) -> tuple[float, float]:
        spread = FrameSpread()
        spread.update(frames)
        return tuple(spread.compute().values())

    assert measure(noise) == pytest.approx((16, 0), abs=0.1)
    rank, cosine = measure(noise + 100)
    assert rank > 15.9 and cosine > 0.99
    assert measure(torch.full((50, 16), 0.3)) == pytest.approx((1, 1), abs=1e-5)
    assert measure(noise[:, :1] * torch.ones(16) + 5)[0] == pytest.approx(1, abs=1e-3)
    with pytest.raises(ValueError, match="two frames"):
        measure(noise[:1])


def test_shuffled_labels_keep_their_counts_and_lose_what_they_know():
    rng = np.random.default_rng(1)
    phones = rng.integers(5, size=5000)
    quality = LabelQuality(5)
    quality.update(phones * 2 + rng.integers(2, size=5000), phones)
    control = quality.shuffled(seed=0).compute()
    assert quality.compute()["pnmi"] == pytest.approx(1)
    assert control["pnmi"] < 0.01 and control["phone_purity"] < 0.26
    assert [control[name] for name in ("num_frames", "num_labels", "num_phones")] == [5000, 10, 5]
    # As many labels as frames: the control shows that a purity of 1 means nothing.
    alone = LabelQuality(5)
    alone.update(np.arange(5000), phones)
    assert alone.compute()["phone_purity"] == alone.shuffled().compute()["phone_purity"] == 1
