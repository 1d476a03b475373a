"""Masks: the share they hide, where their spans lie, and that padding is never hidden."""

import pytest
import torch

from hf_speech_ssl.modeling.masking import (
    draw_chunk_mask,
    draw_span_mask,
    draw_spec_augment_mask,
    draw_varied_mask,
    expected_masked_share,
)


def real_frames(*lengths: int) -> torch.Tensor:
    return torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


def runs(row: torch.Tensor) -> list[tuple[int, int]]:
    """(start, length) of every stretch of hidden positions in a row."""
    edges = torch.diff(row.int(), prepend=torch.zeros(1), append=torch.zeros(1))
    starts, ends = (edges > 0).nonzero()[:, 0], (edges < 0).nonzero()[:, 0]
    return list(zip(starts.tolist(), (ends - starts).tolist(), strict=True))


@pytest.mark.parametrize(
    ("prob", "length", "frames"), [(0.02, 20, 500), (0.02, 20, 30), (0.08, 10, 200), (0.3, 1, 50)]
)
def test_span_mask_hides_the_expected_share(prob: float, length: int, frames: int):
    utterances = 200_000 // frames
    mask = draw_span_mask(torch.ones(utterances, frames, dtype=torch.bool), prob, length)
    share = expected_masked_share(frames, prob, length)
    # Frames of a span hide together: at least frames * utterances / length of them are independent.
    deviation = (share * (1 - share) * length / mask.numel()) ** 0.5
    assert abs(mask.float().mean().item() - share) < 4 * deviation


def test_expected_share_is_the_share_by_enumeration():
    prob, length, frames = 0.3, 3, 5
    share = 0.0
    for number in range(2**frames):
        starts = [number >> t & 1 for t in range(frames)]
        chance = prob ** sum(starts) * (1 - prob) ** (frames - sum(starts))
        share += chance * sum(any(starts[max(0, t - length + 1) : t + 1]) for t in range(frames)) / frames
    assert expected_masked_share(frames, prob, length) == pytest.approx(share)


def test_expected_share_of_the_paper():
    assert expected_masked_share(100_000, 0.02, 20) == pytest.approx(0.33, abs=0.005)


def test_spans_are_whole_unless_cut_by_the_end():
    real = real_frames(300, 170, 20)
    mask = draw_span_mask(real.repeat(20, 1), 0.02, 12)
    lengths = [length for row in mask for start, length in runs(row) if start + length not in (300, 170, 20)]
    assert lengths
    assert min(lengths) >= 12


@pytest.mark.parametrize("dtype", [torch.bool, torch.long])
def test_padding_is_never_hidden(dtype: torch.dtype):
    real = real_frames(50, 3, 0, 17)
    mask = draw_span_mask(real.to(dtype), 0.9, 8)
    assert mask.dtype == torch.bool
    assert mask.any()
    assert not (mask & ~real).any()


@pytest.mark.parametrize("draw", ["spans", "chunks", "spec_augment"])
def test_the_generator_decides(draw: str):
    def one(seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        if draw == "spans":
            return draw_span_mask(real_frames(200, 100), 0.05, 7, generator)
        if draw == "chunks":
            return draw_chunk_mask(real_frames(200, 100), 16, generator)
        return draw_spec_augment_mask(torch.tensor([200, 100]), 200, 0.3, 7, source=generator)

    assert torch.equal(one(1), one(1))
    assert not torch.equal(one(1), one(2))


def test_spec_augment_counts_spans():
    """Spans of one position cannot be cut, and at this share they seldom meet: their number is seen."""
    lengths = torch.full((4000,), 200)
    hidden = draw_spec_augment_mask(lengths, 200, prob=0.0125, span_length=1)
    assert abs(hidden.sum(-1).float().mean().item() - 2.5) < 0.05
    assert hidden.sum(-1).max() <= 3
    shares = hidden.float().mean(0)  # uniform places
    assert (shares - 0.0125).abs().max() < 5 * (0.0125 / 4000) ** 0.5


def test_spec_augment_spans_lie_whole_inside_the_valid_part():
    lengths = torch.tensor([100, 37, 10, 9, 0]).repeat(50)
    hidden = draw_spec_augment_mask(lengths, 100, prob=0.01, span_length=10, min_spans=1)
    for row, length in zip(hidden, lengths.tolist(), strict=True):
        assert not row[length:].any()
        assert row.any() == (length >= 10)
        assert all(size >= 10 for _, size in runs(row))


@pytest.mark.parametrize("min_spans", [0, 2])
def test_spec_augment_at_least(min_spans: int):
    hidden = draw_spec_augment_mask(torch.full((300,), 1000), 1000, prob=0.0, span_length=4, min_spans=min_spans)
    assert (hidden.sum(-1) <= 4 * min_spans).all()
    assert hidden.any(-1).all() == bool(min_spans)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 16])
