"""Language models for decoding: made from text, and weighed against the speech model on a development set."""

import itertools
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from tqdm.auto import tqdm

from ..data.reading import UtteranceReader
from ..decoding import BeamSearchDecoder, Decoder, estimate_ngrams
from ..decoding.ngram import open_text
from ..evaluation import ErrorCounts, count_word_errors, normalize_text
from ..recognition.recognizer import Recognizer
from .outputs import check_output_file, write_report


def make_language_model(text_files: Sequence[str], output_file: str, order: int = 4, normalize: bool = True) -> None:
    """Write an n-gram language model of sentences as ARPA; see [`estimate_ngrams`].

    Args:
        text_files: UTF-8 text with one sentence per line (also .gz); never the texts to be evaluated on.
        output_file: the ARPA file to write.
        order: words in the longest n-gram, 2 to 6.
        normalize: pass the sentences through [`normalize_text`], as fine-tuning does with transcripts.

    Raises:
        OSError: a file cannot be read or written. ValueError: there is no text, or the order is out of its range.
    """
    sentences = (line for path in text_files for line in _lines(path))
    model = estimate_ngrams(map(normalize_text, sentences) if normalize else sentences, order)
    model.write_arpa(output_file)
    sizes = ", ".join(f"{len(ngrams)} {n}-grams" for n, ngrams in enumerate(model.probabilities, start=1))
    print(f"Wrote {output_file}: {sizes}.")


def _lines(path: str) -> Iterator[str]:
    with open_text(path) as file:
        yield from file


@dataclass(frozen=True)
class Trial:
    """Word errors of the development set with one pair of weights."""

    lm_weight: float
    word_bonus: float
    errors: ErrorCounts


def tune(
    model_name_or_path: str,
    dataset_name: str,
    lm_path: str,
    lexicon_path: str | None = None,
    lm_weights: Sequence[float] = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0),
    word_bonuses: Sequence[float] = (-2.0, -1.0, 0.0, 1.0, 2.0),
    beam_size: int = 50,
    output_file: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    device: str | None = None,
    split_name: str = "validation",
    text_column_name: str = "text",
    **reading: Any,
) -> dict[str, Any]:
    """Choose the weight of a language model and the word bonus that go with it: a grid over a development set.

    The model hears the data once. Texts are compared after [`normalize_text`].

    Args:
        model_name_or_path, revision, trust_remote_code, device: as in [`Recognizer.from_pretrained`].
        dataset_name, split_name, text_column_name: what to tune on; never the set to be evaluated on.
        lm_path, lexicon_path, beam_size: as in [`BeamSearchDecoder`].
        lm_weights, word_bonuses: the grid.
        output_file: where the grid is written as JSON.
        **reading: dataset_config_name, audio_column_name, max_samples and batch_seconds, as in [`UtteranceReader`].

    Returns:
        What is written as JSON: `wer_greedy`, `best` and `trials` with their weights and word errors.

    Raises:
        OSError: there is no such model, data set or file. ValueError: one of them cannot be used.
    """
    if not lm_weights or not word_bonuses:
        raise ValueError("There is nothing to choose from: give at least one of lm_weights and of word_bonuses.")
    check_output_file(output_file)
    recognizer = Recognizer.from_pretrained(model_name_or_path, revision, trust_remote_code, device)
    search = BeamSearchDecoder(
        recognizer.tokenizer, recognizer.seconds_per_frame, lm_path, lexicon_path, beam_size=beam_size
    )
    pairs = list(itertools.product(sorted(set(lm_weights)), sorted(set(word_bonuses))))
    decoders = [search.reweighted(*pair) for pair in pairs]  # numbers that cannot be used are found at once, too
    reader = UtteranceReader(dataset_name, split_name=split_name, text_column_name=text_column_name, **reading)
    heard, texts = hear(recognizer, reader)
    greedy = word_errors(recognizer.greedy(), heard, texts)
    grid = zip(pairs, tqdm(decoders, desc="decode", unit="pair", leave=False, disable=None), strict=True)
    trials = [Trial(*pair, word_errors(decoder, heard, texts)) for pair, decoder in grid]
    best = choose(trials)
    files = ["--lm_path", lm_path, *(["--lexicon_path", lexicon_path] if lexicon_path else [])]
    print(_report(trials, best, greedy, [*files, "--beam_size", str(beam_size)]))
    results = {
        "model": model_name_or_path,
        "dataset": dataset_name,
        "split": split_name,
        "lm_path": lm_path,
        "lexicon_path": lexicon_path,
        "utterances": len(texts),
        "skipped": len(reader.skipped),
        "beam_size": beam_size,
        "wer_greedy": greedy.rate,
        "best": _as_dict(best),
        "trials": [_as_dict(trial) for trial in trials],
    }
    write_report(results, output_file)
    return results


