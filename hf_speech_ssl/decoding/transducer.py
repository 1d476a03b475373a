"""Decoding of transducers: greedily here, and what both kinds of search share.

Shape letters: B utterances, T encoder frames, J width of the joint network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..modeling.prediction_network import PredictionState
from ..modeling.transducer_search import greedy_search
from .collapse import TokenSpan
from .decoder import Decoder
from .greedy import GreedyDecoder
from .text import Hypothesis, StreamingText, TextBuilder, make_text_builder


def is_transducer(model: Any) -> bool:
    """Whether a model has this package's transducer head."""
    return hasattr(model, "joint") and hasattr(getattr(model, "decoder", None), "advance")


def greedy_decoder(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, seconds_per_frame: float
) -> Decoder[Any]:
    """The decoder that follows the best path of a model; see [`GreedyDecoder`] for the arguments."""
    if is_transducer(model):
        return TransducerGreedyDecoder(model, tokenizer, seconds_per_frame)
    return GreedyDecoder(tokenizer, seconds_per_frame)


def check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer of another model.

    Raises:
        ValueError: it has another number of tokens, or another blank.
    """
    size, blank = model.config.vocab_size, model.config.pad_token_id
    if (len(tokenizer), tokenizer.pad_token_id) != (size, blank):
        raise ValueError(
            f"The transducer has {size} tokens and token {blank} as its blank; the tokenizer has {len(tokenizer)} and "
            f"the pad token {tokenizer.pad_token_id}: it is another model's."
        )


@dataclass
class TransducerState:
    """One utterance that is decoded greedily.

    Attributes:
        builder: its text.
        prediction: state of the prediction network.
        frames: how many frames have come.
        score: log-probability of the path.
    """

    builder: TextBuilder
    prediction: PredictionState
    frames: int = 0
    score: float = 0.0


class TransducerGreedyDecoder(Decoder[TransducerState]):
    """The best token at every point of the lattice, one hypothesis per utterance.

    A word's times are those of the frames that emitted its first and its last token.

    Args:
        model: a transducer of this package; its prediction and joint networks take part.
        tokenizer: its tokenizer.
        seconds_per_frame: `config.inputs_to_logits_ratio / feature_extractor.sampling_rate`.

    Raises:
        ValueError: the tokenizer is another model's.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, seconds_per_frame: float):
        check_vocabulary(model, tokenizer)
        self.model, self.tokenizer, self.seconds_per_frame = model, tokenizer, seconds_per_frame

    @torch.no_grad()
    def start(self) -> TransducerState:
        network: Any = self.model.decoder
        return TransducerState(make_text_builder(self.tokenizer, self.seconds_per_frame), network.start())

    @torch.no_grad()
    def step(self, states: Sequence[TransducerState], frames: torch.Tensor, lengths: Sequence[int]) -> None:
        frames = frames.to(self.model.device, self.model.dtype)
        for state, path in zip(
            states, greedy_search(self.model, frames, lengths, [state.prediction for state in states]), strict=True
        ):
            for token, frame in path.emissions:
                at = state.frames + frame
                state.builder.add(TokenSpan(token, at, at + 1))
            state.prediction = path.state
            state.frames += path.num_frames
            state.score += path.log_prob

    def hypothesis(self, state: TransducerState) -> StreamingText:
        return state.builder.partial()

    def finish(self, state: TransducerState) -> list[Hypothesis]:
        text, words = state.builder.finished()
        return [Hypothesis(text, state.score, words)]
