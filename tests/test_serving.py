"""The server: every client gets its own transcript and nobody else's, within its limits, to the end."""

import asyncio
import base64
import io
import json
import random
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import httpx
import numpy as np
import pytest
import soundfile
import uvicorn
from helpers import babbler
from test_streaming import CHUNK_MS, speech
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from hf_speech_ssl.cli import main
from hf_speech_ssl.recognition.long_form import LongFormRecognizer
from hf_speech_ssl.recognition.recognizer import Recognizer
from hf_speech_ssl.recognition.streaming import StreamingBatch, StreamingTranscriber
from hf_speech_ssl.recognition.voice import VoiceDetector
from hf_speech_ssl.serving.app import build_service
from hf_speech_ssl.serving.engine import Busy, Engine
from hf_speech_ssl.serving.limits import Access, Limits, Refused, read_tokens
from hf_speech_ssl.serving.realtime import RealtimeSession
from hf_speech_ssl.serving.server import make_server

TRANSCRIPTION = "conversation.item.input_audio_transcription"


@pytest.fixture(scope="module")
def recognizer() -> Recognizer:
    return babbler(left_context_chunks=8)


def samples_of(seed: int, seconds: float = 1.0) -> np.ndarray:
    return (32767 * speech(seconds, seed)).astype(np.int16)


def text_of(recognizer: Recognizer, samples: np.ndarray, rate: int = 16_000) -> str:
    """What one stream alone gives."""
    transcriber = StreamingTranscriber(recognizer.model, recognizer.processor, CHUNK_MS)
    transcriber.accept(samples, rate)
    return transcriber.finish()


class Collector:
    """Listens to a stream of the engine."""

    def __init__(self):
        self.updates, self.over = [], threading.Event()

    def __call__(self, update):
        self.updates.append(update)
        if update.ended or update.error is not None:
            self.over.set()


@pytest.fixture
def engine(recognizer):
    one = Engine(StreamingBatch(recognizer.model, recognizer.processor, CHUNK_MS), CHUNK_MS, max_streams=50)
    yield one
    one.close()


@contextmanager
def serving(recognizer: Recognizer, tokens: tuple[str, ...] = (), detector: VoiceDetector | None = None, **limits):
    """A server on the loopback address: its service, the server itself, and its port."""
    service = build_service(recognizer, "tiny", CHUNK_MS, limits=Limits(**limits), tokens=tokens, detector=detector)
    server = make_server(service, shutdown_seconds=20, port=0, log_level="error")
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield service, server, server.servers[0].sockets[0].getsockname()[1]
    finally:
        if not service.stopping.is_set():  # a second signal would end it at once
            server.handle_exit(15, None)
        thread.join()


@pytest.fixture(scope="module")
def server(recognizer):
    with serving(recognizer) as (service, _, port):
        yield service, port


class Client:
    """Speaks to the server as OpenAI's clients do."""

    def __init__(self, port: int, **options):
        self.socket = connect(f"ws://127.0.0.1:{port}/v1/realtime?intent=transcription", **options).__enter__()

    def send(self, kind: str, **values):
        self.socket.send(json.dumps({"type": kind, **values}))

    def append(self, samples: np.ndarray):
        self.send("input_audio_buffer.append", audio=base64.b64encode(samples.astype("<i2").tobytes()).decode())

    def receive(self) -> dict:
        return json.loads(self.socket.recv(timeout=60))

    def until(self, kind: str) -> list[dict]:
        events = [self.receive()]
        while events[-1]["type"] != kind:
            events.append(self.receive())
        return events

    def begin(self, rate: int = 16_000):
        assert self.receive()["type"] == "session.created"
        self.send(
            "session.update",
            session={
                "type": "transcription",
                "audio": {
                    "input": {"format": {"type": "audio/pcm", "rate": rate}, "transcription": {"model": "tiny"}}
                },
            },
        )
        assert self.receive()["session"]["audio"]["input"]["format"]["rate"] == rate

    def utterance(self, samples: np.ndarray, size: int = 1600) -> list[dict]:
        for block in np.split(samples, range(size, len(samples), size)):
            self.append(block)
        self.send("input_audio_buffer.commit")
        return self.until(f"{TRANSCRIPTION}.completed")


