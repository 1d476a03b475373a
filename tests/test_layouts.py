"""Copy-and-append = the sequence of streaming steps = a naive pass per chunk, and nothing leaks."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_speech_ssl.modeling import layouts
from hf_speech_ssl.modeling.cache import ConformerCache
from hf_speech_ssl.modeling.configuration_chunkssl import ChunkSSLConfig
from hf_speech_ssl.modeling.layouts import ChunkLayout
from hf_speech_ssl.modeling.modeling_chunkssl import ChunkSSLForCTC, ChunkSSLForPreTraining, ChunkSSLModel
from hf_speech_ssl.modeling.modeling_conformer import ConformerModelOutput

TINY = {
    "num_mel_bins": 5,
    "frame_stacking": 2,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "label_kind": "random_projection",
    "codebook_size": 11,
    "chunk_durations_ms": [40],
    "streaming_durations_ms": [40],
}

chunked_cases = given(
    lengths=st.lists(st.integers(1, 23), min_size=1, max_size=3),
    chunk_size=st.integers(1, 9),
    layers=st.integers(1, 3),
    kernel=st.sampled_from([1, 3, 7]),
    lookahead=st.integers(0, 1),
    past=st.one_of(st.none(), st.integers(0, 3)),
    seed=st.integers(0, 99),
)


@pytest.fixture(autouse=True, scope="module")
def several_windows():
    """Attention calls so small that the short utterances here need several, of one chunk or of some."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layouts, "_FRAMES_PER_CALL", 6)
        yield


def build(layers: int = 2, kernel: int = 3, seed: int = 0, **fields) -> ChunkSSLModel:
    torch.manual_seed(seed)
    config = ChunkSSLConfig(num_hidden_layers=layers, conv_kernel_size=kernel, **{**TINY, **fields})
    config.initializer_range = 0.3  # large enough that a wrong frame shows
    return ChunkSSLModel(config).eval()


