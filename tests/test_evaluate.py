"""Bootstrap intervals against slow loops and known answers, scores of known transcripts, the command end to end."""

import json

import numpy as np
import pytest
from datasets import Dataset
from families import FAMILIES
from hypothesis import given, settings
from hypothesis import strategies as st
from test_recognizer import ours
from transformers import pipeline

from hf_speech_ssl import cli
from hf_speech_ssl.commands.evaluate import EvaluateOptions, evaluate
from hf_speech_ssl.data.audio import load_audio
from hf_speech_ssl.data.synthetic import build_synthetic
from hf_speech_ssl.evaluation import align_words, bootstrap_ratios, count_word_errors, normalize_text
from hf_speech_ssl.evaluation import bootstrap as bootstrap_module
from hf_speech_ssl.evaluation.report import _speaker_lines, aligned_lines, as_text, markdown_table
from hf_speech_ssl.evaluation.scores import MIN_SPEAKERS, Scores, Transcript
from hf_speech_ssl.options import DecodingOptions, LoadingOptions, ReadingOptions
from hf_speech_ssl.run_folder import Evaluation

# --- intervals


def slow_bootstrap(numerators, denominators, groups, num_resamples, seed):
    """Draws whole groups of rows and adds them up, one after the other."""
    generator = np.random.default_rng(seed)
    names = list(dict.fromkeys(groups))
    rates = []
    for _ in range(num_resamples):
        top = bottom = 0.0
        for pick in generator.integers(len(names), size=len(names)):
            for row, group in enumerate(groups):
                if group == names[pick]:
                    top += numerators[row]
                    bottom += denominators[row]
        rates.append(top / bottom)
    return np.quantile(rates, 0.025), np.quantile(rates, 0.975)


@pytest.mark.parametrize("at_once", [1, 100, 10**6])
@pytest.mark.parametrize("by_speaker", [False, True])
def test_intervals_are_those_of_a_slow_loop(by_speaker, at_once, monkeypatch):
    monkeypatch.setattr(bootstrap_module, "_COUNTS_AT_ONCE", at_once)
    rng = np.random.default_rng(1)
    words = rng.integers(1, 9, size=23)
    errors = np.stack([rng.integers(0, words + 1), rng.integers(0, words + 1)], axis=1)
    speakers = rng.choice(list("abcdefg"), size=23).tolist()
    groups = speakers if by_speaker else list(range(23))
    lengths = np.stack([words, words], axis=1)
    estimates = bootstrap_ratios(errors, lengths, speakers if by_speaker else None, num_resamples=150, seed=5)
    for column, estimate in enumerate(estimates):
        low, high = slow_bootstrap(errors[:, column], words, groups, 150, 5)
        assert estimate.value == errors[:, column].sum() / words.sum()
        assert (estimate.low, estimate.high) == pytest.approx((low, high))


def test_the_interval_of_one_word_utterances_is_the_binomial_one():
    errors = (np.arange(400) < 100)[:, None]
    (estimate,) = bootstrap_ratios(errors, np.ones((400, 1)), num_resamples=4000)
    half = 1.96 * np.sqrt(0.25 * 0.75 / 400)
    assert estimate.value == 0.25
    assert (estimate.low, estimate.high) == pytest.approx((0.25 - half, 0.25 + half), abs=0.004)


def test_utterances_of_speakers_who_err_together_are_no_independent_witnesses():
    errors = np.repeat([[0], [1]] * 15, 10, axis=0)  # 30 speakers of 10 one-word utterances, all right or all wrong
    speakers = np.repeat(np.arange(30), 10).tolist()
    ones = np.ones_like(errors)
    (alone,), (together,) = (bootstrap_ratios(errors, ones, groups, 4000) for groups in (None, speakers))
    # The variance is ten times as large: it is that of 30 draws, not of 300.
    ratio = (together.high - together.low) / (alone.high - alone.low)
    assert ratio == pytest.approx(10**0.5, rel=0.1)


