"""Units of recordings: clusters of an encoder's frames by scikit-learn, or the labels that a model was pretrained on.

Shape letters: T frames, D features, K clusters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..data.audio import SAMPLING_RATE
from ..data.reading import UtteranceReader
from ..options import UnitOptions
from ..probing.encoders import SpeechEncoder, Tokenizer
from .frames import Extracted, FrameExtractor, FrameTimes

_BATCH = 10_000  # frames in an update of k-means, and in one look-up of units


class FrameSample:
    """Keeps a random sample of the frames that it sees, each as likely as every other.

    Args:
        size: frames that are kept at most.
        seed: of the draws.
    """

    def __init__(self, size: int, seed: int):
        self.size, self.num_seen = size, 0
        self._random = np.random.default_rng(seed)
        self._kept: NDArray[np.float32] | None = None

    @property
    def frames(self) -> NDArray[np.float32]:
        """(n, D)."""
        assert self._kept is not None
        return self._kept[: min(self.num_seen, self.size)]

    def add(self, frames: NDArray[np.float32]) -> None:
        """See the frames (T, D) of a recording (Vitter 1985, algorithm R)."""
        if self._kept is None:
            self._kept = np.empty((self.size, frames.shape[1]), dtype=np.float32)
        numbers = self.num_seen + np.arange(len(frames))
        places = np.where(numbers < self.size, numbers, self._random.integers(0, numbers + 1))
        chosen = places < self.size
        self._kept[places[chosen]] = frames[chosen]
        self.num_seen += len(frames)


@dataclass(frozen=True)
class Clusters:
    """Centers (K, D) of k-means, float32; the unit of a frame is its nearest center."""

    centers: NDArray[np.float32]

    @classmethod
    def fit(cls, frames: NDArray[np.float32], num_units: int, seed: int) -> Clusters:
        """Fit k-means on frames (n, D), with the settings that HuBERT was trained with but for fewer starts.

        Raises:
            ImportError: scikit-learn is not installed. ValueError: there are fewer frames than units.
        """
        if len(frames) < num_units:
            raise ValueError(f"{num_units} units need at least as many frames, got {len(frames)}: lower --num_units.")
        try:
            from sklearn.cluster import MiniBatchKMeans
        except ImportError as error:
            raise ImportError(f"k-means needs scikit-learn: pip install scikit-learn. ({error})") from error
        kmeans = MiniBatchKMeans(
            num_units,
            batch_size=_BATCH,
            n_init=3,
            max_no_improvement=100,
            reassignment_ratio=0.0,
            random_state=seed,
        )
        return cls(kmeans.fit(frames).cluster_centers_.astype(np.float32))

    def __call__(self, frames: NDArray[np.float32]) -> NDArray[np.int32]:
        """The unit of every frame: (T, D) -> (T,)."""
        if frames.shape[1] != self.centers.shape[1]:
            raise ValueError(
                f"The clusters are of frames with {self.centers.shape[1]} features, got {frames.shape[1]}: take the "
                f"model and the layers that they were fitted on."
            )
        norms = 0.5 * np.square(self.centers).sum(1)
        batches = [frames[begin : begin + _BATCH] for begin in range(0, len(frames), _BATCH)]
        units = [(norms - batch @ self.centers.T).argmin(1) for batch in batches]
        return np.concatenate([np.zeros(0, dtype=np.int64), *units]).astype(np.int32)

    def save(self, file: Path) -> None:
        """Write the centers as npz."""
        np.savez(file, centers=self.centers)

    @classmethod
    def load(cls, file: str | Path) -> Clusters:
        """Read what `save` wrote.

        Raises:
            ValueError: the file holds no centers.
        """
        try:
            with np.load(file) as saved:
                return cls(saved["centers"])
        except (KeyError, ValueError, OSError) as error:
            raise ValueError(f"{file} holds no clusters as `hf-speech-ssl units` writes them: {error}") from error


def fit_clusters(reader: UtteranceReader, frames: FrameExtractor, options: UnitOptions) -> Clusters:
    """Clusters of a split's frames, or those of an earlier call.

    Raises:
        ValueError: there are fewer frames than units, or the file of an earlier call holds no clusters.
    """
    if options.kmeans_path is not None:
        return Clusters.load(options.kmeans_path)
    sample = FrameSample(options.max_training_frames, options.seed)
    for batch in reader:
        for one in frames([utterance.waveform for utterance in batch]):
            sample.add(one.values)
    return Clusters.fit(sample.frames, options.num_units, options.seed)


@dataclass(frozen=True)
class ClusterUnits:
    """The nearest cluster of every frame of recordings."""

    frames: FrameExtractor
    clusters: Clusters

    @property
    def description(self) -> dict[str, Any]:
        """Where the units come from."""
        return {"units": "k-means", "num_units": len(self.clusters.centers), "layers": self.frames.layers}

    def __call__(self, waveforms: Sequence[NDArray[np.float32]]) -> list[Extracted]:
        return [Extracted(self.clusters(one.values), one.times) for one in self.frames(waveforms)]


class LabelUnits:
    """The labels that a model was pretrained on, of every frame of recordings, each taken whole.

    Args:
        kind: the name of a kind of label, its beginning, or "own" where there is one kind.

    Raises:
        ValueError: the model has no labels, or none or several of this kind.
    """

    def __init__(self, encoder: SpeechEncoder, kind: str):
        if encoder.labeler is None:
            raise ValueError(
                "This checkpoint brings no labels of its own: name a pretraining checkpoint or a tokenizer, or leave "
                "--labels out for k-means."
            )
        self.labeler = Tokenizer(None, encoder.extractor, encoder.labeler)
        with torch.inference_mode():
            [trial] = self.labeler([np.zeros(SAMPLING_RATE, dtype=np.float32)])
        wanted = "" if kind == "own" else kind.lower().replace("_", " ")
        found = [name for name in trial.labels if name.lower().startswith(wanted)]
        if len(found) != 1:
            raise ValueError(
                f"--labels {kind!r} names {len(found) or 'none'} of the model's kinds of labels, which are "
                f"{', '.join(map(repr, trial.labels))}; name one of them."
            )
        [self.name] = found
        self.num_units = trial.label_sizes[self.name]

    @property
    def description(self) -> dict[str, Any]:
        """Where the units come from."""
        return {"units": f"labels: {self.name}", "num_units": self.num_units}

    @torch.inference_mode()
    def __call__(self, waveforms: Sequence[NDArray[np.float32]]) -> list[Extracted]:
        rows = []
        for one in self.labeler(waveforms):
            labels = one.labels[self.name]
            times = FrameTimes(len(labels), one.frame_rate, one.first_frame_center)
            rows.append(Extracted(labels.cpu().numpy().astype(np.int32), times))
        return rows


def join_runs(
    units: NDArray[np.int32], starts: NDArray[np.float64], ends: NDArray[np.float64]
) -> tuple[NDArray[np.int32], NDArray[np.float64], NDArray[np.float64]]:
    """Neighboring frames (T,) of the same unit as one, from the start of the first to the end of the last."""
    first = np.flatnonzero(np.r_[True, units[1:] != units[:-1]][: len(units)])
    return units[first], starts[first], ends[np.r_[first[1:], len(units)][: len(first)] - 1]
