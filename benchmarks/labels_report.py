"""Table and plot of the lines that `labels.py` writes."""

import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
from common import markdown

from hf_speech_ssl.evaluation import bootstrap_ratios

COMPARED = ("scratch", "best-rq")  # rows that the others are compared with
NOTE = (
    "Rates: mean (range) over seeds. Differences are paired by utterance over the seeds that both rows have, with "
    "95 % intervals from bootstrap resamples of the test speakers, which say nothing of other seeds. Label perplexity "
    "is that of the anchor labels over a window of many updates."
)
Line = dict[str, Any]


def difference(lines: list[Line], base: list[Line]) -> str:
    """WER of some lines minus that of the same seeds of another row, paired by utterance, with its interval."""
    seeds = {line["seed"] for line in lines} & {line["seed"] for line in base}
    if not seeds or lines is base:
        return ""
    mine, other = (
        np.sum([line["word_errors"] for line in part if line["seed"] in seeds], axis=0) for part in (lines, base)
    )
    words = len(seeds) * np.array(lines[0]["words"])
    (change,) = bootstrap_ratios((mine - other)[:, None], words[:, None], groups=lines[0]["speaker"] or None)
    if change.low is None or change.high is None:
        return f"{100 * change.value:+.1f}"
    return f"{100 * change.value:+.1f} ({100 * change.low:+.1f} to {100 * change.high:+.1f})"


def rates(lines: list[Line], kind: str) -> str:
    """Mean and range over the seeds, in per cent."""
    values = [100 * line[kind]["value"] for line in lines]
    spread = f" ({min(values):.1f}–{max(values):.1f})" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


def name_of(line: Line) -> str:
    """The row, and how long it was pretrained."""
    how = line["pretraining"]
    return (
        line["row"] if how is None else f"{line['row']} ({how['updates']:,} x {how['seconds']:g} s, {how['rate']:g})"
    )


def in_order(rows: dict[str, list[Line]], order: list[str]) -> list[str]:
    """Names of rows as the benchmark lists them, shorter pretraining first."""

    def key(name: str) -> tuple[int, int]:
        line = rows[name][0]
        return order.index(line["row"]), (line["pretraining"] or {"updates": 0})["updates"]

    return sorted(rows, key=key)


def grouped(lines: list[Line]) -> dict[tuple[str, int, int], dict[str, list[Line]]]:
    """Lines by what makes them comparable (recipe, training speakers, updates of fine-tuning), and by row and length
    of pretraining.
    """
    groups: dict[tuple[str, int, int], dict[str, list[Line]]] = {}
    for line in lines:
        key = (json.dumps(line["recipe"]), line["speakers"], line["steps"])
        groups.setdefault(key, {}).setdefault(name_of(line), []).append(line)
    return groups


def title(speakers: int, steps: int) -> str:
    """What a table or a panel shows."""
    return f"Transcripts of {speakers} speakers, {steps:,} updates of fine-tuning"


def table(lines: list[Line], order: list[str]) -> str:
    """One table in Markdown for each group of comparable lines, its rows in this order."""
    parts = [NOTE]
    for (recipe, speakers, steps), rows in grouped(lines).items():
        settings = ", ".join(f"{name} {value}" for name, value in json.loads(recipe).items())
        cells = []
        for row in in_order(rows, order):
            some = rows[row]
            bases = (next((rows[other] for other in rows if rows[other][0]["row"] == name), some) for name in COMPARED)
            compared = [difference(some, base) for base in bases]
            perplexities = [line["labels"]["anchor_label_perplexity"] for line in some if line.get("labels")]
            use = f"{statistics.mean(perplexities):.0f}" if perplexities else ""
            cells.append([row, str(len(some)), rates(some, "wer"), rates(some, "cer"), *compared, use])
        header = ["row", "seeds", "WER %", "CER %", *(f"WER to {name}" for name in COMPARED), "label perplexity"]
        parts += [f"## {title(speakers, steps)}", f"Recipe: {settings}.", markdown(header, cells)]
    parts.append("Machines: " + " ".join(sorted({line["machine"].split(", load")[0] + "." for line in lines})))
    return "\n\n".join(parts) + "\n"


def plot(lines: list[Line], order: list[str], file: Path) -> None:
    """WER of every seed as a point and their mean as a bar, one panel for each group of comparable lines."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    groups = grouped(lines)
    figure, panels = pyplot.subplots(len(groups), squeeze=False, figsize=(8, 1 + 3 * len(groups)), tight_layout=True)
    for panel, ((_, speakers, steps), rows) in zip(panels[:, 0], groups.items(), strict=True):
        names = in_order(rows, order)[::-1]
        for place, row in enumerate(names):
            values = [100 * line["wer"]["value"] for line in rows[row]]
            panel.barh(place, statistics.mean(values), color="lightsteelblue")
            panel.plot(values, [place] * len(values), "k.")
        panel.set_yticks(range(len(names)), names)
        panel.set_title(title(speakers, steps), loc="right", fontsize=11)
        panel.set_xlabel("WER, %")
    figure.savefig(file, dpi=120)
    pyplot.close(figure)


def write_report(lines: list[Line], order: list[str], output_dir: Path) -> str:
    """Write labels.md and labels.png, and return the former's text."""
    text = table(lines, order)
    (output_dir / "labels.md").write_text(text, encoding="utf-8")
    plot(lines, order, output_dir / "labels.png")
    return text
