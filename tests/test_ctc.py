"""The CTC head: its loss, padding that says blank, SpecAugment, freezing, greedy decoding."""

import pytest
import torch
from helpers import padded_features, tiny_birq
from torch.nn import functional as F

from hf_speech_ssl import BiRQForCTC

NO_SPEC_AUGMENT = {"mask_time_prob": 0.0, "mask_feature_prob": 0.0}
LABELS = torch.tensor([[3, 5, 5, 2, 7], [4, 1, -100, -100, -100]])


def build(**overrides) -> BiRQForCTC:
    torch.manual_seed(1)
    return BiRQForCTC(tiny_birq(**{"vocab_size": 9, **NO_SPEC_AUGMENT, **overrides}))


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    features, mask = padded_features(40, 26)  # 20 and 13 encoder frames
    return {"input_features": features, "attention_mask": mask.long()}


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("blank", [0, 8])
def test_loss_equals_utterance_by_utterance(batch, reduction: str, blank: int):
    model = build(ctc_loss_reduction=reduction, pad_token_id=blank).eval()
    total = 0.0
    for features, frames, labels in zip(batch["input_features"], (40, 26), LABELS, strict=True):
        log_probs = model(features[None, :frames]).logits[0].log_softmax(-1)
        labels = labels[labels >= 0]
        one = F.ctc_loss(log_probs, labels, (frames // 2,), (len(labels),), blank=blank, reduction="sum")
        total = total + (one / len(labels) / 2 if reduction == "mean" else one)
    torch.testing.assert_close(model(**batch, labels=LABELS).loss, total)


def test_loss_equals_the_sum_over_all_paths():
    """Graves et al. 2006, Eq. 3, with every path of 4 frames over 3 tokens written out."""
    model = build(vocab_size=3).eval()
    features = torch.randn(1, 8, 80)
    probs = model(features).logits[0].double().softmax(-1)
    total = 0.0
    for path in torch.cartesian_prod(*[torch.arange(3)] * 4):
        text = [token for token in torch.unique_consecutive(path).tolist() if token]
        total += probs[torch.arange(4), path].prod().item() * (text == [2, 1])
    loss = model(features, labels=torch.tensor([[2, 1]])).loss
    assert loss.item() == pytest.approx(-torch.tensor(total).log().item() / 2, rel=1e-5)


def test_labels_may_be_padded_with_the_blank(batch):
    model = build().eval()
    padded_with_blank = LABELS.masked_fill(LABELS < 0, 0)
    assert torch.equal(model(**batch, labels=padded_with_blank).loss, model(**batch, labels=LABELS).loss)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@torch.no_grad()
def test_padded_frames_say_blank(batch, dtype: torch.dtype):
    model = build(pad_token_id=2)
    model.ctc_head.bias[4] = 50.0  # a model that would say 4 everywhere
    logits = model.eval().to(dtype)(**batch).logits
    said = logits.argmax(-1)
    assert (said[0] == 4).all()
    assert (said[1, :13] == 4).all()
    assert (said[1, 13:] == 2).all()
    assert logits.float().log_softmax(-1).exp().isfinite().all()


@torch.no_grad()
def test_generate_is_the_best_token_of_every_frame(batch):
    model = build().eval()
    ids = model.generate(**batch)
    assert torch.equal(ids, model(**batch).logits.argmax(-1))
    assert ids.shape == (2, 20)
    assert ids.unique().numel() > 2


def test_too_many_labels_for_the_frames():
    features, labels = torch.randn(1, 8, 80), torch.full((1, 6), 3)
    loss = build()(features, labels=labels).loss
    loss.backward()
    assert loss == 0
    assert build(ctc_zero_infinity=False)(features, labels=labels).loss == float("inf")


def test_no_labels_at_all_train_the_blank():
    model, features = build(), torch.randn(1, 8, 80)
    loss = model(features, labels=torch.full((1, 3), -100)).loss
    assert loss.item() == pytest.approx(-model(features).logits.log_softmax(-1)[0, :, 0].sum().item(), rel=1e-4)


def test_refused_labels(batch):
    with pytest.raises(ValueError, match="below vocab_size = 9, got 9.*vocab_size=len"):
        build()(**batch, labels=LABELS + 2)


@pytest.mark.parametrize("setting", ["plain", "spec_augment", "autocast", "checkpointing"])
@pytest.mark.filterwarnings("ignore:.*activation_checkpointing_enable")
def test_every_parameter_receives_a_gradient(batch, setting: str):
    model = build(**({"mask_time_prob": 0.3, "mask_feature_prob": 0.3} if setting == "spec_augment" else {})).train()
    if setting == "checkpointing":
        model.gradient_checkpointing_enable()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=setting == "autocast"):
        loss = model(**batch, labels=LABELS).loss
    loss.backward()
    assert loss.dtype == torch.float32
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@pytest.mark.parametrize(
    ("freeze", "frozen"),
    [("freeze_feature_encoder", "encoder.feature_projection."), ("freeze_base_model", "encoder.")],
)
def test_frozen_parts_do_not_learn(batch, freeze: str, frozen: str):
    model = build().train()
    getattr(model, freeze)()
    model(**batch, labels=LABELS).loss.backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == name.startswith(frozen), name


def test_encoder_can_be_thawed(batch):
    model = build().train()
    model.freeze_base_model()
    model.freeze_base_model(frozen=False)
    model(**batch, labels=LABELS).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@torch.no_grad()
def test_spec_augment_only_in_training(batch):
    model = build(mask_time_prob=0.3, mask_feature_prob=0.3)
    plain = build()
    assert torch.equal(model.eval()(**batch).logits, plain.eval()(**batch).logits)
    assert not torch.equal(model.train()(**batch).logits, plain.train()(**batch).logits)


def test_drawn_time_masks_are_a_share_of_the_real_frames():
    """The longest one of SpecAugment's adaptive masks (Park et al., arXiv 1912.05533) knows nothing of padding."""
    torch.manual_seed(0)
    model = build(num_time_masks=1, max_time_mask_share=0.25)
    features, mask = padded_features(400, *[40] * 60)
    masked = (model.spec_augment(features + 9, mask) == 0).all(-1).sum(-1)
    assert 5 < masked[1:].max() <= 10


def test_spec_augment_zeroes_spans_and_bands():
    model = build(mask_time_prob=0.2, mask_time_length=7, mask_feature_prob=0.3, mask_feature_length=9)
    features, mask = padded_features(300, 120)
    hidden = model.spec_augment(features, mask) == 0
    frames, bands = hidden.all(-1), (hidden | ~mask[..., None]).all(1)
    assert torch.equal(hidden, frames[..., None] | bands[:, None] | (features == 0))
    for row, length in zip(frames, (300, 120), strict=True):
        assert 7 <= row[:length].sum() <= 0.2 * length + 7
    assert (bands.sum(-1) >= 9).all()
    assert (bands.sum(-1) <= 36).all()


def test_final_dropout_acts_in_training_only(batch):
    model = build(final_dropout=0.5).eval()
    assert torch.equal(model(**batch).logits, model(**batch).logits)
    model.train()
    assert not torch.equal(model(**batch).logits, model(**batch).logits)
