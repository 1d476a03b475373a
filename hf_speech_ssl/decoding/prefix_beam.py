"""CTC prefix beam search that goes on live: any word can be written, hot words change while it runs.

Shape letters: B utterances, T frames, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from ..options import DecodingOptions
from .beam_search import check_sizes, check_weights
from .collapse import IMPOSSIBLE, TokenSpan, best_tokens
from .decoder import Decoder
from .hot_words import HotPlace, HotWords
from .text import LONGEST_WORD, Hypothesis, StreamingText, TextBuilder, make_text_builder, word_starts
from .transducer_beam import FusedScore, WordFusion

DEFAULT_BEAM_SIZE = 16
_NONE = -math.inf
_SURE_BLANK = math.log(0.999)  # frames with a likelier blank are taken for nothing else
_LEAST_TOKEN = -14.0  # ln probability of the tokens that are tried
_MOST_TOKENS = 20  # of a frame, that are tried
_LEAST_BEAM = 30.0  # by which a hypothesis may be worse than the best one
_TENTATIVE_SECONDS = 4.0  # after which the best hypothesis has its first word for good


@dataclass
class Prefix:
    """A token sequence in the search; the sum over its alignments is kept in two parts.

    Attributes:
        ids: its tokens, behind those that all hypotheses share.
        spans: these tokens with the frames that emitted them in its likeliest alignment.
        fused: of the language model; `None` without one.
        hot: of the hot words.
        blank, token: ln probability of the alignments that end in a blank, and in the last token.
        likeliest: ln probability of what `spans` comes from, among what the last frame led to.
    """

    ids: tuple[int, ...] = ()
    spans: tuple[TokenSpan, ...] = ()
    fused: FusedScore | None = None
    hot: HotPlace = field(default_factory=HotPlace)
    blank: float = _NONE
    token: float = _NONE
    likeliest: float = _NONE

    @property
    def log_prob(self) -> float:
        """Of all alignments."""
        return _add(self.blank, self.token)

    @property
    def score(self) -> float:
        """What hypotheses are compared by."""
        return self.log_prob + (self.fused.total if self.fused else 0.0) + self.hot.bonus

    def take(self, log_prob: float, spans: tuple[TokenSpan, ...], in_blank: bool) -> None:
        """Add some alignments, all of which have these spans."""
        if in_blank:
            self.blank = _add(self.blank, log_prob)
        else:
            self.token = _add(self.token, log_prob)
        if log_prob > self.likeliest:
            self.likeliest, self.spans = log_prob, spans


@dataclass
class PrefixState:
    """One utterance.

    Attributes:
        shared: text of the tokens that all hypotheses begin with.
        hot_words: phrases that its search prefers.
        prefixes: the hypotheses, the best one first.
        last_id: last token of `shared`, or -1.
        frames: how many frames have come.
    """

    shared: TextBuilder
    hot_words: HotWords | None
    prefixes: list[Prefix]
    last_id: int = -1
    frames: int = 0


class PrefixBeamDecoder(Decoder[PrefixState]):
    """The best hypothesis of CTC prefix beam search (Hannun et al. 2014), word by word as soon as it is certain.

    Scores are those of [`BeamSearchDecoder`], but no list of words closes the vocabulary: what the language model does
    not know counts as its `<unk>`, and the boosts of hot words are added. A word is final once all hypotheses in the
    beam have it, and at the latest 4 s after it began. What a frame leads to depends on the frames before it alone, so
    that pieces of any length give the same text.

    Args:
        tokenizer: of a CTC model; says where words begin or end.
        seconds_per_frame: `config.inputs_to_logits_ratio / feature_extractor.sampling_rate`.
        options: an ARPA language model, the weights, and the size of the beam, 16 by default; no lexicon.
        hot_words: boosts by phrase of every utterance, see [`HotWords`]; `set_hot_words` gives an utterance its own.
        num_best: hypotheses that `finish` returns at most.

    Raises:
        ImportError, OSError, ValueError: the language model, a phrase, an option or the tokenizer cannot be used.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        seconds_per_frame: float,
        options: DecodingOptions | None = None,
        hot_words: Mapping[str, float] | None = None,
        num_best: int = 1,
    ) -> None:
        options = options or DecodingOptions()
        if options.lexicon_path is not None:
            raise ValueError("A live search has no closed list of words: leave out --lexicon_path.")
        self.beam_size = DEFAULT_BEAM_SIZE if options.beam_size is None else options.beam_size
        check_sizes(self.beam_size, num_best)
        check_weights(options.lm_weight, options.word_bonus)
        self.starts = word_starts(tokenizer)
        if not any(self.starts):
            raise ValueError(f"The {type(tokenizer).__name__} does not say where words begin: decode greedily.")
        self.tokenizer, self.seconds_per_frame, self.num_best = tokenizer, seconds_per_frame, num_best
        self.blank = tokenizer.pad_token_id
        self.delimiter = getattr(tokenizer, "word_delimiter_token_id", -1)
        self.fusion = None
        if options.lm_path is not None:
            self.fusion = WordFusion(tokenizer, options.lm_path, options.lm_weight, options.word_bonus)
        self.hot_words = HotWords(tokenizer, hot_words) if hot_words else None

    def start(self) -> PrefixState:
        first = Prefix(fused=self.fusion.start() if self.fusion else None, blank=0.0)
        return PrefixState(make_text_builder(self.tokenizer, self.seconds_per_frame), self.hot_words, [first])

    def set_hot_words(self, state: PrefixState, phrases: Mapping[str, float]) -> None:
        hot_words = HotWords(self.tokenizer, phrases) if phrases else None
        state.hot_words = hot_words
        for prefix in state.prefixes:  # the last word may have begun before its phrase came
            begin = max((place for place, token in enumerate(prefix.ids) if self.starts[token]), default=0)
            before = prefix.ids[begin - 1] if begin else state.last_id
            prefix.hot = HotPlace(prefix.hot.earned)
            for token in prefix.ids[begin:]:
                prefix.hot, before = self._hot(state, prefix.hot, before, token), token

    def step(self, states: Sequence[PrefixState], frames: torch.Tensor, lengths: Sequence[int]) -> None:
        best_tokens(frames, lengths, self.blank)  # for its checks
        if frames.shape[2] < len(self.starts):
            raise ValueError(
                f"The tokenizer has {len(self.starts)} tokens, the model {frames.shape[2]}: it is another model's."
            )
        rows = frames.detach().float().cpu().clamp(min=IMPOSSIBLE).double().numpy()
        for state, row, length in zip(states, rows, lengths, strict=True):
            for log_probs in row[:length]:
                self._take(state, log_probs)

    def hypothesis(self, state: PrefixState) -> StreamingText:
        tentative = self._built(state, state.prefixes[0]).partial()
        certain = state.shared.partial()
        return replace(tentative, final=certain.final, num_final_words=certain.num_final_words)

    def divide(self, state: PrefixState) -> tuple[list[Hypothesis], PrefixState, int]:
        best, builder = state.prefixes[0], self._built(state, state.prefixes[0])
        _, begin = builder.divide(state.frames)
        kept = sum(span.start_frame >= begin for span in best.spans)
        ended = len(best.ids) - kept
        text, words = builder.finished()
        # Hypotheses in the beam differ at their end, if at all: the best one goes on alone.
        after = replace(
            best,
            ids=best.ids[ended:],
            spans=tuple(_moved(span, -begin) for span in best.spans[ended:]),
            hot=replace(best.hot, earned=0.0),
            blank=best.blank - best.log_prob,
            token=best.token - best.log_prob,
        )
        last_id = best.ids[ended - 1] if ended else state.last_id
        fresh = make_text_builder(self.tokenizer, self.seconds_per_frame)
        following = PrefixState(fresh, state.hot_words, [after], last_id, state.frames - begin)
        return [Hypothesis(text, best.score, words)], following, following.frames

    def finish(self, state: PrefixState) -> list[Hypothesis]:
        hypotheses: dict[str, Hypothesis] = {}
        for prefix in sorted(state.prefixes, key=lambda one: self._final_score(state, one), reverse=True):
            text, words = self._built(state, prefix).finished()
            hypotheses.setdefault(text, Hypothesis(text, self._final_score(state, prefix), words))
        return list(hypotheses.values())[: self.num_best]

    def _final_score(self, state: PrefixState, prefix: Prefix) -> float:
        score = prefix.log_prob
        if self.fusion is not None and prefix.fused is not None:
            score += self.fusion.finish(prefix.fused)
        return score + (state.hot_words.finish(prefix.hot) if state.hot_words else prefix.hot.earned)

    def _built(self, state: PrefixState, prefix: Prefix) -> TextBuilder:
        builder = state.shared.fork()
        for span in prefix.spans:
            builder.add(span)
        return builder

    def _take(self, state: PrefixState, log_probs: NDArray[np.float64]) -> None:
        """One frame, (V,)."""
        frame, blank = state.frames, float(log_probs[self.blank])
        state.frames += 1
        if blank > _SURE_BLANK:
            for prefix in state.prefixes:
                prefix.blank, prefix.token = prefix.log_prob + blank, _NONE
            return
        likely = np.flatnonzero(log_probs > _LEAST_TOKEN)
        likely = likely[np.argsort(-log_probs[likely], kind="stable")][: _MOST_TOKENS + 1].tolist()
        tokens = [(token, float(log_probs[token])) for token in likely if token != self.blank]
        following: dict[tuple[int, ...], Prefix] = {}
        for prefix in state.prefixes:
            self._extend(state, prefix, following, (blank, tokens, frame))
        ranked = sorted(following.values(), key=lambda one: one.score, reverse=True)[: self.beam_size]
        state.prefixes = [one for one in ranked if one.score >= ranked[0].score - _LEAST_BEAM]
        self._share(state)

    def _extend(
        self,
        state: PrefixState,
        prefix: Prefix,
        following: dict[tuple[int, ...], Prefix],
        frame: tuple[float, list[tuple[int, float]], int],
    ) -> None:
        """What a frame makes of a prefix: the prefix itself, and longer ones."""
        blank, tokens, at = frame
        total, last = prefix.log_prob, prefix.ids[-1] if prefix.ids else state.last_id
        same = following.get(prefix.ids)
        if same is None:
            same = following[prefix.ids] = Prefix(prefix.ids, prefix.spans, prefix.fused, prefix.hot)
        same.take(total + blank, prefix.spans, in_blank=True)
        for token, log_prob in tokens:
            if token == self.delimiter and last in (-1, token):  # no word stands between them
                same.take(total + log_prob, prefix.spans, in_blank=True)
                continue
            begin = total
            if token == last:
                begin = prefix.blank
                same.take(prefix.token + log_prob, _lengthened(prefix.spans, at, log_prob, blank), in_blank=False)
            if begin == _NONE:
                continue
            ids = (*prefix.ids, token)
            longer = following.get(ids)
            if longer is None:
                fused = self.fusion.extend(prefix.fused, token) if self.fusion and prefix.fused else None
                longer = following[ids] = Prefix(ids, (), fused, self._hot(state, prefix.hot, last, token))
            spans = (*prefix.spans, TokenSpan(token, at, at + 1, log_prob))
            longer.take(begin + log_prob, spans, in_blank=False)

    def _hot(self, state: PrefixState, place: HotPlace, before: int, token: int) -> HotPlace:
        if state.hot_words is None:
            return place
        if self.delimiter == -1:
            begins_word = self.starts[token] or before == -1
        else:
            begins_word = token != self.delimiter and before in (-1, self.delimiter)
        return state.hot_words.advance(place, token, begins_word)

    def _share(self, state: PrefixState) -> None:
        """Let go of the words that all hypotheses have, and of all but the best one's where they take too long."""
        while end := self._first_word(state.prefixes[0].ids):
            best = state.prefixes[0]
            if any(one.ids[:end] != best.ids[:end] for one in state.prefixes):
                tentative = (state.frames - best.spans[0].start_frame) * self.seconds_per_frame
                if tentative < _TENTATIVE_SECONDS:
                    return
                state.prefixes = [one for one in state.prefixes if one.ids[:end] == best.ids[:end]]
            for span in best.spans[:end]:
                state.shared.add(span)
            state.last_id = best.ids[end - 1]
            for one in state.prefixes:
                one.ids, one.spans = one.ids[end:], one.spans[end:]

    def _first_word(self, ids: tuple[int, ...]) -> int:
        """Tokens up to where the second word begins; 0 where there is only one."""
        for place, token in enumerate(ids):
            if token == self.delimiter:
                return place + 1
            if place and self.starts[token]:
                return place
        return 1 if len(ids) > LONGEST_WORD else 0  # of a script without spaces


def _lengthened(spans: tuple[TokenSpan, ...], frame: int, log_prob: float, blank: float) -> tuple[TokenSpan, ...]:
    """The spans if the last token is emitted again; a blank that is likelier ends it."""
    if not spans or spans[-1].end_frame != frame or log_prob < blank:
        return spans
    last = spans[-1]
    best = log_prob if last.log_prob is None else max(last.log_prob, log_prob)
    return (*spans[:-1], last._replace(end_frame=frame + 1, log_prob=best))


def _moved(span: TokenSpan, frames: int) -> TokenSpan:
    return span._replace(start_frame=span.start_frame + frames, end_frame=span.end_frame + frames)


def _add(first: float, second: float) -> float:
    """The ln of the sum of two probabilities."""
    if first < second:
        first, second = second, first
    return first if second == _NONE else first + math.log1p(math.exp(second - first))
