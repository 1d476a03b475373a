"""Frames and transcripts of utterances by any CTC model of the Hub, ours or not, and by our transducers.

Shape letters: B utterances, T frames, V vocabulary, J width of a transducer's joint network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import (
    AutoModelForCTC,
    AutoModelForRNNT,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)

from ..data.audio import SAMPLING_RATE
from ..decoding import (
    Decoder,
    Hypothesis,
    PrefixBeamDecoder,
    decoder_frames,
    greedy_decoder,
    is_transducer,
    make_decoder,
    make_transducer_decoder,
)
from ..loading import Checkpoint, CheckpointKind, find_checkpoint, pick_device
from ..options import DecodingOptions

_TRIAL_SECONDS = (4.0, 2.53)  # of noise, to find out how a model treats padding and how many frames it has
_SHORTEST_SECONDS = 0.2  # less is lengthened by silence: convolutions of some models have no output for it
_RATIO_TOLERANCE = 0.05  # by which 4 s can miss the samples a frame: the first and last windows are cut
_FEATURE_HOP = 80  # samples: features come every so many, or every second time (5 or 10 ms)
_WITHOUT_HEAD = (
    "An encoder without a head writes no text: fine-tune it first (finetuning_scripts/run_ctc.py), or name a "
    "model that was."
)


@dataclass(frozen=True)
class Recognizer:
    """Transcribes utterances with a CTC model or a transducer, and its processor.

    Args:
        model: any `AutoModelForCTC`, or an `AutoModelForRNNT` of this package.
        processor: its processor: a feature extractor for 16 kHz audio and a tokenizer with a pad token, the blank.

    Raises:
        ValueError: the processor is no such one.
    """

    model: PreTrainedModel
    processor: ProcessorMixin

    def __post_init__(self) -> None:
        for part, purpose in (("feature_extractor", "takes no audio"), ("tokenizer", "writes no text")):
            if getattr(self.processor, part, None) is None:
                raise ValueError(
                    f"The {type(self.processor).__name__} of the model has no {part.replace('_', ' ')}, so it "
                    f"{purpose}; save the processor that it was fine-tuned with beside it."
                )
        rate = getattr(self.processor.feature_extractor, "sampling_rate", None)
        if rate != SAMPLING_RATE:
            raise ValueError(f"The model needs audio at {rate} Hz; models for {SAMPLING_RATE} Hz are needed.")
        if self.tokenizer.pad_token_id is None:
            raise ValueError("The model's tokenizer has no pad token, which is needed as the blank.")
        self.model.eval()

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str,
        revision: str | None = None,
        trust_remote_code: bool = False,
        device: str | torch.device | None = None,
    ) -> Recognizer:
        """Load from a folder or the Hub, in float32.

        Args:
            revision: branch, tag or commit on the Hub.
            trust_remote_code: run the model code that a repository of another family brings along.
            device: a GPU if there is one, by default.

        Raises:
            OSError: there is no such model. ValueError: it has no head that writes text, or no processor for 16 kHz
                audio; its weights cannot be read; there is no such device.
        """
        return cls.from_checkpoint(find_checkpoint(name_or_path, revision, trust_remote_code), device)

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, device: str | torch.device | None = None) -> Recognizer:
        """Load a checkpoint that has been looked up. Errors as in `from_pretrained`."""
        place = pick_device(device)
        name, config = checkpoint.name_or_path, checkpoint.config
        if checkpoint.kind is CheckpointKind.TRANSDUCER:
            if checkpoint.family is None:
                raise ValueError(
                    f"{name} ({config.model_type}) is a transducer of another package; CTC models will do."
                )
            return cls(checkpoint.load_model(AutoModelForRNNT, place, _WITHOUT_HEAD), checkpoint.load_processor())
        remote = getattr(config, "auto_map", None) or {}
        if type(config) not in AutoModelForCTC._model_mapping and "AutoModelForCTC" not in remote:
            raise ValueError(f"{name} ({config.model_type}) is no CTC model; Transformers has no CTC head for it.")
        model = checkpoint.load_model(AutoModelForCTC, place, if_missing=_WITHOUT_HEAD)
        return cls(model, checkpoint.load_processor())

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer whose ids the model writes."""
        return self.processor.tokenizer

    @property
    def works_in_chunks(self) -> bool:
        """Whether the model can transcribe chunk by chunk, as Chunk SSL does."""
        return hasattr(self.model.config, "chunk_frames")

    @cached_property
    def seconds_per_frame(self) -> float:
        """Seconds between two frames.

        The config's `inputs_to_logits_ratio` where it fits the logits of 4 s of noise. Some models state it in feature
        frames instead of samples, and some do not state it.
        """
        stated = float(getattr(self.model.config, "inputs_to_logits_ratio", 0))
        waveform = _noise(_TRIAL_SECONDS[0])
        measured = len(waveform) / int(self._compute([waveform])[1])
        if abs(stated / measured - 1) < _RATIO_TOLERANCE:
            return stated / SAMPLING_RATE
        return max(1, round(measured / _FEATURE_HOP)) * _FEATURE_HOP / SAMPLING_RATE

    def latency_ms(self, chunk_duration_ms: int) -> tuple[float, float]:
        """How long after its sound a frame is transcribed in a live stream: (longest, mean), in ms.

        What begins a chunk waits for the end of the chunk and of its look-ahead; what ends it for the look-ahead
        alone. Computation comes on top.

        Raises:
            ValueError: as in `decoder_frames`, or the duration is 0: a whole utterance waits for its end.
        """
        self._chunk_arguments(chunk_duration_ms)
        if not chunk_duration_ms:
            raise ValueError("A chunk of 0 ms stands for whole utterances; give the duration of a chunk in ms.")
        ahead = chunk_duration_ms * self.model.config.num_lookahead_chunks
        return float(chunk_duration_ms + ahead), chunk_duration_ms / 2 + ahead

    def greedy(self) -> Decoder[Any]:
        """The decoder that needs nothing but the model and its tokenizer."""
        return greedy_decoder(self.model, self.tokenizer, self.seconds_per_frame)

    def make_decoder(self, options: DecodingOptions, num_best: int = 1) -> Decoder[Any]:
        """The decoder that options ask for. Errors as in `decoding.make_decoder` and `make_transducer_decoder`."""
        if is_transducer(self.model):
            return make_transducer_decoder(self.model, self.tokenizer, self.seconds_per_frame, options, num_best)
        return make_decoder(self.tokenizer, self.seconds_per_frame, options, num_best)

    def make_live_decoder(self, options: DecodingOptions, hot_words: bool = False) -> Decoder[Any]:
        """The decoder of live streams that options ask for: greedy unless they name anything.

        Args:
            hot_words: whether streams will have hot words.

        Raises:
            ImportError, OSError, ValueError: as in [`PrefixBeamDecoder`] and `make_decoder`.
        """
        searches = hot_words or options.lm_path is not None or options.beam_size is not None
        if is_transducer(self.model) or options.lexicon_path is not None or not searches:
            return self.make_decoder(options)
        return PrefixBeamDecoder(self.tokenizer, self.seconds_per_frame, options)

    def decoder_frames(
        self, waveforms: Sequence[NDArray[np.float32]], chunk_duration_ms: int = 0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What the decoder takes, of a batch. Each utterance gets the same result as if it were processed alone.

        Args:
            waveforms: each (samples,) at 16 kHz.
            chunk_duration_ms: Chunk SSL: duration of the chunks that the utterances are processed in; 0 for whole
                utterances.

        Returns:
            (B, T, V) float32 log-probabilities on the CPU, of a transducer (B, T, J) encoder frames; and (B,) frames
            of each utterance.

        Raises:
            ValueError: chunks are asked of a model that has none, or are no whole number of frames.
        """
        arguments = self._chunk_arguments(chunk_duration_ms)
        if len(waveforms) == 1 or self._pads_well:
            return self._compute(waveforms, **arguments)
        parts = [self._compute([waveform], **arguments) for waveform in waveforms]
        rows = [frames[0] for frames, _ in parts]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), torch.cat([lengths for _, lengths in parts])

    def recognize(
        self, waveforms: Sequence[NDArray[np.float32]], decoder: Decoder[Any] | None = None, chunk_duration_ms: int = 0
    ) -> list[list[Hypothesis]]:
        """The hypotheses of some utterances, the best one first. Arguments and errors as in `decoder_frames`."""
        return (decoder or self.greedy())(*self.decoder_frames(waveforms, chunk_duration_ms))

    @cached_property
    def _pads_well(self) -> bool:
        """Whether padding leaves a batch's utterances as they are, tried on noise.

        Many models let it leak in, through convolutions or statistics over the batch, and no flag tells which do.
        """
        waveforms = [_noise(seconds) for seconds in _TRIAL_SECONDS]
        if "attention_mask" not in self._features(waveforms):
            return False
        together, lengths = self._compute(waveforms)
        for row, length, waveform in zip(together, lengths.tolist(), waveforms, strict=True):
            alone, (own_length,) = self._compute([waveform])
            if own_length != length or not torch.allclose(row[:length], alone[0, :length], rtol=1e-3, atol=1e-3):
                return False
        return True

    def _compute(
        self, waveforms: Sequence[NDArray[np.float32]], **arguments: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        inputs = self._features(waveforms).to(self.model.device)
        with torch.inference_mode():
            encode: Any = self.model.get_audio_features if is_transducer(self.model) else self.model
            frames = decoder_frames(encode(**inputs, **arguments)).float().cpu()
        return frames, self._lengths(inputs.get("attention_mask"), frames)

    def _features(self, waveforms: Sequence[NDArray[np.float32]]) -> Any:
        extractor = self.processor.feature_extractor
        return extractor(
            [_at_least(_SHORTEST_SECONDS, waveform) for waveform in waveforms],
            sampling_rate=SAMPLING_RATE,
            padding=True,
            return_tensors="pt",
            return_attention_mask=getattr(extractor, "return_attention_mask", True),  # some models take none
        )

    def _lengths(self, mask: torch.Tensor | None, frames: torch.Tensor) -> torch.Tensor:
        lengths = torch.full((len(frames),), frames.shape[1])
        count = self._count_frames
        if mask is None or count is None:
            return lengths
        return torch.as_tensor(count(mask.sum(-1).cpu())).long().clamp(min=0).minimum(lengths)

    @property
    def _count_frames(self) -> Callable[[torch.Tensor], Any] | None:
        """From inputs that are real to frames, where the model knows."""
        if (stacking := getattr(self.model.config, "frame_stacking", None)) is not None:
            return lambda inputs: inputs // stacking
        for owner in (self.model, getattr(self.model, "encoder", None)):
            for name in ("_get_feat_extract_output_lengths", "_get_subsampling_output_length"):
                if hasattr(owner, name):
                    found: Callable[[torch.Tensor], Any] = getattr(owner, name)
                    return found
        return None

    def _chunk_arguments(self, chunk_duration_ms: int) -> dict[str, int]:
        if self.works_in_chunks:
            return {"chunk_size": self.model.config.chunk_frames(chunk_duration_ms) if chunk_duration_ms else 0}
        if chunk_duration_ms:
            kind = type(self.model).__name__
            raise ValueError(
                f"{kind} takes whole utterances, not chunks of {chunk_duration_ms} ms; Chunk SSL takes both."
            )
        return {}


def _at_least(seconds: float, waveform: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.pad(waveform, (0, max(0, round(seconds * SAMPLING_RATE) - len(waveform))))


def _noise(seconds: float) -> NDArray[np.float32]:
    samples = np.random.default_rng(0).standard_normal(round(seconds * SAMPLING_RATE), dtype=np.float32)
    return 0.1 * samples
