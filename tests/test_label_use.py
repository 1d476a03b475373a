"""Statistics of label use over many updates."""

import pytest
import torch
from helpers import padded_features, tiny_birq, tiny_chunkssl

from hf_speech_ssl import BiRQForPreTraining, ChunkSSLForPreTraining
from hf_speech_ssl.modeling import label_statistics
from hf_speech_ssl.modeling.label_statistics import LabelUse

NAMES = ("labels_used", "label_perplexity", "top_label_share", "label_loudness")


def slow_statistics(labels: torch.Tensor, loudness: torch.Tensor) -> list[float]:
    """Means over the columns of the four statistics, in float64."""
    rows = []
    for column in labels.T:
        shares = torch.bincount(column).double() / len(column)
        used = shares[shares > 0]
        groups = [loudness[column == label].double() for label in column.unique()]
        between = sum(len(group) * (group.mean() - loudness.double().mean()) ** 2 for group in groups)
        explained = between / ((loudness.double() - loudness.double().mean()) ** 2).sum()
        rows.append([len(used), (-(used * used.log()).sum()).exp(), used.max(), explained])
    return torch.tensor(rows).mean(0).tolist()


def random_labels(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    loudness = torch.randn(count) + 2
    labels = torch.stack([(4 * loudness).long().clamp(0, 19), torch.randint(0, 5, (count,))], dim=-1)
    return labels, loudness


def test_a_window_is_many_updates(monkeypatch):
    monkeypatch.setattr(label_statistics, "WINDOW_FRAMES", 100)
    use = LabelUse(2, 20)
    parts = [random_labels(30) for _ in range(10)]
    shown = [use.observe(*part, torch.ones(30)) for part in parts]

    def wanted(first: int, last: int) -> list[float]:
        labels, loudness = (torch.cat(both) for both in zip(*parts[first : last + 1], strict=True))
        return slow_statistics(labels, loudness)

    # The first window grows until it is full, after 4 updates; then each stays until the next is full.
    for update, (first, last) in {0: (0, 0), 2: (0, 2), 3: (0, 3), 5: (0, 3), 7: (4, 7), 9: (4, 7)}.items():
        assert list(shown[update]) == list(NAMES)
        assert [value.item() for value in shown[update].values()] == pytest.approx(wanted(first, last), rel=1e-4)


def test_padding_does_not_count():
    use, other = LabelUse(2, 20), LabelUse(2, 20)
    labels, loudness = random_labels(40)
    weights = (torch.arange(40) < 25).float()
    shown, wanted = use.observe(labels, loudness, weights), other.observe(labels[:25], loudness[:25], torch.ones(25))
    for name in NAMES:
        torch.testing.assert_close(shown[name], wanted[name])
    assert all(
        value.isfinite() for value in LabelUse(1, 4).observe(labels[:0, :1], loudness[:0], weights[:0]).values()
    )


@pytest.mark.parametrize("kind", ["birq", "best-rq", "fsq", "random_projection"])
def test_models_report_it_in_training(kind: str):
    if kind in ("fsq", "random_projection"):
        model, prefixes = ChunkSSLForPreTraining(tiny_chunkssl(label_kind=kind)), [""]
    else:
        weight = 0.1 if kind == "birq" else 0.0
        model = BiRQForPreTraining(tiny_birq(enhanced_loss_weight=weight))
        prefixes = ["anchor_", "enhanced_"][: 2 if weight else 1]
    features, mask = padded_features(160, 120)
    model.train()
    outputs = [model(features, mask) for _ in range(3)]
    for prefix in prefixes:
        assert all(outputs[-1][prefix + name].ndim == 0 for name in NAMES)
        assert outputs[-1][prefix + "labels_used"] >= outputs[0][prefix + "labels_used"] > 0
    assert not any(name.endswith(NAMES) for name in model.eval()(features, mask))
