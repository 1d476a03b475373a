"""The CTC collapse of a best path: from logits or frame ids to token ids and the frames that emitted them.

Shape letters: B utterances, T frames of logits, V vocabulary.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

IMPOSSIBLE = -1e4  # log-probability that stands for minus infinity, so that scores stay finite


class TokenSpan(NamedTuple):
    """One decoded token, the frames [start_frame, end_frame) that emitted it, and its log-probability at the best.

    That is `None` where the decoder does not tell it.
    """

    token_id: int
    start_frame: int
    end_frame: int
    log_prob: float | None = None


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
    ids, _, ends = best_tokens(logits_or_ids, lengths, blank_token_id)
    return [
        [TokenSpan(*run) for run in token_runs(row[:end], blank_token_id)] for row, end in zip(ids, ends, strict=True)
    ]


def token_runs(ids: Sequence[int], blank_token_id: int) -> list[tuple[int, int, int]]:
    """Merge the repeats of the frames' best tokens and drop the blanks.

    Args:
        ids: T best tokens of an utterance.

    Returns:
        The tokens in order, as (token, first frame, frame after the last).
    """
    runs, begin = [], 0
    for token, repeats in itertools.groupby(ids):
        end = begin + sum(1 for _ in repeats)
        if token != blank_token_id:
            runs.append((token, begin, end))
        begin = end
    return runs


def best_tokens(
    logits_or_ids: torch.Tensor | NDArray[np.generic],
    lengths: torch.Tensor | Sequence[int] | None,
    blank_token_id: int,
) -> tuple[list[list[int]], list[list[float]], list[int]]:
    """The best token of each frame, (B, T), its logit, (B, lengths), and the frames of each utterance, (B,).

    Arguments and errors as in `greedy_ctc`. Lists, because a streaming step has a few frames only.
    """
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
    ends = _as_lengths(lengths, batch, frames)
    if not is_logits:
        return values.tolist(), [[0.0] * end for end in ends], ends
    best, ids = values.max(-1)
    scores = [
        [one if math.isnan(one) else max(one, IMPOSSIBLE) for one in row[:end]]
        for row, end in zip(best.tolist(), ends, strict=True)
    ]
    if any(map(math.isnan, itertools.chain(*scores))):  # a maximum over NaN is NaN
        raise ValueError("The logits hold NaN: the model or its input is broken (diverged training, bad audio).")
    return ids.tolist(), scores, ends


def _as_lengths(lengths: torch.Tensor | Sequence[int] | None, batch: int, frames: int) -> list[int]:
    if lengths is None:
        return [frames] * batch
    ends = lengths.tolist() if isinstance(lengths, torch.Tensor | np.ndarray) else list(lengths)
    fits = isinstance(ends, list) and len(ends) == batch
    if not fits or not all(isinstance(end, int | np.integer) and 0 <= end <= frames for end in ends):
        raise ValueError(f"lengths must be {batch} whole numbers in [0, {frames}], got {ends}.")
    return ends
