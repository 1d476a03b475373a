"""Draws training_curves.png: the figures of a run's log against updates, in panels side by side."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from ..run_folder import CURVES_FILE, OFFLINE, MetricName, read_log

COLUMNS = 2
PANEL_INCHES = (4.8, 2.7)
DOTS_PER_INCH = 160  # about twice the width of a card, for sharp screens
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")  # Okabe and Ito's
MAX_MARKED_POINTS = 20  # a curve of more points is a line without dots

Series = dict[int, float]  # updates made -> value
Curves = dict[str, Series]  # names as in the log -> series


@dataclass(frozen=True)
class Panel:
    """One of the pictures.

    Args:
        title: name of the quantity.
        unit: of the vertical axis; empty for a number without one.
        names: figures of training in the log.
        evaluated: the metric of evaluations, in whatever split and mode; `None` for counts over a batch, which depend
            on its size.
        scale: factor from the log's number to the axis' unit.
    """

    title: str
    unit: str
    names: tuple[str, ...] = ()
    evaluated: str | None = None
    scale: float = 1.0


@dataclass(frozen=True)
class Line:
    """One curve of a panel, in the axis' unit; NaN where there is a gap."""

    label: str
    series: Series
    color: str
    of_evaluations: bool


def _of_kinds(figure: str) -> tuple[str, ...]:
    """The names of a figure of the labels, which the log has for each kind of them."""
    return figure, f"anchor_{figure}", f"enhanced_{figure}", f"second_{figure}"


LOSS = Panel("loss", "nats", ("loss", "anchor_loss", "enhanced_loss", "second_loss"), "loss")
SQUARED_ERROR = Panel("loss", "mean squared error", ("loss",), "loss")
PANELS = (
    # A constant guess reaches the share of the commonest label.
    Panel(
        "accuracy at masked frames",
        "%",
        ("accuracy", "frame_accuracy", *_of_kinds("top_label_share")),
        "accuracy",
        100.0,
    ),
    Panel("variance of the features explained", "%", ("explained_variance",), "explained_variance", 100.0),
    Panel("WER in evaluations", "%", (), "wer", 100.0),
    Panel("BLEU in evaluations", "", (), "bleu"),
    Panel(
        "perplexity of the labels",
        "effective number",
        (*_of_kinds("label_perplexity"), "codebook_perplexity", "enhanced_perplexity", "level_perplexity"),
    ),
    Panel("use of the labels", "%", ("codebook_usage", "level_usage", "distinct_labels"), None, 100.0),
    Panel("error of the similarities in distillation", "", ("distillation_loss",)),
    Panel("learning rate", "", ("learning_rate",)),
)


