"""Which frames are hidden: pure functions of lengths (or validity masks), settings and a generator.

Shape letters: B batch, T frames.
"""

import torch
from torch.nn import functional as F


def _uniform(shape: tuple[int, ...], device: torch.device, generator: torch.Generator | None) -> torch.Tensor:
    """`torch.rand`, whose `generator=None` torch.compile cannot trace once a shape varies; nor that of `randint`."""
    return torch.empty(shape, device=device).uniform_(generator=generator)


def draw_span_mask(
    attention_mask: torch.Tensor, start_prob: float, length: int, generator: torch.Generator | None = None
) -> torch.Tensor:
    """The masks of BEST-RQ and BiRQ: every frame starts a span of `length` frames with probability `start_prob`.

    Spans may overlap and end with the utterance; padding is never hidden. A frame with at least `length - 1` frames
    before it is hidden with probability `1 - (1 - start_prob) ** length`: 33 % at 0.02 and 20. The first frames, where
    fewer spans can reach, are hidden less often (see `expected_masked_share`).

    Args:
        attention_mask: (B, T) bool, true where a frame is real; real frames come first.
        start_prob: probability that a frame starts a span.
        length: frames in a span.
        generator: source of randomness on the device of `attention_mask`; torch's default one if absent.

    Returns:
        (B, T) bool, true where a frame is hidden.
    """
    starts = _uniform(attention_mask.shape, attention_mask.device, generator) < start_prob
    # A frame is hidden by a start at most length - 1 before it: if one was counted since. (Pooling would say the same,
    # but torch.compile makes a new graph for every length of it.)
    counts = F.pad(starts.cumsum(1), (length, 0))
    return (counts[:, length:] > counts[:, :-length]) & attention_mask.bool()


def expected_masked_share(num_frames: int, start_prob: float, length: int) -> float:
    """Mean share of an utterance of `num_frames` frames that `draw_span_mask` hides."""
    shown = [(1 - start_prob) ** min(frame + 1, length) for frame in range(num_frames)]
    return 1 - sum(shown) / num_frames


def draw_spec_augment_mask(
    lengths: torch.Tensor,
    size: int,
    prob: float,
    span_length: int,
    min_spans: int = 0,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """SpecAugment (Park et al., arXiv 1904.08779) along one axis: spans of fixed length at uniform places.

    A row of length n gets `prob * n / span_length` spans (the fraction decides by chance about one more), at least
    `min_spans`: `prob` is the share that would be hidden if spans never overlapped. Rows shorter than a span get none.

    Args:
        lengths: (B,) valid positions of each row.
        size: positions of the axis.
        prob, span_length, min_spans: see above.
        generator: source of randomness on the device of `lengths`.

    Returns:
        (B, size) bool, true where a position is hidden.
    """
    device = lengths.device
    chance = _uniform(lengths.shape, device, generator)
    counts = (prob * lengths / span_length + chance).floor().clamp_min(min_spans)
    counts = counts.masked_fill(lengths < span_length, 0)
    most = int(prob * size / span_length + 1) + min_spans  # no row can have more spans
    room = (lengths - span_length + 1).clamp_min(1)[:, None]
    starts = (_uniform((len(lengths), most), device, generator) * room).floor()
    starts = starts.masked_fill(torch.arange(most, device=device) >= counts[:, None], -span_length)
    offset = torch.arange(size, device=device) - starts[..., None]  # (B, spans, size)
    return ((offset >= 0) & (offset < span_length)).any(1)


def draw_chunk_mask(
    frame_mask: torch.Tensor, chunk_size: int, generator: torch.Generator | None = None
) -> torch.Tensor:
    """The masks of Chunk SSL: half of every chunk but the first, in one piece.

    The piece starts at a random offset of at most a quarter of the chunk. The first chunk has no copy that could be
    masked, and padding is never hidden; a last chunk that the utterance does not fill may lose less than half.

    Args:
        frame_mask: (B, T) bool, true where a frame is real.
        chunk_size: frames per chunk, C.
        generator: source of randomness on the device of `frame_mask`; torch's default one if absent.

    Returns:
        (B, T) bool, true where a frame's copy is hidden.
    """
    batch, frames = frame_mask.shape
    device = frame_mask.device
    chunks = -(-frames // chunk_size)
    offsets = (_uniform((batch, chunks), device, generator) * (chunk_size // 4 + 1)).long()
    places = torch.arange(chunk_size, device=device) - offsets[..., None]  # (B, chunks, C)
    hidden = (places >= 0) & (places < max(1, chunk_size // 2))
    hidden[:, 0] = False
    return hidden.flatten(1)[:, :frames] & frame_mask.bool()
