"""Decoding in parts is decoding the whole, wherever the pieces and the parts end."""

import itertools

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from hf_speech_ssl.decoding import GreedyDecoder, build_ctc_tokenizer
from hf_speech_ssl.decoding.piecewise import _Cutter, decode_pieces

TOKENIZER = build_ctc_tokenizer(["abc"])  # blank 0, unknown 1, delimiter 2, letters 3 to 5
GREEDY = GreedyDecoder(TOKENIZER, 0.02)


def log_probs(ids: list[int]) -> torch.Tensor:
    """(T, V) whose best path is `ids`, each frame with its own certainty."""
    logits = torch.nn.functional.one_hot(torch.tensor(ids, dtype=torch.long), len(TOKENIZER)).float()
    return (logits * torch.linspace(3, 5, len(ids))[:, None]).log_softmax(-1)


# Long runs as well as letters that follow at once; texts without any delimiter or with nothing else.
PATHS = st.lists(st.tuples(st.sampled_from([0, 2, 3, 4, 5]), st.integers(1, 6)), min_size=1, max_size=30)


@given(runs=PATHS, cuts=st.lists(st.integers(1, 20), max_size=8), part=st.integers(6, 30))
@settings(max_examples=300, deadline=None)
def test_greedy_in_parts_is_greedy(runs, cuts, part) -> None:
    ids = [token for token, length in runs for _ in range(length)]
    assume(all(token == 0 or len(list(run)) < part for token, run in itertools.groupby(ids)))  # no endless letter
    whole = log_probs(ids)
    [wanted] = GREEDY(whole[None], torch.tensor([len(ids)]))[0]
    sizes = [*cuts, len(ids)]
    begins = [min(sum(sizes[:index]), len(ids)) for index in range(len(sizes) + 1)]
    pieces = [whole[begin:end] for begin, end in zip(begins, begins[1:], strict=False)]
    [got] = decode_pieces(pieces, GREEDY, TOKENIZER, 0.02, part_seconds=part * 0.02)
    assert got.text.split() == wanted.text.split()  # two delimiters are two spaces, or a cut
    assert [word.text for word in got.words] == [word.text for word in wanted.words]
    times = [(word.start, word.end) for word in wanted.words]
    assert [(word.start, word.end) for word in got.words] == [pytest.approx(pair) for pair in times]
    assert got.score == pytest.approx(wanted.score, rel=1e-4)


def test_nothing_is_nothing() -> None:
    [empty] = decode_pieces([], GREEDY, TOKENIZER, 0.02)
    assert (empty.text, empty.words) == ("", [])


def test_the_cut_is_at_the_longest_pause() -> None:
    word = [3, 4, 0, 5, 2]
    ids = word * 5 + [0] * 8 + word * 5
    parts = _Cutter(TOKENIZER, 20).parts([log_probs(ids)])
    assert [len(part) for part, _ in parts] == [24, 34]


def test_parts_are_bounded_and_one_part_keeps_its_alternatives() -> None:
    seen = []

    def decoder(rows: torch.Tensor, lengths: torch.Tensor) -> list:
        seen.append(rows.shape[1])
        return [[*GREEDY(rows, lengths)[0], *GREEDY(rows, lengths)[0]]]

    pieces = [log_probs([3, 4, 2, 0, 5] * 5) for _ in range(40)]
    assert len(decode_pieces(pieces, decoder, TOKENIZER, 0.02, part_seconds=1.0)) == 1
    assert sum(seen) == 1000 and max(seen) <= 100 and min(seen[:-1]) >= 50
    assert len(decode_pieces(pieces[:1], decoder, TOKENIZER, 0.02, part_seconds=1.0)) == 2


def test_tokens_that_bring_their_own_space() -> None:
    from tokenizers import Tokenizer, decoders, models

    vocabulary = {"<pad>": 0, "▁a": 1, "b": 2, "▁c": 3, "▁": 4}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    inner.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>")
    decoder = GreedyDecoder(tokenizer, 0.02)
    ids = [1, 2, 0, 2, 2, 0, 0, 3, 0, 1, 4, 2, 0, 0, 3] * 4
    whole = torch.nn.functional.one_hot(torch.tensor(ids), 5).float().log_softmax(-1)
    wanted = decoder(whole[None], torch.tensor([len(ids)]))[0][0].text
    assert wanted.startswith("abb c a b c")
    for part in range(4, 29):
        assert decode_pieces([whole], decoder, tokenizer, 0.02, part_seconds=part * 0.02)[0].text == wanted
