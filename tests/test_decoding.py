"""Greedy CTC against itertools.groupby, times against the tokenizer's own, the character tokenizer's life cycle."""

import itertools
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoProcessor, AutoTokenizer, SeamlessM4TFeatureExtractor, Wav2Vec2CTCTokenizer

from hf_speech_ssl.decoding import (
    TimedText,
    TokenSpan,
    build_ctc_processor,
    build_ctc_tokenizer,
    character_times,
    ctc_text,
    greedy_ctc,
    greedy_ctc_spans,
    unknown_characters,
    word_times,
)
from hf_speech_ssl.modeling.feature_extraction_speech_ssl import SpeechSSLFeatureExtractor

TEXTS = ["hello world", "it's a café", ""]


def slow_greedy(ids, length, blank):
    return [token for token, _ in itertools.groupby(ids[:length]) if token != blank]


@given(st.data())
@settings(deadline=None)
def test_greedy_equals_groupby(data):
    batch, frames, vocabulary = (data.draw(st.integers(low, 6)) for low in (0, 0, 1))
    blank = data.draw(st.integers(0, vocabulary - 1))
    lengths = [data.draw(st.integers(0, frames)) for _ in range(batch)]
    tokens = [[data.draw(st.integers(0, vocabulary - 1)) for _ in range(frames)] for _ in range(batch)]
    ids = torch.tensor(tokens, dtype=torch.long).reshape(batch, frames)
    expected = [slow_greedy(row, length, blank) for row, length in zip(tokens, lengths, strict=True)]
    assert greedy_ctc(ids, lengths, blank) == expected
    logits = torch.nn.functional.one_hot(ids, vocabulary).to(torch.bfloat16)
    assert greedy_ctc(logits, torch.tensor(lengths, dtype=torch.long), blank) == expected
    assert greedy_ctc(ids.numpy().astype(np.int32), None, blank) == [slow_greedy(row, frames, blank) for row in tokens]
    for row, length, spans in zip(tokens, lengths, greedy_ctc_spans(ids, lengths, blank), strict=True):
        written = [blank] * length
        for span in spans:
            written[span.start_frame : span.end_frame] = [span.token_id] * (span.end_frame - span.start_frame)
        assert written == row[:length]


def test_padding_is_not_read():
    logits = torch.full((1, 3, 4), float("nan"))
    logits[0, 0] = torch.tensor([0.0, 0.0, 1.0, 0.0])
    assert greedy_ctc_spans(logits, [1]) == [[TokenSpan(2, 0, 1)]]
    assert greedy_ctc(torch.tensor([[2, -100, -100]]), [1]) == [[2]]


@pytest.mark.parametrize(
    ("values", "lengths", "blank", "error", "words"),
    [
        ([[1, 2]], None, 0, TypeError, "list"),
        (torch.zeros(3, 4), None, 0, ValueError, "add a batch axis"),
        (torch.zeros(1, 3, 4, dtype=torch.long), None, 0, ValueError, "integer ids"),
        (torch.zeros(1, 3, dtype=torch.bool), None, 0, ValueError, "torch.bool"),
        (torch.zeros(1, 3, 4), [4], 0, ValueError, r"\[0, 3\], got \[4\]"),
        (torch.zeros(1, 3, 4), [-1], 0, ValueError, "lengths"),
        (torch.zeros(1, 3, 4), [1, 2], 0, ValueError, "lengths"),
        (torch.zeros(1, 3, 4), [1.5], 0, ValueError, "lengths"),
        (torch.zeros(1, 3, 4), None, 4, ValueError, "blank_token_id 4"),
        (torch.full((1, 3, 4), float("nan")), None, 0, ValueError, "NaN"),
    ],
)
def test_greedy_refuses(values, lengths, blank, error, words):
    with pytest.raises(error, match=words):
        greedy_ctc(values, lengths, blank)


@given(st.lists(st.sampled_from([0, 0, 1, 2, 2, 3, 4]), min_size=1, max_size=30))
@settings(deadline=None)
def test_text_and_times_equal_the_tokenizers_own(ids):
    tokenizer = build_ctc_tokenizer(["ab"])
    expected = tokenizer.decode(ids, output_char_offsets=True, output_word_offsets=True)
    spans = greedy_ctc_spans(torch.tensor([ids]))[0]
    assert ctc_text([span.token_id for span in spans], tokenizer) == expected.text
    for times, offsets, name in (
        (character_times(spans, tokenizer, 0.02), expected.char_offsets, "char"),
        (word_times(spans, tokenizer, 0.02), expected.word_offsets, "word"),
    ):
        theirs = [TimedText(o[name], o["start_offset"] * 0.02, o["end_offset"] * 0.02) for o in offsets]
        assert times == theirs
    with pytest.raises(ValueError, match="seconds_per_frame"):
        word_times(spans, tokenizer, 0.0)


