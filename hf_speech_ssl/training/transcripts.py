"""Evaluation of a CTC model during a run: loss, word and character error rates, over all processes."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from accelerate import Accelerator
from torch import nn

from hf_speech_ssl.decoding import ctc_text, greedy_ctc
from hf_speech_ssl.evaluation import ErrorCounts, count_character_errors, count_word_errors

from .diagnostics import Sums, add, constants, means, reduce, weighted_scalars
from .evaluators import EvaluationBatches, evaluating
from .interruption import Interruption
from .objectives import Transcription


@dataclass(frozen=True)
class TranscriptEvaluator:
    """Loss, WER and CER of greedy CTC transcripts, for each of some splits.

    Args:
        splits: batches by name. With one split the metrics are `eval_wer` ..., with several `eval_<name>_wer` ..., and
            the first split's WER marks the best checkpoint.
        samples: of the last evaluation, on this process, the first few pairs of reference and transcript.
    """

    accelerator: Accelerator
    objective: Transcription
    splits: Mapping[str, EvaluationBatches]
    samples: list[tuple[str, str]] = field(default_factory=list)
    num_samples: int = 3

    @property
    def metric(self) -> str:
        """Name of the WER that marks the best checkpoint."""
        return self._name(next(iter(self.splits)), "wer")

    def _name(self, split: str, metric: str) -> str:
        return f"eval_{metric}" if len(self.splits) == 1 else f"eval_{split}_{metric}"

    def __call__(self, model: nn.Module, interruption: Interruption) -> dict[str, float]:
        self.samples.clear()
        with evaluating(model, self.accelerator.device, seed=0):
            results = {split: self.evaluate_split(model, split, interruption) for split in self.splits}
        return {self._name(split, metric): results[split][metric] for split in results for metric in results[split]}

    def evaluate_split(self, model: nn.Module, split: str, interruption: Interruption) -> dict[str, float]:
        """`loss`, `wer` and `cer` of one split.

        Raises:
            ValueError: the split holds no word on any process.
        """
        device, sums, words, characters = self.accelerator.device, Sums(), ErrorCounts(), ErrorCounts()
        for batch in self.splits[split].epoch(0):
            interruption.raise_if_agreed(self.accelerator)
            output, units = self.objective(model, batch, device)
            sums = add([sums, weighted_scalars(output, units, self.objective.unit)])
            if batch.num_examples and batch.texts:
                transcripts = self.transcribe(output["logits"])
                words += count_word_errors(transcripts, batch.texts)
                characters += count_character_errors(transcripts, batch.texts)
                self.samples.extend(zip(batch.texts, transcripts, strict=True))
                del self.samples[self.num_samples :]
        counts = constants(device, **_named("word", words), **_named("character", characters))
        sums = reduce(self.accelerator, add([sums, counts]))
        return {**means(sums), "wer": _rate("word", sums), "cer": _rate("character", sums)}

    def transcribe(self, logits: torch.Tensor) -> list[str]:
        """Greedy transcripts of (B, T, V) logits; padded frames say blank."""
        tokenizer = self.objective.processor.tokenizer
        return [ctc_text(ids, tokenizer) for ids in greedy_ctc(logits, blank_token_id=tokenizer.pad_token_id)]


def _named(unit: str, counts: ErrorCounts) -> dict[str, float]:
    return {f"{unit}/{name}": value for name, value in vars(counts).items()}


def _rate(unit: str, sums: Sums) -> float:
    """The error rate of counts that have been added over the processes."""
    prefix = f"{unit}/"
    counts = {name.removeprefix(prefix): int(value) for name, value in sums.items() if name.startswith(prefix)}
    return ErrorCounts(**counts).rate
