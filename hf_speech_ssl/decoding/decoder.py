"""What a decoder is: the way from what a model computes for each frame to text, a few frames at a time.

Shape letters: B utterances, T frames, V vocabulary, J width of a transducer's joint network.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Generic, TypeVar

import torch

from .text import Hypothesis, StreamingText

State = TypeVar("State")


def decoder_frames(output: Mapping[str, Any]) -> torch.Tensor:
    """What a decoder takes of a model's output: (B, T, V or J), see [`Decoder`]."""
    if "pooler_output" in output:
        frames: torch.Tensor = output["pooler_output"]
        return frames
    log_probs: torch.Tensor = output["logits"].float().log_softmax(-1)
    return log_probs


class Decoder(ABC, Generic[State]):
    """Decodes utterances whose frames come at once or in pieces; where the pieces end changes nothing.

        state = decoder.start()
        for frames in pieces:  # (1, T, V or J) each
            decoder.step([state], frames, lengths=[frames.shape[1]])
            print(decoder.hypothesis(state).text)
        best, *others = decoder.finish(state)

    The decoder itself does not change: all that belongs to an utterance is in its state, so that one decoder serves
    any number of them. Steps take several states at once because a model that has a network in its decoder, such as a
    transducer, needs them in a batch.

    What a frame is depends on the model, and `decoder_frames` tells: log-probabilities of V tokens of a CTC model, the
    J features of an encoder frame (`pooler_output`) of a transducer, whose decoder has the rest of the model.
    """

    @abstractmethod
    def start(self) -> State:
        """The state of an utterance that has no frame yet."""

    @abstractmethod
    def step(self, states: Sequence[State], frames: torch.Tensor, lengths: Sequence[int]) -> None:
        """Take the next frames of some utterances into their states.

        Args:
            states: B states, each of another utterance.
            frames: (B, T, V or J).
            lengths: B numbers of frames that belong to each utterance; what follows is padding.

        Raises:
            ValueError: the frames do not fit the decoder, or hold NaN. The states are as before then.
        """

    @abstractmethod
    def hypothesis(self, state: State) -> StreamingText:
        """The text of an utterance so far."""

    @abstractmethod
    def finish(self, state: State) -> list[Hypothesis]:
        """The hypotheses of an utterance that has ended, the best one first, at least one. Its state is used up."""

    def set_hot_words(self, state: State, phrases: Mapping[str, float]) -> None:
        """Prefer phrases from the next frame on, instead of those before.

        Args:
            phrases: boosts by phrase; none for no hot words.

        Raises:
            ValueError: the decoder knows no hot words, or a phrase cannot be spelt.
        """
        if phrases:
            raise ValueError(
                f"{type(self).__name__} knows no hot words: a CTC model with PrefixBeamDecoder does "
                f"(hf-speech-ssl stream --hot_words)."
            )

    def divide(self, state: State) -> tuple[list[Hypothesis], State, int]:
        """End an utterance whose audio goes on, and begin the next one. No token is lost.

        Returns:
            The hypotheses of the utterance that ends, the state of the next one, and how many of the frames that have
            come belong to that: a word that was not yet final may be left to it. The old state is used up.
        """
        return self.finish(state), self.start(), 0

    def __call__(self, frames: torch.Tensor, lengths: torch.Tensor | Sequence[int]) -> list[list[Hypothesis]]:
        """Decode whole utterances.

        Args:
            frames: (B, T, V or J).
            lengths: (B,) frames of each utterance.

        Returns:
            The hypotheses of each utterance, as `finish` returns them.
        """
        states = [self.start() for _ in range(len(frames))]
        self.step(states, frames, torch.as_tensor(lengths).tolist())
        return [self.finish(state) for state in states]
