"""BiRQConfig: the encoder, the labels, the masks and the loss of BiRQ."""

from typing import Any

from huggingface_hub.dataclasses import strict

from .configuration_quantizer import QuantizerConfig

ENHANCED_LABEL_KINDS = ("gumbel", "clusters")

# Sizes of the published configurations; everything else is the default of the fields below. C1 to C3 are the
# paper's (Jiang et al., arXiv 2509.15430, section 4), which counts 137 M, 155 M and 275 M parameters for them.
_PRESETS: dict[str, dict[str, Any]] = {
    "birq-tiny": {
        "frame_stacking": 4,
        "hidden_size": 144,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 576,
        "conv_kernel_size": 15,
        # Made to learn something within minutes: larger initial weights, as suit a narrow model, no dropout, and spans
        # of 120 ms (1 - 0.87^3 = 34 % of the frames) that are easier to fill in than the paper's 400 ms.
        "initializer_range": 0.04,
        "hidden_dropout": 0.0,
        "decoder_hidden_size": 144,
        "decoder_attention_heads": 4,
        "decoder_intermediate_size": 576,
        "joint_hidden_size": 256,
        "mask_start_prob": 0.13,
        "mask_length": 3,
        # k-means on whitened frames, and a loss on all frames: the first labels that made fine-tuning on real speech
        # better than without pretraining. Entries move within the first fifth of 2,000 updates.
        "label_normalization": "utterance_mean",
        "projection_kind": "whitened",
        "projection_updates": 64,
        "codebook_size": 256,
        "codebook_distance": "euclidean",
        "codebook_refinements": 5,
        "codebook_refinement_interval": 50,
        "reseed_dead_entries": True,
        "unmasked_loss_weight": 1.0,
        # BEST-RQ: the enhanced labels have not been shown to add to these. With another weight they stay alive.
        "enhanced_loss_weight": 0.0,
        "enhanced_label_kind": "clusters",
        "enhanced_warmup_updates": 400,
        "label_encoder_decay": 0.99,
    },
    "birq-base": {},
    "birq-c1": {
        "hidden_size": 1024,
        "num_hidden_layers": 5,
        "num_attention_heads": 8,
        "intermediate_size": 4096,
        "attention_window": 200,
    },
    "birq-c2": {"hidden_size": 768, "num_hidden_layers": 10, "num_attention_heads": 6, "intermediate_size": 3072},
    "birq-c3": {
        "hidden_size": 1024,
        "num_hidden_layers": 10,
        "num_attention_heads": 8,
        "intermediate_size": 4096,
        "attention_window": 200,
    },
}