def test_chunk_mask_hides_half_of_every_chunk_but_the_first_in_one_piece(size: int):
    frames = 5 * size
    hidden = draw_chunk_mask(real_frames(frames).repeat(400, 1), size).unflatten(1, (5, size))
    assert not hidden[:, 0].any()
    pieces = [runs(row) for row in hidden[:, 1:].flatten(0, 1)]
    assert {len(piece) for piece in pieces} == {1}
    assert {length for ((_, length),) in pieces} == {max(1, size // 2)}
    assert {start for ((start, _),) in pieces} == set(range(size // 4 + 1))


def test_chunk_mask_never_hides_padding_and_ends_with_the_utterance():
    real = real_frames(21, 13, 8, 3, 0).repeat(50, 1)
    hidden = draw_chunk_mask(real.long(), 8)  # chunks of 8: the last of 21 frames has 5, that of 13 too
    assert hidden.dtype == torch.bool and hidden.shape == real.shape and not (hidden & ~real).any()
    counts = hidden.sum(-1).view(50, 5)
    assert (counts[:, 0] - 4 <= 4).all() and (counts[:, 0] - 4 >= 3).all() and (counts[:, 1] >= 3).all()
    assert not counts[:, 2:].any(), "one chunk holds them"


@pytest.mark.parametrize("draw", [lambda real: draw_span_mask(real, 0.1, 4), lambda real: draw_chunk_mask(real, 8)])
def test_masks_compile_for_lengths_that_vary(draw):
    torch.compiler.reset()
    compiled = torch.compile(draw, dynamic=True, fullgraph=True, backend="eager")
    for frames in (40, 52, 33):
        real = real_frames(frames, 20)
        torch.manual_seed(0)
        expected = draw(real)
        torch.manual_seed(0)
        assert torch.equal(compiled(real), expected)


def test_varied_masks_have_drawn_lengths_up_to_the_longest():
    """Park et al., section 2: lengths are uniform from 0 to the longest, places uniform in the row."""
    torch.manual_seed(0)
    lengths = torch.tensor([100, 40]).repeat(4000)
    masked = draw_varied_mask(lengths, 100, 1, 0.05 * lengths)
    assert not masked[1::2, 40:].any()
    for row, longest in ((masked[::2], 5), (masked[1::2], 2)):
        counts = row.sum(-1).bincount(minlength=longest + 1) / len(row)
        assert len(counts) == longest + 1
        torch.testing.assert_close(counts, torch.full((longest + 1,), 1 / (longest + 1)), atol=0.03, rtol=0)
    singles = masked[::2][masked[::2].sum(-1) == 1].float().mean(0)
    assert abs(singles - 0.01).max() < 0.02
    spans = draw_varied_mask(lengths[:200], 100, 10, 0.05 * lengths[:200])
    assert 2 < spans[::2].sum(-1).float().mean() / 10 < 2.6  # 10 spans of 2.5 frames on average, some overlap
