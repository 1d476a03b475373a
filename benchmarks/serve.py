"""Load on the server: paced live streams over the loopback address, joins and leaves, clients that die.

    python benchmarks/serve.py [--threads 2] [--streams 20 40 60] [--seconds 60] [--quick]

The server runs as `hf-speech-ssl serve` runs it, with a random model of the benchmark size, chunks of 320 ms and
5.12 s of left context. Every client sends 100 ms of samples each 100 ms, from a moment of its own on, and commits at
the end; every tenth client is killed half-way. Clients of the same recording must get the same transcript, and the
server must have taken every second that was sent. "delay" is what the server measures, from the samples that came last
into a round to the end of the round; "end" is what clients see, from the commit to the transcript. Clients run in one
process that needs cores too. Processor time is that of the server.
"""

import asyncio
import base64
import json
import os
import random
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

import psutil
from common import SIZES, argument_parser, machine, markdown, percentile, speech_like, write_results
from websockets.asyncio.client import connect

CHUNK_MS, LEFT_CONTEXT_CHUNKS, BLOCK = 320, 16, 1600
RECORDINGS = 8  # different ones
COMPLETED = "conversation.item.input_audio_transcription.completed"


def save_model(folder: str) -> None:
    """A random model whose output changes with its input."""
    import torch

    from hf_speech_ssl import ChunkSSLConfig, ChunkSSLForCTC, SpeechSSLFeatureExtractor
    from hf_speech_ssl.decoding import build_ctc_processor

    torch.manual_seed(0)
    letters = "abcdefghijklmnopqrstuvwxyz'"
    processor = build_ctc_processor(
        [f"{letters} {letters}"], SpeechSSLFeatureExtractor(mean=[10] * 80, variance=[9] * 80)
    )
    config = ChunkSSLConfig(**SIZES, left_context_chunks=LEFT_CONTEXT_CHUNKS, vocab_size=len(processor.tokenizer))
    config.initializer_range = 0.1
    ChunkSSLForCTC(config).save_pretrained(folder)
    processor.save_pretrained(folder)


