"""What a batch of audio means to a model: the inputs it gets and the units that its mean loss is a mean over."""

from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from hf_speech_ssl.data.batch import Batch
from hf_speech_ssl.modeling.feature_extraction_speech_ssl import SpeechSSLFeatureExtractor


class Objective(Protocol):
    """Turns a batch into a loss. `unit` names what the loss is a mean over, as it appears in the logs.

    A batch without examples is a second of silence and counts no units: every process takes part in every update.
    """

    @property
    def unit(self) -> str: ...

    @property
    def left_out(self) -> Sized:
        """Utterances seen in training that nothing can be learned from."""
        ...

    @property
    def why_nothing(self) -> str:
        """A sentence on why updates may have had no units, and what to do."""
        ...

    def __call__(self, model: nn.Module, batch: Batch, device: torch.device) -> tuple[Mapping[str, Any], torch.Tensor]:
        """The model's output, `loss` in it, and the 0-dim number of units that the loss is the mean of."""
        ...


def features_of(
    batch: Batch, feature_extractor: SpeechSSLFeatureExtractor, device: torch.device
) -> dict[str, torch.Tensor]:
    """`input_features` (B, F, M) and `attention_mask` (B, F), computed on `device`."""
    waveforms = batch.waveforms.to(device, non_blocking=True)
    features, mask = feature_extractor.extract(waveforms, batch.lengths.to(device, non_blocking=True))
    return {"input_features": features, "attention_mask": mask}


@dataclass(frozen=True)
class SelfSupervised:
    """Pretraining without labels: the model draws its own masks and counts what it hid."""

    feature_extractor: SpeechSSLFeatureExtractor
    unit: str = "num_masked_frames"  # the field of the model's output that counts
    left_out: Sequence[str] = ()
    why_nothing: str = (
        "Check the audio and the warnings about skipped files. Chunk SSL predicts nothing in utterances that one "
        "chunk holds: they must be longer than the shortest of chunk_durations_ms."
    )

    def __call__(self, model: nn.Module, batch: Batch, device: torch.device) -> tuple[Mapping[str, Any], torch.Tensor]:
        output = model(**features_of(batch, self.feature_extractor, device))
        return output, output[self.unit] * bool(batch.num_examples)
