"""How late live text is beside how right it is, at chunks of 80 to 1280 ms: one curve a model.

    python benchmarks/live_data.py /tmp/live
    python finetuning_scripts/run_ctc.py --config_name chunkssl-tiny --dataset_name /tmp/live ... --output_dir MODEL
    python benchmarks/latency.py MODEL [MODEL ...] --data /tmp/live [--threads 2]

Each recording ends where its last word ends, which is known, and comes in blocks of 20 ms on the clock of a live
stream. `hf_speech_ssl.recognition.latency` says what is measured. The last table is about silence: hours of it through
the voice detector, and how long it takes until an endpoint is told.
"""

import statistics
import time
from pathlib import Path

import numpy as np
from common import argument_parser, machine, markdown, pin, write_results
from live_data import RATE, read_split

CHUNKS_MS = [80, 160, 320, 640, 1280]
SILENCE_SECONDS = 0.6


def measure(recognizer, rows: list[dict], chunk_ms: int) -> dict:
    """Error rate and latency of live streams."""
    from hf_speech_ssl.evaluation import count_word_errors
    from hf_speech_ssl.recognition import StreamingTranscriber
    from hf_speech_ssl.recognition.latency import LatencyMeter

    meter = LatencyMeter(StreamingTranscriber(recognizer.model, recognizer.processor, chunk_ms))
    meter.add(rows[0]["samples"], rows[0]["text"].split())  # to warm up
    meter = LatencyMeter(meter.transcriber)
    texts = []
    for row in rows:
        words = row["words"]
        run = meter.add(row["samples"], [one["word"] for one in words], [one["end"] for one in words])
        texts.append(" ".join(run.words))
    errors = count_word_errors(texts, [row["text"] for row in rows])
    wer = (errors.substitutions + errors.deletions + errors.insertions) / sum(len(row["words"]) for row in rows)
    return {"wer": wer, **meter.figures()}


def curve_rows(name: str, results: dict[int, dict]) -> list[list[str]]:
    """A model's rows of the table."""

    def spread(values: dict | None) -> str:
        return "" if values is None else f"{values['median']:.0f} ({values['p99']:.0f})"

    def number(value: float | None) -> str:
        return "" if value is None else f"{value:.0f}"

    return [
        [
            name,
            f"{chunk_ms} ms",
            f"{100 * one['wer']:.1f} %",
            *(spread(one[key]) for key in ("emission_delay", "emission_delay_computed", "final_delay")),
            *(number(one[key]) for key in ("laal", "yaal", "laal_computed")),
            str(one["without_yaal"]),
            spread(one["step"]),
        ]
        for chunk_ms, one in results.items()
    ]


def draw(results: dict[str, dict[int, dict]], path: Path) -> None:
    """WER over the median emission delay, a line a model."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for name, by_chunk in results.items():
        known = {chunk: one for chunk, one in by_chunk.items() if one["emission_delay_computed"]}
        delays = [one["emission_delay_computed"]["median"] for one in known.values()]
        rates = [100 * one["wer"] for one in known.values()]
        axes.plot(delays, rates, marker="o", label=name)
        for chunk, x, y in zip(known, delays, rates, strict=True):
            axes.annotate(f"{chunk} ms", (x, y), textcoords="offset points", xytext=(4, 4))
    axes.margins(x=0.15)  # for the labels
    axes.set_xlabel("from the end of a word to its text, median, ms")
    axes.set_ylabel("WER, %")
    axes.legend()
    figure.savefig(path, dpi=120)


def measure_silence(recognizer, rows: list[dict], hours: float) -> dict:
    """Cost of silence behind the voice detector, and the time from the end of speech to its endpoint."""
    from hf_speech_ssl.options import EndpointOptions
    from hf_speech_ssl.recognition import StreamingTranscriber

    rules = EndpointOptions(silence_seconds=SILENCE_SECONDS, voice_detector="silero")
    transcriber = StreamingTranscriber(recognizer.model, recognizer.processor, endpoints=rules)
    random = np.random.default_rng(0)
    minute = (1e-4 * random.standard_normal(60 * RATE)).astype(np.float32)
    began = time.perf_counter()
    for _ in range(round(60 * hours)):
        transcriber.accept(minute)
    seconds = time.perf_counter() - began
    steps, text = transcriber.batch.num_steps, transcriber.finish()
    transcriber.events()
    waits = []
    for row in rows[:50]:
        speech = row["samples"][: round(row["words"][-1]["end"] * RATE)]
        pause = (1e-4 * random.standard_normal(2 * RATE)).astype(np.float32)
        samples = np.concatenate([speech, pause])
        for block in np.split(samples, range(320, len(samples), 320)):
            transcriber.accept(block)
        ends = [one for one in transcriber.events() if one.type == "endpoint"]
        waits += [one.time - len(speech) / RATE for one in ends[-1:]]
        transcriber.finish()
        transcriber.events()
    return {
        "hours": hours,
        "real_time_factor": seconds / (3600 * hours),
        "steps": steps,
        "words": len(text.split()),
        "endpoints": len(waits),
        "wait_ms": 1000 * statistics.median(waits) if waits else None,
    }


def main() -> None:
    parser = argument_parser(__doc__, repeats=1)
    parser.add_argument("models", nargs="+", type=Path, help="folders of Chunk SSL models")
    parser.add_argument("--data", type=Path, required=True, help="what live_data.py wrote")
    parser.add_argument("--split", default="plain")
    parser.add_argument("--max_samples", type=int, default=200)
    parser.add_argument("--chunks_ms", nargs="+", type=int, default=CHUNKS_MS)
    parser.add_argument("--silence_hours", type=float, default=1.0)
    options = parser.parse_args()
    where = machine(options.threads)
    pin(options.threads)
    from hf_speech_ssl.recognition import Recognizer, can_pack, pack_layers

    rows = read_split(options.data, options.split)[: options.max_samples]
    results, silence = {}, {}
    for folder in options.models:
        recognizer = Recognizer.from_pretrained(str(folder))
        if can_pack(recognizer.model):
            pack_layers(recognizer.model)
        results[folder.name] = {chunk_ms: measure(recognizer, rows, chunk_ms) for chunk_ms in options.chunks_ms}
        silence[folder.name] = measure_silence(recognizer, rows, options.silence_hours)
    options.output_dir.mkdir(parents=True, exist_ok=True)
    draw(results, options.output_dir / "latency.png")
    header = ["model", "chunk", "WER", "word to text", "with computation", "end to text", "LAAL", "YAAL"]
    header += ["LAAL with computation", "recordings without YAAL", "step"]
    quiet = ["model", "silence", "real-time factor", "encoder steps", "words", "endpoints", "end to endpoint, ms"]
    quiet_rows = [
        [name, f"{one['hours']:g} h", f"{one['real_time_factor']:.4f}", str(one["steps"]), str(one["words"]),
         str(one["endpoints"]), "" if one["wait_ms"] is None else f"{one['wait_ms']:.0f}"]
        for name, one in silence.items()
    ]  # fmt: skip
    sections = [
        f"{len(rows)} recordings of the split `{options.split}`; ms, median (99th percentile).",
        markdown(header, [row for name, one in results.items() for row in curve_rows(name, one)]),
        "![WER over delay](latency.png)",
        f"### Silence, with silero-vad and endpoints after {SILENCE_SECONDS:g} s",
        markdown(quiet, quiet_rows),
    ]
    write_results(options.output_dir, "latency", where, sections, {"live": results, "silence": silence})


if __name__ == "__main__":
    main()
