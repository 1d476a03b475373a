"""What a lexicon and n-gram language models take off the word error rate, on the sentences of the synthetic corpus.

    python benchmarks/language_model.py [--model FOLDER] [--steps 1000] [--sentences 20000] [--threads 2]

A tiny CTC model (`birq-tiny` from random weights, grammar "full") is trained for a few minutes unless --model names
one. Language models come from training sentences of the grammar, text alone, and their weights from the validation
split; what is reported is the test split, whose sentences and voices neither has met. Every decoder reads the same
log-probabilities.

The setting flatters language models: the grammar has 277 words, all of them known, and its sentences follow few
patterns, while a model trained for minutes leaves much to correct.
"""

import itertools
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import argument_parser, machine, markdown, pin, write_results

ROOT = Path(__file__).resolve().parent.parent
WEIGHTS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)
BONUSES = (-2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0)
ORDERS = (2, 3, 4)


def train_model(folder: Path, data: str, steps: int) -> None:
    """A CTC model from random weights.

    Raises:
        subprocess.CalledProcessError: training failed; its own output says why.
    """
    flags = ["--config_name", "birq-tiny", "--output_dir", str(folder), "--dataset_name", "synthetic"]
    flags += ["--dataset_config_name", data, "--max_steps", str(steps), "--per_device_train_batch_seconds", "40"]
    flags += ["--learning_rate", "2e-3", "--warmup_steps", "0.1", "--hold_steps", "0.4", "--eval_steps", "0"]
    flags += ["--save_steps", "0", "--report_to", "none"]
    subprocess.run([sys.executable, "finetuning_scripts/run_ctc.py", *flags], cwd=ROOT, check=True, stdout=sys.stderr)


def write_language_models(folder: Path, num_sentences: int) -> dict[int, Path]:
    """ARPA files by their order, all from the same training sentences of the grammar."""
    from hf_speech_ssl.data.synthetic.grammar import draw_sentence
    from hf_speech_ssl.decoding import estimate_ngrams

    rng = random.Random(0)
    sentences = [draw_sentence("full", "train", rng) for _ in range(num_sentences)]
    paths = {order: folder / f"{order}-gram.arpa" for order in ORDERS}
    for order, path in paths.items():
        estimate_ngrams(sentences, order).write_arpa(path)
    (folder / "words.txt").write_text("\n".join(sorted({word for text in sentences for word in text.split()})))
    return paths


class Splits:
    """Log-probabilities of the validation and the test split, and their texts."""

    def __init__(self, model: Path, data: str):
        from hf_speech_ssl.data.reading import UtteranceReader
        from hf_speech_ssl.options import ReadingOptions
        from hf_speech_ssl.recognition.recognizer import Recognizer
        from hf_speech_ssl.recognition.tuning import log_probabilities

        self.recognizer = Recognizer.from_pretrained(str(model), device="cpu")
        self.log_probs = {
            split: log_probabilities(
                self.recognizer, UtteranceReader(ReadingOptions("synthetic", data, split), "text")
            )
            for split in ("validation", "test")
        }

    def search(self, **files: Path) -> Any:
        """Beam search for the model with such files."""
        from hf_speech_ssl.decoding import BeamSearchDecoder
        from hf_speech_ssl.options import DecodingOptions

        return BeamSearchDecoder(
            self.recognizer.tokenizer, self.recognizer.seconds_per_frame, DecodingOptions(**files)
        )

    def tune(self, search: Any, weights: tuple[float, ...]) -> tuple[float, float]:
        """The weight and the bonus with the lowest WER on the validation split."""
        from hf_speech_ssl.recognition.tuning import Trial, choose, word_errors

        trials = []
        for pair in itertools.product(weights, BONUSES):
            trials.append(Trial(*pair, word_errors(search.reweighted(*pair), *self.log_probs["validation"])))
        best = choose(trials)
        return best.lm_weight, best.word_bonus

    def measure(self, decoder: Any) -> dict[str, float]:
        """Word and character error rate on the test split, and how long decoding takes."""
        from hf_speech_ssl.recognition.tuning import word_errors

        log_probs, texts = self.log_probs["test"]
        began = time.perf_counter()
        errors = word_errors(decoder, log_probs, texts)
        seconds = time.perf_counter() - began
        audio = sum(one.shape[1] for one in log_probs) * self.recognizer.seconds_per_frame
        return {**vars(errors), "wer": errors.rate, "real_time_factor": seconds / audio}


