"""Audio seconds per second and peak memory of one pretraining step of BEST-RQ and of BiRQ.

    python benchmarks/pretraining_step.py [--threads 2] [--repeats 7] [--groups main bucketed ...]

A step is everything from samples to new weights: log-mel features, labels, mask, forward, backward, AdamW. Each
configuration runs in a process of its own, so that its peak memory is its own, on the same cores with the same number
of threads. The configurations of a group take turns, one step each, and so does a probe of what the machine gives at
that moment: the rate of a 2048^3 matrix product, and a pass through nothing but the encoder's linear layers. A ratio
is the median over the turns of two neighbouring steps, in which a slow minute of the machine cancels.
"""

import argparse
import datetime
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # imported where it is used: the comparing process needs none of its memory
    import torch

SIZES = {
    "hidden_size": 256,
    "num_hidden_layers": 12,
    "num_attention_heads": 4,
    "intermediate_size": 1024,
    "conv_kernel_size": 31,
}
MODES = {
    "BEST-RQ": {"enhanced_loss_weight": 0.0},
    "BiRQ": {},
    "BiRQ, detached": {"detach_enhanced_labels": True},
}
FIXED = [[10.0] * 8]
# Durations in seconds from 4 to 16: in one padded batch, and as a bucketing sampler would join 32 of them.
PADDED = [[4 + 12 * i / 7 for i in range(8)]]
BUCKETED = [[4 + 12 * i / 31 for i in range(first, first + 8)] for first in range(0, 32, 8)]
GROUPS = {
    "main": ("8 x 10 s, 25 Hz, dropout 0.1", {"frame_stacking": 4, "hidden_dropout": 0.1}, FIXED),
    "no-dropout": ("8 x 10 s, 25 Hz, no dropout", {"frame_stacking": 4, "hidden_dropout": 0.0}, FIXED),
    "padded": ("8 x 4 to 16 s in one batch, 25 Hz", {"frame_stacking": 4, "hidden_dropout": 0.1}, PADDED),
    "bucketed": (
        "32 x 4 to 16 s, batched by length, 25 Hz",
        {"frame_stacking": 4, "hidden_dropout": 0.1},
        BUCKETED,
    ),
    "50hz": ("8 x 10 s, 50 Hz, dropout 0.1", {"frame_stacking": 2, "hidden_dropout": 0.1}, FIXED),
}


def peak_mib() -> float:
    """Largest resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# --- in the process of one configuration ---


class PretrainingStep:
    """One model and its batches; `run` is a step on every batch."""

    def __init__(self, mode: str, group: str):
        import torch

        from hf_speech_ssl import BiRQConfig, BiRQForPreTraining, SpeechSSLFeatureExtractor

        self.memory = {"imported_mib": peak_mib()}
        torch.manual_seed(0)
        _, settings, durations = GROUPS[group]
        stacking = settings["frame_stacking"]
        config = BiRQConfig(
            **{**SIZES, **settings, **MODES[mode]},
            mask_start_prob=0.01 * stacking,  # spans of 400 ms that hide 33 % at any frame rate
            mask_length=40 // stacking,
        )
        self.model = BiRQForPreTraining(config).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)
        self.batches = [speech_like(batch) for batch in durations]
        self.extractor = SpeechSSLFeatureExtractor()
        self.extractor.fit_normalization(self.batches)
        self.memory["built_mib"] = peak_mib()

    def run(self) -> dict[str, float]:
        """Wall time in seconds of each stage, summed over the batches."""
        stages = dict.fromkeys(("features", "forward", "backward", "optimizer"), 0.0)
        for waveforms, lengths in self.batches:
            times = [time.perf_counter()]
            features, mask = self.extractor.extract(waveforms, lengths)
            times.append(time.perf_counter())
            loss = self.model(features, attention_mask=mask).loss
            times.append(time.perf_counter())
            loss.backward()
            times.append(time.perf_counter())
            self.optimizer.step()
            self.optimizer.zero_grad()
            times.append(time.perf_counter())
            for stage, begin, end in zip(stages, times, times[1:], strict=False):
                stages[stage] += end - begin
        return stages

    def describe(self) -> dict[str, float]:
        """Memory so far, parameters, and the matrix products and convolutions of `run` in GFLOP."""
        from torch.nn.attention import SDPBackend, sdpa_kernel
        from torch.utils.flop_counter import FlopCounterMode

        facts = {**self.memory, "peak_mib": peak_mib(), "parameters": self.model.num_parameters()}
        # The counter knows the unfused form of attention only.
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            self.run()
        return {**facts, "gflop": counter.get_total_flops() / 1e9}


class Probe:
    """What the machine gives at the moment: the rate of a square product, and the encoder's linear layers alone."""

    def __init__(self, group: str):
        import torch

        self.square = torch.randn(2048, 2048)
        _, settings, durations = GROUPS[group]
        width, inner = SIZES["hidden_size"], SIZES["intermediate_size"]
        frames = [round(sum(batch) * 100 / settings["frame_stacking"]) for batch in durations]
        # (inputs, outputs) of a block's linear layers: two feed-forwards, attention, convolution
        shapes = [(width, inner), (inner, width)] * 2 + [(width, 3 * width), (width, 2 * width)] + [(width, width)] * 2
        self.layers = [
            tuple(torch.randn(size) for size in ((rows, inputs), (outputs, inputs), (rows, outputs)))
            for rows in frames
            for inputs, outputs in shapes
        ]

    def run(self) -> dict[str, float]:
        """Rate in GFLOP/s, and seconds of forward and backward through all blocks' linear layers."""
        begin = time.perf_counter()
        self.square @ self.square
        rate = 2 * 2048**3 / (time.perf_counter() - begin) / 1e9
        begin = time.perf_counter()
        for _ in range(SIZES["num_hidden_layers"]):
            for inputs, weight, gradient in self.layers:
                inputs @ weight.T, gradient @ weight, gradient.T @ inputs
        return {"gflops_per_s": rate, "linear_s": time.perf_counter() - begin}

    def describe(self) -> dict[str, float]:
        return {}


