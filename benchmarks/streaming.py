"""Streaming with Chunk SSL: time of a step, real-time factor, memory of a stream, and what grows with time.

    python benchmarks/streaming.py [--threads 2] [--repeats 5] [--peer nemotron] [--quick]

Encoder steps run on features made beforehand, look-ahead chunk included: a step computes twice its chunk. The full
path runs from samples to text through `StreamingBatch`: features, encoder, CTC head, decoding. `transducer to text`
has a transducer with 1,024 pieces in the head's place; its blank is set so that about 4 tokens come a second. All are
packed (`pack_layers`), as `hf-speech-ssl stream` does on a CPU; `plain layers` shows one stream without. The left
context is 5.12 s, or all there has been. Steps count once the left context is full. The peer is transformers' Nemotron
encoder at the same size and left context, which looks ahead within its chunk and so computes each frame once.
"""

import itertools
import statistics
import time

from common import (
    DECODER_SIZES,
    SIZES,
    argument_parser,
    machine,
    markdown,
    percentile,
    serve,
    speech_like,
    spread,
    take_turns,
    write_results,
)

CHUNKS_MS = [160, 320, 640, 1280]
STREAMS = [1, 8, 32]
LEFT_CONTEXT_MS = 5120
FRAME_MS = 40
SECONDS = 30.0  # of audio per turn
TOKENS_PER_SECOND = 4  # about 3 words of 1.3 pieces
MINUTES = 5  # of audio for what grows with time


# --- in the process of one configuration ---


def build_model(left_context_chunks: int | None, packed: bool = True, vocab_size: int = 32, transducer: bool = False):
    from hf_speech_ssl import ChunkSSLConfig, ChunkSSLForCTC, ChunkSSLForRNNT
    from hf_speech_ssl.recognition.packing import pack_layers

    sizes = {**SIZES, **DECODER_SIZES, "vocab_size": vocab_size}
    config = ChunkSSLConfig(**sizes, left_context_chunks=left_context_chunks)
    model = (ChunkSSLForRNNT if transducer else ChunkSSLForCTC)(config)
    return pack_layers(model) if packed else model.eval()


def set_token_rate(model, features) -> None:
    """Move the blank's bias until a random transducer emits about `TOKENS_PER_SECOND` on features (1, frames, mel)."""
    import torch

    low, high = -5.0, 5.0
    for _ in range(14):
        middle = (low + high) / 2
        with torch.no_grad():
            model.joint.head.bias[0] = middle
        tokens = (model.generate(features).sequences != 0).sum()
        low, high = (middle, high) if tokens > TOKENS_PER_SECOND * features.shape[1] / 100 else (low, middle)


def piece_processor():
    """A processor with as many pieces as the paper has, of made-up words."""
    import random

    from hf_speech_ssl import SpeechSSLFeatureExtractor
    from hf_speech_ssl.decoding import build_piece_processor

    letters = random.Random(0)
    words = ["".join(letters.choices("abcdefghijklmnopqrstuvwxyz", k=6)) for _ in range(2000)]
    return build_piece_processor(words, SpeechSSLFeatureExtractor(), 1024, "bpe")


