"""What pretraining would make of a recording: the frames that it masks, and the labels that it asks for.

Shape letters: T encoder frames, R rows of a label picture.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..data.audio import SAMPLING_RATE
from ..families import Family, family_of
from ..modeling.finite_scalars import FiniteScalarQuantizer
from ..probing.encoders import SpeechEncoder, label_name


@dataclass(frozen=True)
class LabelRows:
    """One kind of label.

    Attributes:
        name: of the kind.
        labels: (T,) int64, one per frame.
        levels: (R, T) in [0, 1], the levels of each channel of a finite scalar quantizer; `None` for other labels.
    """

    name: str
    labels: NDArray[np.int64]
    levels: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class MaskedPrediction:
    """The task that a pretraining step would set with a recording.

    Attributes:
        masked: (T,) bool, the frames to predict; `None` where nothing is masked in this model's training.
        seconds_per_frame: duration of an encoder frame.
        chunk_seconds: duration of the step's chunks; 0 where there are none.
        rows: the labels; empty where the checkpoint does not hold what makes them.
        why_no_labels: the reason in that case.
    """

    masked: NDArray[np.bool_] | None
    seconds_per_frame: float
    chunk_seconds: float
    rows: list[LabelRows]
    why_no_labels: str = ""


class PretrainingTask:
    """Sets the task of masked prediction as a model's own pretraining does.

    Args:
        config: of a BiRQ, Chunk SSL or FSQ model, whatever its head.
        extractor: its feature extractor.
        encoder: the checkpoint as `load_encoder` returns it, for the labels that only it can make. Labels that
            follow from the configuration need none.
    """

    def __init__(self, config: Any, extractor: Any, encoder: SpeechEncoder | None = None):
        self.config, self.extractor, self.encoder = config, extractor, encoder

    @property
    def masks(self) -> bool:
        """Whether frames are masked; a tokenizer's training masks none."""
        return _family(self.config).masks

    @cached_property
    def pretraining_model(self) -> Any:
        """The pretraining model of the configuration, without weights: enough to draw masks and seeded labels."""
        with torch.device("meta"):
            return _family(self.config).model_class("pretraining")(copy.deepcopy(self.config))

    @torch.inference_mode()
    def __call__(self, waveform: NDArray[np.float32], seed: int = 0) -> MaskedPrediction:
        """The task for a recording, (samples,) at 16 kHz; another seed masks other frames.

        Raises:
            ValueError: the recording is shorter than a frame of the model.
        """
        features = self.extractor(waveform, sampling_rate=SAMPLING_RATE, return_tensors="pt")["input_features"][0]
        frames = len(features) // self.config.frame_stacking
        if frames == 0:
            raise ValueError(
                f"{len(waveform) / SAMPLING_RATE:.3f} s of audio are less than one frame of the model; speak longer."
            )
        drawn: dict[str, Any] = {}
        if self.masks:
            real = torch.ones(1, frames, dtype=torch.bool)
            drawn = self.pretraining_model.sample_mask(real, torch.Generator().manual_seed(seed))
        masked = drawn["mask_time_indices"][0].numpy() if drawn else None
        chunk_frames = drawn.get("chunk_size", 0)
        rows = self._labels(waveform, features)
        why = "" if rows else "what makes its labels stays behind in the pretraining checkpoint"
        seconds_per_frame = 1 / self.config.frame_rate
        return MaskedPrediction(masked, seconds_per_frame, chunk_frames * seconds_per_frame, rows, why)

    def _labels(self, waveform: NDArray[np.float32], features: torch.Tensor) -> list[LabelRows]:
        """One row for every codebook, or, where only the configuration is at hand, what follows from that."""
        if self.encoder is not None:
            found = self.encoder([waveform])[0].labels
            if found:
                return [self._row(name, labels.cpu()) for name, labels in found.items()]
        if not self.masks:
            return []
        made, _ = self.pretraining_model.make_labels(features[None], seeded_only=True)
        return [self._row(label_name(kind, self.config), labels.columns()[0][0]) for kind, labels in made.items()]

    def _row(self, name: str, labels: torch.Tensor) -> LabelRows:
        if not name.startswith("FSQ"):
            return LabelRows(name, labels.numpy())
        labeler: Any = self.encoder.labeler if self.encoder else None
        quantizer = FiniteScalarQuantizer(labeler.config.fsq_levels)
        digits = quantizer.digits_from_indices(labels)  # (T, R)
        levels = digits / (torch.tensor(quantizer.levels) - 1)
        return LabelRows(name, labels.numpy(), levels.T.float().numpy())


def pretraining_task_of(model: Any, extractor: Any) -> PretrainingTask | None:
    """The task that a model with any head was pretrained on, as far as the checkpoint says; `None` of other kinds."""
    known = family_of(model.config.model_type) is not None and hasattr(model.config, "frame_stacking")
    return PretrainingTask(model.config, extractor) if known else None


def _family(config: Any) -> Family:
    family = family_of(config.model_type)
    assert family is not None  # of others there is no task
    return family
