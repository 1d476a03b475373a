"""Turns that the server finds: what one stream with the same rules gives, told in order, none lost."""

import asyncio
import base64
import functools
import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
from live_models import CHUNK_MS, babble
from test_endpoints import QUIET, LoudIsVoice, talk
from test_serving import TRANSCRIPTION, Client, serving

from hf_speech_ssl.options import EndpointOptions
from hf_speech_ssl.recognition import Recognizer, StreamingBatch
from hf_speech_ssl.recognition.events import EndpointEvent, FinalEvent, PartialEvent, SpeechEvent
from hf_speech_ssl.recognition.streaming import bounded_left_context
from hf_speech_ssl.serving.engine import Engine
from hf_speech_ssl.serving.limits import Limits
from hf_speech_ssl.serving.realtime import RealtimeSession
from hf_speech_ssl.serving.turn_detection import TurnDetection
from hf_speech_ssl.serving.turns import OpenAITurns

VAD = {"type": "server_vad", "silence_duration_ms": 300, "prefix_padding_ms": 200, "idle_timeout_ms": 600}
GATED = EndpointOptions(0.3, 0.6, voice_detector="silero", padding_seconds=0.2)
BLANKS = replace(GATED, voice_detector="none")


@pytest.fixture(scope="module")
def port():
    with serving(Recognizer(*QUIET), detector=LoudIsVoice()) as (_, _, one):
        yield one


@pytest.fixture(scope="module")
def port_without_detector():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hf_speech_ssl.serving.app.installed_detector", lambda: None)
        with serving(Recognizer(*QUIET)) as (_, _, one):
            yield one


def signal(seed: int) -> np.ndarray:
    return (32767 * talk(seed)).astype(np.int16)


@functools.cache
def expected(rules: EndpointOptions, *seeds: int) -> tuple[list, str]:
    """The segments that one stream alone gives, each with its speech and its endpoint, and its whole text."""
    past = bounded_left_context(QUIET[0].config, CHUNK_MS)
    batch = StreamingBatch(*QUIET, CHUNK_MS, past, detector=LoudIsVoice())
    stream = batch.join(rules)
    batch.feed({stream: np.concatenate([signal(seed) for seed in seeds])})
    [text] = batch.finish(stream)
    segments: dict[int, dict] = {}
    for event in batch.events(stream):
        segments.setdefault(event.segment, {})[event.type] = event
    return [one for one in segments.values() if one.keys() & {"speech", "endpoint"}], text


def update(client: Client, turn_detection: dict | None) -> dict:
    client.send("session.update", session={"audio": {"input": {"turn_detection": turn_detection}}})
    return client.receive()


def milliseconds(seconds: float) -> int:
    return round(1000 * seconds)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("rules", [GATED, BLANKS], ids=["detector", "blanks"])
