"""QuantizerConfig: the random or learned projections and codebooks that label the frames of BiRQ and Chunk SSL."""

import dataclasses

from huggingface_hub.dataclasses import strict

from .configuration_conformer import ConformerConfig
from .distilled_quantization import Distillation
from .learned_quantization import QuantizerLearning

LABEL_NORMALIZATIONS = ("corpus", "utterance_mean")


@strict
class QuantizerConfig(ConformerConfig):
    r"""
    An encoder whose pretraining labels come from projections and codebooks. The defaults are those of BEST-RQ (Chiu et
    al., arXiv 2202.01855): random, and never learned.

    Args:
        codebook_size (`int`, defaults to 8192): Entries of each codebook, N.
        codebook_dim (`int`, defaults to 16): Dimension of an entry, d_c.
        num_codebooks (`int`, defaults to 1): Independent codebooks, each with its own prediction head; their losses
            are averaged.
        quantizer_seed (`int`, defaults to 0): Seed of the random projections and first codebooks.
        label_normalization (`str`, defaults to `"corpus"`): How the features that are labeled are normalized:
            `"corpus"`: as they come from the feature extractor; `"utterance_mean"`: without their mean over the frames
            of their utterance, so that neither its level nor its channel decides the labels.
        projection_kind (`str`, defaults to `"random"`): `"random"`; `"pca"`: the leading principal directions of the
            features (Xu et al., arXiv 2606.30671); `"whitened"`: the same, each divided by its standard deviation.
        projection_updates (`int`, defaults to 128): Updates whose frames the principal directions are estimated from.
            Until they are frozen, the estimate is renewed after 1, 2, 4, 8, ... updates.
        codebook_distance (`str`, defaults to `"cosine"`): `"cosine"`: projected vectors and entries are normalized
            before the search, as in BEST-RQ; `"euclidean"`: they are not, as in k-means.
        codebook_refinements (`int`, defaults to 0): How many times each entry moves to the mean of the projected
            vectors that chose it. After the last time the codebooks are frozen.
        codebook_refinement_interval (`int`, defaults to 1000): Updates from one move to the next.
        codebook_refinement_window (`int`, *optional*): Updates before each move whose frames count; all, by default.
        reseed_dead_entries (`bool`, defaults to `False`): Whether a move puts entries that no frame chose beside those
            that most frames chose.
        unmasked_loss_weight (`float`, defaults to 0): Weight of the loss on the (anchor) labels of the frames that are
            not masked, relative to that of the masked ones; 1 weights both means alike. The papers have 0.
        second_codebook_size (`int`, defaults to 0): Entries of the codebooks of a second label set, which has a head
            of its own and half of the loss (Xu et al. have one of 256 entries); 0: there is none. They are learned as
            the first ones, from another seed, and never distilled.
        distillation_loss_weight (`float`, defaults to 0): Weight of the loss that distills the (first) codebooks: a
            trainable copy quantizes the frames so that the cosine similarities of an utterance's frames come close to
            those of the middle blocks' outputs. Only frames that are not masked count. Xu et al. have 0.5; 0: no copy.
        distillation_error (`str`, defaults to `"squared"`): `"squared"` or `"absolute"` error of the similarities.
        distillation_layers (`list[int]`, *optional*): Blocks, counted from 1, whose outputs are averaged; the middle
            third, by default. Each is normalized over the frames of its utterance first.
        distillation_kmeans_weight (`float`, defaults to 0): Weight, within the distillation loss, of the mean squared
            difference between the projected vectors and the copy's entries, which keeps entries near their vectors.
        distillation_start (`int`, *optional*): Updates before distillation begins; 30 % of all in Xu et al. By
            default as many as the refinements take. From then on the first codebooks are refined no more.
        codebook_replacements (`list[int]`): Numbers of updates after which the copy takes the place of the codebook.
            After the last, the distillation ends.
    """

    codebook_size: int = 8192
    codebook_dim: int = 16
    num_codebooks: int = 1
    quantizer_seed: int = 0
    label_normalization: str = "corpus"
    projection_kind: str = "random"
    projection_updates: int = 128
    codebook_distance: str = "cosine"
    codebook_refinements: int = 0
    codebook_refinement_interval: int = 1000
    codebook_refinement_window: int | None = None
    reseed_dead_entries: bool = False
    unmasked_loss_weight: float | int = 0.0
    second_codebook_size: int = 0
    distillation_loss_weight: float | int = 0.0
    distillation_error: str = "squared"
    distillation_layers: list[int] | None = None
    distillation_kmeans_weight: float | int = 0.0
    distillation_start: int | None = None
    codebook_replacements: list[int] = dataclasses.field(default_factory=list)

    @property
    def distilled_layers(self) -> list[int]:
        """The blocks that are distilled: `distillation_layers`, or what its absence stands for."""
        if self.distillation_layers is not None:
            return self.distillation_layers
        outer = self.num_hidden_layers // 3
        return list(range(outer + 1, self.num_hidden_layers - outer + 1))

    def validate_quantizer(self) -> None:
        """Refuse label settings that no quantizer can be built from."""
        for name in ("codebook_size", "codebook_dim", "num_codebooks"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.unmasked_loss_weight < 0:
            raise ValueError(f"unmasked_loss_weight must not be negative, got {self.unmasked_loss_weight}.")
        if self.label_normalization not in LABEL_NORMALIZATIONS:
            raise ValueError(
                f"label_normalization must be one of {', '.join(LABEL_NORMALIZATIONS)}, got "
                f'"{self.label_normalization}".'
            )
        learning = QuantizerLearning.of(self)
        learning.validate(self.codebook_dim, self.stacked_size)
        Distillation.of(self).validate(learning)
        if self.second_codebook_size < 0:
            raise ValueError(f"second_codebook_size must not be negative, got {self.second_codebook_size}.")
        if not self.distilled_layers or not all(1 <= k <= self.num_hidden_layers for k in self.distilled_layers):
            raise ValueError(
                f"distillation_layers counts blocks from 1 to num_hidden_layers = {self.num_hidden_layers} and needs "
                f"one or more, got {self.distillation_layers}."
            )
