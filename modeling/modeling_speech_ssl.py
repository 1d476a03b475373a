"""SpeechSSLPreTrainedModel: the base of all models of the package, from feature frames to frames of the model.

Shape letters: B batch, F feature frames (10 ms), M mel bins, T frames of the model (F / frame_stacking), D features.
"""

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init

from .configuration_conformer import SpeechSSLConfig


class SpeechSSLPreTrainedModel(PreTrainedModel):
    """Base of all models of the package: initial weights, and the check and stacking of input features."""

    config_class = SpeechSSLConfig
    main_input_name = "input_features"
    input_modalities = "audio"
    supports_gradient_checkpointing = True
    # Trainer would otherwise take **kwargs for a loss that counts the items of all accumulation steps itself.
    accepts_loss_kwargs = False
    _can_compile_fullgraph = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d)):
            # A depthwise kernel has one input channel: it gets the scale of its fan-in, not that of a wide layer.
            std: float = self.config.initializer_range
            if isinstance(module, nn.Conv2d):
                std = module.kernel_size[0] ** -0.5
            init.normal_(module.weight, mean=0.0, std=std)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, mean=0.0, std=self.config.initializer_range)
        elif isinstance(module, nn.LSTM):
            for weight in module.parameters():
                init.uniform_(weight, -(module.hidden_size**-0.5), module.hidden_size**-0.5)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)

    def _get_feat_extract_output_lengths(self, input_lengths: torch.Tensor | int) -> torch.Tensor | int:
        """Return the encoder frames of `input_lengths` feature frames; an incomplete stack at the end is dropped."""
        return input_lengths // self.config.frame_stacking

    def stack_frames(
        self, input_features: torch.Tensor, attention_mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Join `frame_stacking` consecutive frames: (B, F, M), (B, F) -> (B, T, stacked_size), (B, T) bool."""
        self.check_features(input_features, attention_mask)
        size = self.config.frame_stacking
        used = input_features.shape[1] // size * size
        # Every `size`-th frame from each offset: the one slice that would do is contiguous or not depending on the
        # length, which would bind an exported model to lengths of its example's kind.
        offsets = [slice(offset, used, size) for offset in range(size)]
        stacked = torch.cat([input_features[:, frames] for frames in offsets], dim=-1)
        if attention_mask is None:
            return stacked, None
        return stacked, torch.stack([attention_mask[:, frames] for frames in offsets], dim=-1).bool().all(-1)

    def check_features(self, input_features: torch.Tensor, attention_mask: torch.Tensor | None) -> None:
        """Refuse inputs that the encoder cannot take, with an error that says why."""
        needed = f"(batch, frames, {self.config.num_mel_bins})"
        if input_features.ndim != 3 or input_features.shape[-1] != self.config.num_mel_bins:
            raise ValueError(
                f"input_features must have shape {needed}, got {tuple(input_features.shape)}. Raw audio goes through "
                f"the feature extractor first."
            )
        if input_features.shape[1] < self.config.frame_stacking:
            raise ValueError(
                f"input_features must hold at least {self.config.frame_stacking} frames of 10 ms to make one encoder "
                f"frame, got {input_features.shape[1]}."
            )
        if attention_mask is not None and attention_mask.shape != input_features.shape[:2]:
            raise ValueError(
                f"attention_mask must have the shape (batch, frames) of input_features, "
                f"{tuple(input_features.shape[:2])}, got {tuple(attention_mask.shape)}."
            )


def normalize_over_frames(states: torch.Tensor, frame_mask: torch.Tensor | None) -> torch.Tensor:
    """Scale each feature to mean 0 and variance 1 over the real frames of its utterance.

    (B, T, D) of any dtype -> (B, T, D) float32.

    Padded frames become 0, and so does a feature that does not vary.
    """
    states = states.float()
    real = torch.ones_like(states[..., :1], dtype=torch.bool) if frame_mask is None else frame_mask[..., None]
    count = real.sum(1, keepdim=True).clamp_min(1)
    mean = states.masked_fill(~real, 0.0).sum(1, keepdim=True) / count
    centered = (states - mean).masked_fill(~real, 0.0)
    variance = centered.square().sum(1, keepdim=True) / count
    return centered * torch.rsqrt(variance + 1e-5)
