"""Table and plot of the lines that `labels.py` writes."""

import json
import statistics
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
from common import markdown, mean_and_range, paired_difference

COMPARED = ("scratch", "best-rq", "random projection")  # rows that the others are compared with
NOTE = (
    "Rates: mean (range) over seeds. Differences are paired by utterance over the seeds that both rows have, with "
    "95 % intervals from bootstrap resamples of the test speakers, which say nothing of other seeds. Label perplexity "
    "is that of the anchor labels over a window of many updates; the rank is the effective rank of the last layer's "
    "frames. Minutes and peak memory are those of pretraining."
)
COSTS = ("label perplexity", "rank of the last layer", "pretraining, min", "memory, GiB")
PROBED = ("accuracy", "random_accuracy")
RATED = {
    "phone_purity": "purity",
    "shuffled_phone_purity": "purity, shuffled",
    "pnmi": "PNMI",
    "shuffled_pnmi": "PNMI, shuffled",
}
Line = dict[str, Any]


def difference(lines: list[Line], base: list[Line], unit: str = "word") -> str:
    """Error rate of some lines minus that of the same seeds of another row, paired by utterance, with its interval."""
    seeds = {line["seed"] for line in lines} & {line["seed"] for line in base}
    if not seeds or lines is base:
        return ""
    mine, other = (
        np.sum([line[f"{unit}_errors"] for line in part if line["seed"] in seeds], axis=0) for part in (lines, base)
    )
    return paired_difference(mine, other, len(seeds) * np.array(lines[0][f"{unit}s"]), lines[0]["speaker"])


def rates(lines: list[Line], kind: str) -> str:
    """Mean and range over the seeds, in per cent."""
    return mean_and_range([100 * line[kind]["value"] for line in lines])


def name_of(line: Line) -> str:
    """The row, the config fields that were changed, and how long it was pretrained."""
    how = line["pretraining"]
    if how is None:
        return line["row"]
    row = ", ".join(filter(None, [line["row"], how.get("changed")]))
    return f"{row} ({how['updates']:,} x {how['seconds']:g} s, {how['rate']:g})"


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


def encoder_of(recipe: dict[str, Any]) -> str:
    """The preset, and the fields of the encoder that differ from it."""
    return " with ".join(filter(None, [recipe["preset"], recipe.get("encoder_config")]))


def title(recipe: str, speakers: int, steps: int | None = None) -> str:
    """What a table or a panel shows: the encoder, the corpus, and what differs most between recipes of fine-tuning."""
    made = json.loads(recipe)
    parts = [f"{encoder_of(made)}, {made['finetuning_folder']}: transcripts of {speakers} speakers"]
    if tested := made.get("num_development_speakers"):
        parts.append(f"{tested} development speakers")
    parts += [f"{steps:,} updates of fine-tuning"] if steps else []
    parts.append(f"rate {made['finetuning_rate']:g}")
    if alone := made.get("finetuning_freeze_steps"):
        parts.append(f"the head alone for {alone}")
    return ", ".join(filter(None, [*parts, made.get("finetuning_config")]))


def mean_of(values: list[Any], form: str) -> str:
    """Their mean, of those that are there."""
    known = [value for value in values if value is not None]
    return form.format(statistics.mean(known)) if known else ""


def costs(lines: list[Line]) -> list[str]:
    """The cells of `COSTS`."""
    use = [value for line in lines for value in [perplexity(line.get("labels") or {})]]
    ranks = [layers[-1]["effective_rank"] for line in lines if (layers := (line.get("verdict") or {}).get("layers"))]
    hours = [line.get("pretraining_hours") for line in lines]
    return [
        mean_of(use, "{:.0f}"),
        mean_of(ranks, "{:.1f}"),
        mean_of([None if one is None else 60 * one for one in hours], "{:.1f}"),
        mean_of([line.get("peak_memory_gib") for line in lines], "{:.2f}"),
    ]


