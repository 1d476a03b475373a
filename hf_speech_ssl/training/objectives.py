"""What a batch of audio means to a model: the inputs it gets and the units that its mean loss is a mean over."""

from collections.abc import Callable, Mapping
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

    def __call__(self, model: nn.Module, batch: Batch, device: torch.device) -> tuple[Mapping[str, Any], torch.Tensor]:
        output = model(**features_of(batch, self.feature_extractor, device))
        return output, output[self.unit] * bool(batch.num_examples)


@dataclass(frozen=True)
class Transcription:
    """CTC fine-tuning; the mean is over utterances.

    Args:
        processor: turns audio into features and text into labels.
        normalize: is applied to every transcript first.
    """

    processor: Any
    normalize: Callable[[str], str] = str
    unit: str = "num_utterances"

    def __call__(
        self, model: nn.Module, batch: Batch, device: torch.device, **model_arguments: Any
    ) -> tuple[Mapping[str, Any], torch.Tensor]:
        inputs = features_of(batch, self.processor.feature_extractor, device)
        output = model(**inputs, labels=self.labels(self.texts(batch)).to(device), **model_arguments)
        return output, torch.tensor(batch.num_examples, device=device)

    def texts(self, batch: Batch) -> list[str]:
        """The transcripts of a batch, normalized."""
        return [self.normalize(text) for text in batch.texts or []]

    def labels(self, texts: list[str]) -> torch.Tensor:
        """(B, L) token ids, -100 where a text is shorter than the longest."""
        ids = [torch.tensor(self.processor.tokenizer(text).input_ids, dtype=torch.long) for text in texts]
        return torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=-100)
