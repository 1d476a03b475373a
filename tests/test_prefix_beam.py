"""The live beam search: exact where that can be told, any words, hot words that come and go."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from live_models import CHUNK_MS, babble, bpe_tokenizer, character_parts, offline
from test_decoder import CHARACTERS, FRAME, assert_same, log_probs
from test_live_events import CUTS, assert_consistent, live

from hf_speech_ssl.decoding import GreedyDecoder, PrefixBeamDecoder, build_ctc_tokenizer, estimate_ngrams
from hf_speech_ssl.options import DecodingOptions, EndpointOptions
from hf_speech_ssl.recognition import StreamingTranscriber

NAMES = build_ctc_tokenizer(["anna lena"])  # blank 0, unknown 1, delimiter 2, then a e l n
A, E, L, N = (NAMES.convert_tokens_to_ids(one) for one in "aeln")


def from_text(text: str, doubt: dict[int, tuple[str, float]] | None = None) -> torch.Tensor:
    """Log-probabilities (1, T, V) of a text, a blank behind each token; `doubt` mixes other tokens in."""
    ids = [2 if char == " " else NAMES.convert_tokens_to_ids(char) for char in text]
    frames = torch.full((2 * len(ids), len(NAMES)), 1e-5)
    for place, token in enumerate(ids):
        frames[2 * place, token] = frames[2 * place + 1, 0] = 1.0
        if doubt and place in doubt:
            other, share = doubt[place]
            frames[2 * place, token] = 1 - share
            frames[2 * place, NAMES.convert_tokens_to_ids(other)] = share
    return (frames / frames.sum(-1, keepdim=True)).log()[None]


def texts(decoder: PrefixBeamDecoder, frames: torch.Tensor) -> list[str]:
    return [one.text for one in decoder(frames, [frames.shape[1]])[0]]


@given(frames=st.integers(1, 6), seed=st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_a_wide_beam_sums_over_all_alignments(frames, seed):
    """Against the sum over all paths, texts being compared without the spaces that words need not have."""
    torch.manual_seed(seed)
    rows = (2 * torch.randn(frames, 6)).log_softmax(-1)
    totals: dict[str, float] = {}
    for path in itertools.product(range(6), repeat=frames):
        tokens = [token for token, _ in itertools.groupby(path) if token != 0]
        text = " ".join("".join({1: "?", 2: " ", 3: "a", 4: "b", 5: "c"}[one] for one in tokens).split())
        score = sum(rows[frame, token].item() for frame, token in enumerate(path))
        totals[text] = np.logaddexp(totals.get(text, -math.inf), score)
    [hypotheses] = PrefixBeamDecoder(CHARACTERS, FRAME, DecodingOptions(beam_size=4000))(rows[None], [frames])
    best = max(totals.values())
    wanted = totals[" ".join(hypotheses[0].text.replace("[UNK]", "?").split())]
    assert wanted > best - 0.7  # a space at the end makes another hypothesis of the same text
    assert hypotheses[0].score <= wanted + 1e-3


@given(seed=st.integers(0, 99), sizes=st.lists(st.integers(0, 20), max_size=6))
@settings(max_examples=25, deadline=None)
def test_pieces_give_what_the_whole_gives_and_final_words_stay(seed, sizes):
    decoder, whole = PrefixBeamDecoder(CHARACTERS, FRAME, DecodingOptions(beam_size=6)), log_probs(60, seed)
    [wanted] = decoder(whole[None], [60])
    state, before, words = decoder.start(), "", []
    for begin, end in itertools.pairwise(sorted({0, 60, *np.minimum(np.cumsum([0, *sizes]), 60).tolist()})):
        decoder.step([state], whole[None, begin:end], [end - begin])
        text = decoder.hypothesis(state)
        assert text.text.startswith(text.final) and text.final.startswith(before)
        before = text.final
        assert text.words[: len(words)] == words
        words = text.words[: text.num_final_words]
    assert_same(decoder.finish(state), wanted)


@given(seed=st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_a_sharp_beam_writes_what_greedy_decoding_writes(seed):
    whole = (20 * log_probs(80, seed)).log_softmax(-1)
    [[greedy]] = GreedyDecoder(CHARACTERS, FRAME)(whole[None], [80])
    [[beam]] = PrefixBeamDecoder(CHARACTERS, FRAME)(whole[None], [80])
    assert beam.text.split() == greedy.text.split()
    assert beam.words == greedy.words
    assert [one.confidence for one in beam.words] == pytest.approx([one.confidence for one in greedy.words], rel=1e-3)


def test_a_hot_word_wins_as_a_whole_word_only():
    doubtful = from_text("lena anna", {2: ("a", 0.02), 8: ("e", 0.01)})  # "leaa", "anne" are heard a little
    assert texts(PrefixBeamDecoder(NAMES, FRAME), doubtful) == ["lena anna"]
    assert texts(PrefixBeamDecoder(NAMES, FRAME, hot_words={"anne": 8.0}), doubtful) == ["lena anne"]
    assert texts(PrefixBeamDecoder(NAMES, FRAME, hot_words={"ann": 8.0}), doubtful) == ["lena anna"]
    assert texts(PrefixBeamDecoder(NAMES, FRAME, hot_words={"nna": 8.0}), doubtful) == ["lena anna"]
    assert texts(PrefixBeamDecoder(NAMES, FRAME, hot_words={"leaa anne": 12.0}), doubtful) == ["leaa anne"]
    assert texts(PrefixBeamDecoder(NAMES, FRAME, hot_words={"leaa lena": 12.0}), doubtful) == ["lena anna"]


def test_a_boost_is_earned_once_and_given_back():
    decoder = PrefixBeamDecoder(NAMES, FRAME, hot_words={"anna": 6.0, "lena anna": 9.0})
    plain = PrefixBeamDecoder(NAMES, FRAME)
    for text, boost in (("anna", 6.0), ("lena", 0.0), ("lena anna", 15.0), ("annaa", 0.0), ("anna anna", 12.0)):
        frames = from_text(text)
        [[with_boost]], [[without]] = decoder(frames, [frames.shape[1]]), plain(frames, [frames.shape[1]])
        assert (with_boost.text, without.text) == (text, text)
        assert with_boost.score - without.score == pytest.approx(boost, abs=1e-3)


def test_hot_words_come_and_go_while_it_runs():
    decoder = PrefixBeamDecoder(NAMES, FRAME)
    word = from_text("anna ", {3: ("e", 0.01)})
    state = decoder.start()
    for phrases in ({}, {"anne": 8.0}, {}):
        decoder.set_hot_words(state, phrases)
        decoder.step([state], word, [10])
    assert decoder.finish(state)[0].text == "anna anne anna"
    state = decoder.start()  # in the middle of the word
    decoder.step([state], word[:, :4], [4])
    decoder.set_hot_words(state, {"anne": 8.0})
    decoder.step([state], word[:, 4:], [6])
    assert decoder.finish(state)[0].text == "anne"


def test_words_are_final_after_four_seconds_at_the_latest():
    decoder = PrefixBeamDecoder(NAMES, FRAME)
    undecided = from_text("anna ", {3: ("e", 0.5)})
    state = decoder.start()
    decoder.step([state], undecided, [10])
    assert decoder.hypothesis(state).num_final_words == 0
    tail = from_text("l" + " " * 110)
    decoder.step([state], tail, [tail.shape[1]])
    assert decoder.hypothesis(state).num_final_words >= 1


def test_a_language_model_closes_no_vocabulary(tmp_path):
    pytest.importorskip("flashlight.lib.text")
    path = tmp_path / "lm.arpa"
    estimate_ngrams(["anna lena", "lena anna", "anna anna"], 2).write_arpa(path)
    decoder = PrefixBeamDecoder(NAMES, FRAME, DecodingOptions(lm_path=path, lm_weight=2.0))
    assert texts(decoder, from_text("lana anna", {1: ("e", 0.3)})) == ["lena anna"]  # heard less, known
    assert texts(decoder, from_text("neel anna")) == ["neel anna"]  # not known, heard


def test_hot_words_of_pieces():
    tokenizer = bpe_tokenizer("metaspace")
    ids = tokenizer("Hello Anna", add_special_tokens=False).input_ids
    frames = torch.full((1, 2 * len(ids), len(tokenizer)), 1e-5)
    frames[0, range(0, 2 * len(ids), 2), ids] = 1.0
    frames[0, range(1, 2 * len(ids), 2), tokenizer.pad_token_id] = 1.0
    frames = (frames / frames.sum(-1, keepdim=True)).log()
    plain = PrefixBeamDecoder(tokenizer, FRAME)(frames, [2 * len(ids)])[0][0]
    hot = PrefixBeamDecoder(tokenizer, FRAME, hot_words={"Anna": 5.0})(frames, [2 * len(ids)])[0][0]
    assert plain.text == hot.text == "Hello Anna" and len(plain.words) == 2
    assert hot.score - plain.score == pytest.approx(5.0, abs=1e-3)


@given(seed=st.integers(0, 99), cuts=CUTS)
@settings(max_examples=6, deadline=None)
def test_a_stream_gives_the_offline_text(seed, cuts):
    parts, samples = character_parts(seed=26), babble(1.2, seed)
    decoder = PrefixBeamDecoder(parts[1].tokenizer, 0.04, hot_words={"abba": 4.0})
    events = live(StreamingTranscriber(*parts, CHUNK_MS, decoder=decoder), samples, cuts)
    assert_consistent(events)
    wanted = offline(parts, samples, decoder)
    assert events[-1].text == wanted.text
    assert [(one.text, one.start, one.end) for one in events[-1].words] == [
        (one.text, pytest.approx(one.start), pytest.approx(one.end)) for one in wanted.words
    ]


def test_streams_keep_their_hot_words_over_endpoints():
    parts = character_parts(seed=26)
    decoder = PrefixBeamDecoder(parts[1].tokenizer, 0.04)
    rules = EndpointOptions(max_segment_seconds=0.3)
    transcriber = StreamingTranscriber(*parts, CHUNK_MS, decoder=decoder, endpoints=rules)
    transcriber.set_hot_words({"abba": 4.0})
    live(transcriber, babble(1.0, 1), [])
    assert transcriber.stream.state.hot_words.root.children
    with pytest.raises(ValueError, match="GreedyDecoder knows no hot words"):
        StreamingTranscriber(*parts, CHUNK_MS).set_hot_words({"abba": 4.0})


def test_refusals():
    for phrases, message in (
        ({"": 4.0}, "A hot word is empty"),
        ({"anna": 0.0}, "must be above 0, such as 8; 'anna' has 0.0"),
        ({"zoe": 4.0}, "has no 'o', 'z' to spell the hot word 'zoe'"),
    ):
        with pytest.raises(ValueError, match=message):
            PrefixBeamDecoder(NAMES, FRAME, hot_words=phrases)
    with pytest.raises(ValueError, match="leave out --lexicon_path"):
        PrefixBeamDecoder(NAMES, FRAME, DecodingOptions(lexicon_path="words.txt"))
    with pytest.raises(ValueError, match="beam_size must be at least 1, got 0"):
        PrefixBeamDecoder(NAMES, FRAME, DecodingOptions(beam_size=0))
