"""hf-speech-ssl ngram and tune: language models for decoding, made from text and weighed on a development set."""

import shlex
from dataclasses import asdict, dataclass
from typing import Any

from ..options import DecodingOptions, LoadingOptions, ReadingOptions, argument, flag, required_flag
from ..paths import check_file, check_model_folder, check_output_file


@dataclass(frozen=True, kw_only=True)
class NGramOptions:
    """What a language model is made from."""

    text_files: list[str] = argument(
        "UTF-8 text (also .gz), one sentence a line; never the texts to be evaluated on", "TEXT"
    )
    order: int = flag(4, "words in the longest n-gram, 2 to 6")
    output_file: str = required_flag("the ARPA file to write")
    normalize_text: bool = flag(True, "normalize the sentences as fine-tuning does with transcripts")


def ngram(options: NGramOptions) -> None:
    """Write an n-gram language model of sentences as ARPA; see [`estimate_ngrams`].

    Raises:
        OSError: a file cannot be read or written. ValueError: there is no text, or the order is out of its range.
    """
    for path in options.text_files:
        check_file(path)
    check_output_file(options.output_file)
    from ..decoding import estimate_ngrams
    from ..decoding.ngram import read_sentences
    from ..evaluation import normalize_text

    sentences = read_sentences(options.text_files)
    model = estimate_ngrams(map(normalize_text, sentences) if options.normalize_text else sentences, options.order)
    model.write_arpa(options.output_file)
    sizes = ", ".join(f"{len(ngrams)} {n}-grams" for n, ngrams in enumerate(model.probabilities, start=1))
    print(f"Wrote {options.output_file}: {sizes}.")


@dataclass(frozen=True, kw_only=True)
class TuneOptions:
    """The grid, and the language model that it is for."""

    model_name_or_path: str = argument("folder or Hub id of any CTC model", "MODEL")
    text_column_name: str = flag("text", "column with the transcripts")
    lm_path: str = required_flag("n-gram language model: ARPA (also .gz) or KenLM binary")
    lexicon_path: str | None = flag(
        None,
        "decode these words only: one per line, or 'word<TAB>s p e l l i n g'; several lines for several spellings",
    )
    beam_size: int = flag(50, "hypotheses kept after a frame")
    lm_weights: list[float] = flag([0.25, 0.5, 1.0, 1.5, 2.0, 3.0], "weights of the language model to try", "W")
    word_bonuses: list[float] = flag([-2.0, -1.0, 0.0, 1.0, 2.0], "word bonuses to try", "B")
    output_file: str | None = flag(None, "where the grid is written as JSON")


def tune(options: TuneOptions, reading: ReadingOptions, loading: LoadingOptions) -> dict[str, Any]:
    """Choose the weight of a language model and the word bonus that go with it: a grid over a development set.

    The model computes log-probabilities once. Texts are compared after [`normalize_text`].

    Returns:
        What is written as JSON: `wer_greedy`, `best` and `trials` with their weights and word errors.

    Raises:
        OSError: there is no such model, data set or file. ValueError: one of them cannot be used.
    """
    check_model_folder(options.model_name_or_path)
    for path in (options.lm_path, options.lexicon_path):
        check_file(path)
    check_output_file(options.output_file)
    from ..data.reading import UtteranceReader
    from ..json_files import write_json
    from ..recognition.recognizer import Recognizer
    from ..recognition.tuning import Grid, choose, grid_table, log_probabilities, word_errors

    recognizer = Recognizer.from_pretrained(options.model_name_or_path, **asdict(loading))
    files = DecodingOptions(options.lm_path, options.lexicon_path, beam_size=options.beam_size)
    grid = Grid(recognizer.make_decoder(files), options.lm_weights, options.word_bonuses)
    reader = UtteranceReader(reading, options.text_column_name)
    log_probs, references = log_probabilities(recognizer, reader)
    greedy = word_errors(recognizer.greedy(), log_probs, references)
    trials = grid.try_all(log_probs, references)
    best = choose(trials)
    lexicon = ["--lexicon_path", options.lexicon_path] if options.lexicon_path else []
    flags = ["--lm_path", options.lm_path, *lexicon, "--beam_size", str(options.beam_size), *best.flags]
    print(f"{grid_table(trials, best, greedy)}, with\n  {shlex.join(flags)}")
    for warning in best.edges(trials):
        print(f"Warning: {warning}")
    results = {
        "model": options.model_name_or_path,
        "dataset": reading.dataset_name,
        "split": reading.split_name,
        "lm_path": options.lm_path,
        "lexicon_path": options.lexicon_path,
        "utterances": len(references),
        "skipped": len(reader.skipped),
        "beam_size": options.beam_size,
        "wer_greedy": greedy.rate,
        "best": best.as_dict(),
        "trials": [trial.as_dict() for trial in trials],
    }
    if options.output_file is not None:
        write_json(options.output_file, results)
    return results
