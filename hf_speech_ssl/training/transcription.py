"""Fine-tuning: texts as labels, what is wrong with them, and error rates or BLEU during a run."""

import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn

from hf_speech_ssl.data.batch import Batch
from hf_speech_ssl.decoding import Hypothesis, decoder_frames, greedy_decoder, unknown_characters
from hf_speech_ssl.evaluation import ErrorCounts, count_character_errors, count_word_errors
from hf_speech_ssl.evaluation.instances import ChunkClock, Instance, mean_laggings
from hf_speech_ssl.evaluation.translation import load_metrics, score_translations
from hf_speech_ssl.modeling.configuration_conformer import SAMPLING_RATE
from hf_speech_ssl.modeling.feature_extraction_speech_ssl import num_frames
from hf_speech_ssl.run_folder import LAGGINGS, OFFLINE, MetricName

from .diagnostics import Sums, add, constants, means, reduce, weighted_scalars
from .evaluators import EvaluationBatches, evaluating, first_batch, one_pass
from .processes import Interruption
from .updates import features_of

MAX_UNKNOWN_SHARE = 0.02  # of the letters of a split; beyond it a run is refused
NUM_NAMED = 5  # utterances in warnings
NOTHING_WRITTEN = (
    "  The model writes nothing yet, as all do at first. If the loss no longer falls, halve --learning_rate."
)
logger = logging.getLogger(__name__)


def ctc_frames_needed(labels: Sequence[int]) -> int:
    """Frames that CTC needs: one for every label, and one for a blank between two equal ones."""
    return len(labels) + sum(first == second for first, second in pairwise(labels))


@dataclass(frozen=True)
class Transcription:
    """Fine-tuning with CTC or a transducer; the mean is over utterances.

    Utterances whose transcript needs more frames than their audio has are left out and named.

    Args:
        processor: turns audio into features and text into labels.
        frame_stacking: feature frames in a frame of the model.
        normalize: is applied to every transcript first.
        frames_needed: the least number of encoder frames for some labels.
        left_out: names of the utterances of training that were left out.
    """

    processor: Any
    frame_stacking: int
    normalize: Callable[[str], str] = str
    frames_needed: Callable[[Sequence[int]], int] = ctc_frames_needed
    unit: str = "num_utterances"
    left_out: dict[str, None] = field(default_factory=dict)

    def __call__(
        self, model: nn.Module, batch: Batch, device: torch.device, **model_arguments: Any
    ) -> tuple[Mapping[str, Any], torch.Tensor]:
        inputs = features_of(batch, self.processor.feature_extractor, device)
        ids = [self.processor.tokenizer(text).input_ids for text in self.texts(batch)]
        output = model(**inputs, labels=padded(ids).to(device), **model_arguments)
        fitting = self.count_fitting(batch, ids, named=model.training)
        loss = output["loss"] * (len(ids) / max(1, fitting))  # the model's mean is over all utterances
        return {**output, "loss": loss}, torch.tensor(fitting, device=device)

    def texts(self, batch: Batch) -> list[str]:
        """The transcripts of a batch, normalized."""
        return [self.normalize(text) for text in batch.texts or []]

    def count_fitting(self, batch: Batch, ids: Sequence[Sequence[int]], named: bool) -> int:
        """The utterances of a batch whose audio has a frame for every label; the others are named once."""
        fitting = 0
        for name, labels, samples in zip(batch.names, ids, batch.lengths.tolist(), strict=True):
            frames = num_frames(samples) // self.frame_stacking
            needed = self.frames_needed(labels)
            fitting += needed <= frames
            if needed > frames and named and name not in self.left_out:
                self.left_out[name] = None
                if len(self.left_out) <= NUM_NAMED:
                    logger.warning(
                        f"{name} is left out: its transcript of {len(labels)} tokens needs {needed} frames, its "
                        f"audio has {frames}. Are audio and transcript of the same utterance?"
                    )
        return fitting if batch.num_examples else 0

    @property
    def why_nothing(self) -> str:
        """Why updates may have had no utterance, and what to do."""
        named = ", ".join(list(self.left_out)[:NUM_NAMED])
        if self.left_out:
            return (
                f"All transcripts are longer than their audio allows, those of {named} among them: check that audio "
                f"and transcripts belong together."
            )
        return "Check the audio and the warnings about skipped files."


