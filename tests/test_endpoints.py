"""Endpoints: three rules, on the model's blanks or on a voice detector; nothing depends on the blocks."""

import copy
import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from live_models import CHUNK_MS, babble, character_parts, offline
from test_live_events import CUTS, assert_consistent, live

from hf_speech_ssl.decoding import GreedyDecoder, build_ctc_tokenizer
from hf_speech_ssl.options import EndpointOptions
from hf_speech_ssl.recognition import StreamingBatch, StreamingTranscriber
from hf_speech_ssl.recognition.voice import WINDOW, SileroDetector

PARTS = character_parts(seed=26)
RULES = EndpointOptions(silence_seconds=0.3, no_speech_seconds=0.6)
GATED = replace(RULES, voice_detector="silero")  # in these tests by a detector of their own
FRAME = 0.04


class LoudIsVoice:
    """A detector with a memory, so that what it sees must not depend on the blocks."""

    def start(self) -> float:
        return 0.0

    def __call__(self, state: float, window: np.ndarray) -> tuple[float, float]:
        level = 0.5 * state + float(np.abs(window).mean())
        return float(level > 0.02), level


def talk(seed: int) -> np.ndarray:
    """Babble between silences of different lengths."""
    random = np.random.default_rng(seed)
    pieces = [np.zeros(int(random.integers(0, 16_000)), np.float32)]
    for index in range(int(random.integers(1, 4))):
        pieces += [
            babble(random.uniform(0.1, 1.0), seed + index),
            np.zeros(int(random.integers(0, 30_000)), np.float32),
        ]
    return np.concatenate(pieces)


def told(events: list) -> list:
    """What does not depend on when one asks: all but the partial texts, and when words became known."""
    words = [(one.segment, one.word.text, one.word.start, one.word.end) for one in events if one.type == "word"]
    starts = [(one.segment, one.start) for one in events if one.type == "speech"]
    return words + starts + [one for one in events if one.type == "endpoint"]


@given(seed=st.integers(0, 99), cuts=CUTS)
@settings(max_examples=10, deadline=None)
def test_a_gate_gives_segments_that_are_the_offline_pass_over_their_audio(seed, cuts):
    samples = talk(seed)
    transcriber = StreamingTranscriber(*PARTS, CHUNK_MS, endpoints=GATED, detector=LoudIsVoice())
    events = live(transcriber, samples, cuts)
    assert_consistent(events)
    whole = live(StreamingTranscriber(*PARTS, CHUNK_MS, endpoints=GATED, detector=LoudIsVoice()), samples, [])
    assert told(events) == told(whole)
    unheard = {one.segment for one in events if one.type == "endpoint" and one.reason == "no_speech"}
    ends = [one for one in events if one.type == "final" and one.segment not in unheard]
    for final in ends:
        wanted = offline(PARTS, samples[round(final.start * 16_000) : round(final.end * 16_000)])
        assert final.text == wanted.text
        for word, other in zip(final.words, wanted.words, strict=True):
            assert word.start == pytest.approx(final.start + other.start)
    for before, after in itertools.pairwise(ends):
        assert before.end <= after.start + 1e-9


def test_a_gate_skips_silence_and_no_voice():
    """All that is loud is in a segment, with room before it; silence costs no step."""
    batch = StreamingBatch(*PARTS, CHUNK_MS, endpoints=GATED, detector=LoudIsVoice())
    stream = batch.join()
    batch.feed({stream: np.zeros(16_000 * 60, np.float32)})
    assert batch.num_steps == 0
    [silence, nothing] = batch.events(stream)  # and no speech
    assert (silence.type, silence.reason, silence.end_of_speech) == ("endpoint", "no_speech", None)
    assert silence.time == pytest.approx(0.6, abs=WINDOW / 16_000) and nothing.text == ""
    batch.feed({stream: babble(1.0, 1)})
    batch.feed({stream: np.zeros(16_000 * 60, np.float32)})
    steps = batch.num_steps
    assert 0 < steps <= (0.5 + 1.0 + 0.6) / (CHUNK_MS / 1000) + 2
    [speech, endpoint, final, *later] = [
        one for one in batch.events(stream) if one.type in ("speech", "endpoint", "final")
    ]
    assert (speech.type, speech.start) == ("speech", final.start)
    assert (endpoint.reason, final.text != "") == ("silence", True)
    assert endpoint.end_of_speech == pytest.approx(61.0, abs=0.1)
    assert 59.4 < final.start < 60.0 and final.end == pytest.approx(61.3, abs=0.15)
    assert [one.reason for one in later if one.type == "endpoint"] == ["no_speech"]
    batch.feed({stream: np.zeros(16_000, np.float32)})
    assert batch.num_steps == steps and batch.finish(stream) == [final.text]


