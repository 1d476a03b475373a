"""Pictures of one recording: waveform, log-mel spectrogram with words, and what pretraining masks of it.

Shape letters: F feature frames of 10 ms, M mel bins, T encoder frames.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from ..data.audio import SAMPLING_RATE
from ..decoding import TimedText
from ..modeling.configuration_conformer import HOP_LENGTH
from ..modeling.feature_extraction_speech_ssl import FRAME_LENGTH, log_mel
from .masked_prediction import LabelRows, MaskedPrediction
from .timed_transcript import TimedTranscript

MAX_SECONDS = 15.0  # of a recording in a picture; more would be too narrow to read
MAX_CHARACTER_SECONDS = 6.0  # characters are not drawn over each other
MAX_WORD_ROWS = 3
CHARACTER_INCHES = 0.1  # of a word, with what the margins take from the picture's width
WIDTH_INCHES = 11.0
DOTS_PER_INCH = 140
NUM_MEL_BINS = 80
DECIBELS = 10 / math.log(10)  # from the natural logarithm of a power
RANGE_DB = 70.0  # from the loudest point to black
TICKS_HZ = (100, 500, 1000, 2000, 4000, 8000)
INK, ACCENT, GRAY = "#1f2937", "#2563eb", "#6b7280"
GOLDEN_RATIO = (math.sqrt(5) - 1) / 2  # neighboring labels get hues far from each other


def draw_recording(waveform: NDArray[np.float32], transcript: TimedTranscript | None = None) -> NDArray[np.uint8]:
    """Waveform and log-mel spectrogram, with words above and characters below at the times when they were written.

    Args:
        waveform: (samples,) at 16 kHz; the first `MAX_SECONDS` are drawn.
        transcript: what is written into it, if there is one.

    Returns:
        (height, width, 3) RGB.
    """
    shown = waveform[: int(MAX_SECONDS * SAMPLING_RATE)]
    seconds = len(shown) / SAMPLING_RATE
    words = [word for word in transcript.words if word.start < seconds] if transcript else []
    rows = _word_rows(words, seconds)
    characters = transcript.characters if transcript and seconds <= MAX_CHARACTER_SECONDS else []
    panels = {"wave": 1.0, "words": 0.26 * (max(rows, default=-1) + 1), "mel": 2.6}
    panels["characters"] = 0.3 if characters else 0.0
    figure, axes, side = _panels({name: height for name, height in panels.items() if height}, shown)
    _draw_wave(axes["wave"], shown)
    _draw_spectrogram(figure, axes["mel"], side["mel"], shown)
    if words:
        _draw_words(axes["words"], words, rows)
        for word in words:
            axes["mel"].axvline(word.start, color="white", linewidth=0.7, alpha=0.6)
    if characters:
        _draw_characters(axes["characters"], characters)
    return _finish(figure, list(axes.values()), waveform, shown)


def draw_masked_prediction(
    waveform: NDArray[np.float32], task: MaskedPrediction, phones: Sequence[TimedText] = ()
) -> NDArray[np.uint8]:
    """Log-mel spectrogram with the masked frames veiled, and the labels below it, bright where they are asked for.

    Arguments and result as in `draw_recording`; `phones` are drawn below the labels.
    """
    shown = waveform[: int(MAX_SECONDS * SAMPLING_RATE)]
    panels = {"mel": 2.6}
    for row in task.rows:
        panels[row.name] = 0.4 if row.levels is None else 0.16 * len(row.levels)
    if phones:
        panels["phones"] = 0.3
    figure, axes, side = _panels(panels, shown)
    _draw_spectrogram(figure, axes["mel"], side["mel"], shown)
    if task.masked is not None:
        _veil(axes["mel"], task)
    for row in task.rows:
        _draw_labels(axes[row.name], row, task)
    if phones:
        _draw_characters(axes["phones"], phones)
        axes["phones"].set_ylabel("phones", fontsize=9, color=INK, rotation=0, ha="right", va="center")
    return _finish(figure, list(axes.values()), waveform, shown)


def draw_pretraining(
    waveform: NDArray[np.float32], task: MaskedPrediction, phones: Sequence[TimedText] = ()
) -> NDArray[np.uint8]:
    """Mask and labels over time, and below them how often each label comes; arguments as above."""
    parts = [draw_masked_prediction(waveform, task, phones)]
    if task.rows:
        parts.append(draw_label_use(task.rows))
    return np.concatenate(parts)


def draw_label_use(rows: Sequence[LabelRows]) -> NDArray[np.uint8]:
    """How often each label of each kind comes, the commonest first, on a picture as wide as the others."""
    layout = ConstrainedLayoutEngine(h_pad=0.06, w_pad=0.04)
    figure = Figure(figsize=(WIDTH_INCHES, 1.6 * len(rows)), dpi=DOTS_PER_INCH, layout=layout)
    grid: Any = figure.subplots(len(rows), 1, squeeze=False)
    for axes, row in zip(grid[:, 0], rows, strict=True):
        shares = np.sort(np.unique(row.labels, return_counts=True)[1])[::-1] / len(row.labels)
        axes.bar(np.arange(1, len(shares) + 1), 100 * shares, width=1.0, color=ACCENT)
        perplexity = math.exp(-float(shares @ np.log(shares)))
        axes.set_title(
            f"{row.name} labels: {len(shares)} different in {len(row.labels)} frames, perplexity {perplexity:.0f}",
            fontsize=10,
            color=INK,
            loc="left",
        )
        axes.set_ylabel("% of frames", fontsize=9, color=INK)
        axes.tick_params(labelsize=9, labelcolor=INK, color=GRAY)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlim(0.5, max(len(shares), 20) + 0.5)
    grid[-1, 0].set_xlabel("label, the commonest first", fontsize=10, color=INK)
    return _as_pixels(figure)


def _panels(heights: dict[str, float], shown: NDArray[np.float32]) -> tuple[Figure, dict[str, Axes], dict[str, Axes]]:
    """Panels of these heights (inches) over one time axis, and the narrow place to the right of each."""
    layout = ConstrainedLayoutEngine(h_pad=0.03, w_pad=0.04, hspace=0.0, wspace=0.01)
    figure = Figure(figsize=(WIDTH_INCHES, sum(heights.values()) + 0.75), dpi=DOTS_PER_INCH, layout=layout)
    grid: Any = figure.subplots(
        len(heights), 2, squeeze=False, height_ratios=list(heights.values()), width_ratios=[70, 1]
    )
    axes = dict(zip(heights, grid[:, 0], strict=True))
    side = dict(zip(heights, grid[:, 1], strict=True))
    for name, place in side.items():
        if name != "mel":
            place.set_visible(False)
    for one in axes.values():
        one.set_xlim(0, len(shown) / SAMPLING_RATE)
        one.tick_params(labelsize=9, labelcolor=INK, color=GRAY, labelbottom=False, bottom=False)
        one.spines[["top", "right"]].set_visible(False)
        one.spines[["left", "bottom"]].set_color("#d1d5db")
    return figure, axes, side


def _finish(
    figure: Figure, axes: list[Axes], waveform: NDArray[np.float32], shown: NDArray[np.float32]
) -> NDArray[np.uint8]:
    last = axes[-1]
    last.tick_params(labelbottom=True, bottom=True)
    last.xaxis.set_major_locator(MaxNLocator(12, steps=[1, 2, 2.5, 5, 10]))
    cut = f" (first {MAX_SECONDS:g} s of {len(waveform) / SAMPLING_RATE:.1f} s)" if len(shown) < len(waveform) else ""
    last.set_xlabel("time in seconds" + cut, fontsize=10, color=INK)
    figure.align_ylabels(axes)
    return _as_pixels(figure)


def _as_pixels(figure: Figure) -> NDArray[np.uint8]:
    """(height, width, 3) RGB."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _draw_wave(axes: Axes, shown: NDArray[np.float32]) -> None:
    """The loudest and the softest sample of every hundredth of an inch."""
    columns = min(len(shown), int(100 * WIDTH_INCHES))
    edges = np.linspace(0, len(shown), columns, endpoint=False).astype(int)
    top, bottom = np.maximum.reduceat(shown, edges), np.minimum.reduceat(shown, edges)
    axes.fill_between(edges / SAMPLING_RATE, bottom, top, color=ACCENT, linewidth=0.4)
    peak = max(float(np.abs(shown).max(initial=0)), 1e-3) * 1.05
    axes.set_ylim(-peak, peak)
    axes.yaxis.set_major_locator(MaxNLocator(3, symmetric=True))
    axes.set_ylabel("amplitude\n(full scale 1)", fontsize=9, color=INK)


