"""Every class can be exported with open batch size and length, compiled into one graph, and quantized to int8."""

import io
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from helpers import padded_features, tiny_birq, tiny_chunkssl
from torch.export import Dim
from transformers import PreTrainedModel

from hf_speech_ssl import (
    BiRQForCTC,
    BiRQForPreTraining,
    BiRQModel,
    ChunkSSLForCTC,
    ChunkSSLForPreTraining,
    ChunkSSLModel,
    FSQConfig,
    FSQModel,
)
from hf_speech_ssl.modeling.cache import ConformerCache

# By name: the class, its config, and what its calls are given beside features and mask.
Case = tuple[type[PreTrainedModel], Any, dict[str, Any]]
CASES: dict[str, Case] = {
    "birq, ctc": (BiRQForCTC, tiny_birq(num_hidden_layers=1, attention_window=6), {}),
    "chunkssl, ctc": (ChunkSSLForCTC, tiny_chunkssl(num_hidden_layers=1, left_context_chunks=1), {"chunk_size": 4}),
    "birq, pretraining": (BiRQForPreTraining, tiny_birq(num_hidden_layers=1), {}),
    "chunkssl, pretraining": (ChunkSSLForPreTraining, tiny_chunkssl(num_hidden_layers=1), {"chunk_size": 4}),
    "fsq": (
        FSQModel,
        FSQConfig(fsq_levels=[5, 3], fsq_hidden_size=16, fsq_num_hidden_layers=1, initializer_range=0.3),
        {},
    ),
    "chunkssl, no look-ahead": (
        ChunkSSLModel,
        tiny_chunkssl(num_hidden_layers=1, num_lookahead_chunks=0),
        {"chunk_size": 4},
    ),
}
SLOW_CASES: dict[str, Case] = {  # parts of those above
    "birq": (BiRQModel, tiny_birq(num_hidden_layers=2), {}),
    "chunkssl": (ChunkSSLModel, tiny_chunkssl(num_hidden_layers=2), {}),
    "chunkssl, chunks": (ChunkSSLModel, tiny_chunkssl(num_hidden_layers=2), {"chunk_size": 4}),
}
ALL_CASES = CASES | SLOW_CASES


def every_case(*slow: str) -> pytest.MarkDecorator:
    """All cases, those of SLOW_CASES and `slow` in the slow tests."""
    marked = {*SLOW_CASES, *slow}
    params = [pytest.param(name, marks=[pytest.mark.slow] * (name in marked)) for name in ALL_CASES]
    return pytest.mark.parametrize("case", params)


def build(case: str) -> tuple[PreTrainedModel, dict[str, Any]]:
    torch.manual_seed(0)
    kind, config, arguments = ALL_CASES[case]
    return kind(config).eval(), arguments


def batch(*lengths: int) -> dict[str, torch.Tensor]:
    features, mask = padded_features(*lengths)
    return {"input_features": features, "attention_mask": mask.long()}


