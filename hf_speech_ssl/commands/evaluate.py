"""Error rates of a CTC model on a data set, offline and in chunks, with what a person needs to trust and mend them."""

import time
from collections.abc import Sequence
from typing import Any

import torch
from tqdm.auto import tqdm

from ..data.reading import Utterance, UtteranceReader
from ..decoding import Decoder, GreedyDecoder, make_decoder
from ..evaluation import normalize_text
from ..evaluation.bootstrap import CONFIDENCE
from ..evaluation.report import as_text
from ..evaluation.scores import MIN_SPEAKERS, Scores, Transcript
from ..json_files import shareable
from ..recognition.recognizer import Recognizer
from ..run_folder import GREEDY, OFFLINE, mode_name
from .outputs import check_output_file, write_report

_SEED = 0  # of the bootstrap
_FEW_RESAMPLES = 100  # with fewer, 2.5 % of them is a matter of two or three


def evaluate(
    model_name_or_path: str,
    dataset_name: str,
    split_name: str = "test",
    text_column_name: str = "text",
    speaker_column_name: str = "speaker_id",
    chunk_durations_ms: Sequence[int] = (),
    normalize: bool = True,
    num_worst: int = 10,
    num_resamples: int = 1000,
    output_file: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    device: str | None = None,
    lm_path: str | None = None,
    lexicon_path: str | None = None,
    lm_weight: float = 1.0,
    word_bonus: float = 0.0,
    beam_size: int = 50,
    **reading: Any,
) -> dict[str, Any]:
    """Transcribe a split, print error rates, speakers and the worst utterances, and write them as JSON.

    Args:
        model_name_or_path, revision, trust_remote_code, device: as in [`Recognizer.from_pretrained`].
        dataset_name, split_name, text_column_name: as in [`UtteranceReader`].
        speaker_column_name: column with the speakers; nothing is said of speakers where there is none.
        chunk_durations_ms: Chunk SSL: also hear the utterances in chunks of each of these durations.
        normalize: pass references and transcripts through [`normalize_text`] before they are compared.
        num_worst: utterances shown with the most word errors.
        num_resamples: of the bootstrap that the intervals come from, at least 100; 0 for no intervals.
        output_file: where the report goes as JSON.
        lm_path, lexicon_path, lm_weight, word_bonus, beam_size: as in [`make_decoder`].
        **reading: dataset_config_name, audio_column_name, max_samples and batch_seconds, as in [`UtteranceReader`].

    Returns:
        The report: "model", "dataset", "split", "modes" ("offline", "320 ms", ...: see [`Scores.by_mode`], with
        "real_time_factor" and for chunks "latency_ms" and "mean_latency_ms"), "speakers" ([`Scores.by_speaker`]),
        "worst" ([`Scores.worst`]) and "settings". Rates are fractions.

    Raises:
        OSError, ValueError: no such model, data set, split, column or file, or one that cannot be used.
    """
    _check(num_worst, num_resamples, output_file)
    recognizer = Recognizer.from_pretrained(model_name_or_path, revision, trust_remote_code, device)
    latencies = {mode_name(duration): recognizer.latency_ms(duration) for duration in chunk_durations_ms}
    search = {
        "lm_path": lm_path,
        "lexicon_path": lexicon_path,
        "lm_weight": lm_weight,
        "word_bonus": word_bonus,
        "beam_size": beam_size,
    }
    decoder = make_decoder(recognizer.tokenizer, recognizer.seconds_per_frame, **search)  # type: ignore[arg-type]
    reader = UtteranceReader(
        dataset_name,
        split_name=split_name,
        text_column_name=text_column_name,
        optional_columns=[speaker_column_name],
        **reading,
    )
    listener = _Listener(recognizer, decoder, chunk_durations_ms, speaker_column_name, normalize)
    scores = Scores(listener.transcribe(reader), num_resamples, _SEED)
    asked = {"revision": revision, "text_column_name": text_column_name, "speaker_column_name": speaker_column_name}
    report: dict[str, Any] = {
        "model": model_name_or_path,
        "dataset": dataset_name,
        "split": split_name,
        "modes": scores.by_mode(),
        "speakers": scores.by_speaker(),
        "worst": scores.worst(num_worst),
        "settings": _settings(listener, scores, reader) | search | asked | reading,
    }
    for mode, entry in report["modes"].items():
        entry["real_time_factor"] = listener.busy[mode] / listener.audio_seconds
        if mode in latencies:
            entry["latency_ms"], entry["mean_latency_ms"] = latencies[mode]
    report = shareable(report)
    print(as_text(report))
    write_report(report, output_file)
    return report