@pytest.mark.parametrize("padding", [0.0, 0.2, 0.5])
def test_padding_and_threshold_of_the_voice(padding):
    class Level(LoudIsVoice):
        def __call__(self, state, window):
            return float(np.abs(window).mean()), state

    samples = np.concatenate([np.zeros(16_000), np.full(16_000, 0.4), np.full(16_000, 0.6), np.zeros(16_000)])
    for threshold, begin, end in ((0.5, 2.0, 3.0), (0.3, 1.0, 3.0), (0.58, 2.0, 3.0), (0.7, None, None)):
        rules = replace(GATED, padding_seconds=padding, voice_threshold=threshold)
        events = live(StreamingTranscriber(*PARTS, CHUNK_MS, endpoints=rules, detector=Level()), samples, [])
        starts = [one.start for one in events if one.type == "speech"]
        ends = [one.end_of_speech for one in events if one.type == "endpoint" and one.reason == "silence"]
        if begin is None:
            assert starts == ends == []
        else:
            assert starts == [pytest.approx(begin - padding, abs=WINDOW / 16_000 + 0.01)]
            assert ends == [pytest.approx(end, abs=WINDOW / 16_000)]


def silent_after(model, processor, silence: float):
    """A model that writes blanks where it is quiet."""
    model = copy.deepcopy(model)
    forward = model.forward

    def quiet(input_features, **arguments):
        output = forward(input_features, **arguments)
        frames = input_features.unflatten(1, (-1, 4)).mean((2, 3)) if input_features.shape[1] % 4 == 0 else None
        if frames is not None:
            output.logits[..., 0] += 50.0 * (frames < silence)
        return output

    model.forward = quiet
    return model, processor


QUIET = silent_after(*PARTS, silence=-2.0)


@given(seed=st.integers(0, 99), cuts=CUTS)
@settings(max_examples=5, deadline=None)
def test_streams_with_different_rules_share_steps(seed, cuts):
    """Each gives what it gives alone with its rules, however all their samples are cut."""
    every = [RULES, GATED, EndpointOptions(), EndpointOptions(max_segment_seconds=0.4), None]
    signals = [talk(seed + number) for number in range(len(every))]
    batch = StreamingBatch(*QUIET, CHUNK_MS, endpoints=replace(RULES, silence_seconds=0.5), detector=LoudIsVoice())
    streams, place = [batch.join(rules) for rules in every], 0
    for cut in [*cuts, max(map(len, signals))]:
        batch.feed({one: signal[place : place + cut] for one, signal in zip(streams, signals, strict=True)})
        place += cut
    texts = batch.finish(*streams)
    alone_steps = 0
    for rules, signal, stream, text in zip(every, signals, streams, texts, strict=True):
        alone = StreamingTranscriber(*QUIET, CHUNK_MS, endpoints=rules or batch.endpoints, detector=LoudIsVoice())
        wanted = live(alone, signal, [])
        assert told(batch.events(stream)) == told(wanted)
        assert text == " ".join(one.text for one in wanted if one.type == "final" and one.text)
        alone_steps += alone.batch.num_steps
    assert batch.num_steps < alone_steps


@given(seed=st.integers(0, 99), cuts=CUTS)
@settings(max_examples=10, deadline=None)
def test_blanks_end_segments_and_no_token_is_lost(seed, cuts):
    samples = talk(seed)
    events = live(StreamingTranscriber(*QUIET, CHUNK_MS, endpoints=RULES), samples, cuts)
    assert_consistent(events)
    whole = live(StreamingTranscriber(*QUIET, CHUNK_MS, endpoints=RULES), samples, [])
    assert told(events) == told(whole)
    plain = StreamingTranscriber(*QUIET, CHUNK_MS)
    plain.accept(samples)
    text = " ".join(one.text for one in events if one.type == "final")
    assert text.replace(" ", "") == plain.finish().replace(" ", "")


