"""ChunkSSLConfig: the encoder, the chunks, the labels and the loss of Chunk SSL."""

import dataclasses
import math
from typing import Any

from huggingface_hub.dataclasses import strict

from .configuration_conformer import SAMPLING_RATE
from .configuration_quantizer import QuantizerConfig
from .finite_scalars import check_levels

# Published sizes (Tang and Tseng, arXiv 2509.15579, section 4.1) and one for a laptop. The paper counts 79 M and 337 M
# parameters; here, where positions have none, the encoders have 73 M and 326 M.
_PRESETS: dict[str, dict[str, Any]] = {
    "chunkssl-tiny": {
        "hidden_size": 144,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "intermediate_size": 576,
        "conv_kernel_size": 15,
        # Made to learn something within minutes: larger initial weights, as suit a narrow model, and no dropout.
        "initializer_range": 0.04,
        "hidden_dropout": 0.0,
        "decoder_hidden_size": 144,
        "decoder_attention_heads": 4,
        "decoder_intermediate_size": 576,
        "joint_hidden_size": 256,
        "fsq_levels": [5, 5, 5, 3, 3],
        "fsq_hidden_size": 128,
        "fsq_num_hidden_layers": 4,
        # The papers' 0 does a small encoder harm after short training: see docs/LOG.md.
        "unmasked_loss_weight": 1.0,
    },
    # As birq-tiny: an encoder of four blocks, k-means on whitened frames, and a loss on all frames. No tokenizer has
    # to be trained before.
    "chunkssl-learned-tiny": {
        "hidden_size": 144,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 576,
        "conv_kernel_size": 15,
        "initializer_range": 0.04,
        "hidden_dropout": 0.0,
        "decoder_hidden_size": 144,
        "decoder_attention_heads": 4,
        "decoder_intermediate_size": 576,
        "joint_hidden_size": 256,
        "label_kind": "random_projection",
        "label_normalization": "utterance_mean",
        "projection_kind": "whitened",
        "projection_updates": 64,
        "codebook_size": 256,
        "codebook_distance": "euclidean",
        "codebook_refinements": 5,
        "codebook_refinement_interval": 50,
        "reseed_dead_entries": True,
        "unmasked_loss_weight": 1.0,
    },
    "chunkssl-base": {},
    "chunkssl-large": {
        "hidden_size": 768,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 3072,
        "conv_kernel_size": 5,
    },
}

FULL_LOSS_LIMIT = 65_536  # entries; a softmax over more would cost more than the encoder


