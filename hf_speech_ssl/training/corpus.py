"""Which audio a run reads, and the batches that it makes of it."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from datasets import Dataset
from numpy.typing import NDArray

from hf_speech_ssl.data.batch import Batch
from hf_speech_ssl.data.batching import SpeechBatches
from hf_speech_ssl.data.corpora import SpeechDataset, load_corpus_with_report
from hf_speech_ssl.data.folders import CorpusReport
from hf_speech_ssl.data.texts import Transcripts, read_transcripts
from hf_speech_ssl.modeling.feature_extraction_speech_ssl import SpeechSSLFeatureExtractor

from .processes import decided_by_main_process
from .settings import DataSettings, TrainingSettings

MAX_VOCABULARY_TEXTS = 100_000  # read for the characters of a streamed corpus


@dataclass(frozen=True)
class Corpus:
    """The training split and the evaluation splits by name.

    Args:
        text_column: column with the transcripts; `None` where they are not needed.
    """

    settings: DataSettings
    train: SpeechDataset
    evaluation: dict[str, SpeechDataset]
    text_column: str | None = None

    @classmethod
    def load(cls, settings: DataSettings, accelerator: Accelerator, text_column: str | None = None) -> "Corpus":
        """Download or make what is missing (once per machine) and open it."""

        def load_split(split: str, limit: int | None) -> tuple[SpeechDataset, CorpusReport]:
            dataset, report = load_corpus_with_report(
                settings.dataset_name,
                config_name=settings.dataset_config_name,
                split=split,
                streaming=settings.streaming,
                audio_column=settings.audio_column_name,
                text_column=text_column,
                revision=settings.dataset_revision,
                cache_dir=settings.dataset_cache_dir,
            )
            return dataset if limit is None else dataset.take(limit), report

        with accelerator.local_main_process_first():
            train, report = load_split(settings.train_split_name, settings.max_train_samples)
            evaluation = {name: load_split(name, settings.max_eval_samples)[0] for name in settings.eval_split_names}
        accelerator.print(report)
        return cls(settings, train, evaluation, text_column)

    def batches(self, dataset: SpeechDataset, seed: int, batch_seconds: float, **options: Any) -> SpeechBatches:
        """Batches of a split under the settings' limits."""
        return SpeechBatches(
            dataset,
            batch_seconds=batch_seconds,
            seed=seed,
            min_seconds=self.settings.min_duration_in_seconds,
            max_seconds=self.settings.max_duration_in_seconds,
            num_workers=self.settings.dataloader_num_workers,
            audio_column=self.settings.audio_column_name,
            text_column=self.text_column,
            on_bad_audio=self.settings.on_bad_audio,  # type: ignore[arg-type]
            **options,
        )

    def train_batches(self, accelerator: Accelerator, seed: int) -> SpeechBatches:
        """This process's share of the training split, in an order that the seed fixes."""
        return self.batches(self.train, seed, self.settings.per_device_train_batch_seconds, **_share(accelerator))

    def num_steps(self, settings: TrainingSettings, batches: SpeechBatches, accelerator: Accelerator) -> int:
        """Updates of the whole run: `max_steps`, or what `num_train_epochs` come to by the lengths of all files.

        Raises:
            ValueError: epochs of a stream, whose length nobody knows.
        """
        if settings.max_steps is not None:
            return settings.max_steps
        if self.settings.streaming:
            raise ValueError("--max_steps is needed with --streaming: how long an epoch is cannot be known.")
        count = decided_by_main_process(accelerator, lambda: batches.count_steps(epoch=0))
        if len(batches.skipped):  # all lengths are known by now
            accelerator.print(f"Of these, {batches.skipped}.")
        return max(1, math.ceil(settings.num_train_epochs * count / settings.gradient_accumulation_steps))

    def sample_batches(self, seed: int) -> SpeechBatches:
        """Batches drawn from the whole training split, whatever the number of processes."""
        return self.batches(self.train, seed, min(60.0, self.settings.per_device_train_batch_seconds))

    def sample_waveforms(self, seed: int, seconds: float) -> list[NDArray[np.float32]]:
        """About so many seconds of training audio, as waveforms (samples,) at 16 kHz."""
        rows: list[NDArray[np.float32]] = []
        for batch in self.sample_batches(seed).epoch(0):
            rows += [row[:length].numpy() for row, length in zip(batch.waveforms, batch.lengths, strict=True)]
            seconds -= batch.seconds
            if seconds <= 0:
                break
        return rows

    def eval_batches(self, accelerator: Accelerator) -> dict[str, SpeechBatches]:
        """This process's share of every evaluation split."""
        seconds = self.settings.per_device_eval_batch_seconds
        return {
            name: self.batches(dataset, 0, seconds, shuffle=False, **_share(accelerator))
            for name, dataset in self.evaluation.items()
        }

    def transcripts(self, dataset: SpeechDataset, normalize: Callable[[str], str]) -> Transcripts:
        """The transcripts of a split, normalized; of a stream the first ones only.

        Raises:
            ValueError: the column holds no texts.
        """
        assert self.text_column is not None
        most = None if isinstance(dataset, Dataset) else MAX_VOCABULARY_TEXTS
        return read_transcripts(dataset, self.text_column, most, normalize)


def _share(accelerator: Accelerator) -> dict[str, int]:
    return {"process_index": accelerator.process_index, "num_processes": accelerator.num_processes}


def estimate_normalization(
    feature_extractor: SpeechSSLFeatureExtractor,
    batches: SpeechBatches,
    seconds: float,
    accelerator: Accelerator,
) -> None:
    """Mean and variance of the features over the first `seconds` of `batches`, the same on all processes.

    Raises:
        ValueError: no usable audio.
    """

    def estimate() -> tuple[list[float] | None, list[float] | None]:
        try:
            feature_extractor.fit_normalization(_first(batches.epoch(0), seconds, accelerator.device))
        except ValueError as error:
            raise ValueError(
                f"The features' mean and variance could not be estimated: {error} Of the training split, "
                f"{batches.skipped}."
            ) from error
        return feature_extractor.mean, feature_extractor.variance

    feature_extractor.mean, feature_extractor.variance = decided_by_main_process(accelerator, estimate)


def _first(
    batches: Iterable[Batch], seconds: float, device: torch.device
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    seen = 0.0
    for batch in batches:
        if batch.num_examples:
            yield batch.waveforms.to(device), batch.lengths.to(device)
        seen += batch.seconds
        if seen >= seconds:
            return