def gone(service) -> bool:
    """Whether no stream is left, neither in the engine nor in its batch, soon."""
    for _ in range(500):
        if not (service.engine.streams or service.engine.batch.streams or service.sessions):
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize(("stated", "asked", "chunks"), [(None, None, 64), (8, None, 8), (8, 2, 2), (None, 0, 0)])
def test_what_a_stream_remembers_is_bounded(stated, asked, chunks):
    service = build_service(babbler(left_context_chunks=stated), "tiny", CHUNK_MS, asked)
    assert service.engine.batch.left_context_frames == 2 * chunks  # of 40 ms
    service.engine.close()


# --- the engine ---


@pytest.mark.parametrize("seed", range(2))
def test_random_interleavings_give_everyone_their_own_text(recognizer, engine, seed):
    """Clients join, send blocks of any size, end and leave in any order."""
    rng = random.Random(seed)
    audio = [samples_of(100 * seed + number, rng.uniform(0.0, 1.0)) for number in range(8)]
    streams = {}
    waiting, places = list(range(8)), dict.fromkeys(range(8), 0)
    while waiting:
        number = rng.choice(waiting)
        if number not in streams:
            listener = Collector()
            streams[number] = engine.join(listener), listener
        live, _ = streams[number]
        end = places[number] + rng.choice([0, 1, 100, 3000, 9000])
        live.feed(audio[number][places[number] : end])
        places[number] = end
        if number % 4 == 3 and rng.random() < 0.1:
            live.leave()
            waiting.remove(number)
        elif end >= len(audio[number]):
            live.finish()
            waiting.remove(number)
        if rng.random() < 0.2:
            time.sleep(0.002)
    texts = set()
    for number, (live, listener) in streams.items():
        if live.gone:
            continue
        assert listener.over.wait(60)
        told = [event for update in listener.updates for event in update.events]
        finals = [event.final if event.type == "partial" else event.text for event in told if "text" in vars(event)]
        assert finals[-1] == text_of(recognizer, audio[number]) and told[-1].type == "final"
        assert all(later.startswith(earlier) for earlier, later in zip(finals, finals[1:], strict=False))
        assert listener.updates[-1].seconds == len(audio[number]) / 16_000
        texts.add(finals[-1])
    assert len(texts) > 3


def test_streams_share_rounds_and_nobody_takes_more_than_a_chunk(engine):
    rounds = []

    class Observer:
        def round(self, streams, seconds, audio_seconds):
            rounds.append((streams, audio_seconds))

        def delay(self, seconds):
            assert seconds >= 0

    engine.observer = Observer()
    with engine.changed:  # nothing runs before all have come
        listeners = [Collector() for _ in range(6)]
        for seed, listener in enumerate(listeners):
            live = engine.join(listener)
            live.feed(samples_of(seed, 2.0 if seed == 0 else 0.2))
            live.finish()
    assert all(listener.over.wait(60) for listener in listeners)
    assert rounds[0][0] == 6 and max(streams for streams, _ in rounds) == 6
    assert all(audio <= streams * CHUNK_MS / 1000 + 1e-9 for streams, audio in rounds)
    assert sum(audio for _, audio in rounds) == pytest.approx(3.0)


def test_a_full_engine_takes_no_more_until_somebody_leaves(recognizer):
    engine = Engine(StreamingBatch(recognizer.model, recognizer.processor, CHUNK_MS), CHUNK_MS, max_streams=2)
    first, _ = engine.join(Collector()), engine.join(Collector())
    with pytest.raises(Busy, match="2 streams are open"):
        engine.join(Collector())
    first.feed(samples_of(0))
    first.leave()
    with pytest.raises(ValueError, match="has ended"):
        first.feed(samples_of(0))
    for _ in range(500):
        if len(engine.streams) == 1:
            break
        time.sleep(0.01)
    engine.join(Collector())
    engine.close()
    with pytest.raises(Busy, match="closing"):
        engine.join(Collector())


