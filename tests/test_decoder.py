"""One battery over all decoders: pieces give what the whole gives, and a batch what its utterances give alone."""

import functools
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from hf_speech_ssl.decoding import BeamSearchDecoder, Decoder, GreedyDecoder, Hypothesis, build_ctc_tokenizer
from hf_speech_ssl.decoding.cutting import PartCutter
from hf_speech_ssl.options import DecodingOptions

CHARACTERS = build_ctc_tokenizer(["abc"])  # blank 0, unknown 1, delimiter 2, letters 3 to 5
HAN = build_ctc_tokenizer(["今天好"])
FRAME = 0.02  # seconds
BEAM = DecodingOptions(beam_size=8)


def word_pieces() -> PreTrainedTokenizerFast:
    inner = Tokenizer(models.WordLevel({"<pad>": 0, "▁a": 1, "b": 2, "▁c": 3, "▁": 4, "c": 5}, unk_token="<pad>"))
    inner.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>")


@functools.cache
def make(name: str) -> Decoder:
    return {
        "greedy": lambda: GreedyDecoder(CHARACTERS, FRAME),
        "greedy without spaces": lambda: GreedyDecoder(HAN, FRAME),
        "greedy word pieces": lambda: GreedyDecoder(word_pieces(), FRAME),
        "beam": lambda: BeamSearchDecoder(CHARACTERS, FRAME, BEAM, num_best=3),
        "beam without spaces": lambda: BeamSearchDecoder(HAN, FRAME, BEAM),
    }[name]()


every_decoder = pytest.mark.parametrize(
    "name", ["greedy", "greedy without spaces", "greedy word pieces", "beam", "beam without spaces"]
)


def log_probs(frames: int, seed: int) -> torch.Tensor:
    """(T, 6) with runs of a few frames, blanks and delimiters among them."""
    random = np.random.default_rng(seed)
    ids = np.repeat(random.choice([0, 0, 1, 2, 2, 3, 4, 5], frames), random.integers(1, 5, frames))[:frames]
    logits = torch.nn.functional.one_hot(torch.tensor(ids, dtype=torch.long), 6).float()
    sharpness, noise = random.uniform(2, 6, (frames, 1)), random.uniform(0, 0.5, (frames, 6))  # so that nothing ties
    return (logits * torch.from_numpy(sharpness).float() + torch.from_numpy(noise).float()).log_softmax(-1)


def assert_same(got: list, wanted: list) -> None:
    assert [(one.text, one.words) for one in got] == [(one.text, one.words) for one in wanted]
    assert [one.score for one in got] == pytest.approx([one.score for one in wanted], rel=1e-4, abs=1e-4)


@every_decoder
@given(frames=st.integers(0, 60), seed=st.integers(0, 99), cuts=st.lists(st.integers(0, 20), max_size=8))
@settings(max_examples=60, deadline=None)
def test_pieces_give_what_the_whole_gives(name, frames, seed, cuts):
    decoder, whole = make(name), log_probs(frames, seed)
    [wanted] = decoder(whole[None], [frames])
    state, final = decoder.start(), ""
    edges = sorted({0, frames, *np.minimum(np.cumsum([0, *cuts]), frames).tolist()})
    for begin, end in itertools.pairwise(edges):
        decoder.step([state], whole[None, begin:end], [end - begin])
        text = decoder.hypothesis(state)
        assert text.final.startswith(final) and text.text.startswith(text.final)
        final = text.final
    if name.startswith("greedy"):
        assert decoder.hypothesis(state).text == wanted[0].text
    got = decoder.finish(state)
    assert_same(got, wanted)
    assert got[0].text.startswith(final)


@every_decoder
@given(sizes=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 99)), min_size=1, max_size=4))
@settings(max_examples=40, deadline=None)
def test_a_padded_batch_gives_what_its_utterances_give_alone(name, sizes):
    decoder, alone = make(name), [log_probs(*size) for size in sizes]
    padded = torch.full((len(alone), max(map(len, alone)), 6), -3.0)
    for row, one in zip(padded, alone, strict=True):
        row[: len(one)] = one
    together = decoder(padded, [len(one) for one in alone])
    for got, one in zip(together, alone, strict=True):
        assert_same(got, decoder(one[None], [len(one)])[0])


@every_decoder
def test_a_step_that_is_refused_leaves_the_states_as_they_were(name):
    decoder, whole = make(name), log_probs(30, seed=1)
    state = decoder.start()
    decoder.step([state], whole[None, :10], [10])
    broken = whole[None, 10:].clone()
    broken[0, 7] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        decoder.step([state], broken, [20])
    decoder.step([state], whole[None, 10:], [20])
    assert_same(decoder.finish(state), decoder(whole[None], [30])[0])