@strict
class ChunkSSLConfig(QuantizerConfig):
    r"""
    Configuration of Chunk SSL (Tang and Tseng, arXiv 2509.15579), the encoder's fields being those of
    [`ConformerConfig`]. The defaults are `chunkssl-base`; [`ChunkSSLConfig.from_preset`] gives the published sizes.
    The paper's relative positions (Shaw et al. 2018) are rotary here: any attention kernel serves, and appended
    chunks reuse the positions of what they copy.

    Args:
        frame_stacking (`int`, defaults to 4): Consecutive 10 ms frames joined into one encoder frame (40 ms).
        chunk_size (`int`, defaults to 0): Encoder frames per chunk where a call names none. 0 is offline: one chunk
            without end, every frame sees the whole utterance.
        num_lookahead_chunks (`int`, defaults to 1): 1: a chunk sees the next one; 0: it does not. Pretraining always
            has the extended chunks, since they are what is predicted.
        left_context_chunks (`int`, *optional*): Chunks before its own that a frame sees; all, by default.
        chunk_durations_ms (`list[int]`): Durations that a pretraining step draws its chunk size from; those that would
            hold every utterance of its batch, and leave nothing to predict, are out of the draw if others are not.
        streaming_durations_ms (`list[int]`): Durations that a streaming fine-tuning step draws from.
        streaming_prob (`float`, defaults to 0.5): Share of fine-tuning steps that are streaming; the others are
            offline. The paper alternates; a draw needs no memory of the step before.
        label_kind (`str`, defaults to `"fsq"`): `"fsq"`: labels of a trained finite scalar quantizer;
            `"random_projection"`: those of projections and codebooks, random or learned, by the fields of
            [`QuantizerConfig`].
        loss_kind (`str`, defaults to `"group"`): `"group"`: one softmax per channel of the quantizer, losses added;
            `"full"`: one softmax over all combinations, for codebooks of up to 65,536 entries.
        fsq_levels (`list[int]`): Levels of each channel of the tokenizer.
        fsq_hidden_size (`int`, defaults to 512): Width of the tokenizer.
        fsq_num_hidden_layers (`int`, defaults to 12): Layers of the tokenizer's encoder.
    """

    model_type = "chunkssl"
    _remote_classes = {
        "AutoConfig": "configuration_chunkssl.ChunkSSLConfig",
        "AutoModel": "modeling_chunkssl.ChunkSSLModel",
        "AutoModelForPreTraining": "modeling_chunkssl.ChunkSSLForPreTraining",
        "AutoModelForCTC": "modeling_chunkssl.ChunkSSLForCTC",
        "AutoModelForRNNT": "modeling_chunkssl.ChunkSSLForRNNT",
        "AutoModelForTDT": "modeling_chunkssl.ChunkSSLForRNNT",  # what pipeline() asks for transducers
        "AutoModelForAudioClassification": "modeling_chunkssl.ChunkSSLForSequenceClassification",
        "AutoModelForAudioFrameClassification": "modeling_chunkssl.ChunkSSLForAudioFrameClassification",
    }
    _presets = _PRESETS

    frame_stacking: int = 4
    chunk_size: int = 0
    num_lookahead_chunks: int = 1
    left_context_chunks: int | None = None
    chunk_durations_ms: list[int] = dataclasses.field(default_factory=lambda: [640, 1280, 1920, 2560, 3200, 3840])
    streaming_durations_ms: list[int] = dataclasses.field(default_factory=lambda: [160, 320, 640, 960, 1280, 1600])
    streaming_prob: float | int = 0.5
    label_kind: str = "fsq"
    loss_kind: str = "group"
    fsq_levels: list[int] = dataclasses.field(default_factory=lambda: [5] * 5 + [3] * 7)
    fsq_hidden_size: int = 512
    fsq_num_hidden_layers: int = 12

    @property
    def label_sizes(self) -> list[int]:
        """Outputs of each softmax of the prediction head."""
        if self.label_kind == "random_projection":
            return [self.codebook_size] * self.num_codebooks
        return [math.prod(self.fsq_levels)] if self.loss_kind == "full" else list(self.fsq_levels)

    @property
    def unmasked_frame_weight(self) -> float:
        """Weight of an unmasked frame in the loss, relative to a masked one: so that `unmasked_loss_weight` is that of
        the means. Of two frames that are copied, one is masked, and three of its four forms are not.
        """
        return self.unmasked_loss_weight / 3

    def chunk_frames(self, duration_ms: int) -> int:
        """Encoder frames in a chunk of `duration_ms`.

        Raises:
            ValueError: the duration is not a positive whole number of frames.
        """
        # In whole samples: 1000 / frame_rate is not exactly 30 where 3 frames of 10 ms are stacked.
        frames, rest = divmod(duration_ms * SAMPLING_RATE, 1000 * self.inputs_to_logits_ratio)
        if frames < 1 or rest:
            raise ValueError(
                f"A chunk must last a whole number of encoder frames of {1000 / self.frame_rate:g} ms, got "
                f"{duration_ms} ms; {8000 / self.frame_rate:g} ms would do."
            )
        return frames

    def validate_chunks(self) -> None:
        """Refuse chunks that no pass can be cut into."""
        if self.chunk_size < 0:
            raise ValueError(f"chunk_size must be 0 (offline) or a number of encoder frames, got {self.chunk_size}.")
        if self.num_lookahead_chunks not in (0, 1):
            raise ValueError(f"num_lookahead_chunks must be 0 or 1, got {self.num_lookahead_chunks}.")
        if self.left_context_chunks is not None and self.left_context_chunks < 0:
            raise ValueError(f"left_context_chunks must be None (all) or at least 0, got {self.left_context_chunks}.")
        if self.attention_window is not None:
            raise ValueError("Chunk SSL bounds its attention by left_context_chunks; attention_window must be None.")
        for name in ("chunk_durations_ms", "streaming_durations_ms"):
            if not getattr(self, name):
                raise ValueError(f"{name} needs at least one duration in ms, got an empty list.")
            for duration_ms in getattr(self, name):
                self.chunk_frames(duration_ms)

    def validate_labels(self) -> None:
        """Refuse labels and losses that do not go together."""
        if self.label_kind not in ("fsq", "random_projection"):
            raise ValueError(f'label_kind must be "fsq" or "random_projection", got "{self.label_kind}".')
        if self.loss_kind not in ("group", "full"):
            raise ValueError(f'loss_kind must be "group" or "full", got "{self.loss_kind}".')
        if self.label_kind == "fsq" and (self.second_codebook_size or self.distillation_loss_weight):
            raise ValueError(
                'second_codebook_size and distillation_loss_weight need label_kind="random_projection"; the labels of '
                'label_kind="fsq" have no codebook.'
            )
        check_levels(self.fsq_levels)
        for name in ("fsq_hidden_size", "fsq_num_hidden_layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.loss_kind == "full" and max(self.label_sizes) > FULL_LOSS_LIMIT:
            raise ValueError(
                f'loss_kind="full" is one softmax over all {max(self.label_sizes):,} entries of the codebook; up to '
                f'{FULL_LOSS_LIMIT:,} are allowed. Use loss_kind="group" or fewer fsq_levels.'
            )


ChunkSSLConfig.register_for_auto_class()