def test_a_model_that_fails_tells_everybody(engine, monkeypatch):
    def fail(*arguments):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(engine.batch, "feed", fail)
    listener, idle = Collector(), Collector()
    engine.join(idle)
    engine.join(listener).feed(samples_of(0))
    assert listener.over.wait(60) and idle.over.wait(60)
    assert "out of memory" in str(listener.updates[-1].error)
    assert not engine.running and engine.streams == []
    with pytest.raises(Busy):
        engine.join(Collector())


# --- realtime ---


@pytest.mark.parametrize("rate", [16_000, 24_000])
def test_openai_s_events(recognizer, server, rate):
    client = Client(server[1])
    client.begin(rate)
    previous = None
    for seed in (1, 2):
        samples = samples_of(seed, 1.5)
        events = client.utterance(samples)
        deltas = [event for event in events if event["type"] == f"{TRANSCRIPTION}.delta"]
        [committed] = [event for event in events if event["type"] == "input_audio_buffer.committed"]
        done = events[-1]
        assert done["transcript"] == text_of(recognizer, samples, rate) == "".join(one["delta"] for one in deltas)
        assert len(deltas) > 1 and len(done["transcript"]) > 5
        assert {event["item_id"] for event in [*deltas, committed, done]} == {done["item_id"]}
        assert committed["previous_item_id"] == previous
        assert done["usage"] == {"type": "duration", "seconds": round(len(samples) / rate, 3)}
        assert len({event["event_id"] for event in events}) == len(events)
        previous = done["item_id"]
    client.socket.close()
    assert gone(server[0])


def test_a_client_whose_samples_wait_is_not_taken_for_gone(recognizer, monkeypatch):
    """The server reads no answer to its pings as long as samples wait."""
    monkeypatch.setattr(uvicorn, "Config", partial(uvicorn.Config, ws_ping_interval=0.1, ws_ping_timeout=0.2))
    samples, go_on = samples_of(0, 2.0), threading.Event()
    with serving(recognizer, max_seconds_waiting=0.1) as (service, _, port):
        feed = service.engine.batch.feed
        monkeypatch.setattr(service.engine.batch, "feed", lambda *given: go_on.wait(60) and feed(*given))
        client = Client(port)
        client.begin()
        threading.Timer(1.5, go_on.set).start()
        assert client.utterance(samples, size=320)[-1]["transcript"] == text_of(recognizer, samples)
        client.socket.close()


def test_fields_that_change_nothing_are_named(server):
    client = Client(server[1])
    client.receive()
    heard = {"format": {"type": "audio/pcm"}, "noise_reduction": None, "transcription": {"language": "en"}}
    client.send("session.update", session={"type": "transcription", "include": ["x"], "audio": {"input": heard}})
    updated = client.receive()
    assert updated["type"] == "session.updated" and updated["session"]["audio"]["input"]["format"]["rate"] == 24_000
    assert updated["ignored"] == ["include", "audio.input.transcription.language"]
    client.socket.close()


def test_vllm_s_events(recognizer, server):
    client = Client(server[1])
    created = client.receive()
    assert created["type"] == "session.created" and created["id"] and created["created"]
    client.send("session.update", model="tiny")
    samples = samples_of(3, 1.5)
    client.send("input_audio_buffer.commit", final=False)
    for block in np.split(samples, 4):
        client.append(block)
    client.send("input_audio_buffer.commit", final=True)
    *deltas, done = client.until("transcription.done")
    assert done["text"] == text_of(recognizer, samples) == "".join(event["delta"] for event in deltas)
    assert {event["type"] for event in deltas} == {"transcription.delta"}
    client.send("session.update", model="other")
    assert client.receive()["code"] == "model_not_found"
    client.socket.close()