def perplexity(values: dict[str, float]) -> float | None:
    """That of the labels: of the anchor labels where there are several kinds."""
    return values.get("anchor_label_perplexity", values.get("label_perplexity"))


def in_chunks(rows: dict[str, list[Line]], order: list[str]) -> str:
    """WER at each chunk duration, of models that have been tested so."""
    modes = list(dict.fromkeys(mode for lines in rows.values() for mode in lines[0].get("wer_in_chunks", {})))
    cells = []
    for row in in_order(rows, order):
        chunks = [mean_of([100 * line["wer_in_chunks"][mode] for line in rows[row]], "{:.1f}") for mode in modes]
        cells.append([row, *chunks, rates(rows[row], "wer")])
    return markdown(["row", *modes, "offline"], cells) if modes else ""


def probes(rows: dict[str, list[Line]], order: list[str]) -> str:
    """The best layer's phone probe, purity and PNMI of the labels beside shuffled ones, where they were measured."""
    cells = []
    for row in in_order(rows, order):
        some = [line["probe"] for line in rows[row] if line.get("probe")]
        best = [max(probe["layers"][1:], key=lambda layer: layer["accuracy"]) for probe in some]
        of_layer = [mean_of([100 * layer[name] for layer in best], "{:.1f}") for name in PROBED]
        for place in range(len(some[0]["labels"]) if some else 0):
            labels = [probe["labels"][place] for probe in some]
            rated = [mean_of([100 * label[name] for label in labels], "{:.1f}") for name in RATED]
            cells.append([row, *of_layer, labels[0]["name"], *rated])
    return markdown(["row", "best layer", "with random weights", "labels", *RATED.values()], cells) if cells else ""


