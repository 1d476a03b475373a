"""Beam search against sums over all paths, with and without a lexicon and a language model, and what it refuses."""

import base64
import functools
import gzip
import itertools
import json
import math
import sys
import zlib

import numpy as np
import pytest
import torch
from transformers import ParakeetTokenizer

from hf_speech_ssl.decoding import (
    BeamSearchDecoder,
    GreedyDecoder,
    TimedText,
    build_ctc_tokenizer,
    ctc_text,
    greedy_ctc,
    make_decoder,
)
from hf_speech_ssl.options import DecodingOptions

TOKENIZER = build_ctc_tokenizer(["ab"])  # 0 blank, 1 unknown, 2 |, 3 a, 4 b
ARPA = """\\data\\
ngram 1=6
ngram 2=4

\\1-grams:
-99	<s>	-0.3
-1.0	</s>
-2.0	<unk>
-0.5	ab	-0.2
-0.7	b	-0.1
-0.9	a	-0.15

\\2-grams:
-0.2	<s> ab
-0.4	ab b
-0.3	b </s>
-0.6	a b

\\end\\
"""
# log10 P of some texts with </s>, each term read off the table by hand.
LOG10 = {
    "": -0.3 - 1.0,  # backing off from <s>
    "ab": -0.2 - 0.2 - 1.0,  # <s> ab; backoff of ab, </s>
    "ab b": -0.2 - 0.4 - 0.3,
    "b": -0.3 - 0.7 - 0.3,
    "a b": -0.3 - 0.9 - 0.6 - 0.3,
    "a a": -0.3 - 0.9 - 0.15 - 0.9 - 0.15 - 1.0,
}


@pytest.fixture
def arpa(tmp_path):
    path = tmp_path / "lm.arpa"
    path.write_text(ARPA)
    return path


def random_log_probs(frames, seed, sharpness=2.0):
    logits = sharpness * torch.randn(1, frames, 5, generator=torch.Generator().manual_seed(seed))
    return logits.log_softmax(-1)


@functools.cache
def all_paths(frames, seed):
    """ln P_CTC of every text by adding up all V^T paths; "words" are what delimiters leave."""
    log_probs, scores = random_log_probs(frames, seed), {}
    for path in itertools.product(range(log_probs.shape[2]), repeat=log_probs.shape[1]):
        ids = greedy_ctc(torch.tensor([path]))[0]
        score = sum(log_probs[0, t, token].item() for t, token in enumerate(path))
        for name in (("text", ctc_text(ids, TOKENIZER)), ("words", " ".join(ctc_text(ids, TOKENIZER).split()))):
            scores[name] = np.logaddexp(scores.get(name, -math.inf), score)
    return scores


def decoder_of(tokenizer=TOKENIZER, num_best=1, **options):
    return make_decoder(tokenizer, 0.02, DecodingOptions(**options), num_best)


def exact(**options):
    """A beam that drops nothing."""
    return decoder_of(beam_size=20_000, **options)


def decode(decoder, log_probs):
    return decoder(log_probs, torch.tensor([log_probs.shape[1]]))[0]


@pytest.mark.parametrize("seed", range(3))
def test_without_a_lexicon_every_text_has_the_sum_over_its_paths(seed):
    log_probs = random_log_probs(4, seed)
    expected = {text: score for (kind, text), score in all_paths(4, seed).items() if kind == "text"}
    decoder = BeamSearchDecoder(TOKENIZER, 0.02, DecodingOptions(beam_size=20_000), num_best=20_000)
    hypotheses = decode(decoder, log_probs)
    assert {hypothesis.text: pytest.approx(hypothesis.score, abs=1e-4) for hypothesis in hypotheses} == expected
    scores = [hypothesis.score for hypothesis in hypotheses]
    assert scores == sorted(scores, reverse=True)
    assert all(
        " ".join(word.text for word in hypothesis.words) == hypothesis.text.replace("  ", " ")
        for hypothesis in hypotheses
    )


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("weight", "bonus"), [(0.0, 0.0), (1.0, 0.0), (0.7, -1.5)])
def test_with_a_language_model_every_text_has_its_score(arpa, seed, weight, bonus):
    log_probs = random_log_probs(5, seed)
    decoder = exact(lm_path=arpa, lm_weight=weight, word_bonus=bonus, num_best=20_000)
    scores = {hypothesis.text: hypothesis.score for hypothesis in decode(decoder, log_probs)}
    by_path = all_paths(5, seed)
    for text, log10 in LOG10.items():
        expected = by_path["words", text] + weight * log10 * math.log(10) + bonus * len(text.split())
        assert scores[text] == pytest.approx(expected, abs=1e-4), text
    words = {"a", "b", "ab"}
    possible = {text for kind, text in by_path if kind == "words" and set(text.split()) <= words}
    assert set(scores) == possible  # nothing but the model's words, and all of them
    assert list(scores.values()) == sorted(scores.values(), reverse=True)


