"""Error rates of a recognizer on a data set, offline and in chunks, with the time that each takes."""

import json
import time
from collections.abc import Sequence
from typing import Any

import torch
from tqdm.auto import tqdm

from ..data.reading import Utterance, UtteranceReader
from ..decoding import Decoder, GreedyDecoder, Hypothesis, TransducerGreedyDecoder
from ..evaluation import normalize_text
from ..evaluation.bootstrap import CONFIDENCE
from ..evaluation.scores import MIN_SPEAKERS, Scores, Transcript
from ..run_folder import GREEDY, OFFLINE, mode_name
from .latency import LatencyMeter
from .recognizer import Recognizer
from .streaming import StreamingTranscriber

_SEED = 0  # of the bootstrap


class CorpusEvaluator:
    """Transcribes a data set in every mode, and counts errors and time.

    Args:
        recognizer: the model.
        decoder: writes its texts.
        chunk_durations_ms: Chunk SSL: durations of chunks to transcribe in, beside whole utterances.
        speaker_column: column with the speakers; the report has no speakers where there is none.
        normalize: pass references and hypotheses through [`normalize_text`] before they are compared.
        words_column: column with the words and their times; to measure the latency of live streams, in chunks of the
            same durations, which is not done without.

    Raises:
        ValueError: the model cannot work in one of these chunks.
    """

    def __init__(
        self,
        recognizer: Recognizer,
        decoder: Decoder[Any],
        chunk_durations_ms: Sequence[int],
        speaker_column: str,
        normalize: bool,
        words_column: str | None = None,
    ) -> None:
        self.recognizer, self.decoder = recognizer, decoder
        self.modes = {OFFLINE: 0} | {mode_name(duration): duration for duration in chunk_durations_ms}
        self.latencies = {
            mode: recognizer.latency_ms(duration) for mode, duration in self.modes.items() if mode != OFFLINE
        }
        self.speaker_column, self.normalize = speaker_column, normalize
        self.words_column = words_column
        self.meters = {
            mode: LatencyMeter(StreamingTranscriber(recognizer.model, recognizer.processor, duration, decoder=decoder))
            for mode, duration in self.modes.items()
            if duration and words_column is not None
        }
        self.audio_seconds = 0.0
        self.busy = dict.fromkeys(self.modes, 0.0)

    def report(self, reader: UtteranceReader, num_worst: int, num_resamples: int) -> dict[str, Any]:
        """Transcribe a split and describe the errors.

        Args:
            num_worst: utterances named with the most word errors.
            num_resamples: of the bootstrap that the intervals come from; 0 for no intervals.

        Returns:
            "modes" ("offline", "320 ms", ...: see [`Scores.by_mode`], with "real_time_factor" and for chunks
            "latency_ms" and "mean_latency_ms", and "live" where it is measured, see [`LatencyMeter.figures`]),
            "speakers" ([`Scores.by_speaker`]), "worst" ([`Scores.worst`]) and "settings", on which the figures depend.

        Raises:
            ValueError: no utterance can be used.
        """
        scores = Scores(self.transcribe(reader), num_resamples, _SEED)
        modes = scores.by_mode()
        for mode, entry in modes.items():
            entry["real_time_factor"] = self.busy[mode] / self.audio_seconds
            if mode in self.meters:
                entry["live"] = self.meters[mode].figures()
            if mode in self.latencies:
                entry["latency_ms"], entry["mean_latency_ms"] = self.latencies[mode]
        return {
            "modes": modes,
            "speakers": scores.by_speaker(),
            "worst": scores.worst(num_worst),
            "settings": self._settings(reader, num_resamples)
            | {"resampled": scores.resampled, "why_resampled": self._why_resampled(scores)},
        }

    def transcribe(self, reader: UtteranceReader) -> list[Transcript]:
        """References and hypotheses of all utterances that can be used."""
        transcripts: list[Transcript] = []
        with tqdm(total=len(reader), desc="evaluate", unit="utt", dynamic_ncols=True, disable=None) as bar:
            for batch in reader:
                if not transcripts:  # what happens once, such as the trial of padding, is no cost of a mode
                    self.recognizer.recognize([one.waveform for one in batch[:2]], self.decoder)
                texts = {mode: self._transcribe_batch(mode, batch) for mode in self.modes}
                for index, utterance in enumerate(batch):
                    transcripts.append(self._transcript(utterance, {mode: texts[mode][index] for mode in texts}))
                    self.audio_seconds += utterance.seconds
                    for meter in self.meters.values():
                        meter.add(utterance.waveform, *self._words(utterance))
                bar.update(len(batch))
        return transcripts

    def _transcribe_batch(self, mode: str, batch: list[Utterance]) -> list[str]:
        return [self._text(best.text) for best in self._recognize(mode, batch)]

    def _recognize(self, mode: str, batch: list[Utterance]) -> list[Hypothesis]:
        """The best hypothesis of each utterance; the time that it takes is added up."""
        began = time.perf_counter()
        hypotheses = self.recognizer.recognize([one.waveform for one in batch], self.decoder, self.modes[mode])
        self.busy[mode] += time.perf_counter() - began
        return [best for best, *_ in hypotheses]

    def _transcript(self, utterance: Utterance, hypotheses: dict[str, str]) -> Transcript:
        speaker = utterance.columns.get(self.speaker_column)
        reference = self._text(utterance.text)
        name = None if speaker is None else str(speaker)
        return Transcript(utterance.name, utterance.index, utterance.seconds, reference, hypotheses, name)

    def _words(self, utterance: Utterance) -> tuple[list[str], list[float] | None]:
        """The words that are said, and the seconds at which they end, where a column tells."""
        column = utterance.columns.get(self.words_column or "")
        words = json.loads(column) if isinstance(column, str) else column
        if not words:
            return utterance.text.split(), None
        return [str(one["word"]) for one in words], [float(one["end"]) for one in words]

    def _text(self, text: str) -> str:
        return normalize_text(text) if self.normalize else text

    def _settings(self, reader: UtteranceReader, num_resamples: int) -> dict[str, Any]:
        device = self.recognizer.model.device
        threads = torch.get_num_threads()
        return {
            "decoder": GREEDY if isinstance(self.decoder, GreedyDecoder | TransducerGreedyDecoder) else "beam search",
            "normalize_text": self.normalize,
            "num_resamples": num_resamples,
            "seed": _SEED,
            "confidence": CONFIDENCE,
            "skipped": reader.skipped.by_reason,
            "audio_seconds": self.audio_seconds,
            "device": torch.cuda.get_device_name(device)
            if device.type == "cuda"
            else f"{threads} CPU thread{'s' * (threads != 1)}",
        }

    def _why_resampled(self, scores: Scores) -> str:
        """Why utterances are drawn and not speakers."""
        if scores.resampled == "speakers":
            return ""
        if scores.speakers is None:
            return f"column {self.speaker_column!r} does not tell the speaker of each"
        return f"fewer than {MIN_SPEAKERS} speakers: for others than these the intervals would be wider"