def hear(recognizer: Recognizer, reader: UtteranceReader) -> tuple[list[torch.Tensor], list[str]]:
    """(1, T, V) log-probabilities of every utterance, and its text after [`normalize_text`]."""
    heard: list[torch.Tensor] = []
    texts: list[str] = []
    with tqdm(total=len(reader), desc="hear", unit="utterance", leave=False, disable=None) as bar:
        for batch in reader:
            log_probs, lengths = recognizer.log_probs([utterance.waveform for utterance in batch])
            heard.extend(one[None, :length].clone() for one, length in zip(log_probs, lengths.tolist(), strict=True))
            texts.extend(normalize_text(utterance.text) for utterance in batch)
            bar.update(len(batch))
    return heard, texts


def word_errors(decoder: Decoder, heard: Sequence[torch.Tensor], texts: Sequence[str]) -> ErrorCounts:
    """Word errors of a decoder on what [`hear`] returned."""
    read = [decoder(log_probs, torch.tensor([log_probs.shape[1]]))[0][0].text for log_probs in heard]
    return count_word_errors([normalize_text(text) for text in read], texts)


def choose(trials: Sequence[Trial]) -> Trial:
    """The trial with the lowest WER; of several the one that is not at the grid's edge, then the smallest numbers."""
    return min(
        trials,
        key=lambda trial: (
            trial.errors.rate,
            len(_edges(trial, trials)),
            abs(trial.word_bonus),
            trial.lm_weight,
            trial.word_bonus,
        ),
    )


def _edges(best: Trial, trials: Sequence[Trial]) -> list[str]:
    """Where a trial has the smallest or largest value that was tried, in words; a weight of 0 has nothing beyond."""
    edges = []
    for name in ("lm_weight", "word_bonus"):
        tried, value = {getattr(trial, name) for trial in trials}, getattr(best, name)
        for side, extreme in (("smallest", min(tried)), ("largest", max(tried))):
            if len(tried) > 1 and value == extreme and not (name == "lm_weight" and value == 0):
                edges.append(f"The best {name}, {value:g}, is the {side} one tried: try others beyond it.")
    return edges


def _report(trials: Sequence[Trial], best: Trial, greedy: ErrorCounts, search: list[str]) -> str:
    """The grid, the best pair, the flags to use."""
    rates = {(trial.lm_weight, trial.word_bonus): trial.errors.rate for trial in trials}
    weights, bonuses = (sorted({key[axis] for key in rates}) for axis in (0, 1))
    lines = ["WER (%) by lm_weight (down) and word_bonus (across)", _row("", [f"{bonus:g}" for bonus in bonuses])]
    lines += [_row(f"{w:g}", [f"{100 * rates[w, b]:.2f}" for b in bonuses]) for w in weights]
    flags = [*search, "--lm_weight", f"{best.lm_weight:g}", "--word_bonus", f"{best.word_bonus:g}"]
    lines += ["", f"Greedy: {greedy.rate:.2%}. Best: {best.errors.rate:.2%}, with", f"  {shlex.join(flags)}"]
    return "\n".join(lines + [f"Warning: {edge}" for edge in _edges(best, trials)])


def _row(head: str, cells: Sequence[str]) -> str:
    return f"{head:>8} | " + " ".join(f"{cell:>7}" for cell in cells)


def _as_dict(trial: Trial) -> dict[str, Any]:
    counts = asdict(trial.errors)
    return {"lm_weight": trial.lm_weight, "word_bonus": trial.word_bonus, "wer": trial.errors.rate, **counts}
