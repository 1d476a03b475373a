"""Scores of a translator on a data set, offline and in chunks, and how late its words are in a live stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from ..data.reading import Utterance, UtteranceReader
from ..decoding import Hypothesis, TransducerGreedyDecoder
from ..evaluation.instances import ChunkClock, Instance, mean_laggings
from ..evaluation.scores import Transcript
from ..evaluation.translation import score_translations, sentence_scores
from ..run_folder import OFFLINE
from .evaluation import CorpusEvaluator


class TranslationEvaluator(CorpusEvaluator):
    """Translates a data set in every mode. Arguments as in [`CorpusEvaluator`], of which `normalize` is false.

    Attributes:
        instances: what SimulEval reads, by mode, numbered in the order of the data set. Words of the offline mode
            have come with the end of the audio. None of a model or a decoder that does not tell which frame emitted a
            word.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.instances: dict[str, list[Instance]] = {mode: [] for mode in self.modes}
        config, spf = self.recognizer.model.config, self.recognizer.seconds_per_frame
        self.clocks = {OFFLINE: ChunkClock(spf, 0, 0)}
        for mode, duration in self.modes.items():
            if duration:
                self.clocks[mode] = ChunkClock(spf, config.chunk_frames(duration), config.num_lookahead_chunks)

    def report(self, reader: UtteranceReader, num_worst: int, num_resamples: int) -> dict[str, Any]:
        """Scores of the utterances.

        Returns:
            "modes": for "offline", "320 ms" and so on "bleu" and "chrf" with "value", "low" and "high", of 100, the
            numbers of "utterances" and "words" (of the references), "real_time_factor", and in chunks "latency_ms"
            and "mean_latency_ms" of frames; where the decoder is greedy and the model a transducer, the means "al",
            "laal" and "yaal" in ms, and how many recordings are "without_yaal", because no word came before their
            end. "worst": the translations of the first mode with the lowest chrF. "settings" as in
            [`CorpusEvaluator.report`], with sacrebleu's "signatures".

        Raises:
            ImportError: sacrebleu is not installed. ValueError: no utterance can be used.
        """
        transcripts = sorted(self.transcribe(reader), key=lambda one: one.index)
        for mode, instances in self.instances.items():
            ordered = sorted(instances, key=lambda one: one.index)
            self.instances[mode] = [replace(one, index=index) for index, one in enumerate(ordered)]
        references = [one.reference for one in transcripts]
        signatures: dict[str, str] = {}
        modes: dict[str, dict[str, Any]] = {}
        for mode in self.modes:
            hypotheses = [one.hypotheses[mode] for one in transcripts]
            scores = score_translations(hypotheses, references, num_resamples, signatures)
            modes[mode] = {name: asdict(one) for name, one in scores.items()}
            modes[mode] |= {"utterances": len(references), "words": sum(len(text.split()) for text in references)}
            modes[mode]["real_time_factor"] = self.busy[mode] / self.audio_seconds
            if mode != OFFLINE:
                modes[mode]["latency_ms"], modes[mode]["mean_latency_ms"] = self.latencies[mode]
                modes[mode] |= mean_laggings(self.instances[mode])
        settings = self._settings(reader, num_resamples) | {"resampled": "utterances", "why_resampled": ""}
        settings["signatures"] = signatures
        del settings["seed"]  # sacrebleu's own is in its signatures
        return {"modes": modes, "worst": worst_translations(transcripts, num_worst), "settings": settings}

    def _recognize(self, mode: str, batch: list[Utterance]) -> list[Hypothesis]:
        hypotheses = super()._recognize(mode, batch)
        if not isinstance(self.decoder, TransducerGreedyDecoder):
            return hypotheses
        for one, best in zip(batch, hypotheses, strict=True):
            if best.words is not None:
                delays = self.clocks[mode].delays(best.words, one.seconds)
                texts = best.text, delays, self._text(one.text)
                self.instances[mode].append(Instance(one.index, *texts, 1000 * one.seconds, [one.name]))
        return hypotheses


def worst_translations(transcripts: Sequence[Transcript], count: int) -> list[dict[str, Any]]:
    """The translations with the lowest chrF in the first mode, those that are as their references left out."""
    mode = next(iter(transcripts[0].hypotheses))
    scores = sentence_scores([one.hypotheses[mode] for one in transcripts], [one.reference for one in transcripts])
    order = sorted(range(len(transcripts)), key=lambda at: (scores[at], transcripts[at].index))
    wrong = [at for at in order if transcripts[at].hypotheses[mode] != transcripts[at].reference]
    return [
        {
            "name": transcripts[at].name,
            "index": transcripts[at].index,
            "seconds": transcripts[at].seconds,
            "chrf": scores[at],
            "reference": transcripts[at].reference,
            "hypothesis": transcripts[at].hypotheses[mode],
        }
        for at in wrong[:count]
    ]
