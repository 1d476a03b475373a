"""The transducer loss (Graves, arXiv 1211.3711), exact, in memory bounded by a chunk of frames.

A joint network gives a distribution over V tokens at every point (t, u) of a lattice of T frames and U + 1 prefixes of
the text. Only two numbers of each are needed: the log-probability of the blank, which moves on to the next frame, and
that of the text's next token. They are computed for some frames at a time, and again in the backward pass, so that the
(T, U + 1, V) logits never exist. The sum over all paths then goes along the lattice's anti-diagonals, whose points do
not depend on each other.

Shape letters: B batch, T encoder frames, U tokens of the longest text, N = T + U + 1 anti-diagonals, J joint width,
V vocabulary, n lattice points of a chunk.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

Joint = Callable[[torch.Tensor], torch.Tensor]


def transducer_loss(
    encoder_frames: torch.Tensor,
    decoder_states: torch.Tensor,
    joint: Joint,
    labels: torch.Tensor,
    frame_lengths: torch.Tensor,
    label_lengths: torch.Tensor,
    blank: int = 0,
    chunk_frames: int = 16,
) -> torch.Tensor:
    """Compute -ln P(labels | frames) of each utterance, (B,) in float32 (float64 where the inputs are).

    Args:
        encoder_frames: (B, T, J), what the joint network takes of every frame.
        decoder_states: (B, U + 1, J), what it takes of every prefix of the text, the empty one first.
        joint: the rest of the joint network: the sum of the two, (n, J) -> logits (n, V).
        labels: (B, U) token ids; those beyond `label_lengths` are ignored.
        frame_lengths, label_lengths: (B,); a text may be empty, an utterance has one frame at least.
        blank: id of the blank.
        chunk_frames: frames whose logits are in memory at once: about `B * chunk_frames * (U + 1) * V` numbers, a few
            times over.

    Raises:
        ValueError: shapes or lengths do not fit each other, or `chunk_frames` is below 1.
    """
    _check(encoder_frames, decoder_states, labels, frame_lengths, label_lengths, chunk_frames)
    num_frames, num_prefixes = encoder_frames.shape[1], decoder_states.shape[1]
    real_prefix = torch.arange(num_prefixes, device=labels.device) <= label_lengths[:, None]  # (B, U + 1)
    padded = torch.nn.functional.pad(labels.clamp_min(0), (0, 1))
    next_token = torch.where(real_prefix.roll(-1, 1) & (padded >= 0), padded, blank)  # (B, U + 1)

    def arcs(frames: torch.Tensor, states: torch.Tensor, real: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities of the blank and of the next token at the real points of a chunk, (n,) each."""
        row, frame, prefix = real.nonzero(as_tuple=True)
        logits = joint(frames[row, frame] + states[row, prefix])
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        norm = logits.logsumexp(-1)
        return logits[:, blank] - norm, logits.gather(1, next_token[row, prefix, None])[:, 0] - norm

    blanks: list[torch.Tensor] = []
    tokens: list[torch.Tensor] = []
    for begin in range(0, num_frames, chunk_frames):
        frames = encoder_frames[:, begin : begin + chunk_frames]
        place = torch.arange(begin, begin + frames.shape[1], device=labels.device)
        real = (place < frame_lengths[:, None])[:, :, None] & real_prefix[:, None]
        arguments = (frames, decoder_states, real)
        pair = checkpoint(arcs, *arguments, use_reentrant=False) if torch.is_grad_enabled() else arcs(*arguments)
        for store, values in zip((blanks, tokens), pair, strict=True):
            store.append(values.new_zeros(real.shape).masked_scatter(real, values))
    return LatticeLoss.apply(torch.cat(blanks, 1), torch.cat(tokens, 1), frame_lengths, label_lengths)


