"""What pretraining models show of a step: its labels and its mask; and that evaluation draws nothing by chance."""

import pytest
import torch
from helpers import padded_features, tiny_birq, tiny_chunkssl
from torch.nn.utils.rnn import pad_sequence

from hf_speech_ssl import BiRQForPreTraining, ChunkSSLForPreTraining
from hf_speech_ssl.modeling.label_statistics import distinct_counts
from hf_speech_ssl.modeling.masking import FixedDraws

MODELS = {
    "best-rq": lambda: BiRQForPreTraining(tiny_birq(enhanced_loss_weight=0.0, num_codebooks=2)),
    "birq": lambda: BiRQForPreTraining(tiny_birq()),
    "detached": lambda: BiRQForPreTraining(tiny_birq(detach_enhanced_labels=True)),
    "chunkssl": lambda: ChunkSSLForPreTraining(tiny_chunkssl()),
    "chunkssl random": lambda: ChunkSSLForPreTraining(tiny_chunkssl(label_kind="random_projection")),
}
every_model = pytest.mark.parametrize("kind", MODELS)


@every_model
def test_evaluation_is_a_function_of_the_input(kind: str):
    model = MODELS[kind]().eval()
    features, mask = padded_features(120, 90)
    first = model(features, mask)
    state = torch.get_rng_state()
    second = model(features, mask)
    assert torch.equal(torch.get_rng_state(), state), "drew from the global generator"
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    assert model.train()(features, mask).loss != model(features, mask).loss


LABEL_MAKERS = {  # what must have a module of its own, by kind
    "distilled": (
        lambda: BiRQForPreTraining(
            tiny_birq(second_codebook_size=10, distillation_loss_weight=0.5, codebook_replacements=[3])
        ),
        {"quantizer", "second_quantizer", "anchor_use", "second_use"},
    ),
    "clusters": (
        lambda: BiRQForPreTraining(tiny_birq(enhanced_label_kind="clusters", label_encoder_decay=0.9)),
        {"quantizer", "label_maker", "anchor_use", "enhanced_use"},
    ),
    "fsq": (MODELS["chunkssl"], {"tokenizer", "label_use"}),
}


@pytest.mark.parametrize("kind", LABEL_MAKERS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_labels_stay_in_float32_whatever_the_model_is_loaded_in(kind: str, dtype: torch.dtype, tmp_path):
    build, makers = LABEL_MAKERS[kind]
    model = build()
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, dtype=dtype)
    assert loaded.prediction_head.weight.dtype == loaded.encoder.feature_projection.weight.dtype == dtype
    for name in makers:
        values = getattr(loaded, name).state_dict()
        assert values and {one.dtype for one in values.values() if one.is_floating_point()} <= {torch.float32}, name
        assert all(torch.equal(values[key], one) for key, one in getattr(model, name).state_dict().items())


def test_fixed_draws_do_not_depend_on_batch_and_padding():
    utterances = [torch.randn(length, 6) for length in (40, 30, 50)]
    alone = [FixedDraws(utterance[None]).uniform((1, len(utterance)))[0] for utterance in utterances]
    together = FixedDraws(pad_sequence(utterances, batch_first=True)).uniform((3, 50))
    for row, wanted in zip(together, alone, strict=True):
        assert torch.equal(row[: len(wanted)], wanted)
    assert not torch.equal(together[0], together[1])


def test_fixed_draws_are_distributed_as_they_should_be():
    draws = FixedDraws(torch.randn(20, 1, 8))
    uniform, again, normal = draws.uniform((20, 5000)), draws.uniform((20, 5000)), draws.normal((20, 50, 100))
    assert uniform.min() >= 0 and uniform.max() < 1
    assert not torch.equal(uniform, again)
    counts = torch.histc(uniform, 100, 0, 1)
    assert ((counts - 1000).abs() < 5 * 1000**0.5).all()
    assert normal.mean().abs() < 0.02 and normal.std() == pytest.approx(1, abs=0.02)
    neighbors = torch.corrcoef(torch.stack([uniform.flatten()[1:], uniform.flatten()[:-1]]))[0, 1]
    assert abs(neighbors) < 0.02
    rows = torch.tensor([3, 17, 4999])
    frames = FixedDraws(torch.randn(4, 1250, 8)).uniform_rows(rows, (3, 7))
    assert frames.shape == (3, 7) and len(frames.unique()) == 21


