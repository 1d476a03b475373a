"""The classification heads that all families share: a class of every utterance, or of every encoder frame.

Names, configuration fields and outputs follow transformers' Wav2Vec2ForSequenceClassification and
Wav2Vec2ForAudioFrameClassification. Padded frames change nothing here: neither the mean over frames nor the loss.

Shape letters: B batch, F feature frames (10 ms), T encoder frames, D hidden size, N classes.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.modeling_outputs import SequenceClassifierOutput, TokenClassifierOutput
from transformers.utils import can_return_tuple

from .cache import ConformerCache
from .configuration_conformer import ConformerConfig
from .modeling_conformer import ConformerModelOutput
from .modeling_ctc import ConformerHeadModel

IGNORED_LABEL = -100


@dataclass
class ConformerFrameClassifierOutput(TokenClassifierOutput):
    """`loss` (0-dim), `logits` (B, T, N), and the encoder's outputs but for its last hidden state."""

    cache: ConformerCache | None = None

    @property
    def past_key_values(self) -> ConformerCache | None:
        """The cache, by its older name, as in the encoder's output."""
        return self.cache


class ConformerClassifier(ConformerHeadModel):
    """An encoder under a head that names classes, from its last layer or from a learned average of all layers."""

    def __init__(self, config: ConformerConfig):
        super().__init__(config)
        assert config.num_labels is not None  # 2 by default
        self.num_labels: int = config.num_labels
        self.encoder = self.encoder_class(config)
        if config.use_weighted_layer_sum:
            self.layer_weights = nn.Parameter(torch.empty(config.num_hidden_layers + 1))

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self and self.config.use_weighted_layer_sum:
            init.constant_(self.layer_weights, 1 / len(self.layer_weights))

    def encode(
        self,
        input_features: torch.Tensor,
        attention_mask: torch.Tensor | None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, ConformerModelOutput]:
        """The frames that the head takes, (B, T, D), and the encoder's outputs, with hidden states if asked for."""
        if self.training:
            input_features = self.spec_augment(input_features, attention_mask)
        asked = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        kwargs["output_hidden_states"] = True if self.config.use_weighted_layer_sum else asked
        outputs = self.encoder(input_features, attention_mask=attention_mask, return_dict=True, **kwargs)
        frames = outputs.last_hidden_state
        if self.config.use_weighted_layer_sum:
            weights = self.layer_weights.softmax(-1)
            frames = sum(weight * layer for weight, layer in zip(weights, outputs.hidden_states, strict=True))
            if not asked:
                outputs.hidden_states = None
        return F.dropout(frames, self.config.final_dropout, self.training), outputs

    def classification_loss(
        self, logits: torch.Tensor, labels: torch.Tensor, real: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Mean loss of what is labeled, by `config.problem_type`: logits (..., N) -> 0-dim.

        Args:
            labels: (...) int64, -100 where there is none; (..., N) for `"multi_label_classification"` and
                `"regression"`.
            real: (...) bool; what is not real has no part in the loss.
        """
        logits, kind = logits.float(), self.config.problem_type
        if kind in ("multi_label_classification", "regression"):
            difference = F.mse_loss if kind == "regression" else F.binary_cross_entropy_with_logits
            terms = difference(logits, labels.reshape(logits.shape).float(), reduction="none").mean(-1)
            counted = torch.ones_like(terms, dtype=torch.bool)
        else:
            self.check_classes(labels, logits)
            labels, shape = labels.flatten(), labels.shape
            terms = F.cross_entropy(logits.flatten(0, -2), labels, ignore_index=IGNORED_LABEL, reduction="none")
            terms, counted = terms.view(shape), (labels != IGNORED_LABEL).view(shape)
        weights = (counted if real is None else counted & real).float()
        return (terms * weights).sum() / weights.sum().clamp_min(1)

    def check_classes(self, labels: torch.Tensor, logits: torch.Tensor) -> None:
        """Refuse labels that are no class of the head, or of something else than its outputs."""
        if labels.shape != logits.shape[:-1] or labels.is_floating_point():
            raise ValueError(
                f"labels must be class numbers of shape {tuple(logits.shape[:-1])}, got {labels.dtype} of shape "
                f'{tuple(labels.shape)}. Several classes at once need problem_type="multi_label_classification".'
            )
        if labels.numel() and labels.max() >= self.num_labels:
            raise ValueError(
                f"Labels must lie below num_labels = {self.num_labels}, got {int(labels.max())}. Load the "
                f"model with the number of classes: from_pretrained(..., num_labels=...)."
            )


class ConformerForSequenceClassification(ConformerClassifier):
    """An encoder that names the class of an utterance, such as keyword, language or speaker: a projection, the mean
    over the real frames, a linear layer. Each family says which encoder.
    """

    def __init__(self, config: ConformerConfig):
        super().__init__(config)
        # Not `projector`, as in Wav2Vec2: transformers 5.23 takes a transducer's `encoder_projector` for a `projector`
        # of the base model, and refuses its size.
        self.classifier_projector = nn.Linear(config.hidden_size, config.classifier_proj_size)
        self.classifier = nn.Linear(config.classifier_proj_size, self.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_features: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        """Compute logits (B, N) of every utterance, and the loss where labels are given.

        Args:
            input_features: (B, F, num_mel_bins). In training, SpecAugment masks parts of them.
            attention_mask: (B, F), non-zero where a frame is real.
            labels: (B,) int64, -100 where there is none; (B, N) where `config.problem_type` is
                `"multi_label_classification"` or `"regression"`.

        Raises:
            ValueError: labels of another shape, or not below `num_labels`.
        """
        frames, outputs = self.encode(input_features, attention_mask, **kwargs)
        projected = self.classifier_projector(frames)
        if outputs.attention_mask is None:
            pooled = projected.mean(1)
        else:
            real = outputs.attention_mask[..., None].bool()
            pooled = projected.masked_fill(~real, 0.0).sum(1) / real.sum(1).clamp_min(1)
        logits = self.classifier(pooled)
        return SequenceClassifierOutput(
            loss=None if labels is None else self.classification_loss(logits, labels),
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class ConformerForAudioFrameClassification(ConformerClassifier):
    """An encoder with a linear layer that names the class of every frame, such as who speaks in it."""

    def __init__(self, config: ConformerConfig):
        super().__init__(config)
        self.classifier = nn.Linear(config.hidden_size, self.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_features: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> ConformerFrameClassifierOutput:
        """Compute logits (B, T, N) of every encoder frame, and the loss of the real frames where labels are given.

        Args:
            input_features: (B, F, num_mel_bins). In training, SpecAugment masks parts of them.
            attention_mask: (B, F), non-zero where a frame is real.
            labels: (B, T) int64, -100 where there is none, or one-hot (B, T, N). With `config.problem_type =
                "multi_label_classification"`, (B, T, N) with any number of ones, for speakers who talk at once.

        Raises:
            ValueError: labels of another shape, or not below `num_labels`.
        """
        frames, outputs = self.encode(input_features, attention_mask, **kwargs)
        logits = self.classifier(frames)
        loss = None
        if labels is not None:
            if labels.shape == logits.shape and self.config.problem_type in (None, "single_label_classification"):
                labels = labels.argmax(-1).masked_fill(labels.amax(-1) < 0, IGNORED_LABEL)
            real = None if outputs.attention_mask is None else outputs.attention_mask.bool()
            loss = self.classification_loss(logits, labels, real)
        return ConformerFrameClassifierOutput(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            cache=outputs.cache,
        )
