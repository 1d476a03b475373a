"""Evaluation of a CTC model during a run: loss, word and character error rates, over all processes."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from hf_speech_ssl.decoding import Decoder, GreedyDecoder
from hf_speech_ssl.evaluation import ErrorCounts, count_character_errors, count_word_errors
from hf_speech_ssl.run_folder import OFFLINE, MetricName

from .diagnostics import Sums, add, constants, means, reduce, weighted_scalars
from .evaluators import EvaluationBatches, evaluating, first_batch, one_pass
from .interruption import Interruption
from .objectives import Transcription


@dataclass(frozen=True)
class TranscriptEvaluator:
    """Loss, WER and CER of transcripts, for each of some splits and in each of some modes.

    Args:
        splits: batches by name; the first one's WER marks the best checkpoint.
        modes: arguments of the model's forward by mode, such as `{"320 ms": {"chunk_size": 8}}`; see `mode_name`. The
            offline mode marks the best checkpoint.
        examples: of the last evaluation, on this process, the first few texts and transcripts.
    """

    accelerator: Accelerator
    objective: Transcription
    splits: Mapping[str, EvaluationBatches]
    modes: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: {OFFLINE: {}})
    examples: list[str] = field(default_factory=list)
    num_examples: int = 3

    @property
    def metric(self) -> str:
        """Name of the WER that marks the best checkpoint."""
        return str(MetricName.among(self.splits, next(iter(self.splits)), "wer"))

    def try_one_batch(self, model: nn.Module) -> None:
        """One batch of each split in each mode, before the first update."""
        device = self.accelerator.device
        for split in self.splits:
            batch = first_batch(self.splits, split, self.accelerator)
            for arguments in self.modes.values():
                with evaluating(model, device, seed=0):
                    output, _ = self.objective(model, batch, device, **arguments)
            self.transcribe(output["logits"])

    def __call__(self, model: nn.Module, interruption: Interruption) -> dict[str, float]:
        self.examples.clear()
        metrics: dict[str, float] = {}
        for split in self.splits:
            for mode, arguments in self.modes.items():
                with evaluating(model, self.accelerator.device, seed=0):
                    values = self.evaluate_split(model, split, interruption, **arguments)
                names = {name: str(MetricName.among(self.splits, split, name, mode)) for name in values}
                metrics |= {names[name]: value for name, value in values.items()}
        return metrics

    def evaluate_split(
        self, model: nn.Module, split: str, interruption: Interruption, **model_arguments: Any
    ) -> dict[str, float]:
        """`loss`, `wer` and `cer` of one split; the rates are NaN where its references have no word."""
        device, sums, words, characters = self.accelerator.device, Sums(), ErrorCounts(), ErrorCounts()
        for batch in one_pass(self.splits, split, self.accelerator, interruption):
            output, units = self.objective(model, batch, device, **model_arguments)
            sums = add([sums, weighted_scalars(output, units, self.objective.unit)])
            if batch.num_examples:
                references, transcripts = self.objective.texts(batch), self.transcribe(output["logits"])
                words += count_word_errors(transcripts, references)
                characters += count_character_errors(transcripts, references)
                self.show(references, transcripts)
        counts = constants(device, **_named("word", words), **_named("character", characters))
        sums = reduce(self.accelerator, add([sums, counts]))
        return {**means(sums), "wer": _rate("word", sums), "cer": _rate("character", sums)}

    def show(self, references: list[str], transcripts: list[str]) -> None:
        """Keep the first few transcripts as examples."""
        pairs = zip(references, transcripts, strict=True)
        self.examples.extend(f"  ref: {reference}\n  hyp: {transcript}" for reference, transcript in pairs)
        del self.examples[self.num_examples :]

    @cached_property
    def decoder(self) -> Decoder[Any]:
        """Greedy decoding with the processor's tokenizer; the times of words are of no use here."""
        return GreedyDecoder(self.objective.processor.tokenizer, seconds_per_frame=0.01)

    def transcribe(self, logits: torch.Tensor) -> list[str]:
        """Transcripts of (B, T, V) logits; the best token of padded frames is the blank."""
        hypotheses = self.decoder(logits.float().log_softmax(-1), [logits.shape[1]] * len(logits))
        return [one[0].text for one in hypotheses]


def _named(unit: str, counts: ErrorCounts) -> dict[str, float]:
    return {f"{unit}/{name}": value for name, value in vars(counts).items()}


def _rate(unit: str, sums: Sums) -> float:
    """The error rate of counts that have been added over the processes."""
    prefix = f"{unit}/"
    counts = {name.removeprefix(prefix): int(value) for name, value in sums.items() if name.startswith(prefix)}
    total = ErrorCounts(**counts)
    return total.rate if total.reference_length else math.nan