@every_model
def test_a_sampled_mask_is_one_that_forward_takes(kind: str):
    model = MODELS[kind]().eval()
    features, mask = padded_features(160, 120)
    _, real = model.make_labels(features, mask)
    drawn = model.sample_mask(real, torch.Generator().manual_seed(3))
    again = model.sample_mask(real, torch.Generator().manual_seed(3))
    other = model.sample_mask(real, torch.Generator().manual_seed(4))
    masked = drawn["mask_time_indices"]
    assert torch.equal(masked, again["mask_time_indices"]) and not torch.equal(masked, other["mask_time_indices"])
    assert masked.any() and not (masked & ~real).any()
    assert model(features, mask, **drawn).num_masked_frames == masked.sum()


@every_model
def test_made_labels_are_those_of_the_loss(kind: str):
    """With every logit in favor of them the model hits all labels."""
    model = MODELS[kind]().eval()
    features, mask = padded_features(160, 120)
    made, real = model.make_labels(features, mask)
    drawn = model.sample_mask(real)
    kinds = {"best-rq": ["anchor"], "birq": ["anchor", "enhanced"], "detached": ["anchor", "enhanced"]}
    assert list(made) == (kinds.get(kind) or [model.config.label_kind])
    for labels in made.values():
        assert labels.ids.shape[:2] == real.shape and labels.ids.shape[2] == len(labels.sizes)
        assert (labels.ids < torch.tensor(labels.sizes)).all()
    labels = next(iter(made.values())).ids[drawn["mask_time_indices"]]  # (n, C)
    sizes = next(iter(made.values())).sizes
    logits = torch.cat(
        [torch.eye(size)[column] for size, column in zip(sizes, labels.unbind(-1), strict=True)], dim=-1
    )
    model.prediction_head = torch.nn.Module()
    model.prediction_head.forward = lambda encoded: 50 * logits
    assert model(features, mask, **drawn).accuracy == 1


@pytest.mark.parametrize("kind", ["best-rq", "birq", "chunkssl random", "chunkssl"])
def test_seeded_labels_need_no_weights(kind: str):
    model = MODELS[kind]().eval()
    with torch.device("meta"):
        bare = type(model)(model.config)
    features, _ = padded_features(160)
    made, _ = bare.make_labels(features, seeded_only=True)
    assert list(made) == {"chunkssl": [], "chunkssl random": ["random_projection"]}.get(kind, ["anchor"])
    for name, labels in made.items():
        assert torch.equal(labels.ids, model.make_labels(features)[0][name].ids)
    assert bare.sample_mask(torch.ones(1, 40, dtype=torch.bool))["mask_time_indices"].any()


@every_model
@pytest.mark.parametrize("training", [False, True])
def test_hidden_states_and_attentions_are_those_of_the_masked_pass(kind: str, training: bool):
    model = MODELS[kind]().train(training)
    model.set_attn_implementation("eager")
    features, mask = padded_features(160, 120)
    frames = 160 // model.config.frame_stacking
    masked = torch.zeros(2, frames, dtype=torch.bool)
    masked[:, 5:9] = True
    arguments = {"mask_time_indices": masked} | ({"chunk_size": 4} if "chunk" in kind else {})
    output = model(features, mask, **arguments, output_hidden_states=True, output_attentions=True)
    assert len(output.hidden_states) == len(output.attentions) + 1 == 4
    assert all(states.shape == (2, frames, 32) for states in output.hidden_states)
    assert model(features, mask, **arguments).hidden_states is None
    predicted = model.prediction_head(output.hidden_states[-1][masked]).view(output.logits.shape)
    torch.testing.assert_close(predicted, output.logits)
    as_tuple = model(features, mask, **arguments, output_hidden_states=True, return_dict=False)
    assert isinstance(as_tuple, tuple) and len(as_tuple[-1]) == 4


@every_model
def test_compiled_and_exported_loss_is_that_of_eager(kind: str):
    model = MODELS[kind]().eval()
    features, mask = padded_features(80, 60)
    masked = torch.rand(2, 80 // model.config.frame_stacking) < 0.4
    inputs = {"input_features": features, "attention_mask": mask, "mask_time_indices": masked}
    wanted = model(**inputs)
    exported = torch.export.export(model, (), kwargs=inputs, strict=False).module()(**inputs)
    for name, value in wanted.items():
        if value.ndim == 0:
            torch.testing.assert_close(exported[name], value, msg=name)


def test_distinct_rows_are_counted_without_a_table():
    labels = torch.randint(0, 3, (200, 4))
    weights = (torch.rand(200) < 0.7).float()
    _, counts = labels[weights > 0].unique(dim=0, return_counts=True)
    counted = distinct_counts(labels, weights)
    assert torch.equal(counted[counted > 0].sort().values, counts.float().sort().values)
    assert distinct_counts(labels[:0], weights[:0]).shape == (0,)
