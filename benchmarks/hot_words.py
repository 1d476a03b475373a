"""Hot words on names that a model has never been trained on, live, and what they cost elsewhere.

    python benchmarks/live_data.py /tmp/live
    python benchmarks/hot_words.py MODEL --data /tmp/live

Every stream has all names of its split as hot words, those that it does not say as well; the boost is chosen on the
split `validation`, whose names are others, among those by which it writes no name that nobody says. The split `plain`
says none of the names: what rises there is the cost. "In turn" gives each stream its hot words after the first second
and takes them away before the last. With a language model its n-grams are those of sentences without rare names, so
that it knows no name.
"""

import random
import tempfile
from pathlib import Path
from typing import Any

from common import argument_parser, machine, markdown, pin, write_results
from live_data import RARE_NAMES, RATE, read_split

BOOSTS = (4.0, 8.0, 12.0, 16.0, 20.0)
CHUNK_MS = 320


def transcribe(
    recognizer: Any, decoder: Any, rows: list[dict], hot_words: dict[str, float], in_turn: bool
) -> list[str]:
    """The texts of live streams, 8 at a time."""
    from hf_speech_ssl.recognition import StreamingBatch

    batch, texts = StreamingBatch(recognizer.model, recognizer.processor, CHUNK_MS, decoder=decoder), []
    for begin in range(0, len(rows), 8):
        streams = {batch.join(): row["samples"] for row in rows[begin : begin + 8]}
        if in_turn:
            batch.feed({stream: samples[:RATE] for stream, samples in streams.items()})
        for stream in streams:
            if hot_words:
                batch.set_hot_words(stream, hot_words)
        first = RATE if in_turn else 0
        batch.feed({stream: samples[first:-RATE] for stream, samples in streams.items()})
        if in_turn:
            for stream in streams:
                batch.set_hot_words(stream, {})
        batch.feed({stream: samples[max(first, len(samples) - RATE) :] for stream, samples in streams.items()})
        texts += batch.finish(*streams)
    return texts


def rates(rows: list[dict], texts: list[str], names: set[str]) -> dict[str, float]:
    """Word error rate, that of the names alone, and names written where there is none."""
    from hf_speech_ssl.evaluation import align_words, count_word_errors

    errors = count_word_errors(texts, [row["text"] for row in rows])
    wrong = said = invented = others_wrong = others = 0
    for row, text in zip(rows, texts, strict=True):
        for true, guess in align_words(text, row["text"]):
            said += true in names
            wrong += true in names and guess != true
            invented += guess in names and guess != true
            others += true is not None and true not in names
            others_wrong += true not in names and guess != true
    total = errors.substitutions + errors.deletions + errors.insertions
    return {
        "wer": total / (said + others),
        "names_wrong": wrong / said if said else 0.0,
        "names_said": said,
        "others_wrong": others_wrong / others,
        "names_invented": invented,
    }


def main() -> None:
    parser = argument_parser(__doc__, repeats=1)
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="what live_data.py wrote")
    parser.add_argument("--max_samples", type=int, default=200)
    options = parser.parse_args()
    where = machine(options.threads)
    pin(options.threads)
    from hf_speech_ssl.data.synthetic.grammar import draw_sentence
    from hf_speech_ssl.decoding import PrefixBeamDecoder, estimate_ngrams
    from hf_speech_ssl.options import DecodingOptions
    from hf_speech_ssl.recognition import Recognizer

    recognizer = Recognizer.from_pretrained(str(options.model))
    splits = {name: read_split(options.data, name)[: options.max_samples] for name in ("validation", "test", "plain")}
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "lm.arpa")
        estimate_ngrams([draw_sentence("full", "train", rng) for _ in range(5000)], 3).write_arpa(path)
        lm = DecodingOptions(lm_path=path, lm_weight=0.5)
        decoders = {
            "greedy": recognizer.greedy(),
            "beam": PrefixBeamDecoder(recognizer.tokenizer, recognizer.seconds_per_frame),
            "beam, 3-gram": PrefixBeamDecoder(recognizer.tokenizer, recognizer.seconds_per_frame, lm),
        }

        def run(decoder: str, split: str, boost: float | None = None, in_turn: bool = False) -> dict[str, float]:
            of_split = "validation" if split == "validation" else "test"
            hot_words = {} if boost is None else dict.fromkeys(RARE_NAMES[of_split], boost)
            texts = transcribe(recognizer, decoders[decoder], splits[split], hot_words, in_turn)
            return rates(splits[split], texts, set(RARE_NAMES[of_split]))

        tuning = {boost: run("beam", "validation", boost) for boost in BOOSTS}
        harmless = [boost for boost, one in tuning.items() if not one["names_invented"]] or [min(BOOSTS)]
        best = min(harmless, key=lambda boost: tuning[boost]["wer"])
        results: dict[str, dict[str, Any]] = {}
        for name in decoders:
            boosts = (None,) if name == "greedy" else (None, best)
            for boost in boosts:
                title = name if boost is None else f"{name}, hot words ({best:g})"
                results[title] = {split: run(name, split, boost) for split in ("test", "plain")}
        results[f"beam, hot words ({best:g}) in turn"] = {"test": run("beam", "test", best, in_turn=True)}
    header = ["decoding", "WER, test", "names wrong", "other words wrong", "WER, plain", "names invented in plain"]
    rows = []
    for title, by_split in results.items():
        test, plain = by_split["test"], by_split.get("plain")
        row = [title, *(f"{100 * test[key]:.1f} %" for key in ("wer", "names_wrong", "others_wrong"))]
        rows.append(
            [*row, *(["", ""] if plain is None else [f"{100 * plain['wer']:.1f} %", str(plain["names_invented"])])]
        )
    tuned = [[f"{boost:g}", *(f"{100 * one[key]:.1f} %" for key in ("wer", "names_wrong", "others_wrong")),
              str(one["names_invented"])] for boost, one in tuning.items()]  # fmt: skip
    said = f"{results['beam']['test']['names_said']} names of {len(RARE_NAMES['test'])} that training never said"
    sections = [
        f"{len(splits['test'])} recordings with {said}, {len(splits['plain'])} without; chunks of {CHUNK_MS} ms.",
        markdown(header, rows),
        "### Boosts on the split `validation`, which has other names",
        markdown(["boost", "WER", "names wrong", "other words wrong", "names invented"], tuned),
    ]
    write_results(options.output_dir, "hot_words", where, sections, {"tuning": tuning, "results": results})


if __name__ == "__main__":
    main()