def assert_same_outputs(one: Any, other: Any, atol: float = 1e-5) -> None:
    """Compare all tensors of two outputs, and those with a value per frame at the real frames alone.

    A compiled pretraining model gives the logits of all frames, since the number of masked ones depends on the data.
    """
    assert one.keys() == other.keys()
    real = None if one.get("attention_mask") is None else one.attention_mask.bool()
    for name, wanted in one.items():
        got = other[name]
        if name == "logits" and "num_masked_frames" in one:
            assert len(got) >= len(wanted) == one.num_masked_frames > 0
            continue
        if real is not None and wanted.shape[:2] == real.shape:
            wanted, got = wanted[real], got[real]
        torch.testing.assert_close(got, wanted, atol=atol, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


@every_case("chunkssl, pretraining")
@torch.no_grad()
def test_an_exported_model_takes_any_batch_size_and_length(case: str):
    model, arguments = build(case)
    open_dimensions = {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}
    shapes = {"input_features": open_dimensions, "attention_mask": open_dimensions, **dict.fromkeys(arguments)}
    exported = torch.export.export(
        model, (), kwargs={**batch(96, 70), **arguments}, dynamic_shapes=shapes, strict=False
    ).module()
    # Whole stacks and chunks as in the example, neither, shorter ones, and one utterance, which no step trains on.
    several = ((96, 70), (99, 51, 98), (61, 40, 30, 20))
    for lengths in several if "pretraining" in case else (*several, (333,)):
        inputs = {**batch(*lengths), **arguments}
        assert_same_outputs(model(**inputs), exported(**inputs))


@every_case()
@torch.no_grad()
def test_compiles_into_one_graph(case: str):
    model, arguments = build(case)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    inputs = {**batch(99, 51, 98), **arguments}
    assert_same_outputs(model(**inputs), compiled(**inputs))


@every_case()
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@torch.no_grad()
def test_int8_is_near_float32(case: str):
    model, arguments = build(case)
    quantized = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear})
    inputs = {**batch(96, 70), **arguments}
    wanted, got = model(**inputs), quantized(**inputs)
    name = next(name for name in ("logits", "last_hidden_state", "reconstruction") if name in wanted)
    wanted, got = wanted[name], got[name]
    assert not torch.equal(got, wanted)
    real = wanted.abs() < 1e4  # the logits of padded frames are the smallest numbers that there are
    assert (got - wanted)[real].abs().mean() < 0.2 * wanted[real].abs().mean()


def streaming_model() -> tuple[ChunkSSLModel, torch.Tensor]:
    torch.manual_seed(0)
    model = ChunkSSLModel(tiny_chunkssl(num_hidden_layers=2, left_context_chunks=2)).eval()
    return model, torch.randn(2, 6 * 16, 80)  # 6 chunks of 4 encoder frames


def step_inputs(features: torch.Tensor) -> Iterator[dict[str, torch.Tensor]]:
    chunks = features.split(16, dim=1)
    for chunk, ahead in zip(chunks, chunks[1:], strict=False):
        yield {"input_features": chunk, "lookahead_features": ahead}


def stream(step: Any, features: torch.Tensor, cache: Any) -> torch.Tensor:
    """The hidden states of all steps but the last, which has no look-ahead."""
    outputs = []
    for inputs in step_inputs(features):
        output = step(**inputs, past_key_values=cache)
        cache = output.past_key_values
        outputs.append(output.last_hidden_state)
    return torch.cat(outputs, dim=1)


@torch.no_grad()
def test_a_cache_of_fixed_size_gives_the_same_stream():
    model, features = streaming_model()
    cache = model.fixed_cache(2, 8)
    fixed = stream(model, features, cache)
    torch.testing.assert_close(fixed, stream(model, features, ConformerCache(8)), atol=1e-5, rtol=1e-5)
    assert cache.length == 8 and cache.valid.all()


@torch.no_grad()
def test_an_exported_streaming_step_takes_any_number_of_streams():
    """The step is exported with a cache of fixed size, which goes in and comes out; saved and loaded on the way."""
    model, features = streaming_model()
    example = {**next(step_inputs(features)), "past_key_values": model.fixed_cache(2, 8)}
    shapes: dict[str, Any] = {name: {0: Dim.DYNAMIC} for name in ("input_features", "lookahead_features")}
    shapes["past_key_values"] = [{0: Dim.DYNAMIC}] * len(torch.utils._pytree.tree_leaves(example["past_key_values"]))
    exported = torch.export.export(model, (), kwargs=example, dynamic_shapes=shapes, strict=False)
    file = io.BytesIO()
    torch.export.save(exported, file)
    file.seek(0)
    with torch.serialization.safe_globals([ConformerCache]):  # a part of the example's inputs, saved with it
        step = torch.export.load(file).module()
    for streams in (2, 3):
        these = features[:1].expand(streams, -1, -1) if streams == 3 else features
        wanted = stream(model, these, model.fixed_cache(streams, 8))
        torch.testing.assert_close(stream(step, these, model.fixed_cache(streams, 8)), wanted, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_streaming_step_compiles_into_one_graph():
    model, features = streaming_model()
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    wanted = stream(model, features, model.fixed_cache(2, 8))
    torch.testing.assert_close(stream(compiled, features, model.fixed_cache(2, 8)), wanted, atol=1e-5, rtol=1e-5)
