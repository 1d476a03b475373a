"""CTC beam search over flashlight-text, with a lexicon and a word n-gram language model or without either.

Shape letters: B utterances, T frames of logits, V vocabulary.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase, Wav2Vec2CTCTokenizer

from ..options import DecodingOptions
from .collapse import IMPOSSIBLE, TokenSpan, best_tokens, greedy_ctc, greedy_ctc_spans
from .cutting import PartCutter
from .decoder import Decoder
from .greedy import GreedyDecoder
from .search_vocabulary import import_flashlight, load_search_vocabulary
from .text import (
    Hypothesis,
    StreamingText,
    TimedText,
    ctc_text,
    join_hypotheses,
    move_hypothesis,
    word_times,
)

DEFAULT_BEAM_SIZE = 50  # hypotheses
PART_SECONDS = 60.0  # up to twice as much is searched at once; longer recordings are cut


def make_decoder(
    tokenizer: PreTrainedTokenizerBase,
    seconds_per_frame: float,
    options: DecodingOptions,
    num_best: int = 1,
) -> Decoder[Any]:
    """Beam search with the language model and the lexicon that are given; greedy decoding where there is neither.

    Greedy decoding makes no use of `lm_weight`, `word_bonus` and `beam_size`, and has one hypothesis: for a `num_best`
    above 1 there is a beam search without language model and lexicon. Arguments and errors as in
    [`BeamSearchDecoder`].
    """
    check_sizes(DEFAULT_BEAM_SIZE if options.beam_size is None else options.beam_size, num_best)
    check_weights(options.lm_weight, options.word_bonus)
    if options.lm_path is None and options.lexicon_path is None:
        if num_best == 1:
            return GreedyDecoder(tokenizer, seconds_per_frame)
        options = replace(options, word_bonus=0.0)
    return BeamSearchDecoder(tokenizer, seconds_per_frame, options, num_best)


@dataclass
class BeamState:
    """One utterance that a beam search decodes, in parts of at most two minutes.

    Attributes:
        search: flashlight's decoder, in the middle of the current part.
        frames: pieces (T, V) of the current part.
        searched: how many of its frames the search has seen.
        before: the best hypothesis of the parts before it.
        first_frame: of the current part.
        begins_word: whether a word ended with the part before it.
    """

    search: Any
    frames: list[NDArray[np.float32]] = field(default_factory=list)
    searched: int = 0
    before: Hypothesis | None = None
    first_frame: int = 0
    begins_word: bool = True

    @property
    def num_frames(self) -> int:
        """Frames of the current part."""
        return sum(map(len, self.frames))


class BeamSearchDecoder(Decoder[BeamState]):
    r"""The n best hypotheses of an utterance by CTC prefix beam search.

    The score of a text is

        ln P_CTC(text) + lm_weight * ln P_LM(text, end of sentence) + word_bonus * words,

    P_CTC being the sum over all alignments of the text that stayed in the beam. Word times are those of the best
    alignment.

    With a lexicon or a language model the vocabulary is closed: nothing but the lexicon's words is written; without a
    lexicon these are the words of the (ARPA) language model that the tokenizer can spell. A word that the language
    model does not know counts as its `<unk>`. A last word that is still unfinished when the audio ends is left out, at
    a cost of 10,000. With neither, all that the tokenizer can spell is open, and texts are ranked by P_CTC alone.

    A recording of more than two minutes is cut where a word begins, after one to two minutes at the longest pause, and
    the best hypotheses of its parts are joined. The search takes a cut for the end of a sentence, and finds the one
    best hypothesis only.

    Args:
        tokenizer: of the model, with a word delimiter where there is a lexicon or a language model.
        seconds_per_frame: `config.inputs_to_logits_ratio / feature_extractor.sampling_rate`.
        options: files of a language model and a lexicon, their weights and the size of the beam (50 by default). The
            language model is made of words; a KenLM binary needs a lexicon. The lexicon spells a word by its
            characters, or with the tokenizer's tokens behind a tab. Characters that the tokenizer has in the other
            case only are spelt in that.
        num_best: hypotheses returned, at most beam_size.
        token_beam_size: of each frame's tokens only so many of the likeliest are tried.
        beam_threshold: hypotheses whose score is lower than the best one's by more than this are dropped.

    Raises:
        ImportError: flashlight-text is not installed.
        OSError: a file does not exist.
        ValueError: a file cannot be used, the tokenizer is of another kind, or a number is out of its range.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        seconds_per_frame: float,
        options: DecodingOptions,
        num_best: int = 1,
        token_beam_size: int = 50,
        beam_threshold: float = 50.0,
    ) -> None:
        if not isinstance(tokenizer, Wav2Vec2CTCTokenizer):
            raise ValueError(
                f"Beam search needs a Wav2Vec2CTCTokenizer, whose tokens are characters, not a "
                f"{type(tokenizer).__name__}; decode greedily, without a language model and a lexicon."
            )
        self.beam_size = DEFAULT_BEAM_SIZE if options.beam_size is None else options.beam_size
        check_sizes(self.beam_size, num_best)
        if token_beam_size < 1 or not beam_threshold > 0:
            raise ValueError(
                f"token_beam_size and beam_threshold must be positive, got {token_beam_size} and {beam_threshold}."
            )
        self.tokenizer, self.seconds_per_frame = tokenizer, seconds_per_frame
        self.num_best = num_best
        self.token_beam_size, self.beam_threshold = token_beam_size, beam_threshold
        files = (options.lm_path, options.lexicon_path)
        self._words = None if files == (None, None) else load_search_vocabulary(tokenizer, *files)
        self._cutter = PartCutter(
            tokenizer.pad_token_id, tokenizer.word_delimiter_token_id, max(1, round(PART_SECONDS / seconds_per_frame))
        )
        self._set_weights(options.lm_weight, options.word_bonus)

    def reweighted(self, lm_weight: float, word_bonus: float) -> BeamSearchDecoder:
        """The same with other weights, without loading anything again."""
        other = copy.copy(self)
        other._set_weights(lm_weight, word_bonus)
        return other

    def _set_weights(self, lm_weight: float, word_bonus: float) -> None:
        check_weights(lm_weight, word_bonus)
        if word_bonus and self._words is None:
            raise ValueError(f"word_bonus {word_bonus} needs a lexicon or a language model; without them give 0.")
        self.lm_weight, self.word_bonus = lm_weight, word_bonus

    def _make_search(self) -> Any:
        """flashlight's decoder."""
        flashlight = import_flashlight()
        options = {
            "beam_size": self.beam_size,
            "beam_size_token": self.token_beam_size,
            "beam_threshold": self.beam_threshold,
            "lm_weight": self.lm_weight * math.log(10),  # KenLM speaks in log10
            "sil_score": 0.0,  # flashlight would add it for every frame, not for every delimiter
            "log_add": True,  # the score of a text is the sum over its alignments, not the best one
            "criterion_type": flashlight.CriterionType.CTC,
        }
        blank = self.tokenizer.pad_token_id
        if self._words is None:
            # "Silence" is where a hypothesis begins: from the blank, every first token is a new one.
            free = flashlight.LexiconFreeDecoderOptions(**options)
            return flashlight.LexiconFreeDecoder(free, flashlight.ZeroLM(), blank, blank, [])
        by_word = flashlight.LexiconDecoderOptions(word_score=self.word_bonus, unk_score=-math.inf, **options)
        delimiter = self.tokenizer.word_delimiter_token_id
        # A weight of 0 is no language model: 0 times minus infinity would be NaN.
        model = self._words.language_model if self.lm_weight else flashlight.ZeroLM()
        return flashlight.LexiconDecoder(by_word, self._words.trie, model, delimiter, blank, -1, [], False)

    def start(self) -> BeamState:
        return BeamState(self._begin_search())

    def step(self, states: Sequence[BeamState], frames: torch.Tensor, lengths: Sequence[int]) -> None:
        if frames.ndim != 3:
            raise ValueError(f"log_probs must be (batch, frames, vocabulary), got {tuple(frames.shape)}.")
        best_tokens(frames, lengths, self.tokenizer.pad_token_id)  # for its checks
        needed = 1 + (self.tokenizer.pad_token_id if self._words is None else self._words.largest_id)
        if frames.shape[2] < needed:
            raise ValueError(
                f"The lexicon spells with {needed} tokens, the model knows {frames.shape[2]}: the tokenizer is "
                "another model's."
            )
        rows = frames.detach().float().cpu().clamp(min=IMPOSSIBLE).numpy()
        for state, row, length in zip(states, rows, lengths, strict=True):
            begin = 0
            while begin < length:
                room = 2 * self._cutter.frames - state.num_frames
                if not room:
                    self._end_part(state)
                    continue
                state.frames.append(np.ascontiguousarray(row[begin : min(length, begin + room)]))
                begin = min(length, begin + room)

    def hypothesis(self, state: BeamState) -> StreamingText:
        """The best text so far. Only the parts that are decoded are final: the search may still change the others."""
        self._search_on(state)
        here = Hypothesis("", 0.0, [])
        if state.searched:
            result = state.search.get_best_hypothesis(0)
            here = Hypothesis(self._path_text(_path(result, state.searched)), result.score, None)
        joined = self._joined(state, here)
        return StreamingText(joined.text, state.before.text if state.before else "")

    def finish(self, state: BeamState) -> list[Hypothesis]:
        hypotheses = [Hypothesis("", 0.0, [])]
        if frames := state.num_frames:
            self._search_on(state)
            hypotheses = self._finish_search(state.search, frames, state.frames[0].shape[1]) or hypotheses
        return hypotheses if state.before is None else [self._joined(state, hypotheses[0])]

    def _end_part(self, state: BeamState) -> None:
        """Decode the current part up to the best cut; what follows is the beginning of the next part."""
        part = np.concatenate(state.frames)
        ids = part.argmax(-1)
        cut = self._cutter.best_cut(ids)
        search = self._begin_search()
        search.decode_step(part.ctypes.data, cut, part.shape[1])
        hypotheses = self._finish_search(search, cut, part.shape[1])
        state.frames = [part[:cut]]
        state.before = self._joined(state, hypotheses[0] if hypotheses else Hypothesis("", 0.0, []))
        state.begins_word = self._cutter.last_is_delimiter(ids[:cut])
        state.first_frame += cut
        state.search, state.searched, state.frames = self._begin_search(), 0, [part[cut:].copy()]

    def _joined(self, state: BeamState, here: Hypothesis) -> Hypothesis:
        """The hypothesis of the current part behind that of the parts before it."""
        if state.before is None:
            return here
        first = np.concatenate([piece.argmax(-1) for piece in state.frames]) if state.frames else np.zeros(0, int)
        begins_word = state.begins_word or self._cutter.first_is_delimiter(first)
        moved = move_hypothesis(here, state.first_frame * self.seconds_per_frame)
        return join_hypotheses(state.before, moved, begins_word)

    def _begin_search(self) -> Any:
        search = self._make_search()
        search.decode_begin()
        return search

    def _search_on(self, state: BeamState) -> None:
        """Let the search see the frames that have come."""
        place = 0
        for piece in state.frames:
            if place >= state.searched:
                state.search.decode_step(piece.ctypes.data, *piece.shape)
            place += len(piece)
        state.searched = place

    def _finish_search(self, search: Any, frames: int, vocabulary: int) -> list[Hypothesis]:
        """The hypotheses of a part that the search has seen."""
        if self._words is not None:
            # Words end with a delimiter, utterances need not: one more frame has nothing but the delimiter.
            end = np.full((1, vocabulary), IMPOSSIBLE, np.float32)
            end[0, self.tokenizer.word_delimiter_token_id] = 0.0
            search.decode_step(end.ctypes.data, *end.shape)
        search.decode_end()
        results = search.get_all_final_hypothesis()
        if self._words is None:
            return self._free_hypotheses(results, frames)
        return [self._word_hypothesis(result, frames) for result in results[: self.num_best]]

    def _path_text(self, path: list[int]) -> str:
        return ctc_text(greedy_ctc(np.array([path]), blank_token_id=self.tokenizer.pad_token_id)[0], self.tokenizer)

    def _free_hypotheses(self, results: list[Any], frames: int) -> list[Hypothesis]:
        """One hypothesis for each text: token sequences that differ in delimiters can give the same."""
        blank = self.tokenizer.pad_token_id
        paths = torch.tensor([_path(result, frames) for result in results])
        best: dict[str, int] = {}  # by text, the place of its best path, which comes first
        scores: dict[str, float] = {}
        for place, ids in enumerate(greedy_ctc(paths, blank_token_id=blank)):
            text = ctc_text(ids, self.tokenizer)
            best.setdefault(text, place)
            scores[text] = float(np.logaddexp(scores.get(text, -math.inf), results[place].score))
        texts = sorted(scores, key=lambda text: -scores[text])[: self.num_best]
        kept = greedy_ctc_spans(paths[[best[text] for text in texts]], blank_token_id=blank)
        times = (word_times(spans, self.tokenizer, self.seconds_per_frame) for spans in kept)
        return [Hypothesis(text, scores[text], words) for text, words in zip(texts, times, strict=True)]

    def _word_hypothesis(self, result: Any, frames: int) -> Hypothesis:
        assert self._words is not None
        words = [self._words.words[index] for index in result.words if index >= 0]
        (spans,) = greedy_ctc_spans(torch.tensor([_path(result, frames)]), blank_token_id=self.tokenizer.pad_token_id)
        timed = [
            TimedText(word, start * self.seconds_per_frame, end * self.seconds_per_frame)
            for word, (start, end) in zip(words, self._between_delimiters(spans), strict=False)
        ]
        return Hypothesis(self.tokenizer.replace_word_delimiter_char.join(words), result.score, timed)

    def _between_delimiters(self, spans: list[TokenSpan]) -> list[tuple[int, int]]:
        """First frame and frame after the last of each of the lexicon's words, which all end with a delimiter."""
        delimiter = self.tokenizer.word_delimiter_token_id
        groups = itertools.groupby(spans, key=lambda span: span.token_id == delimiter)
        words = [list(group) for is_delimiter, group in groups if not is_delimiter]
        return [(word[0].start_frame, word[-1].end_frame) for word in words]


def check_sizes(beam_size: int, num_best: int) -> None:
    """Refuse a beam that holds nothing, or fewer hypotheses than are asked for."""
    if beam_size < 1:
        raise ValueError(f"beam_size must be at least 1, got {beam_size}.")
    if not 1 <= num_best <= beam_size:
        raise ValueError(f"num_best must be 1 to beam_size, which is {beam_size}; got {num_best}.")


def check_weights(lm_weight: float, word_bonus: float) -> None:
    """Refuse weights that no score can be made of."""
    if not (math.isfinite(lm_weight) and lm_weight >= 0 and math.isfinite(word_bonus)):
        raise ValueError(f"lm_weight must be 0 or more, word_bonus any number, got {lm_weight} and {word_bonus}.")


def _path(result: Any, frames: int) -> list[int]:
    """The token of every frame; the state before the first frame stands first."""
    return list(result.tokens[1 : frames + 1])