class LatticeLoss(torch.autograd.Function):
    """-ln of the sum over all paths of a lattice, with its gradient by forward and backward probabilities."""

    @staticmethod
    def forward(
        ctx: Any,
        blanks: torch.Tensor,
        tokens: torch.Tensor,
        frame_lengths: torch.Tensor,
        label_lengths: torch.Tensor,
    ) -> torch.Tensor:
        """Compute the loss, (B,).

        Args:
            blanks, tokens: (B, T, U + 1) log-probabilities of moving on to the next frame, and to the next token.
            frame_lengths, label_lengths: (B,).
        """
        num_frames, num_prefixes = blanks.shape[1:]
        prefix = torch.arange(num_prefixes, device=blanks.device)
        diagonals = torch.arange(num_frames + num_prefixes, device=blanks.device)
        frame = (diagonals[:, None] - prefix)[None]  # (1, N, U + 1): the frame of each point of each diagonal
        frames, texts = frame_lengths[:, None, None], label_lengths[:, None, None]
        inside = (frame >= 0) & (frame < frames) & (prefix <= texts)
        end = (frame == frames) & (prefix == texts)  # behind the last blank

        def on_diagonals(arcs: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
            place = frame.clamp(0, num_frames - 1).expand(len(arcs), -1, -1)
            return arcs.gather(1, place).masked_fill(~allowed, -torch.inf)

        blanks = on_diagonals(blanks, inside)
        tokens = on_diagonals(tokens, inside & (prefix < texts))
        onward = _onward_sums(blanks, tokens, end)
        loss = -onward[:, 0, 0]
        if ctx is not None and any(ctx.needs_input_grad[:2]):
            here = _sums_so_far(blanks, tokens) + loss[:, None, None]
            ahead = torch.nn.functional.pad(onward, (0, 1, 0, 1), value=-torch.inf)[:, 1:]
            passed = [(here + blanks + ahead[..., :-1]).exp(), (here + tokens + ahead[..., 1:]).exp()]
            back = (torch.arange(num_frames, device=blanks.device)[:, None] + prefix).expand(len(loss), -1, -1)
            ctx.save_for_backward(*(-share.gather(1, back) for share in passed))
        return loss

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Multiply the shares of the paths that take each arc by the gradients (B,)."""
        blanks, tokens = ctx.saved_tensors
        gradient = gradients[0][:, None, None]
        return blanks * gradient, tokens * gradient, None, None


def _sums_so_far(blanks: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """ln of the sum over the paths from the beginning to each point: (B, N, U + 1), by diagonals as the arcs are."""
    sums = torch.full_like(blanks, -torch.inf)
    sums[:, 0, 0] = 0
    for diagonal in range(1, blanks.shape[1]):
        by_blank = sums[:, diagonal - 1] + blanks[:, diagonal - 1]
        by_token = (sums[:, diagonal - 1] + tokens[:, diagonal - 1])[:, :-1]
        torch.logaddexp(by_blank[:, 1:], by_token, out=by_blank[:, 1:])
        sums[:, diagonal] = by_blank
    return sums


def _onward_sums(blanks: torch.Tensor, tokens: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
    """ln of the sum over the paths from each point to the end, in the same form."""
    sums = torch.where(end, 0.0, torch.full_like(blanks, -torch.inf))
    for diagonal in range(blanks.shape[1] - 2, -1, -1):
        by_blank = blanks[:, diagonal] + sums[:, diagonal + 1]
        by_token = tokens[:, diagonal, :-1] + sums[:, diagonal + 1, 1:]
        torch.logaddexp(by_blank[:, :-1], by_token, out=by_blank[:, :-1])
        sums[:, diagonal] = torch.logaddexp(sums[:, diagonal], by_blank)  # only one of the two is ever finite
    return sums


def _check(
    encoder_frames: torch.Tensor,
    decoder_states: torch.Tensor,
    labels: torch.Tensor,
    frame_lengths: torch.Tensor,
    label_lengths: torch.Tensor,
    chunk_frames: int,
) -> None:
    batch, frames, width = encoder_frames.shape
    if decoder_states.shape != (batch, labels.shape[1] + 1, width) or labels.shape[0] != batch:
        raise ValueError(
            f"encoder_frames {tuple(encoder_frames.shape)} need decoder_states (batch, labels + 1, width) and labels "
            f"(batch, labels), got {tuple(decoder_states.shape)} and {tuple(labels.shape)}."
        )
    if chunk_frames < 1:
        raise ValueError(f"chunk_frames must be at least 1, got {chunk_frames}.")
    if torch.compiler.is_compiling():
        return
    if bool(((frame_lengths < 1) | (frame_lengths > frames)).any()):
        raise ValueError(f"frame_lengths must lie in [1, {frames}], got {frame_lengths.tolist()}.")
    if bool(((label_lengths < 0) | (label_lengths > labels.shape[1])).any()):
        raise ValueError(f"label_lengths must lie in [0, {labels.shape[1]}], got {label_lengths.tolist()}.")