# The table above, as KenLM's build_binary writes it (kinds probing and trie), compressed.
KENLM_BINARIES = {
    "probing": (
        "eNrLzU0sUMjJVcgoKSmw0tfPzkhNTMtMzUnRS87P1U/OT0lVSMsvyk0sUShLLSrOzM9TMOViQIAGeyCxnxFI/AcCkAgjVIYJTB6wRxZjg9Is"
        "DKgAJC6YnX35krg4OysDcYAr5/vH2uIH2SB7flwM/repdV8SM5BdUKe417KtFGynuZbWpNo/3a9YMLUfADmegeHYoVkzZ+6D+gPIZ7A/e8Zn"
        "n7GxMZA+szctLW3/rJmS+2CaOD4xZbRsNBYGyu1rLHr7oba6phWk3i7hjuqC2FQFoNr9uNyr2WZ+Yc+hZgWQfTaledl2DDbFQKwPJBKTGJIY"
        "EhkAn2lcTA=="
    ),
    "trie": (
        "eNrLzU0sUMjJVcgoKSmw0tfPzkhNTMtMzUnRS87P1U/OT0lVSMsvyk0sUShLLSrOzM9TMOViQIAGeyCxnxFI/AcCkAgjVIYJTB6wZ4KKgTAb"
        "VI4FyQRWKF1Qp7jXsq2UQTA7+/IlcXH2HxeD/21q3ZfElfP9Y23xg2xzLa1JtX+6XyFpPQByAIJ77NCsmTP3wXhpaWn7Z82U3Iekfv/ZMz5I"
        "/Ib9IALmXmNjY6D8mb1MDKiAhQE7yExL+xRqbHxZ/eyZnvtAi2tRZG1K87LtGGyK7RgSGRKTGGz0gawkBgAN3E30"
    ),
}


@pytest.mark.parametrize("kind", KENLM_BINARIES)
def test_a_kenlm_binary_says_what_its_arpa_says(arpa, tmp_path, kind):
    (tmp_path / "lm.bin").write_bytes(zlib.decompress(base64.b64decode(KENLM_BINARIES[kind])))
    (tmp_path / "words.txt").write_text("ab\nb\na\n")
    options = {"lexicon_path": tmp_path / "words.txt", "lm_weight": 0.7, "word_bonus": -1.5, "num_best": 20_000}
    binary, text = (
        {one.text: one.score for one in decode(exact(lm_path=path, **options), random_log_probs(5, 0))}
        for path in (tmp_path / "lm.bin", arpa)
    )
    assert binary == text and len(binary) > 10


