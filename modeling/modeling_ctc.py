"""What heads share, those that write text above all, and the CTC head: SpecAugment, logits, loss, greedy decoding.

Shape letters: B batch, F feature frames (10 ms), T encoder frames, D hidden size, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn import functional as F
from transformers.modeling_outputs import CausalLMOutput
from transformers.utils import can_return_tuple

from .cache import ConformerCache
from .configuration_conformer import ConformerConfig
from .masking import draw_spec_augment_mask, draw_varied_mask
from .modeling_conformer import ConformerModel, ConformerPreTrainedModel

_Model = TypeVar("_Model", bound="ConformerForCTC")


@dataclass
class ConformerForCTCOutput(CausalLMOutput):
    """CTC `loss` (0-dim), `logits` (B, T, V), and the encoder's outputs but for its last hidden state."""

    cache: ConformerCache | None = None

    @property
    def past_key_values(self) -> ConformerCache | None:
        """The cache, by its older name, as in the encoder's output."""
        return self.cache


class ConformerHeadModel(ConformerPreTrainedModel):
    """An encoder under a head that is trained with labels: SpecAugment of its inputs."""

    encoder_class = ConformerModel

    def spec_augment(self, input_features: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        """Mask spans of frames and bands of mel bins with 0, the mean of normalized features."""
        config, (batch, frames, bins) = self.config, input_features.shape
        lengths = torch.full((batch,), frames, device=input_features.device)
        lengths = lengths if attention_mask is None else attention_mask.sum(-1)
        all_bins = torch.full((batch,), bins, device=input_features.device)
        masks = []
        if config.mask_time_prob > 0:
            fixed = (config.mask_time_prob, config.mask_time_length, config.mask_time_min_masks)
            masks.append(draw_spec_augment_mask(lengths, frames, *fixed)[:, :, None])
        if config.mask_feature_prob > 0:
            fixed = (config.mask_feature_prob, config.mask_feature_length, config.mask_feature_min_masks)
            masks.append(draw_spec_augment_mask(all_bins, bins, *fixed)[:, None, :])
        if config.num_time_masks:
            longest = config.max_time_mask_share * lengths
            masks.append(draw_varied_mask(lengths, frames, config.num_time_masks, longest)[:, :, None])
        if config.num_feature_masks:
            widest = torch.full_like(all_bins, config.max_feature_mask_width)
            masks.append(draw_varied_mask(all_bins, bins, config.num_feature_masks, widest)[:, None, :])
        for masked in masks:
            input_features = input_features.masked_fill(masked, 0.0)
        return input_features


class ConformerFineTuningModel(ConformerHeadModel):
    """An encoder under a head that writes text: the check of labels, and the CTC loss."""

    def check_labels(self, labels: torch.Tensor) -> None:
        """Refuse labels that the head has no output for."""
        if labels.numel() and labels.max() >= self.config.vocab_size:
            raise ValueError(
                f"Labels must lie below vocab_size = {self.config.vocab_size}, got {int(labels.max())}. Load the "
                f"model with the tokenizer's size: from_pretrained(..., vocab_size=len(tokenizer))."
            )

    def ctc_loss(self, logits: torch.Tensor, frame_mask: torch.Tensor | None, labels: torch.Tensor) -> torch.Tensor:
        """Compute CTC (Graves et al. 2006) in float32, averaged or summed as the config says."""
        self.check_labels(labels)
        lengths = logits.new_full(logits.shape[:1], logits.shape[1], dtype=torch.long)
        lengths = lengths if frame_mask is None else frame_mask.sum(-1)
        real = (labels >= 0) & (labels != self.config.pad_token_id)
        return F.ctc_loss(
            F.log_softmax(logits, dim=-1, dtype=torch.float32).transpose(0, 1),
            labels.masked_select(real),
            lengths,
            real.sum(-1),
            blank=self.config.pad_token_id,
            reduction=self.config.ctc_loss_reduction,
            zero_infinity=self.config.ctc_zero_infinity,
        )


class ConformerForCTC(ConformerFineTuningModel):
    """An encoder with a linear CTC head; each family says which encoder.

    Padded frames get the logits of a certain blank, so that decoding a batch adds nothing to a text.
    """

    @classmethod
    def from_pretrained(cls: type[_Model], *args: Any, **kwargs: Any) -> Any:
        """The saved model; see `PreTrainedModel.from_pretrained`.

        Raises:
            ValueError: an Auto class, which reads the config first, has found a transducer. `pipeline()` asks
                `AutoModelForCTC` before others, and would write the nonsense of a head of random weights.
        """
        saved = (getattr(kwargs.get("config"), "architectures", None) or [""])[0]
        if saved.endswith("ForRNNT"):
            raise ValueError(
                f"The checkpoint is a {saved}, which loads with AutoModelForRNNT; a CTC head on it would have random "
                f"weights. finetuning_scripts/run_ctc.py trains one on its encoder."
            )
        return super().from_pretrained(*args, **kwargs)

    def __init__(self, config: ConformerConfig):
        super().__init__(config)
        self.encoder = self.encoder_class(config)
        self.ctc_head = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_features: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> ConformerForCTCOutput:
        """Compute logits of every encoder frame, and the CTC loss where labels are given.

        Args:
            input_features: (B, F, num_mel_bins). In training, SpecAugment masks parts of them.
            attention_mask: (B, F), non-zero where a frame is real.
            labels: (B, L) token ids, padded with -100 (or any negative number) or with the blank, which no text holds.

        Returns:
            [`ConformerForCTCOutput`].

        Raises:
            ValueError: a label is not below `vocab_size`.
        """
        if self.training:
            input_features = self.spec_augment(input_features, attention_mask)
        outputs = self.encoder(input_features, attention_mask=attention_mask, return_dict=True, **kwargs)
        hidden_states = F.dropout(outputs.last_hidden_state, self.config.final_dropout, self.training)
        logits = self.ctc_head(hidden_states)
        frame_mask = None if outputs.attention_mask is None else outputs.attention_mask.bool()
        loss = None
        if labels is not None:
            loss = self.ctc_loss(logits, frame_mask, labels)
        if frame_mask is not None:
            blank = logits.new_full((self.config.vocab_size,), torch.finfo(logits.dtype).min)
            blank[self.config.pad_token_id] = 0
            logits = torch.where(frame_mask[..., None], logits, blank)
        return ConformerForCTCOutput(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            cache=outputs.cache,
        )

    @torch.no_grad()
    def generate(
        self, input_features: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> torch.Tensor:
        """Greedy CTC path: the best token of every frame, (B, T) int64; the blank at padded frames.

        `processor.batch_decode` joins repeats and drops blanks.
        """
        return self(input_features, attention_mask=attention_mask, return_dict=True, **kwargs).logits.argmax(-1)
