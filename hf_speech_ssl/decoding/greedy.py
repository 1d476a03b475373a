"""Greedy CTC decoding: the best token of every frame, a few frames at a time.

Shape letters: B utterances, T frames, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from .collapse import TokenSpan, best_tokens, token_runs
from .decoder import Decoder
from .text import Hypothesis, StreamingText, TextBuilder, make_text_builder


@dataclass
class GreedyState:
    """One utterance that is decoded greedily.

    Attributes:
        builder: its text.
        frames: how many frames have come.
        last_id: token of the last frame; a repeat of it at the next frame is no new token.
        score: log-probability of the best path.
    """

    builder: TextBuilder
    frames: int = 0
    last_id: int = -1
    score: float = 0.0


class GreedyDecoder(Decoder[GreedyState]):
    """The best path, one hypothesis per utterance.

    Args:
        tokenizer: of any CTC model; words get times where it has a word delimiter (`Wav2Vec2CTCTokenizer`), or
            marks the pieces that begin words, as SentencePiece and byte-level BPE do.
        seconds_per_frame: `config.inputs_to_logits_ratio / feature_extractor.sampling_rate`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, seconds_per_frame: float):
        self.tokenizer, self.seconds_per_frame = tokenizer, seconds_per_frame

    def start(self) -> GreedyState:
        return GreedyState(make_text_builder(self.tokenizer, self.seconds_per_frame))

    def step(self, states: Sequence[GreedyState], frames: torch.Tensor, lengths: Sequence[int]) -> None:
        blank = self.tokenizer.pad_token_id
        ids, scores, _ = best_tokens(frames, lengths, blank)
        for state, row, best, length in zip(states, ids, scores, lengths, strict=True):
            if not length:
                continue
            for token, start, end in token_runs(row[:length], blank):
                log_prob = max(best[start:end])
                if start == 0 and token == state.last_id:
                    state.builder.extend(state.frames + end, log_prob)
                else:
                    state.builder.add(TokenSpan(token, state.frames + start, state.frames + end, log_prob))
            state.frames += length
            state.last_id = row[length - 1]
            state.score += sum(best)

    def hypothesis(self, state: GreedyState) -> StreamingText:
        return state.builder.partial()

    def divide(self, state: GreedyState) -> tuple[list[Hypothesis], GreedyState, int]:
        builder, begin = state.builder.divide(state.frames)
        rest = GreedyState(builder, state.frames - begin, state.last_id)
        return self.finish(state), rest, rest.frames

    def finish(self, state: GreedyState) -> list[Hypothesis]:
        text, words = state.builder.finished()
        return [Hypothesis(text, state.score, words)]
