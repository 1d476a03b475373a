"""SpeechSSLFeatureExtractor: 16 kHz samples -> globally normalized log-mel frames.

Every frame depends on its own 400 samples and on nothing else (no center padding, no utterance statistics, no dither),
so the frames of the beginning of a signal are the beginning of its frames: streaming and offline see the same numbers.

Shape letters: B batch, S samples, F frames, M mel bins.
"""

from collections.abc import Iterable
from functools import lru_cache
from typing import Any, overload

import numpy as np
import torch
from transformers import BatchFeature, SequenceFeatureExtractor
from transformers.audio_utils import mel_filter_bank
from transformers.utils import logging

from .configuration_conformer import HOP_LENGTH, SAMPLING_RATE

logger = logging.get_logger(__name__)

FRAME_LENGTH = 400  # samples: 25 ms
FFT_LENGTH = 512  # samples, the frame padded with zeros
PREEMPHASIS = 0.97
LOUDEST = 32.0  # floats overshoot 1 by some decibels when they were mixed or decoded, not by thirty
INT16_SCALE = 32_768.0  # samples in [-1, 1] are scaled as Kaldi does; the floor is meant for that scale
# Least power of a mel bin: about what rounding to 16 bits leaves in a frame (variance 1/12 times the window's energy).
# Digital silence would otherwise lie 18 below the quietest recording, stretch the global variance and leave the random
# projections little but loudness to label: on synthetic speech they used 18 labels of 8192, with the floor 121.
POWER_FLOOR = 12.0
VARIANCE_FLOOR = 1e-8


