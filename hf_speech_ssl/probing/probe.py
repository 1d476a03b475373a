"""One encoder over two splits: linear probes fitted on one and measured on the other, with the spread of the frames,
the codebook use and the label quality of the second.

Shape letters: L layers, C codebooks, N entries, n examples, D features of a layer.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from .collapse import FrameSpread
from .encoders import SpeechEncoder
from .label_quality import IGNORED_PHONE_ID, LabelQuality
from .linear_probe import LinearProbes
from .targets import TargetReader

MEMORY_LIMIT = 2 * 1024**3  # bytes of float16 training examples over all layers; those beyond are left out
MAX_TRAINING_EXAMPLES = 200_000


@dataclass
class TrainingExamples:
    """Examples to fit probes on.

    Args:
        features: (n, D) float16 of every layer, on the CPU.
        targets: (n,) int64, what the probes are to name.
        num_utterances: where they come from.
        full: whether there were more, which were left out.
    """

    features: list[torch.Tensor]
    targets: torch.Tensor
    num_utterances: int
    full: bool


def collect_training_examples(encoder: SpeechEncoder, reader: TargetReader, ids: dict[str, int]) -> TrainingExamples:
    """The first examples that `MAX_TRAINING_EXAMPLES` and `MEMORY_LIMIT` leave room for.

    Raises:
        ValueError: there are none, or a layer gives NaN or infinite values.
    """
    pieces: list[list[torch.Tensor]] = []
    targets: list[torch.Tensor] = []
    room, full = MAX_TRAINING_EXAMPLES, False
    for example in reader.encode(encoder, ids, f"{reader.examples} to train on"):
        if not pieces:
            pieces = [[] for _ in example.features]
            room = min(room, MEMORY_LIMIT // (2 * sum(layer.shape[1] for layer in example.features)))
        chosen = np.flatnonzero(example.targets != IGNORED_PHONE_ID)
        full = len(chosen) > room
        if len(chosen := chosen[:room]):
            for piece, layer in zip(pieces, half(example.features), strict=True):
                piece.append(layer[torch.from_numpy(chosen).to(layer.device)].cpu())
            targets.append(torch.from_numpy(example.targets[chosen]))
            room -= len(chosen)
        if full:
            break
    if not targets:
        raise ValueError(reader.nothing_found)
    # One layer after the other: two copies of all would not keep to the limit.
    features = [torch.cat(pieces.pop(0)) for _ in range(len(pieces))]
    return TrainingExamples(features, torch.cat(targets), len(targets), full)


def check_finite(layers: list[torch.Tensor]) -> None:
    """Raise ValueError if a layer gives NaN or infinite values."""
    for index, layer in enumerate(layers):
        if not torch.isfinite(layer).all():
            raise ValueError(f"Layer {index} gives NaN or infinite values: the model's weights cannot be used.")


def half(layers: list[torch.Tensor]) -> list[torch.Tensor]:
    """Layers as the probes see them: float16, the few features beyond its range clipped."""
    check_finite(layers)
    limit = torch.finfo(torch.float16).max
    return [layer.clamp(-limit, limit).half() for layer in layers]


@dataclass
class Scores:
    """What was measured over a split.

    Args:
        hits: for every utterance with targets, the examples whose target each layer's probe named: (L,).
        targets: for every such utterance, how many examples of every target it has.
        num_utterances, num_frames: of the split.
        spreads: of every layer.
        code_counts: (C, N) of every layer, how often it uses each entry.
        label_use: how often each label of every kind of pretraining label occurs.
        label_sizes: how many different labels each kind has.
        label_quality: what these labels know of the targets.
    """

    hits: list[NDArray[np.int64]] = field(default_factory=list)
    targets: list[NDArray[np.int64]] = field(default_factory=list)
    num_utterances: int = 0
    num_frames: int = 0
    spreads: list[FrameSpread] = field(default_factory=list)
    code_counts: list[torch.Tensor] = field(default_factory=list)
    label_use: dict[str, Counter[int]] = field(default_factory=dict)
    label_sizes: dict[str, int] = field(default_factory=dict)
    label_quality: dict[str, LabelQuality] = field(default_factory=dict)


def score(
    encoder: SpeechEncoder, reader: TargetReader, ids: dict[str, int], probes: LinearProbes | None = None
) -> Scores:
    """Measure spread, codebook use and labels over a split, and probes if there are any.

    Args:
        ids: the number of every target; none where nothing is to be named.

    Raises:
        ValueError: there are targets and no example of them, or a layer gives NaN or infinite values.
    """
    scores = Scores()
    for example in reader.encode(encoder, ids, "frames to measure on"):
        encoded, there = example.encoded, example.targets != IGNORED_PHONE_ID
        scores.num_utterances += 1
        scores.num_frames += encoded.num_frames
        check_finite(encoded.layers)
        _count_layers(scores, encoder, encoded.layers)
        if there.any():
            scores.targets.append(np.bincount(example.targets[there], minlength=len(ids)))
            if probes is not None:
                scores.hits.append((probes.predict(half(example.features)) == example.targets).sum(-1))
        scores.label_sizes |= encoded.label_sizes
        for name, labels in encoded.labels.items():
            values, counts = labels.unique(return_counts=True)
            use = dict(zip(values.tolist(), counts.tolist(), strict=True))
            scores.label_use.setdefault(name, Counter()).update(use)
            if ids:
                scores.label_quality.setdefault(name, LabelQuality(len(ids))).update(labels, example.frame_targets)
    if ids and not scores.targets:
        raise ValueError(reader.nothing_found)
    return scores


def _count_layers(scores: Scores, encoder: SpeechEncoder, layers: list[torch.Tensor]) -> None:
    if not scores.spreads:
        scores.spreads = [FrameSpread() for _ in layers]
    for index, layer in enumerate(layers):
        scores.spreads[index].update(layer)
        codes = encoder.layer_codes(index, layer)
        counts = torch.stack([column.bincount(minlength=encoder.num_codes) for column in codes.unbind(-1)])
        if len(scores.code_counts) <= index:
            scores.code_counts.append(counts)
        else:
            scores.code_counts[index] += counts
