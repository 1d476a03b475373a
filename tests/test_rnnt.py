"""The transducer head: its losses, its prediction network step by step, greedy paths, and what it refuses."""

import itertools

import pytest
import torch
from helpers import padded_features, tiny_birq, tiny_chunkssl
from huggingface_hub.errors import StrictDataclassClassValidationError
from test_transducer_loss import lattice_loss
from torch.nn import functional as F

from hf_speech_ssl import BiRQForCTC, BiRQForRNNT, ChunkSSLForRNNT

PLAIN = {"mask_time_prob": 0.0, "mask_feature_prob": 0.0, "vocab_size": 9, "initializer_range": 0.3}
LABELS = torch.tensor([[3, 5, 5, 2, 7], [4, 1, -100, -100, -100], [-100] * 5])


def build(**overrides) -> BiRQForRNNT:
    """A random model that says as much as it is silent."""
    torch.manual_seed(1)
    model = BiRQForRNNT(tiny_birq(**{**PLAIN, **overrides})).eval()
    model.joint.head.bias.data.zero_()
    return model


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    torch.manual_seed(2)
    features, mask = padded_features(40, 26, 12)  # 20, 13 and 6 encoder frames
    return {"input_features": features, "attention_mask": mask.long()}


@pytest.mark.parametrize("kind", ["transformer", "lstm"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_loss_equals_the_lattice_of_each_utterance(batch, kind: str, reduction: str):
    model = build(decoder_kind=kind, ctc_loss_reduction=reduction, pad_token_id=8, num_decoder_layers=2)
    total = 0.0
    for row, frames in enumerate((40, 26, 12)):
        labels = LABELS[row][LABELS[row] >= 0]
        prefixes = F.pad(labels, (1, 0), value=8)[None]
        logits = model(batch["input_features"][row : row + 1, :frames], decoder_input_ids=prefixes).logits
        loss = lattice_loss(logits[0].log_softmax(-1), labels.tolist(), blank=8)
        total += loss if reduction == "sum" else loss / max(1, len(labels)) / 3
    torch.testing.assert_close(model(**batch, labels=LABELS).loss, total)


def test_labels_may_have_gaps_and_blanks_as_padding(batch):
    spread = torch.tensor([[3, -100, 5, 5, 0, 2, 7], [-100, 4, 0, 0, 1, 0, 0], [0] * 7])
    model = build()
    torch.testing.assert_close(model(**batch, labels=spread).loss, model(**batch, labels=LABELS).loss)


def test_ctc_loss_is_added_and_the_checkpoint_is_a_ctc_model_too(batch, tmp_path):
    model = build(ctc_loss_weight=0.25)
    output = model(**batch, labels=LABELS)
    assert output.loss.item() == pytest.approx(output.rnnt_loss.item() + 0.25 * output.ctc_loss.item(), rel=1e-6)
    model.save_pretrained(tmp_path)
    ctc, info = BiRQForCTC.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    torch.testing.assert_close(ctc(**batch, labels=LABELS).loss.detach(), output.ctc_loss)


@pytest.mark.parametrize("setting", ["plain", "lstm", "ctc", "spec_augment", "autocast", "checkpointing"])
@pytest.mark.filterwarnings("ignore:.*activation_checkpointing_enable")
def test_every_parameter_receives_a_gradient(batch, setting: str):
    overrides = {
        "lstm": {"decoder_kind": "lstm"},
        "ctc": {"ctc_loss_weight": 0.3},
        "spec_augment": {"num_time_masks": 2, "num_feature_masks": 2},
    }
    model = build(**overrides.get(setting, {})).train()
    if setting == "checkpointing":
        model.gradient_checkpointing_enable()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=setting == "autocast"):
        loss = model(**batch, labels=LABELS).loss
    loss.backward()
    assert loss.dtype == torch.float32
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name


@pytest.mark.parametrize(("kind", "layers"), [("transformer", 1), ("transformer", 2), ("lstm", 2)])
@torch.no_grad()
def test_prediction_network_in_steps_equals_the_whole_text(kind: str, layers: int):
    """Of three texts that end at different times; the attention window of 6 is shorter than they are."""
    decoder = build(decoder_kind=kind, num_decoder_layers=layers).decoder
    texts = torch.randint(1, 9, (3, 11))
    whole = decoder(F.pad(texts, (1, 0)))
    states = [decoder.start() for _ in texts]
    for place in range(12):
        rows = [row for row in range(3) if place <= 11 - 4 * row]
        for row in rows:
            torch.testing.assert_close(states[row].output, whole[row, place], atol=1e-5, rtol=1e-4)
        going = [row for row in rows if place < 11 - 4 * row]
        moved = decoder.advance([states[row] for row in going], texts[going, place].tolist()) if going else []
        for row, state in zip(going, moved, strict=True):
            states[row] = state
    assert kind == "lstm" or states[0].memory[0].shape[2] == 5  # with the next token the window is full


@torch.no_grad()
def test_greedy_path_is_the_best_token_at_every_point(batch):
    """Against a loop over frames; `generate`, the logits of the path and the limit of tokens a frame beside it."""
    model = build(max_symbols_per_step=3)
    generated = model.generate(**batch)
    logits = model(**batch).logits
    limited = 0
    for row, frames in enumerate((20, 13, 6)):
        encoded = model.get_audio_features(**batch).pooler_output[row]
        state, wanted, places = model.decoder.start(), [], []
        for place in range(frames):
            for _ in range(3):
                token = int(model.joint(encoded[place] + state.output).argmax())
                if token == 0:
                    break
                wanted.append(token)
                places.append(place)
                (state,) = model.decoder.advance([state], [token])
            else:
                limited += 1
        tokens, durations = generated.sequences[row].tolist(), generated.durations[row]
        assert [token for token in tokens if token] == wanted and len(set(wanted)) > 1
        at = (durations.cumsum(0) - durations).tolist()
        assert [frame for token, frame in zip(tokens, at, strict=True) if token] == places
        assert durations.sum() == frames
        assert [token for token, _ in itertools.groupby(logits[row].argmax(-1).tolist()) if token] == wanted
    assert limited


@torch.no_grad()
def test_a_batch_gives_what_each_utterance_gives_alone(batch):
    model = build()
    together = model.generate(**batch).sequences
    for row, frames in enumerate((40, 26, 12)):
        alone = model.generate(batch["input_features"][row : row + 1, :frames]).sequences[0]
        assert together[row][together[row] != 0].tolist() == alone[alone != 0].tolist()


def test_an_untrained_model_is_silent():
    model = BiRQForRNNT(tiny_birq(vocab_size=50, pad_token_id=3))
    logits = model(torch.randn(1, 40, 80), decoder_input_ids=torch.tensor([[3, 1, 2]])).logits
    assert 0.8 < logits.softmax(-1)[..., 3].mean() < 0.95
    assert set(model.eval().generate(torch.randn(1, 40, 80)).sequences[0].tolist()) == {3}


def test_refused_labels(batch):
    with pytest.raises(ValueError, match="below vocab_size = 9, got 9.*vocab_size=len"):
        build()(**batch, labels=LABELS + 2)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"decoder_kind": "gru"}, 'decoder_kind must be "transformer" or "lstm", got "gru"'),
        ({"decoder_hidden_size": 10, "decoder_attention_heads": 4}, "even whole number, got 10 / 4"),
        ({"joint_hidden_size": 0}, "joint_hidden_size must be at least 1"),
        ({"ctc_loss_weight": -1.0}, "ctc_loss_weight must not be negative"),
        ({"max_time_mask_share": 2.0}, r"max_time_mask_share must lie in \[0, 1\]"),
        ({"num_time_masks": -1}, "num_time_masks must not be negative"),
        ({"joint_act": "none"}, "joint_act must be one of"),
    ],
)
def test_refused_configs(overrides, message):
    with pytest.raises(StrictDataclassClassValidationError, match=message):
        tiny_birq(**overrides)