@lru_cache(maxsize=16)
def window_and_mel_bank(num_mel_bins: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Kaldi's Povey window (FRAME_LENGTH,) and mel filters (FFT_LENGTH / 2 + 1, M) from 20 Hz to 8 kHz."""
    window = torch.hann_window(FRAME_LENGTH, periodic=False, dtype=torch.float64).pow(0.85)
    bank = mel_filter_bank(
        num_frequency_bins=FFT_LENGTH // 2 + 1,
        num_mel_filters=num_mel_bins,
        min_frequency=20.0,
        max_frequency=SAMPLING_RATE / 2,
        sampling_rate=SAMPLING_RATE,
        mel_scale="kaldi",
        triangularize_in_mel_space=True,
    )
    return window.float().to(device), torch.from_numpy(bank).float().to(device)


@overload
def num_frames(num_samples: torch.Tensor) -> torch.Tensor: ...
@overload
def num_frames(num_samples: int) -> int: ...
def num_frames(num_samples: torch.Tensor | int) -> torch.Tensor | int:
    """Whole 25 ms frames in `num_samples` samples."""
    frames = (num_samples - FRAME_LENGTH) // HOP_LENGTH + 1
    return frames.clamp_min(0) if isinstance(frames, torch.Tensor) else max(0, frames)


def frame_spectra(frames: torch.Tensor, window: torch.Tensor) -> torch.Tensor:
    """Spectra of frames, preemphasized and windowed: (..., FRAME_LENGTH) -> (..., FFT_LENGTH / 2 + 1), complex.

    They are linear in the frames, so that an exported graph can make them in one product.
    """
    frames = frames - frames.mean(-1, keepdim=True)
    previous = torch.cat([frames[..., :1], frames[..., :-1]], dim=-1)
    return torch.fft.rfft((frames - PREEMPHASIS * previous) * window, FFT_LENGTH)


def log_mel(waveforms: torch.Tensor, num_mel_bins: int = 80) -> torch.Tensor:
    """Kaldi's log-mel filter bank, with a floor in the place of its dither: (B, S) samples in [-1, 1] -> (B, F, M)."""
    window, bank = window_and_mel_bank(num_mel_bins, waveforms.device)
    frames = (waveforms * INT16_SCALE).unfold(-1, FRAME_LENGTH, HOP_LENGTH)  # (B, F, FRAME_LENGTH)
    spectrum = frame_spectra(frames, window)
    power = spectrum.real.square() + spectrum.imag.square()
    return (power @ bank).clamp_min(POWER_FLOOR).log()


class SpeechSSLFeatureExtractor(SequenceFeatureExtractor):
    r"""
    80-bin log-mel features at 100 frames per second, normalized with a mean and a variance per mel bin that were
    estimated once on the pretraining corpus and travel in this object's own configuration.

    Args:
        feature_size (`int`, defaults to 80): Mel bins.
        sampling_rate (`int`, defaults to 16000): The one sampling rate that is accepted, in Hz.
        padding_value (`float`, defaults to 0.0): Value of padded frames: the mean, once features are normalized.
        mean (`list[float]`, *optional*): Mean of every mel bin. `None`: features are not normalized.
        variance (`list[float]`, *optional*): Variance of every mel bin.
    """

    model_input_names = ["input_features", "attention_mask"]

    def __init__(
        self,
        feature_size: int = 80,
        sampling_rate: int = SAMPLING_RATE,
        padding_value: float = 0.0,
        mean: list[float] | None = None,
        variance: list[float] | None = None,
        **kwargs: Any,
    ):
        if sampling_rate != SAMPLING_RATE:
            raise ValueError(
                f"The features are defined at {SAMPLING_RATE} Hz (25 ms = 400 samples), got sampling_rate = "
                f"{sampling_rate}. Resample the audio to {SAMPLING_RATE} Hz instead."
            )
        if (mean is None) != (variance is None):
            raise ValueError("mean and variance belong together: give both or neither.")
        for name, values in (("mean", mean), ("variance", variance)):
            if values is not None and len(values) != feature_size:
                raise ValueError(f"{name} needs one value per mel bin ({feature_size}), got {len(values)}.")
        super().__init__(feature_size=feature_size, sampling_rate=sampling_rate, padding_value=padding_value, **kwargs)
        self.mean = mean
        self.variance = variance

    def extract(self, waveforms: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Features of a padded batch, on the device of `waveforms`.

        Args:
            waveforms: (B, S) float samples at 16 kHz in [-1, 1], padded on the right.
            lengths: (B,) true number of samples of each row.

        Returns:
            `input_features` (B, F, M) float32, `padding_value` beyond each utterance's last whole frame, and
            `attention_mask` (B, F) bool.

        Raises:
            ValueError: `waveforms` is not two-dimensional or holds less than one frame.
        """
        if waveforms.ndim != 2 or waveforms.shape[1] < FRAME_LENGTH:
            raise ValueError(
                f"waveforms must have shape (batch, samples) with at least {FRAME_LENGTH} samples (25 ms), got "
                f"{tuple(waveforms.shape)}."
            )
        with torch.no_grad(), torch.autocast(waveforms.device.type, enabled=False):
            features = log_mel(waveforms.float(), self.feature_size)
            if self.mean is not None:
                mean = torch.tensor(self.mean, device=features.device)
                features = (features - mean) * torch.tensor(self.variance, device=features.device).rsqrt()
            frames = torch.arange(features.shape[1], device=features.device)
            mask = frames < num_frames(lengths.to(features.device))[:, None]
            return features.masked_fill(~mask[..., None], self.padding_value), mask

    def fit_normalization(self, batches: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Estimate `mean` and `variance` from batches of (`waveforms`, `lengths`), shaped as in `extract`.

        Raises:
            ValueError: the batches hold fewer than two frames in all.
        """
        count = 0
        total = square = torch.zeros(self.feature_size, dtype=torch.float64)
        raw = type(self)(self.feature_size, padding_value=self.padding_value)
        for waveforms, lengths in batches:
            features, mask = raw.extract(waveforms, lengths)
            features = features[mask].double()
            count += len(features)
            total = total + features.sum(0).cpu()
            square = square + features.square().sum(0).cpu()
        if count < 2:
            raise ValueError(f"Normalization needs at least 2 frames of audio to estimate a variance, got {count}.")
        mean = total / count
        variance = (square / count - mean.square()).clamp_min(VARIANCE_FLOOR)
        self.mean, self.variance = mean.tolist(), variance.tolist()

    def __call__(  # noqa: PLR0913, PLR0917 - the arguments of transformers' feature extractors
        self,
        raw_speech: np.ndarray | list[float] | list[np.ndarray] | list[list[float]] | torch.Tensor,
        padding: bool | str = True,
        max_length: int | None = None,
        truncation: bool = False,
        pad_to_multiple_of: int | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: str | None = None,
        sampling_rate: int | None = None,
        device: str | torch.device = "cpu",
        **kwargs: Any,
    ) -> BatchFeature:
        """Features of one utterance or of several.

        Args:
            raw_speech: mono samples: one 1-D sequence, or a list (or 2-D array) of them. Floats are expected in
                [-1, 1]; int16 and int32 arrays are scaled by their type's range.
            padding, max_length, truncation, pad_to_multiple_of: as in every sequence feature extractor, in frames.
            return_attention_mask: whether to return which frames are real; `True` by default.
            return_tensors: `"pt"`, `"np"` or `None` (lists of arrays).
            sampling_rate: the rate of `raw_speech` in Hz, to make sure that it is 16 kHz.
            device: where to compute the features.

        Returns:
            `input_features` (B, F, M) and `attention_mask` (B, F).

        Raises:
            ValueError: another sampling rate, more than one channel, NaN or infinite samples, floats in the range of
                integers, or less than one frame.
        """
        if sampling_rate is None:
            logger.warning_once(
                f"Pass `sampling_rate` together with the audio: without it a recording that is not at "
                f"{self.sampling_rate} Hz gives wrong features without an error."
            )
        elif sampling_rate != self.sampling_rate:
            raise ValueError(
                f"Audio came at {sampling_rate} Hz, {self.sampling_rate} Hz is needed. Resample it, for example with "
                f"soxr.resample(audio, {sampling_rate}, {self.sampling_rate})."
            )
        waveforms = [_checked_waveform(one, index) for index, one in enumerate(_as_list(raw_speech))]
        lengths = torch.tensor([len(one) for one in waveforms])
        padded = torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True)
        features, _ = self.extract(padded.to(device), lengths)
        rows = [row[:n].cpu().numpy() for row, n in zip(features, num_frames(lengths).tolist(), strict=True)]
        return self.pad(
            BatchFeature({"input_features": rows}),
            padding=padding,
            max_length=max_length,
            truncation=truncation,
            pad_to_multiple_of=pad_to_multiple_of,
            return_attention_mask=return_attention_mask,
            return_tensors=return_tensors,
        )


def _as_list(raw_speech: Any) -> list[Any]:
    """The utterances of a call: a 1-D array or a flat list of numbers is one utterance."""
    if isinstance(raw_speech, (np.ndarray, torch.Tensor)):
        if raw_speech.ndim > 2:
            raise ValueError(
                f"Audio must be mono: one dimension per utterance, or (utterances, samples); got shape "
                f"{tuple(raw_speech.shape)}."
            )
        if raw_speech.ndim == 2 and raw_speech.shape[1] < FRAME_LENGTH <= raw_speech.shape[0]:
            raise ValueError(
                f"Audio must be mono; shape {tuple(raw_speech.shape)} looks like (samples, channels). Average the "
                f"channels, for example with audio.mean(axis=1)."
            )
        raw_speech = list(raw_speech) if raw_speech.ndim == 2 else [raw_speech]
    raw_speech = list(raw_speech)
    if not raw_speech:
        raise ValueError("No audio: got an empty list, at least one utterance is needed.")
    return [raw_speech] if np.ndim(raw_speech[0]) == 0 else raw_speech


def _checked_waveform(samples: Any, index: int) -> torch.Tensor:
    """One utterance as float32 samples in [-1, 1], or a `ValueError` that says what is wrong with it."""
    if isinstance(samples, torch.Tensor):
        samples = samples.detach().cpu()
        samples = (samples.float() if samples.is_floating_point() else samples).numpy()
    samples = np.asarray(samples)
    if samples.ndim != 1:
        raise ValueError(
            f"Utterance {index} has shape {samples.shape}, one channel (samples,) is needed. Average the channels."
        )
    if samples.dtype in (np.int16, np.int32):
        samples = samples / -float(np.iinfo(samples.dtype).min)
    elif samples.dtype.kind != "f":
        raise ValueError(
            f"Utterance {index} has samples of type {samples.dtype}, whose full scale is unknown; floats in [-1, 1], "
            f"int16 or int32 are needed."
        )
    if len(samples) < FRAME_LENGTH:
        raise ValueError(
            f"Utterance {index} has {len(samples)} samples, at least {FRAME_LENGTH} (25 ms) are needed for one frame."
        )
    samples = samples.astype(np.float32)
    if not np.isfinite(samples).all():
        raise ValueError(f"Utterance {index} holds NaN or infinite samples; finite samples in [-1, 1] are needed.")
    if (peak := float(np.abs(samples).max())) > LOUDEST:
        raise ValueError(
            f"Utterance {index} has floats up to {peak:g}, and floats in [-1, 1] are needed: divide them by what "
            f"stands for 1 (32768 if they were int16), or pass int16 samples."
        )
    return torch.from_numpy(samples)


SpeechSSLFeatureExtractor.register_for_auto_class()
