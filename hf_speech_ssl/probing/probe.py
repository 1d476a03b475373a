"""One encoder over two splits: linear probes fitted on the frames of one and measured on the other, with the spread,
the codebook use and the label quality of what they saw.

Shape letters: L layers, C codebooks, N entries, T frames of an utterance, U utterances.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm.auto import tqdm

from ..data.reading import UtteranceReader
from ..options import ReadingOptions
from .collapse import FrameSpread
from .encoders import EncodedUtterance, SpeechEncoder
from .label_quality import IGNORED_PHONE_ID, LabelQuality, phone_ids_at_frames
from .linear_probe import LinearProbes

MEMORY_LIMIT = 2 * 1024**3  # bytes of float16 training frames over all layers; frames beyond are left out
MAX_TRAINING_FRAMES = 200_000
PHONE_FORMAT = (
    'a list of {"phone": name, "start": seconds, "end": seconds} for every utterance, in order of time '
    "(the corpus 'synthetic' has it as 'phones')"
)


class PhoneReader:
    """Reads a split's utterances with the phones at their frames.

    Args:
        options: the data set and its split.
        phone_column_name: column with a list of {"phone", "start", "end"} (s) for every utterance.

    Raises:
        ValueError: as [`UtteranceReader`]; or the column is not there, or holds no phone.
    """

    def __init__(self, options: ReadingOptions, phone_column_name: str):
        self.split_name, self.column = options.split_name, phone_column_name
        try:
            self.reader = UtteranceReader(options, columns=(phone_column_name,))
        except ValueError as error:
            if f"no column {phone_column_name!r}" in str(error):
                raise ValueError(f"{error} The probe needs a column with {PHONE_FORMAT}.") from None
            raise

    def inventory(self) -> set[str]:
        """All phones of the split; no audio is read."""
        rows = self.reader.dataset.select_columns([self.column])
        phones = {name for place, row in enumerate(rows) for name in self._parse(row[self.column], f"row {place}")[0]}
        if not phones:
            raise ValueError(f"Column {self.column!r} of split {self.split_name!r} is empty; needed: {PHONE_FORMAT}.")
        return phones

    def encode(
        self, encoder: SpeechEncoder, phone_ids: dict[str, int], what: str
    ) -> Iterator[tuple[EncodedUtterance, NDArray[np.int64]]]:
        """Every utterance encoded, and the phone at each of its frames, (T,) with `IGNORED_PHONE_ID` in none.

        Args:
            phone_ids: the number of every phone.
            what: what the progress bar says on a terminal.
        """
        with tqdm(total=len(self.reader), desc=what, unit="utterance", dynamic_ncols=True, disable=None) as bar:
            for batch in self.reader:
                with torch.inference_mode():
                    encoded = encoder([utterance.waveform for utterance in batch])
                for utterance, one in zip(batch, encoded, strict=True):
                    phones, starts, ends = self._parse(utterance.columns[self.column], utterance.name)
                    ids = [phone_ids[phone] for phone in phones]
                    timing = one.num_frames, one.frame_rate, one.first_frame_center
                    try:
                        yield one, phone_ids_at_frames(starts, ends, ids, *timing)
                    except ValueError as error:
                        raise ValueError(f"{utterance.name}: column {self.column!r}: {error}") from None
                bar.update(len(batch))

    def _parse(self, value: Any, name: str) -> tuple[list[str], list[float], list[float]]:
        """Names, starts and ends of an utterance's phones; none where there is no value."""
        try:
            if isinstance(value, dict):  # how `datasets` hands out a sequence of structs
                names, starts, ends = (list(value[key]) for key in ("phone", "start", "end"))
            else:
                names, starts, ends = ([phone[key] for phone in value or ()] for key in ("phone", "start", "end"))
            return [str(phone) for phone in names], [float(time) for time in starts], [float(time) for time in ends]
        except (KeyError, IndexError, TypeError, ValueError):
            shown = repr(value)
            raise ValueError(
                f"{name}: column {self.column!r} holds no phones with their times but "
                f"{shown if len(shown) < 80 else shown[:77] + '...'}; needed: {PHONE_FORMAT}."
            ) from None


def number_phones(train: Iterable[str], test: Iterable[str]) -> dict[str, int]:
    """Numbers of the phones of both splits, those of training first.

    Raises:
        ValueError: the splits share no phone.
    """
    known, unknown = sorted(set(train)), sorted(set(test) - set(train))
    if not set(known) & set(test):
        raise ValueError(
            f"The splits share no phone: {', '.join(known[:8])}, ... to train on, {', '.join(unknown[:8])}, ... to "
            "measure on. Give splits whose phones are written alike."
        )
    return {phone: number for number, phone in enumerate(known + unknown)}