def test_double_letters_survive():
    tokenizer = build_ctc_tokenizer(["hello"])
    h, e, l, o = tokenizer("helo").input_ids
    frames = torch.tensor([[h, e, l, 0, l, l, o, 0]])
    ids = greedy_ctc(frames)[0]
    assert ctc_text(ids, tokenizer) == "hello" == tokenizer.batch_decode(frames)[0]
    # What the docstrings warn of; should either become right, the warnings can go.
    assert tokenizer.decode(ids) == "helo" == tokenizer.decode(frames[0], skip_special_tokens=True)


def test_the_vocabulary_is_the_characters_in_a_fixed_order():
    tokenizer = build_ctc_tokenizer(TEXTS)
    assert type(tokenizer) is Wav2Vec2CTCTokenizer
    expected = ["[PAD]", "[UNK]", "|", *"'acdefhilorstwé"]
    assert tokenizer.get_vocab() == {token: index for index, token in enumerate(expected)}
    assert tokenizer.get_vocab() == build_ctc_tokenizer(iter(TEXTS[::-1])).get_vocab()
    assert len(tokenizer) == tokenizer.vocab_size == len(expected)  # no <s> and </s> behind it
    assert (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.word_delimiter_token_id) == (0, 1, 2)
    for text in TEXTS:
        ids = tokenizer(text).input_ids
        assert len(ids) == len(text) and ctc_text(ids, tokenizer) == text


def test_unknown_characters_are_reported_and_read_as_unknown():
    tokenizer = build_ctc_tokenizer(TEXTS)
    assert unknown_characters(["Hello, zoo", "Hz|"], tokenizer) == {"H": 2, "z": 2, ",": 1}
    assert unknown_characters(TEXTS, tokenizer) == {}
    assert ctc_text(tokenizer("Hello").input_ids, tokenizer) == "[UNK]ello"


@pytest.mark.parametrize(
    ("texts", "error", "words"),
    [
        ([], ValueError, "no texts"),
        (["", " "], ValueError, "All 2 texts are empty"),
        (["a", None], TypeError, "Text 1 is None"),
        ("hello", TypeError, "one string"),
        (["a", "b|c"], ValueError, "Text 1 holds"),
        (["a[PAD]"], ValueError, "normalize_text"),
        (["a\nb"], ValueError, "normalize_text"),
    ],
)
def test_the_tokenizer_refuses(texts, error, words):
    with pytest.raises(error, match=words):
        build_ctc_tokenizer(texts)


@pytest.mark.parametrize("feature_extractor_class", [SpeechSSLFeatureExtractor, SeamlessM4TFeatureExtractor])
def test_the_processor_saves_and_loads(feature_extractor_class, tmp_path):
    processor = build_ctc_processor(TEXTS, feature_extractor_class())
    processor.save_pretrained(tmp_path)
    settings_on_disk = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert not any("/" in str(value) for value in settings_on_disk.values())  # no path of this machine
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert type(loaded) is type(processor) and type(loaded.feature_extractor) is feature_extractor_class
    assert loaded.tokenizer.get_vocab() == processor.tokenizer.get_vocab()
    assert AutoTokenizer.from_pretrained(tmp_path).bos_token is None
    audio = np.random.default_rng(0).normal(size=8000).astype(np.float32) * 0.1
    inputs = loaded(audio=audio, text="hello", sampling_rate=16_000)
    expected = processor.feature_extractor(audio, sampling_rate=16_000)
    np.testing.assert_array_equal(inputs["input_features"], expected["input_features"])
    assert inputs["labels"] == processor.tokenizer("hello").input_ids
    frames = torch.tensor([[4, 4, 0, 2, 5, 0]])
    decoded = loaded.batch_decode(frames, output_word_offsets=True)
    assert decoded.text == ["a c"] and [word["end_offset"] for word in decoded.word_offsets[0]] == [2, 5]


def test_the_processor_wants_a_feature_extractor():
    with pytest.raises(TypeError, match="feature extractor, got NoneType"):
        build_ctc_processor(TEXTS, None)


def test_rare_and_invisible_characters_of_a_vocabulary_are_named_with_their_counts(caplog):
    texts = ["hello world"] * 1000 + ["caf\u00e9", "so\u00adft", "so\u00adft"]
    with caplog.at_level("WARNING"):
        build_ctc_tokenizer(texts)
    (record,) = caplog.records
    assert "\u00e9 U+00E9 LATIN SMALL LETTER E WITH ACUTE (1)" in record.getMessage()
    assert "U+00AD SOFT HYPHEN (2)" in record.getMessage() and "SMALL LETTER H " not in record.getMessage()
    caplog.clear()
    build_ctc_tokenizer(["a small corpus"])
    assert not caplog.records