@strict
class BiRQConfig(QuantizerConfig):
    r"""
    Configuration of BiRQ (Jiang et al., arXiv 2509.15430). The encoder's fields are those of [`ConformerConfig`], the
    anchor labels' those of [`QuantizerConfig`]. The defaults are `birq-base`: 12 blocks of width 512, and everything
    else as in the paper. [`BiRQConfig.from_preset`] gives the published sizes.

    Args:
        enhanced_label_kind (`str`, defaults to `"gumbel"`): How block k's output becomes labels. `"gumbel"`: the
            paper's Gumbel-softmax over the anchors' first codebook. `"clusters"`: the nearest entry of a codebook of
            its own, whose entries move to the means of block k's vectors, as in k-means; no gradient flows through it.
        enhanced_refinement_interval (`int`, defaults to 50): Updates from one move of those entries to the next. In
            the first of these windows a vector counts for the entry of its anchor label, so that both kinds of labels
            begin with the same meaning; the loss begins after it.
        enhanced_warmup_updates (`int`, defaults to 0): First updates in which the loss is that of BEST-RQ.
        label_encoder_decay (`float`, defaults to 0): Decay, per update, of the exponential moving average of blocks 1
            to k that makes the enhanced labels, without dropout or gradient. 0: the encoder itself makes them, as in
            the paper. The average adds a float32 copy of these blocks to memory and checkpoints, and no pass.
        label_layer (`int`, *optional*): The block k, counted from 1, whose output makes the enhanced labels. By
            default the whole part of 0.7 times the number of blocks, the paper's choice.
        gumbel_temperature (`float`, defaults to 0.5): Temperature tau of the enhanced labels' Gumbel-softmax.
        enhanced_loss_weight (`float`, defaults to 0.1): w1, weight of the loss against the enhanced labels. 0 is
            BEST-RQ, and then no clean pass is made.
        anchor_loss_weight (`float`, defaults to 2.4): w2, weight of the loss against the anchor labels.
        detach_enhanced_labels (`bool`, defaults to `False`): Whether to stop the gradient through the enhanced labels.
        mask_start_prob (`float`, defaults to 0.02): Probability that a frame starts a masked span. With spans of 20
            frames that may overlap, 1 - 0.98^20 = 33 % of the frames of a long utterance are hidden.
        mask_length (`int`, defaults to 20): Length of a span in encoder frames (400 ms at 20 ms).
        mask_noise_std (`float`, defaults to 0.1): Standard deviation of the noise that replaces masked frames.
    """

    model_type = "birq"
    _remote_classes = {
        "AutoConfig": "configuration_birq.BiRQConfig",
        "AutoModel": "modeling_birq.BiRQModel",
        "AutoModelForPreTraining": "modeling_birq.BiRQForPreTraining",
        "AutoModelForCTC": "modeling_birq.BiRQForCTC",
        "AutoModelForRNNT": "modeling_birq.BiRQForRNNT",
        "AutoModelForTDT": "modeling_birq.BiRQForRNNT",  # what pipeline() asks for transducers
        "AutoModelForAudioClassification": "modeling_birq.BiRQForSequenceClassification",
        "AutoModelForAudioFrameClassification": "modeling_birq.BiRQForAudioFrameClassification",
    }
    _presets = _PRESETS

    enhanced_label_kind: str = "gumbel"
    enhanced_refinement_interval: int = 50
    enhanced_warmup_updates: int = 0
    label_encoder_decay: float | int = 0.0
    label_layer: int | None = None
    gumbel_temperature: float | int = 0.5
    enhanced_loss_weight: float | int = 0.1
    anchor_loss_weight: float | int = 2.4
    detach_enhanced_labels: bool = False
    mask_start_prob: float | int = 0.02
    mask_length: int = 20
    mask_noise_std: float | int = 0.1

    @property
    def enhanced_label_layer(self) -> int:
        """The block whose output makes the enhanced labels: `label_layer`, or what its absence stands for."""
        return max(1, 7 * self.num_hidden_layers // 10) if self.label_layer is None else self.label_layer

    @property
    def first_enhanced_update(self) -> int:
        """Number, from 1, of the first update whose loss has enhanced labels."""
        clusters = self.enhanced_label_kind == "clusters"
        return 1 + max(self.enhanced_warmup_updates, self.enhanced_refinement_interval if clusters else 0)

    @property
    def first_learning_update(self) -> int:
        """Number of the first update that the maker of the enhanced labels learns from."""
        clusters = self.enhanced_label_kind == "clusters"
        return self.first_enhanced_update - (self.enhanced_refinement_interval if clusters else 0)

    @property
    def has_label_maker(self) -> bool:
        """Whether the enhanced labels have a codebook or an encoder of their own, or begin late."""
        own = self.enhanced_label_kind == "clusters" or self.label_encoder_decay > 0
        return self.enhanced_loss_weight > 0 and (own or self.enhanced_warmup_updates > 0)

    @property
    def detaches_labels(self) -> bool:
        """Whether no gradient flows through the enhanced labels."""
        return self.detach_enhanced_labels or self.enhanced_label_kind == "clusters" or self.label_encoder_decay > 0

    @property
    def unmasked_frame_weight(self) -> float:
        """Weight of an unmasked frame in the loss, relative to a masked one: so that `unmasked_loss_weight` is that of
        the means, whatever share of the frames is masked.
        """
        shown = (1 - self.mask_start_prob) ** self.mask_length  # share of a long utterance that is not masked
        return self.unmasked_loss_weight * (1 - shown) / shown

    def validate_labels(self) -> None:
        """Refuse label settings that the loss could not use."""
        if self.mask_length < 1:
            raise ValueError(f"mask_length must be at least 1, got {self.mask_length}.")
        if self.label_layer is not None and not 1 <= self.label_layer <= self.num_hidden_layers:
            raise ValueError(
                f"label_layer counts blocks from 1 and must be at most num_hidden_layers = {self.num_hidden_layers}, "
                f"got {self.label_layer}."
            )
        if self.enhanced_label_kind not in ENHANCED_LABEL_KINDS:
            raise ValueError(
                f"enhanced_label_kind must be one of {', '.join(ENHANCED_LABEL_KINDS)}, got "
                f'"{self.enhanced_label_kind}".'
            )
        if self.enhanced_refinement_interval < 1:
            raise ValueError(
                f"enhanced_refinement_interval must be at least 1 update, got {self.enhanced_refinement_interval}."
            )
        if self.enhanced_warmup_updates < 0:
            raise ValueError(f"enhanced_warmup_updates must not be negative, got {self.enhanced_warmup_updates}.")
        if not 0 <= self.label_encoder_decay < 1:
            raise ValueError(
                f"label_encoder_decay must lie between 0 (no average) and 1 (never reached), got "
                f"{self.label_encoder_decay}."
            )
        if self.gumbel_temperature <= 0:
            raise ValueError(f"gumbel_temperature must be above 0, got {self.gumbel_temperature}.")
        if self.mask_noise_std < 0:
            raise ValueError(f"mask_noise_std must not be negative, got {self.mask_noise_std}.")
        for name in ("enhanced_loss_weight", "anchor_loss_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}.")


BiRQConfig.register_for_auto_class()
