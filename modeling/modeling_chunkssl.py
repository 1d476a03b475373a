"""Chunk SSL: chunk-wise masked prediction, one encoder for streaming and offline.

Section numbers are those of Tang and Tseng, arXiv 2509.15579. Shape letters: B batch, F feature frames, T encoder
frames, C frames per chunk, L frames of a chunk layout, D hidden size, n masked frames, R label channels.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.utils import ModelOutput, can_return_tuple
from transformers.utils.generic import merge_with_config_defaults

from .cache import ConformerCache
from .configuration_chunkssl import ChunkSSLConfig
from .distilled_quantization import build_quantizer
from .label_statistics import LabelUse, distinct_counts, perplexity
from .layouts import ChunkLayout, StreamingLayout
from .masking import draw_chunk_mask
from .modeling_classification import ConformerForAudioFrameClassification, ConformerForSequenceClassification
from .modeling_conformer import (
    ConformerModel,
    ConformerModelOutput,
    ConformerPreTrainedModel,
)
from .modeling_ctc import ConformerForCTC
from .modeling_fsq import FSQModel, FSQTokenizer
from .modeling_pretraining import MaskedPredictionModel
from .modeling_rnnt import ConformerForRNNT
from .quantization import (
    FrameLabels,
    FrozenModule,
    RandomProjectionQuantizer,
    is_frozen_layer,
    reset_frozen_layer,
)

_ONLY_FOR_PRETRAINING = [
    *(r"^(second_)?quantizer\.", r"^\w+_use\.", r"^tokenizer\.", r"^(second_)?prediction_head\."),
    r"^mask_vector$",
]
_MOST_COUNTED_LABELS = 65_537  # a prime, so that folding mixes the channels of a tokenizer


@dataclass
class ChunkSSLForPreTrainingOutput(ModelOutput):
    """Loss and diagnostics of a pretraining step; all are 0-dim but the last three.

    Args:
        loss: sum over the label channels of the cross-entropies, mean over the masked frames, and `unmasked_loss`.
        num_masked_frames: masked frames in the batch, n: the weight of this batch in a mean over batches.
        accuracy: share of label channels that the best logit hits.
        frame_accuracy: share of masked frames whose channels are all hit.
        distinct_labels: share of the masked frames' labels that are different from each other.
        codebook_perplexity: exponential of the entropy of the labels' frequencies in the batch.
        unmasked_loss: cross-entropy at the frames that are not masked, as it is part of `loss`; `None` without.
        labels_used, label_perplexity, top_label_share, label_loudness: of the labels over many updates, in training;
            see [`LabelUse`].
        second_loss, second_accuracy, second_labels_used and so on: of the second label set, if there is one. Then the
            loss is the mean of both sets', and the other figures are of the first.
        distillation_loss: error of the similarities of the copy's quantized frames, in training with distillation.
        distillation_kmeans: mean squared difference between a feature of the projected frames and the copy's entries.
        chunk_duration_ms: duration of this step's chunks.
        logits: (n, sum of the channels' sizes) at the masked frames; at all real frames and their copies with
            `unmasked_loss_weight`, and at all of both where the model is compiled or exported in evaluation mode.
        hidden_states: (B, T, D) each, of the masked pass: the first chunk, and the partly masked copies of the others.
        attentions: of the masked pass, over the whole layout, with eager attention only.
    """

    loss: torch.Tensor | None = None
    num_masked_frames: torch.Tensor | None = None
    accuracy: torch.Tensor | None = None
    frame_accuracy: torch.Tensor | None = None
    distinct_labels: torch.Tensor | None = None
    codebook_perplexity: torch.Tensor | None = None
    unmasked_loss: torch.Tensor | None = None
    labels_used: torch.Tensor | None = None
    label_perplexity: torch.Tensor | None = None
    top_label_share: torch.Tensor | None = None
    label_loudness: torch.Tensor | None = None
    second_loss: torch.Tensor | None = None
    second_accuracy: torch.Tensor | None = None
    second_labels_used: torch.Tensor | None = None
    second_label_perplexity: torch.Tensor | None = None
    second_top_label_share: torch.Tensor | None = None
    second_label_loudness: torch.Tensor | None = None
    distillation_loss: torch.Tensor | None = None
    distillation_kmeans: torch.Tensor | None = None
    chunk_duration_ms: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class ChunkSSLPreTrainedModel(ConformerPreTrainedModel):
    """Loading and initial weights of the Chunk SSL models."""

    config_class = ChunkSSLConfig

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if is_frozen_layer(module):
            reset_frozen_layer(module)
            return
        super()._init_weights(module)
        if isinstance(module, (RandomProjectionQuantizer, LabelUse)):
            module.reset()
        elif isinstance(module, ChunkSSLForPreTraining):
            init.normal_(module.mask_vector, mean=0.0, std=self.config.initializer_range)


class ChunkSSLModel(ChunkSSLPreTrainedModel, ConformerModel):
    """The Chunk SSL encoder: offline, chunk by chunk in one pass, or one streaming step at a time."""

    _keys_to_ignore_on_load_unexpected = _ONLY_FOR_PRETRAINING

    @can_return_tuple
    @merge_with_config_defaults
    def forward(
        self,
        input_features: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        chunk_size: int | None = None,
        lookahead_features: torch.Tensor | None = None,
        lookahead_attention_mask: torch.Tensor | None = None,
        past_key_values: ConformerCache | None = None,
        use_cache: bool = False,
        **kwargs: Any,
    ) -> ConformerModelOutput:
        """Encode whole utterances or, with a cache, the next chunk of every stream.

        A whole utterance in chunks gives what its chunks give one by one with a cache.

        Args:
            input_features: (B, F, num_mel_bins), normalized log-mel frames of 10 ms: utterances, or one chunk each.
            attention_mask: (B, F), non-zero where a frame is real; real frames come first. All are, if absent. In a
                streaming step, padding ends a stream: what comes later in its row must be padding too.
            chunk_size: encoder frames per chunk of a whole utterance; 0 is offline; the config's if absent.
            lookahead_features: (B, F', num_mel_bins), the chunk after `input_features`, for a streaming step.
            lookahead_attention_mask: (B, F'), non-zero where a frame of the look-ahead is real.
            past_key_values: the cache that the step before returned, or an empty one; `cache` is the same. Absent,
                one is made that keeps `config.left_context_chunks` chunks.
            use_cache: whether this is a streaming step; true with `past_key_values`.

        Raises:
            ValueError: shapes that do not fit, a look-ahead without a cache, a cache of other streams, or a stream
                that goes on behind padding.
        """
        stacked, frame_mask = self.stack_frames(input_features, attention_mask)
        past_key_values = kwargs.pop("cache", past_key_values)  # the name since transformers 5.24
        if past_key_values is not None or use_cache:
            ahead = lookahead_features, lookahead_attention_mask
            return self.stream(stacked, frame_mask, *ahead, past_key_values, **kwargs)
        if lookahead_features is not None:
            raise ValueError(
                "lookahead_features belong to a streaming step: pass use_cache=True or past_key_values with them."
            )
        chunk_size = self.config.chunk_size if chunk_size is None else chunk_size
        projected = self.project(stacked)
        if chunk_size == 0:
            return self.encode(projected, self.whole_layout(stacked, frame_mask), frame_mask, **kwargs)
        layout = self.chunk_layout(stacked, frame_mask, chunk_size, bool(self.config.num_lookahead_chunks))
        return self.encode(layout.append_copies(projected), layout, frame_mask, **kwargs)

    def chunk_layout(
        self,
        stacked: torch.Tensor,
        frame_mask: torch.Tensor | None,
        chunk_size: int,
        lookahead: bool,
        keep_last: bool = True,
    ) -> ChunkLayout:
        """Cut a batch of whole utterances into chunks of `chunk_size` encoder frames."""
        return ChunkLayout(
            all_real(stacked) if frame_mask is None else frame_mask,
            chunk_size,
            lookahead,
            self.config.left_context_chunks,
            # The number of windows follows from the length, which an exported graph leaves open.
            dense=self.config._attn_implementation != "sdpa" or torch.compiler.is_exporting(),
            keep_last=keep_last,
            unpadded=frame_mask is None,
        )

    def fixed_cache(self, batch_size: int, left_context_frames: int) -> ConformerCache:
        """Make an empty cache that has its final size already, so that all streaming steps have the same shapes.

        An exported step needs this. Elsewhere a cache grows from nothing, which saves time at the start.

        Args:
            batch_size: streams in the batch.
            left_context_frames: encoder frames before its chunk that a frame sees, a whole number of chunks.
        """
        config, cache = self.config, ConformerCache(left_context_frames)
        cache.begin(batch_size, 0, self.device)
        cache.valid = cache.valid.new_zeros(batch_size, left_context_frames)
        cache.padded = True
        past = (batch_size, config.num_attention_heads, left_context_frames, config.head_dim)
        around = (batch_size, config.conv_kernel_size // 2, config.hidden_size)
        for layer_idx in range(config.num_hidden_layers):
            zeros = torch.zeros(past, dtype=self.dtype, device=self.device)
            cache.keys[layer_idx], cache.values[layer_idx] = zeros, zeros.clone()
            cache.convolution_inputs[layer_idx] = torch.zeros(around, dtype=self.dtype, device=self.device)
        return cache

    def stream(
        self,
        chunk: torch.Tensor,
        chunk_mask: torch.Tensor | None,
        lookahead: torch.Tensor | None,
        lookahead_mask: torch.Tensor | None,
        cache: ConformerCache | None,
        **kwargs: Any,
    ) -> ConformerModelOutput:
        """Run one streaming step: stacked frames of a chunk (B, C, stacked_size), feature frames of its look-ahead."""
        batch_size, chunk_size = chunk.shape[:2]
        if cache is None:
            past = self.config.left_context_chunks
            cache = ConformerCache(None if past is None else past * chunk_size)
        frames, frame_mask = chunk, chunk_mask
        if lookahead is not None:
            ahead, ahead_mask = self.stack_frames(lookahead, lookahead_mask)
            if ahead.shape[0] != batch_size:
                raise ValueError(
                    f"lookahead_features must bring one chunk for each of the {batch_size} streams of input_features, "
                    f"got {ahead.shape[0]}; pad and mask the look-ahead of a stream that has ended."
                )
            frames = torch.cat([chunk, ahead], dim=1)
            if chunk_mask is not None or ahead_mask is not None:
                masks = zip((chunk_mask, ahead_mask), (chunk, ahead), strict=True)
                frame_mask = torch.cat([all_real(part) if mask is None else mask for mask, part in masks], dim=1)
        cache.begin(batch_size, frames.shape[1], frames.device)
        with_weights = self.config._attn_implementation == "eager"
        layout = StreamingLayout(cache, chunk_size, frames.shape[1], frame_mask, with_weights)
        outputs = self.encode(self.project(frames), layout, chunk_mask, **kwargs)
        cache.advance(chunk_size, None if layout.frame_mask is None else layout.frame_mask[:, :chunk_size])
        outputs.cache = cache
        return outputs


class ChunkSSLFineTuningModel(ChunkSSLPreTrainedModel):
    """What the heads share: one set of weights for every chunk size and for offline.

    In training, a step whose call names no chunk size is streaming with probability `streaming_prob`, with a duration
    drawn from `streaming_durations_ms`, and offline otherwise.
    """

    encoder_class = ChunkSSLModel
    _keys_to_ignore_on_load_unexpected = _ONLY_FOR_PRETRAINING

    def forward(
        self,
        input_features: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        chunk_size: int | None = None,
        **kwargs: Any,
    ) -> ModelOutput:
        """Compute what the head computes, and its loss where labels are given.

        Args:
            labels: as the head takes them; (B, length) token ids, padded with -100, where it writes text.
            chunk_size: encoder frames per chunk, as in [`ChunkSSLModel`], and so are all further arguments.
        """
        if self.training and chunk_size is None:
            chunk_size = self.draw_chunk_size()
        return super().forward(input_features, attention_mask, labels, chunk_size=chunk_size, **kwargs)

    def draw_chunk_size(self) -> int:
        """Draw the chunk size of a fine-tuning step, in encoder frames; 0 is offline."""
        if torch.rand(()) >= self.config.streaming_prob:
            return 0
        return self.config.chunk_frames(draw(self.config.streaming_durations_ms))


class ChunkSSLForCTC(ChunkSSLFineTuningModel, ConformerForCTC):
    """The Chunk SSL encoder with a CTC head."""


class ChunkSSLForRNNT(ChunkSSLFineTuningModel, ConformerForRNNT):
    """The Chunk SSL encoder with a transducer head, as Tang and Tseng fine-tune theirs (section 4.1)."""


class ChunkSSLForSequenceClassification(ChunkSSLFineTuningModel, ConformerForSequenceClassification):
    """The Chunk SSL encoder with a head that names the class of an utterance."""


class ChunkSSLForAudioFrameClassification(ChunkSSLFineTuningModel, ConformerForAudioFrameClassification):
    """The Chunk SSL encoder with a head that names the class of every frame, live too."""


class ChunkSSLForPreTraining(ChunkSSLPreTrainedModel, MaskedPredictionModel):
    """Chunk SSL pretraining (section 3): half of every extended chunk is masked, and its labels are predicted from the
    rest of that chunk and from all chunks before, which are clean.

    The labels are the finite scalar quantization of the unmasked features by a tokenizer that was trained before and
    is frozen here, or those of BEST-RQ. A masked frame is replaced by a learned vector (the paper does not say by
    what). Every step draws its chunk duration.

    With `unmasked_loss_weight` the labels of the frames that are not masked are predicted as well: of the clean
    chunks, and of the rest of their copies. The paper predicts masked frames alone.
    """

    encoder: ChunkSSLModel
    # What the config of a tokenizer and of the model around it must share.
    tokenizer_fields = ("num_mel_bins", "frame_stacking", "fsq_levels", "fsq_hidden_size", "fsq_num_hidden_layers")

    def __init__(self, config: ChunkSSLConfig):
        super().__init__(config)
        self.encoder = ChunkSSLModel(config)
        self.mask_vector = nn.Parameter(torch.empty(config.hidden_size))
        if config.label_kind == "fsq":
            self.tokenizer: FrozenModule[FSQTokenizer] = FrozenModule(FSQTokenizer(config))
            self.label_use = LabelUse(1, min(math.prod(config.fsq_levels), _MOST_COUNTED_LABELS))
        else:
            self.quantizer = build_quantizer(config)
            self.label_use = LabelUse(config.num_codebooks, config.codebook_size)
        self.prediction_head = nn.Linear(config.hidden_size, sum(config.label_sizes))
        if config.second_codebook_size:
            self.build_second_labels()
        self.keep_labels_in_float32()
        self.post_init()

    def load_tokenizer(self, fsq: FSQModel) -> None:
        """Take over the trained tokenizer of an `FSQModel`.

        Raises:
            ValueError: the two were built with other sizes, or this model's labels are of another kind.
        """
        if self.config.label_kind != "fsq":
            raise ValueError(f'A tokenizer needs label_kind="fsq", this model has "{self.config.label_kind}".')
        wrong = [name for name in self.tokenizer_fields if getattr(fsq.config, name) != getattr(self.config, name)]
        if wrong:
            raise ValueError(
                "The tokenizer does not fit: "
                + ", ".join(f"{n} is {getattr(fsq.config, n)} there and {getattr(self.config, n)} here" for n in wrong)
                + ". Build this model's config with the tokenizer's values."
            )
        self.tokenizer.module.load_state_dict(fsq.tokenizer.state_dict())

    @can_return_tuple
    def forward(
        self,
        input_features: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        mask_time_indices: torch.Tensor | None = None,
        chunk_size: int | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> ChunkSSLForPreTrainingOutput:
        """One pretraining step's loss and diagnostics.

        In training, chunks and masks are drawn anew at every call. In evaluation masks are a function of the
        utterance, and the chunk size is one of the number of frames.

        Args:
            input_features: (B, F, num_mel_bins), normalized log-mel frames of 10 ms.
            attention_mask: (B, F), non-zero where a frame is real; real frames come first. All are, if absent.
            mask_time_indices: (B, T) bool, the encoder frames whose copies to mask; drawn here if absent. The first
                chunk has no copy and padding is never masked.
            chunk_size: encoder frames per chunk; drawn from `chunk_durations_ms` if absent.
            output_hidden_states, output_attentions: whether to return those of the masked pass.

        Raises:
            ValueError: a tensor has another shape than these.
        """
        stacked, frame_mask = self.encoder.stack_frames(input_features, attention_mask)
        frame_mask = self.real_frames(stacked, frame_mask)
        if chunk_size is None:
            chunk_size = self.choose_chunk_size(stacked.shape[1])
        if mask_time_indices is None:
            masked = draw_chunk_mask(frame_mask, chunk_size, self.fixed_draws(stacked))
        else:
            masked = self.check_mask(mask_time_indices, frame_mask)
        if self.config.label_kind == "random_projection":
            label_frames = self.label_frames(stacked, frame_mask)
            self.teach(self.quantizer, label_frames, frame_mask)

        # One chunk without end, where a single one holds every utterance.
        size = min(chunk_size, stacked.shape[1])
        layout = self.encoder.chunk_layout(stacked, frame_mask, size, lookahead=True, keep_last=False)
        # Only copies are masked.
        replaced = F.pad(layout.append_copies(masked[..., None])[:, layout.base_length :, 0], (layout.base_length, 0))
        clean = layout.frame_mask & ~replaced if self.config.unmasked_loss_weight else torch.zeros_like(replaced)
        rows = self.predicted_rows(replaced | clean)  # (n,), among the B * L
        labels = layout.append_copies(self.label(stacked, frame_mask)).flatten(0, 1)[rows]  # (n, R)
        frames = layout.append_copies(self.encoder.project(stacked))
        frames = torch.where(replaced[..., None], self.mask_vector.to(frames.dtype), frames)
        wants = self.wants(output_hidden_states, output_attentions)
        block_outputs: dict[int, torch.Tensor] = {}
        kept = block_outputs if self.distills else None
        masked_pass = self.encoder.record_layers(frames, layout=layout, block_outputs=kept, return_dict=True, **wants)
        encoded = masked_pass.last_hidden_state.flatten(0, 1)[rows]
        weights, others = replaced.flatten()[rows].float(), clean.flatten()[rows].float()
        predictions = self.predict(self.prediction_head(encoded), labels, weights, others)
        loud = layout.append_copies(stacked).flatten(0, 1)[rows]
        if self.config.second_codebook_size:
            self.teach(self.second_quantizer, label_frames, frame_mask)
            vectors = layout.append_copies(label_frames).flatten(0, 1)[rows]
            second_terms, second = self.predict_second(encoded, vectors, loud, weights)
            counted = weights + self.config.unmasked_frame_weight * others
            second_loss = (second_terms.sum(-1) @ counted) / weights.sum().clamp_min(1)
            predictions |= {"loss": (predictions["loss"] + second_loss) / 2, **second}
        if self.distills:
            outputs = {number: layout.base_frames(block) for number, block in block_outputs.items()}
            masked[:, :chunk_size] = False  # the first chunk has no copy
            distillation_loss, distillation = self.distill(label_frames, outputs, masked, frame_mask)
            predictions |= {"loss": predictions["loss"] + distillation_loss, **distillation}
        states = masked_pass.hidden_states
        return ChunkSSLForPreTrainingOutput(
            **predictions,
            **self.describe_use(self.label_use, self.counted_labels(labels), loud, weights),
            chunk_duration_ms=torch.tensor(1000.0 * chunk_size / self.config.frame_rate),
            hidden_states=states and tuple(h if h is None else layout.base_frames(h) for h in states),
            attentions=masked_pass.attentions,
        )

    def choose_chunk_size(self, num_frames: int) -> int:
        """Chunk size of a step on utterances of up to `num_frames` frames: a draw in training.

        Only durations shorter than the longest utterance are drawn, because an utterance that fits into one chunk has
        nothing to predict. If no duration is short enough, the step masks nothing.
        """
        sizes = self.chunk_sizes(num_frames)
        return draw(sizes) if self.training else sizes[num_frames % len(sizes)]

    def chunk_sizes(self, num_frames: int) -> list[int]:
        """The chunk sizes, in encoder frames, that a step on utterances of up to `num_frames` frames draws from."""
        sizes = [self.config.chunk_frames(duration) for duration in self.config.chunk_durations_ms]
        return [size for size in sizes if size < num_frames] or sizes

    def sample_mask(self, frame_mask: torch.Tensor, generator: torch.Generator | None = None) -> dict[str, Any]:
        """Chunks and masks of a training step, as the arguments `mask_time_indices` and `chunk_size` of `forward`."""
        chunk_size = draw(self.chunk_sizes(frame_mask.shape[1]), generator)
        masked = draw_chunk_mask(frame_mask, chunk_size, generator)
        return {"mask_time_indices": masked, "chunk_size": chunk_size}

    @torch.no_grad()
    def make_labels(
        self,
        input_features: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        seeded_only: bool = False,
    ) -> tuple[dict[str, FrameLabels], torch.Tensor]:
        """The labels of every frame of a batch; those of a tokenizer as its channels."""
        stacked, frame_mask = self.encoder.stack_frames(input_features, attention_mask)
        frame_mask = self.real_frames(stacked, frame_mask)
        made: dict[str, FrameLabels] = {}
        if self.config.label_kind == "fsq":
            if not seeded_only:
                digits = self.tokenizer(stacked, frame_mask)
                made["fsq"] = FrameLabels(digits, list(self.config.fsq_levels), are_channels=True)
            return made, frame_mask
        if not (seeded_only and self.quantizer.learns):
            made["random_projection"] = FrameLabels(self.label(stacked, frame_mask), self.config.label_sizes)
        if self.config.second_codebook_size and not (seeded_only and self.second_quantizer.learns):
            made["second"] = self.second_labels(stacked, frame_mask)
        return made, frame_mask

    def label(self, stacked: torch.Tensor, frame_mask: torch.Tensor) -> torch.Tensor:
        """Labels of the unmasked frames: (B, T, stacked_size) -> (B, T, R) int64, below `label_sizes`."""
        if self.config.label_kind == "random_projection":
            frames = self.label_frames(stacked, frame_mask)
            return self.quantizer.labels(frames.flatten(0, 1)).unflatten(0, stacked.shape[:2])
        digits = self.tokenizer(stacked, frame_mask)
        if self.config.loss_kind == "full":
            return self.tokenizer.module.quantizer.indices_from_digits(digits)[..., None]
        return digits

    def counted_labels(self, labels: torch.Tensor) -> torch.Tensor:
        """Labels (n, R) as their statistics count them: the channels of a tokenizer as one label, (n, 1).

        Codebooks of millions of entries are folded into `_MOST_COUNTED_LABELS`: more entries than a window has frames.
        """
        if self.config.label_kind == "random_projection":
            return labels
        if self.config.loss_kind == "group":
            labels = self.tokenizer.module.quantizer.indices_from_digits(labels)[:, None]
        return labels % self.label_use.counts.shape[1]

    def predict(
        self, logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor, others: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Group masked prediction loss (section 3.3) and diagnostics, one small softmax per channel.

        Args:
            logits: (n, sum of the channels' sizes).
            labels: (n, R) int64.
            weights: (n,), 1 where a frame is masked and 0 where it is not.
            others: (n,), 1 where a frame counts for the loss on frames that are not masked.
        """
        count = weights.sum()
        terms = count.clamp_min(1)
        channels = list(zip(logits.split(self.config.label_sizes, dim=-1), labels.unbind(-1), strict=True))
        losses = torch.stack([F.cross_entropy(part.float(), label, reduction="none") for part, label in channels])
        loss = (losses @ weights).sum() / terms
        unmasked = {}
        if self.config.unmasked_loss_weight:
            unmasked_loss = self.config.unmasked_frame_weight * (losses @ others).sum() / terms
            loss = loss + unmasked_loss
            unmasked["unmasked_loss"] = unmasked_loss.detach()
        hits = torch.stack([channel.argmax(-1) == label for channel, label in channels], dim=-1)
        occurrences = distinct_counts(labels, weights)
        return {
            "loss": loss,
            **unmasked,
            "num_masked_frames": count.long(),
            "accuracy": (hits * weights[:, None]).sum() / (terms * hits.shape[1]),
            "frame_accuracy": (hits.all(-1) * weights).sum() / terms,
            "distinct_labels": (occurrences > 0).sum() / terms,
            "codebook_perplexity": perplexity(occurrences),
            "logits": logits,
        }


def all_real(frames: torch.Tensor) -> torch.Tensor:
    """Make a mask for frames (B, T, D) without padding: (B, T) bool."""
    return torch.ones(frames.shape[:2], dtype=torch.bool, device=frames.device)


def draw(choices: list[int], generator: torch.Generator | None = None) -> int:
    """One of `choices`, by torch's default generator on the CPU if no other is given."""
    device = "cpu" if generator is None else generator.device
    return choices[int(torch.randint(len(choices), (), generator=generator, device=device))]


ChunkSSLModel.register_for_auto_class("AutoModel")
ChunkSSLForPreTraining.register_for_auto_class("AutoModelForPreTraining")
ChunkSSLForCTC.register_for_auto_class("AutoModelForCTC")
ChunkSSLForRNNT.register_for_auto_class("AutoModelForRNNT")
ChunkSSLForSequenceClassification.register_for_auto_class("AutoModelForAudioClassification")
ChunkSSLForAudioFrameClassification.register_for_auto_class("AutoModelForAudioFrameClassification")
