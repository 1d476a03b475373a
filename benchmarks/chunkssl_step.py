"""Audio seconds per second and peak memory of one pretraining step of Chunk SSL.

    python benchmarks/chunkssl_step.py [--threads 2] [--repeats 5] [--groups codebooks 75s ...] [--quick]

A step is everything from samples to new weights: log-mel features, labels by the tokenizer (12 layers of 512, the
paper's size, untrained), mask, forward, backward, AdamW. Beside the copy-and-append step stand a plain BEST-RQ step of
the same encoder on the same audio, and the naive way to the same loss and gradients: one pass per chunk. Processes,
turns and ratios are those of `pretraining_step.py`.
Groups that are not asked for keep the figures of an earlier sitting.
"""

import json
import statistics
import time
from pathlib import Path

from common import (
    FSQ_LEVELS,
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

PLAIN = {"kind": "plain"}


def chunked(chunk_ms: int = 1280, levels: str = "6,834,375", **fields) -> dict:
    """Settings of a Chunk SSL step."""
    return {"kind": "chunked", "chunk_ms": chunk_ms, "fields": {"fsq_levels": FSQ_LEVELS[levels], **fields}}


CHUNKS = {f"chunks of {chunk_ms} ms": chunked(chunk_ms) for chunk_ms in (640, 1280, 2560)}
# Title, durations of the batch in seconds, configurations; ratios are to the first of them.
GROUPS = {
    "codebooks": (
        "Codebooks: 4 x 15 s, chunks of 1280 ms",
        [15.0] * 4,
        {f"{name}, group loss": chunked(levels=name) for name in FSQ_LEVELS}
        | {
            "1,000, full loss": chunked(levels="1,000", loss_kind="full"),
            "random projection, 8,192": chunked(label_kind="random_projection"),
            "BEST-RQ step": PLAIN,
        },
    ),
    "5s": ("24 x 5 s", [5.0] * 24, {"BEST-RQ step": PLAIN, **CHUNKS}),
    "15s": ("8 x 15 s", [15.0] * 8, {"BEST-RQ step": PLAIN, **CHUNKS}),
    "30s": ("4 x 30 s", [30.0] * 4, {"BEST-RQ step": PLAIN, **CHUNKS}),
    "75s": ("2 x 75 s", [75.0] * 2, {"BEST-RQ step": PLAIN, **CHUNKS}),
    "naive": (
        "One pass, or one pass per chunk: 4 x 15 s",
        [15.0] * 4,
        {
            "copy and append, 640 ms": chunked(640),
            "naive, 640 ms": {**chunked(640), "kind": "naive"},
            "copy and append, 1280 ms": chunked(1280),
            "naive, 1280 ms": {**chunked(1280), "kind": "naive"},
        },
    ),
    "attention": (
        "Attention: 1 x 75 s (1,875 frames), chunks of 640 ms (16 frames)",
        [75.0],
        {
            "windows (sdpa)": chunked(640),
            "dense scores (eager)": {**chunked(640), "attention": "eager"},
            "BEST-RQ step, sdpa": PLAIN,
            "BEST-RQ step, eager": {**PLAIN, "attention": "eager"},
        },
    ),
}


# --- in the process of one configuration ---


class Step:
    """One model and its batch; `run` is a step."""

    def __init__(
        self,
        kind: str,
        durations: list[float],
        layers: int,
        chunk_ms: int | None = None,
        fields: dict | None = None,
        attention: str = "sdpa",
    ):
        import torch

        from hf_speech_ssl import (
            BiRQConfig,
            BiRQForPreTraining,
            ChunkSSLConfig,
            ChunkSSLForPreTraining,
            SpeechSSLFeatureExtractor,
        )

        imported = peak_mib()
        sizes = {**SIZES, "num_hidden_layers": layers, "attn_implementation": attention}
        if kind == "plain":
            self.model = BiRQForPreTraining(
                BiRQConfig(**sizes, frame_stacking=4, enhanced_loss_weight=0.0, mask_start_prob=0.04, mask_length=10)
            )
            self.loss = lambda features, mask: self.model(features, attention_mask=mask).loss
        else:
            self.model = ChunkSSLForPreTraining(ChunkSSLConfig(**sizes, **fields))
            size = self.model.config.chunk_frames(chunk_ms)
            loss = naive_loss if kind == "naive" else copy_and_append_loss
            self.loss = lambda features, mask: loss(self.model, features, mask, size)
        self.model.train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)
        self.audio = speech_like(durations)
        self.extractor = SpeechSSLFeatureExtractor()
        self.facts = {"imported_mib": imported, "parameters": self.model.num_parameters(), "loss": self.first_loss()}

    def run(self) -> dict[str, float]:
        """Wall time in seconds of each stage."""
        times = [time.perf_counter()]
        features, mask = self.extractor.extract(*self.audio)
        times.append(time.perf_counter())
        loss = self.loss(features, mask)
        times.append(time.perf_counter())
        loss.backward()
        times.append(time.perf_counter())
        self.optimizer.step()
        self.optimizer.zero_grad()
        times.append(time.perf_counter())
        stages = ("features", "forward", "backward", "optimizer")
        return {stage: end - begin for stage, begin, end in zip(stages, times, times[1:], strict=False)}

    def describe(self) -> dict[str, float]:
        """Memory so far, and the matrix products and convolutions of `run` in GFLOP."""
        from torch.nn.attention import SDPBackend, sdpa_kernel
        from torch.utils.flop_counter import FlopCounterMode

        facts = {**self.facts, "peak_mib": peak_mib()}
        # The counter knows the unfused form of attention only.
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            self.run()
        return {**facts, "gflop": counter.get_total_flops() / 1e9}

    def first_loss(self) -> float:
        """The loss of the untrained model without dropout, with masks from a fixed seed."""
        import torch

        self.model.eval()
        torch.manual_seed(1)
        with torch.no_grad():
            loss = self.loss(*self.extractor.extract(*self.audio))
        self.model.train()
        return float(loss)


