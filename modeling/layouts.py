"""Layouts: how the frames of a pass lie in a row, and which of them attention and convolution may mix.

Copy-and-append (Tang and Tseng, arXiv 2509.15579, section 3): an utterance of M chunks B_1..B_M of C frames is
followed by copies of B_2..B_M, its extended chunks E_1..E_{M-1}; E_i is the look-ahead of B_i. A frame of B_i or E_i
sees B_1..B_i and E_i, nothing else, and E_i keeps the positions of B_{i+1}. A streaming step is the same with M = 1
and a cache in the place of the chunks before.

With `attn_implementation="sdpa"`, the default, training and streaming call torch's scaled_dot_product_attention window
by window, on CPU and GPU alike: with w = max(C, 64) no call has more than 2w queries and N + w keys, and a fused
kernel keeps none of the scores. On a GPU, calls with a mask (padding, or several chunks to a window) need torch's
memory-efficient kernel, which takes head sizes of a multiple of 8 in half precision; others, as the 36 of
chunkssl-tiny, get the unfused one, with the scores of one window. Eager and flex attention see the whole layout at
once and a mask made from `sees`; eager, for those who want to look at the weights, makes all L^2 scores.

Shape letters: B batch, M chunks, C frames per chunk, N = M * C base frames, L frames of the whole layout (N, or 2N - C
with look-ahead; 2C in a streaming step), D hidden size, H heads, d head dimension, S cached frames.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol

import torch
from torch.nn import functional as F
from transformers.utils.import_utils import is_tracing

from .cache import ConformerCache

# Whether a query sees a key, by the indices (batch, head, query, key), as transformers and flex attention take it.
MaskFunction = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]

# Base frames in one call of the attention kernel. Smaller chunks share a call, with a mask: a call per chunk of 16
# frames takes twice as long at 75 s, most of it in slices and their gradients. Larger calls compute more that no
# frame may see, which costs short utterances more than it saves long ones.
_FRAMES_PER_CALL = 64


Span = tuple[int, int]  # frames [begin, end) of a layout


class Layout(Protocol):
    """The answers that the encoder needs from a layout of L frames, into which T frames went."""

    @property
    def frame_mask(self) -> torch.Tensor | None:
        """(B, L) bool, true where a frame is real; `None` if all are."""

    @property
    def dense(self) -> bool:
        """Whether attention is one call over all frames, with a mask made from `mask_function`.

        The layout's own `attend` is called otherwise.
        """

    def mask_function(self) -> MaskFunction | None:
        """Which frame sees which in dense attention, padding apart; `None` if every frame sees all."""

    def positions(self, device: torch.device) -> torch.Tensor:
        """Position of every frame in its utterance, (L,) or (B, L)."""

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float,
        dropout: float,
        layer_idx: int,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attention of a layout that is not dense: (B, H, L, d) each -> (B, L, H, d), and weights if it has them."""

    def split_for_convolution(self, frames: torch.Tensor, context: int, layer_idx: int) -> torch.Tensor:
        """Rows for a convolution without padding: (B, L, D) -> (rows, frames, D).

        A row holds `context` frames before, and `context` frames after, those that it is for.
        """

    def join_after_convolution(self, rows: torch.Tensor) -> torch.Tensor:
        """Put the rows back in their places, once the convolution has used up the contexts: -> (B, L, D)."""

    def base_frames(self, frames: torch.Tensor) -> torch.Tensor:
        """Outputs for the frames that went in: (B, L, D) -> (B, T, D)."""

    def base_weights(self, weights: torch.Tensor) -> torch.Tensor:
        """Attention weights of the frames that went in: (B, H, L, keys) -> (B, H, T, frames seen)."""