@pytest.mark.parametrize("kind", ["arpa", *KENLM_BINARIES])
def test_a_language_model_that_knows_little_of_the_lexicon_is_named(arpa, tmp_path, caplog, kind):
    """A KenLM binary hides its words: those that score as an unknown word are unknown."""
    path = arpa
    if kind != "arpa":
        path = tmp_path / "lm.bin"
        path.write_bytes(zlib.decompress(base64.b64decode(KENLM_BINARIES[kind])))
    (tmp_path / "words.txt").write_text("ab\nb\na\n")
    decoder_of(lm_path=path, lexicon_path=tmp_path / "words.txt")
    assert not caplog.records
    (tmp_path / "words.txt").write_text("ab\nba\nbb\nbab\n")
    decoder_of(lm_path=path, lexicon_path=tmp_path / "words.txt")
    assert "knows 25.0 % of the 4 words" in caplog.text and "'ba'" in caplog.text
    (tmp_path / "words.txt").write_text("AB\nB\nA\n")  # the tokenizer's other case
    with pytest.raises(ValueError, match="knows none of the words of the lexicon .*same case"):
        decoder_of(lm_path=path, lexicon_path=tmp_path / "words.txt")


@pytest.mark.parametrize("weight", [0.0, 1.0])
@pytest.mark.parametrize("packed", [False, True])
def test_minus_infinity_in_a_language_model_stands_for_zero(arpa, tmp_path, weight, packed):
    """As other tools write it, in probabilities and in backoffs."""
    for name, zero in (("infinite", "-inf"), ("finite", "-99")):
        text = ARPA.replace("-0.3\tb </s>", f"{zero}\tb </s>").replace("-0.7\tb\t-0.1", f"{zero}\tb\t{zero}")
        (tmp_path / f"{name}.arpa").write_text(text)
    path = tmp_path / "infinite.arpa"
    if packed:
        path = tmp_path / "infinite.arpa.gz"
        path.write_bytes(gzip.compress((tmp_path / "infinite.arpa").read_bytes()))
    got, wanted = (
        decode(exact(lm_path=one, lm_weight=weight, num_best=20_000), random_log_probs(5, 0))
        for one in (path, tmp_path / "finite.arpa")
    )
    assert {one.text: one.score for one in got} == {one.text: pytest.approx(one.score) for one in wanted}
    assert all(math.isfinite(one.score) for one in got)
    if not weight:  # is no language model at all
        texts = {
            one.text: one.score
            for one in decode(exact(lm_path=arpa, lm_weight=0.0, num_best=20_000), random_log_probs(5, 0))
        }
        assert {one.text: pytest.approx(one.score) for one in got} == texts


@pytest.mark.parametrize("options", [{}, {"num_best": 2}])
def test_scores_are_finite_where_a_frame_is_impossible(options):
    log_probs = random_log_probs(6, 0)
    log_probs[0, 2] = -math.inf
    for one in decode(decoder_of(**options), log_probs):
        assert math.isfinite(one.score)
        json.dumps(one.score, allow_nan=False)


def test_a_lexicon_alone_closes_the_vocabulary(tmp_path):
    (tmp_path / "words.txt").write_text("ab\nba\n")
    log_probs = random_log_probs(5, 0)
    hypotheses = decode(exact(lexicon_path=tmp_path / "words.txt", num_best=20_000), log_probs)
    by_path = all_paths(5, 0)
    assert {hypothesis.text for hypothesis in hypotheses} == {"", "ab", "ba", "ab ab", "ab ba", "ba ab", "ba ba"}
    for hypothesis in hypotheses:
        assert hypothesis.score == pytest.approx(by_path["words", hypothesis.text], abs=1e-4)


def test_the_language_model_decides_where_the_sound_does_not(arpa):
    log_probs = torch.full((1, 4, 5), -20.0)
    log_probs[0, 0, 3] = log_probs[0, 3, 4] = 0.0
    log_probs[0, 1, [0, 2]] = math.log(0.5)  # a pause or none: "ab" or "a b"
    log_probs[0, 2, 0] = 0.0
    assert decode(decoder_of(lm_path=arpa), log_probs)[0].text == "ab"
    assert decode(decoder_of(lm_path=arpa, word_bonus=9.0), log_probs)[0].text == "a b"
    one = BeamSearchDecoder(TOKENIZER, 0.02, DecodingOptions(lm_path=arpa))
    assert decode(one.reweighted(1.0, 9.0), log_probs)[0].text == "a b"
    assert decode(one, log_probs)[0].text == "ab"


