"""The families that the batteries run over, each as a tiny model. A new family is one more line of FAMILIES."""

from dataclasses import dataclass

import pytest
import torch
from helpers import padded_features, tiny_birq, tiny_chunkssl
from transformers import PreTrainedConfig, PreTrainedModel

from hf_speech_ssl import (
    BiRQForAudioFrameClassification,
    BiRQForCTC,
    BiRQForPreTraining,
    BiRQForRNNT,
    BiRQForSequenceClassification,
    BiRQModel,
    ChunkSSLForAudioFrameClassification,
    ChunkSSLForCTC,
    ChunkSSLForPreTraining,
    ChunkSSLForRNNT,
    ChunkSSLForSequenceClassification,
    ChunkSSLModel,
)


@dataclass(frozen=True)
class Family:
    """A family's classes, and a config under which a pretraining step draws nothing but its mask.

    Args:
        config: of a tiny model, without dropout.
        base, pretraining, ctc, rnnt, classification, frame_classification: its model classes.
        own: names of the weights that only the pretraining model has, by their first part.
    """

    config: PreTrainedConfig
    base: type[PreTrainedModel]
    pretraining: type[PreTrainedModel]
    ctc: type[PreTrainedModel]
    rnnt: type[PreTrainedModel]
    classification: type[PreTrainedModel]
    frame_classification: type[PreTrainedModel]
    own: frozenset[str]

    def build(self, head: str, **overrides) -> PreTrainedModel:
        """A fresh model, the same weights at every call; `head` is one of `HEADS`."""
        torch.manual_seed(7)
        return getattr(self, head)(type(self.config)(**{**self.config.to_diff_dict(), **overrides})).eval()


FAMILIES = {
    "birq": Family(
        # BEST-RQ, since Gumbel noise is drawn otherwise; hidden frames become zeros.
        tiny_birq(enhanced_loss_weight=0.0, mask_noise_std=0.0, mask_time_prob=0.0, mask_feature_prob=0.0),
        BiRQModel,
        BiRQForPreTraining,
        BiRQForCTC,
        BiRQForRNNT,
        BiRQForSequenceClassification,
        BiRQForAudioFrameClassification,
        frozenset({"quantizer", "prediction_head"}),
    ),
    "chunkssl": Family(
        tiny_chunkssl(mask_time_prob=0.0, mask_feature_prob=0.0),
        ChunkSSLModel,
        ChunkSSLForPreTraining,
        ChunkSSLForCTC,
        ChunkSSLForRNNT,
        ChunkSSLForSequenceClassification,
        ChunkSSLForAudioFrameClassification,
        frozenset({"tokenizer", "prediction_head", "mask_vector"}),
    ),
}
HEADS = ("base", "pretraining", "ctc", "rnnt", "classification", "frame_classification")
every_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES.keys())


def example_batch() -> tuple[torch.Tensor, torch.Tensor]:
    """The same padded features at every call, and their mask."""
    torch.manual_seed(11)
    return padded_features(400, 260)


def assert_same_outputs(one: PreTrainedModel, other: PreTrainedModel) -> None:
    """To rounding: some processors round by where a weight lies in memory, and a file's weights lie elsewhere."""
    torch.testing.assert_close(run(one.eval()), run(other.eval()), rtol=0, atol=1e-5)


def run(model: PreTrainedModel) -> torch.Tensor:
    """What a model says about the example batch: its logits, or its last hidden states."""
    features, mask = example_batch()
    torch.manual_seed(12)  # the mask of a pretraining step
    with torch.no_grad():
        output = model(features, attention_mask=mask)
    return output.logits if "logits" in output else output.last_hidden_state