def test_blanks_end_segments_by_the_rules():
    samples = np.concatenate([np.zeros(16_000), babble(1.0, 1), np.zeros(24_000), babble(0.7, 1)]).astype(np.float32)
    transcriber = StreamingTranscriber(*QUIET, CHUNK_MS, endpoints=RULES)
    events = live(transcriber, samples, [1600] * 50)
    [nothing, spoken, again] = [one for one in events if one.type == "endpoint"]
    assert [one.reason for one in (nothing, spoken, again)] == ["no_speech", "silence", "no_speech"]
    assert nothing.time == pytest.approx(0.6, abs=CHUNK_MS / 1000) and nothing.end_of_speech is None
    assert spoken.time - spoken.end_of_speech == pytest.approx(0.3, abs=CHUNK_MS / 1000 + FRAME)
    texts = [one.text for one in events if one.type == "final"]
    assert [bool(text) for text in texts] == [False, True, False, True]


@given(seed=st.integers(0, 99), cuts=CUTS, longest=st.floats(0.1, 0.6))
@settings(max_examples=10, deadline=None)
def test_long_segments_end_behind_a_word_and_no_token_is_lost(seed, cuts, longest):
    samples, rules = babble(1.5, seed), EndpointOptions(max_segment_seconds=longest)
    transcriber = StreamingTranscriber(*PARTS, CHUNK_MS, endpoints=rules)
    events = live(transcriber, samples, cuts)
    assert_consistent(events)
    assert {one.reason for one in events if one.type == "endpoint"} == {"length"}
    wanted = offline(PARTS, samples)
    text = " ".join(one.text for one in events if one.type == "final")
    assert text.replace(" ", "") == wanted.text.replace(" ", "")
    edges = [(one.start, one.end) for one in events if one.type == "final"]
    assert all(before[1] == pytest.approx(after[0]) for before, after in itertools.pairwise(edges))


def test_a_greedy_utterance_is_divided_behind_its_last_whole_word():
    decoder = GreedyDecoder(build_ctc_tokenizer(["abc"]), FRAME)  # blank 0, delimiter 2, a to c 3 to 5
    ids = [3, 0, 2, 4, 4, 4, 5, 2, 5]
    frames = torch.full((1, len(ids), 6), -20.0)
    frames[0, range(len(ids)), ids] = 0.0
    state = decoder.start()
    decoder.step([state], frames[:, :5], [5])
    [first], state, kept = decoder.divide(state)
    assert (first.text, kept) == ("a", 2)
    decoder.step([state], frames[:, 5:], [4])
    [rest] = decoder.finish(state)
    assert rest.text == "bc c" and [word.start for word in rest.words] == pytest.approx([0.0, 5 * FRAME])
    state = decoder.start()  # one word only: it is cut, and the repeated token is not written twice
    decoder.step([state], frames[:, 3:5], [2])
    [first], state, kept = decoder.divide(state)
    decoder.step([state], frames[:, 5:], [4])
    assert (first.text, kept, decoder.finish(state)[0].text) == ("b", 0, "c c")


def test_the_text_of_a_stream_is_that_of_all_its_segments():
    transcriber = StreamingTranscriber(*PARTS, CHUNK_MS, endpoints=GATED, detector=LoudIsVoice())
    samples = np.concatenate([babble(1.0, 1), np.zeros(16_000), babble(1.0, 2), np.zeros(16_000)]).astype(np.float32)
    before = ""
    for block in np.array_split(samples, 40):
        result = transcriber.accept(block)
        assert result.text.startswith(result.final) and result.final.startswith(before)
        before = result.final
    finals = [one for one in transcriber.events() if one.type == "final"]
    [hypotheses] = transcriber.batch.finish_hypotheses(transcriber.stream)
    assert hypotheses[0].text == " ".join(one.text for one in finals).strip() and len(finals) == 2
    assert [word.start for word in hypotheses[0].words] == [word.start for one in finals for word in one.words]


def test_rules_are_checked():
    with pytest.raises(ValueError, match="silence_seconds must be above 0, got 0"):
        EndpointOptions(silence_seconds=0)
    with pytest.raises(ValueError, match="give --silence_seconds too"):
        EndpointOptions(voice_detector="silero")
    with pytest.raises(ValueError, match="got 1.5 and 0.5"):
        EndpointOptions(voice_threshold=1.5)


def test_silero_tells_noise_from_nothing_and_is_copied():
    pytest.importorskip("onnxruntime")
    pytest.importorskip("silero_vad")
    detector = copy.deepcopy(SileroDetector())
    state = detector.start()
    for _ in range(20):
        probability, state = detector(state, np.zeros(WINDOW, np.float32))
    assert 0 <= probability < 0.1