def _draw_spectrogram(figure: Figure, axes: Axes, side: Axes, shown: NDArray[np.float32]) -> None:
    waveform = torch.from_numpy(np.ascontiguousarray(shown))[None]
    decibels = DECIBELS * log_mel(waveform, NUM_MEL_BINS)[0].numpy()  # (F, M)
    decibels -= decibels.max()
    first = (FRAME_LENGTH - HOP_LENGTH) / 2 / SAMPLING_RATE  # a frame is drawn around the middle of its window
    end = first + len(decibels) * HOP_LENGTH / SAMPLING_RATE
    image = axes.imshow(
        decibels.T,
        origin="lower",
        aspect="auto",
        extent=(first, end, 0, NUM_MEL_BINS),
        cmap="magma",
        vmin=-RANGE_DB,
        vmax=0,
        interpolation="nearest",
    )
    axes.set_facecolor("black")
    axes.set_xlim(0, len(shown) / SAMPLING_RATE)
    axes.set_yticks([_mel_place(hertz) for hertz in TICKS_HZ], [f"{hertz:,}" for hertz in TICKS_HZ])
    axes.set_ylabel("frequency in Hz\n(mel scale)", fontsize=9, color=INK)
    bar = figure.colorbar(image, cax=side)
    bar.set_label("dB (loudest point: 0)", fontsize=9, color=INK)
    bar.ax.tick_params(labelsize=9, labelcolor=INK)
    bar.outline.set_visible(False)