@dataclass
class TrainingFrames:
    """Frames in a phone, to fit probes on.

    Args:
        features: (frames, D) float16 of every layer, on the CPU.
        targets: (frames,) int64, their phones.
        num_utterances: where they come from.
        full: whether there were more, which were left out.
    """

    features: list[torch.Tensor]
    targets: torch.Tensor
    num_utterances: int
    full: bool


def collect_training_frames(encoder: SpeechEncoder, reader: PhoneReader, phone_ids: dict[str, int]) -> TrainingFrames:
    """The first frames in a phone that `MAX_TRAINING_FRAMES` and `MEMORY_LIMIT` leave room for.

    Raises:
        ValueError: no frame lies in a phone, or a layer gives NaN or infinite values.
    """
    pieces: list[list[torch.Tensor]] = []
    targets: list[torch.Tensor] = []
    room, full = MAX_TRAINING_FRAMES, False
    for encoded, phones in reader.encode(encoder, phone_ids, "frames to train on"):
        if not pieces:
            pieces = [[] for _ in encoded.layers]
            room = min(room, MEMORY_LIMIT // (2 * sum(layer.shape[1] for layer in encoded.layers)))
        chosen = np.flatnonzero(phones != IGNORED_PHONE_ID)
        full = len(chosen) > room
        if len(chosen := chosen[:room]):
            for piece, layer in zip(pieces, half(encoded.layers), strict=True):
                piece.append(layer[torch.from_numpy(chosen).to(layer.device)].cpu())
            targets.append(torch.from_numpy(phones[chosen]))
            room -= len(chosen)
        if full:
            break
    if not targets:
        raise ValueError(f"No frame of split {reader.split_name!r} lies in a phone: check the times, in seconds.")
    # One layer after the other: two copies of all would not keep to the limit.
    features = [torch.cat(pieces.pop(0)) for _ in range(len(pieces))]
    return TrainingFrames(features, torch.cat(targets), len(targets), full)


def half(layers: list[torch.Tensor]) -> list[torch.Tensor]:
    """Layers as the probes see them: float16, the few features beyond its range clipped."""
    for index, layer in enumerate(layers):
        if not torch.isfinite(layer).all():
            raise ValueError(f"Layer {index} gives NaN or infinite values: the model's weights cannot be used.")
    limit = torch.finfo(torch.float16).max
    return [layer.clamp(-limit, limit).half() for layer in layers]


@dataclass
class Scores:
    """What the frames of a split gave.

    Args:
        hits: for every utterance with phones, the frames whose phone each layer's probe named: (L,).
        frames: for every such utterance, how many frames of every phone it has: (phones,).
        spreads: of every layer.
        code_counts: (C, N) of every layer, how often it uses each entry.
        labels: quality of every kind of pretraining label.
    """

    hits: list[NDArray[np.int64]] = field(default_factory=list)
    frames: list[NDArray[np.int64]] = field(default_factory=list)
    spreads: list[FrameSpread] = field(default_factory=list)
    code_counts: list[torch.Tensor] = field(default_factory=list)
    labels: dict[str, LabelQuality] = field(default_factory=dict)


def score(
    encoder: SpeechEncoder, reader: PhoneReader, phone_ids: dict[str, int], probes: LinearProbes | None
) -> Scores:
    """Measure probes, spread, codebook use and labels over a split; only the labels without probes.

    Raises:
        ValueError: no frame lies in a phone, or a layer gives NaN or infinite values.
    """
    scores = Scores()
    for encoded, phones in reader.encode(encoder, phone_ids, "frames to measure on"):
        in_phone = phones != IGNORED_PHONE_ID
        if probes is not None:
            predicted = probes.predict(half(encoded.layers))
            if in_phone.any():
                scores.hits.append((predicted == phones).sum(-1))
            _count_layers(scores, encoder, encoded.layers)
        if in_phone.any():
            scores.frames.append(np.bincount(phones[in_phone], minlength=len(phone_ids)))
        for name, labels in encoded.labels.items():
            scores.labels.setdefault(name, LabelQuality(len(phone_ids))).update(labels, phones)
    if not scores.frames:
        raise ValueError(f"No frame of split {reader.split_name!r} lies in a phone: check the times, in seconds.")
    return scores


def _count_layers(scores: Scores, encoder: SpeechEncoder, layers: list[torch.Tensor]) -> None:
    if not scores.spreads:
        scores.spreads = [FrameSpread() for _ in layers]
    for index, layer in enumerate(layers):
        scores.spreads[index].update(layer)
        codes = encoder.layer_codes(index, layer)
        counts = torch.stack([column.bincount(minlength=encoder.num_codes) for column in codes.unbind(-1)])
        if len(scores.code_counts) <= index:
            scores.code_counts.append(counts)
        else:
            scores.code_counts[index] += counts
