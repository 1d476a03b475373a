"""N-gram models: distributions that add up, KenLM's reading of what is written, and the two commands around them."""

import gzip
import itertools
import json
import re
from pathlib import Path

import pytest
import soundfile
import torch
from helpers import speech_like, tiny_birq
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_speech_ssl import BiRQForCTC, SpeechSSLFeatureExtractor
from hf_speech_ssl.cli import main
from hf_speech_ssl.decoding import build_ctc_processor, estimate_ngrams
from hf_speech_ssl.decoding.ngram import language_model_words
from hf_speech_ssl.evaluation import ErrorCounts
from hf_speech_ssl.recognition.recognizer import Recognizer
from hf_speech_ssl.recognition.tuning import Trial, choose

SENTENCES = ["call anna now", "call david", "", "anna and david call", "please call anna now", "please"]
sentences = st.lists(st.lists(st.sampled_from(["a", "b", "c", "<unk>"]), max_size=5).map(" ".join), max_size=6)


def read_arpa(path):
    """log10 probabilities and backoffs, by n-gram."""
    probabilities, backoffs = {}, {}
    for line in path.read_text(encoding="utf-8").splitlines():
        fields = line.split("\t")
        if len(fields) > 1:
            ngram = tuple(fields[1].split(" "))
            probabilities[ngram] = float(fields[0])
            backoffs[ngram] = float(fields[2]) if len(fields) > 2 else 0.0
    return probabilities, backoffs


def look_up(arpa, history, word):
    """log10 P(word | history), as Katz (1987) reads such a table."""
    probabilities, backoffs = arpa
    if (*history, word) in probabilities:
        return probabilities[(*history, word)]
    return backoffs.get(history, 0.0) + look_up(arpa, history[1:], word)


def write(tmp_path, texts, order):
    path = tmp_path / "lm.arpa"
    estimate_ngrams(texts, order).write_arpa(path)
    return path


@given(sentences.filter(any), st.integers(2, 5))
@settings(deadline=None, max_examples=30)
def test_every_distribution_adds_up_to_one(tmp_path_factory, texts, order):
    arpa = read_arpa(write(tmp_path_factory.mktemp("lm"), texts, order))
    words = [ngram[0] for ngram in arpa[0] if len(ngram) == 1 and ngram != ("<s>",)]
    assert {"<unk>", "</s>"} <= set(words)
    histories = {ngram[:-1] for ngram in arpa[0]} | {("<s>", "a"), ("b", "b", "b"), ("c",), ("never", "heard")}
    for history in histories:
        total = sum(10 ** look_up(arpa, history, word) for word in words)
        assert total == pytest.approx(1.0, abs=1e-5), history


def test_the_probabilities_are_witten_and_bells():
    model = estimate_ngrams(["a a b", "a"], order=2)
    uniform = 1 / 4  # a, b, </s>, <unk>
    a, b, end, unknown = ((count + 3 * uniform) / (6 + 3) for count in (3, 1, 2, 0))
    unigrams = model.probabilities[0]
    assert [unigrams[word,] for word in ("a", "b", "</s>", "<unk>")] == pytest.approx([a, b, end, unknown])
    bigrams = {("<s>", "a"): (2 + a) / 3, ("a", "a"): (1 + 3 * a) / 6, ("a", "b"): (1 + 3 * b) / 6}
    bigrams |= {("a", "</s>"): (1 + 3 * end) / 6, ("b", "</s>"): (1 + end) / 2}
    assert model.probabilities[1] == pytest.approx(bigrams)
    assert model.backoffs == pytest.approx({("<s>",): 1 / 3, ("a",): 1 / 2, ("b",): 1 / 2})


@pytest.mark.parametrize("order", [2, 3, 6])
@pytest.mark.parametrize("texts", [SENTENCES, ["one"]])
def test_kenlm_reads_the_same_scores(tmp_path, texts, order):
    kenlm = pytest.importorskip("flashlight.lib.text.decoder.kenlm")
    from flashlight.lib.text.dictionary import Dictionary

    path = write(tmp_path, texts, order)
    arpa, words = read_arpa(path), [*language_model_words(path), "unheard"]
    dictionary = Dictionary()
    for word in words:
        dictionary.add_entry(word)
    model = kenlm.KenLM(str(path), dictionary)
    for sentence in itertools.product(range(len(words)), repeat=3):
        state, said = model.start(False), ("<s>",)
        for index in sentence:
            word = words[index] if words[index] != "unheard" else "<unk>"
            state, score = model.score(state, index)
            assert score == pytest.approx(look_up(arpa, said[1 - order :], word), abs=1e-4)
            said += (word,)
        assert model.finish(state)[1] == pytest.approx(look_up(arpa, said[1 - order :], "</s>"), abs=1e-4)