def test_intervals_where_there_is_nothing_to_draw_from():
    (one,) = bootstrap_ratios([[1]], [[4]])
    assert (one.value, one.low, one.high) == (0.25, None, None)
    (one,) = bootstrap_ratios([[1], [1]], [[4], [4]], groups=["a", "a"])
    assert one.low is None
    (none,) = bootstrap_ratios([[1], [0]], [[4], [4]], num_resamples=0)
    assert none.low is None
    (perfect,) = bootstrap_ratios([[0], [0]], [[4], [4]])
    assert (perfect.value, perfect.low, perfect.high) == (0, 0, 0)
    # A resample may hold the utterance without words alone.
    (estimate,) = bootstrap_ratios([[1], [1]], [[0], [4]])
    assert estimate.value == 0.5 and np.isfinite([estimate.low, estimate.high]).all()


def test_bootstrap_refuses_what_is_no_ratio():
    with pytest.raises(ValueError, match="denominator"):
        bootstrap_ratios([[1]], [[0]])
    with pytest.raises(ValueError, match="no groups"):
        bootstrap_ratios([[1]], [[1, 2]])
    with pytest.raises(ValueError, match="2 groups"):
        bootstrap_ratios([[1]], [[1]], groups=["a", "b"])
    with pytest.raises(ValueError, match="num_resamples"):
        bootstrap_ratios([[1]], [[1]], num_resamples=-1)


# --- scores

texts = st.text(alphabet="ab ", max_size=14)


@given(texts, texts)
@settings(deadline=None, max_examples=80)
def test_alignments_hold_both_texts_and_the_edits_that_are_counted(hypothesis, reference):
    pairs = align_words(hypothesis, reference)
    assert [true for true, _ in pairs if true is not None] == reference.split()
    assert [guess for _, guess in pairs if guess is not None] == hypothesis.split()
    counts = count_word_errors([hypothesis], [reference])
    substituted = sum(None is not true != guess is not None for true, guess in pairs)
    assert substituted == counts.substitutions
    assert sum(guess is None for _, guess in pairs) == counts.deletions
    assert sum(true is None for true, _ in pairs) == counts.insertions


def test_aligned_text_stands_word_under_word():
    pairs = align_words("the bat on on mat", "the cat sat on mat")
    assert aligned_lines(pairs, width=100) == [
        "ref: the cat sat on mat",
        "hyp: the bat on  on mat",
        "         S   S",
    ]
    pairs = [("one", "one"), ("two", None), (None, "three")]
    assert aligned_lines(pairs) == ["ref: one two *****", "hyp: one *** three", "         D   I"]
    broken = aligned_lines(pairs, width=14)
    assert broken == ["ref: one two", "hyp: one ***", "         D", "ref: *****", "hyp: three", "     I"]
    assert aligned_lines([("日本", "a"), ("b", "b")]) == ["ref: 日本 b", "hyp: a    b", "     S"]


def test_speakers_without_errors_are_counted_and_not_shown():
    def lines(errors: list[float]) -> str:
        entry = {"utterances": 1, "words": 4, "cer": 0.1, "substitutions": 0.0, "deletions": 0.0, "insertions": 0.0}
        speakers = [entry | {"speaker": f"s{at}", "wer": wer} for at, wer in enumerate(errors)]
        return " ".join(_speaker_lines(speakers))

    assert "s20" not in lines([0.5] * 25) and "Not shown: 5 speakers with no higher WER, 0 without" in lines(
        [0.5] * 25
    )
    assert "s1 " in lines([0.5, 0.25]) and "Not shown" not in lines([0.5, 0.25])
    assert "s1" not in lines([0.5, 0.0]) and "Not shown: 1 speaker with no higher WER, 1 without" in lines([0.5, 0.0])
    assert lines([0.0, 0.0]) == "No errors of 2 speakers."


SPOKEN = [
    # reference, offline, 320 ms, speaker
    ("one two three four", "one two three four", "one two four", "ann"),
    ("five six", "five", "five", "ann"),
    ("seven", "seven eight nine", "seven", "bob"),
    ("", "uh", "", "bob"),
]


