"""The verdict on a pretraining run: whether labels are used and predicted, and whether layers have collapsed."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .json_files import known_fields

# Figures of a kind of label in the log, behind the kind: `anchor_labels_used`.
_LABEL_FIGURES = ("labels_used", "label_perplexity", "top_label_share", "label_loudness")


@dataclass(frozen=True)
class LabelUse:
    """Use of a kind of pretraining label over many updates, and how well it was predicted at masked frames.

    Args:
        kind: "anchor", "enhanced" or "second"; "" where a model has one kind only.
        entries_used: entries of the codebook that occurred, of `codebook_size`.
        perplexity: exponential of the entropy (nats) of the labels.
        commonest_share: share of the commonest label, which a constant guess would get right.
        loudness: share of the variance of the frames' loudness that the label explains.
        accuracy: share of the masked frames whose label was predicted.
    """

    kind: str
    entries_used: int
    perplexity: float
    commonest_share: float
    loudness: float | None = None
    accuracy: float | None = None
    codebook_size: int | None = None

    @classmethod
    def all_from_log(cls, values: Mapping[str, float]) -> list["LabelUse"]:
        """The kinds of labels that a line of train_log.jsonl describes.

        The accuracy that is logged is that of the first kind.
        """
        found: list[LabelUse] = []
        for name in values:
            kind = name.removesuffix("top_label_share").rstrip("_")
            figures = {one: values.get(f"{kind}_{one}".lstrip("_"), math.nan) for one in _LABEL_FIGURES}
            if name.endswith("top_label_share") and all(map(math.isfinite, figures.values())):
                used, perplexity, share, loudness = figures.values()
                accuracy = values.get("frame_accuracy", values.get("accuracy")) if not found else None
                found.append(cls(kind, round(used), perplexity, share, loudness, accuracy))
        return found


@dataclass(frozen=True)
class LayerRank:
    """The effective rank of a layer's output, and that of the same model with random weights; layer 0 is the input."""

    layer: int
    effective_rank: float
    random_effective_rank: float | None = None


@dataclass(frozen=True)
class Verdict:
    """Whether a pretraining run learned something.

    Args:
        labels: use of each kind of label at the end of the run.
        layers: effective ranks; empty where they were not measured.
        remarks: sentences for people.
    """

    labels: Sequence[LabelUse] = ()
    layers: Sequence[LayerRank] = ()
    remarks: Sequence[str] = ()

    @classmethod
    def from_log(cls, log: Sequence[Mapping[str, float]]) -> "Verdict | None":
        """The verdict from the lines of training of a log; `None` if they have no statistics of labels."""
        found = next((labels for values in reversed(log) if (labels := LabelUse.all_from_log(values))), None)
        return cls(found) if found else None

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> "Verdict":
        """The verdict as JSON holds it; unknown fields are passed over."""
        labels = [LabelUse(**known_fields(LabelUse, one)) for one in values.get("labels", ())]
        layers = [LayerRank(**known_fields(LayerRank, one)) for one in values.get("layers", ())]
        return cls(labels, layers, list(values.get("remarks", ())))
