"""Frames of chosen layers of any encoder, of recordings of any length.

Shape letters: T encoder frames of a recording, D features of a layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..data.audio import SAMPLING_RATE
from ..data.audio_stream import SampleWindow
from ..modeling.configuration_conformer import HOP_LENGTH
from ..modeling.feature_extraction_speech_ssl import FRAME_LENGTH
from ..options import FrameOptions
from ..probing.encoders import EncodedUtterance, SpeechEncoder, extract_features
from ..recognition.windows import cut_windows

_TRIAL_SECONDS = 4.0  # of noise, to find out how many layers a model has


@dataclass(frozen=True)
class FrameTimes:
    """When the frames of a recording are.

    Args:
        num_frames: T.
        frame_rate: frames a second.
        first_center: seconds to the middle of the first frame; half a frame if `None`.
    """

    num_frames: int
    frame_rate: float
    first_center: float | None = None

    @property
    def starts(self) -> NDArray[np.float64]:
        """(T,) seconds: half a frame before the middle of the audio that a frame is made of, 0 at least."""
        first = 0.0 if self.first_center is None else self.first_center - 0.5 / self.frame_rate
        return np.maximum(0.0, first + np.arange(self.num_frames) / self.frame_rate)

    @property
    def ends(self) -> NDArray[np.float64]:
        """(T,) seconds: where the next frame starts."""
        return replace(self, num_frames=self.num_frames + 1).starts[1:]


@dataclass(frozen=True)
class Extracted:
    """What is extracted from a recording: frames (T, D) float32 or units (T,) int32, and when they are."""

    values: NDArray[Any]
    times: FrameTimes


class FrameExtractor:
    """Extracts frames of a layer, or the average of several, from recordings.

    Recordings of up to `window_seconds` are encoded whole. Longer ones are encoded

    - with chunks, chunk by chunk with a cache, which is the pass over the whole recording;
    - without, in windows of which the first and the last sixth only lend context: the pass over the whole recording
      where the model looks no further than that.

    Args:
        encoder: the encoder.
        options: which layers, chunks and windows.

    Raises:
        ValueError: there are no such layers or chunks, or layers of other widths cannot be averaged.
    """

    def __init__(self, encoder: SpeechEncoder, options: FrameOptions):
        if encoder.model is None:
            raise ValueError("A tokenizer has labels and no layers; take `hf-speech-ssl units` with --labels fsq.")
        self.window = round(options.window_seconds * SAMPLING_RATE)  # samples
        self.encoder = replace(encoder, labeler=None, chunk_size=_chunk_size(encoder, options.chunk_duration_ms))
        noise = np.random.default_rng(0).standard_normal(round(_TRIAL_SECONDS * SAMPLING_RATE)).astype(np.float32)
        with torch.inference_mode():
            [trial] = self.encoder([noise * np.float32(0.01)])
        self.layers = parse_layers(options.layers, len(trial.layers))
        widths = {trial.layers[layer].shape[1] for layer in self.layers}
        if len(widths) > 1:
            raise ValueError(
                f"Layers of {' and '.join(map(str, sorted(widths)))} features cannot be averaged: leave layer 0, the "
                f"{encoder.input_name}, out of --layers."
            )
        [self.num_features] = widths
        self.frame_rate, self.first_center = trial.frame_rate, trial.first_frame_center

    @torch.inference_mode()
    def __call__(self, waveforms: Sequence[NDArray[np.float32]]) -> list[Extracted]:
        """Frames of recordings, each (samples,) at 16 kHz; each as if it came alone."""
        short = [waveform for waveform in waveforms if len(waveform) <= self.window]
        whole = iter(self.encoder(short) if short else [])
        return [
            self._frames(next(whole)) if len(waveform) <= self.window else self._long(waveform)
            for waveform in waveforms
        ]

    def _frames(self, encoded: EncodedUtterance) -> Extracted:
        times = FrameTimes(encoded.num_frames, encoded.frame_rate, encoded.first_frame_center)
        return Extracted(self._average(encoded.layers).cpu().numpy(), times)

    def _average(self, layers: Sequence[torch.Tensor]) -> torch.Tensor:
        chosen = [layers[layer].float() for layer in self.layers]
        return torch.stack(chosen).mean(0) if len(chosen) > 1 else chosen[0]

    def _long(self, waveform: NDArray[np.float32]) -> Extracted:
        pieces = self._chunks(waveform) if self.encoder.chunk_size else self._windows(waveform)
        values = torch.cat(pieces).numpy()
        return Extracted(values, FrameTimes(len(values), self.frame_rate, self.first_center))

    def _windows(self, waveform: NDArray[np.float32]) -> list[torch.Tensor]:
        stride = round(SAMPLING_RATE / self.frame_rate)
        windows = cut_windows(SampleWindow([waveform]), self.window // stride, stride)
        return [window.kept(self._average(self.encoder([window.waveform])[0].layers)).cpu() for window in windows]

    def _chunks(self, waveform: NDArray[np.float32]) -> list[torch.Tensor]:
        """Streaming steps over the whole recording, the features cut where the chunks are."""
        model: Any = self.encoder.model
        stacking = model.config.frame_stacking
        size = self.encoder.chunk_size * stacking
        num_frames = (1 + (len(waveform) - FRAME_LENGTH) // HOP_LENGTH) // stacking * stacking
        bounds = [*range(0, num_frames, size), num_frames]

        def features(begin: int, end: int) -> torch.Tensor:
            samples = waveform[begin * HOP_LENGTH : (end - 1) * HOP_LENGTH + FRAME_LENGTH]
            return extract_features(self.encoder.extractor, [samples], self.encoder.device)[0]

        spans: list[tuple[int, int] | None] = [*pairwise(bounds), None]
        chunk: torch.Tensor | None = features(bounds[0], bounds[1])
        cache, pieces = None, []
        for following in spans[1:]:
            ahead = None if following is None else features(*following)
            output = model(
                chunk,
                lookahead_features=ahead if model.config.num_lookahead_chunks else None,
                past_key_values=cache,
                use_cache=True,
                output_hidden_states=True,
                return_dict=True,
            )
            layers = [model.stack_frames(chunk, None)[0], *output.hidden_states[1:]]
            pieces.append(self._average([layer[0] for layer in layers]).cpu())
            chunk, cache = ahead, output.cache
        return pieces


def parse_layers(words: Sequence[str], num_layers: int) -> list[int]:
    """The numbers of layers, from words: numbers, "last", or "all" for all blocks.

    Args:
        num_layers: layers that there are, the input of the first block counted as number 0.

    Raises:
        ValueError: there are no such layers.
    """
    named = {"last": [num_layers - 1], "all": list(range(1, num_layers))}
    numbers = []
    for word in words:
        if word not in named and not (word.isdecimal() and int(word) < num_layers):
            raise ValueError(
                f"There is no layer {word!r}: --layers takes numbers from 0 (the input) to {num_layers - 1} (the last "
                f"block), last, or all."
            )
        numbers += named.get(word) or [int(word)]
    return sorted(set(numbers))


def _chunk_size(encoder: SpeechEncoder, duration_ms: int) -> int:
    """Encoder frames in a chunk."""
    if not duration_ms:
        return 0
    config: Any = encoder.model.config if encoder.model is not None else None
    if not hasattr(config, "chunk_frames"):
        raise ValueError(f"A {type(encoder.model).__name__} does not work in chunks: leave --chunk_duration_ms out.")
    return int(config.chunk_frames(duration_ms))