def padded_batch(lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Random features of `lengths` encoder frames each, and their mask; padding holds garbage."""
    frames = 2 * max(lengths)
    mask = torch.arange(frames) < 2 * torch.tensor(lengths)[:, None]
    return torch.randn(len(lengths), frames, 5), mask


def steps(
    model: ChunkSSLModel, features: torch.Tensor, mask: torch.Tensor | None, chunk_size: int, cache=None, **kwargs
) -> Iterator[ConformerModelOutput]:
    """The outputs of the streaming steps over a batch of whole utterances."""
    step = 2 * chunk_size
    for start in range(0, features.shape[1], step):
        now, ahead = slice(start, start + step), slice(start + step, start + 2 * step)
        more = model.config.num_lookahead_chunks and start + step < features.shape[1]
        output = model(
            features[:, now],
            None if mask is None else mask[:, now],
            lookahead_features=features[:, ahead] if more else None,
            lookahead_attention_mask=mask[:, ahead] if more and mask is not None else None,
            past_key_values=cache,
            use_cache=True,
            **kwargs,
        )
        cache = output.past_key_values
        yield output


def stream(model: ChunkSSLModel, features: torch.Tensor, mask: torch.Tensor, chunk_size: int) -> torch.Tensor:
    """The sequence of streaming steps over a batch of whole utterances."""
    return torch.cat([output.last_hidden_state for output in steps(model, features, mask, chunk_size)], dim=1)


def turn(vectors, places):
    """Rotary positions (T,) of vectors (T, H, 8)."""
    angles = places[:, None, None].float() * 10000.0 ** (-torch.arange(0, 8, 2) / 8)
    first, second = vectors.chunk(2, dim=-1)
    turned = first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()
    return torch.cat(turned, dim=-1)


def attend(attention, queries, keys, query_places, key_places):
    """Attention of some frames over others, every frame with its place in the utterance."""
    q = turn(attention.qkv_proj(queries)[:, :16].view(-1, 2, 8), query_places)
    k = turn(attention.qkv_proj(keys)[:, 16:32].view(-1, 2, 8), key_places)
    v = attention.qkv_proj(keys)[:, 32:].view(-1, 2, 8)
    weights = torch.softmax(torch.einsum("qhd,khd->hqk", q, k) * 8**-0.5, dim=-1)
    return attention.out_proj(torch.einsum("hqk,khd->qhd", weights, v).reshape(-1, 16))


def half(feed_forward, norm, states):
    return states + 0.5 * feed_forward(norm(states))


def naive(
    model: ChunkSSLModel, features: torch.Tensor, size: int, lookahead: bool, hide=lambda x: x
) -> tuple[torch.Tensor, torch.Tensor]:
    """One utterance without padding, chunk by chunk, from the definition: (1, F, M) -> (T, D) and, of the copies that
    `hide` makes, (T - size, D)."""
    x, config = model.project(model.stack_frames(features, None)[0])[0], model.config
    base = list(x.split(size))
    ahead = [[copy] if lookahead else [] for copy in hide(x).split(size)[1:]] + [[]]
    places = torch.arange(len(x)).split(size)
    for layer in model.layers:
        old = base, ahead
        base, ahead = [], []
        convolved_inputs = torch.zeros(layer.convolution.context, 16)  # what the convolution saw of the base so far
        for i, chunk in enumerate(old[0]):
            first = 0 if config.left_context_chunks is None else max(0, i - config.left_context_chunks)
            now = torch.cat([chunk, *old[1][i]])
            keys = torch.cat([*old[0][first : i + 1], *old[1][i]])
            key_places = torch.cat([*places[first : i + 1], *([places[i + 1]] if old[1][i] else [])])
            y = half(layer.feed_forward1, layer.feed_forward_norm1, now)
            keys = layer.attention_norm(half(layer.feed_forward1, layer.feed_forward_norm1, keys))
            y = y + attend(layer.attention, layer.attention_norm(y), keys, key_places[-len(now) :], key_places)
            gated = torch.nn.functional.glu(layer.convolution.gate_proj(layer.convolution_norm(y)), dim=-1)
            row = torch.cat([convolved_inputs, gated, torch.zeros(layer.convolution.context, 16)])
            c = torch.nn.functional.conv1d(row.T, layer.convolution.depthwise.weight[..., 0], groups=16).T
            c = layer.convolution.norm(c + layer.convolution.depthwise.bias)
            y = y + layer.convolution.out_proj(torch.nn.functional.silu(c))
            y = layer.final_norm(half(layer.feed_forward2, layer.feed_forward_norm2, y))
            grown = torch.cat([convolved_inputs, gated[: len(chunk)]])
            convolved_inputs = grown[len(grown) - layer.convolution.context :]
            base.append(y[: len(chunk)])
            ahead.append([y[len(chunk) :]] if old[1][i] else [])
    return torch.cat(base), torch.cat([x[:0], *sum(ahead, [])])


@chunked_cases
@settings(max_examples=40, deadline=None)
@torch.no_grad()
def test_one_pass_equals_streaming_equals_naive(lengths, chunk_size, layers, kernel, lookahead, past, seed):
    model = build(layers, kernel, seed, num_lookahead_chunks=lookahead, left_context_chunks=past)
    features, mask = padded_batch(lengths)
    whole = model(features, mask, chunk_size=chunk_size).last_hidden_state
    streamed = stream(model, features, mask, chunk_size)
    for row, length in enumerate(lengths):
        reference = naive(model, features[row : row + 1, : 2 * length], chunk_size, bool(lookahead))[0]
        torch.testing.assert_close(whole[row, :length], reference, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(streamed[row, :length], reference, atol=1e-5, rtol=1e-5)
    assert whole.isfinite().all() and streamed.isfinite().all()


@chunked_cases
@settings(max_examples=20, deadline=None)
@torch.no_grad()
def test_windows_equal_the_dense_mask(lengths, chunk_size, layers, kernel, lookahead, past, seed):
    features, mask = padded_batch(lengths)
    outputs = []
    for implementation in ("sdpa", "eager"):
        model = build(layers, kernel, seed, num_lookahead_chunks=lookahead, left_context_chunks=past)
        model.set_attn_implementation(implementation)
        output = model(features, mask, chunk_size=chunk_size).last_hidden_state
        outputs.append(output[mask[:, ::2]])
    torch.testing.assert_close(*outputs, atol=1e-5, rtol=1e-5)


@chunked_cases
@settings(max_examples=30, deadline=None)
def test_pretraining_equals_naive_in_predictions_and_gradients(
    lengths, chunk_size, layers, kernel, lookahead, past, seed
):
    torch.manual_seed(seed)
    sizes = {"num_hidden_layers": layers, "conv_kernel_size": kernel, "initializer_range": 0.3}
    config = ChunkSSLConfig(num_lookahead_chunks=lookahead, left_context_chunks=past, **sizes, **TINY)
    model = ChunkSSLForPreTraining(config).eval()
    features, mask = padded_batch(lengths)
    hidden = torch.rand(len(lengths), max(lengths)) < 0.5
    output = model(features, mask, mask_time_indices=hidden, chunk_size=chunk_size)
    output.loss.backward()
    fast = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()

    encoded, labels = [], []
    for row, length in enumerate(lengths):
        utterance, gone = features[row : row + 1, : 2 * length], hidden[row, :length, None]
        hide = lambda x, gone=gone: torch.where(gone, model.mask_vector, x)
        copies = naive(model.encoder, utterance, chunk_size, True, hide)[1]
        encoded.append(copies[gone[chunk_size:, 0]])
        labels.append(model.quantizer.labels(utterance.reshape(length, 10))[chunk_size:][gone[chunk_size:, 0]])
    logits, labels = model.prediction_head(torch.cat(encoded)), torch.cat(labels)[:, 0]
    torch.testing.assert_close(output.logits, logits, atol=1e-5, rtol=1e-5)
    loss = torch.nn.functional.cross_entropy(logits, labels, reduction="sum") / max(1, len(labels))
    assert output.num_masked_frames == len(labels)
    torch.testing.assert_close(output.loss, loss, atol=1e-5, rtol=1e-5)
    loss.backward()
    for name, parameter in model.named_parameters():
        slow = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(fast[name], slow, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("changed", range(4))
@torch.no_grad()
def test_a_chunk_changes_only_what_may_see_it(changed):
    """With M = 4 chunks of 3: B_j reaches B_i for i >= j, and B_{j-1} through its look-ahead, nothing before."""
    model = build(num_lookahead_chunks=1)
    features, mask = padded_batch([12])
    other = features.clone()
    other[:, 6 * changed : 6 * changed + 6] += 1
    before = model(features, mask, chunk_size=3).last_hidden_state.unflatten(1, (4, 3))
    after = model(other, mask, chunk_size=3).last_hidden_state.unflatten(1, (4, 3))
    differs = (before != after).flatten(2).any(-1)[0].tolist()
    assert differs == [chunk >= changed - 1 for chunk in range(4)]


@torch.no_grad()
def test_hidden_frames_do_not_leak_into_their_prediction():
    """The prediction of a masked copy does not change with the frame behind the mask, nor with any later chunk."""
    torch.manual_seed(0)
    model = ChunkSSLForPreTraining(ChunkSSLConfig(num_hidden_layers=2, conv_kernel_size=3, **TINY)).eval()
    features, mask = padded_batch([12])
    hidden = torch.zeros(1, 12, dtype=torch.bool)
    hidden[0, 4:6] = True  # in the second of four chunks
    before = model(features, mask, mask_time_indices=hidden, chunk_size=3).logits
    for first in (8, 12):  # the hidden frames themselves; everything from the third chunk on
        other = features.clone()
        other[:, first : 12 if first == 8 else None] += 1
        torch.testing.assert_close(model(other, mask, mask_time_indices=hidden, chunk_size=3).logits, before)
    other = features.clone()
    other[:, 6:8] += 1  # the unmasked frame of the same chunk is seen
    assert not torch.allclose(model(other, mask, mask_time_indices=hidden, chunk_size=3).logits, before)


def test_utterances_of_one_chunk_have_nothing_to_predict():
    """The longest chunk of pretraining is 3.84 s, and some batches hold shorter utterances only."""
    model = ChunkSSLForPreTraining(ChunkSSLConfig(num_hidden_layers=1, **TINY))
    for chunk_size in (10, 16):  # as long as the batch, and longer
        output = model(torch.randn(2, 20, 5), chunk_size=chunk_size)
        assert output.num_masked_frames == 0 and output.loss == 0
        output.loss.backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


@torch.no_grad()
def test_streams_join_and_leave():
    model = build()
    features, mask = padded_batch([12, 12])
    alone = stream(model, features, mask, 3)
    first = model(features[:1, :6], use_cache=True, lookahead_features=features[:1, 6:12])
    second = model(features[1:, :6], use_cache=True, lookahead_features=features[1:, 6:12])
    ahead = model(features[:1, 6:12], past_key_values=first.past_key_values, lookahead_features=features[:1, 12:18])
    cache = ConformerCache.stack(
        [ahead.past_key_values, second.past_key_values]
    )  # the second stream is a chunk behind
    inputs = torch.stack([features[0, 12:18], features[1, 6:12]])
    lookahead = torch.stack([features[0, 18:24], features[1, 12:18]])
    both = model(inputs, past_key_values=cache, lookahead_features=lookahead)
    torch.testing.assert_close(both.last_hidden_state[0], alone[0, 6:9], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(both.last_hidden_state[1], alone[1, 3:6], atol=1e-5, rtol=1e-5)
    left = both.past_key_values.select(torch.tensor([1]))
    last = model(features[1:, 12:18], past_key_values=left, lookahead_features=features[1:, 18:24])
    torch.testing.assert_close(last.last_hidden_state[0], alone[1, 6:9], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_bounded_cache_does_not_grow():
    model = build(left_context_chunks=2)
    features, mask = padded_batch([60])
    cache = model(features[:, :6], use_cache=True).past_key_values
    sizes = []
    for start in range(6, 120, 6):
        model(features[:, start : start + 6], past_key_values=cache)
        sizes.append((cache.length, cache.keys[0].shape[2]))
    assert sizes[-1] == sizes[4] and sizes[-1][0] == 6


def test_a_cache_of_other_streams_is_refused():
    model = build()
    cache = model(torch.randn(2, 6, 5), use_cache=True).past_key_values
    with pytest.raises(ValueError, match="holds 2 streams"):
        model(torch.randn(3, 6, 5), past_key_values=cache)
    with pytest.raises(ValueError, match="use_cache=True"):
        model(torch.randn(2, 6, 5), lookahead_features=torch.randn(2, 6, 5))
    with pytest.raises(ValueError, match="each of the 2 streams of input_features, got 3"):
        model(torch.randn(2, 6, 5), lookahead_features=torch.randn(3, 6, 5), use_cache=True)


@torch.no_grad()
def test_a_stream_may_begin_late_but_not_go_on_behind_padding():
    model = build()
    features, mask = padded_batch([9, 6])
    alone = stream(model, features, mask, 3)
    late = torch.cat([features[:1], torch.cat([torch.zeros(1, 6, 5), features[1:, :12]], dim=1)])
    heard = torch.ones(2, 18, dtype=torch.bool)
    heard[1, :6] = False
    both = stream(model, late, heard, 3)
    torch.testing.assert_close(both[1, 3:], alone[1, :6], atol=1e-5, rtol=1e-5)
    for pause in (slice(10, 12), slice(6, 12)):  # within the second chunk, all of it
        heard = torch.ones(2, 18, dtype=torch.bool)
        heard[1, pause] = False
        with pytest.raises(ValueError, match=r"Streams \[1\] of the batch go on behind a padded chunk"):
            stream(model, late, heard, 3)


def test_scores_stay_within_the_windows(monkeypatch):
    """No attention call sees more than some chunks with their copies against what these may see."""
    shapes = []
    fused = torch.nn.functional.scaled_dot_product_attention

    def watch(query, key, *args, **kwargs):
        shapes.append((query.shape[2], key.shape[2]))
        return fused(query, key, *args, **kwargs)

    monkeypatch.setattr("hf_speech_ssl.modeling.layouts.F.scaled_dot_product_attention", watch)
    for size in (2, 8):  # three chunks to a call, one chunk to a call
        layout = ChunkLayout(torch.ones(1, 24, dtype=torch.bool), size, lookahead=True)
        states = torch.randn(1, 2, 48 - size, 4)
        layout.attend(states, states, states, 0.5, 0.0, 0)
        if size == 2:
            assert shapes == [(12, 12), (12, 18), (12, 24), (10, 28)]
        else:
            assert shapes == [(16, 16), (16, 24), (8, 24)]
        shapes.clear()


@chunked_cases
@settings(max_examples=20, deadline=None)
@torch.no_grad()
def test_predictions_do_not_need_the_last_chunk(lengths, chunk_size, layers, kernel, lookahead, past, seed):
    """Leaving the last base chunk out of the layout changes no copy's output, with or without windows."""
    features, mask = padded_batch(lengths)
    outputs = []
    for keep_last in (True, False):
        model = build(layers, kernel, seed, left_context_chunks=past)
        stacked, frame_mask = model.stack_frames(features, mask)
        layout = model.chunk_layout(stacked, frame_mask, chunk_size, lookahead=True, keep_last=keep_last)
        output = model.run_layers(layout.append_copies(model.project(stacked)), None, layout=layout)
        outputs.append(layout.extended_frames(output)[frame_mask[:, chunk_size:]])
    torch.testing.assert_close(*outputs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("lookahead", [0, 1])
@pytest.mark.parametrize("past", [None, 1])
@torch.no_grad()
def test_hidden_states_and_attentions_are_those_of_the_frames_that_went_in(lookahead: int, past: int | None):
    """Layer by layer, a chunked pass and its streaming steps return the same; weights of copies are not lost."""
    model = build(layers=3, num_lookahead_chunks=lookahead, left_context_chunks=past, chunk_size=4)
    model.set_attn_implementation("eager")
    features, frames = torch.randn(2, 20, 5), 10
    wants = {"output_hidden_states": True, "output_attentions": True}
    whole = model(features, **wants)
    assert [tuple(states.shape) for states in whole.hidden_states] == [(2, frames, 16)] * 4
    assert torch.equal(whole.hidden_states[-1], whole.last_hidden_state)
    assert [tuple(weights.shape) for weights in whole.attentions] == [(2, 2, frames, frames)] * 3
    assert torch.stack(whole.hidden_states).mean(2).shape == (4, 2, 16)
    torch.testing.assert_close(whole.attentions[1].sum(-1), torch.ones(2, 2, frames))
    outputs = list(steps(model, features, None, 4, **wants))
    for layer, states in enumerate(whole.hidden_states):
        streamed = torch.cat([output.hidden_states[layer] for output in outputs], dim=1)
        torch.testing.assert_close(streamed, states, atol=1e-5, rtol=1e-5)
    for index, output in enumerate(outputs):
        first = 0 if past is None else max(0, index - past) * 4
        seen = slice(first, min(frames, (index + 1 + lookahead) * 4))
        for weights, step_weights in zip(whole.attentions, output.attentions, strict=True):
            wanted = weights[:, :, 4 * index : 4 * (index + 1), seen]
            torch.testing.assert_close(step_weights, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("chunk_size", [0, 4])
@torch.no_grad()
def test_hidden_states_of_the_ctc_head_and_of_chosen_layers(chunk_size: int):
    torch.manual_seed(0)
    model = ChunkSSLForCTC(
        ChunkSSLConfig(num_hidden_layers=2, conv_kernel_size=3, chunk_size=chunk_size, **TINY)
    ).eval()
    features, mask = padded_batch([10, 7])
    plain = model(features, mask)
    output = model(features, mask, output_hidden_states=True)
    assert torch.equal(output.logits, plain.logits) and plain.hidden_states is None
    assert [tuple(states.shape) for states in output.hidden_states] == [(2, 10, 16)] * 3
    chosen = model(features, mask, output_hidden_states=[0, -1]).hidden_states
    assert chosen[1] is None and torch.equal(chosen[2], output.hidden_states[2])
    in_order = model(features, mask, output_hidden_states=True, return_dict=False)
    assert all(torch.equal(*pair) for pair in zip(in_order[1], output.hidden_states, strict=True))


@torch.no_grad()
def test_the_cache_has_the_names_of_older_and_newer_transformers():
    model = build()
    first, second = torch.randn(2, 1, 6, 5)
    output = model(first, use_cache=True)
    assert output.cache is output.past_key_values is output["cache"]
    by_old_name = model(second, past_key_values=output.cache.select(torch.tensor([0])))
    by_new_name = model(second, cache=output.cache)
    torch.testing.assert_close(by_new_name.last_hidden_state, by_old_name.last_hidden_state)
    assert by_new_name.cache.length == 6