def test_what_cannot_be_used_is_answered_and_the_stream_goes_on(recognizer, server):
    client, samples = Client(server[1]), samples_of(4)
    client.begin()
    client.append(samples[:5000])
    for message, code in (
        ("nonsense", "invalid_json"),
        ("[]", "invalid_json"),
        ('{"type": "response.create", "event_id": "mine"}', "unknown_event"),
        ('{"type": "input_audio_buffer.append", "audio": "AAA"}', "invalid_audio"),
        ('{"type": "input_audio_buffer.append"}', "invalid_audio"),
        ('{"type": "session.update", "session": {"type": "realtime"}}', "unsupported"),
        ('{"type": "session.update", "session": {"audio": {"input": {"format": {"rate": 8000}}}}}', "unsupported"),
        ('{"type": "session.update", "session": {"audio": 3}}', "invalid_value"),
    ):
        client.socket.send(message)
        error = client.until("error")[-1]["error"]
        assert error["code"] == code and error["message"]
        assert error["event_id"] == ("mine" if "mine" in message else None)
    assert client.utterance(samples[5000:])[-1]["transcript"] == text_of(recognizer, samples)
    client.send("input_audio_buffer.commit")
    assert client.receive()["error"]["code"] == "input_audio_buffer_commit_empty"
    client.append(samples)
    client.send("input_audio_buffer.clear")
    client.until("input_audio_buffer.cleared")
    assert client.utterance(samples)[-1]["transcript"] == text_of(recognizer, samples)
    client.socket.close()


