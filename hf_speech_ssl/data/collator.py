"""Batches for transformers' Trainer, straight from the rows of a data set of audio."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..modeling.modeling_classification import IGNORED_LABEL
from .audio import SAMPLING_RATE, audio_duration, audio_name, load_audio
from .segments import TimeColumns


@dataclass(frozen=True)
class SpeechCollator:
    """Makes a batch of rows: `input_features`, `attention_mask` and, where a column is named, `labels`.

    The Trainer must leave the rows as they are: `TrainingArguments(remove_unused_columns=False)`. Audio is decoded
    here, of any rate and number of channels; `load_corpus` gives rows whose audio is not decoded yet. Columns such as
    `offset` and `duration` cut segments out of recordings, as everywhere in this package.

    Args:
        processor: a feature extractor, or for texts a processor with a tokenizer.
        text_column: with the transcript of each utterance, for a head that writes text.
        label_column: with the class of each utterance: a number, or a name in `label2id`; or, for classes of frames,
            a list with the number of every encoder frame.
        label2id: numbers of the names; `model.config.label2id`.
        audio_column: with the audio.

    Raises:
        ValueError: both a text and a label column, or a text column without a tokenizer.
    """

    processor: Any
    text_column: str | None = None
    label_column: str | None = None
    label2id: Mapping[str, int] | None = None
    audio_column: str = "audio"

    def __post_init__(self) -> None:
        if self.text_column is not None and self.label_column is not None:
            raise ValueError("Labels are texts or classes: name text_column or label_column, not both.")
        if self.text_column is not None and not hasattr(self.processor, "tokenizer"):
            raise ValueError(
                f"Texts need a processor with a tokenizer, as build_ctc_processor makes it, got a "
                f"{type(self.processor).__name__}."
            )

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """A batch.

        Raises:
            AudioError: a file cannot be used; it is named.
            ValueError: a class is not in `label2id`, or has no number.
        """
        extractor = getattr(self.processor, "feature_extractor", self.processor)
        waveforms = [self._waveform(row) for row in rows]
        inputs = extractor(
            waveforms, sampling_rate=SAMPLING_RATE, padding=True, return_attention_mask=True, return_tensors="pt"
        )
        batch = dict(inputs)
        if self.text_column is not None:
            texts = self.processor.tokenizer(
                [str(row[self.text_column]) for row in rows], padding=True, return_tensors="pt"
            )
            batch["labels"] = texts["input_ids"].masked_fill(texts["attention_mask"] == 0, IGNORED_LABEL)
        elif self.label_column is not None:
            labels = [torch.tensor(self._label(row)) for row in rows]
            batch["labels"] = (
                torch.nn.utils.rnn.pad_sequence(labels, True, IGNORED_LABEL)
                if labels[0].ndim
                else (torch.stack(labels))
            )
        return batch

    def _waveform(self, row: Mapping[str, Any]) -> Any:
        audio = row[self.audio_column]
        times = TimeColumns.find(list(row)).read(row, audio_name(audio))
        segment = None if times.begin is None else times.segment(audio_duration(audio))
        return load_audio(audio, segment=segment)

    def _label(self, row: Mapping[str, Any]) -> int | list[int]:
        value = row[self.label_column or ""]
        if isinstance(value, int | list):
            return value
        known = self.label2id or {}
        if value not in known:
            raise ValueError(
                f"Column {self.label_column!r} holds {value!r}, which has no number in label2id ({list(known)[:8]}): "
                f"give the collator and the model the classes of the whole data set."
            )
        return known[value]
