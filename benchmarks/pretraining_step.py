"""Audio seconds per second and peak memory of one pretraining step of BEST-RQ and of BiRQ.

    python benchmarks/pretraining_step.py [--threads 2] [--repeats 7] [--groups main bucketed ...]

A step is everything from samples to new weights: log-mel features, labels, mask, forward, backward, AdamW. Each
configuration runs in a process of its own, so that its peak memory is its own, on the same cores with the same number
of threads. The configurations of a group take turns, one step each, and so does a probe of what the machine gives at
that moment: the rate of a 2048^3 matrix product, and a pass through nothing but the encoder's linear layers. A ratio
is the median over the turns of two neighboring steps, in which a slow minute of the machine cancels.
"""

import statistics
import time
from dataclasses import dataclass, field
from typing import Any

from common import (
    SIZES,
    argument_parser,
    machine,
    markdown,
    peak_mib,
    serve,
    speech_like,
    spread,
    take_turns,
    write_results,
)

BEST_RQ: dict[str, Any] = {"enhanced_loss_weight": 0.0}
MODES: dict[str, dict[str, Any]] = {
    "BEST-RQ": BEST_RQ,
    "BiRQ": {},
    "BiRQ, detached": {"detach_enhanced_labels": True},
}
# Every step that is measured gathers statistics; every fourth one moves the entries.
REFINED = {"projection_kind": "whitened", "projection_updates": 1, "codebook_distance": "euclidean"}
REFINED |= {"codebook_refinements": 1000, "codebook_refinement_interval": 4, "reseed_dead_entries": True}
# The first codebook is distilled, and the second one refined, in every step that is measured.
DISTILLED = {"second_codebook_size": 256, "distillation_loss_weight": 0.5, "distillation_kmeans_weight": 0.1}
DISTILLED |= {"distillation_start": 1, "codebook_replacements": [1000]}
LABEL_MODES = {
    "BEST-RQ": BEST_RQ,
    "refined labels": BEST_RQ | REFINED,
    "a second label set": BEST_RQ | REFINED | {"second_codebook_size": 256},
    "distilled labels": BEST_RQ | REFINED | DISTILLED,
}
FIXED = [[10.0] * 8]
# Durations in seconds from 4 to 16: in one padded batch, and as a bucketing sampler would join 32 of them.
PADDED = [[4 + 12 * i / 7 for i in range(8)]]
BUCKETED = [[4 + 12 * i / 31 for i in range(first, first + 8)] for first in range(0, 32, 8)]


@dataclass(frozen=True)
class Group:
    """Configurations that are compared with each other.

    Args:
        title: of its table.
        settings: config fields of all of them.
        durations: seconds of the utterances of each batch.
        modes: config fields of each; the first is what the others are compared with.
    """

    title: str
    settings: dict[str, Any]
    durations: list[list[float]] = field(default_factory=lambda: FIXED)
    modes: dict[str, dict[str, Any]] = field(default_factory=lambda: MODES)


DEFAULT = {"frame_stacking": 4, "hidden_dropout": 0.1}
GROUPS = {
    "main": Group("8 x 10 s, 25 Hz, dropout 0.1", DEFAULT),
    "no-dropout": Group("8 x 10 s, 25 Hz, no dropout", DEFAULT | {"hidden_dropout": 0.0}),
    "padded": Group("8 x 4 to 16 s in one batch, 25 Hz", DEFAULT, PADDED),
    "bucketed": Group("32 x 4 to 16 s, batched by length, 25 Hz", DEFAULT, BUCKETED),
    "50hz": Group("8 x 10 s, 50 Hz, dropout 0.1", DEFAULT | {"frame_stacking": 2}),
    "labels": Group("Labels that learn: 8 x 10 s, 25 Hz, dropout 0.1", DEFAULT, modes=LABEL_MODES),
}


# --- in the process of one configuration ---


class PretrainingStep:
    """One model and its batches; `run` is a step on every batch."""

    def __init__(self, mode: str, group: str):
        import torch

        from hf_speech_ssl import BiRQConfig, BiRQForPreTraining, SpeechSSLFeatureExtractor

        self.memory = {"imported_mib": peak_mib()}
        torch.manual_seed(0)
        settings = GROUPS[group].settings
        stacking = settings["frame_stacking"]
        config = BiRQConfig(
            **{**SIZES, **settings, **GROUPS[group].modes[mode]},
            mask_start_prob=0.01 * stacking,  # spans of 400 ms that hide 33 % at any frame rate
            mask_length=40 // stacking,
        )
        self.model = BiRQForPreTraining(config).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)
        self.batches = [speech_like(batch) for batch in GROUPS[group].durations]
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
        width, inner = SIZES["hidden_size"], SIZES["intermediate_size"]
        stacking = GROUPS[group].settings["frame_stacking"]
        frames = [round(sum(batch) * 100 / stacking) for batch in GROUPS[group].durations]
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


def build(name: str, group: str) -> PretrainingStep | Probe:
    return Probe(group) if name == "probe" else PretrainingStep(name, group)


# --- in the process that compares them ---


def measure(group: str, threads: int, repeats: int) -> dict:
    """Every configuration of a group, taking turns."""
    configurations = {name: {"name": name, "group": group} for name in (*GROUPS[group].modes, "probe")}
    turns, facts = take_turns(__file__, configurations, threads, repeats, group)
    return {"group": group, "turns": turns, "facts": facts}


def table(result: dict) -> str:
    """A group's results as Markdown."""
    group, turns = GROUPS[result["group"]], result["turns"]
    audio = sum(map(sum, group.durations))
    rates = [turn["probe"]["gflops_per_s"] for turn in turns]
    floor = [audio / turn["probe"]["linear_s"] for turn in turns]
    seconds = {name: [sum(turn[name].values()) for turn in turns] for name in group.modes}
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
    probe = (
        f"Matrix product 2048^3: {spread(rates, 0)} GFLOP/s. Linear layers alone: {spread(floor)} audio s / wall s."
    )
    rows = []
    for name in group.modes:
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
        rows.append(cells)
    return "\n\n".join([f"### {group.title}", probe, markdown(columns, rows)])


def main() -> None:
    parser = argument_parser(__doc__, repeats=7)
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=list(GROUPS))
    options = parser.parse_args()
    if options.serve:
        return serve(build, options.serve, options.threads)
    where = machine(options.threads)
    results = [measure(group, options.threads, options.repeats) for group in options.groups]
    sections = [f"Median (range) of {options.repeats} steps.", *map(table, results)]
    return write_results(options.output_dir, "pretraining_step", where, sections, results)


if __name__ == "__main__":
    main()