def test_clients_that_die_leave_nothing_behind_and_disturb_nobody(recognizer, server):
    service, port = server
    results = {}

    def speak(seed: int) -> None:
        client, samples = Client(port), samples_of(seed, 1.2)
        client.begin()
        if seed % 2:
            for block in np.split(samples[:9000], 9):
                client.append(block)
            client.socket.socket.close()  # no farewell
            return
        results[seed] = client.utterance(samples, size=800)[-1]["transcript"], text_of(recognizer, samples)
        client.socket.close()

    threads = [threading.Thread(target=speak, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4 and len({got for got, _ in results.values()}) == 4
    assert all(got == wanted for got, wanted in results.values())
    assert gone(service)


def test_limits_of_streams_and_seconds(recognizer):
    with serving(recognizer, max_streams=1, max_seconds=1.0, idle_seconds=0.5) as (service, _, port):
        client = Client(port)
        client.begin()
        second = Client(port)
        assert second.receive()["error"]["code"] == "server_busy"
        with pytest.raises(ConnectionClosed) as closed:
            second.receive()
        assert closed.value.rcvd.code == 1013
        client.append(samples_of(5, 1.2))
        assert client.until(f"{TRANSCRIPTION}.completed")[-1]["transcript"] == text_of(recognizer, samples_of(5, 1.2))
        with pytest.raises(ConnectionClosed) as closed:
            client.receive()
        assert closed.value.rcvd.code == 1008 and "1 s of audio" in closed.value.rcvd.reason
        assert gone(service)
        idle = Client(port)
        idle.begin()
        idle.append(samples_of(6, 0.3))
        assert idle.until(f"{TRANSCRIPTION}.completed")[-1]["transcript"] == text_of(recognizer, samples_of(6, 0.3))
        with pytest.raises(ConnectionClosed) as closed:
            idle.receive()
        assert "Nothing came" in closed.value.rcvd.reason


def test_a_client_that_sends_too_fast_is_not_read(engine, monkeypatch):
    """Its events wait until the engine has taken what came before them."""
    gate, feed = threading.Event(), engine.batch.feed
    monkeypatch.setattr(engine.batch, "feed", lambda *arguments: gate.wait() and feed(*arguments))
    sent = []

    async def send(event):
        sent.append(event)

    async def talk() -> None:
        session = RealtimeSession(engine, "tiny", Limits(max_seconds_waiting=0.5), send)
        session.rate = 16_000
        block = base64.b64encode(samples_of(0, 0.1).tobytes()).decode()
        event = json.dumps({"type": "input_audio_buffer.append", "audio": block})
        for _ in range(7):
            try:
                await asyncio.wait_for(session.handle(event), 0.5)
            except TimeoutError:
                break
        live = engine.streams[0]
        assert 0.5 < live.seconds_waiting <= 0.6 + 1e-6
        gate.set()
        await asyncio.wait_for(session.handle(event), 60)
        await session.finish()

    try:
        asyncio.run(talk())
    finally:
        gate.set()
    assert sent[-1]["type"] == f"{TRANSCRIPTION}.completed"


def test_a_server_that_stops_transcribes_what_it_has(recognizer):
    with serving(recognizer) as (service, server, port):
        client, samples = Client(port), samples_of(7)
        client.begin()
        client.append(samples)
        client.until(f"{TRANSCRIPTION}.delta")
        server.handle_exit(15, None)
        assert client.until(f"{TRANSCRIPTION}.completed")[-1]["transcript"] == text_of(recognizer, samples)
        with pytest.raises(ConnectionClosed) as closed:
            client.receive()
        assert closed.value.rcvd.code == 1001
    assert not service.engine.running and not service.sessions


# --- HTTP ---


def wav(samples: np.ndarray) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, 16_000, format="WAV")
    return file.getvalue()


def post(port: int, data: bytes, **fields) -> httpx.Response:
    return httpx.post(
        f"http://127.0.0.1:{port}/v1/audio/transcriptions", files={"file": ("a.wav", data)}, data=fields, timeout=60
    )


def test_files_in_every_format(recognizer, server):
    data, port = wav(samples_of(8, 2.0)), server[1]
    [wanted] = LongFormRecognizer(recognizer).transcribe([{"path": "a.wav", "bytes": data}])
    best = wanted.hypotheses[0]
    text = " ".join(best.text.split())
    assert post(port, data, model="tiny").json() == {"text": text, "usage": {"type": "duration", "seconds": 2.0}}
    assert post(port, data, response_format="text").text == text + "\n"
    assert post(port, data, response_format="srt").text.startswith("1\n00:00:0")
    assert post(port, data, response_format="vtt").text.startswith("WEBVTT\n")
    answer = post(port, data, response_format="verbose_json", **{"timestamp_granularities[]": ["word", "segment"]})
    assert [one["word"] for one in answer.json()["words"]] == [word.text for word in best.words]
    assert " ".join(one["text"] for one in answer.json()["segments"]) == text
    assert answer.json()["duration"] == 2.0 and "x-ignored-fields" not in answer.headers
    assert "words" not in post(port, data, response_format="verbose_json").json()
    ignored = post(port, data, language="en", temperature="0")
    assert ignored.json()["text"] == text and ignored.headers["x-ignored-fields"] == "language, temperature"
    assert post(port, wav(np.zeros(16_000, dtype=np.int16))).json()["text"] == ""


def test_files_that_are_refused(recognizer, server):
    data, port = wav(samples_of(8)), server[1]
    for response, status, code in (
        (post(port, b"no audio at all"), 400, "invalid_audio"),
        (post(port, data, model="other"), 404, "model_not_found"),
        (post(port, data, response_format="xml"), 400, "invalid_value"),
        (post(port, data, stream="true"), 400, "unsupported"),
        (httpx.post(f"http://127.0.0.1:{port}/v1/audio/transcriptions", data={"model": "tiny"}), 400, "missing_file"),
    ):
        assert (response.status_code, response.json()["error"]["code"]) == (status, code)
    with serving(recognizer, max_megabytes=0.02, max_seconds=0.5, max_files=1) as (service, _, small):
        assert post(small, data).json()["error"]["code"] == "too_large"
        assert post(small, wav(samples_of(8, 0.55))).json()["error"]["code"] == "too_long"
        service.files.open = 1
        assert post(small, wav(samples_of(8, 0.3))).status_code == 503


def test_health_and_metrics(recognizer):
    with serving(recognizer, max_streams=3) as (service, server, port):
        url = f"http://127.0.0.1:{port}"
        client = Client(port)
        client.begin()
        client.utterance(samples_of(9, 1.0))
        post(port, wav(samples_of(8, 2.0)))
        assert httpx.get(f"{url}/health").json() == {"status": "ok", "model": "tiny", "streams": 0, "max_streams": 3}
        assert httpx.get(f"{url}/v1/models").json()["data"][0]["id"] == "tiny"
        client.append(samples_of(9))
        client.until(f"{TRANSCRIPTION}.delta")
        page = httpx.get(f"{url}/metrics").text
        assert "speech_streams 1.0" in page
        assert 'speech_audio_seconds_total{kind="file"} 2.0' in page
        assert 'speech_requests_total{kind="file",outcome="completed"} 1.0' in page
        client.socket.close()
        assert gone(service)
        assert 'speech_requests_total{kind="realtime",outcome="completed"} 1.0' in httpx.get(f"{url}/metrics").text
        service.engine.close()
        assert httpx.get(f"{url}/health").status_code == 503


def test_tokens_open_the_server(recognizer, tmp_path):
    (tmp_path / "tokens").write_text("# of the tests\nfirst\n\nsecond\n")
    tokens = read_tokens(str(tmp_path / "tokens"))
    assert tokens == ("first", "second")
    with serving(recognizer, tokens) as (_, _, port):
        url = f"http://127.0.0.1:{port}/v1/models"
        assert (
            httpx.get(url).status_code == httpx.get(url, headers={"Authorization": "Bearer firs"}).status_code == 401
        )
        assert httpx.get(url, headers={"Authorization": "Bearer second"}).status_code == 200
        assert post(port, b"").status_code == 401
        stranger = Client(port)
        assert stranger.receive()["error"]["code"] == "invalid_api_key"
        with pytest.raises(ConnectionClosed) as closed:
            stranger.receive()
        assert closed.value.rcvd.code == 1008
        Client(port, additional_headers={"Authorization": "Bearer first"}).begin()
        browser = Client(port, subprotocols=["realtime", "openai-insecure-api-key.first"])
        browser.begin()
        assert browser.socket.subprotocol == "realtime"
    (tmp_path / "tokens").write_text("#\n")
    with pytest.raises(ValueError, match="no token"):
        read_tokens(str(tmp_path / "tokens"))


def test_requests_are_counted_by_client(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("hf_speech_ssl.serving.limits.time.monotonic", lambda: now[0])
    access = Access(requests_per_minute=2)
    for second, address, passes in ((0, "a", 1), (1, "a", 1), (2, "a", 0), (3, "b", 1), (60, "a", 1), (60.5, "a", 0)):
        now[0] = second
        if passes:
            access.check(None, address)
        else:
            with pytest.raises(Refused) as refused:
                access.check(None, address)
            assert refused.value.status == 429
    with pytest.raises(ValueError, match="max_streams must be above 0"):
        replace(Limits(), max_streams=0)


# --- the command ---


def test_the_command_refuses_what_cannot_be_served(tmp_path, capsys):
    (tmp_path / "model").mkdir()
    (tmp_path / "tokens").write_text("# none\n")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        for arguments, message in (
            (["--max_streams", "0"], "max_streams must be above 0, got 0"),
            (["--tokens_file", str(tmp_path / "nowhere")], "There is no file"),
            (["--tokens_file", str(tmp_path / "tokens")], "holds no token"),
            (["--port", str(taken.getsockname()[1])], "Nothing can listen"),
            (["--num_threads", "0"], "num_threads"),
        ):
            assert main(["serve", str(tmp_path / "model"), *arguments]) == 1
            assert message in capsys.readouterr().err
    assert main(["serve", str(tmp_path / "other")]) == 1
    assert "no model folder" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_ends_by_sigterm_without_an_error(recognizer, tmp_path):
    recognizer.model.save_pretrained(tmp_path)
    recognizer.processor.save_pretrained(tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "hf_speech_ssl.cli", "serve", str(tmp_path), "--port", str(port)]
    process = subprocess.Popen([*command, "--served_model_name", "tiny"], stderr=subprocess.PIPE, text=True)
    for _ in range(1000):
        try:
            assert httpx.get(f"http://127.0.0.1:{port}/health").json()["model"] == "tiny"
            break
        except httpx.ConnectError:
            time.sleep(0.2)
    client, samples = Client(port), samples_of(7)
    client.begin()
    client.append(samples)
    process.terminate()
    assert client.until(f"{TRANSCRIPTION}.completed")[-1]["usage"]["seconds"] == 1.0
    assert process.wait(60) == 0
    lines = process.stderr.read().splitlines()
    assert [line for line in lines if "Serving tiny at" in line] and "Traceback" not in "".join(lines)
