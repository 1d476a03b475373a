"""FSQModel: the tokenizer that Chunk SSL's labels come from, with the decoder that it is trained with.

Tang and Tseng (arXiv 2509.15579) give a ResNet encoder and decoder of 12 layers and width 512, finite scalar
quantization between them (Mentzer et al., arXiv 2309.15505) and the mean squared error of the stacked features. They
do not say what a layer is; ours is the residual unit of neural codecs (SoundStream, arXiv 2107.03312): a convolution
over 3 frames, then one over 1. Norms are over features and stand before the convolutions, so that a token depends
neither on the batch nor on padding. With 12 layers a token sees 12 frames (0.48 s) to either side.

Shape letters: B batch, F feature frames (10 ms), T stacked frames, I stacked features, W width, R channels.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import ModelOutput, can_return_tuple

from .configuration_conformer import SpeechSSLConfig
from .configuration_fsq import FSQConfig
from .finite_scalars import FiniteScalarQuantizer, level_statistics
from .modeling_speech_ssl import SpeechSSLPreTrainedModel, normalize_over_frames
from .quantization import FrameLabels


@dataclass
class FSQModelOutput(ModelOutput):
    """Loss, diagnostics, tokens and reconstruction of a batch.

    Args:
        loss: mean squared error over real frames and features; the features have variance 1.
        num_frames: real stacked frames in the batch: the weight of this batch in a mean over batches.
        explained_variance: share of the features' variance that the reconstruction explains, at most 1.
        codebook_usage: different codes in the batch, as a share of what its frames and the codebook allow.
        level_usage: share of the levels in use, mean over channels.
        level_perplexity: exponential of the entropy of the levels' frequencies, mean over channels.
        channel_perplexities: (R,), the same of each channel; near 1, a channel has the same level in all frames.
        digits: (B, T, R) int64, the level of each channel; of no meaning at padded frames.
        reconstruction: (B, T, I), the stacked features, each normalized over its utterance.
        attention_mask: (B, T) int64, 1 where a stacked frame is real; `None` if none was given.
    """

    loss: torch.Tensor | None = None
    num_frames: torch.Tensor | None = None
    explained_variance: torch.Tensor | None = None
    codebook_usage: torch.Tensor | None = None
    level_usage: torch.Tensor | None = None
    level_perplexity: torch.Tensor | None = None
    channel_perplexities: torch.Tensor | None = None
    digits: torch.Tensor | None = None
    reconstruction: torch.Tensor | None = None
    attention_mask: torch.Tensor | None = None


class FSQLayer(GradientCheckpointingLayer):
    """One residual unit: (B, T, W) -> (B, T, W)."""

    def __init__(self, width: int):
        super().__init__()
        self.conv_norm = nn.LayerNorm(width)
        # Dense, unlike the Conformer's: as Conv1d it runs faster here than as a channels-last Conv2d or one product.
        self.conv = nn.Conv1d(width, width, kernel_size=3, padding=1)
        self.out_norm = nn.LayerNorm(width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, hidden_states: torch.Tensor, frame_mask: torch.Tensor | None) -> torch.Tensor:
        update = F.silu(self.conv_norm(hidden_states))
        if frame_mask is not None:
            update = update.masked_fill(~frame_mask[..., None], 0.0)
        update = self.conv(update.transpose(1, 2)).transpose(1, 2)
        return hidden_states + self.out_proj(F.silu(self.out_norm(update)))


class FSQResNet(nn.Module):
    """Projection, residual layers, norm: (B, T, input_size) -> (B, T, W)."""

    def __init__(self, input_size: int, width: int, num_layers: int):
        super().__init__()
        self.in_proj = nn.Linear(input_size, width)
        self.layers = nn.ModuleList([FSQLayer(width) for _ in range(num_layers)])
        self.norm = nn.LayerNorm(width)

    def forward(self, hidden_states: torch.Tensor, frame_mask: torch.Tensor | None) -> torch.Tensor:
        hidden_states = self.in_proj(hidden_states.to(self.norm.weight.dtype))
        for layer in self.layers:
            hidden_states = layer(hidden_states, frame_mask)
        return self.norm(hidden_states)


class FSQTokenizer(nn.Module):
    """Turns stacked frames into digits. Chunk SSL keeps this part of the model, frozen.

    Args:
        config: any config with `num_mel_bins`, `frame_stacking`, `fsq_levels`, `fsq_hidden_size` and
            `fsq_num_hidden_layers`.
    """

    def __init__(self, config: SpeechSSLConfig):
        super().__init__()
        self.encoder = FSQResNet(config.stacked_size, config.fsq_hidden_size, config.fsq_num_hidden_layers)
        self.code_proj = nn.Linear(config.fsq_hidden_size, len(config.fsq_levels))
        self.quantizer = FiniteScalarQuantizer(config.fsq_levels)

    @torch.no_grad()
    def forward(self, stacked: torch.Tensor, frame_mask: torch.Tensor | None) -> torch.Tensor:
        """Compute digits of utterances: (B, T, I), (B, T) bool -> (B, T, R) int64; of no meaning at padded frames."""
        return self.quantizer.digits(self.values(self.normalize(stacked, frame_mask), frame_mask))

    def values(self, normalized: torch.Tensor, frame_mask: torch.Tensor | None) -> torch.Tensor:
        """Compute the values that are quantized: (B, T, I), (B, T) bool -> (B, T, R)."""
        return self.code_proj(self.encoder(normalized, frame_mask))

    def normalize(self, stacked: torch.Tensor, frame_mask: torch.Tensor | None) -> torch.Tensor:
        """Normalize each feature over the real frames of its utterance: (B, T, I) -> (B, T, I) float32.

        This undoes any earlier scale and shift per feature: the global normalization of the feature extractor changes
        no token. Padded frames become 0.
        """
        return normalize_over_frames(stacked, frame_mask)


class FSQModel(SpeechSSLPreTrainedModel):
    """The tokenizer and its decoder, trained to restore the stacked features (Tang and Tseng, arXiv 2509.15579)."""

    config_class = FSQConfig
    _no_split_modules = ["FSQLayer"]

    def __init__(self, config: FSQConfig):
        super().__init__(config)
        self.tokenizer = FSQTokenizer(config)
        self.decoder = FSQResNet(len(config.fsq_levels), config.fsq_hidden_size, config.fsq_num_hidden_layers)
        self.feature_proj = nn.Linear(config.fsq_hidden_size, config.stacked_size)
        self.post_init()

    @can_return_tuple
    def forward(
        self, input_features: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> FSQModelOutput:
        """Compute tokens, reconstruction and loss of a batch of utterances.

        Args:
            input_features: (B, F, num_mel_bins), log-mel frames of 10 ms, normalized in whatever way.
            attention_mask: (B, F), non-zero where a frame is real; real frames come first. All are, if absent.

        Raises:
            ValueError: a tensor has another shape than these.
        """
        stacked, frame_mask = self.stack_frames(input_features, attention_mask)
        target = self.tokenizer.normalize(stacked, frame_mask)
        codes = self.tokenizer.quantizer(self.tokenizer.values(target, frame_mask))
        digits = self.tokenizer.quantizer.digits_from_codes(codes)
        reconstruction = self.feature_proj(self.decoder(codes, frame_mask))

        real = torch.ones_like(digits[..., 0], dtype=torch.bool) if frame_mask is None else frame_mask
        count = real.sum()
        error = (reconstruction.float() - target).masked_fill(~real[..., None], 0.0).square().sum()
        return FSQModelOutput(
            loss=error / (count * self.config.stacked_size).clamp_min(1),
            num_frames=count,
            explained_variance=1 - error.detach() / target.square().sum().clamp_min(1),
            digits=digits,
            reconstruction=reconstruction,
            attention_mask=None if frame_mask is None else frame_mask.long(),
            **level_statistics(digits.flatten(0, 1), real.flatten().float(), self.tokenizer.quantizer),
        )

    @torch.no_grad()
    def tokenize(self, input_features: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """Compute the digits of a batch of utterances: (B, F, num_mel_bins), (B, F) -> (B, T, R) int64.

        Those of padded frames have no meaning. `tokenizer.quantizer.indices_from_digits` makes one number of each row.
        """
        return self.tokenizer(*self.stack_frames(input_features, attention_mask))

    def make_labels(
        self, input_features: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> tuple[dict[str, FrameLabels], torch.Tensor]:
        """The labels of a batch, as channels, and the real frames, (B, T) bool; as pretraining models make theirs."""
        stacked, frame_mask = self.stack_frames(input_features, attention_mask)
        if frame_mask is None:
            frame_mask = torch.ones(stacked.shape[:2], dtype=torch.bool, device=stacked.device)
        ids = self.tokenizer(stacked, frame_mask)
        return {"fsq": FrameLabels(ids, list(self.config.fsq_levels), are_channels=True)}, frame_mask


FSQModel.register_for_auto_class("AutoModel")
