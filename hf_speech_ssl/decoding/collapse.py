"""The CTC collapse of a best path: from logits or frame ids to token ids and the frames that emitted them.

Shape letters: B utterances, T frames of logits, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

IMPOSSIBLE = -1e4  # log-probability that stands for minus infinity, so that scores stay finite


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
    return [[span.token_id for span in spans] for spans in greedy_ctc_spans(logits_or_ids, lengths, blank_token_id)]


def greedy_ctc_spans(
    logits_or_ids: torch.Tensor | NDArray[np.generic],
    lengths: torch.Tensor | Sequence[int] | None = None,
    blank_token_id: int = 0,
) -> list[list[TokenSpan]]:
    """As `greedy_ctc`, with the frames of each token: B lists of `TokenSpan`."""
    ids, _ = best_tokens(logits_or_ids, lengths, blank_token_id)
    ends = [ids.shape[1]] * len(ids) if lengths is None else torch.as_tensor(lengths).tolist()
    return [[TokenSpan(*run) for run in runs] for runs in token_runs(ids, ends, blank_token_id)]


def token_runs(ids: NDArray[np.int64], lengths: Sequence[int], blank_token_id: int) -> list[list[list[int]]]:
    """Merge the repeats of the frames' best tokens and drop the blanks.

    Args:
        ids: (B, T) best token of each frame.
        lengths: B numbers of frames that belong to each utterance.

    Returns:
        For each utterance its tokens in order, as [token, first frame, frame after the last].
    """
    batch, frames = ids.shape
    # Frames past the end count as blank; a blank column on either side lets every run begin and end inside.
    padded = np.full((batch, frames + 2), blank_token_id, dtype=np.int64)
    padded[:, 1:-1] = np.where(np.arange(frames) < np.asarray(lengths).reshape(-1, 1), ids, blank_token_id)
    changes = padded[:, 1:] != padded[:, :-1]  # (B, T + 1); True at t: frame t differs from frame t - 1
    is_token = padded != blank_token_id
    utterance, start = np.nonzero(changes & is_token[:, 1:])
    end = np.nonzero(changes & is_token[:, :-1])[1]  # of the same runs, in the same order
    runs = np.stack([padded[:, 1:][utterance, start], start, end], axis=1).tolist()
    edges = np.searchsorted(utterance, np.arange(batch + 1)).tolist()
    return [runs[begin:until] for begin, until in pairwise(edges)]


def best_tokens(
    logits_or_ids: torch.Tensor | NDArray[np.generic],
    lengths: torch.Tensor | Sequence[int] | None,
    blank_token_id: int,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The best token of each frame (B, T), and its logit (B, T); arguments and errors as in `greedy_ctc`."""
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
    given = lengths.cpu().numpy() if isinstance(lengths, torch.Tensor) else lengths
    ends = np.full(batch, frames) if given is None else np.asarray(given)
    if batch == 0:
        ends = ends.astype(np.int64)  # an empty list comes as floats
    if ends.shape != (batch,) or ends.dtype.kind != "i" or ((ends < 0) | (ends > frames)).any():
        raise ValueError(f"lengths must be {batch} whole numbers in [0, {frames}], got {ends.tolist()}.")
    if not is_logits:
        return values.long().cpu().numpy(), np.zeros((batch, frames), dtype=np.float32)
    best, ids = (part.cpu() for part in values.max(-1))
    scores = best.float().numpy()
    broken = np.isnan(scores)  # a maximum over NaN is NaN
    if broken.any() and (broken & (np.arange(frames) < ends[:, None])).any():
        raise ValueError("The logits hold NaN: the model or its input is broken (diverged training, bad audio).")
    return ids.numpy(), np.maximum(scores, IMPOSSIBLE)