def compare(splits: Splits, models: dict[int, Path], lexicon: Path) -> dict[str, dict[str, float]]:
    """The results of each way of decoding, by its name."""
    results = {"greedy": splits.measure(splits.recognizer.greedy()), "beam": splits.measure(splits.search())}
    ways: dict[str, tuple[Any, tuple[float, ...]]] = {"beam, lexicon": (splits.search(lexicon_path=lexicon), (0.0,))}
    ways |= {f"beam, {order}-gram": (splits.search(lm_path=path), WEIGHTS) for order, path in models.items()}
    for name, (search, weights) in ways.items():
        if len(weights) > 1 and name == f"beam, {max(ORDERS)}-gram":
            results[f"{name}, not tuned"] = {"lm_weight": 1.0, "word_bonus": 0.0, **splits.measure(search)}
        weight, bonus = splits.tune(search, weights)
        measured = splits.measure(search.reweighted(weight, bonus))
        results[name] = {**({"lm_weight": weight} if len(weights) > 1 else {}), "word_bonus": bonus, **measured}
        print(f"{name}: {measured['wer']:.2%}", file=sys.stderr)
    return results


def table(results: dict[str, dict[str, float]]) -> str:
    """The results as Markdown."""
    columns = ["decoding", "WER", "substitutions", "deletions", "insertions", "lm_weight", "word_bonus"]
    columns.append("decoding time / audio")
    rows = []
    for name, one in results.items():
        counts = [f"{one[kind]}" for kind in ("substitutions", "deletions", "insertions")]
        chosen = [f"{one[flag]:g}" if flag in one else "" for flag in ("lm_weight", "word_bonus")]
        rows.append([name, f"{100 * one['wer']:.1f} %", *counts, *chosen, f"{one['real_time_factor']:.4f}"])
    return markdown(columns, rows)


def main() -> None:
    parser = argument_parser(__doc__, repeats=1)
    parser.add_argument("--model", type=Path, help="a CTC model for grammar 'full'; none is trained then")
    parser.add_argument("--steps", type=int, default=1000, help="updates of the model")
    parser.add_argument("--sentences", type=int, default=20_000, help="that the language models are made from")
    parser.add_argument("--eval_sentences", type=int, default=400, help="in the validation and in the test split")
    options = parser.parse_args()
    where = machine(options.threads)
    pin(options.threads)
    data = f"grammar=full,sentences=3000,eval_sentences={options.eval_sentences}"
    with tempfile.TemporaryDirectory() as folder:
        if options.model is None:
            train_model(Path(folder, "model"), data, options.steps)
        models = write_language_models(Path(folder), options.sentences)
        splits = Splits(options.model or Path(folder, "model"), data)
        results = compare(splits, models, Path(folder, "words.txt"))
    words = results["greedy"]["hits"] + results["greedy"]["substitutions"] + results["greedy"]["deletions"]
    trained = f"A `birq-tiny` CTC model after {options.steps} updates of 40 s on 3,000 synthetic utterances"
    setting = (
        f"{trained if options.model is None else 'A CTC model trained elsewhere'}; language models from "
        f"{options.sentences:,} training sentences; tuned on {options.eval_sentences} validation utterances, measured "
        f"on {options.eval_sentences} test utterances of {words:,.0f} words. Beam of 50."
    )
    write_results(options.output_dir, "language_model", where, [setting, table(results)], results)


if __name__ == "__main__":
    main()
