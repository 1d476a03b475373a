"""BiRQ: masked prediction of anchor labels (BEST-RQ) and of enhanced labels that the encoder itself makes.

Equations are those of Jiang et al., arXiv 2509.15430. Shape letters: B batch, F feature frames, T encoder frames,
D hidden size, n masked frames, C codebooks, N entries.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import ModelOutput, can_return_tuple

from .configuration_birq import BiRQConfig
from .distilled_quantization import build_quantizer
from .enhanced_labels import BlockQuantizer, LabelMaker
from .label_statistics import LabelUse, label_statistics, named
from .masking import FixedDraws, draw_span_mask
from .modeling_classification import ConformerForAudioFrameClassification, ConformerForSequenceClassification
from .modeling_conformer import ConformerModel, ConformerPreTrainedModel
from .modeling_ctc import ConformerForCTC
from .modeling_pretraining import MaskedPredictionModel
from .modeling_rnnt import ConformerForRNNT
from .modeling_speech_ssl import normalize_over_frames
from .quantization import FrameLabels, RandomProjectionQuantizer

_ONLY_FOR_PRETRAINING = [
    r"^(second_)?quantizer\.",
    r"^\w+_use\.",
    r"^(second_)?prediction_head\.",
    r"^label_maker\.",
]


@dataclass
class BiRQForPreTrainingOutput(ModelOutput):
    """Loss and diagnostics of a pretraining step; all are 0-dim but the last three.

    Args:
        loss: w1 * enhanced_loss + w2 * anchor_loss, mean over the masked frames.
        num_masked_frames: masked frames in the batch, n: the weight of this batch in a mean over batches.
        anchor_loss: G, cross-entropy against the anchor labels.
        enhanced_loss: F, cross-entropy against the enhanced labels; `None` in BEST-RQ mode.
        accuracy: share of anchor labels that the best logit hits.
        codebook_usage: share of the entries that the batch's anchor labels use.
        codebook_perplexity: exponential of the entropy of the anchor labels' frequencies.
        enhanced_accuracy: share of the enhanced labels that the best logit hits, where they are clusters.
        enhanced_perplexity: the same of the enhanced labels' mean distribution.
        enhanced_confidence: mean of the largest weight in an enhanced label.
        unmasked_loss: cross-entropy against the anchor labels of the frames that are not masked, as it is added to
            `anchor_loss`; `None` without.
        anchor_labels_used, anchor_label_perplexity, anchor_top_label_share, anchor_label_loudness: of the anchor
            labels over many updates, in training; see [`LabelUse`].
        enhanced_labels_used and so on: the same of the likeliest enhanced labels.
        second_loss, second_accuracy, second_labels_used and so on: of the second label set, if there is one. Then the
            losses against anchor labels are the means of both sets, and the other figures are of the first.
        distillation_loss: error of the similarities of the copy's quantized frames, in training with distillation.
        distillation_kmeans: mean squared difference between a feature of the projected frames and the copy's entries.
        logits: (n, C, N) at the masked frames, in the order of `mask_time_indices`; at all real frames with
            `unmasked_loss_weight`, and at all B * T where the model is compiled or exported in evaluation mode.
        hidden_states, attentions: of the masked pass, as the encoder returns them.
    """

    loss: torch.Tensor | None = None
    num_masked_frames: torch.Tensor | None = None
    anchor_loss: torch.Tensor | None = None
    enhanced_loss: torch.Tensor | None = None
    accuracy: torch.Tensor | None = None
    codebook_usage: torch.Tensor | None = None
    codebook_perplexity: torch.Tensor | None = None
    enhanced_accuracy: torch.Tensor | None = None
    enhanced_perplexity: torch.Tensor | None = None
    enhanced_confidence: torch.Tensor | None = None
    unmasked_loss: torch.Tensor | None = None
    anchor_labels_used: torch.Tensor | None = None
    anchor_label_perplexity: torch.Tensor | None = None
    anchor_top_label_share: torch.Tensor | None = None
    anchor_label_loudness: torch.Tensor | None = None
    enhanced_labels_used: torch.Tensor | None = None
    enhanced_label_perplexity: torch.Tensor | None = None
    enhanced_top_label_share: torch.Tensor | None = None
    enhanced_label_loudness: torch.Tensor | None = None
    second_loss: torch.Tensor | None = None
    second_accuracy: torch.Tensor | None = None
    second_labels_used: torch.Tensor | None = None
    second_label_perplexity: torch.Tensor | None = None
    second_top_label_share: torch.Tensor | None = None
    second_label_loudness: torch.Tensor | None = None
    distillation_loss: torch.Tensor | None = None
    distillation_kmeans: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class BiRQPreTrainedModel(ConformerPreTrainedModel):
    """Loading and initial weights of the BiRQ models."""

    config_class = BiRQConfig

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, (RandomProjectionQuantizer, LabelUse, LabelMaker)):
            module.reset()


class BiRQModel(BiRQPreTrainedModel, ConformerModel):
    """The BiRQ encoder: (B, F, num_mel_bins) -> (B, T, D)."""

    _keys_to_ignore_on_load_unexpected = _ONLY_FOR_PRETRAINING


class BiRQForCTC(BiRQPreTrainedModel, ConformerForCTC):
    """The BiRQ encoder with a CTC head for speech recognition."""

    encoder_class = BiRQModel
    _keys_to_ignore_on_load_unexpected = _ONLY_FOR_PRETRAINING


class BiRQForRNNT(BiRQPreTrainedModel, ConformerForRNNT):
    """The BiRQ encoder with a transducer head for speech recognition."""

    encoder_class = BiRQModel
    _keys_to_ignore_on_load_unexpected = _ONLY_FOR_PRETRAINING


class BiRQForSequenceClassification(BiRQPreTrainedModel, ConformerForSequenceClassification):
    """The BiRQ encoder with a head that names the class of an utterance."""

    encoder_class = BiRQModel
    _keys_to_ignore_on_load_unexpected = _ONLY_FOR_PRETRAINING


class BiRQForAudioFrameClassification(BiRQPreTrainedModel, ConformerForAudioFrameClassification):
    """The BiRQ encoder with a head that names the class of every frame."""

    encoder_class = BiRQModel
    _keys_to_ignore_on_load_unexpected = _ONLY_FOR_PRETRAINING


class BiRQForPreTraining(BiRQPreTrainedModel, MaskedPredictionModel):
    """BiRQ pretraining; with `enhanced_loss_weight = 0` exactly BEST-RQ (Chiu et al., arXiv 2202.01855).

    The anchor label of a frame is the codebook entry nearest to a random projection of its unmasked features. The
    enhanced label is a Gumbel-softmax over minus the squared distances between the entries and another random
    projection of block k's normalized output for the unmasked utterance. Gradients flow through the enhanced label
    into blocks 1..k unless `detach_enhanced_labels` is set. One linear head per codebook predicts both kinds at the
    masked frames.

    The paper does not say over what block k's output is normalized. Here each feature is, over the frames of its
    utterance, as the input of the anchor labels is over the corpus. The labels' own gradient rewards labels that are
    easy to predict; where block k leaves its output normalized over features alone, it found one label for all frames
    within 100 updates on synthetic speech. Normalized over frames it takes longer: within 300 updates the labels have
    a perplexity of 2 to 4 of 1,024, because block k goes flat; see docs/LOG.md. `enhanced_label_kind="clusters"` makes
    labels that stay alive: the nearest of entries that begin as means of block k's output by anchor label and then
    follow it as in k-means, without a gradient.

    A second label set and the distillation of the first are those of Xu et al., arXiv 2606.30671: see
    [`QuantizerConfig`].
    """

    def __init__(self, config: BiRQConfig):
        super().__init__(config)
        self.encoder = BiRQModel(config)
        self.quantizer = build_quantizer(config, soft_input_dim=config.hidden_size)
        self.anchor_use = LabelUse(config.num_codebooks, config.codebook_size)
        if config.enhanced_loss_weight:
            self.enhanced_use = LabelUse(config.num_codebooks, config.codebook_size)
        self.label_maker = LabelMaker(config, BiRQModel) if config.has_label_maker else None
        self.prediction_head = nn.Linear(config.hidden_size, config.num_codebooks * config.codebook_size)
        if config.second_codebook_size:
            self.build_second_labels()
        self.keep_labels_in_float32()
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_features: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        mask_time_indices: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> BiRQForPreTrainingOutput:
        """One pretraining step's loss and diagnostics.

        In training, masks and noise are drawn anew at every call; in evaluation they are a function of the utterance.

        Args:
            input_features: (B, F, num_mel_bins), normalized log-mel frames of 10 ms.
            attention_mask: (B, F), non-zero where a frame is real; real frames come first. All are, if absent.
            mask_time_indices: (B, T) bool, the encoder frames to mask; drawn here if absent. Padding is never masked.
            output_hidden_states, output_attentions: whether to return those of the masked pass.

        Raises:
            ValueError: a tensor has another shape than these.
        """
        stacked, frame_mask = self.encoder.stack_frames(input_features, attention_mask)
        draws, real = self.fixed_draws(stacked), self.real_frames(stacked, frame_mask)
        masked = self.masked_frames(mask_time_indices, real, draws)
        frames = self.label_frames(stacked, frame_mask)
        self.teach(self.quantizer, frames, real)
        self.begin_enhanced_labels()
        rows = self.predicted_rows(real if self.config.unmasked_loss_weight else masked)  # (n,), among the B * T
        weights = masked.flatten()[rows].float()  # (n,), 1 where a frame is masked
        anchors = self.quantizer.labels(frames.flatten(0, 1)[rows])  # (n, C)
        wants = self.wants(output_hidden_states, output_attentions)
        masked_input = self.replace_by_noise(stacked, masked, draws)
        block_outputs: dict[int, torch.Tensor] = {}
        masked_pass, label_states = self.encode(stacked, masked_input, frame_mask, wants, block_outputs)
        assert masked_pass.last_hidden_state is not None
        encoded = masked_pass.last_hidden_state.flatten(0, 1)[rows]
        logits = self.prediction_head(encoded).view(*anchors.shape, self.config.codebook_size)  # (n, C, N)

        log_probs = F.log_softmax(logits, dim=-1, dtype=torch.float32)
        count = masked.sum()
        terms = count.clamp_min(1) * self.config.num_codebooks
        anchor_terms = -log_probs.gather(-1, anchors[..., None])[..., 0]  # (n, C)
        hits = (logits.argmax(-1) == anchors) * weights[:, None]
        diagnostics = label_statistics(anchors, self.config.codebook_size, weights)
        loud = stacked.flatten(0, 1)[rows]
        diagnostics |= named("anchor", self.describe_use(self.anchor_use, anchors, loud, weights))
        if self.config.second_codebook_size:
            self.teach(self.second_quantizer, frames, real)
            second_terms, second = self.predict_second(encoded, frames.flatten(0, 1)[rows], loud, weights)
            anchor_terms, diagnostics = (anchor_terms + second_terms) / 2, diagnostics | second
        anchor_loss = (anchor_terms * weights[:, None]).sum() / terms
        loss = self.config.anchor_loss_weight * anchor_loss
        if self.config.unmasked_loss_weight:
            others = (real & ~masked).flatten()[rows].float() * self.config.unmasked_frame_weight
            unmasked_loss = (anchor_terms * others[:, None]).sum() / terms
            loss = loss + self.config.anchor_loss_weight * unmasked_loss
            diagnostics["unmasked_loss"] = unmasked_loss.detach()
        if label_states is not None:
            states = normalize_over_frames(label_states, frame_mask).flatten(0, 1)[rows]
            if self.clusters is not None and self.observes:
                self.clusters.observe(states, real.flatten()[rows].float(), anchors)
            if self.label_maker is None or self.label_maker.is_ready:
                uniform = None if draws is None else draws.uniform_rows(rows, logits.shape)
                enhanced_terms, described = self.enhanced_terms(states, log_probs, weights, uniform)
                enhanced_loss = (enhanced_terms * weights[:, None]).sum() / terms
                loss = loss + self.config.enhanced_loss_weight * enhanced_loss
                use = self.describe_use(self.enhanced_use, self.likeliest(states), loud, weights)
                diagnostics |= {"enhanced_loss": enhanced_loss.detach(), **described, **named("enhanced", use)}
        if self.distills:
            distillation_loss, distillation = self.distill(frames, block_outputs, masked, real)
            loss, diagnostics = loss + distillation_loss, diagnostics | distillation
        return BiRQForPreTrainingOutput(
            loss=loss,
            num_masked_frames=count,
            anchor_loss=anchor_loss.detach(),
            accuracy=hits.sum() / terms,
            logits=logits,
            hidden_states=masked_pass.hidden_states,
            attentions=masked_pass.attentions,
            **diagnostics,
        )

    @torch.no_grad()
    def make_labels(
        self,
        input_features: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        seeded_only: bool = False,
    ) -> tuple[dict[str, FrameLabels], torch.Tensor]:
        """Anchor labels, those of the second set if there is one, and, unless this is BEST-RQ, the likeliest enhanced
        labels, of every frame of a batch.
        """
        stacked, frame_mask = self.encoder.stack_frames(input_features, attention_mask)
        learned = seeded_only and self.quantizer.learns
        made = {} if learned else {"anchor": self.anchor_labels(stacked, frame_mask)}
        if self.config.second_codebook_size and not (seeded_only and self.second_quantizer.learns):
            made["second"] = self.second_labels(stacked, frame_mask)
        if self.config.enhanced_loss_weight and not seeded_only:
            states = self.label_states(stacked, frame_mask)
            made["enhanced"] = self.hard_enhanced_labels(states, frame_mask)
        return made, self.real_frames(stacked, frame_mask)

    @torch.no_grad()
    def anchor_labels(self, stacked: torch.Tensor, frame_mask: torch.Tensor | None) -> FrameLabels:
        """Anchor labels of every frame: (B, T, stacked_size), (B, T) bool -> ids (B, T, C)."""
        frames = self.label_frames(stacked, frame_mask).flatten(0, 1)
        ids = self.quantizer.labels(frames).unflatten(0, stacked.shape[:2])
        return FrameLabels(ids, [self.config.codebook_size] * self.config.num_codebooks)

    @torch.no_grad()
    def hard_enhanced_labels(self, label_states: torch.Tensor, frame_mask: torch.Tensor | None) -> FrameLabels:
        """The likeliest enhanced label of every frame, without noise: a block's output (B, T, D) -> ids (B, T, C)."""
        ids = self.likeliest(normalize_over_frames(label_states, frame_mask).flatten(0, 1))
        shape, sizes = label_states.shape[:2], [self.config.codebook_size] * self.config.num_codebooks
        return FrameLabels(ids.unflatten(0, shape), sizes)

    def masked_frames(
        self, mask_time_indices: torch.Tensor | None, real: torch.Tensor, draws: FixedDraws | None
    ) -> torch.Tensor:
        """The frames that a caller masks, or a draw: (B, T) bool."""
        if mask_time_indices is not None:
            return self.check_mask(mask_time_indices, real)
        return draw_span_mask(real, self.config.mask_start_prob, self.config.mask_length, draws)

    def sample_mask(self, frame_mask: torch.Tensor, generator: torch.Generator | None = None) -> dict[str, Any]:
        """Spans of `mask_length` frames, as the argument `mask_time_indices` of `forward`."""
        config = self.config
        masked = draw_span_mask(frame_mask, config.mask_start_prob, config.mask_length, generator)
        return {"mask_time_indices": masked}

    def replace_by_noise(
        self, stacked: torch.Tensor, masked: torch.Tensor, draws: FixedDraws | None = None
    ) -> torch.Tensor:
        """The masked input: noise from N(0, mask_noise_std^2) in the masked frames."""
        noise = torch.randn_like(stacked) if draws is None else draws.normal(stacked.shape).to(stacked.dtype)
        return torch.where(masked[..., None], noise * self.config.mask_noise_std, stacked)

    def encode(
        self,
        clean: torch.Tensor,
        masked: torch.Tensor,
        frame_mask: torch.Tensor | None,
        wants: dict[str, bool],
        block_outputs: dict[int, torch.Tensor],
    ) -> tuple[BaseModelOutput, torch.Tensor | None]:
        """Encoder output of the masked input and block k's output for the clean one (`None` in BEST-RQ mode).

        If a codebook is distilled, `block_outputs` gets the blocks' outputs of the masked input, by number.
        """
        encoder, k = self.encoder, self.config.enhanced_label_layer
        kept = block_outputs if self.distills else None
        needed = self.config.enhanced_loss_weight > 0
        if self.label_maker is not None and self.label_maker.num_lessons < 1:
            needed = False  # it is too early
        apart = self.config.detaches_labels or any(wants.values())
        if not needed or apart:
            # The masked pass comes first: autocast keeps its casts of the weights, and those must carry gradients.
            masked_pass = encoder.record_layers(
                encoder.project(masked), frame_mask=frame_mask, block_outputs=kept, return_dict=True, **wants
            )
            if not needed:
                return masked_pass, None
            with torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.detaches_labels):
                return masked_pass, self.label_states(clean, frame_mask)
        both_masks = None if frame_mask is None else frame_mask.repeat(2, 1)
        both = encoder.run_layers(encoder.project(torch.cat([masked, clean])), both_masks, stop=k, block_outputs=kept)
        block_outputs.update({number: states.chunk(2)[0] for number, states in block_outputs.items()})
        hidden_states, label_states = both.chunk(2)
        encoded = encoder.run_layers(hidden_states, frame_mask, start=k, block_outputs=kept)
        return BaseModelOutput(last_hidden_state=encoded), label_states

    def begin_enhanced_labels(self) -> None:
        """Let the maker of the enhanced labels, if there is one, know of an update that begins."""
        if self.label_maker is not None and self.observes:
            self.update_label_maker(self.label_maker)

    @torch.compiler.disable
    def update_label_maker(self, label_maker: LabelMaker) -> None:
        """What is due where an update begins."""
        if self.begins_update():
            label_maker.update(self.encoder)

    def label_states(self, clean: torch.Tensor, frame_mask: torch.Tensor | None) -> torch.Tensor:
        """Block k's output for the unmasked frames, by the encoder or its average: (B, T, I) -> (B, T, D)."""
        maker = self.label_maker
        if maker is not None and maker.average is not None and maker.num_lessons > 0:
            output: torch.Tensor = maker.average(clean, frame_mask)
            return output
        return self.encoder.run_layers(self.encoder.project(clean), frame_mask, stop=self.config.enhanced_label_layer)

    @property
    def clusters(self) -> BlockQuantizer | None:
        """The codebook that the enhanced labels have for themselves, if they have one."""
        return None if self.label_maker is None else self.label_maker.clusters

    def likeliest(self, states: torch.Tensor) -> torch.Tensor:
        """Hard enhanced labels of block k's normalized output: (n, D) -> (n, C) int64."""
        return self.quantizer.likeliest(states) if self.clusters is None else self.clusters.labels(states)

    def enhanced_terms(
        self, states: torch.Tensor, log_probs: torch.Tensor, weights: torch.Tensor, uniform: torch.Tensor | None
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Cross-entropy of each frame against its enhanced label, (n, C), and statistics of the labels.

        Args:
            states: (n, D), block k's normalized output.
            log_probs: (n, C, N), the prediction.
            weights: (n,), 1 where a frame is masked.
            uniform: see `enhanced_labels`.
        """
        if self.clusters is not None:
            ids = self.clusters.labels(states)
            hits = ((log_probs.argmax(-1) == ids).float().mean(-1) * weights).sum() / weights.sum().clamp_min(1)
            return -log_probs.gather(-1, ids[..., None])[..., 0], {"enhanced_accuracy": hits}
        labels = self.enhanced_labels(states) if uniform is None else self.enhanced_labels(states, uniform)
        return -(labels * log_probs).sum(-1), describe_soft_labels(labels.detach(), weights)

    def enhanced_labels(self, label_states: torch.Tensor, uniform: torch.Tensor | None = None) -> torch.Tensor:
        """Soft labels y^(k) (Eq. 4): (n, D) -> (n, C, N), each a distribution over the entries.

        The noise comes from `uniform` numbers in [0, 1), (n, C, N), or is drawn by torch's generator.

        The paper prints the Gumbel noise with a minus sign and cites Jang et al. (2017) for it; this is their form,
        softmax((-distance^2 + noise) / tau).
        """
        scores = self.quantizer.soft_scores(label_states)
        # Gumbel noise is -log(-log(u)); drawing -log(u) as exponential_() takes the CPU several times as long.
        noise = (torch.rand_like(scores) if uniform is None else uniform).log_().neg_().log_().neg_()
        return F.softmax((scores + noise) / self.config.gumbel_temperature, dim=-1)


def describe_soft_labels(labels: torch.Tensor, weights: torch.Tensor) -> dict[str, torch.Tensor]:
    """Diagnostics of the enhanced labels (n, C, N) of the frames that `weights` (n,) counts with 1: how many entries
    they share out over, and how decided they are.
    """
    terms = weights.sum().clamp_min(1)
    mean = torch.einsum("n,ncd->cd", weights, labels) / terms
    entropy = -torch.xlogy(mean, mean).sum(-1)
    return {
        "enhanced_perplexity": entropy.exp().mean(),
        "enhanced_confidence": (labels.amax(-1).mean(-1) * weights).sum() / terms,
    }


BiRQModel.register_for_auto_class("AutoModel")
BiRQForPreTraining.register_for_auto_class("AutoModelForPreTraining")
BiRQForCTC.register_for_auto_class("AutoModelForCTC")
BiRQForRNNT.register_for_auto_class("AutoModelForRNNT")
BiRQForSequenceClassification.register_for_auto_class("AutoModelForAudioClassification")
BiRQForAudioFrameClassification.register_for_auto_class("AutoModelForAudioFrameClassification")