def speech_like(durations: list[float]) -> tuple["torch.Tensor", "torch.Tensor"]:
    """Noise whose loudness moves about as speech does: padded (B, samples) float32, and (B,) lengths."""
    import torch

    lengths = torch.tensor([round(seconds * 16_000) for seconds in durations])
    samples = torch.arange(int(lengths.max()))
    loudness = 0.05 + (samples * 3.14159 * 4 / 16_000).sin().abs()
    return 0.1 * loudness * torch.randn(len(durations), len(samples)) * (samples < lengths[:, None]), lengths


def serve(name: str, group: str, threads: int) -> None:
    """Answer each line of the standard input: "run" with the times of a step, "describe" with the rest."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    import torch

    torch.set_num_threads(threads)
    worker = Probe(group) if name == "probe" else PretrainingStep(name, group)
    for line in sys.stdin:
        print(json.dumps(getattr(worker, line.strip())()), flush=True)


# --- in the process that compares them ---


class Worker:
    """A configuration in a process of its own."""

    def __init__(self, name: str, group: str, threads: int):
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        command = [sys.executable, __file__, "--serve", name, "--groups", group, "--threads", str(threads)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def ask(self, question: str) -> dict[str, float]:
        assert self.process.stdin is not None and self.process.stdout is not None
        print(question, file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(
                f"The process of a configuration ended with {self.process.wait()}: see its error above."
            )
        return json.loads(answer)

    def close(self) -> None:
        self.process.communicate()


def measure(group: str, threads: int, repeats: int) -> dict:
    """Every configuration of a group, taking turns."""
    workers = {name: Worker(name, group, threads) for name in (*MODES, "probe")}
    for worker in workers.values():
        worker.ask("run")  # warms up
    turns = []
    for turn in range(repeats):
        turns.append({name: worker.ask("run") for name, worker in workers.items()})
        print(f"{group}: {turn + 1} of {repeats}", file=sys.stderr)
    facts = {name: worker.ask("describe") for name, worker in workers.items()}
    for worker in workers.values():
        worker.close()
    return {"group": group, "turns": turns, "facts": facts}


def spread(values: list[float], digits: int = 1) -> str:
    """Median and range."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}–{max(values):.{digits}f})"


def table(result: dict) -> str:
    """A group's results as Markdown."""
    (title, _, durations), turns = GROUPS[result["group"]], result["turns"]
    audio = sum(map(sum, durations))
    rates = [turn["probe"]["gflops_per_s"] for turn in turns]
    floor = [audio / turn["probe"]["linear_s"] for turn in turns]
    seconds = {name: [sum(turn[name].values()) for turn in turns] for name in MODES}
    columns = [
        "",
        "audio s / wall s",
        "time to BEST-RQ",
        "arithmetic to BEST-RQ",
        "GFLOP",
        "of the product's rate",
        "features, forward, backward, AdamW (s)",
        "peak memory",
        "of it before the model",
    ]
    lines = [
        f"### {title}",
        "",
        f"Matrix product 2048^3: {spread(rates, 0)} GFLOP/s. Linear layers alone: {spread(floor)} audio s / wall s.",
        "",
        f"| {' | '.join(columns)} |",
        "|" + "---|" * len(columns),
    ]
    for name in MODES:
        facts = result["facts"][name]
        stages = [statistics.median(turn[name][stage] for turn in turns) for stage in turns[0][name]]
        share = [facts["gflop"] / s / rate for s, rate in zip(seconds[name], rates, strict=True)]
        cells = [
            name,
            spread([audio / s for s in seconds[name]]),
            spread([s / base for s, base in zip(seconds[name], seconds["BEST-RQ"], strict=True)], 2),
            f"{facts['gflop'] / result['facts']['BEST-RQ']['gflop']:.2f}",
            f"{facts['gflop']:.0f}",
            f"{100 * statistics.median(share):.0f} %",
            ", ".join(f"{stage:.2f}" for stage in stages),
            f"{facts['peak_mib'] / 1024:.2f} GiB",
            f"{facts['imported_mib'] / 1024:.2f} GiB",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def machine(threads: int) -> str:
    """One line that says where and with what the figures were made."""
    import torch
    import transformers

    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        model = names[0].split(":", 1)[1].strip() if names else model
    return (
        f"{model}, {torch.backends.cpu.get_cpu_capability()}, {threads} threads on as many of {os.cpu_count()} cores, "
        f"load {os.getloadavg()[0]:.1f} at the start; torch {torch.__version__}, transformers "
        f"{transformers.__version__}, Python {platform.python_version()}; {datetime.date.today()}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=list(GROUPS))
    parser.add_argument("--output_dir", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options.groups[0], options.threads)
        return
    where = machine(options.threads)
    results = [measure(group, options.threads, options.repeats) for group in options.groups]
    report = "\n\n".join([where, f"Median (range) of {options.repeats} steps.", *map(table, results)]) + "\n"
    options.output_dir.mkdir(parents=True, exist_ok=True)
    (options.output_dir / "pretraining_step.md").write_text(report)
    (options.output_dir / "pretraining_step.json").write_text(json.dumps({"machine": where, "results": results}))
    print(report)


if __name__ == "__main__":
    main()
