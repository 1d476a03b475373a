"""Greedy decoding of transducers, for utterances whose frames come at once or in pieces.

Shape letters: B utterances, T encoder frames, J joint width, V vocabulary, K frames looked at together, n utterances
that are not done.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from .prediction_network import PredictionState

_FRAMES_AT_ONCE = 8  # looked at together for the next token; about as many as lie between two tokens


class Emission(NamedTuple):
    """A token and the frame that emitted it."""

    token: int
    frame: int


@dataclass
class GreedyPath:
    """The best path of an utterance, as far as its frames have come.

    Attributes:
        state: of the prediction network, behind the last token.
        emissions: its tokens.
        num_frames: frames of this call.
        log_prob: of the path, blanks included.
    """

    state: PredictionState
    emissions: list[Emission] = field(default_factory=list)
    num_frames: int = 0
    log_prob: float = 0.0

    @dataclass
    class Logits:
        """Logits of a path's steps, one piece (steps, V) after the other."""

        between: torch.Tensor  # (1, V), put between two tokens of a frame
        pieces: list[torch.Tensor] = field(default_factory=list)
        after_token: bool = False

        def add(self, logits: torch.Tensor, with_token: bool) -> None:
            """Append steps, all of them blanks but perhaps the last."""
            if self.after_token and len(logits) == with_token:
                self.pieces.append(self.between)
            self.pieces.append(logits)
            self.after_token = with_token

    def steps(self, blank: int) -> list[tuple[int, int]]:
        """The path as (token, frames to move on): a token stays at its frame, a blank moves on."""
        steps, frame = [], 0
        for token, at in self.emissions:
            steps += [(blank, 1)] * (at - frame) + [(token, 0)]
            frame = at
        return steps + [(blank, 1)] * (self.num_frames - frame)


def greedy_search(
    model: Any,
    frames: torch.Tensor,
    lengths: Sequence[int],
    states: Sequence[PredictionState],
    logits_of: Sequence[GreedyPath.Logits] | None = None,
) -> list[GreedyPath]:
    """Follow the best token at every point of the lattice, until the frames are used up.

    A frame emits tokens until the blank is best, or `config.max_symbols_per_step` have come. Frames up to the next
    token all have the same prefix, so that several are looked at together.

    Args:
        model: a `ConformerForRNNT`.
        frames: (B, T, J), its `pooler_output`.
        lengths: B numbers of frames that belong to each utterance.
        states: B states of the prediction network.
        logits_of: where the logits of each path's steps go.

    Returns:
        B paths; frames count from 0.

    Raises:
        ValueError: the frames hold NaN, or have another width.
    """
    blank, most = model.config.pad_token_id, model.config.max_symbols_per_step
    if frames.ndim != 3 or frames.shape[-1] != model.config.joint_hidden_size:
        raise ValueError(
            f"A transducer's frames are its pooler_output, (batch, frames, {model.config.joint_hidden_size}), got "
            f"{tuple(frames.shape)}."
        )
    paths = [GreedyPath(state, num_frames=length) for state, length in zip(states, lengths, strict=True)]
    place, emitted = [0] * len(paths), [0] * len(paths)  # the frame of each utterance, and its tokens at that frame
    while rows := [row for row, length in enumerate(lengths) if place[row] < length]:
        count = min(_FRAMES_AT_ONCE, max(lengths[row] - place[row] for row in rows))
        windows = torch.stack([_window(frames[row], place[row], count) for row in rows])
        logits = model.joint(windows + torch.stack([paths[row].state.output for row in rows])[:, None])  # (n, K, V)
        best, tokens = logits.float().max(-1)
        log_probs = (best - logits.float().logsumexp(-1)).tolist()
        emitting, chosen = [], []
        for index, (row, candidates) in enumerate(zip(rows, tokens.tolist(), strict=True)):
            seen = candidates[: lengths[row] - place[row]]
            blanks = next((k for k, token in enumerate(seen) if token != blank), len(seen))
            with_token = blanks < len(seen)
            paths[row].log_prob += sum(log_probs[index][: blanks + with_token])
            if logits_of is not None:
                logits_of[row].add(logits[index, : blanks + with_token], with_token)
            place[row] += blanks
            emitted[row] = 0 if blanks else emitted[row]
            if with_token:
                paths[row].emissions.append(Emission(seen[blanks], place[row]))
                emitted[row] += 1
                emitting.append(row)
                chosen.append(seen[blanks])
                if emitted[row] == most:
                    place[row], emitted[row] = place[row] + 1, 0
        if emitting:
            for row, state in zip(
                emitting, model.decoder.advance([paths[r].state for r in emitting], chosen), strict=True
            ):
                paths[row].state = state
    if any(path.log_prob != path.log_prob for path in paths):
        raise ValueError("The frames hold NaN: the model or its input is broken (diverged training, bad audio).")
    return paths


def _window(frames: torch.Tensor, begin: int, count: int) -> torch.Tensor:
    """`count` frames from `begin` on, zeros behind the last one."""
    window = frames[begin : begin + count]
    return window if len(window) == count else torch.nn.functional.pad(window, (0, 0, 0, count - len(window)))
