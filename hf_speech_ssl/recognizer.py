"""One way to ask any CTC model of the Hub for an utterance's log-probabilities, ours or not.

Shape letters: B utterances, T frames of logits, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCTC, AutoProcessor, PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

from .data.audio import SAMPLING_RATE
from .decoding import Decoder, GreedyDecoder, Hypothesis


@dataclass(frozen=True)
class Recognizer:
    """A CTC model with its processor, asked for whole utterances.

    Args:
        model: any `AutoModelForCTC`.
        processor: its processor: a feature extractor for 16 kHz audio and a tokenizer with a pad token, the blank.
    """

    model: PreTrainedModel
    processor: ProcessorMixin

    def __post_init__(self) -> None:
        rate = self.processor.feature_extractor.sampling_rate
        if rate != SAMPLING_RATE:
            raise ValueError(f"The model listens at {rate} Hz; models for {SAMPLING_RATE} Hz are needed.")
        if self.tokenizer.pad_token_id is None:
            raise ValueError("The model's tokenizer has no pad token, which CTC needs as its blank.")
        self.model.eval()

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str,
        revision: str | None = None,
        trust_remote_code: bool = False,
        device: str | torch.device | None = None,
    ) -> Recognizer:
        """Load from a folder or the Hub.

        Args:
            revision: branch, tag or commit on the Hub.
            trust_remote_code: run the model code that a repository of another family brings along.
            device: a GPU if there is one, by default.

        Raises:
            OSError: there is no such model. ValueError: it has no CTC head, or no processor for 16 kHz audio.
        """
        options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
        model = AutoModelForCTC.from_pretrained(name_or_path, **options)
        processor = AutoProcessor.from_pretrained(name_or_path, **options)
        if not hasattr(processor, "feature_extractor"):
            raise ValueError(f"{name_or_path} has no processor with a feature extractor: it takes no audio.")
        return cls(model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")), processor)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer whose ids the logits speak of."""
        return self.processor.tokenizer

    @property
    def seconds_per_frame(self) -> float:
        """Seconds between two frames of logits."""
        return float(self.model.config.inputs_to_logits_ratio / SAMPLING_RATE)

    @property
    def works_in_chunks(self) -> bool:
        """Whether the model can hear its input chunk by chunk, as Chunk SSL does."""
        return hasattr(self.model.config, "chunk_frames")

    def greedy(self) -> GreedyDecoder:
        """The decoder that needs nothing but the model's own tokenizer."""
        return GreedyDecoder(self.tokenizer, self.seconds_per_frame)

    def log_probs(
        self, waveforms: Sequence[NDArray[np.float32]], chunk_duration_ms: int = 0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What the model says about some utterances.

        Args:
            waveforms: each (samples,) at 16 kHz.
            chunk_duration_ms: Chunk SSL: hear the utterances in chunks of this duration; 0 hears them whole.

        Returns:
            (B, T, V) float32 log-probabilities on the CPU, and (B,) frames of each utterance.

        Raises:
            ValueError: chunks are asked of a model that has none, or are no whole number of frames.
        """
        if not self._pads_well and len(waveforms) > 1:
            return self._join([self.log_probs([waveform], chunk_duration_ms) for waveform in waveforms])
        inputs = self.processor(
            list(waveforms), sampling_rate=SAMPLING_RATE, padding=True, return_tensors="pt", return_attention_mask=True
        )
        if not self._pads_well:
            inputs.pop("attention_mask", None)
        with torch.inference_mode():
            output = self.model(**inputs.to(self.model.device), **self._chunk_arguments(chunk_duration_ms))
        log_probs = output.logits.float().log_softmax(-1).cpu()
        return log_probs, self._lengths(inputs, log_probs)

    def recognize(
        self, waveforms: Sequence[NDArray[np.float32]], decoder: Decoder | None = None, chunk_duration_ms: int = 0
    ) -> list[list[Hypothesis]]:
        """The best readings of some utterances, the best one first. Arguments and errors as in `log_probs`."""
        return (decoder or self.greedy())(*self.log_probs(waveforms, chunk_duration_ms))

    @property
    def _pads_well(self) -> bool:
        """Whether padding leaves a batch's utterances as they are, and the frames of each are known."""
        known = hasattr(self.model.config, "frame_stacking") or hasattr(self.model, "_get_feat_extract_output_lengths")
        return known and bool(getattr(self.processor.feature_extractor, "return_attention_mask", True))

    def _chunk_arguments(self, chunk_duration_ms: int) -> dict[str, int]:
        if self.works_in_chunks:
            return {"chunk_size": self.model.config.chunk_frames(chunk_duration_ms) if chunk_duration_ms else 0}
        if chunk_duration_ms:
            kind = type(self.model).__name__
            raise ValueError(f"{kind} hears whole utterances, not chunks of {chunk_duration_ms} ms; Chunk SSL does.")
        return {}

    def _lengths(self, inputs: Any, log_probs: torch.Tensor) -> torch.Tensor:
        if not self._pads_well:
            return torch.full((len(log_probs),), log_probs.shape[1])
        inputs_each = inputs["attention_mask"].sum(-1).cpu()
        if hasattr(self.model.config, "frame_stacking"):
            return inputs_each // self.model.config.frame_stacking
        output_lengths: Any = self.model._get_feat_extract_output_lengths  # an attribute that only some models have
        return torch.as_tensor(output_lengths(inputs_each)).long()

    @staticmethod
    def _join(parts: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
        rows = [log_probs[0] for log_probs, _ in parts]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), torch.cat([lengths for _, lengths in parts])
