"""Words live are the words of the offline pass, and events tell them in order."""

import functools
import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from live_models import CHUNK_MS, babble, bpe_parts, character_parts, offline

from hf_speech_ssl.decoding import GreedyDecoder, TimedText, build_ctc_tokenizer
from hf_speech_ssl.recognition import StreamingBatch, StreamingTranscriber, event_json

FRAME = 0.04  # seconds
CUTS = st.lists(st.one_of(st.just(1), st.integers(2, 6000)), min_size=1, max_size=12)


@functools.cache
def parts_of(name: str) -> tuple:
    return {
        "characters": lambda: character_parts(seed=26),
        "case": lambda: character_parts("aB, c.", seed=6),
        "metaspace BPE": lambda: bpe_parts("metaspace", seed=17),
        "byte-level BPE": lambda: bpe_parts("byte level", seed=17),
    }[name]()


every_vocabulary = pytest.mark.parametrize("name", ["characters", "case", "metaspace BPE", "byte-level BPE"])


def live(transcriber: StreamingTranscriber, samples: np.ndarray, cuts: list[int]) -> list:
    """All events of a signal that comes in pieces."""
    events, place = [], 0
    for cut in [*cuts, len(samples)]:
        transcriber.accept(samples[place : place + cut])
        place += cut
        events += transcriber.events()
    transcriber.finish()
    return events + transcriber.events()


def as_words(words: list) -> list[tuple]:
    return [(one.text, one.start, one.end, one.joined, one.confidence) for one in words]


def assert_consistent(events: list) -> None:
    """What events promise, whatever they tell."""
    assert [one.segment for one in events] == sorted(one.segment for one in events)
    for segment in range(events[-1].segment + 1):
        own = [one for one in events if one.segment == segment]
        words = [one.word for one in own if one.type == "word"]
        assert own[-1].type == "final" and [one.type for one in own].count("final") == 1
        if own[-1].words is not None:
            assert words == own[-1].words and all(word.final for word in words)
        starts = [index for index, one in enumerate(own) if one.type == "speech"]
        assert starts in ([], [0]) and (starts or not own[-1].text)
        if starts and own[-1].words:
            # The first word that was told, perhaps in a partial text: a beam search may revise it.
            telling = (one for one in own if one.type in ("word", "partial", "final"))
            known = ([one.word] if one.type == "word" else one.words for one in telling)
            assert own[0].start <= next(words for words in known if words)[0].start
        before, told = "", 0
        for one in own:
            told += one.type == "word"
            if one.type == "partial":
                assert one.text.startswith(one.final) and one.final.startswith(before)
                before = one.final
                assert own[-1].text.startswith(one.final)
                assert not any(word.final for word in one.words)
                shown = [*(word.text for word in words[:told]), *(word.text for word in one.words)]
                assert "".join(shown) == one.text.replace(" ", "")
        times = [one.time for one in own]
        assert times == sorted(times)


@every_vocabulary
@given(seconds=st.floats(0.0, 1.6), seed=st.integers(0, 99), cuts=CUTS)
@settings(max_examples=10, deadline=None)
def test_words_live_are_those_of_the_offline_pass(name, seconds, seed, cuts):
    parts, samples = parts_of(name), babble(seconds, seed)
    events = live(StreamingTranscriber(*parts, CHUNK_MS), samples, cuts)
    assert_consistent(events)
    wanted = offline(parts, samples)
    final = events[-1]
    assert final.text == wanted.text
    assert [one[0] for one in as_words(final.words)] == [word.text for word in wanted.words]
    for got, word in zip(final.words, wanted.words, strict=True):
        assert got.start == pytest.approx(word.start) and got.end == pytest.approx(word.end)
        assert got.confidence == pytest.approx(word.confidence, rel=1e-3)


@every_vocabulary
def test_the_vocabulary_is_really_used(name):
    """So that the test above compares words, with capitals and punctuation where there are any."""
    texts = [offline(parts_of(name), babble(2.0, seed)).text for seed in (0, 3)]
    assert len({word for text in texts for word in text.split()}) > 4
    if name != "characters":
        assert any(text.lower() != text for text in texts)
    if name == "metaspace BPE":
        assert set("".join(texts)) & set(",.!?;")