def frames_of(ids, certainty=30.0):
    """Log-probabilities that leave no doubt."""
    return torch.nn.functional.one_hot(torch.tensor([ids]), 5).float().mul(certainty).log_softmax(-1)


def test_words_have_the_times_of_greedy_decoding(arpa, tmp_path):
    ids = [2, 0, 3, 3, 4, 0, 2, 2, 0, 4, 4, 0, 0]
    greedy = decode(GreedyDecoder(TOKENIZER, 0.02), frames_of(ids))[0]
    assert greedy.text == "ab b"
    for options in ({}, {"lm_path": arpa}):
        hypothesis = decode(decoder_of(num_best=2, **options), frames_of(ids))[0]
        assert (hypothesis.text, hypothesis.words) == (greedy.text, greedy.words)
    # A word written otherwise than it is spelt, twice in a row, in the tokenizer's other case.
    (tmp_path / "lexicon.txt").write_text("\ufeffAB\nBee\tb\nbe\tB |\n\n", encoding="utf-8")
    decoder = decoder_of(lexicon_path=tmp_path / "lexicon.txt", num_best=2)
    hypotheses = decode(decoder, frames_of(ids))
    assert {hypothesis.text for hypothesis in hypotheses} == {"AB Bee", "AB be"}
    assert hypotheses[0].words[0] == TimedText("AB", *(getattr(greedy.words[0], edge) for edge in ("start", "end")))


def test_batches_padding_and_empty_utterances(arpa):
    one, two = frames_of([3, 4, 2, 4]), frames_of([4, 0])
    batch = torch.full((3, 4, 5), math.nan)
    batch[0], batch[1, :2] = one[0], two[0]
    hypotheses = decoder_of(lm_path=arpa)(batch.double(), torch.tensor([4, 2, 0]))
    assert [[hypothesis.text for hypothesis in each] for each in hypotheses] == [["ab b"], ["b"], [""]]
    assert hypotheses[2][0].words == [] and hypotheses[2][0].score == 0.0
    impossible = torch.full((1, 2, 5), -math.inf)  # as a model says that forces the blank
    impossible[..., 0] = 0.0
    assert decode(decoder_of(lm_path=arpa), impossible)[0].text == ""


def test_an_unfinished_word_is_left_out(tmp_path):
    (tmp_path / "words.txt").write_text("ab\nba\n")
    decoder = decoder_of(lexicon_path=tmp_path / "words.txt")
    finished, unfinished = (decode(decoder, frames_of(ids, 999.0))[0] for ids in ([3, 4, 2, 0, 0], [3, 4, 2, 4, 4]))
    assert finished.text == unfinished.text == "ab" and finished.words == unfinished.words
    assert unfinished.score == pytest.approx(finished.score - 10_000, abs=1)


def test_words_that_cannot_be_spelt_are_reported(tmp_path, caplog):
    (tmp_path / "lm.arpa").write_text(ARPA.replace("-0.9\ta\t", "-0.9\tcab\t").replace("-0.6\ta b", "-0.6\tcab b"))
    hypotheses = decode(exact(lm_path=tmp_path / "lm.arpa", num_best=20_000), random_log_probs(3, 0))
    assert {word.text for hypothesis in hypotheses for word in hypothesis.words} == {"ab", "b"}
    assert "cannot spell 1 of the 3 words" in caplog.text and "cab" in caplog.text