def padded(ids: Sequence[Sequence[int]]) -> torch.Tensor:
    """(B, L) token ids, -100 where a text is shorter than the longest."""
    rows = [torch.tensor(labels, dtype=torch.long) for labels in ids]
    return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-100)


def check_letters(texts: Sequence[str], tokenizer: Any, split: str) -> None:
    """Warn of letters of normalized texts that the tokenizer does not have.

    Raises:
        ValueError: more than a few per cent of the letters would be [UNK].
    """
    unknown = unknown_characters(texts, tokenizer)
    if not unknown:
        return
    share = sum(unknown.values()) / sum(len(text.replace(" ", "")) for text in texts)
    found = (
        f"{100 * share:.2f} % of the letters of split {split!r} are not in the model's vocabulary and become [UNK]: "
        f"{counts_in_words(unknown)}."
    )
    if share > MAX_UNKNOWN_SHARE:
        raise ValueError(
            f"{found} Give --new_vocabulary to fine-tune the encoder with a new head for the letters of the training "
            f"transcripts, or choose another model."
        )
    logger.warning(found)


def letters_in_words(texts: Sequence[str]) -> str:
    """The letters that a new vocabulary is made of, with their counts."""
    counts = Counter(letter for text in texts for letter in text if letter != " ")
    return f"A new vocabulary of {len(counts)} letters: {counts_in_words(dict(counts.most_common()), len(counts))}."


def counts_in_words(counts: Mapping[str, int], limit: int = 20) -> str:
    """Letters with their counts, by their code points where they cannot be seen alone."""
    words = [f"{letter if letter.isalnum() else ascii(letter)[1:-1]} {count:,}" for letter, count in counts.items()]
    return ", ".join(words[:limit]) + (f" and {len(words) - limit} more" if len(words) > limit else "")


class Transcribed(NamedTuple):
    """An utterance of so many seconds that a model has transcribed."""

    reference: str
    hypothesis: Hypothesis
    seconds: float


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

    marks_best: ClassVar[str] = "wer"

    @property
    def metric(self) -> str:
        """Name of the figure that marks the best checkpoint."""
        return str(MetricName.among(self.splits, next(iter(self.splits)), self.marks_best))

    def try_one_batch(self, model: nn.Module) -> None:
        """One batch of each split in each mode, before the first update."""
        device = self.accelerator.device
        for split in self.splits:
            batch = first_batch(self.splits, split, self.accelerator)
            for arguments in self.modes.values():
                with evaluating(model, device, seed=0):
                    output, _ = self.objective(model, batch, device, **arguments)
            self.transcribe(model, output)

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
        sums, found = self.transcribe_split(model, split, interruption, **model_arguments)
        transcripts, references = [one.hypothesis.text for one in found], [one.reference for one in found]
        words = count_word_errors(transcripts, references)
        characters = count_character_errors(transcripts, references)
        counts = constants(self.accelerator.device, **_named("word", words), **_named("character", characters))
        sums = reduce(self.accelerator, add([sums, counts]))
        return {**means(sums), "wer": _rate("word", sums), "cer": _rate("character", sums)}

    def transcribe_split(
        self, model: nn.Module, split: str, interruption: Interruption, **model_arguments: Any
    ) -> tuple[Sums, list[Transcribed]]:
        """Sums of this process's scalars, and its transcripts."""
        sums, found = Sums(), list[Transcribed]()
        for batch in one_pass(self.splits, split, self.accelerator, interruption):
            output, units = self.objective(model, batch, self.accelerator.device, **model_arguments)
            sums = add([sums, weighted_scalars(output, units, self.objective.unit)])
            if batch.num_examples:
                seconds = [samples / SAMPLING_RATE for samples in batch.lengths.tolist()]
                parts = self.objective.texts(batch), self.transcribe(model, output), seconds
                found += map(Transcribed, *parts)
        self.show([one.reference for one in found], [one.hypothesis.text for one in found])
        return sums, found

    def show(self, references: list[str], transcripts: list[str]) -> None:
        """Keep the first few transcripts as examples, or say that the model writes nothing."""
        pairs = zip(references, transcripts, strict=True)
        if any(transcripts) or not any(references):
            self.examples.extend(f"  ref: {reference}\n  hyp: {transcript}" for reference, transcript in pairs)
        elif NOTHING_WRITTEN not in self.examples:
            self.examples.append(NOTHING_WRITTEN)
        del self.examples[self.num_examples :]

    def transcribe(self, model: nn.Module, output: Mapping[str, Any]) -> list[Hypothesis]:
        """Transcripts by greedy decoding of a model's output."""
        bare: Any = self.accelerator.unwrap_model(model)
        seconds_per_frame = bare.config.inputs_to_logits_ratio / SAMPLING_RATE
        decoder = greedy_decoder(bare, self.objective.processor.tokenizer, seconds_per_frame)
        frames = decoder_frames(output)
        mask = output.get("attention_mask")  # CTC has none: the best token of padded frames is the blank
        lengths = [frames.shape[1]] * len(frames) if mask is None else mask.sum(-1)
        return [best for best, *_ in decoder(frames, lengths)]


