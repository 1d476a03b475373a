"""What pretraining would make of a recording: the frames that it hides, and the labels that it asks for.

Shape letters: T encoder frames, R rows of a label picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..data.audio import SAMPLING_RATE
from ..modeling.masking import draw_chunk_mask, draw_span_mask
from ..modeling.quantization import FiniteScalarQuantizer, RandomProjectionQuantizer
from ..probing.encoders import SpeechEncoder

MASKED = ("birq", "chunkssl")  # model types whose pretraining hides frames
FAMILIES = (*MASKED, "speech_fsq")  # and whose labels are known here


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
        hidden: (T,) bool, the frames to predict; `None` where nothing is hidden in this model's training.
        seconds_per_frame: duration of an encoder frame.
        chunk_seconds: duration of the step's chunks; 0 where there are none.
        rows: the labels; empty where the checkpoint does not hold what makes them.
        why_no_labels: the reason in that case.
    """

    hidden: NDArray[np.bool_] | None
    seconds_per_frame: float
    chunk_seconds: float
    rows: list[LabelRows]
    why_no_labels: str = ""


class PretrainingTask:
    """Sets the task of masked prediction as a model's own pretraining does.

    Args:
        config: of a BiRQ, Chunk SSL or FSQ model, whatever its head.
        extractor: its feature extractor.
        encoder: the checkpoint as `load_encoder` returns it, for the labels that only it can make. Random projections
            are drawn from a seed in the config, and need none.
    """

    def __init__(self, config: Any, extractor: Any, encoder: SpeechEncoder | None = None):
        self.config, self.extractor, self.encoder = config, extractor, encoder

    @property
    def hides(self) -> bool:
        """Whether frames are hidden; a tokenizer's training hides none."""
        return self.config.model_type in MASKED

    @torch.inference_mode()
    def __call__(self, waveform: NDArray[np.float32], seed: int = 0) -> MaskedPrediction:
        """The task for a recording, (samples,) at 16 kHz; another seed hides other frames.

        Raises:
            ValueError: the recording is shorter than a frame of the model.
        """
        features = self.extractor(waveform, sampling_rate=SAMPLING_RATE, return_tensors="pt")["input_features"][0]
        frames = len(features) // self.config.frame_stacking
        if frames == 0:
            raise ValueError(
                f"{len(waveform) / SAMPLING_RATE:.3f} s of audio are less than one frame of the model; speak longer."
            )
        stacked = features[: frames * self.config.frame_stacking].reshape(frames, -1)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            hidden, chunk_frames = self._mask(frames)
        rows = self._labels(waveform, stacked)
        why = "" if rows else "what makes its labels stays behind in the pretraining checkpoint"
        seconds_per_frame = 1 / self.config.frame_rate
        return MaskedPrediction(hidden, seconds_per_frame, chunk_frames * seconds_per_frame, rows, why)

    def _mask(self, frames: int) -> tuple[NDArray[np.bool_] | None, int]:
        """The hidden frames, by the functions that the pretraining step calls, and the frames of a chunk."""
        real = torch.ones(1, frames, dtype=torch.bool)
        if self.config.model_type == "birq":
            return draw_span_mask(real, self.config.mask_start_prob, self.config.mask_length)[0].numpy(), 0
        if self.config.model_type == "chunkssl":
            # The first chunk is never hidden: a chunk as long as the recording would hide nothing.
            sizes = [self.config.chunk_frames(duration) for duration in self.config.chunk_durations_ms]
            fitting = [size for size in sizes if size < frames] or [min(sizes)]
            size = fitting[int(torch.randint(len(fitting), ()))]
            return draw_chunk_mask(real, size)[0].numpy(), size
        return None, 0

    def _labels(self, waveform: NDArray[np.float32], stacked: torch.Tensor) -> list[LabelRows]:
        if self.encoder is not None:
            found = self.encoder([waveform])[0].labels
            if found:
                return [self._row(name, labels.cpu()) for name, labels in found.items()]
        config = self.config
        if config.model_type == "birq" or getattr(config, "label_kind", "") == "random_projection":
            # BiRQ's second projection, for enhanced labels, is drawn after what is needed here.
            sizes = (config.stacked_size, config.codebook_size, config.codebook_dim, config.num_codebooks)
            quantizer = RandomProjectionQuantizer(*sizes, seed=config.quantizer_seed)
            name = "anchor" if config.model_type == "birq" else "random projection"
            return [self._row(name, quantizer(stacked)[:, 0])]
        return []

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
    known = getattr(model.config, "model_type", None) in FAMILIES and hasattr(model.config, "frame_stacking")
    return PretrainingTask(model.config, extractor) if known else None