class Server:
    """The server in a process of its own."""

    def __init__(self, folder: str, threads: int):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        command = [sys.executable, "-m", "hf_speech_ssl.cli", "serve", folder, "--port", str(self.port)]
        command += ["--chunk_duration_ms", str(CHUNK_MS), "--num_threads", str(threads), "--max_streams", "256"]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        self.process = subprocess.Popen(command, env=environment)
        while True:
            try:
                self.get("health")
                break
            except OSError:
                time.sleep(0.5)
        self.usage = psutil.Process(self.process.pid)

    def get(self, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/{path}", timeout=30) as answer:
            return answer.read().decode()

    def counters(self) -> dict[str, float]:
        """All samples of /metrics."""
        return {
            name: float(value) for name, value in re.findall(r"^(speech\S+) (\S+)$", self.get("metrics"), re.MULTILINE)
        }

    def busy(self) -> float:
        times = self.usage.cpu_times()
        return times.user + times.system

    def mib(self) -> float:
        return self.usage.memory_info().rss / 2**20

    def stop(self) -> float:
        """End it by SIGTERM; the seconds that this took."""
        began = time.monotonic()
        self.process.terminate()
        assert self.process.wait(60) == 0
        return time.monotonic() - began


def messages(seconds: float) -> list[list[str]]:
    """The append events of some recordings, a block each."""
    import numpy as np
    import torch

    torch.manual_seed(1)
    recordings = (32767 * speech_like([seconds] * RECORDINGS)[0].clamp(-1, 1)).numpy().astype(np.int16)
    return [
        [
            json.dumps(
                {
                    "type": "input_audio_buffer.append",
                    "audio": base64.b64encode(row[at : at + BLOCK].tobytes()).decode(),
                }
            )
            for at in range(0, len(row), BLOCK)
        ]
        for row in recordings
    ]


async def client(port: int, blocks: list[str], paced: bool, killed: bool = False) -> tuple[str, float, float] | None:
    """One stream: its transcript, the seconds that the server took, and those from the commit to the transcript."""
    form = {"type": "audio/pcm", "rate": 16_000}
    async with connect(f"ws://127.0.0.1:{port}/v1/realtime", ping_interval=None, max_queue=None) as link:
        await link.send(json.dumps({"type": "session.update", "session": {"audio": {"input": {"format": form}}}}))
        began = time.monotonic()
        for number, block in enumerate(blocks):
            if paced:
                await asyncio.sleep(max(0.0, began + number * BLOCK / 16_000 - time.monotonic()))
            await link.send(block)
            if killed and number > len(blocks) / 2:
                link.transport.abort()
                return None
        await link.send(json.dumps({"type": "input_audio_buffer.commit"}))
        committed = time.monotonic()
        while True:
            event = json.loads(await link.recv())
            if event["type"] == "error":
                raise RuntimeError(event)
            if event["type"] == COMPLETED:
                return event["transcript"], event["usage"]["seconds"], time.monotonic() - committed


async def paced_load(
    port: int, streams: int, blocks: list[list[str]]
) -> list[tuple[int, tuple[str, float, float] | None]]:
    """That many streams at once, each from a moment of its own on."""
    rng = random.Random(streams)

    async def one(number: int):
        await asyncio.sleep(rng.uniform(0, 3.2))
        recording = number % RECORDINGS
        return recording, await client(port, blocks[recording], paced=True, killed=number % 10 == 9)

    return await asyncio.gather(*(one(number) for number in range(streams)))


def quantile(before: dict[str, float], after: dict[str, float], share: float) -> float:
    """The bucket of the delay's histogram below which that share of the delays lies, s."""
    grown = {
        float(edge): after[name] - before.get(name, 0.0)
        for name in after
        for edge in re.findall(r'speech_delay_seconds_bucket\{le="(.+)"\}', name)
    }
    return min(edge for edge, count in grown.items() if count >= share * max(grown.values()))


def check(results: list[tuple[int, tuple[str, float, float] | None]], seconds: float) -> list[float]:
    """The delays of the ends; raises if a transcript is another client's, or audio was lost."""
    texts: dict[int, str] = {}
    ends = []
    for recording, result in results:
        if result is None:
            continue
        text, taken, end = result
        assert abs(taken - seconds) < 1e-3, f"{taken} s of {seconds} s were taken"
        assert texts.setdefault(recording, text) == text, "two clients of a recording got different transcripts"
        ends.append(end)
    assert len(set(texts.values())) == len(texts), "clients of different recordings got one transcript"
    return ends


def measure(server: Server, streams: int, seconds: float, blocks: list[list[str]]) -> list[str]:
    """A row of the table."""
    before, busy, began = server.counters(), server.busy(), time.monotonic()
    results = asyncio.run(paced_load(server.port, streams, blocks))
    took, after = time.monotonic() - began, server.counters()
    ends = check(results, seconds)
    audio = after['speech_audio_seconds_total{kind="live"}'] - before.get(
        'speech_audio_seconds_total{kind="live"}', 0.0
    )
    used = server.busy() - busy
    rounds = after["speech_round_streams_count"] - before.get("speech_round_streams_count", 0.0)
    shared = (after["speech_round_streams_sum"] - before.get("speech_round_streams_sum", 0.0)) / rounds
    return [
        str(streams),
        f"{len(ends)} of {sum(result is not None for _, result in results)}",
        f"{shared:.1f}",
        f"{1e3 * quantile(before, after, 0.5):.0f}",
        f"{1e3 * quantile(before, after, 0.99):.0f}",
        f"{1e3 * percentile(ends, 0.5):.0f}",
        f"{1e3 * percentile(ends, 0.99):.0f}",
        f"{1e3 * used / audio:.1f}",
        f"{used / took:.2f}",
        f"{server.mib():.0f}",
    ]


def joins_and_leaves(server: Server, count: int, blocks: list[list[str]]) -> list[str]:
    """Memory while that many short streams come and go, ten at a time; every tenth is killed."""

    async def some(first: int):
        return await asyncio.gather(
            *(
                client(server.port, blocks[number % RECORDINGS][:10], paced=False, killed=number % 10 == 9)
                for number in range(first, first + 10)
            )
        )

    memory = []
    for first in range(0, count, 10):
        asyncio.run(some(first))
        if (first + 10) % (count // 5) == 0:
            memory.append(f"{server.mib():.0f}")
    while server.counters()["speech_streams"]:
        time.sleep(0.1)
    return memory


def main() -> None:
    parser = argument_parser(__doc__, repeats=1)
    parser.add_argument("--streams", nargs="+", type=int, default=[20, 40, 60])
    parser.add_argument("--seconds", type=float, default=60.0, help="of audio of each stream")
    parser.add_argument("--joins", type=int, default=1000)
    parser.add_argument("--quick", action="store_true", help="few streams, to see that it runs")
    options = parser.parse_args()
    if options.quick:
        options.streams, options.seconds, options.joins = [4], 8.0, 50
    where = machine(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        save_model(folder)
        server = Server(folder, options.threads)
        try:
            blocks = messages(options.seconds)
            asyncio.run(paced_load(server.port, 4, [one[:50] for one in blocks]))  # to warm up
            rows = [measure(server, streams, options.seconds, blocks) for streams in options.streams]
            memory = joins_and_leaves(server, options.joins, blocks)
            stopping = server.stop()
        finally:
            server.process.kill()  # which does nothing to one that has ended
    header = ["streams", "completed", "streams a round", "delay, ms: median below", "p99 below"]
    header += ["end, ms: median", "p99", "processor ms per s of audio", "cores used", "memory, MiB"]
    fifths = [f"after {options.joins * part // 5}" for part in range(1, 6)]
    sections = [
        f"{options.seconds:g} s of audio a stream; every tenth client was killed half-way.",
        markdown(header, rows),
        f"Memory in MiB over {options.joins} joins and leaves, every tenth a killed client:",
        markdown(fifths, [memory]),
        f"SIGTERM to the end of the process: {stopping:.1f} s.",
    ]
    results = {"rows": [dict(zip(header, row, strict=True)) for row in rows], "memory": memory}
    return write_results(options.output_dir, "serve", where, sections, results)


if __name__ == "__main__":
    main()