def transcripts(speakers: bool = True) -> list[Transcript]:
    return [
        Transcript(f"{index}.wav", index, 1.5, said, {"offline": one, "320 ms": two}, who if speakers else None)
        for index, (said, one, two, who) in reversed(list(enumerate(SPOKEN)))
    ]


def test_scores_of_known_transcripts():
    scores = Scores(transcripts(), num_resamples=200)
    offline, chunks = scores.by_mode().values()
    assert (offline["words"], offline["utterances"], offline["correct_utterances"]) == (7, 4, 1)
    assert offline["wer"]["value"] == 4 / 7 and offline["word_errors"] == 4
    assert [offline[kind]["count"] for kind in ("substitutions", "deletions", "insertions")] == [0, 1, 3]
    assert offline["insertions"]["value"] == 3 / 7
    assert offline["cer"]["value"] == (4 + 11 + 2) / (18 + 8 + 5)
    assert offline["wer"]["low"] < 4 / 7 < offline["wer"]["high"]
    assert chunks["wer"]["value"] == 2 / 7
    assert chunks["wer_change"]["value"] == pytest.approx(-2 / 7) and "wer_change" not in offline
    assert scores.resampled == "utterances"


def test_a_change_is_paired():
    """Two modes that err alike have wide intervals, and none around their difference."""
    rng = np.random.default_rng(0)
    heard = ["right" if right else "wrong" for right in rng.random(60) < 0.5]
    same = [Transcript("", at, 1.0, "right", {"a": one, "b": one}) for at, one in enumerate(heard)]
    other = Scores(same).by_mode()["b"]
    assert other["wer"]["high"] - other["wer"]["low"] > 0.2
    assert other["wer_change"] == {"value": 0.0, "low": 0.0, "high": 0.0}


def test_speakers_and_worst_utterances():
    scores = Scores(transcripts())
    ann, bob = sorted(scores.by_speaker(), key=lambda entry: entry["speaker"])
    assert scores.by_speaker()[0] == bob  # the highest WER first
    assert (bob["wer"], bob["words"], bob["utterances"], bob["seconds"]) == (3.0, 1, 2, 3.0)
    assert (ann["wer"], ann["deletions"], ann["cer"]) == (1 / 6, 1 / 6, 4 / 26)
    worst = scores.worst(10)
    assert [(entry["index"], entry["errors"]) for entry in worst] == [(2, 2), (3, 1), (1, 1)]
    assert worst[0]["alignment"] == [("seven", "seven"), (None, "eight"), (None, "nine")]
    assert scores.worst(1) == worst[:1] and scores.worst(0) == []
    assert Scores(transcripts(speakers=False)).by_speaker() == []


def test_a_speaker_who_says_no_word_has_no_rate():
    silent = Transcript("", 9, 1.0, "", {"offline": "", "320 ms": ""}, "eve")
    assert Scores([*transcripts(), silent]).by_speaker()[-1] | {"wer": 1} == {
        "speaker": "eve",
        "utterances": 1,
        "seconds": 1.0,
        "words": 0,
        "wer": 1,
        "cer": None,
        "substitutions": None,
        "deletions": None,
        "insertions": None,
    }