def plot_history(lines: list[Line], order: list[str], file: Path) -> None:
    """Perplexity of the labels over the updates of pretraining, a panel per encoder and a curve per row (its first
    seed); a dashed one of its enhanced labels, if it has such.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import ScalarFormatter

    encoders: dict[str, dict[str, Line]] = {}
    for line in lines:
        if line.get("label_history"):
            encoders.setdefault(encoder_of(line["recipe"]), {}).setdefault(name_of(line), line)
    if not encoders:
        return
    figure, panels = pyplot.subplots(
        len(encoders), squeeze=False, figsize=(9, 3 * len(encoders)), sharex=True, sharey=True, layout="constrained"
    )
    for panel, (encoder, runs) in zip(panels[:, 0], encoders.items(), strict=True):
        for place, name in enumerate(in_order({name: [line] for name, line in runs.items()}, order)):
            history = [(one["step"], perplexity(one)) for one in runs[name]["label_history"]]
            # Each curve is thinner than those before it, which it would hide.
            style = {"color": pyplot.get_cmap("tab20")(place % 20), "linewidth": max(1, 5 - 0.5 * place)}
            panel.plot(*zip(*history, strict=True), label=name, **style)
            enhanced = "enhanced_label_perplexity"
            steps = [one["step"] for one in runs[name]["label_history"] if enhanced in one]
            values = [one[enhanced] for one in runs[name]["label_history"] if enhanced in one]
            if steps:
                panel.plot(steps, values, "--", **style)
        if len(panel.lines) > len(runs):
            panel.plot([], [], "k--", label="dashed: enhanced labels")
        panel.set(title=encoder, ylabel="perplexity over 50,000 frames", yscale="log", ylim=(1, None))
        panel.set_yticks([1, 3, 10, 30, 100, 300, 1000, 3000])
        panel.yaxis.set_major_formatter(ScalarFormatter())
        panel.minorticks_off()
        panel.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    panels[-1, 0].set_xlabel("updates of pretraining")
    figure.savefig(file, dpi=120)
    pyplot.close(figure)


def table(lines: list[Line], order: list[str]) -> str:
    """One table in Markdown for each group of comparable lines, its rows in this order."""
    parts = [NOTE]
    for (recipe, speakers, steps), rows in grouped(lines).items():
        settings = ", ".join(f"{name} {value}" for name, value in json.loads(recipe).items())
        bases = {name: some for name in COMPARED for some in rows.values() if some[0]["row"] == name}
        cells = []
        for row in in_order(rows, order):
            some = rows[row]
            compared = [difference(some, base) for base in bases.values()]
            compared += [difference(some, bases[name], "character") for name in COMPARED[:1] if name in bases]
            cells.append([row, str(len(some)), rates(some, "wer"), rates(some, "cer"), *compared, *costs(some)])
        header = ["row", "seeds", "WER %", "CER %", *(f"WER to {name}" for name in bases)]
        header += [*(f"CER to {name}" for name in COMPARED[:1] if name in bases), *COSTS]
        parts += [f"## {title(recipe, speakers, steps)}", f"Recipe: {settings}.", markdown(header, cells)]
        if probed := probes(rows, order):
            parts += ["Phones, on synthetic speech (%):", probed]
        if chunked := in_chunks(rows, order):
            parts += ["WER % in chunks, and of whole utterances:", chunked]
    parts.append("Machines: " + " ".join(sorted({line["machine"].split(", load")[0] + "." for line in lines})))
    return "\n\n".join(parts) + "\n"


def plot(lines: list[Line], order: list[str], file: Path) -> None:
    """WER of every seed as a point and their mean as a bar: one panel for each recipe and choice of training speakers,
    in it each row's bars, one for each number of updates of fine-tuning.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels_rows: dict[tuple[str, int], dict[str, dict[int, list[Line]]]] = {}
    for (recipe, speakers, steps), rows in grouped(lines).items():
        for row, some in rows.items():
            panels_rows.setdefault((recipe, speakers), {}).setdefault(row, {})[steps] = some
    lengths = sorted({line["steps"] for line in lines})
    colors = dict(zip(lengths, pyplot.get_cmap("Blues")(np.linspace(0.35, 0.8, len(lengths))), strict=True))
    heights = [2 + sum(map(len, rows.values())) for rows in panels_rows.values()]
    figure, panels = pyplot.subplots(
        len(heights),
        squeeze=False,
        figsize=(10, 0.25 * sum(heights)),
        height_ratios=heights,
        sharex=True,
        layout="constrained",
    )
    for panel, ((recipe, speakers), rows) in zip(panels[:, 0], panels_rows.items(), strict=True):
        place, ticks = 0.0, {}
        for row in in_order({name: next(iter(one.values())) for name, one in rows.items()}, order):
            ticks[row] = place + (len(rows[row]) - 1) / 2
            for steps, some in sorted(rows[row].items()):
                values = [100 * line["wer"]["value"] for line in some]
                panel.barh(place, statistics.mean(values), color=colors[steps], height=0.9)
                panel.plot(values, [place] * len(values), "o", color="black", markeredgecolor="white", markersize=5)
                place += 1
            place += 0.4
        panel.set(yticks=list(ticks.values()), yticklabels=list(ticks), ylim=(place, -1))
        panel.set_title(textwrap.fill(title(recipe, speakers), 100, break_on_hyphens=False), loc="right", fontsize=10)
    handles = [pyplot.Rectangle((0, 0), 1, 1, color=color) for color in colors.values()]
    panels[-1, 0].set_xlabel("WER, %")
    labels = [f"{steps:,} updates of fine-tuning" for steps in colors]
    figure.legend(handles, labels, loc="outside upper right", ncols=3)
    figure.savefig(file, dpi=120)
    pyplot.close(figure)


def write_report(lines: list[Line], order: list[str], output_dir: Path) -> str:
    """Write labels.md and the plots, which development speakers are not in unless there are no others; return the
    former's text.
    """
    text = table(lines, order)
    (output_dir / "labels.md").write_text(text, encoding="utf-8")
    tested = [line for line in lines if "num_development_speakers" not in line["recipe"]] or lines
    plot(tested, order, output_dir / "labels.png")
    plot_history(tested, order, output_dir / "labels_training.png")
    return text
