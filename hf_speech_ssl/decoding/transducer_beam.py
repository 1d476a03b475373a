"""Beam search of transducers, with a word n-gram language model or without.

Shape letters: B utterances, T encoder frames, J width of the joint network, V vocabulary, n hypotheses.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..modeling.prediction_network import PredictionState
from ..options import DecodingOptions
from .beam_search import check_sizes, check_weights
from .collapse import TokenSpan
from .decoder import Decoder
from .search_vocabulary import load_word_model
from .text import Hypothesis, StreamingText, TextBuilder, decoded, make_text_builder, word_starts
from .transducer import TransducerGreedyDecoder, check_vocabulary

DEFAULT_BEAM_SIZE = 8


@dataclass(frozen=True)
class FusedScore:
    """What a language model and a word bonus add to a hypothesis.

    Attributes:
        state: of the language model, behind the last complete word.
        word: token ids of the last word, which may still grow.
        total: what the complete words have added.
    """

    state: Any
    word: tuple[int, ...] = ()
    total: float = 0.0


class WordFusion:
    """Scores the words of a hypothesis, each as soon as the next one begins.

    Args:
        tokenizer: says where words begin: a word delimiter, or SentencePiece's mark.
        lm_path: an ARPA file.
        lm_weight, word_bonus: see [`DecodingOptions`].

    Raises:
        ImportError: flashlight-text is not installed.
        OSError, ValueError: the language model cannot be used, or the tokenizer does not say where words begin.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, lm_path: str | Path, lm_weight: float, word_bonus: float
    ) -> None:
        self.tokenizer, self.weight, self.bonus = tokenizer, lm_weight * math.log(10), word_bonus
        self.starts = word_starts(tokenizer)
        if not any(self.starts):
            raise ValueError(
                f"A language model of words needs a tokenizer that marks where words begin; this "
                f"{type(tokenizer).__name__} does not: decode without --lm_path."
            )
        self.indices, self.model = load_word_model(lm_path)

    def reweighted(self, lm_weight: float, word_bonus: float) -> WordFusion:
        """The same with other weights."""
        other = copy.copy(self)
        other.weight, other.bonus = lm_weight * math.log(10), word_bonus
        return other

    def start(self) -> FusedScore:
        return FusedScore(self.model.start(False))

    def extend(self, score: FusedScore, token: int) -> FusedScore:
        """The score behind one more token."""
        if not self.starts[token]:
            return replace(score, word=(*score.word, token))
        return replace(self.complete(score), word=(token,))

    def complete(self, score: FusedScore) -> FusedScore:
        """The score once the last word has ended."""
        text = decoded(score.word, self.tokenizer).strip() if score.word else ""
        state, total = score.state, score.total
        for word in text.split():
            state, log10 = self.model.score(state, self.indices.get(word, len(self.indices)))
            total += self.weight * log10 + self.bonus
        return FusedScore(state, (), total)

    def finish(self, score: FusedScore) -> float:
        """What words and the end of the sentence add."""
        ended = self.complete(score)
        return ended.total + self.weight * self.model.finish(ended.state)[1] if self.weight else ended.total


@dataclass(frozen=True)
class Beam:
    """A hypothesis in the search.

    Attributes:
        tokens, frames: what follows the tokens that all hypotheses share, and the frames that emitted it.
        log_prob: ln of the sum over its alignments that stayed in the beam.
        prediction: state of the prediction network behind it.
        fused: of the language model; `None` without one.
    """

    tokens: tuple[int, ...]
    frames: tuple[int, ...]
    log_prob: float
    prediction: PredictionState
    fused: FusedScore | None

    @property
    def score(self) -> float:
        """What hypotheses are compared by."""
        return self.log_prob + (self.fused.total if self.fused else 0.0)


@dataclass
class TransducerBeamState:
    """One utterance that a beam search decodes.

    Attributes:
        shared: text of the tokens that all hypotheses begin with.
        beams: the hypotheses, the best one first.
        frames: how many frames have come.
    """

    shared: TextBuilder
    beams: list[Beam]
    frames: int = 0


@dataclass
class _Frame:
    """The hypotheses of an utterance at one frame: those that may still grow, and those that have moved on."""

    state: TransducerBeamState
    growing: list[Beam]
    moved: dict[tuple[int, ...], Beam] = field(default_factory=dict)


