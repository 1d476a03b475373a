"""What the benchmarks share: a process per configuration, batches that sound like speech, tables, the machine's name.

Numbers are compared only within one sitting. Configurations live in processes of their own, so that peak memory is
their own, and take turns on the same cores, so that a slow minute of the machine falls on all of them.
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
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hf_speech_ssl.json_files import json_text

# The encoder that all are compared at.
SIZES = {
    "hidden_size": 256,
    "num_hidden_layers": 12,
    "num_attention_heads": 4,
    "intermediate_size": 1024,
    "conv_kernel_size": 31,
}

# A prediction network of the same width.
DECODER_SIZES = {"decoder_hidden_size": 256, "decoder_attention_heads": 4, "decoder_intermediate_size": 1024}

# Tokenizers of Chunk SSL by the size of their codebooks.
FSQ_LEVELS = {
    "1,000": [8, 5, 5, 5],
    "50,625": [5] * 4 + [3] * 4,
    "1,265,625": [5] * 6 + [3] * 4,
    "6,834,375": [5] * 5 + [3] * 7,
}


def peak_mib() -> float:
    """Largest resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def speech_like(durations: list[float]):
    """Noise whose loudness moves about as speech does: padded (B, samples) float32, and (B,) lengths."""
    import torch

    lengths = torch.tensor([round(seconds * 16_000) for seconds in durations])
    samples = torch.arange(int(lengths.max()))
    loudness = 0.05 + (samples * 3.14159 * 4 / 16_000).sin().abs()
    return 0.1 * loudness * torch.randn(len(durations), len(samples)) * (samples < lengths[:, None]), lengths


def pin(threads: int) -> None:
    """Put this process on as many cores as it has threads."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(0)


def serve(build: Callable[..., Any], settings: str, threads: int) -> None:
    """Be the process of one configuration: build it from JSON settings, then answer each line of the standard input,
    the name of a method, with what the method returns.
    """
    pin(threads)
    worker = build(**json.loads(settings))
    for line in sys.stdin:
        print(json.dumps(getattr(worker, line.strip())()), flush=True)


class Worker:
    """A configuration in a process of its own: `script --serve SETTINGS --threads N`.

    Args:
        script: the benchmark's file.
        settings: what the configuration is built from.
        threads: threads of torch, on as many cores.
    """

    def __init__(self, script: str, settings: dict[str, Any], threads: int):
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        command = [sys.executable, script, "--serve", json.dumps(settings), "--threads", str(threads)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def ask(self, method: str) -> dict[str, Any]:
        """What the method of that name returns there."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(method, file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(
                f"The process of a configuration ended with {self.process.wait()}: see its error above."
            )
        return json.loads(answer)

    def close(self) -> None:
        self.process.communicate()


def take_turns(
    script: str, configurations: dict[str, dict[str, Any]], threads: int, repeats: int, title: str
) -> tuple[list[dict[str, dict]], dict[str, dict]]:
    """Run every configuration once to warm up, then `repeats` times in turn.

    Returns:
        For each turn, what `run` returned, by configuration; and what `describe` returned, by configuration.
    """
    workers = {name: Worker(script, settings, threads) for name, settings in configurations.items()}
    for worker in workers.values():
        worker.ask("run")
    turns = []
    for turn in range(repeats):
        turns.append({name: worker.ask("run") for name, worker in workers.items()})
        print(f"{title}: {turn + 1} of {repeats}", file=sys.stderr)
    facts = {name: worker.ask("describe") for name, worker in workers.items()}
    for worker in workers.values():
        worker.close()
    return turns, facts


def spread(values: list[float], digits: int = 1) -> str:
    """Median and range."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}–{max(values):.{digits}f})"


def mean_and_range(values: list[float], digits: int = 1) -> str:
    """Mean and range; the value if there is one."""
    spread = f" ({min(values):.{digits}f}–{max(values):.{digits}f})" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def paired_difference(errors: Any, others: Any, words: Any, speakers: list[Any] | None) -> str:
    """The difference of two error rates in points, paired by utterance, with its 95 % interval.

    Args:
        errors, others, words: of each utterance.
        speakers: of each utterance, who are drawn by the bootstrap; utterances if absent.
    """
    import numpy as np

    from hf_speech_ssl.evaluation import bootstrap_ratios

    difference = np.asarray(errors) - np.asarray(others)
    (change,) = bootstrap_ratios(difference[:, None], np.asarray(words)[:, None], groups=speakers or None)
    if change.low is None or change.high is None:
        return f"{100 * change.value:+.1f}"
    return f"{100 * change.value:+.1f} ({100 * change.low:+.1f} to {100 * change.high:+.1f})"


def percentile(values: list[float], share: float) -> float:
    """The smallest value that at least this share of the values does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows))


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


def argument_parser(description: str | None, repeats: int) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=repeats)
    parser.add_argument("--output_dir", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    return parser


def write_results(output_dir: Path, name: str, where: str, sections: list[str], results: Any) -> None:
    """Write `name`.md and `name`.json, and print the former."""
    report = "\n\n".join([where, *sections]) + "\n"
    output_dir.mkdir(parents=True, exist_ok=True)
    (output_dir / f"{name}.md").write_text(report)
    (output_dir / f"{name}.json").write_text(json_text({"machine": where, "results": results}))
    print(report)