def test_chunks_are_drawn_in_training_only():
    torch.manual_seed(0)
    model = ChunkSSLForRNNT(tiny_chunkssl(**PLAIN, streaming_prob=0.99, streaming_durations_ms=[160]))
    features = torch.randn(2, 64, 80)
    drawn = model(features, labels=LABELS[:2]).loss
    torch.testing.assert_close(drawn, model(features, labels=LABELS[:2], chunk_size=4).loss)
    assert not torch.allclose(drawn, model.eval()(features, labels=LABELS[:2]).loss)


def test_the_head_learns_to_write():
    """Eight utterances of made-up sounds, learned until the greedy path of all of them is their text."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 12, "initializer_range": 0.2, "num_hidden_layers": 2}
    sizes |= {"decoder_hidden_size": 32, "joint_hidden_size": 64}
    model = BiRQForRNNT(tiny_birq(**PLAIN | sizes)).train()
    sounds, labels = torch.randn(12, 80), torch.randint(1, 12, (8, 7))
    mask = torch.arange(7) < torch.tensor([7, 6, 5, 4, 7, 3, 2, 1])[:, None]
    features, frame_mask = sounds[labels].repeat_interleave(4, 1), mask.repeat_interleave(4, 1)
    optimizer = torch.optim.AdamW(model.parameters(), 8e-3)
    for _ in range(100):
        model(features, frame_mask, labels=labels.masked_fill(~mask, -100)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    written = model.eval().generate(features, frame_mask).sequences
    for row, text, real in zip(written, labels, mask, strict=True):
        assert row[row > 0].tolist() == text[real].tolist()
