"""Which frames are masked: pure functions of lengths (or validity masks), settings and a source of random numbers.

Shape letters: B batch, T frames, I features of a frame.
"""

import math

import torch
from torch.nn import functional as F

_UINT32 = 0xFFFFFFFF


class FixedDraws:
    """Random numbers that the features of each utterance decide, for evaluation.

    The same utterance gets the same numbers in any batch, with any padding and on any device. They come from integer
    arithmetic, which torch.compile and torch.export can trace; a `torch.Generator` they cannot.

    Args:
        frames: (B, T, I); the first frame of each utterance is its seed.
    """

    def __init__(self, frames: torch.Tensor):
        bits = frames[:, 0].float().contiguous().view(torch.int32).long()  # (B, I)
        places = torch.arange(bits.shape[1], device=bits.device)
        self.seeds = _scramble(_scramble(bits) + places).sum(-1)  # (B,)
        self.num_frames = frames.shape[1]
        self.calls = 0

    def uniform(self, shape: tuple[int, ...]) -> torch.Tensor:
        """Numbers in [0, 1): float32 of `shape`, whose first dimension is B; fresh ones at every call."""
        places = torch.arange(math.prod(shape[1:]), device=self.seeds.device)
        return self._numbers(self.seeds[:, None], places).view(shape)

    def uniform_rows(self, rows: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        """Numbers in [0, 1) for some frames, given as indices (n,) into B * T: float32 of `shape`, (n, ...)."""
        width = math.prod(shape[1:])
        places = (rows % self.num_frames * width)[:, None] + torch.arange(width, device=rows.device)
        return self._numbers(self.seeds[rows // self.num_frames][:, None], places).view(shape)

    def normal(self, shape: tuple[int, ...]) -> torch.Tensor:
        """Standard normal numbers: float32 of `shape`, whose first dimension is B (Box and Muller)."""
        radius = (-2 * torch.log1p(-self.uniform(shape))).sqrt()
        return radius * torch.cos(2 * math.pi * self.uniform(shape))

    def _numbers(self, seeds: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return (_scramble(_scramble(seeds + self.calls) + places) >> 8).float() * 2.0**-24


def _scramble(numbers: torch.Tensor) -> torch.Tensor:
    """A permutation of the 32-bit integers without visible pattern (a xorshift-multiply hash), in int64."""
    numbers = numbers & _UINT32
    numbers = ((numbers ^ (numbers >> 16)) * 0x7FEB352D) & _UINT32
    numbers = ((numbers ^ (numbers >> 15)) * 0x846CA68B) & _UINT32
    return numbers ^ (numbers >> 16)


RandomSource = torch.Generator | FixedDraws | None  # torch's default generator, if absent


def _uniform(shape: tuple[int, ...], device: torch.device, source: RandomSource) -> torch.Tensor:
    """`torch.rand`, whose `generator=None` torch.compile cannot trace once a shape varies; nor that of `randint`."""
    if isinstance(source, FixedDraws):
        return source.uniform(shape)
    return torch.empty(shape, device=device).uniform_(generator=source)


def draw_span_mask(
    attention_mask: torch.Tensor, start_prob: float, length: int, source: RandomSource = None
) -> torch.Tensor:
    """The masks of BEST-RQ and BiRQ: every frame starts a span of `length` frames with probability `start_prob`.

    Spans may overlap and end with the utterance; padding is never masked. A frame with at least `length - 1` frames
    before it is masked with probability `1 - (1 - start_prob) ** length`: 33 % at 0.02 and 20. The first frames, where
    fewer spans can reach, are masked less often (see `expected_masked_share`).

    Args:
        attention_mask: (B, T) bool, true where a frame is real; real frames come first.
        start_prob: probability that a frame starts a span.
        length: frames in a span.
        source: of random numbers, on the device of `attention_mask`.

    Returns:
        (B, T) bool, true where a frame is masked.
    """
    starts = _uniform(attention_mask.shape, attention_mask.device, source) < start_prob
    # A frame is masked by a start at most length - 1 before it: if one was counted since. (Pooling would say the same,
    # but torch.compile makes a new graph for every length of it.)
    counts = F.pad(starts.cumsum(1), (length, 0))
    return (counts[:, length:] > counts[:, :-length]) & attention_mask.bool()


def expected_masked_share(num_frames: int, start_prob: float, length: int) -> float:
    """Mean share of an utterance of `num_frames` frames that `draw_span_mask` masks."""
    shown = [(1 - start_prob) ** min(frame + 1, length) for frame in range(num_frames)]
    return 1 - sum(shown) / num_frames


def draw_spec_augment_mask(
    lengths: torch.Tensor,
    size: int,
    prob: float,
    span_length: int,
    min_spans: int = 0,
    source: RandomSource = None,
) -> torch.Tensor:
    """SpecAugment (Park et al., arXiv 1904.08779) along one axis: spans of fixed length at uniform places.

    A row of length n gets `prob * n / span_length` spans (the fraction decides by chance about one more), at least
    `min_spans`: `prob` is the share that would be masked if spans never overlapped. Rows shorter than a span get none.

    Args:
        lengths: (B,) valid positions of each row.
        size: positions of the axis.
        prob, span_length, min_spans: see above.
        source: of random numbers, on the device of `lengths`.

    Returns:
        (B, size) bool, true where a position is masked.
    """
    device = lengths.device
    chance = _uniform(lengths.shape, device, source)
    counts = (prob * lengths / span_length + chance).floor().clamp_min(min_spans)
    counts = counts.masked_fill(lengths < span_length, 0)
    most = int(prob * size / span_length + 1) + min_spans  # no row can have more spans
    room = (lengths - span_length + 1).clamp_min(1)[:, None]
    starts = (_uniform((len(lengths), most), device, source) * room).floor()
    starts = starts.masked_fill(torch.arange(most, device=device) >= counts[:, None], -span_length)
    offset = torch.arange(size, device=device) - starts[..., None]  # (B, spans, size)
    return ((offset >= 0) & (offset < span_length)).any(1)


def draw_varied_mask(
    lengths: torch.Tensor, size: int, count: int, longest: torch.Tensor, source: RandomSource = None
) -> torch.Tensor:
    """SpecAugment along one axis as its paper has it: `count` spans, each of a length drawn from 0 to `longest`.

    Both ends are included, and spans may overlap (Park et al., arXiv 1904.08779, section 2).

    Args:
        lengths: (B,) valid positions of each row.
        size: positions of the axis.
        count: spans of each row.
        longest: (B,) positions in the longest span; the fraction is cut off.
        source: of random numbers, on the device of `lengths`.

    Returns:
        (B, size) bool, true where a position is masked.
    """
    shape = (len(lengths), count)
    spans = (_uniform(shape, lengths.device, source) * (longest.floor().minimum(lengths)[:, None] + 1)).floor()
    room = lengths[:, None] - spans + 1
    starts = (_uniform(shape, lengths.device, source) * room).floor()
    offset = torch.arange(size, device=lengths.device) - starts[..., None]  # (B, count, size)
    return ((offset >= 0) & (offset < spans[..., None])).any(1)


def draw_chunk_mask(frame_mask: torch.Tensor, chunk_size: int, source: RandomSource = None) -> torch.Tensor:
    """The masks of Chunk SSL: half of every chunk but the first, in one piece.

    The piece starts at a random offset of at most a quarter of the chunk. The first chunk has no copy that could be
    masked, and padding is never masked; a last chunk that the utterance does not fill may lose less than half.

    Args:
        frame_mask: (B, T) bool, true where a frame is real.
        chunk_size: frames per chunk, C.
        source: of random numbers, on the device of `frame_mask`.

    Returns:
        (B, T) bool, true where a frame's copy is masked.
    """
    batch, frames = frame_mask.shape
    device = frame_mask.device
    chunks = -(-frames // chunk_size)
    offsets = (_uniform((batch, chunks), device, source) * (chunk_size // 4 + 1)).long()
    frame = torch.arange(frames, device=device)
    places = frame % chunk_size - offsets[:, frame // chunk_size]  # (B, T), in the chunk's piece
    masked = (places >= 0) & (places < max(1, chunk_size // 2)) & (frame >= chunk_size)
    return masked & frame_mask.bool()