def draw_training_curves(folder: str | Path) -> Path | None:
    """Draw `training_curves.png` into a run's folder, from its `train_log.jsonl`.

    Loss, accuracy, error rates, use of the labels and learning rate against updates, as far as the log has them; a
    value that is not finite is a gap.

    Returns:
        The picture, or `None` if the folder has no log or the log no value to draw; an older picture is then removed.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}; training curves are drawn from a run's output folder.")
    file = folder / CURVES_FILE
    curves = read_curves(folder)
    loss = SQUARED_ERROR if "explained_variance" in curves else LOSS
    drawn = [(panel, lines) for panel in (loss, *PANELS) if (lines := lines_of(panel, curves))]
    if not drawn:
        file.unlink(missing_ok=True)
        return None
    figure = draw(drawn)
    figure.savefig(file, dpi=DOTS_PER_INCH, metadata={"Software": None})
    return file


def read_curves(folder: str | Path) -> Curves:
    """Every number of a run's log by name.

    If a run went back and made updates again, the figures of the first attempt from there on are dropped. Of two
    values for one update the first counts, because the second is that of the best checkpoint, evaluated again at the
    end.
    """
    curves: Curves = {}
    last = -1
    for step, values in read_log(folder):
        if step < last:
            curves = {name: {at: v for at, v in series.items() if at < step} for name, series in curves.items()}
        last = step
        for name, value in values.items():
            curves.setdefault(name, {}).setdefault(step, value)
    return curves


def lines_of(panel: Panel, curves: Curves) -> list[Line]:
    """The curves of a panel: those of training in the order of its names, then those of evaluations."""
    trained = [name for name in panel.names if _has_values(curves.get(name, {}))]
    evaluated = [name for name in curves if _evaluates(name, panel.evaluated) and _has_values(curves[name])]
    lines = []
    for index, name in enumerate(trained):
        lines.append(Line(name.replace("_", " "), _scaled(curves[name], panel.scale), COLORS[index], False))
    first = len(trained)
    for index, name in enumerate(evaluated):
        color = COLORS[(first + index) % len(COLORS)]
        lines.append(Line(_evaluation_label(name), _scaled(curves[name], panel.scale), color, True))
    return lines


def draw(drawn: list[tuple[Panel, list[Line]]]) -> Figure:
    """Draw the panels in rows of `COLUMNS`, all over the same updates."""
    rows, columns = math.ceil(len(drawn) / COLUMNS), min(COLUMNS, len(drawn))
    figure = Figure(figsize=(PANEL_INCHES[0] * columns, PANEL_INCHES[1] * rows), layout="constrained")
    grid: Any = figure.subplots(rows, columns, squeeze=False)
    last = max(step for _, lines in drawn for line in lines for step in line.series)
    for index, axes in enumerate(grid.flat):
        if index >= len(drawn):
            axes.remove()
            continue
        draw_panel(axes, *drawn[index])
        axes.set_xlim(0, max(last, 1))
    figure.supxlabel("updates", fontsize=10)
    return figure


def draw_panel(axes: Axes, panel: Panel, lines: list[Line]) -> None:
    """Draw one panel: training as lines, evaluations dashed and with a dot each."""
    for line in lines:
        steps = sorted(line.series)
        values = [line.series[step] for step in steps]
        marked = _marked(values, line.of_evaluations)
        axes.plot(
            steps,
            values,
            color=line.color,
            label=line.label,
            linewidth=1.4,
            linestyle="--" if line.of_evaluations else "-",
            marker="o" if marked else None,  # a line without dots has none in the legend either
            markevery=marked or None,
            markersize=3.5,
            clip_on=False,
        )
    axes.set_title(panel.title, fontsize=11, loc="left")
    axes.set_ylabel(panel.unit)
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10], integer=True))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    if panel.evaluated != "loss":
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0] if _lowest(lines) < 0 else 0.0))
    if len(lines) > 1 or lines[0].label not in panel.title:
        axes.legend(fontsize=8, frameon=False)


def _has_values(series: Series) -> bool:
    return any(map(math.isfinite, series.values()))


def _scaled(series: Series, scale: float) -> Series:
    return {step: scale * value if math.isfinite(value) else math.nan for step, value in series.items()}


def _lowest(lines: list[Line]) -> float:
    return min(value for line in lines for value in line.series.values() if math.isfinite(value))


def _marked(values: list[float], of_evaluations: bool) -> list[int]:
    """Indices of the points with a dot: all of an evaluation or of a short curve, else those between two gaps."""
    if of_evaluations or len(values) <= MAX_MARKED_POINTS:
        return list(range(len(values)))
    padded = [math.nan, *values, math.nan]
    return [i for i in range(len(values)) if not math.isfinite(padded[i]) and not math.isfinite(padded[i + 2])]


def _evaluates(name: str, metric: str | None) -> bool:
    """Whether the log's `name` is an evaluation of `metric`, on whatever split and in whatever mode."""
    parsed = MetricName.parse(name)
    return parsed is not None and parsed.metric == metric


def _evaluation_label(name: str) -> str:
    """`eval_test_320ms_wer` -> "test 320 ms"; `eval_wer` -> "evaluation"."""
    parsed = MetricName.parse(name)
    assert parsed is not None
    mode = "" if parsed.mode == OFFLINE else parsed.mode
    return f"{parsed.split.replace('_', ' ')} {mode}".strip() or "evaluation"
