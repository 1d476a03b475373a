"""An encoder's layers and labels measured, on phones or classes or without either, beside random weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from ..evaluation.bootstrap import bootstrap_ratios
from ..modeling.label_statistics import perplexity
from .encoders import SpeechEncoder
from .linear_probe import LinearProbes
from .probe import Scores, TrainingExamples, collect_training_examples, score
from .report import remarks
from .targets import TargetReader, number_targets

NUM_RESAMPLES = 1000  # of the intervals


@dataclass(frozen=True)
class Measurement:
    """How an encoder is measured.

    Args:
        test: split to measure on.
        train: split to fit linear probes on; none if nothing is to be named.
        num_epochs: passes of the probes over the training examples.
        seed: of the probes' order, the random weights and the shuffled labels.
    """

    test: TargetReader
    train: TargetReader | None = None
    num_epochs: int = 10
    seed: int = 0

    def __call__(self, encoder: SpeechEncoder) -> dict[str, Any]:
        """Measure layers and labels beside those of the same encoder with random weights.

        Of every layer: the effective rank and the mean cosine of its frames ([`FrameSpread`]), and the use of a
        codebook by labels of its frames. Ranks and perplexities fall, and the cosine rises, where an encoder
        collapses. Of the pretraining labels: how many are in use, how evenly.

        Where there are phones or classes, also the accuracy of a linear probe on each layer, fitted on one split and
        measured on another, and that on the same encoder with random weights (the gain is what training brought); and
        the purity and PNMI of the pretraining labels beside those of the same labels shuffled. Training examples
        beyond 200,000, or beyond 2 GiB as float16 of all layers, are left out. Frames in no phone (pauses) count for
        spread, codebooks and label use alone; examples of a target that training did not have count as wrong.

        Returns:
            "data" (counts), "codes", "layers" (an entry each), "labels" (an entry for each kind) and "remarks".
            Accuracies are shares; "..._interval" holds the ends of a 95 % bootstrap interval over the test utterances.

        Raises:
            ValueError: the splits share no target, there are too few examples, or a layer gives NaN.
        """
        ids = {} if self.train is None else number_targets(self.train, self.test)
        if encoder.model is None:  # a tokenizer has no layers to compare
            scores = score(encoder, self.test, ids)
            data = self._describe_data(scores)
            return {"data": data, "codes": "", "layers": [], "labels": self._labels(scores), "remarks": []}
        pretrained, training = self._probe(encoder, ids)
        random, _ = self._probe(encoder.with_random_weights(self.seed), ids)
        data = self._describe_data(pretrained)
        if training is not None:
            data |= _describe_training(training, pretrained, ids)
        layers = [
            {
                "layer": index,
                "what": encoder.input_name if index == 0 else f"block {index}",
                **_describe_layer(pretrained, index),
                **{f"random_{name}": value for name, value in _describe_layer(random, index).items()},
            }
            for index in range(len(pretrained.spreads))
        ]
        if ids:
            for layer, accuracies in zip(layers, self._accuracies(pretrained, random), strict=True):
                layer |= accuracies
        labels = self._labels(pretrained)
        report = {"data": data, "codes": encoder.codes_are, "layers": layers, "labels": labels}
        return report | {"remarks": remarks(layers, data, bool(labels))}

    def _probe(self, encoder: SpeechEncoder, ids: dict[str, int]) -> tuple[Scores, TrainingExamples | None]:
        """Scores of one encoder; of the training examples only their targets are kept."""
        if self.train is None:
            return score(encoder, self.test, ids), None
        training = collect_training_examples(encoder, self.train, ids)
        with tqdm(total=self.num_epochs, desc="probes", unit="epoch", dynamic_ncols=True, disable=None) as bar:
            probes = LinearProbes(
                training.features,
                training.targets,
                len(ids),
                self.num_epochs,
                self.seed,
                encoder.device,
                on_epoch=bar.update,
                min_examples=self.train.min_examples,
            )
        training.features.clear()
        return score(encoder, self.test, ids, probes), training

    def _describe_data(self, scores: Scores) -> dict[str, Any]:
        targets = np.array(scores.targets) if scores.targets else np.zeros((0, 0), dtype=np.int64)
        return {
            "targets": self.test.what,
            "examples": self.test.examples,
            "test_examples": int(targets.sum()),
            "test_utterances": scores.num_utterances,
            "test_frames": scores.num_frames,
            "num_targets": int((targets.sum(0) > 0).sum()),
            "skipped_files": len(self.test.reader.skipped),
        }

    def _accuracies(self, pretrained: Scores, random: Scores) -> list[dict[str, Any]]:
        hits, random_hits = np.array(pretrained.hits), np.array(random.hits)  # (utterances, layers)
        numerators = np.concatenate([hits, hits - random_hits], axis=1)
        counts = np.broadcast_to(np.array(pretrained.targets).sum(-1)[:, None], numerators.shape)
        estimates = bootstrap_ratios(numerators, counts, num_resamples=NUM_RESAMPLES, seed=self.seed)
        num_layers = hits.shape[1]
        return [
            {
                "accuracy": accuracy.value,
                "accuracy_interval": [accuracy.low, accuracy.high],
                "random_accuracy": accuracy.value - gain.value,
                "gain": gain.value,
                "gain_interval": [gain.low, gain.high],
            }
            for accuracy, gain in zip(estimates[:num_layers], estimates[num_layers:], strict=True)
        ]

    def _labels(self, scores: Scores) -> list[dict[str, Any]]:
        entries = []
        for name, use in scores.label_use.items():
            shares = np.array(list(use.values())) / use.total()
            entry: dict[str, Any] = {
                "name": name,
                "codebook_size": scores.label_sizes[name],
                "num_labels": len(use),
                "num_frames": use.total(),
                "perplexity": math.exp(-float((shares * np.log(shares)).sum())),
                "commonest_share": float(shares.max()),
            }
            if name in scores.label_quality:
                quality = scores.label_quality[name]
                control = quality.shuffled(self.seed).compute()
                entry |= {key: value for key, value in quality.compute().items() if not key.startswith("num_")}
                entry |= {f"shuffled_{key}": control[key] for key in ("phone_purity", "cluster_purity", "pnmi")}
            entries.append(entry)
        return entries


def _describe_training(training: TrainingExamples, scores: Scores, ids: dict[str, int]) -> dict[str, Any]:
    counts = training.targets.bincount(minlength=len(ids)).numpy()
    tested = np.array(scores.targets).sum(0)
    return {
        "training_examples": len(training.targets),
        "training_utterances": training.num_utterances,
        "training_examples_left_out": training.full,
        "examples_of_unseen_targets": int(tested[counts == 0].sum()),
        "majority_target": list(ids)[int(counts.argmax())],
        "majority_accuracy": float(tested[int(counts.argmax())] / tested.sum()),
    }


def _describe_layer(scores: Scores, index: int) -> dict[str, float]:
    counts = scores.code_counts[index]
    return {
        **scores.spreads[index].compute(),
        "code_usage": float((counts > 0).float().mean()),
        "code_perplexity": float(perplexity(counts.float()).mean()),
    }