def test_more_likely_are_sentences_like_those_heard(tmp_path):
    arpa = read_arpa(write(tmp_path, SENTENCES, 3))

    def score(text):
        words = ("<s>", *text.split(), "</s>")
        return sum(look_up(arpa, words[max(0, end - 2) : end], words[end]) for end in range(1, len(words)))

    assert score("please call david") > score("david call please") > score("<unk> <unk> <unk>")


@pytest.mark.parametrize(
    ("texts", "order", "words"),
    [
        ([], 3, "no sentences"),
        (["", " \n"], 3, "no sentences"),
        (["a <s> b"], 3, "Sentence 0 holds <s>"),
        (["a"], 1, "order must be 2 to 6"),
        (["a"], 7, "order must be 2 to 6"),
    ],
)
def test_estimation_refuses(texts, order, words):
    with pytest.raises(ValueError, match=words):
        estimate_ngrams(texts, order)


def test_ngram_command(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("Call Anna, now!\r\n\r\n", encoding="utf-8")
    with gzip.open(tmp_path / "b.txt.gz", "wt") as file:
        file.write("it's an Ü\n")
    texts, output = [str(tmp_path / name) for name in ("a.txt", "b.txt.gz")], tmp_path / "new" / "lm.arpa"
    assert main(["ngram", *texts, "--output_file", str(output), "--order", "3"]) == 0
    assert sorted(language_model_words(output)) == ["an", "anna", "call", "it's", "now", "ü"]
    assert "9 1-grams, 8 2-grams, 6 3-grams" in capsys.readouterr().out
    assert main(["ngram", *texts, "--output_file", str(output), "--no_normalize_text"]) == 0
    assert sorted(language_model_words(output)) == ["Anna,", "Call", "an", "it's", "now!", "Ü"]
    (tmp_path / "latin.txt").write_bytes(b"\xe9t\xe9\n")
    (tmp_path / "fake.gz").write_bytes(b"no gzip")
    for name, words in (("latin.txt", "not UTF-8"), ("fake.gz", "gzip"), ("none.txt", "none.txt")):
        assert main(["ngram", str(tmp_path / name), "--output_file", str(output)]) == 1
        error = capsys.readouterr().err
        assert words in error and "Traceback" not in error


TEXTS = ["call anna now", "please call david", "david and anna"]


@pytest.fixture(scope="module")
def heard(tmp_path_factory):
    """A saved model, a folder of three recordings, and a stand-in for what the model says about them.

    It prefers "m" to every "a". The recordings' lengths tell which text is said: a tiny model has learned nothing.
    """
    folder = tmp_path_factory.mktemp("tune")
    processor = build_ctc_processor([*TEXTS, "m"], SpeechSSLFeatureExtractor())
    tokenizer = processor.tokenizer
    torch.manual_seed(0)
    BiRQForCTC(tiny_birq(vocab_size=len(tokenizer), pad_token_id=0)).save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    data = folder / "data" / "validation"
    data.mkdir(parents=True)
    for index in range(3):
        soundfile.write(data / f"{index}.wav", speech_like((index + 1) / 4), 16_000)
    rows = ["file_name,text", *(f"{index}.wav,{text.title()}!" for index, text in enumerate(TEXTS))]
    (data / "metadata.csv").write_text("\n".join(rows))

    def decoder_frames(self, waveforms, chunk_duration_ms=0):
        rows = []
        for waveform in waveforms:
            ids = [frame for letter in tokenizer(TEXTS[len(waveform) // 4000 - 1]).input_ids for frame in (letter, 0)]
            row = torch.nn.functional.one_hot(torch.tensor(ids), len(tokenizer)).float() * 12
            confused = torch.tensor(ids) == tokenizer.convert_tokens_to_ids("a")
            row[confused, tokenizer.convert_tokens_to_ids("m")] = 12.5
            rows.append(row.log_softmax(-1))
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), torch.tensor([len(row) for row in rows])

    return folder, decoder_frames


def test_tune_command(heard, tmp_path, capsys, monkeypatch):
    folder, log_probs = heard
    lm, report = str(tmp_path / "l m.arpa"), tmp_path / "new" / "grid.json"
    estimate_ngrams(TEXTS * 2, 3).write_arpa(lm)
    monkeypatch.setattr(Recognizer, "decoder_frames", log_probs)
    command = ["tune", str(folder / "model"), str(folder / "data"), "--lm_path", lm, "--output_file", str(report)]
    assert main([*command, "--lm_weights", "9", "0.5", "1", "--word_bonuses", "0", "-300", "2"]) == 0
    printed = capsys.readouterr().out
    results = json.loads(report.read_text())
    assert results["utterances"] == 3 and results["split"] == "validation"
    assert results["wer_greedy"] == pytest.approx(8 / 9)  # every word with an a
    by_pair = {(trial["lm_weight"], trial["word_bonus"]): trial for trial in results["trials"]}
    assert list(by_pair) == list(itertools.product((0.5, 1.0, 9.0), (-300.0, 0.0, 2.0)))
    assert by_pair[1.0, 0.0]["wer"] == 0.0 and by_pair[1.0, 0.0]["hits"] == 9
    assert by_pair[1.0, -300.0]["wer"] > 0.5 and by_pair[1.0, -300.0]["deletions"] > 4
    assert results["best"] == by_pair[1.0, 0.0]
    assert results["lm_path"] == Path(lm).name and results["lexicon_path"] is None
    assert f"--lm_path '{lm}' --beam_size 50 --lm_weight 1 --word_bonus 0" in printed and "Warning" not in printed
    assert "Greedy: 88.89%. Best: 0.00%" in printed
    assert re.search(r"^ +1 \| +\d\d.\d\d +0.00 +0.00$", printed, flags=re.MULTILINE)
    assert main([*command, "--lm_weights", "1", "0.5", "--word_bonuses", "-300", "-200"]) == 0
    printed = capsys.readouterr().out
    assert "The best lm_weight, 0.5, is the smallest one tried" in printed
    assert "The best word_bonus, -200, is the largest one tried" in printed


def test_tune_hears_with_the_model_itself(heard, tmp_path, capsys):
    folder, _ = heard
    (tmp_path / "words.txt").write_text("anna\ncall\n")
    estimate_ngrams(TEXTS, 2).write_arpa(tmp_path / "lm.arpa")
    command = ["tune", str(folder / "model"), str(folder / "data"), "--lm_path", str(tmp_path / "lm.arpa")]
    command += ["--lm_weights", "1", "--word_bonuses", "0", "--lexicon_path", str(tmp_path / "words.txt")]
    assert main([*command, "--max_samples", "2", "--batch_seconds", "1", "--beam_size", "5"]) == 0
    printed, progress = capsys.readouterr()
    assert "--lexicon_path" in printed and "--beam_size 5" in printed
    assert "hear" not in progress and "decode" not in progress  # no bars outside a terminal
    for extra, words in (
        (["--lm_path", str(tmp_path / "none.arpa")], "none.arpa"),
        (["--lm_weights", "-1"], "lm_weight must be 0 or more"),
        (["--beam_size", "0"], "beam_size"),
        (["--output_file", str(tmp_path)], "is a folder"),
        (["--split_name", "dev"], "dev"),
        (["--text_column_name", "words"], "words"),
    ):
        assert main([*command, *extra]) == 1
        error = capsys.readouterr().err
        assert words in error and "Traceback" not in error


def errors(wrong):
    return ErrorCounts(substitutions=wrong, hits=100 - wrong)


def test_choose_prefers_the_inside_of_the_grid():
    grid = itertools.product((0.5, 1.0, 2.0), (-1.0, 0.0, 1.0))
    trials = [Trial(weight, bonus, errors(3 if weight > 0.5 else 2)) for weight, bonus in grid]
    assert (choose(trials).lm_weight, choose(trials).word_bonus) == (0.5, 0.0)
    trials = [Trial(trial.lm_weight, trial.word_bonus, errors(2)) for trial in trials]
    assert (choose(trials).lm_weight, choose(trials).word_bonus) == (1.0, 0.0)