# --- long recordings: a beam search is cut into parts


@given(seed=st.integers(0, 99), sizes=st.lists(st.integers(1, 90), min_size=1, max_size=9), part=st.integers(8, 30))
@settings(max_examples=40, deadline=None)
def test_parts_do_not_depend_on_the_pieces(seed, sizes, part):
    """A beam that is sharp writes what greedy decoding writes, over cuts and all."""
    decoder = BeamSearchDecoder(CHARACTERS, FRAME, BEAM)
    decoder._cutter.frames = part
    frames = sum(sizes)
    whole = (20 * log_probs(frames, seed)).log_softmax(-1)
    state, begin = decoder.start(), 0
    for size in sizes:
        decoder.step([state], whole[None, begin : begin + size], [size])
        assert state.num_frames <= 2 * part
        begin += size
    got = decoder.finish(state)
    assert_same(got, decoder(whole[None], [frames])[0])
    [wanted] = make("greedy")(whole[None], [frames])[0]
    if max(len(list(run)) for _, run in itertools.groupby(whole.argmax(-1).tolist())) < part:  # no endless letter
        assert got[0].text.split() == wanted.text.split()
        assert [word.text for word in got[0].words] == [word.text for word in wanted.words]
        times = [(word.start, word.end) for word in wanted.words]
        assert [(word.start, word.end) for word in got[0].words] == [pytest.approx(pair) for pair in times]


def test_the_cut_is_at_the_longest_pause():
    word = [3, 4, 0, 5, 2]
    ids = np.array(word * 5 + [0] * 8 + word * 5)
    assert PartCutter(0, 2, 20).best_cut(ids[:40]) == 24
    assert PartCutter(0, 2, 20).best_cut(np.full(40, 3)) == 40


# --- scripts without spaces, and models whose delimiter fails


def spoken(tokenizer, text: str, frames: list[int]) -> torch.Tensor:
    """(T, V) that says a character for 4 frames, and nothing for the frames after it."""
    ids = [
        one
        for token, pause in zip(tokenizer(text).input_ids, frames, strict=True)
        for one in [token] * 4 + [0] * pause
    ]
    return torch.nn.functional.one_hot(torch.tensor(ids), len(tokenizer)).float().mul(9).log_softmax(-1)


def greedy(tokenizer, frames: torch.Tensor) -> Hypothesis:
    return GreedyDecoder(tokenizer, FRAME)(frames[None], [len(frames)])[0][0]


def test_characters_of_a_script_without_spaces_have_their_own_times():
    best = greedy(HAN, spoken(HAN, "今天好今", [2, 300, 2, 2]))
    assert best.text == "今天好今"
    assert [word.text for word in best.words] == list("今天好今") and all(word.joined for word in best.words[1:])
    assert [round(word.start / FRAME) for word in best.words] == [0, 6, 310, 316]


def test_a_character_without_a_delimiter_is_final_once_the_next_is_written():
    decoder = GreedyDecoder(HAN, FRAME)
    state, finals = decoder.start(), []
    for frame in spoken(HAN, "今天好", [2, 2, 2]):
        decoder.step([state], frame[None, None], [1])
        finals.append(decoder.hypothesis(state).final)
    assert [final for final, _ in itertools.groupby(finals)] == ["", "今", "今天"]
    assert decoder.hypothesis(state).text == "今天好" == decoder.finish(state)[0].text


def test_a_word_without_end_is_divided_at_its_pauses():
    text = "abc" * 60
    pauses = [2] * len(text)
    pauses[49], pauses[100] = 5, 60  # the longest of the first 60 characters, and 1.2 s
    best = greedy(CHARACTERS, spoken(CHARACTERS, text, pauses))
    assert best.text == text == "".join(word.text for word in best.words)
    lengths = [len(word.text) for word in best.words]
    assert lengths[:2] == [50, 51] and max(lengths) <= 60


def test_what_a_frame_costs_does_not_depend_on_what_came_before(monkeypatch):
    decoder = GreedyDecoder(HAN, FRAME)
    state, decoded = decoder.start(), []
    decode = HAN.decode
    monkeypatch.setattr(HAN, "decode", lambda ids, **options: decoded.append(len(ids)) or decode(ids, **options))
    for _ in range(400):
        decoder.step([state], spoken(HAN, "今天好", [2, 2, 2])[None], [18])
        decoder.hypothesis(state)
    assert len(decoder.hypothesis(state).text) == 1200
    assert max(decoded) <= 60 and sum(decoded) <= 400 * 8