def test_greedy_where_there_is_nothing_to_search_with():
    assert isinstance(decoder_of(beam_size=7, word_bonus=1.0), GreedyDecoder)
    several = decode(decoder_of(num_best=3, word_bonus=1.0), random_log_probs(4, 0))
    assert len({hypothesis.text for hypothesis in several}) == 3


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("ab\na b c\n", r"line 2: needed one word"),
        ("ab\n\ta b\n", r"line 2: needed one word"),
        ("ab\nword\t|\n", r"line 2: needed one word"),
        ("ab\nacb\n", r"line 2: the tokenizer has no 'c' to spell 'acb'"),
        ("ab\n[PAD]\t[PAD]\n", "no '\\[PAD\\]'"),
        ("\n\n", "holds no words"),
        (b"\xff\xfe\x00", "not UTF-8"),
        ("".join(f"w{i}\ta b\n" for i in range(7)), "At most 6 words .* 7 do: w0"),
    ],
)
def test_wrong_lexicons(tmp_path, content, words):
    path = tmp_path / "lexicon.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=words):
        decoder_of(lexicon_path=path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no words"),
        (b"ab b\nb ab\n", "neither ARPA"),
        (bytes(range(128, 256)), "neither UTF-8 text .* nor a KenLM binary"),
        (ARPA[:150].encode(), "KenLM cannot read"),
        (ARPA.replace("ngram 2=4", "ngram 2=9").encode(), "KenLM cannot read"),
        (ARPA.replace("-0.5\tab", "ab").encode(), "KenLM cannot read|line 9"),
        (ARPA.replace("ab", "xy").replace("\ta", "\tx").replace("b", "y").encode(), "can spell none"),
        (b"mmap lm http://kheafield.com/code format version 5\n\0" + bytes(3000), "give a lexicon too"),
    ],
)
def test_wrong_language_models(tmp_path, content, words):
    path = tmp_path / "lm.arpa"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=words):
        decoder_of(lm_path=path)


def test_other_refusals(arpa, tmp_path, monkeypatch):
    (tmp_path / "words.txt").write_text("ba\n")
    binary = tmp_path / "lm.bin"
    binary.write_bytes(b"mmap lm http://kheafield.com/code format version 5\n\0" + bytes(3000))
    for options, error, words in (
        ({"lm_path": tmp_path / "none.arpa"}, OSError, "none.arpa"),
        ({"lm_path": arpa, "lexicon_path": tmp_path / "none.txt"}, OSError, "none.txt"),
        (
            {"lm_path": arpa, "lexicon_path": tmp_path / "words.txt"},
            ValueError,
            r"none of the words .* \(it knows 'ab'\)",
        ),
        ({"lm_path": binary, "lexicon_path": tmp_path / "words.txt"}, ValueError, "KenLM cannot read"),
        ({"lm_path": arpa, "lm_weight": -1.0}, ValueError, "lm_weight"),
        ({"lm_path": arpa, "word_bonus": math.nan}, ValueError, "word_bonus"),
        ({"lm_path": arpa, "beam_size": 0}, ValueError, "beam_size must be at least 1, got 0"),
        ({"lm_path": arpa, "num_best": 51}, ValueError, "num_best must be 1 to beam_size, which is 50; got 51"),
        ({"beam_size": -3}, ValueError, "beam_size must be at least 1, got -3"),  # where all is greedy, too
        ({"lm_weight": -1.0}, ValueError, "lm_weight"),
    ):
        with pytest.raises(error, match=words):
            decoder_of(**options)
    with pytest.raises(ValueError, match="word_bonus 1.0 needs"):
        BeamSearchDecoder(TOKENIZER, 0.02, DecodingOptions(word_bonus=1.0))
    decoder = decoder_of(lm_path=arpa)
    for log_probs, lengths, words in (
        (torch.zeros(3, 5), [3], r"\(batch, frames, vocabulary\)"),
        (torch.zeros(1, 3, 4), [3], "spells with 5 tokens, the model knows 4"),
        (torch.zeros(1, 3, 5), [4], "lengths"),
        (torch.full((1, 3, 5), math.nan), [3], "NaN"),
    ):
        with pytest.raises(ValueError, match=words):
            decoder(log_probs, torch.tensor(lengths))
    monkeypatch.setitem(sys.modules, "flashlight.lib.text", None)
    with pytest.raises(ImportError, match=r"hf-speech-ssl\[lm\]"):
        decoder_of(lm_path=arpa)


def test_other_tokenizers_are_refused(arpa):
    tokenizer = ParakeetTokenizer.__new__(ParakeetTokenizer)
    with pytest.raises(ValueError, match="needs a Wav2Vec2CTCTokenizer.*not a ParakeetTokenizer"):
        decoder_of(tokenizer, lm_path=arpa)