def test_text_in_pieces_is_what_the_tokenizer_writes():
    for kind in ("metaspace", "byte level"):
        model, processor = bpe_parts(kind)
        tokenizer = processor.tokenizer
        text = "Hello, Anna! There she goes; is it so?"
        ids = tokenizer(text, add_special_tokens=False).input_ids
        frames = torch.full((1, 2 * len(ids), len(tokenizer)), -20.0)
        frames[0, range(0, 2 * len(ids), 2), ids] = 0.0
        frames[0, range(1, 2 * len(ids), 2), tokenizer.pad_token_id] = 0.0
        [[best]] = GreedyDecoder(tokenizer, FRAME)(frames, [2 * len(ids)])
        assert best.text == text and [word.text for word in best.words] == text.split()


def test_confidence_is_the_product_of_the_best_frames():
    """Tokens that are one over pieces have the best frame of both."""
    decoder = GreedyDecoder(build_ctc_tokenizer(["ab"]), FRAME)  # blank 0, unknown 1, delimiter 2, a 3, b 4
    probabilities = np.full((6, 5), 1e-9)
    for frame, (token, share) in enumerate([(3, 0.5), (3, 0.8), (0, 0.9), (4, 0.7), (2, 0.6), (4, 0.3)]):
        probabilities[frame, token] = share
        probabilities[frame, 1] = max(0.0, 0.29 if token == 4 and share == 0.3 else 0.1)
    frames = torch.from_numpy(probabilities).log().float()[None]
    for cut in range(7):
        state = decoder.start()
        decoder.step([state], frames[:, :cut], [cut])
        decoder.step([state], frames[:, cut:], [6 - cut])
        partial = decoder.hypothesis(state)
        assert [word.text for word in partial.words] == ["ab", "b"] and partial.num_final_words == 1
        assert partial.end == pytest.approx(6 * FRAME)
        [best] = decoder.finish(state)
        assert best.words == [TimedText("ab", 0.0, 4 * FRAME), TimedText("b", 5 * FRAME, 6 * FRAME)]
        assert [word.confidence for word in best.words] == pytest.approx([0.8 * 0.7, 0.3])


def test_every_stream_of_a_batch_has_its_own_events():
    parts = parts_of("characters")
    batch = StreamingBatch(*parts, CHUNK_MS)
    first, second = batch.join(), batch.join()
    signals = babble(1.5, 1), babble(1.0, 2)
    for begin in range(0, 24_000, 4000):
        batch.feed({first: signals[0][begin : begin + 4000], second: signals[1][begin : begin + 4000]})
    events = {first: batch.events(first), second: batch.events(second)}
    batch.finish(first, second)
    for stream, signal in zip((first, second), signals, strict=True):
        told = [*events[stream], *batch.events(stream)]
        assert_consistent(told)
        assert told[-1].text == offline(parts, signal).text != ""
        assert batch.events(stream) == []
    assert [word.text for word in told[-1].words] == told[-1].text.split()


def test_events_are_json():
    [*_, last] = events = live(StreamingTranscriber(*parts_of("case"), CHUNK_MS), babble(2.0), [5000] * 5)
    assert {one.type for one in events} == {"speech", "partial", "word", "final"}
    for one in events:
        told = json.loads(event_json(one))
        assert told.keys() == asdict(one).keys() and told["type"] == one.type
    assert told["text"] == last.text and told["words"][0]["text"] == last.words[0].text
    assert told["words"][0]["start"] == round(last.words[0].start, 3)


def test_a_transcriber_goes_on_with_a_new_stream():
    transcriber = StreamingTranscriber(*parts_of("characters"), CHUNK_MS)
    for seed in (1, 2):
        events = live(transcriber, babble(1.0, seed), [3000])
        assert_consistent(events)
        assert events[-1].text == offline(parts_of("characters"), babble(1.0, seed)).text
