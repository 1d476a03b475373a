"""Best-path CTC decoding: from logits or frame ids to token ids and the frames that emitted them.

Shape letters: B utterances, T frames of logits, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray


class TokenSpan(NamedTuple):
    """One decoded token and the frames [start_frame, end_frame) that emitted it."""

    token_id: int
    start_frame: int
    end_frame: int


def greedy_ctc(
    logits_or_ids: torch.Tensor | NDArray[np.generic],
    lengths: torch.Tensor | Sequence[int] | None = None,
    blank_token_id: int = 0,
) -> list[list[int]]:
    """Best-path CTC decoding (Graves et al. 2006, section 3.2): each frame's best token, repeats merged, no blank.

    Args:
        logits_or_ids: floating (B, T, V) logits, or integer (B, T) ids of the best token of each frame.
        lengths: (B,) frames that belong to each utterance; what follows is padding. All T frames unless given.
        blank_token_id: the CTC blank, `config.pad_token_id`.

    Returns:
        B lists of token ids. They are merged already: decode them with `ctc_text`, or with
        `tokenizer.decode(ids, group_tokens=False)`, else a double letter ("ll") is merged a second time.

    Raises:
        TypeError: if the input is no array or tensor of the kinds above.
        ValueError: if the shape is another, a length is outside [0, T], the blank is none of the V tokens, or a
            logit within the lengths is NaN.
    """
    counts, runs = _token_runs(logits_or_ids, lengths, blank_token_id)
    return [part.tolist() for part in runs[:, 0].split(counts)]


def greedy_ctc_spans(
    logits_or_ids: torch.Tensor | NDArray[np.generic],
    lengths: torch.Tensor | Sequence[int] | None = None,
    blank_token_id: int = 0,
) -> list[list[TokenSpan]]:
    """As `greedy_ctc`, with the frames of each token: B lists of `TokenSpan`."""
    counts, runs = _token_runs(logits_or_ids, lengths, blank_token_id)
    return [[TokenSpan(*run) for run in part.tolist()] for part in runs.split(counts)]


def _token_runs(
    logits_or_ids: torch.Tensor | NDArray[np.generic],
    lengths: torch.Tensor | Sequence[int] | None,
    blank_token_id: int,
) -> tuple[list[int], torch.Tensor]:
    """How many tokens each utterance has, and all of them in reading order: rows (token, first frame, frame after)."""
    ids, valid = _best_ids(logits_or_ids, lengths, blank_token_id)
    # Frames past the end count as blank; a blank column on either side lets every run begin and end inside.
    padded = torch.nn.functional.pad(ids.masked_fill(~valid, blank_token_id), (1, 1), value=blank_token_id)
    changes = padded[:, 1:] != padded[:, :-1]  # (B, T + 1); True at t: frame t differs from frame t - 1
    is_token = padded != blank_token_id
    utterance, start = (changes & is_token[:, 1:]).nonzero(as_tuple=True)
    end = (changes & is_token[:, :-1]).nonzero(as_tuple=True)[1]  # of the same runs, in the same order
    tokens = padded[:, 1:][utterance, start]
    return utterance.bincount(minlength=ids.shape[0]).tolist(), torch.stack([tokens, start, end], dim=1)


def _best_ids(
    logits_or_ids: torch.Tensor | NDArray[np.generic],
    lengths: torch.Tensor | Sequence[int] | None,
    blank_token_id: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Checks the input; (B, T) int64 ids on the CPU, and (B, T) bool: is the frame within its utterance."""
    if not isinstance(logits_or_ids, torch.Tensor | np.ndarray):
        raise TypeError(f"Expected a tensor or array of logits or ids, got {type(logits_or_ids).__name__}.")
    values = torch.as_tensor(logits_or_ids).detach()
    is_logits = values.is_floating_point()
    if values.dtype == torch.bool or values.is_complex() or values.ndim != (3 if is_logits else 2):
        raise ValueError(
            "Expected floating logits (batch, frames, vocabulary) or integer ids (batch, frames), got "
            f"{values.dtype} of shape {tuple(values.shape)}; for a single utterance add a batch axis: x[None]."
        )
    batch, frames = values.shape[:2]
    if is_logits and not 0 <= blank_token_id < values.shape[2]:
        raise ValueError(f"blank_token_id {blank_token_id} is none of the {values.shape[2]} tokens of the logits.")
    ends = torch.full((batch,), frames) if lengths is None else torch.as_tensor(lengths).cpu()
    if batch == 0:
        ends = ends.long()  # an empty list comes as a float tensor
    if ends.shape != (batch,) or ends.is_floating_point() or ((ends < 0) | (ends > frames)).any():
        raise ValueError(f"lengths must be {batch} whole numbers in [0, {frames}], got {ends.tolist()}.")
    valid = torch.arange(frames) < ends[:, None]  # (B, T)
    if not is_logits:
        return values.long().cpu(), valid
    if (values.amax(-1).isnan().cpu() & valid).any():  # a maximum over NaN is NaN
        raise ValueError("The logits hold NaN: the model or its input is broken (diverged training, bad audio).")
    return values.argmax(-1).cpu(), valid
