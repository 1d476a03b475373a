"""What training gets: a padded batch of waveforms, and where reading goes on after it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .audio import SAMPLING_RATE


@dataclass(frozen=True)
class DataPosition:
    """Where reading goes on after a batch; `DataPosition(epoch)` is the beginning of an epoch.

    It goes into a checkpoint as `dataclasses.asdict(position)`, which JSON can hold, and comes back as
    `DataPosition(**saved)`. On a map-style data set it is the same on every process; on a stream each process has its
    own.

    Attributes:
        epoch: counted from 0.
        rows: rows of the epoch before the current window.
        steps: batches of the current window that are done.
        stream: the state of an `IterableDataset` at the beginning of the window.
        plan: the settings that the position depends on; empty if it depends on none.
    """

    epoch: int
    rows: int = 0
    steps: int = 0
    stream: dict[str, Any] | None = None
    plan: str = ""


@dataclass(frozen=True)
class Utterance:
    """One row of a data set, its audio decoded.

    Attributes:
        waveform: (samples,) at 16 kHz.
        text: its transcript; empty where no text column was asked for.
        name: what to call it in a message: a path, or where it stands in the data set.
        index: its row.
        columns: the other columns that were asked for.
    """

    waveform: NDArray[np.float32]
    text: str
    name: str
    index: int
    columns: dict[str, Any] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Its duration."""
        return len(self.waveform) / SAMPLING_RATE


@dataclass
class Batch:
    """Utterances of similar length.

    A batch whose files were all bad still comes out, so that every process takes the same number of steps: one row of
    a second of zeros with `num_examples == 0`, which must get weight 0.

    Attributes:
        waveforms: (batch, samples) float32 at 16 kHz, padded with zeros.
        lengths: (batch,) int64, samples without padding.
        texts: transcripts, one per row, or None if no text column was asked for.
        names: what to call each row in a message.
        num_examples: utterances in the batch.
        position: where reading goes on after the batch.
    """

    waveforms: torch.Tensor
    lengths: torch.Tensor
    texts: list[str] | None
    names: list[str]
    num_examples: int
    position: DataPosition

    @property
    def seconds(self) -> float:
        """Seconds of audio without padding."""
        return self.lengths.sum().item() / SAMPLING_RATE if self.num_examples else 0.0


def collate(
    waveforms: Sequence[np.ndarray], texts: Sequence[str] | None, names: Sequence[str], position: DataPosition
) -> Batch:
    """Pad waveforms, each (samples,) float32 at 16 kHz, into a batch; none at all become the placeholder."""
    num_examples = len(waveforms)
    if num_examples == 0:
        waveforms, names = [np.zeros(SAMPLING_RATE, dtype=np.float32)], ["placeholder"]
        texts = None if texts is None else [""]
    lengths = torch.tensor([len(waveform) for waveform in waveforms])
    padded = torch.zeros(len(waveforms), int(lengths.max()))  # (batch, samples)
    for row, waveform in zip(padded, waveforms, strict=True):
        row[: len(waveform)] = torch.from_numpy(waveform)
    return Batch(padded, lengths, None if texts is None else list(texts), list(names), num_examples, position)
