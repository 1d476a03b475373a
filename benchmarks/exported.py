"""A streaming step outside of torch: onnxruntime in float32 and int8 beside torch, plain, packed, int8 and compiled.

    python benchmarks/exported.py [--threads 2] [--repeats 5] [--quick]

The step of `hf-speech-ssl export`: chunk and look-ahead of 320 ms, 5.12 s of left context in a cache of fixed size,
CTC head, one stream. Features are made beforehand. "packed" is what `hf-speech-ssl stream` runs on a CPU, with its
growing cache; "int8" is torch's dynamic quantization of plain layers; "compiled" is torch.compile with inductor's
freezing. Processor time counts all threads, and is what is left to compare on a machine that others use too.
"""

import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

from common import SIZES, argument_parser, machine, markdown, percentile, serve, spread, take_turns, write_results

CHUNK_MS, LEFT_CONTEXT_MS = 320, 5120
SECONDS = 60.0  # of audio per turn
KINDS = ["plain", "packed", "int8", "compiled", "onnx float32", "onnx int8"]


# --- in the process of one configuration ---


def build_recognizer():
    from hf_speech_ssl import ChunkSSLConfig, ChunkSSLForCTC, SpeechSSLFeatureExtractor
    from hf_speech_ssl.decoding import build_ctc_processor
    from hf_speech_ssl.recognition.recognizer import Recognizer

    letters = "abcdefghijklmnopqrstuvwxyz'"
    processor = build_ctc_processor([f"{letters} {letters}"], SpeechSSLFeatureExtractor())
    past = LEFT_CONTEXT_MS // CHUNK_MS
    config = ChunkSSLConfig(**SIZES, left_context_chunks=past, vocab_size=len(processor.tokenizer))
    return Recognizer(ChunkSSLForCTC(config).eval(), processor)


class Steps:
    """Streaming steps of one stream; `run` is a pass over all the audio from a fresh state."""

    def __init__(self, kind: str, folder: str, threads: int, seconds: float):
        import torch

        self.step = {"onnx": self.onnx, "compiled": self.compiled}.get(kind.split(maxsplit=1)[0], self.torch)(
            kind, Path(folder), threads
        )
        self.features = torch.randn(1, int(seconds * 100), 80)

    def torch(self, kind: str, folder: Path, threads: int):
        """Steps of the model as it is, packed, or with its linear layers quantized by torch."""
        import torch

        from hf_speech_ssl.recognition.packing import pack_layers

        model = build_recognizer().model
        if kind == "packed":
            model = pack_layers(model)
        elif kind == "int8":
            model = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear})

        def step(features, cache):
            chunk, ahead = features.split(CHUNK_MS // 10, dim=1)
            output = model(chunk, lookahead_features=ahead, past_key_values=cache, use_cache=True)
            output.logits.log_softmax(-1)
            return output.past_key_values

        return step

    def compiled(self, kind: str, folder: Path, threads: int):
        """Steps of the exported module, compiled with frozen weights."""
        import torch
        from torch._inductor import config
        from torch.utils import _pytree as pytree

        from hf_speech_ssl.export.graphs import StepGraph

        config.freezing = True
        module = StepGraph(build_recognizer().model, CHUNK_MS // 40, LEFT_CONTEXT_MS // CHUNK_MS).eval()
        compiled = torch.compile(module, fullgraph=True, dynamic=False)
        frames = torch.tensor([2 * CHUNK_MS // 10])

        def step(features, state):
            state = pytree.tree_leaves(module.start(1)) if state is None else state
            return compiled(features, frames, *state)[1:]

        return step

    def onnx(self, kind: str, folder: Path, threads: int):
        """Steps of onnxruntime, from and to numpy."""
        import numpy as np
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(str(folder / kind.split()[1] / "step.onnx"), options)
        state_inputs = session.get_inputs()[2:]
        types = {"tensor(float)": np.float32, "tensor(bool)": np.bool_, "tensor(int64)": np.int64}
        frames = np.array([2 * CHUNK_MS // 10])

        def step(features, state):
            if state is None:
                state = [np.zeros([1, *one.shape[1:]], types[one.type]) for one in state_inputs]
            names = (one.name for one in state_inputs)
            inputs = {"features": features.numpy(), "num_frames": frames, **dict(zip(names, state, strict=True))}
            return session.run(None, inputs)[1:]

        return step

    def run(self) -> dict:
        """Milliseconds of each step, on the clock and of processor time."""
        import torch

        times, busy, state, size = [], [], None, CHUNK_MS // 10
        with torch.inference_mode():
            for begin in range(0, self.features.shape[1] - 2 * size + 1, size):
                features = self.features[:, begin : begin + 2 * size]
                began, began_busy = time.perf_counter(), time.process_time()
                state = self.step(features, state)
                times.append(1e3 * (time.perf_counter() - began))
                busy.append(1e3 * (time.process_time() - began_busy))
        skipped = LEFT_CONTEXT_MS // CHUNK_MS + 1
        return {"steps_ms": times[skipped:], "busy_ms": busy[skipped:]}

    def describe(self) -> dict:
        return {}


# --- in the process that compares them ---


def export_both(folder: Path) -> dict[str, float]:
    """Write the step in float32 and int8; their sizes in MB."""
    import torch

    from hf_speech_ssl.export.graphs import make_step_graph
    from hf_speech_ssl.export.writing import quantize, write_graph

    torch.manual_seed(0)
    files = {name: folder / name / "step.onnx" for name in ("float32", "int8")}
    for file in files.values():
        file.parent.mkdir()
    graph = make_step_graph(build_recognizer().model, CHUNK_MS // 40, LEFT_CONTEXT_MS // CHUNK_MS)
    write_graph(graph, files["float32"], "onnx")
    shutil.copy(files["float32"], files["int8"])
    quantize(files["int8"])
    return {name: file.stat().st_size / 1e6 for name, file in files.items()}


def main() -> None:
    parser = argument_parser(__doc__, repeats=5)
    parser.add_argument("--kinds", nargs="+", default=KINDS)
    parser.add_argument("--quick", action="store_true", help="short passes, to see that it runs")
    options = parser.parse_args()
    if options.serve:
        return serve(Steps, options.serve, options.threads)
    where = machine(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        sizes = export_both(Path(folder))
        print(f"exported: {sizes}", file=sys.stderr)
        seconds = SECONDS if not options.quick else 12.0
        common = {"folder": folder, "threads": options.threads, "seconds": seconds}
        configurations = {kind: {"kind": kind, **common} for kind in options.kinds}
        turns, _ = take_turns(__file__, configurations, options.threads, options.repeats, "step")
    rows = []
    for kind in options.kinds:
        steps = [step for turn in turns for step in turn[kind]["steps_ms"]]
        medians = [statistics.median(turn[kind]["steps_ms"]) for turn in turns]
        busy = [statistics.median(turn[kind]["busy_ms"]) for turn in turns]
        factor = statistics.mean(steps) / CHUNK_MS
        rows.append([kind, spread(medians), f"{percentile(steps, 0.99):.1f}", spread(busy), f"{factor:.3f}"])
    header = ["runtime", "ms a step: median", "p99", "processor time, ms", "real-time factor"]
    sections = [
        f"Chunks of {CHUNK_MS} ms, {options.repeats} passes of {seconds:g} s; medians (range), p99 over all steps.",
        markdown(header, rows),
        f"`step.onnx`: {sizes['float32']:.1f} MB in float32, {sizes['int8']:.1f} MB in int8.",
    ]
    return write_results(options.output_dir, "exported", where, sections, turns)


if __name__ == "__main__":
    main()