class Encoder:
    """Encoder steps of a batch of streams; `run` is a pass over all the audio from a fresh cache."""

    def __init__(self, chunk_ms: int, streams: int, bounded: bool, seconds: float, packed: bool = True):
        import torch

        self.model = build_model(LEFT_CONTEXT_MS // chunk_ms if bounded else None, packed).encoder
        self.chunk = chunk_ms // 10
        self.skipped = LEFT_CONTEXT_MS // chunk_ms + 1
        self.features = torch.randn(streams, int(seconds * 100) // self.chunk * self.chunk, 80)

    def run(self) -> dict:
        """Milliseconds of each step."""
        import torch

        times = []
        self.cache = None
        pieces = self.features.split(self.chunk, dim=1)
        with torch.inference_mode():
            for chunk, ahead in itertools.pairwise(pieces):
                begin = time.perf_counter()
                output = self.model(chunk, lookahead_features=ahead, past_key_values=self.cache, use_cache=True)
                times.append(1e3 * (time.perf_counter() - begin))
                self.cache = output.past_key_values
        return {"steps_ms": times[self.skipped :]}

    def describe(self) -> dict:
        """Bytes of the cache at the end of a pass, for one stream."""
        return {"stream_bytes": self.cache.num_bytes / self.cache.num_streams}


class FullPath:
    """Streams from samples to text; `run` is a pass over all the audio by new streams."""

    def __init__(self, chunk_ms: int, streams: int, seconds: float, transducer: bool = False):
        from hf_speech_ssl import SpeechSSLFeatureExtractor
        from hf_speech_ssl.decoding import build_ctc_processor

        letters = "abcdefghijklmnopqrstuvwxyz'"
        past = LEFT_CONTEXT_MS // chunk_ms
        if transducer:
            self.processor = piece_processor()
            self.model = build_model(past, vocab_size=1024, transducer=True)
            waveform, lengths = speech_like([10.0])
            set_token_rate(self.model, self.processor.feature_extractor.extract(waveform, lengths)[0])
        else:
            self.processor = build_ctc_processor([f"{letters} {letters}"], SpeechSSLFeatureExtractor())
            self.model = build_model(past)
        self.chunk_ms, self.streams = chunk_ms, streams
        self.skipped = LEFT_CONTEXT_MS // chunk_ms + 3
        self.samples = speech_like([seconds] * streams)[0].numpy()

    def run(self) -> dict:
        """Milliseconds from a chunk of samples of every stream to their text."""
        from hf_speech_ssl.recognition.streaming import StreamingBatch

        batch = StreamingBatch(self.model, self.processor, chunk_duration_ms=self.chunk_ms)
        streams = [batch.join() for _ in range(self.streams)]
        size = self.chunk_ms * 16
        times = []
        for start in range(0, self.samples.shape[1] - size + 1, size):
            begin = time.perf_counter()
            batch.accept({one: row[start : start + size] for one, row in zip(streams, self.samples, strict=True)})
            times.append(1e3 * (time.perf_counter() - begin))
        return {"steps_ms": times[self.skipped :]}

    def describe(self) -> dict:
        return {}


class Nemotron:
    """The peer's encoder steps of one stream."""

    def __init__(self, chunk_ms: int, seconds: float):
        import torch
        from transformers import NemotronAsrStreamingEncoder, NemotronAsrStreamingEncoderConfig

        self.lookahead = chunk_ms // FRAME_MS - 1
        config = NemotronAsrStreamingEncoderConfig(
            **SIZES,
            subsampling_factor=4,
            num_mel_bins=80,
            sliding_window=LEFT_CONTEXT_MS // FRAME_MS + 1,
            default_num_lookahead_tokens=self.lookahead,
            attn_implementation="sdpa",
        )
        self.model = NemotronAsrStreamingEncoder(config).eval()
        self.chunk = chunk_ms // 10
        self.skipped = LEFT_CONTEXT_MS // chunk_ms + 1
        self.features = torch.randn(1, int(seconds * 100), 80)

    def run(self) -> dict:
        """Milliseconds of each step."""
        import torch

        first = 1 + 4 * self.lookahead  # the first chunk is shorter by what the subsampling pads
        pieces = [self.features[:, :first], *self.features[:, first:].split(self.chunk, dim=1)]
        times, state = [], {"past_key_values": None, "padding_cache": None}
        with torch.inference_mode():
            for chunk in pieces[:-1]:
                begin = time.perf_counter()
                output = self.model(chunk, use_cache=True, num_lookahead_tokens=self.lookahead, **state)
                times.append(1e3 * (time.perf_counter() - begin))
                state = {name: getattr(output, name) for name in state}
        return {"steps_ms": times[self.skipped :]}

    def describe(self) -> dict:
        return {}


class Growth:
    """One stream with and one without a bounded left context, step by step in turns; `run` is one long pass."""

    def __init__(self, chunk_ms: int, minutes: float):
        import torch

        self.model = build_model(None).encoder
        self.chunk, self.chunk_ms = chunk_ms // 10, chunk_ms
        self.features = torch.randn(1, int(minutes * 6000), 80)
        self.minutes = minutes

    def run(self) -> dict:
        """Median milliseconds of a step, and MiB of the cache, in every fifth part of the pass."""
        import torch

        from hf_speech_ssl.modeling.cache import ConformerCache

        caches = {"bounded": ConformerCache(LEFT_CONTEXT_MS // FRAME_MS), "unlimited": ConformerCache()}
        times: dict[str, list[float]] = {name: [] for name in caches}
        mib: dict[str, list[float]] = {name: [] for name in caches}
        pieces = self.features.split(self.chunk, dim=1)
        with torch.inference_mode():
            for chunk, ahead in itertools.pairwise(pieces):
                for name, cache in caches.items():
                    begin = time.perf_counter()
                    self.model(chunk, lookahead_features=ahead, past_key_values=cache)
                    times[name].append(1e3 * (time.perf_counter() - begin))
                    mib[name].append(cache.num_bytes / 2**20)
        parts = [slice(i * len(pieces) // 5, (i + 1) * len(pieces) // 5) for i in range(5)]
        return {
            name: {
                "steps_ms": [statistics.median(times[name][part]) for part in parts],
                "mib": [mib[name][part][-1] for part in parts],
            }
            for name in caches
        }

    def describe(self) -> dict:
        return {}


def build(kind: str, **settings) -> Encoder | FullPath | Nemotron | Growth:
    return {"encoder": Encoder, "full": FullPath, "nemotron": Nemotron, "growth": Growth}[kind](**settings)


# --- in the process that compares them ---


def measure(chunk_ms: int, options) -> dict:
    """All configurations of one chunk duration, taking turns."""
    common = {"chunk_ms": chunk_ms, "seconds": SECONDS if not options.quick else 10.0}
    configurations = {}
    for streams in STREAMS if not options.quick else STREAMS[:2]:
        for name, bounded in (("5.12 s", True), ("all", False)):
            configurations[f"encoder, {streams}, {name}"] = {
                "kind": "encoder",
                "streams": streams,
                "bounded": bounded,
                **common,
            }
        full = {"kind": "full", "streams": streams, **common}
        configurations[f"samples to text, {streams}, 5.12 s"] = full
        configurations[f"transducer to text, {streams}, 5.12 s"] = {**full, "transducer": True}
    plain = {"kind": "encoder", "streams": 1, "bounded": True, "packed": False, **common}
    configurations["encoder with plain layers, 1, 5.12 s"] = plain
    if options.peer:
        configurations["Nemotron, 1, 5.12 s"] = {"kind": "nemotron", **common}
    turns, facts = take_turns(__file__, configurations, options.threads, options.repeats, f"{chunk_ms} ms")
    return {"chunk_ms": chunk_ms, "turns": turns, "facts": facts}


def step_rows(result: dict) -> list[list[str]]:
    """A chunk duration's rows of the table."""
    rows = []
    for name in result["turns"][0]:
        what, streams, context = name.split(", ")
        steps = [step for turn in result["turns"] for step in turn[name]["steps_ms"]]
        medians = [statistics.median(turn[name]["steps_ms"]) for turn in result["turns"]]
        factor = statistics.mean(steps) / result["chunk_ms"]
        memory = result["facts"][name].get("stream_bytes")
        rows.append(
            [
                f"{result['chunk_ms']} ms",
                what,
                context,
                streams,
                spread(medians),
                f"{percentile(steps, 0.99):.1f}",
                f"{factor:.3f}",
                f"{int(streams) / factor:.0f}",
                f"{memory / 2**20:.1f} MiB" if memory else "",
            ]
        )
    return rows


def peer_rows(results: list[dict]) -> list[list[str]]:
    """The peer's time over ours, within the turns."""
    rows = []
    for result in results:
        pairs = [
            [
                statistics.median(turn[name]["steps_ms"])
                for name in ("Nemotron, 1, 5.12 s", "encoder, 1, 5.12 s", "samples to text, 1, 5.12 s")
            ]
            for turn in result["turns"]
        ]
        peer, ours, full = zip(*pairs, strict=True)
        rows.append(
            [
                f"{result['chunk_ms']} ms",
                spread(list(peer)),
                spread(list(ours)),
                spread([a / b for a, b in zip(peer, ours, strict=True)], 2),
                spread([a / b for a, b in zip(peer, full, strict=True)], 2),
            ]
        )
    return rows


def transducer_rows(results: list[dict]) -> list[list[str]]:
    """The transducer's time over that of CTC, from samples to text, within the turns."""
    rows = []
    for result in results:
        for name in result["turns"][0]:
            if name.startswith("transducer"):
                ctc = name.replace("transducer", "samples")
                pairs = [[statistics.median(turn[one]["steps_ms"]) for one in (ctc, name)] for turn in result["turns"]]
                ratio = spread([transducer / other for other, transducer in pairs], 2)
                rows.append([f"{result['chunk_ms']} ms", name.split(", ")[1], ratio])
    return rows


def growth_rows(turns: list[dict[str, dict]]) -> list[list[str]]:
    """Time and memory in every fifth of the long pass, medians over the turns."""
    rows = []
    for context in ("bounded", "unlimited"):
        passes = [turn["growth"][context] for turn in turns]
        steps = [statistics.median(one["steps_ms"][part] for one in passes) for part in range(5)]
        ratio = spread([one["steps_ms"][-1] / one["steps_ms"][0] for one in passes], 2)
        rows.append([f"{context}: ms a step", *(f"{step:.1f}" for step in steps), ratio])
        rows.append([f"{context}: cache, MiB", *(f"{mib:.1f}" for mib in passes[0]["mib"]), ""])
    return rows


def main() -> None:
    parser = argument_parser(__doc__, repeats=5)
    parser.add_argument("--chunks_ms", nargs="+", type=int, default=CHUNKS_MS)
    parser.add_argument("--peer", choices=["nemotron"], help="measure it in the same turns")
    parser.add_argument("--quick", action="store_true", help="short passes of few streams, to see that it runs")
    options = parser.parse_args()
    if options.serve:
        return serve(build, options.serve, options.threads)
    where = machine(options.threads)
    results = [measure(chunk_ms, options) for chunk_ms in options.chunks_ms]
    minutes = MINUTES if not options.quick else 0.5
    growth = {"growth": {"kind": "growth", "chunk_ms": 320, "minutes": minutes}}
    growth_turns, _ = take_turns(__file__, growth, options.threads, min(options.repeats, 3), "growth")
    header = ["chunk", "what", "left context", "streams", "ms a step: median", "p99"]
    header += ["real-time factor", "streams in real time", "cache of a stream"]
    fifths = [f"minute {minutes / 5 * part:g} to {minutes / 5 * (part + 1):g}" for part in range(5)]
    sections = [
        f"Medians of {options.repeats} passes (range), p99 over all their steps.",
        markdown(header, [row for result in results for row in step_rows(result)]),
    ]
    sections += ["### Transducer over CTC, from samples to text"]
    sections += [markdown(["chunk", "streams", "times the CTC step"], transducer_rows(results))]
    if options.peer:
        columns = ["chunk", "Nemotron, ms a step", "ours", "Nemotron / ours", "Nemotron / ours from samples to text"]
        sections += ["### One stream beside Nemotron's encoder", markdown(columns, peer_rows(results))]
    sections += [
        "### With time: one stream, chunks of 320 ms",
        markdown(["left context", *fifths, "last fifth / first"], growth_rows(growth_turns)),
    ]
    return write_results(options.output_dir, "streaming", where, sections, {"steps": results, "growth": growth_turns})


if __name__ == "__main__":
    main()