def copy_and_append_loss(model, features, mask, chunk_size: int):
    """The loss as the package computes it."""
    return model(features, attention_mask=mask, chunk_size=chunk_size).loss


def naive_loss(model, features, mask, chunk_size: int):
    """The same loss from one pass per chunk, in the order of time, with gradients through all that is kept."""
    import torch

    from hf_speech_ssl.modeling.cache import ConformerCache
    from hf_speech_ssl.modeling.layouts import StreamingLayout

    class GradientCache(ConformerCache):
        """Keys and values joined instead of written in place."""

        def update(self, layer_idx: int, key, value):
            past = self.keys.get(layer_idx), self.values.get(layer_idx)
            if past[0] is not None:
                key, value = torch.cat([past[0], key], dim=2), torch.cat([past[1], value], dim=2)
            kept = self.length + chunk_size
            self.keys[layer_idx], self.values[layer_idx] = key[:, :, :kept], value[:, :, :kept]
            return key, value

        def begin(self, batch_size: int, num_frames: int, device) -> None:
            if self.num_streams == 0:
                super().begin(batch_size, num_frames, device)

    encoder = model.encoder
    stacked, frame_mask = encoder.stack_frames(features, mask)
    hidden = model.choose_hidden_frames(frame_mask, chunk_size, None)
    base = encoder.project(stacked)
    masked = torch.where(hidden[..., None], model.mask_vector, base)
    cache, encoded = GradientCache(), [torch.zeros_like(base[:, :chunk_size])]
    for start in range(0, base.shape[1] - chunk_size, chunk_size):
        now, ahead = slice(start, start + chunk_size), slice(start + chunk_size, start + 2 * chunk_size)
        cache.begin(len(base), 2 * chunk_size, base.device)
        step_mask = torch.cat([frame_mask[:, now], frame_mask[:, ahead]], dim=1)
        layout = StreamingLayout(cache, chunk_size, step_mask.shape[1], step_mask)
        output = encoder.run_layers(torch.cat([base[:, now], masked[:, ahead]], dim=1), None, layout=layout)
        cache.advance(chunk_size, frame_mask[:, now])
        encoded.append(output[:, chunk_size:])
    logits = model.prediction_head(torch.cat(encoded, dim=1)[hidden])
    return model.predict(logits, model.label(stacked, frame_mask)[hidden], torch.tensor(0.0)).loss


# --- in the process that compares them ---


def measure(group: str, options) -> dict:
    """Every configuration of a group, taking turns."""
    _, durations, configurations = GROUPS[group]
    common = {"durations": durations, "layers": SIZES["num_hidden_layers"]}
    if options.quick:
        common = {"durations": durations[:1], "layers": 2}
    settings = {name: {**one, **common} for name, one in configurations.items()}
    turns, facts = take_turns(__file__, settings, options.threads, options.repeats, group)
    where = f"{machine(options.threads)} {options.repeats} steps."
    return {"group": group, "machine": where, "audio": sum(common["durations"]), "turns": turns, "facts": facts}


def table(result: dict) -> str:
    """A group's results as Markdown."""
    turns, facts = result["turns"], result["facts"]
    seconds = {name: [sum(turn[name].values()) for turn in turns] for name in facts}
    first = next(iter(facts))
    columns = ["", "audio s / wall s", "time to the first", "arithmetic to the first", "GFLOP"]
    columns += [
        "features, forward, backward, AdamW (s)",
        "peak memory",
        "memory to the first",
        "of it before the model",
        "first loss",
    ]
    rows = []
    for name, fact in facts.items():
        stages = [statistics.median(turn[name][stage] for turn in turns) for stage in turns[0][name]]
        rows.append(
            [
                name,
                spread([result["audio"] / s for s in seconds[name]]),
                spread([s / base for s, base in zip(seconds[name], seconds[first], strict=True)], 3),
                f"{fact['gflop'] / facts[first]['gflop']:.2f}",
                f"{fact['gflop']:.0f}",
                ", ".join(f"{stage:.2f}" for stage in stages),
                f"{fact['peak_mib'] / 1024:.2f} GiB",
                f"{fact['peak_mib'] / facts[first]['peak_mib']:.3f}",
                f"{fact['imported_mib'] / 1024:.2f} GiB",
                f"{fact['loss']:.6f}",
            ]
        )
    return "\n\n".join([f"### {GROUPS[result['group']][0]}", markdown(columns, rows), result["machine"]])


def earlier_results(file: Path) -> dict[str, dict]:
    """The groups of an earlier sitting, by name."""
    return {one["group"]: one for one in json.loads(file.read_text())["results"]} if file.exists() else {}


def main() -> None:
    parser = argument_parser(__doc__, repeats=5)
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=list(GROUPS))
    parser.add_argument("--quick", action="store_true", help="one utterance and two blocks, to see that it runs")
    options = parser.parse_args()
    if options.serve:
        return serve(Step, options.serve, options.threads)
    measured = earlier_results(options.output_dir / "chunkssl_step.json")
    measured |= {group: measure(group, options) for group in options.groups}
    results = [measured[group] for group in GROUPS if group in measured]
    heading = "Medians (ranges). Ratios hold within a group, which is one sitting; below it stands where and when."
    return write_results(options.output_dir, "chunkssl_step", heading, list(map(table, results)), results)


if __name__ == "__main__":
    main()