class WholeLayout:
    """Whole utterances, of which every frame may see every other or those in a window around it.

    Args:
        num_frames: T, which is L here.
        frame_mask: (B, T) bool, true where a frame is real; `None` if all are.
        attention_window: width of the attention window in encoder frames; `None` sees the whole utterance.
    """

    dense = True

    def __init__(self, num_frames: int, frame_mask: torch.Tensor | None, attention_window: int | None = None):
        self.num_frames, self.frame_mask, self.attention_window = num_frames, frame_mask, attention_window

    def mask_function(self) -> MaskFunction | None:
        """`sees`, if there is a window."""
        return None if self.attention_window is None else self.sees

    def sees(self, batch: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        """Whether a key lies in the window around a query."""
        assert self.attention_window is not None
        return (query - key).abs() <= self.attention_window // 2

    def positions(self, device: torch.device) -> torch.Tensor:
        """0 to T - 1."""
        return torch.arange(self.num_frames, device=device)

    def attend(self, *args: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Never called: attention is dense."""
        raise NotImplementedError("Attention over whole utterances is one call of the chosen implementation.")

    def split_for_convolution(self, frames: torch.Tensor, context: int, layer_idx: int) -> torch.Tensor:
        """(B, T, D) -> (B, context + T + context, D), with zeros around the utterance."""
        return F.pad(frames, (0, 0, context, context))

    def join_after_convolution(self, rows: torch.Tensor) -> torch.Tensor:
        """(B, T, D) as it is."""
        return rows

    def base_frames(self, frames: torch.Tensor) -> torch.Tensor:
        """(B, T, D) as it is."""
        return frames

    def base_weights(self, weights: torch.Tensor) -> torch.Tensor:
        """(B, H, T, T) as they are."""
        return weights


class Window(NamedTuple):
    """The frames of one attention call: queries are `base` and `copies`, keys `seen` (which ends with `base`) and
    `copies`.
    """

    base: Span
    copies: Span
    seen: Span


class ChunkLayout:
    """Chunks of a padded batch, and what attention and convolution may mix among them.

    Args:
        frame_mask: (B, T) bool, true where a frame is real; real frames come first.
        chunk_size: encoder frames per chunk, C.
        lookahead: whether every chunk but the last is followed by a copy of the next one.
        left_context_chunks: chunks before its own that a frame sees; all, if absent.
        dense: whether attention runs over the whole layout with a mask made from `sees`, as eager and flex attention
            do, instead of window by window.
        keep_last: whether the last chunk is there itself, beside its copy. Pretraining predicts copies alone, and no
            copy sees the last chunk: without it L is 2(N - C). A chunk that is the only one is always kept.
        unpadded: whether all frames are known to be real. Where that is not known, the layout looks at the mask.
    """

    def __init__(
        self,
        frame_mask: torch.Tensor,
        chunk_size: int,
        lookahead: bool,
        left_context_chunks: int | None = None,
        dense: bool = False,
        keep_last: bool = True,
        unpadded: bool = False,
    ):
        if chunk_size < 1:
            raise ValueError(f"chunk_size counts encoder frames and must be at least 1, got {chunk_size}.")
        self.num_frames = frame_mask.shape[1]
        self.chunk_size = chunk_size
        num_chunks = -(-self.num_frames // chunk_size)
        self.padded_length = num_chunks * chunk_size  # N
        self.num_chunks = num_chunks if keep_last or num_chunks == 1 else num_chunks - 1  # base chunks in the layout
        self.base_length = self.num_chunks * chunk_size
        self.extended_length = self.padded_length - chunk_size if lookahead else 0
        self.left_context_chunks = left_context_chunks
        self.dense = dense
        self.frame_mask = self.append_copies(frame_mask[..., None])[..., 0]  # (B, L)
        # Windows without padding need no mask for it. A traced graph must hold for all lengths and always masks.
        self.shortest = self.num_frames
        if not unpadded:
            self.shortest = 0 if is_tracing(frame_mask) else int(frame_mask.sum(-1).min())
        self.masks: dict[Window, torch.Tensor | None] = {}

    def append_copies(self, frames: torch.Tensor) -> torch.Tensor:
        """Pad to whole chunks and append the copies: (B, T, D) -> (B, L, D)."""
        padded = F.pad(frames, (0, 0, 0, self.padded_length - frames.shape[1]))
        base, copies = padded[:, : self.base_length], padded[:, self.padded_length - self.extended_length :]
        return torch.cat([base, copies], dim=1) if self.extended_length else base

    def base_frames(self, frames: torch.Tensor) -> torch.Tensor:
        """Outputs for the utterance: (B, L, D) -> (B, T, D). Without the last chunk, all but the first are copies."""
        if self.base_length == self.padded_length:
            return _frames(frames, 0, self.num_frames)
        return torch.cat([frames[:, : self.chunk_size], self.extended_frames(frames)], dim=1)

    def base_weights(self, weights: torch.Tensor) -> torch.Tensor:
        """Attention weights among the frames of the utterance: (B, H, L, L) -> (B, H, T, T).

        The weight of a copy is added to that of the frame that it copies, so that the weights of a query add up to 1.
        """
        if not is_tracing(weights) and weights.shape[-1] == self.num_frames:
            return weights  # one chunk without padding
        queries = self.base_frames(weights.flatten(0, 1)).unflatten(0, weights.shape[:2])  # (B, H, T, L)
        base, copies = queries.split([self.base_length, self.extended_length], dim=-1)
        base = F.pad(base, (0, self.padded_length - self.base_length))
        copies = F.pad(copies, (self.padded_length - self.extended_length, 0))
        return (base + copies)[..., : self.num_frames]

    def extended_frames(self, frames: torch.Tensor) -> torch.Tensor:
        """Outputs for the copies, at the places of what they copy: (B, L, D) -> (B, T - C, D)."""
        return _frames(frames, self.base_length, max(0, self.num_frames - self.chunk_size))

    def positions(self, device: torch.device) -> torch.Tensor:
        """Position of every frame in the utterance, (L,): a copy stands where its original does."""
        return self.append_copies(torch.arange(self.padded_length, device=device)[None, :, None])[0, :, 0]

    def mask_function(self) -> MaskFunction:
        """`sees`."""
        return self.sees

    def sees(
        self, batch: torch.Tensor | int, head: torch.Tensor | int, query: torch.Tensor, key: torch.Tensor
    ) -> torch.Tensor:
        """Whether the frame at a query index sees the frame at a key index."""
        query_chunk = torch.where(query < self.base_length, query, query - self.base_length) // self.chunk_size
        key_is_base = key < self.base_length
        key_chunk = torch.where(key_is_base, key, key - self.base_length) // self.chunk_size
        past = key_is_base & (key_chunk <= query_chunk)
        if self.left_context_chunks is not None:
            past = past & (key_chunk >= query_chunk - self.left_context_chunks)
        return past | (~key_is_base & (key_chunk == query_chunk))

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float,
        dropout: float,
        layer_idx: int,
    ) -> tuple[torch.Tensor, None]:
        """Run fused attention window by window: (B, H, L, d) each -> (B, L, H, d).

        A window is a chunk or some small ones. Chunk i's queries, base and extended, all see the same keys, so a
        window of one chunk needs no mask but for padding. No score outside of the windows is ever computed.
        """
        base, extended = [], []
        windows = self.windows()
        asking = [(window.base, window.copies) for window in windows]
        seen = [(window.seen, window.copies) for window in windows]
        parts = _join_all(query, asking), _join_all(key, seen), _join_all(value, seen)
        for window, rows, keys, values in zip(windows, *parts, strict=True):
            if window not in self.masks:  # the same in all layers
                self.masks[window] = self.window_mask(window, query.dtype)
            output = F.scaled_dot_product_attention(rows, keys, values, self.masks[window], dropout, scale=scaling)
            size = window.base[1] - window.base[0]
            base.append(output[:, :, :size])
            extended.append(output[:, :, size:])
        return torch.cat(base + extended, dim=2).transpose(1, 2), None

    def windows(self) -> list[Window]:
        """The attention calls that cover all queries, in the order of the base chunks."""
        size, together = self.chunk_size, max(1, _FRAMES_PER_CALL // self.chunk_size)
        windows = []
        for chunk in range(0, self.num_chunks, together):
            begin, end = chunk * size, min((chunk + together) * size, self.base_length)
            past = chunk if self.left_context_chunks is None else min(chunk, self.left_context_chunks)
            copies = (
                self.base_length + min(begin, self.extended_length),
                self.base_length + min(end, self.extended_length),
            )
            windows.append(Window((begin, end), copies, (begin - past * size, end)))
        return windows

    def window_mask(self, window: Window, dtype: torch.dtype) -> torch.Tensor | None:
        """What is added to a window's scores, 0 or minus infinity, (1 or B, 1, 1 or queries, keys); `None` if 0."""
        device, size = self.frame_mask.device, self.chunk_size
        base, copies, seen = (torch.arange(*span, device=device) for span in window)
        keys, visible = torch.cat([seen, copies]), None
        if len(base) > size:
            visible = self.sees(0, 0, torch.cat([base, copies])[:, None], keys)[None, None]
        if self.shortest < min(window.base[1] + size, self.padded_length):
            real = self.frame_mask[:, None, None, keys]
            visible = real if visible is None else real & visible
            visible = visible | ~visible.any(-1, keepdim=True)  # padding that sees padding only: anything but NaN
        if visible is None:
            return None
        return torch.zeros(visible.shape, dtype=dtype, device=device).masked_fill(~visible, float("-inf"))

    def split_for_convolution(self, frames: torch.Tensor, context: int, layer_idx: int) -> torch.Tensor:
        """Make a row of each chunk: (B, L, D) -> (B * M, context + 2C + context, D), or C for 2C without look-ahead.

        A row holds the `context` frames before the chunk (zeros before the utterance), the chunk, its look-ahead
        (zeros if it has none) and `context` zeros. Where chunks are shorter than `context`, the frames before the
        chunk reach back over several chunks.
        """
        size, chunks = self.chunk_size, self.num_chunks
        base, copies = frames[:, : self.base_length], frames[:, self.base_length :]
        row = F.pad(base, (0, 0, context, 0)).unfold(1, context + size, size).transpose(2, 3)  # (B, M, context + C, D)
        if not self.extended_length:
            return F.pad(row, (0, 0, 0, context)).flatten(0, 1)
        room = F.pad(copies, (0, 0, 0, self.base_length - copies.shape[1])).unflatten(1, (chunks, size))
        return torch.cat([row, F.pad(room, (0, 0, 0, context))], dim=2).flatten(0, 1)

    def join_after_convolution(self, rows: torch.Tensor) -> torch.Tensor:
        """Put the rows back in their places: (B * M, 2C, D) -> (B, L, D)."""
        rows = rows.unflatten(0, (-1, self.num_chunks))
        base = rows[:, :, : self.chunk_size].flatten(1, 2)
        if not self.extended_length:
            return base
        copies = rows[:, : self.extended_length // self.chunk_size, self.chunk_size :].flatten(1, 2)
        return torch.cat([base, copies], dim=1)


def _frames(frames: torch.Tensor, start: int, count: int) -> torch.Tensor:
    """Frames [start, start + count) of (B, L, D)."""
    if is_tracing(frames):
        # A view is contiguous or not depending on the length: it would bind an exported model to lengths of its
        # example's kind, whole chunks or not.
        return frames.narrow_copy(1, start, count)
    return frames if start == 0 and count == frames.shape[1] else frames[:, start : start + count]


def _join(tensor: torch.Tensor, first: Span, second: Span) -> torch.Tensor:
    """Frames (dimension 2) of one span, followed by those of another unless that is empty."""
    frames = tensor[:, :, slice(*first)]
    return torch.cat([frames, tensor[:, :, slice(*second)]], dim=2) if second[0] < second[1] else frames


def _join_all(tensor: torch.Tensor, pairs: list[tuple[Span, Span]]) -> Iterable[torch.Tensor]:
    """`_join` of every pair of spans: at once where gradients will be asked for, one after the other elsewhere."""
    if torch.is_grad_enabled() and tensor.requires_grad:
        joined: Iterable[torch.Tensor] = _JoinAll.apply(tensor, pairs)
        return joined
    return (_join(tensor, *pair) for pair in pairs)


class _JoinAll(torch.autograd.Function):
    """Applies `_join` to every pair of spans, and adds up their gradients in one tensor.

    Slices would each make a gradient as long as the utterance, which takes a sixth of a whole step at 75 s.
    """

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, pairs: list[tuple[Span, Span]]) -> tuple[torch.Tensor, ...]:
        ctx.shape, ctx.pairs = tensor.shape, pairs
        return tuple(_join(tensor, *pair) for pair in pairs)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        total = gradients[0].new_zeros(ctx.shape)
        for (first, second), gradient in zip(ctx.pairs, gradients, strict=True):
            size = first[1] - first[0]
            total[:, :, slice(*first)] += gradient[:, :, :size]
            total[:, :, slice(*second)] += gradient[:, :, size:]
        return total, None


class StreamingLayout:
    """One streaming step: one chunk per stream, its look-ahead, and a cache for what came before.

    Args:
        cache: the streams' past; `begin` has been called.
        chunk_size: encoder frames of the chunk, C, the same for all streams.
        num_frames: encoder frames of chunk and look-ahead together, L.
        frame_mask: (B, L) bool, true where one of them is real; `None` if all are.
        with_weights: whether attention is written out, so that its weights can be returned.
    """

    dense = False

    def __init__(
        self,
        cache: ConformerCache,
        chunk_size: int,
        num_frames: int,
        frame_mask: torch.Tensor | None = None,
        with_weights: bool = False,
    ):
        self.cache, self.chunk_size, self.num_frames = cache, chunk_size, num_frames
        self.with_weights = with_weights
        self.frame_mask = self.key_mask = None
        # Steps without padding, nearly all of them, need no mask.
        if frame_mask is None and not cache.padded:
            return
        if frame_mask is None:
            frame_mask = torch.ones(cache.num_streams, num_frames, dtype=torch.bool, device=cache.valid.device)
        visible = torch.cat([cache.valid, frame_mask], dim=1)
        if not is_tracing(visible):
            if visible.all():
                cache.padded = False
                return
            self.refuse_gaps(frame_mask[:, :chunk_size])
        self.frame_mask = frame_mask
        self.key_mask = (visible | ~visible.any(-1, keepdim=True))[:, None, None, :]

    def refuse_gaps(self, chunk_mask: torch.Tensor) -> None:
        """Raise ValueError for a stream that goes on behind padding: its convolutions would take that for its past."""
        if self.cache.length:
            gone_on = (self.cache.positions > 0) & ~self.cache.valid[:, -1] & chunk_mask.any(-1)
            if gone_on.any():
                raise ValueError(
                    f"Streams {gone_on.nonzero().flatten().tolist()} of the batch go on behind a padded chunk. Only "
                    f"a stream's last chunk may be padded; leave out streams that pause, with ConformerCache.select."
                )

    def mask_function(self) -> None:
        """No function: attention is not dense."""

    def positions(self, device: torch.device) -> torch.Tensor:
        """Position of every frame of the step in its stream, (B, L)."""
        return self.cache.positions[:, None] + torch.arange(self.num_frames, device=device)

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float,
        dropout: float,
        layer_idx: int,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attention of the step's frames over the S cached and their own: (B, H, L, d) each -> (B, L, H, d)."""
        key, value = self.cache.update(layer_idx, key, value)
        if not self.with_weights:
            output = F.scaled_dot_product_attention(query, key, value, self.key_mask, dropout, scale=scaling)
            return output.transpose(1, 2), None
        scores = query @ key.transpose(2, 3) * scaling
        if self.key_mask is not None:
            scores = scores.masked_fill(~self.key_mask, float("-inf"))
        weights = F.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
        return (F.dropout(weights, dropout) @ value).transpose(1, 2), weights

    def split_for_convolution(self, frames: torch.Tensor, context: int, layer_idx: int) -> torch.Tensor:
        """The step as the convolution sees it: (B, L, D) -> (B, context + L + context, D)."""
        return self.cache.extend_convolution_input(layer_idx, frames, self.chunk_size, context)

    def join_after_convolution(self, rows: torch.Tensor) -> torch.Tensor:
        """(B, L, D) as it is."""
        return rows

    def base_frames(self, frames: torch.Tensor) -> torch.Tensor:
        """Outputs for the chunk: (B, L, D) -> (B, C, D)."""
        return frames[:, : self.chunk_size]

    def base_weights(self, weights: torch.Tensor) -> torch.Tensor:
        """Weights of the chunk's frames: (B, H, L, S + L) -> (B, H, C, S + L)."""
        return weights[:, :, : self.chunk_size]
