"""What the pretraining models of both families share: whose labels, which frames, which random numbers.

Shape letters: B batch, T encoder frames, I stacked features, D hidden size, n predicted frames, C label columns.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from .distilled_quantization import DistilledQuantizer, build_second_quantizer
from .label_statistics import LabelUse, named
from .masking import FixedDraws
from .modeling_conformer import ConformerModel, ConformerPreTrainedModel
from .modeling_speech_ssl import normalize_over_frames
from .quantization import FrameLabels, Quantizer


class MaskedPredictionModel(ConformerPreTrainedModel):
    """A model that predicts the labels of masked frames.

    Nobody else draws a mask, a chunk or a label: `sample_mask` and `make_labels` give those of a training step.
    """

    encoder: ConformerModel
    quantizer: Any
    second_quantizer: Any
    _keys_to_ignore_on_load_missing = [r"^\w+_use\."]  # of checkpoints saved before there were statistics of label use

    def make_labels(
        self,
        input_features: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        seeded_only: bool = False,
    ) -> tuple[dict[str, FrameLabels], torch.Tensor]:
        """The labels that pretraining predicts, by kind, and the real frames, (B, T) bool.

        Args:
            input_features: (B, F, num_mel_bins), normalized log-mel frames of 10 ms.
            attention_mask: (B, F), non-zero where a frame is real; real frames come first. All are, if absent.
            seeded_only: make only the labels that follow from the configuration, whatever the weights, if any do.
        """
        raise NotImplementedError

    def sample_mask(self, frame_mask: torch.Tensor, generator: torch.Generator | None = None) -> dict[str, Any]:
        """Draw the mask of a training step, as arguments of `forward`; `mask_time_indices` (B, T) bool is among them.

        It needs the configuration and no weights.

        Args:
            frame_mask: (B, T) bool, the real frames.
            generator: on the device of `frame_mask`; torch's default one if absent.
        """
        raise NotImplementedError

    def real_frames(self, stacked: torch.Tensor, frame_mask: torch.Tensor | None) -> torch.Tensor:
        """The frame mask, or one for stacked frames (B, T, I) without padding: (B, T) bool."""
        if frame_mask is not None:
            return frame_mask
        return torch.ones(stacked.shape[:2], dtype=torch.bool, device=stacked.device)

    def check_mask(self, mask_time_indices: torch.Tensor, frame_mask: torch.Tensor) -> torch.Tensor:
        """The frames that a caller masks, (B, T) bool, without padding.

        Raises:
            ValueError: the mask is not one of encoder frames.
        """
        if mask_time_indices.shape != frame_mask.shape:
            raise ValueError(
                f"mask_time_indices must have one entry per encoder frame, {tuple(frame_mask.shape)}, got "
                f"{tuple(mask_time_indices.shape)}. An encoder frame is {self.config.frame_stacking} feature frames."
            )
        return mask_time_indices.bool() & frame_mask

    def fixed_draws(self, stacked: torch.Tensor) -> FixedDraws | None:
        """Where the step's random numbers come from: in training torch's generator (`None`), in evaluation numbers
        that the utterances (B, T, I) themselves decide.
        """
        return None if self.training else FixedDraws(stacked)

    def predicted_rows(self, masked: torch.Tensor) -> torch.Tensor:
        """Indices into the B * T frames whose labels are predicted: (B, T) bool -> (n,) int64, the masked ones.

        Their number depends on the data, which no graph of static shapes can have: a compiled or exported model in
        evaluation mode predicts all frames, and the loss weights those outside of the mask with 0.
        """
        if torch.compiler.is_compiling() and not self.training:
            return torch.arange(masked.numel(), device=masked.device)
        return masked.flatten().nonzero()[:, 0]

    def wants(self, output_hidden_states: bool | None, output_attentions: bool | None) -> dict[str, bool]:
        """What the encoder is to record of the masked pass: what the call asks for, or else the configuration."""
        asked = {"output_hidden_states": output_hidden_states, "output_attentions": output_attentions}
        return {name: getattr(self.config, name, False) if value is None else value for name, value in asked.items()}

    def label_frames(self, stacked: torch.Tensor, frame_mask: torch.Tensor | None) -> torch.Tensor:
        """The frames that labels are made of: (B, T, I) -> (B, T, I), normalized as `label_normalization` says."""
        if self.config.label_normalization == "corpus":
            return stacked
        real = self.real_frames(stacked, frame_mask)[..., None]
        mean = (stacked * real).sum(1, keepdim=True) / real.sum(1, keepdim=True).clamp_min(1)
        return stacked - mean

    @torch.compiler.disable
    def begins_update(self) -> bool:
        """Whether this forward pass is the first of an update of the model.

        It is if it finds no gradient, because the optimizer's step is followed by `zero_grad`. Later passes that find
        gradients are further accumulation steps of the same update; passes that make no gradients belong to none.
        """
        return torch.is_grad_enabled() and all(parameter.grad is None for parameter in self.parameters())

    @property
    def observes(self) -> bool:
        """Whether this forward pass is one of training, from which labels learn."""
        return self.training and torch.is_grad_enabled()

    def teach(self, quantizer: Quantizer, frames: torch.Tensor, frame_mask: torch.Tensor) -> None:
        """Let a quantizer that learns see a training step's frames, (B, T, I) and (B, T) bool."""
        if self.observes and quantizer.learns:
            self.observe_frames(quantizer, frames.flatten(0, 1), frame_mask.flatten().float())

    @torch.compiler.disable
    def observe_frames(self, quantizer: Quantizer, vectors: torch.Tensor, weights: torch.Tensor) -> None:
        """One forward pass's vectors and weights (n,), after whatever is due as an update begins."""
        if self.begins_update():
            quantizer.update()
        quantizer.observe(vectors, weights)

    def build_second_labels(self) -> None:
        """Make the quantizer, the statistics and the head of the second label set."""
        num_codebooks, size = self.config.num_codebooks, self.config.second_codebook_size
        self.second_quantizer = build_second_quantizer(self.config)
        self.second_use = LabelUse(num_codebooks, size)
        self.second_prediction_head = nn.Linear(self.config.hidden_size, num_codebooks * size)

    def keep_labels_in_float32(self) -> None:
        """Name what makes and counts labels: it stays in float32, whatever dtype the model is loaded in."""
        names = [name for name, _ in self.named_children() if name != "encoder"]
        self._keep_in_fp32_modules_strict = [name for name in names if not name.endswith("prediction_head")]

    @torch.no_grad()
    def second_labels(self, stacked: torch.Tensor, frame_mask: torch.Tensor | None) -> FrameLabels:
        """The second set's labels of every frame: (B, T, I), (B, T) bool -> ids (B, T, C)."""
        ids = self.second_quantizer.labels(self.label_frames(stacked, frame_mask).flatten(0, 1))
        sizes = [self.config.second_codebook_size] * self.config.num_codebooks
        return FrameLabels(ids.unflatten(0, stacked.shape[:2]), sizes)

    def predict_second(
        self, encoded: torch.Tensor, vectors: torch.Tensor, loud: torch.Tensor, weights: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Cross-entropies against the second set's labels, (n, C), and their diagnostics.

        Args:
            encoded: (n, D), the encoder's outputs.
            vectors, loud: (n, I), the frames as they are labeled, and as they came.
            weights: (n,), 1 where a frame is masked.
        """
        labels = self.second_quantizer.labels(vectors)
        logits = self.second_prediction_head(encoded).view(*labels.shape, self.config.second_codebook_size)
        losses = -F.log_softmax(logits, dim=-1, dtype=torch.float32).gather(-1, labels[..., None])[..., 0]
        hits, terms = (logits.argmax(-1) == labels).float(), weights.sum().clamp_min(1)
        diagnostics = {
            "loss": (losses.detach().mean(-1) * weights).sum() / terms,
            "accuracy": (hits.mean(-1) * weights).sum() / terms,
        }
        return losses, named("second", diagnostics | self.describe_use(self.second_use, labels, loud, weights))

    @property
    def distills(self) -> bool:
        """Whether this forward pass distills a codebook."""
        return self.training and bool(self.config.distillation_loss_weight)

    def distill(
        self, frames: torch.Tensor, block_outputs: dict[int, torch.Tensor], masked: torch.Tensor, real: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The weighted loss of codebook distillation (Xu et al., arXiv 2606.30671), and its diagnostics.

        An utterance counts as much as it has masked frames, as in the loss of the prediction, so that batches can be
        divided among processes and accumulation steps. Before the start and after the last replacement nothing is
        computed, and the copy has zero gradients: every process expects some. Xu et al. do not say over what the
        blocks' outputs are normalized; here each feature is, over the frames of its utterance that are not masked.

        Args:
            frames: (B, T, I), as they are labeled.
            block_outputs: (B, T, D) each, of the masked pass.
            masked, real: (B, T) bool.
        """
        quantizer: DistilledQuantizer = self.quantizer
        weight = quantizer.loss_weight()
        if not weight:
            return 0 * quantizer.codebook_offset.sum(), {}
        shown, counts = real & ~masked, masked.sum(1)
        outputs = [normalize_over_frames(block_outputs[k].detach(), shown) for k in self.config.distilled_layers]
        losses = quantizer.distillation_losses(frames, torch.stack(outputs).mean(0), shown)
        error, kmeans = ((loss * counts).sum() / counts.sum().clamp_min(1) for loss in losses)
        loss = weight * (error + self.config.distillation_kmeans_weight * kmeans)
        return loss, {"distillation_loss": error.detach(), "distillation_kmeans": kmeans.detach()}

    def describe_use(
        self, use: LabelUse, labels: torch.Tensor, frames: torch.Tensor, weights: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Statistics of the labels (n, C) of frames (n, I) over many updates; nothing in evaluation."""
        return use.observe(labels, frames.mean(-1), weights) if self.training else {}