def _mel_place(hertz: float) -> float:
    """Where a frequency lies on an axis on which each of the mel bins, 20 Hz to 8 kHz, takes one unit."""
    low, here, high = (math.log1p(one / 700) for one in (20, hertz, SAMPLING_RATE / 2))
    return (here - low) / (high - low) * (NUM_MEL_BINS + 1) - 0.5


def _word_rows(words: list[TimedText], seconds: float) -> list[int]:
    """The row of each word, so that none runs into the one before; the emptiest row where all are full."""
    ends = [-1.0] * MAX_WORD_ROWS  # seconds, of the last word of each row
    rows = []
    for word in words:
        free = [row for row, end in enumerate(ends) if end <= word.start]
        rows.append(free[0] if free else int(np.argmin(ends)))
        ends[rows[-1]] = word.start + (len(word.text) + 1.5) * CHARACTER_INCHES * seconds / WIDTH_INCHES
    return rows


def _draw_words(axes: Axes, words: list[TimedText], rows: list[int]) -> None:
    """Words from where they begin."""
    axes.set_axis_off()
    axes.set_ylim(0, max(rows) + 1)
    for word, row in zip(words, rows, strict=True):
        axes.plot([word.start, word.start], [0, row + 0.8], color="#d1d5db", linewidth=0.8)
        axes.text(word.start, row + 0.2, f" {word.text}", fontsize=10, color=INK, va="bottom", clip_on=True)


def _draw_characters(axes: Axes, characters: Sequence[TimedText]) -> None:
    axes.set_yticks([])
    axes.set_ylim(0, 1)
    axes.spines["left"].set_visible(False)
    for one in characters:
        middle = (one.start + one.end) / 2
        axes.text(middle, 0.45, one.text, fontsize=8, color=GRAY, ha="center", va="center", clip_on=True)


def _veil(axes: Axes, task: MaskedPrediction) -> None:
    """Cover the masked frames; mark where chunks begin."""
    assert task.masked is not None
    edges = np.flatnonzero(np.diff(np.concatenate([[False], task.masked, [False]]).astype(int)))
    for start, end in edges.reshape(-1, 2) * task.seconds_per_frame:
        axes.axvspan(start, end, facecolor="#e5e7eb", alpha=0.8, edgecolor="white", linewidth=0.8)
    if task.chunk_seconds:
        for place in np.arange(1, len(task.masked) * task.seconds_per_frame / task.chunk_seconds):
            axes.axvline(place * task.chunk_seconds, color="#7dd3fc", linewidth=1.0, linestyle=(0, (4, 3)))


def _draw_labels(axes: Axes, row: LabelRows, task: MaskedPrediction) -> None:
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    seconds = len(row.labels) * task.seconds_per_frame
    if row.levels is None:
        hues = row.labels * GOLDEN_RATIO % 1
        colors = hsv_to_rgb(np.stack([hues, np.full_like(hues, 0.6), np.full_like(hues, 0.85)], axis=-1))[None]
        name = row.name.replace(" (", "\n(")
    else:
        colors = colormaps["viridis"](row.levels)[..., :3]
        name = f"{row.name}: levels of\n{len(row.levels)} channels"
    if task.masked is not None:
        shares = np.where(task.masked, 1.0, 0.3)[None, :, None]
        colors = colors * shares + (1 - shares)
    limits = axes.get_xlim()
    axes.imshow(colors, aspect="auto", extent=(0, seconds, 0, 1), interpolation="nearest")
    axes.set_xlim(limits)
    axes.set_ylabel(name, fontsize=9, color=INK, rotation=0, ha="right", va="center")