def test_turns_are_the_segments_of_one_stream(port, port_without_detector, rules, seed):
    """Whatever the blocks; every item has its events in order."""
    random, samples = np.random.default_rng(seed), signal(seed)
    wanted, text = expected(rules, seed)
    client = Client(port if rules is GATED else port_without_detector)
    client.begin()
    assert update(client, VAD)["type"] == "session.updated"
    place = 0
    while place < len(samples):
        size = int(random.choice([1, 700, 1600, 9000, 30_000]))
        client.append(samples[place : place + size])
        place += size
    client.send("input_audio_buffer.commit")
    client.send("input_audio_buffer.clear")
    *events, _ = client.until("input_audio_buffer.cleared")
    client.socket.close()

    if events[-1]["type"] == "error":  # the commit by hand came after the last turn
        assert events.pop()["error"]["code"] == "input_audio_buffer_commit_empty"
        assert "endpoint" in wanted[-1]
    items = list(dict.fromkeys(event["item_id"] for event in events))
    assert len(items) == len(wanted) and [event["item_id"] for event in events] == sorted(
        (event["item_id"] for event in events), key=items.index
    )
    transcripts = []
    for item, previous, segment in zip(items, [None, *items], wanted, strict=False):
        own = {event["type"]: event for event in events if event["item_id"] == item}
        kinds = [event["type"] for event in events if event["item_id"] == item]
        deltas = [event["delta"] for event in events if event["item_id"] == item and "delta" in event]
        unheard = "endpoint" in segment and segment["endpoint"].reason == "no_speech"
        stopped = "endpoint" in segment and not unheard
        order = [
            *(["input_audio_buffer.speech_started"] if "speech" in segment else []),
            *(["input_audio_buffer.timeout_triggered"] if unheard else []),
            *(["input_audio_buffer.speech_stopped"] if stopped else []),
            "input_audio_buffer.committed",
            f"{TRANSCRIPTION}.completed",
        ]
        assert [kind for kind in kinds if not kind.endswith(".delta")] == order
        final, done = segment["final"], own[f"{TRANSCRIPTION}.completed"]
        assert own["input_audio_buffer.committed"]["previous_item_id"] == previous
        assert done["transcript"] == final.text == "".join(deltas)
        assert done["usage"]["seconds"] == round(final.end - final.start, 3)
        if "speech" in segment:
            started = own["input_audio_buffer.speech_started"]
            assert started["audio_start_ms"] == milliseconds(segment["speech"].start)
        if unheard or stopped:
            assert own[order[-3]]["audio_end_ms"] == milliseconds(final.end)
        transcripts.append(done["transcript"])
    assert " ".join(filter(None, transcripts)) == text


def test_the_signals_have_turns_of_every_kind():
    """So that the test above compares something."""
    for rules in (GATED, BLANKS):
        segments = [one for seed in range(3) for one in expected(rules, seed)[0]]
        reasons = [one["endpoint"].reason if "endpoint" in one else None for one in segments]
        assert {"silence", "no_speech", None} == set(reasons) and reasons.count("silence") > 1
        assert sum(bool(one["final"].text) for one in segments) > 3


def test_a_turn_can_be_committed_by_hand_and_its_times_count_all_audio(port):
    client, noise = Client(port), (32767 * babble(1.0, 3)).astype(np.int16)
    client.begin()
    update(client, VAD)
    starts, previous = [], None
    for _ in range(2):
        client.append(np.zeros(8000, np.int16))
        client.append(noise)
        client.until("input_audio_buffer.speech_started")
        client.send("input_audio_buffer.commit")
        [*_, committed] = client.until("input_audio_buffer.committed")
        done = client.until(f"{TRANSCRIPTION}.completed")[-1]
        assert committed["previous_item_id"] == previous and done["transcript"]
        previous = done["item_id"]
        starts.append(done["usage"]["seconds"])
    client.append(np.zeros(8000, np.int16))
    client.append(noise)
    assert client.receive()["audio_start_ms"] == pytest.approx(3000 + 300, abs=50)
    assert starts == [pytest.approx(1.2, abs=0.05)] * 2
    client.socket.close()