def test_speakers_are_drawn_where_there_are_enough():
    def of(count: int) -> Scores:
        return Scores([Transcript("", at, 1.0, "a", {"offline": "a"}, f"{at}") for at in range(count)])

    assert of(MIN_SPEAKERS).resampled == "speakers"
    assert of(MIN_SPEAKERS - 1).resampled == "utterances"
    # Speakers of 10 utterances each, all right or all wrong: the interval is that of so many draws of speakers.
    said = [Transcript("", at, 1.0, "a", {"offline": "ab"[at // 10 % 2]}, f"{at // 10}") for at in range(200)]
    (expected,) = bootstrap_ratios(
        [[at // 10 % 2] for at in range(200)], [[1]] * 200, [at // 10 for at in range(200)], num_resamples=500
    )
    wer = Scores(said, num_resamples=500).by_mode()["offline"]["wer"]
    assert (wer["low"], wer["high"]) == (expected.low, expected.high) and wer["high"] - wer["low"] > 0.3
    partly = [*of(MIN_SPEAKERS).transcripts, Transcript("", 99, 1.0, "a", {"offline": "a"})]
    assert Scores(partly).resampled == "utterances"


def test_scores_refuse_references_without_words():
    with pytest.raises(ValueError, match="needs references with text"):
        Scores([Transcript("", 0, 1.0, "", {"offline": "a"})])
    with pytest.raises(ValueError, match="nothing to score"):
        Scores([])


def test_tables_stand_in_columns_and_keep_bars_and_lines_inside_cells():
    assert markdown_table(["mode", "x"], [["a|b\nc", "1"], ["d", "200"]]) == [
        "| mode   |   x |",
        "| ------ | --: |",
        "| a\\|b c |   1 |",
        "| d      | 200 |",
    ]


# --- the command

pytest.importorskip("espeakng_loader", reason="needs the extra `synthetic`")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Tiny models of both families with random weights that speak, a corpus of 9 utterances, one of them broken."""
    root = tmp_path_factory.mktemp("evaluate")
    corpus = build_synthetic("test", num_sentences=9, cache_dir=root / "cache")
    rows = [corpus[index] for index in range(9)]
    rows[4] = {**rows[4], "audio": {"bytes": b"no audio", "path": None}}
    Dataset.from_list(rows).select_columns(["audio", "text", "speaker_id"]).save_to_disk(root / "corpus")
    for family in FAMILIES:
        for part in ours(family, alphabet=" ".join(row["text"] for row in rows)):
            part.save_pretrained(root / family)
    return root


def run(folders, family: str, *options: str) -> dict:
    """What the command writes."""
    report = folders / "reports" / "report.json"
    line = ["evaluate", str(folders / family), str(folders / "corpus"), "--split_name", "train", "--device", "cpu"]
    assert cli.main([*line, "--output_file", str(report), *options]) == 0
    return json.loads(report.read_text(encoding="utf-8"))


def test_chunk_ssl_is_measured_in_chunks_too(folders, capsys):
    report = run(folders, "chunkssl", "--chunk_durations_ms", "160", "320", "--num_worst", "3")
    assert list(report["modes"]) == ["offline", "160 ms", "320 ms"]
    one = report["modes"]["160 ms"]
    assert (one["latency_ms"], one["mean_latency_ms"]) == (320, 240)  # the chunk and its look-ahead, half and all
    assert "latency_ms" not in report["modes"]["offline"]
    assert one["wer"]["low"] <= one["wer"]["value"] <= one["wer"]["high"]
    assert {mode["utterances"] for mode in report["modes"].values()} == {8}
    assert all(mode["real_time_factor"] > 0 for mode in report["modes"].values())
    assert len({mode["cer"]["value"] for mode in report["modes"].values()}) > 1  # chunks give other hypotheses
    assert sum(entry["words"] for entry in report["speakers"]) == one["words"]
    assert len(report["worst"]) == 3
    expected = {"decoder": "greedy decoding", "normalize_text": True, "skipped": {"not audio": 1}, "seed": 0}
    assert expected.items() <= report["settings"].items()
    printed, progress = capsys.readouterr()
    assert printed.strip() == as_text(Evaluation(**report))  # what is written says all that is printed
    for text in ("| offline", "| 160 ms", "320 (240)", "Files left out: 1 not audio.", "## Speakers", "ref:"):
        assert text in printed
    assert "utterance/s" not in progress  # no bar outside a terminal
    assert "WER to offline" in printed
    for mode in report["modes"].values():  # rates that a trained model may have
        for name in ("wer", "cer", "wer_change", "substitutions", "deletions", "insertions"):
            mode[name] = {"value": 0.37766, "low": 0.33007, "high": 0.42955}
    lines = as_text(Evaluation(**report)).splitlines()
    assert max(map(len, lines[1 : lines.index("## Speakers")])) <= 80  # below the title, with its paths


def test_latency_of_live_streams(folders, capsys):
    report = run(folders, "chunkssl", "--chunk_durations_ms", "160", "320", "--latency", "--max_samples", "3")
    assert "## Live streams" in capsys.readouterr().out
    assert "live" not in report["modes"]["offline"]
    for mode in ("160 ms", "320 ms"):
        live = report["modes"][mode]["live"]
        assert 0 < live["step"]["median"] <= live["step"]["p99"] and live["final_delay"]["median"] > 0
    with pytest.raises(ValueError, match="give --chunk_durations_ms, such as 320"):
        EvaluateOptions(model_name_or_path="any", latency=True)


def test_figures_are_those_of_the_model_asked_directly(folders):
    report = run(folders, "birq", "--num_worst", "9", "--num_resamples", "0", "--batch_seconds", "4")
    listen = pipeline("automatic-speech-recognition", str(folders / "birq"), device="cpu")
    corpus = Dataset.load_from_disk(folders / "corpus")
    hypotheses, references = {}, {}
    for index, row in enumerate(corpus):
        if index != 4:
            hypotheses[index] = listen({"raw": load_audio(row["audio"]), "sampling_rate": 16_000})["text"]
            references[index] = row["text"]
    errors = count_word_errors(list(hypotheses.values()), list(references.values()))
    offline = report["modes"]["offline"]
    assert offline["wer"] == {"value": errors.rate, "low": None, "high": None}
    assert [offline[kind]["count"] for kind in ("substitutions", "deletions", "insertions")] == [
        errors.substitutions,
        errors.deletions,
        errors.insertions,
    ]
    worst = {entry["index"]: entry for entry in report["worst"]}
    assert {at: entry["reference"] for at, entry in worst.items()} == references
    assert {at: entry["hypothesis"] for at, entry in worst.items()} == {
        at: normalize_text(text) for at, text in hypotheses.items()
    }
    assert all(entry["name"].endswith(f"(example {entry['index']})") for entry in report["worst"])


def test_texts_are_compared_as_they_are_when_asked(folders, tmp_path):
    corpus = Dataset.load_from_disk(folders / "corpus").select([0, 1])
    corpus.map(lambda row: {"text": row["text"].upper() + "!"}).save_to_disk(tmp_path / "shouted")

    def report_of(**options):
        options = EvaluateOptions(model_name_or_path=str(folders / "birq"), num_resamples=0, **options)
        reading = ReadingOptions(str(tmp_path / "shouted"), split_name="train")
        return evaluate(options, reading, LoadingOptions(device="cpu"), DecodingOptions())

    report = report_of()
    assert "!" not in report.worst[0]["reference"]
    report = report_of(normalize_text=False)
    assert report.worst[0]["reference"].endswith("!") and report.modes["offline"]["wer"]["value"] >= 1


def test_a_lexicon_changes_what_is_read(folders, tmp_path):
    pytest.importorskip("flashlight.lib.text", reason="needs the extra `lm`")
    (tmp_path / "words").write_text("the\n")
    report = run(folders, "birq", "--lexicon_path", str(tmp_path / "words"), "--max_samples", "3")
    assert report["modes"]["offline"]["utterances"] == 3
    assert report["settings"]["decoder"] == "beam search"
    assert {word for entry in report["worst"] for word in entry["hypothesis"].split()} <= {"the"}


def test_what_cannot_be_measured_is_refused_in_words(folders, tmp_path, capsys):
    def refused(model: str, *options: str) -> str:
        line = ["evaluate", str(folders / model), str(folders / "corpus"), "--split_name", "train", "--device", "cpu"]
        assert cli.main([*line, *options]) == 1
        return capsys.readouterr().err.strip().splitlines()[-1]

    assert "takes whole utterances" in refused("birq", "--chunk_durations_ms", "320")
    assert "whole number of encoder frames" in refused("chunkssl", "--chunk_durations_ms", "100")
    assert "no model folder" in refused("nothing")
    assert "num_resamples" in refused("birq", "--num_resamples", "7")
    assert "is a folder" in refused("birq", "--output_file", str(tmp_path))
    assert "'words'" in refused("birq", "--text_column_name", "words")
    assert "no.arpa" in refused("birq", "--lm_path", str(tmp_path / "no.arpa"))