class TransducerBeamDecoder(Decoder[TransducerBeamState]):
    """The n best hypotheses of an utterance, frame by frame.

    At every frame a hypothesis emits at most `config.max_symbols_per_step` tokens, then the blank, and the best
    `beam_size` hypotheses go on to the next frame. The alignments of a text are summed. Tokens that all hypotheses
    share are final, and leave the search. With a language model the score is

        ln P(tokens | audio) + lm_weight * ln P_LM(words, end of sentence) + word_bonus * words.

    Args:
        model: a transducer of this package.
        tokenizer: its tokenizer.
        seconds_per_frame: `config.inputs_to_logits_ratio / feature_extractor.sampling_rate`.
        options: language model, weights, size of the beam (8 if it is not given).
        num_best: hypotheses returned, at most beam_size.
        beam_threshold: hypotheses whose score is lower than the best one's by more than this do not grow.

    Raises:
        ValueError: the tokenizer is another model's, or an option cannot be used.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        seconds_per_frame: float,
        options: DecodingOptions,
        num_best: int = 1,
        beam_threshold: float = 10.0,
    ) -> None:
        check_vocabulary(model, tokenizer)
        if options.lexicon_path is not None:
            raise ValueError(
                "A transducer's vocabulary is open: --lexicon_path is for CTC models. Leave it out, or give --lm_path."
            )
        self.beam_size = DEFAULT_BEAM_SIZE if options.beam_size is None else options.beam_size
        check_sizes(self.beam_size, num_best)
        if not beam_threshold > 0:
            raise ValueError(f"beam_threshold must be positive, got {beam_threshold}.")
        self.model, self.tokenizer, self.seconds_per_frame = model, tokenizer, seconds_per_frame
        self.num_best, self.beam_threshold = num_best, beam_threshold
        self.fusion: WordFusion | None = None
        if options.lm_path is not None:
            check_weights(options.lm_weight, options.word_bonus)
            self.fusion = WordFusion(tokenizer, options.lm_path, options.lm_weight, options.word_bonus)

    def reweighted(self, lm_weight: float, word_bonus: float) -> TransducerBeamDecoder:
        """The same with other weights, without loading anything again."""
        check_weights(lm_weight, word_bonus)
        other = copy.copy(self)
        if self.fusion is None:
            raise ValueError("There is no language model to weight: give one.")
        other.fusion = self.fusion.reweighted(lm_weight, word_bonus)
        return other

    @torch.no_grad()
    def start(self) -> TransducerBeamState:
        network: Any = self.model.decoder
        first = Beam((), (), 0.0, network.start(), self.fusion.start() if self.fusion else None)
        return TransducerBeamState(make_text_builder(self.tokenizer, self.seconds_per_frame), [first])

    @torch.no_grad()
    def step(self, states: Sequence[TransducerBeamState], frames: torch.Tensor, lengths: Sequence[int]) -> None:
        width = self.model.config.joint_hidden_size
        if frames.ndim != 3 or frames.shape[-1] != width:
            raise ValueError(
                f"A transducer's frames are its pooler_output, (batch, frames, {width}), got {tuple(frames.shape)}."
            )
        if any(frames[row, :length].isnan().any() for row, length in enumerate(lengths)):
            raise ValueError("The frames hold NaN: the model or its input is broken (diverged training, bad audio).")
        frames = frames.to(self.model.device, self.model.dtype)
        for place in range(max(lengths, default=0)):
            rows = [row for row, length in enumerate(lengths) if place < length]
            self._search_frame([states[row] for row in rows], frames[rows, place])
            for row in rows:  # at every frame, so that the frames of shared tokens do not depend on the pieces
                self._share(states[row])

    def _search_frame(self, states: Sequence[TransducerBeamState], frames: torch.Tensor) -> None:
        """Take one frame of each of some utterances, (B, J), into their states."""
        utterances = [_Frame(state, state.beams) for state in states]
        most = self.model.config.max_symbols_per_step
        for emitted in range(most + 1):
            places = [place for place, one in enumerate(utterances) for _ in one.growing]
            beams = [beam for one in utterances for beam in one.growing]
            if not beams:
                break
            joint: Any = self.model.joint
            outputs = torch.stack([beam.prediction.output for beam in beams])
            log_probs = joint(frames[places] + outputs).float().log_softmax(-1)  # (n, V)
            self._move_on(utterances, places, beams, log_probs)
            grown = [] if emitted == most else self._grow(utterances, places, beams, log_probs)
            for place, one in enumerate(utterances):
                one.growing = [beam for at, beam in grown if at == place]
        for one in utterances:
            one.state.beams = self._best(one.moved.values())
            one.state.frames += 1

    def _move_on(
        self, utterances: Sequence[_Frame], places: Sequence[int], beams: Sequence[Beam], log_probs: torch.Tensor
    ) -> None:
        """Let every hypothesis emit the blank; two alignments of the same text are added."""
        blanks = log_probs[:, self.model.config.pad_token_id].tolist()
        for place, beam, blank in zip(places, beams, blanks, strict=True):
            moved = replace(beam, log_prob=beam.log_prob + blank)
            if (other := utterances[place].moved.get(beam.tokens)) is not None:
                better = max(moved, other, key=lambda one: one.log_prob)
                moved = replace(better, log_prob=float(np.logaddexp(moved.log_prob, other.log_prob)))
            utterances[place].moved[beam.tokens] = moved

    def _grow(
        self, utterances: Sequence[_Frame], places: Sequence[int], beams: Sequence[Beam], log_probs: torch.Tensor
    ) -> list[tuple[int, Beam]]:
        """The best hypotheses with one token more at this frame, each with the place of its utterance."""
        blank, size = self.model.config.pad_token_id, log_probs.shape[-1]
        open_tokens = log_probs.clone()
        open_tokens[:, blank] = -torch.inf
        values, tokens = open_tokens.topk(min(self.beam_size, size - 1))
        candidates: list[list[Beam]] = [[] for _ in utterances]
        floors = [self._floor(one) for one in utterances]
        for place, beam, row, ids in zip(places, beams, values.tolist(), tokens.tolist(), strict=True):
            at = utterances[place].state.frames
            for value, token in zip(row, ids, strict=True):
                if beam.score + value <= floors[place] and self.fusion is None:
                    break  # the others are worse
                grown = Beam(
                    (*beam.tokens, token),
                    (*beam.frames, at),
                    beam.log_prob + value,
                    beam.prediction,
                    self.fusion.extend(beam.fused, token) if self.fusion and beam.fused else None,
                )
                if grown.score > floors[place]:
                    candidates[place].append(grown)
        chosen = [(place, beam) for place, found in enumerate(candidates) for beam in self._best(found)]
        if not chosen:
            return []
        network: Any = self.model.decoder
        moved = network.advance([beam.prediction for _, beam in chosen], [beam.tokens[-1] for _, beam in chosen])
        return [(place, replace(beam, prediction=state)) for (place, beam), state in zip(chosen, moved, strict=True)]

    def _floor(self, utterance: _Frame) -> float:
        """The score that a hypothesis must exceed to grow: what comes after it only lowers it."""
        scores = sorted((beam.score for beam in utterance.moved.values()), reverse=True)
        worst = scores[self.beam_size - 1] if len(scores) >= self.beam_size else -math.inf
        return max(worst, scores[0] - self.beam_threshold)

    def _best(self, beams: Iterable[Beam]) -> list[Beam]:
        return sorted(beams, key=lambda beam: -beam.score)[: self.beam_size]

    def _share(self, state: TransducerBeamState) -> None:
        """Move the tokens that all hypotheses begin with to the final text."""
        first = state.beams[0]
        same = 0
        while all(len(one.tokens) > same and one.tokens[same] == first.tokens[same] for one in state.beams):
            same += 1
        if not same:
            return
        for token, frame in zip(first.tokens[:same], first.frames[:same], strict=True):
            state.shared.add(TokenSpan(token, frame, frame + 1))
        state.beams = [replace(one, tokens=one.tokens[same:], frames=one.frames[same:]) for one in state.beams]

    def _with(self, state: TransducerBeamState, beam: Beam) -> TextBuilder:
        """The text of a hypothesis."""
        builder = state.shared.fork()
        for token, frame in zip(beam.tokens, beam.frames, strict=True):
            builder.add(TokenSpan(token, frame, frame + 1))
        return builder

    def hypothesis(self, state: TransducerBeamState) -> StreamingText:
        """The best text so far; the words that all hypotheses share are final."""
        return StreamingText(self._with(state, state.beams[0]).partial().text, state.shared.partial().final)

    def finish(self, state: TransducerBeamState) -> list[Hypothesis]:
        ended = []
        for beam in state.beams:
            added = self.fusion.finish(beam.fused) if self.fusion and beam.fused else 0.0
            text, words = self._with(state, beam).finished()
            ended.append(Hypothesis(text, beam.log_prob + added, words))
        best: dict[str, Hypothesis] = {}
        for one in sorted(ended, key=lambda one: -one.score):
            best.setdefault(one.text, one)  # token sequences that differ can give the same text
        return list(best.values())[: self.num_best]


def make_transducer_decoder(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    seconds_per_frame: float,
    options: DecodingOptions,
    num_best: int = 1,
) -> Decoder[Any]:
    """Beam search where a language model, a beam or several hypotheses are asked for; greedy decoding elsewhere.

    Arguments and errors as in [`TransducerBeamDecoder`].
    """
    asked = (options.lm_path, options.lexicon_path, options.beam_size)
    if num_best == 1 and asked == (None, None, None):
        return TransducerGreedyDecoder(model, tokenizer, seconds_per_frame)
    return TransducerBeamDecoder(model, tokenizer, seconds_per_frame, options, num_best)