def test_a_session_tells_what_it_does_with_turn_detection(port, port_without_detector):
    client = Client(port)
    client.begin()
    updated = update(client, {"type": "server_vad", "create_response": True, "threshold": 0.6})
    assert updated["session"]["audio"]["input"]["turn_detection"] == {
        "type": "server_vad",
        "silence_duration_ms": 500,
        "idle_timeout_ms": None,
        "prefix_padding_ms": 300,
        "threshold": 0.6,
    }
    assert updated["ignored"] == ["audio.input.turn_detection.create_response"]
    client.send("session.update", session={"type": "transcription"})  # what is absent stays
    assert client.receive()["session"]["audio"]["input"]["turn_detection"]["threshold"] == 0.6
    for wrong, code in (
        ({"type": "semantic_vad"}, "unsupported"),
        ({}, "unsupported"),
        ("server_vad", "invalid_value"),
        (VAD | {"silence_duration_ms": 0}, "invalid_value"),
        (VAD | {"prefix_padding_ms": -1}, "invalid_value"),
        (VAD | {"threshold": 2}, "invalid_value"),
        (VAD | {"threshold": float("nan")}, "invalid_value"),
        (VAD | {"idle_timeout_ms": "6000"}, "invalid_value"),
        (VAD | {"silence_duration_ms": True}, "invalid_value"),
    ):
        error = update(client, wrong)["error"]
        assert error["code"] == code and "turn_detection" in error["message"]
    client.append(np.zeros(100, np.int16))
    assert "send input_audio_buffer.commit or .clear" in update(client, None)["error"]["message"]
    client.send("input_audio_buffer.clear")
    client.receive()
    samples = signal(1)
    assert update(client, None)["session"]["audio"]["input"]["turn_detection"] is None
    told = {event["type"] for event in client.utterance(samples, size=9000)}
    assert told == {f"{TRANSCRIPTION}.delta", "input_audio_buffer.committed", f"{TRANSCRIPTION}.completed"}
    client.socket.close()

    client = Client(port_without_detector)
    client.begin()
    updated = update(client, VAD)
    assert updated["session"]["audio"]["input"]["turn_detection"].keys() == {
        "type",
        "silence_duration_ms",
        "idle_timeout_ms",
    }
    assert updated["ignored"] == ["audio.input.turn_detection.prefix_padding_ms"]
    client.socket.close()


def test_a_reader_that_is_slow_gets_every_turn_even_after_clear():
    engine = Engine(StreamingBatch(*QUIET, CHUNK_MS, detector=LoudIsVoice()), CHUNK_MS)
    samples = np.concatenate([signal(seed) for seed in range(3)])
    wanted, _ = expected(GATED, 0, 1, 2)
    sent = []

    async def listen() -> None:
        may_send = asyncio.Event()

        async def send(event):
            await may_send.wait()
            sent.append(event)

        session = RealtimeSession(engine, "tiny", Limits(max_seconds_waiting=100.0), send)
        session.rate, session.turn_detection = 16_000, TurnDetection.of(VAD)
        for block in np.array_split(samples, 20):
            audio = base64.b64encode(block.tobytes()).decode()
            await session.handle(json.dumps({"type": "input_audio_buffer.append", "audio": audio}))
        utterance = session._utterance
        while utterance.update is None or utterance.update.seconds < len(samples) / 16_000:
            await utterance.taken.wait()
            utterance.taken.clear()
        clearing = asyncio.ensure_future(session.handle('{"type": "input_audio_buffer.clear"}'))
        await asyncio.sleep(0.01)
        assert not clearing.done() and not sent
        may_send.set()
        await clearing

    try:
        asyncio.run(listen())
    finally:
        engine.close()
    transcripts = [event["transcript"] for event in sent if "transcript" in event]
    assert transcripts == [one["final"].text for one in wanted if "endpoint" in one] and len(transcripts) > 4
    assert sent[-1]["type"] == "input_audio_buffer.cleared"


def test_deltas_never_go_back_and_silence_is_no_turn():
    turns = OpenAITurns()
    turns.begin(10.0, detected=True)
    events = [
        FinalEvent(0, 0.1, "", [], 0.0, 0.1),  # nobody spoke: no item
        SpeechEvent(1, 0.3, 0.2),
        PartialEvent(1, 0.5, "a b", "a", []),
        PartialEvent(1, 0.6, "a b", "a", []),
        EndpointEvent(1, 1.0, "silence", 0.6),
        FinalEvent(1, 1.0, "a b", [], 0.2, 1.0),
    ]
    told = list(itertools.chain.from_iterable(map(turns.tell, events)))
    assert [kind.rpartition(".")[2] for kind, _ in told] == [
        "speech_started",
        "delta",
        "speech_stopped",
        "committed",
        "delta",
        "completed",
    ]
    assert [values["delta"] for _, values in told if "delta" in values] == ["a", " b"]
    assert told[0][1]["audio_start_ms"] == 10_200 and told[2][1]["audio_end_ms"] == 11_000 and turns.completed == 1
