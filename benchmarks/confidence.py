"""How often words of a confidence are right: a reliability plot on synthetic speech, greedy decoding, live.

    python benchmarks/live_data.py /tmp/live
    python benchmarks/confidence.py MODEL --data /tmp/live

The confidence of a word is the product of its tokens' probabilities. Its logit, scaled and shifted by two numbers that
are fitted on the split `validation` (Platt 1999), is the calibrated confidence that the second curve shows: those two
numbers are a model's own.
"""

import math
from pathlib import Path

import numpy as np
from common import argument_parser, machine, markdown, pin, write_results
from live_data import read_split

CHUNK_MS, BINS = 320, 10


def judged_words(recognizer, rows: list[dict]) -> tuple[np.ndarray, np.ndarray]:
    """Confidences of all words that were written, and whether each is right."""
    from hf_speech_ssl.evaluation import align_words
    from hf_speech_ssl.recognition import StreamingTranscriber

    transcriber = StreamingTranscriber(recognizer.model, recognizer.processor, CHUNK_MS)
    confidences, right = [], []
    for row in rows:
        transcriber.accept(row["samples"])
        transcriber.finish()
        words = [one.word for one in transcriber.events() if one.type == "word"]
        pairs = align_words(" ".join(word.text for word in words), row["text"])
        right += [true == guess for true, guess in pairs if guess is not None]
        confidences += [word.confidence for word in words]
    return np.array(confidences), np.array(right)


def logits(confidences: np.ndarray) -> np.ndarray:
    clipped = np.clip(confidences, 1e-6, 1 - 1e-6)
    return np.log(clipped / (1 - clipped))


def fit(confidences: np.ndarray, right: np.ndarray) -> tuple[float, float]:
    """Scale and shift of the logit, by Newton's method on the log-likelihood."""
    inputs = np.stack([logits(confidences), np.ones(len(confidences))], axis=1)
    weights = np.array([1.0, 0.0])
    for _ in range(50):
        shares = 1 / (1 + np.exp(-inputs @ weights))
        slope = inputs.T @ (right - shares)
        curvature = (inputs * (shares * (1 - shares))[:, None]).T @ inputs + 1e-6 * np.eye(2)
        weights = weights + np.linalg.solve(curvature, slope)
    return float(weights[0]), float(weights[1])


def calibrated(confidences: np.ndarray, scale: float, shift: float) -> np.ndarray:
    return 1 / (1 + np.exp(-(scale * logits(confidences) + shift)))


def bins(confidences: np.ndarray, right: np.ndarray) -> list[dict[str, float]]:
    """Words, mean confidence and share of right ones by tenths of the confidence."""
    places = np.minimum((confidences * BINS).astype(int), BINS - 1)
    curve = []
    for place in range(BINS):
        if (here := places == place).any():
            means = {"confidence": float(confidences[here].mean()), "right": float(right[here].mean())}
            curve.append({"from": place / BINS, "words": int(here.sum()), **means})
    return curve


def calibration_error(confidences: np.ndarray, right: np.ndarray) -> float:
    """Expected calibration error (Naeini et al. 2015) in tenths."""
    return sum(one["words"] * abs(one["confidence"] - one["right"]) for one in bins(confidences, right)) / len(right)


def ranking(confidences: np.ndarray, right: np.ndarray) -> float:
    """How often a right word has more confidence than a wrong one (area under the ROC curve)."""
    order = np.argsort(np.argsort(confidences)) + 1
    positive, negative = right.sum(), (~right).sum()
    if not positive or not negative:
        return math.nan
    return float((order[right].sum() - positive * (positive + 1) / 2) / (positive * negative))


def draw(curves: dict[str, list[dict[str, float]]], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5, 5), layout="constrained")
    axes.plot([0, 1], [0, 1], color="gray", linewidth=1)
    for name, curve in curves.items():
        axes.plot([one["confidence"] for one in curve], [one["right"] for one in curve], marker="o", label=name)
    axes.set_xlabel("confidence of words")
    axes.set_ylabel("share of them that is right")
    axes.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argument_parser(__doc__, repeats=1)
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="what live_data.py wrote")
    parser.add_argument("--max_samples", type=int, default=200)
    options = parser.parse_args()
    where = machine(options.threads)
    pin(options.threads)
    from hf_speech_ssl.recognition import Recognizer

    recognizer = Recognizer.from_pretrained(str(options.model))
    scale, shift = fit(*judged_words(recognizer, read_split(options.data, "validation")[: options.max_samples]))
    raw, right = judged_words(recognizer, read_split(options.data, "test")[: options.max_samples])
    scores = {"as it is": raw, "calibrated": calibrated(raw, scale, shift)}
    curves = {name: bins(values, right) for name, values in scores.items()}
    options.output_dir.mkdir(parents=True, exist_ok=True)
    draw(curves, options.output_dir / "confidence.png")
    summary = [
        [name, f"{values.mean():.3f}", f"{right.mean():.3f}", f"{calibration_error(values, right):.3f}",
         f"{ranking(values, right):.3f}"]
        for name, values in scores.items()
    ]  # fmt: skip
    rows = [
        [name, f"{one['from']:.1f}", str(one["words"]), f"{one['confidence']:.3f}", f"{one['right']:.3f}"]
        for name, curve in curves.items()
        for one in curve
    ]
    sections = [
        f"{len(right):,} words of the split `test`; scale {scale:.2f} and shift {shift:.2f} fitted on `validation`.",
        markdown(["confidence", "mean", "right", "calibration error", "area under the ROC curve"], summary),
        "![Reliability](confidence.png)",
        markdown(["confidence", "from", "words", "mean confidence", "right"], rows),
    ]
    write_results(
        options.output_dir, "confidence", where, sections, {"scale": scale, "shift": shift, "curves": curves}
    )


if __name__ == "__main__":
    main()
