"""Windows of a long recording, whose frames put together are those of the whole."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ..data.audio_stream import SampleWindow

_CONTEXT_SHARE = 1 / 6  # of a window, on either side
_ODD_FRAMES = 2  # that models may have more or fewer at the edges than their stride says


@dataclass(frozen=True)
class Window:
    """Samples of which the frames [begin, end) are kept; all from `begin` on where `end` is `None`.

    Attributes:
        size: frames that the window was cut for.
    """

    waveform: NDArray[np.float32]
    begin: int
    end: int | None
    size: int

    def kept(self, frames: torch.Tensor) -> torch.Tensor:
        """The frames (T, D) of the window that are part of the whole.

        Raises:
            ValueError: there are more or fewer than the stride says.
        """
        if self.end is not None and abs(len(frames) - self.size) > _ODD_FRAMES:
            raise ValueError(
                f"The model made {len(frames)} frames of a window of {self.size} times its stride, "
                f"config.inputs_to_logits_ratio: windows of it cannot be put together. Cut the audio into shorter "
                f"files, or take longer windows."
            )
        return frames[self.begin : self.end]


def cut_windows(samples: SampleWindow, size: int, stride: int) -> Iterator[Window]:
    """Windows of `size` frames that begin where a frame of the whole begins.

    The first and the last sixth of a window only lend context.

    Args:
        stride: samples from one frame to the next.
    """
    context = max(_ODD_FRAMES, round(size * _CONTEXT_SHARE))
    kept = 0  # frames so far
    while True:
        begin = max(0, kept - context)
        waveform = samples.between(begin * stride, (begin + size) * stride)
        if samples.ends_before((begin + size) * stride):
            yield Window(waveform, kept - begin, None, size)
            return
        yield Window(waveform, kept - begin, size - context, size)
        kept = begin + size - context
