"""Error rates against a slow edit distance."""

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_speech_ssl.evaluation import (
    CharacterErrorRate,
    ErrorCounts,
    WordErrorRate,
    count_character_errors,
    count_word_errors,
    normalize_text,
)


@pytest.fixture(autouse=True)
def metrics_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("evaluate.config.HF_METRICS_CACHE", str(tmp_path))


# --- error rates


def slow_edits(prediction, reference) -> int:
    @cache
    def edits(p: int, r: int) -> int:
        if 0 in (p, r):
            return p + r
        same = prediction[p - 1] == reference[r - 1]
        return min(edits(p - 1, r - 1) + (not same), edits(p - 1, r) + 1, edits(p, r - 1) + 1)

    return edits(len(prediction), len(reference))


texts = st.text(alphabet="ab ", max_size=12)


@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=4))
@settings(deadline=None, max_examples=60)
def test_counts_equal_a_slow_edit_distance(pairs):
    predictions, references = zip(*pairs, strict=True)
    words = count_word_errors(predictions, references)
    characters = count_character_errors(predictions, references)
    for counts, split in ((words, str.split), (characters, lambda text: " ".join(text.split()))):
        errors = sum(slow_edits(split(p), split(r)) for p, r in pairs)
        assert counts.substitutions + counts.deletions + counts.insertions == errors
        assert counts.reference_length == sum(len(split(r)) for r in references)
        surplus = sum(len(split(p)) - len(split(r)) for p, r in pairs)
        assert counts.insertions - counts.deletions == surplus
    assert sum((count_word_errors([p], [r]) for p, r in pairs), ErrorCounts()) == words


def test_metrics_give_rates_and_counts_at_once_or_in_batches():
    predictions = ["the cat sat", "on mat", "and so on"]
    references = ["the cat sat", "on the mat", "and now"]
    metric = WordErrorRate()
    at_once = metric.compute(predictions=predictions, references=references)
    assert at_once == {
        "wer": 3 / 8,
        "word_substitutions": 1,
        "word_deletions": 1,
        "word_insertions": 1,
        "num_words": 8,
    }
    metric.add_batch(predictions=predictions[:2], references=references[:2])
    metric.add(prediction=predictions[2], reference=references[2])
    assert metric.compute() == at_once
    on_disk = WordErrorRate(keep_in_memory=False)
    assert on_disk.compute(predictions=predictions, references=references) == at_once
    characters = CharacterErrorRate().compute(predictions=["ab  c\n"], references=["ab d"])
    assert characters["cer"] == 1 / 4 and characters["character_substitutions"] == 1


def test_an_empty_reference_counts_its_insertions():
    result = WordErrorRate().compute(predictions=["oh no", "a b"], references=["", "a b"])
    assert result["wer"] == 1.0 and result["word_insertions"] == 2
    assert WordErrorRate().compute(predictions=["", ""], references=["", "a b"])["wer"] == 1.0


@pytest.mark.parametrize("metric", [WordErrorRate, CharacterErrorRate])
@pytest.mark.parametrize(
    ("inputs", "error", "words"),
    [
        ({"predictions": ["a"], "references": [" "]}, ValueError, "only empty ones"),
        ({"predictions": [], "references": []}, ValueError, "only empty ones"),
        ({}, ValueError, "add_batch"),
        ({"predictions": ["a"], "references": ["a", "b"]}, ValueError, "1 predictions for 2"),
        ({"predictions": ["a", "b"], "references": ["a", None]}, TypeError, r"references\[1\] is None"),
        ({"predictions": ["a", ["b"]], "references": ["a", "b"]}, TypeError, r"predictions\[1\]"),
        ({"predictions": "a", "references": "b"}, TypeError, "list of strings"),
        ({"predictions": ["a"]}, TypeError, "references must be"),
    ],
)
def test_metrics_refuse(metric, inputs, error, words):
    with pytest.raises(error, match=words):
        metric().compute(**inputs)


def test_normalize_text():
    assert normalize_text("  “Don’t\tpanic!”,\n she said – twice|2×. ") == "don't panic she said twice 2"
    assert normalize_text("Well-known: CAFE\u0301 $5") == "well known caf\u00e9 5"
    assert normalize_text("J\u030c") == "\u01f0"  # one character in lower case only
    assert normalize_text("...") == ""
    with pytest.raises(TypeError, match="NoneType"):
        normalize_text(None)


NORMALIZED = {
    "invisible characters": ("ma\u200bria \ufeffand p\u00adeter\u200e\u2060", "maria and peter"),
    "bidi marks and tags": ("\u202aabc\u202c \u2067d\u2069\U000e0041", "abc d"),
    "joined emoji": ("yes \U0001f468\u200d\U0001f469\u200d\U0001f467 no \u2764\ufe0f", "yes no"),
    "keycaps": ("press 1\ufe0f\u20e3 now", "press 1 now"),
    "control characters": ("a\x00b\x07 c\x1f", "ab c"),
    "fillers": ("a\u3164b\u034fc", "abc"),
    "the Turkish capital": ("\u0130stanbul", "istanbul"),
    "the same, decomposed": ("I\u0307STANBUL", "istanbul"),
    "the same, lower-cased elsewhere": ("\u0130stanbul".lower(), "istanbul"),
    "a Persian non-joiner": ("\u0645\u06cc\u200c\u0631\u0648\u0645", "\u0645\u06cc\u200c\u0631\u0648\u0645"),
    "a non-joiner at the end": ("\u0645\u06cc\u200c \u0631", "\u0645\u06cc \u0631"),
    "a non-joiner in Latin": ("auf\u200clage", "auflage"),
    "a joiner behind a virama": ("\u0d15\u0d4d\u200d", "\u0d15\u0d4d\u200d"),
    "a joiner elsewhere": ("ab\u200dc", "abc"),
    "tatweel": ("\u0633\u0640\u0640\u0644\u0627\u0645", "\u0633\u0644\u0627\u0645"),
    "Khmer words": ("\u1781\u17d2\u1789\u17bb\u17c6\u200b\u1791\u17c5", "\u1781\u17d2\u1789\u17bb\u17c6 \u1791\u17c5"),
    "lone apostrophes": ("rock ' n '' roll \u2019", "rock n roll"),
}


@pytest.mark.parametrize("case", NORMALIZED)
def test_what_cannot_be_seen_is_no_difference(case):
    text, expected = NORMALIZED[case]
    assert normalize_text(text) == expected


@pytest.mark.parametrize("sign", "'\u2019\u2018\u201b\u02bc\u02bb\u02b9\u2032\u00b4`\uff07\u055a\u05f3\ua78c")
def test_every_apostrophe_is_the_same(sign):
    assert normalize_text(f"Don{sign}t o{sign}clock") == "don't o'clock"


@given(st.text(max_size=20))
@settings(deadline=None)
def test_normalizing_twice_changes_nothing(text):
    once = normalize_text(text)
    assert normalize_text(once) == once