@dataclass(frozen=True)
class TranslationEvaluator(TranscriptEvaluator):
    """Loss, BLEU and chrF of translations; the highest BLEU marks the best checkpoint."""

    marks_best: ClassVar[str] = "bleu"

    def __post_init__(self) -> None:
        load_metrics()  # so that a run without sacrebleu ends before it begins

    def evaluate_split(
        self, model: nn.Module, split: str, interruption: Interruption, **model_arguments: Any
    ) -> dict[str, float]:
        """`loss`, `bleu` and `chrf` of one split, and `al`, `laal` and `yaal` in chunks, in ms.

        They are those of all processes' texts together. The laggings are NaN where no word came early enough.
        """
        sums, found = self.transcribe_split(model, split, interruption, **model_arguments)
        config: Any = self.accelerator.unwrap_model(model).config
        chunk_frames = model_arguments.get("chunk_size", 0)
        lookahead = config.num_lookahead_chunks if chunk_frames else 0
        clock = ChunkClock(config.inputs_to_logits_ratio / SAMPLING_RATE, chunk_frames, lookahead)
        instances: list[Instance] = gather_object(
            [
                Instance(
                    index,
                    one.hypothesis.text,
                    clock.delays(one.hypothesis.words or [], one.seconds),
                    one.reference,
                    1000 * one.seconds,
                    [],
                )
                for index, one in enumerate(found)
            ]
        )
        scores = score_translations([one.prediction for one in instances], [one.reference for one in instances])
        metrics = {**means(reduce(self.accelerator, sums)), **{name: one.value for name, one in scores.items()}}
        if chunk_frames:
            laggings = mean_laggings(instances)
            metrics |= {name: math.nan if (value := laggings[name]) is None else value for name in LAGGINGS}
        return metrics


def _named(unit: str, counts: ErrorCounts) -> dict[str, float]:
    return {f"{unit}/{name}": value for name, value in vars(counts).items()}


def _rate(unit: str, sums: Sums) -> float:
    """The error rate of counts that have been added over the processes."""
    prefix = f"{unit}/"
    counts = {name.removeprefix(prefix): int(value) for name, value in sums.items() if name.startswith(prefix)}
    total = ErrorCounts(**counts)
    return total.rate if total.reference_length else math.nan
