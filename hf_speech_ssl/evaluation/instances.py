"""Translated utterances with the times of their words, as SimulEval and OmniSTEval read them, and their mean laggings.

A word comes when the frame that emits its last token does, and a frame comes with the end of its chunk and of the
look-ahead behind it. So the delays are those of a listener, without the time of computation, and need no stream.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from ..json_files import write_text
from ..modeling.configuration_conformer import HOP_LENGTH, SAMPLING_RATE
from ..modeling.feature_extraction_speech_ssl import FRAME_LENGTH
from ..run_folder import LAGGINGS
from .latency import al, laal, yaal

_FORMULAS: dict[str, Callable[[Sequence[float], float, int], float | None]] = dict(
    zip(LAGGINGS, (al, laal, yaal), strict=True)
)


class TimedWord(Protocol):
    """A word of a hypothesis: the seconds at which the frame ends that emitted its last token, and whether it follows
    the word before it without a space.
    """

    @property
    def end(self) -> float: ...

    @property
    def joined(self) -> bool: ...


@dataclass(frozen=True)
class ChunkClock:
    """Tells how much audio has come when a live stream shows a word as it stays.

    Args:
        seconds_per_frame: of the encoder.
        chunk_frames: frames of a chunk; 0 for whole utterances, whose words come with their end.
        num_lookahead_chunks: chunks that must have come behind a chunk.
    """

    seconds_per_frame: float
    chunk_frames: int
    num_lookahead_chunks: int

    def delays(self, words: Sequence[TimedWord], seconds: float) -> list[float]:
        """ms, for each word between spaces, of a transducer's best path in an utterance of so many seconds."""
        delays: list[float] = []
        for word in words:
            if word.joined and delays:
                delays.pop()
            delays.append(1000 * min(self._heard(word), seconds))
        return delays

    def _heard(self, word: TimedWord) -> float:
        if not self.chunk_frames:
            return float("inf")
        chunk = (round(word.end / self.seconds_per_frame) - 1) // self.chunk_frames
        frames = (chunk + 1 + self.num_lookahead_chunks) * self.chunk_frames
        return frames * self.seconds_per_frame + (FRAME_LENGTH - HOP_LENGTH) / SAMPLING_RATE


@dataclass(frozen=True)
class Instance:
    """A translated utterance, as a line of SimulEval's `instances.log`; times are in ms.

    Args:
        index: its number, from 0 on.
        prediction, reference: the translation and the true one.
        delays: how much of the audio had come when each word of the prediction came.
        source_length: of the audio.
        source: its name.
    """

    index: int
    prediction: str
    delays: list[float]
    reference: str
    source_length: float
    source: list[str]

    @property
    def lagging(self) -> dict[str, float | None]:
        """AL, LAAL and YAAL by their names."""
        words = len(self.reference.split())
        return {name: formula(self.delays, self.source_length, words) for name, formula in _FORMULAS.items()}

    @property
    def json_line(self) -> str:
        """The line of the log. `elapsed`, the delays with computation, says no more than `delays`."""
        values = asdict(self) | {"elapsed": self.delays, "prediction_length": len(self.delays)}
        return json.dumps(values, ensure_ascii=False) + "\n"


def mean_laggings(instances: Sequence[Instance]) -> dict[str, float | int | None]:
    """Means of AL, LAAL and YAAL over the utterances that have one, in ms, and how many have no YAAL, because no word
    came before their end. Nothing where there are no instances.
    """
    if not instances:
        return {}
    found = [one.lagging for one in instances]
    figures: dict[str, float | int | None] = {}
    for name in LAGGINGS:
        known = [value for lagging in found if (value := lagging[name]) is not None]
        figures[name] = statistics.fmean(known) if known else None
    return figures | {"without_yaal": sum(lagging["yaal"] is None for lagging in found)}


def write_instances(folder: Path, instances: Sequence[Instance]) -> None:
    """Write what both tools score: `instances.log`, and beside it the settings and the references that they ask for.

    simuleval --score-only --output FOLDER --latency-metrics AL LAAL
    omnisteval shortform --hypothesis_file FOLDER/instances.log --ref_sentences_file FOLDER/references.txt
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "instances.log", "".join(one.json_line for one in instances))
    write_text(folder / "references.txt", "".join(f"{' '.join(one.reference.split())}\n" for one in instances))
    write_text(folder / "config.yaml", "source_type: speech\ntarget_type: text\n")
