"""QuantizerConfig: the random or learned projections and codebooks that label the frames of BiRQ and Chunk SSL."""

from huggingface_hub.dataclasses import strict

from .configuration_conformer import ConformerConfig
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

    @property
    def learns_labels(self) -> bool:
        """Whether the projection or the codebooks are learned in pretraining."""
        return self.projection_kind != "random" or self.codebook_refinements > 0

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
        QuantizerLearning.of(self).validate(self.codebook_dim, self.stacked_size)