class _Listener:
    """Transcribes a data set in every mode, and keeps the time that each takes."""

    def __init__(
        self,
        recognizer: Recognizer,
        decoder: Decoder,
        chunk_durations_ms: Sequence[int],
        speaker_column: str,
        normalize: bool,
    ) -> None:
        self.recognizer, self.decoder = recognizer, decoder
        self.modes = {OFFLINE: 0} | {mode_name(duration): duration for duration in chunk_durations_ms}
        self.speaker_column, self.normalize = speaker_column, normalize
        self.audio_seconds = 0.0
        self.busy = dict.fromkeys(self.modes, 0.0)

    def transcribe(self, reader: UtteranceReader) -> list[Transcript]:
        transcripts: list[Transcript] = []
        with tqdm(total=len(reader), desc="evaluate", unit="utterance", dynamic_ncols=True, disable=None) as bar:
            for batch in reader:
                if not transcripts:  # what happens once, such as the trial of padding, is no cost of a mode
                    self.recognizer.recognize([one.waveform for one in batch[:2]], self.decoder)
                heard = {mode: self._hear(mode, batch) for mode in self.modes}
                for index, utterance in enumerate(batch):
                    predictions = {mode: texts[index] for mode, texts in heard.items()}
                    speaker = utterance.columns.get(self.speaker_column)
                    transcripts.append(
                        Transcript(
                            utterance.name,
                            utterance.index,
                            utterance.seconds,
                            self._text(utterance.text),
                            predictions,
                            None if speaker is None else str(speaker),
                        )
                    )
                    self.audio_seconds += utterance.seconds
                bar.update(len(batch))
        return transcripts

    def _hear(self, mode: str, batch: list[Utterance]) -> list[str]:
        began = time.perf_counter()
        readings = self.recognizer.recognize([one.waveform for one in batch], self.decoder, self.modes[mode])
        self.busy[mode] += time.perf_counter() - began
        return [self._text(reading[0].text) for reading in readings]

    def _text(self, text: str) -> str:
        return normalize_text(text) if self.normalize else text


def _check(num_worst: int, num_resamples: int, output_file: str | None) -> None:
    if num_worst < 0 or 0 < num_resamples < _FEW_RESAMPLES or num_resamples < 0:
        raise ValueError(
            f"num_worst must be 0 or more, num_resamples 0 (no intervals) or at least {_FEW_RESAMPLES}; got "
            f"{num_worst} and {num_resamples}."
        )
    check_output_file(output_file)


def _settings(listener: _Listener, scores: Scores, reader: UtteranceReader) -> dict[str, Any]:
    """What the figures depend on, beside what was asked for."""
    device = listener.recognizer.model.device
    threads = torch.get_num_threads()
    return {
        "decoder": GREEDY if isinstance(listener.decoder, GreedyDecoder) else "beam search",
        "normalize_text": listener.normalize,
        "num_resamples": scores.num_resamples,
        "resampled": scores.resampled,
        "why_resampled": _why(scores, listener.speaker_column),
        "seed": scores.seed,
        "confidence": CONFIDENCE,
        "skipped": reader.skipped.by_reason,
        "audio_seconds": listener.audio_seconds,
        "batch_seconds": reader.batch_seconds,
        "device": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{threads} CPU thread{'s' * (threads != 1)}",
    }


def _why(scores: Scores, speaker_column: str) -> str:
    """Why utterances are drawn and not speakers."""
    if scores.resampled == "speakers":
        return ""
    if scores.speakers is None:
        return f"column {speaker_column!r} does not tell the speaker of each"
    return f"fewer than {MIN_SPEAKERS} speakers: for others than these the intervals would be wider"
