"""BiRQ: masked prediction of anchor labels (BEST-RQ) and of enhanced labels that the encoder itself makes.

Equations are those of Jiang et al., arXiv 2509.15430. Shape letters: B batch, F feature frames, T encoder frames,
D hidden size, n masked frames, C codebooks, N entries.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from transformers.utils import ModelOutput, can_return_tuple

from .configuration_birq import BiRQConfig
from .masking import draw_span_mask
from .modeling_conformer import ConformerModel, ConformerPreTrainedModel
from .modeling_ctc import ConformerForCTC
from .modeling_speech_ssl import normalize_over_frames
from .quantization import RandomProjectionQuantizer, label_statistics

_ONLY_FOR_PRETRAINING = [r"^quantizer\.", r"^prediction_head\."]


@dataclass
class BiRQForPreTrainingOutput(ModelOutput):
    """Loss and diagnostics of a pretraining step; all are 0-dim but the logits.

    Args:
        loss: w1 * enhanced_loss + w2 * anchor_loss, mean over the masked frames.
        num_masked_frames: masked frames in the batch, n: the weight of this batch in a mean over batches.
        anchor_loss: G, cross-entropy against the anchor labels.
        enhanced_loss: F, cross-entropy against the enhanced labels; `None` in BEST-RQ mode.
        accuracy: share of anchor labels that the best logit hits.
        codebook_usage: share of the entries that the batch's anchor labels use.
        codebook_perplexity: exponential of the entropy of the anchor labels' frequencies.
        enhanced_perplexity: the same of the enhanced labels' mean distribution.
        enhanced_confidence: mean of the largest weight in an enhanced label.
        logits: (n, C, N) at the masked frames, in the order of `mask_time_indices`.
    """

    loss: torch.Tensor | None = None
    num_masked_frames: torch.Tensor | None = None
    anchor_loss: torch.Tensor | None = None
    enhanced_loss: torch.Tensor | None = None
    accuracy: torch.Tensor | None = None
    codebook_usage: torch.Tensor | None = None
    codebook_perplexity: torch.Tensor | None = None
    enhanced_perplexity: torch.Tensor | None = None
    enhanced_confidence: torch.Tensor | None = None
    logits: torch.Tensor | None = None


class BiRQPreTrainedModel(ConformerPreTrainedModel):
    """Loading and initial weights of the BiRQ models."""

    config_class = BiRQConfig

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, RandomProjectionQuantizer):
            module.reset()


class BiRQModel(BiRQPreTrainedModel, ConformerModel):
    """The BiRQ encoder: (B, F, num_mel_bins) -> (B, T, D)."""

    _keys_to_ignore_on_load_unexpected = _ONLY_FOR_PRETRAINING


class BiRQForCTC(BiRQPreTrainedModel, ConformerForCTC):
    """The BiRQ encoder with a CTC head for speech recognition."""

    encoder_class = BiRQModel
    _keys_to_ignore_on_load_unexpected = _ONLY_FOR_PRETRAINING


class BiRQForPreTraining(BiRQPreTrainedModel):
    """BiRQ pretraining; with `enhanced_loss_weight = 0` exactly BEST-RQ (Chiu et al., arXiv 2202.01855).

    The anchor label of a frame is the codebook entry nearest to a random projection of its unmasked features. The
    enhanced label is a Gumbel-softmax over minus the squared distances between the entries and another random
    projection of block k's normalized output for the unmasked utterance. Gradients flow through the enhanced label
    into blocks 1..k unless `detach_enhanced_labels` is set. One linear head per codebook predicts both kinds at the
    masked frames.

    The paper does not say over what block k's output is normalized. Here each feature is, over the frames of its
    utterance, as the input of the anchor labels is over the corpus. The labels' own gradient rewards labels that are
    easy to predict; where block k leaves its output normalized over features alone, it found one label for all frames
    within 100 updates on synthetic speech. Normalized over frames it takes longer, and is not ruled out: watch
    `enhanced_perplexity`, and set `detach_enhanced_labels` where it falls towards 1.
    """

    _keep_in_fp32_modules_strict = ["quantizer"]

    def __init__(self, config: BiRQConfig):
        super().__init__(config)
        self.encoder = BiRQModel(config)
        self.quantizer = RandomProjectionQuantizer(
            config.stacked_size,
            config.codebook_size,
            config.codebook_dim,
            config.num_codebooks,
            seed=config.quantizer_seed,
            soft_input_dim=config.hidden_size,
        )
        self.prediction_head = nn.Linear(config.hidden_size, config.num_codebooks * config.codebook_size)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_features: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        mask_time_indices: torch.Tensor | None = None,
    ) -> BiRQForPreTrainingOutput:
        """One pretraining step's loss and diagnostics.

        Args:
            input_features: (B, F, num_mel_bins), normalized log-mel frames of 10 ms.
            attention_mask: (B, F), non-zero where a frame is real; real frames come first. All are, if absent.
            mask_time_indices: (B, T) bool, the encoder frames to hide; drawn here if absent. Padding is never hidden.

        Raises:
            ValueError: a tensor has another shape than these.
        """
        stacked, frame_mask = self.encoder.stack_frames(input_features, attention_mask)
        hidden = self.choose_hidden_frames(stacked, frame_mask, mask_time_indices)
        anchors = self.quantizer(stacked[hidden])  # (n, C)
        encoded, label_states = self.encode(stacked, self.replace_by_noise(stacked, hidden), frame_mask)
        logits = self.prediction_head(encoded[hidden]).view(*anchors.shape, self.config.codebook_size)  # (n, C, N)

        log_probs = F.log_softmax(logits, dim=-1, dtype=torch.float32)
        count = hidden.sum()
        terms = count.clamp_min(1) * self.config.num_codebooks
        anchor_loss = -log_probs.gather(-1, anchors[..., None]).sum() / terms
        loss = self.config.anchor_loss_weight * anchor_loss
        diagnostics = label_statistics(anchors, self.config.codebook_size)
        if label_states is not None:
            labels = self.enhanced_labels(normalize_over_frames(label_states, frame_mask)[hidden])
            enhanced_loss = -(labels * log_probs).sum() / terms
            loss = loss + self.config.enhanced_loss_weight * enhanced_loss
            diagnostics |= {"enhanced_loss": enhanced_loss.detach(), **describe_soft_labels(labels.detach(), count)}
        return BiRQForPreTrainingOutput(
            loss=loss,
            num_masked_frames=count,
            anchor_loss=anchor_loss.detach(),
            accuracy=(logits.argmax(-1) == anchors).sum() / terms,
            logits=logits,
            **diagnostics,
        )

    def choose_hidden_frames(
        self, stacked: torch.Tensor, frame_mask: torch.Tensor | None, mask_time_indices: torch.Tensor | None
    ) -> torch.Tensor:
        """Which real frames are hidden, (B, T) bool: those asked for, or a fresh draw."""
        real = torch.ones_like(stacked[..., 0], dtype=torch.bool) if frame_mask is None else frame_mask
        if mask_time_indices is None:
            return draw_span_mask(real, self.config.mask_start_prob, self.config.mask_length)
        if mask_time_indices.shape != real.shape:
            raise ValueError(
                f"mask_time_indices must have one entry per encoder frame, {tuple(real.shape)}, got "
                f"{tuple(mask_time_indices.shape)}. An encoder frame is {self.config.frame_stacking} feature frames."
            )
        return mask_time_indices.bool() & real

    def replace_by_noise(self, stacked: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """The masked input: noise from N(0, mask_noise_std^2) in the hidden frames."""
        noise = torch.randn_like(stacked) * self.config.mask_noise_std
        return torch.where(hidden[..., None], noise, stacked)

    def encode(
        self, clean: torch.Tensor, masked: torch.Tensor, frame_mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Encoder output of the masked input and block k's output for the clean one (`None` in BEST-RQ mode)."""
        encoder, k = self.encoder, self.config.enhanced_label_layer
        if self.config.enhanced_loss_weight == 0:
            return encoder.run_layers(encoder.project(masked), frame_mask), None
        if self.config.detach_enhanced_labels:
            # The masked pass comes first: autocast keeps its casts of the weights, and those must carry gradients.
            encoded = encoder.run_layers(encoder.project(masked), frame_mask)
            with torch.no_grad():
                return encoded, encoder.run_layers(encoder.project(clean), frame_mask, stop=k)
        both_masks = None if frame_mask is None else frame_mask.repeat(2, 1)
        both = encoder.run_layers(encoder.project(torch.cat([masked, clean])), both_masks, stop=k)
        hidden_states, label_states = both.chunk(2)
        return encoder.run_layers(hidden_states, frame_mask, start=k), label_states

    def enhanced_labels(self, label_states: torch.Tensor) -> torch.Tensor:
        """Soft labels y^(k) (Eq. 4): (n, D) -> (n, C, N), each a distribution over the entries.

        The paper prints the Gumbel noise with a minus sign and cites Jang et al. (2017) for it; this is their form,
        softmax((-distance^2 + noise) / tau).
        """
        scores = self.quantizer.soft_scores(label_states)
        # Gumbel noise is -log(-log(u)); drawing -log(u) as exponential_() takes the CPU several times as long.
        noise = torch.rand_like(scores).log_().neg_().log_().neg_()
        return F.softmax((scores + noise) / self.config.gumbel_temperature, dim=-1)


def describe_soft_labels(labels: torch.Tensor, count: torch.Tensor) -> dict[str, torch.Tensor]:
    """Diagnostics of the enhanced labels (n, C, N): how many entries they share out over, and how decided they are."""
    terms = count.clamp_min(1)
    mean = labels.sum(0) / terms
    entropy = -torch.xlogy(mean, mean).sum(-1)
    return {
        "enhanced_perplexity": entropy.exp().mean(),
        "enhanced_confidence": labels.amax(-1).sum() / (terms * labels.shape[1]),
    }


BiRQModel.register_for_auto_class("AutoModel")
BiRQForPreTraining.register_for_auto_class("AutoModelForPreTraining")
BiRQForCTC.register_for_auto_class("AutoModelForCTC")
