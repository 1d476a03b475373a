"""CTC and transducer on the same encoder: word error rates offline and in chunks, and how late a chunk's text comes.

    python benchmarks/rnnt.py --an4_folder an4 [--model FOLDER] [--max_steps 600] [--threads 1]

Two Chunk SSL models are fine-tuned with as many updates on the same batches: one with CTC on letters, one with a
transducer. They begin with `--model`, a pretrained `chunkssl-tiny`, or with random weights. CTC is decoded greedily
and with a 4-gram of the training transcripts, the transducer greedily and with a beam of 8; all also in chunks. AN4's
test speakers are the 14 whom `labels.py` leaves out of its pretraining, too; `small_model.py` leaves out 10 of them,
so with its checkpoint `--num_test_speakers 10` belongs. The synthetic corpus is that of `--synthetic_config`, with
unseen sentences and voices in its test split.

Every line of `rnnt.jsonl` is one corpus and decoder. What is there is not made again, and a killed training run
resumes, so the same command goes on where it stopped. Latency is from a sound to its text, without computation.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from common import argument_parser, machine, markdown, mean_and_range, paired_difference, pin
from labels import call_script
from labels_data import read_folder, split_speakers, write_table

CHUNKS_MS = [160, 320, 640, 1280]
CHUNKS = " ".join(map(str, CHUNKS_MS))
BEAM_SIZE = 8
LM_WEIGHT, WORD_BONUS = 1.0, 1.0
SHARED = ["max_steps", "learning_rate", "batch_seconds", "freeze_encoder_steps", "config_overrides"]
RNNT_ONLY = ["vocabulary_kind", "vocabulary_size", "rnnt_config"]
SPLIT = ["num_left_out", "num_test_speakers", "split_seed"]
NOTE = (
    "WER in percent: mean of the seeds (range). Differences are to CTC, greedy, in points, paired by utterance, with "
    "95 % intervals from bootstrap resamples of the test speakers."
)


@dataclass(frozen=True)
class Corpus:
    """Where a corpus' training and test data are.

    Args:
        name: in the table.
        train: flags of the training scripts.
        test: arguments of `ReadingOptions`.
        vocabulary_size: of the transducer's tokenizer, if the options do not say it; the transcripts have no more.
    """

    name: str
    train: dict[str, Any]
    test: dict[str, Any]
    vocabulary_size: int


@dataclass(frozen=True)
class Decoding:
    """A model's head and how it is decoded.

    Args:
        head: "ctc" or "rnnt".
        name: in the table.
    """

    head: str
    name: str


DECODINGS = [
    Decoding("ctc", "CTC, greedy"),
    Decoding("ctc", "CTC, 4-gram"),
    Decoding("rnnt", "transducer, greedy"),
    Decoding("rnnt", f"transducer, beam of {BEAM_SIZE}"),
]


def corpora(options: argparse.Namespace) -> Iterator[Corpus]:
    """The corpora that the options name."""
    if options.an4_folder is not None:
        test, _ = split_speakers(options.an4_folder, options.num_test_speakers, options.split_seed)
        _, others = split_speakers(options.an4_folder, options.num_left_out, options.split_seed)
        rows = read_folder(options.an4_folder)
        tables = {
            name: write_table(options.output_dir / f"an4-{name}.jsonl", [one for one in rows if one.speaker_id in who])
            for name, who in (("train", others), ("test", test))
        }
        test_data = {"dataset_name": str(tables["test"]), "split_name": "train"}
        yield Corpus("AN4", {"dataset_name": tables["train"]}, test_data, 48)
    if options.synthetic_config:
        data = {"dataset_name": "synthetic", "dataset_config_name": options.synthetic_config}
        yield Corpus("synthetic", data, {**data, "split_name": "test"}, 38)


def vocabulary(options: argparse.Namespace, corpus: Corpus) -> dict[str, Any]:
    """The tokenizer of the transducer."""
    size = options.vocabulary_size or corpus.vocabulary_size
    return {"vocabulary_kind": options.vocabulary_kind, "vocabulary_size": size}


def train(options: argparse.Namespace, corpus: Corpus, head: str) -> Path:
    """Fine-tune a model with a head, unless that is done."""
    begun = Path(options.model).name if options.model else "scratch"
    recipe = f"{options.max_steps}-updates-{options.learning_rate:g}-seed-{options.seed}"
    if chosen := ",".join(filter(None, [options.config_overrides, options.rnnt_config if head == "rnnt" else ""])):
        recipe += f"-{chosen}"
    folder = options.output_dir / f"{corpus.name}-{head}-from-{begun}-{recipe}"
    start: dict[str, Any] = (
        {"model_name_or_path": options.model} if options.model else {"config_name": "chunkssl-tiny"}
    )
    fields = f"streaming_durations_ms={CHUNKS_MS}".replace(" ", "")
    own: dict[str, Any] = {"freeze_encoder_steps": options.freeze_encoder_steps}
    if head == "rnnt":
        own |= vocabulary(options, corpus)
        # SpecAugment as CTC has it, so that nothing but the head differs.
        fields += ",num_time_masks=0,num_feature_masks=0,mask_time_prob=0.05,mask_feature_prob=0.1"
    own["config_overrides"] = ",".join(filter(None, [fields, chosen]))
    schedule = {"lr_scheduler_type": "tri_stage", "warmup_steps": 0.1, "hold_steps": 0.4, "num_anneals": 10}
    call_script(
        f"finetuning_scripts/run_{head}.py",
        folder,
        **start,
        **corpus.train,
        **own,
        **schedule,
        eval_split_name="",
        load_best_model_at_end=False,
        max_steps=options.max_steps,
        learning_rate=options.learning_rate,
        per_device_train_batch_seconds=options.batch_seconds,
        weight_decay=0.0,
        seed=options.seed,
    )
    return folder


def language_model(options: argparse.Namespace, corpus: Corpus) -> Path:
    """A 4-gram of the corpus' training transcripts, as an ARPA file."""
    from hf_speech_ssl.data.corpora import load_corpus
    from hf_speech_ssl.decoding import estimate_ngrams
    from hf_speech_ssl.evaluation import normalize_text

    path = options.output_dir / f"{corpus.name}-4-gram.arpa"
    if not path.exists():
        data = load_corpus(
            str(corpus.train["dataset_name"]),
            config_name=corpus.train.get("dataset_config_name"),
            split="train",
            text_column="text",
        )
        estimate_ngrams([normalize_text(text) for text in data["text"]], order=4).write_arpa(path)
    return path


def evaluate(options: argparse.Namespace, corpus: Corpus, decoding: Decoding, folder: Path) -> dict[str, Any]:
    """What a decoder writes in every mode, counted by utterance, and how late it is."""
    from hf_speech_ssl.data.reading import UtteranceReader
    from hf_speech_ssl.evaluation.scores import Scores
    from hf_speech_ssl.options import DecodingOptions, ReadingOptions
    from hf_speech_ssl.recognition.evaluation import CorpusEvaluator
    from hf_speech_ssl.recognition.recognizer import Recognizer

    recognizer = Recognizer.from_pretrained(str(folder), device="cpu")
    settings = DecodingOptions()
    if "4-gram" in decoding.name:
        settings = DecodingOptions(language_model(options, corpus), lm_weight=LM_WEIGHT, word_bonus=WORD_BONUS)
    elif "beam" in decoding.name:
        settings = DecodingOptions(beam_size=BEAM_SIZE)
    evaluator = CorpusEvaluator(recognizer, recognizer.make_decoder(settings), CHUNKS_MS, "speaker_id", normalize=True)
    reader = UtteranceReader(ReadingOptions(**corpus.test), "text", optional_columns=["speaker_id"])
    scores = Scores(evaluator.transcribe(reader))
    rates = scores.by_mode()
    return {
        "modes": {
            mode: {
                "wer": rates[mode]["wer"],
                "word_errors": [counts.errors for counts in scores.words[mode]],
                "latency_ms": evaluator.latencies[mode][1] if mode in evaluator.latencies else None,
                "real_time_factor": evaluator.busy[mode] / evaluator.audio_seconds,
            }
            for mode in scores.modes
        },
        "words": [counts.reference_length for counts in scores.words[scores.modes[0]]],
        "speaker": scores.speakers,
    }


def facts(options: argparse.Namespace, corpus: Corpus, decoding: Decoding) -> dict[str, Any]:
    """What a line says of how it was made. Two lines of equal facts are of the same run."""
    made = {name: getattr(options, name) for name in ["seed", *SHARED, *(SPLIT if corpus.name == "AN4" else [])]}
    if decoding.head == "rnnt":
        made |= vocabulary(options, corpus) | {"rnnt_config": options.rnnt_config}
    made |= {"model": Path(options.model).name if options.model else None, "decoding": decoding.name}
    return made | {"corpus": corpus.name, "synthetic_config": options.synthetic_config}


def tables(lines: list[dict[str, Any]]) -> list[str]:
    """A section for the lines of each corpus and recipe: the recipe, and a table."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for line in lines:
        recipe = tuple(line.get(name) for name in ["corpus", "model", *SHARED, *SPLIT])
        groups.setdefault(recipe, []).append(line)
    return [text for group in groups.values() for text in (settings(group), table(group))]


def settings(lines: list[dict[str, Any]]) -> str:
    """How the models of one table were made."""
    known = {name: line[name] for line in lines for name in [*SHARED, *RNNT_ONLY, *SPLIT] if line.get(name)}
    told = ", ".join(f"{name} {value}" for name, value in known.items())
    return f"**{lines[0]['corpus']}, from {lines[0]['model'] or 'random weights'}**: {told}"


def table(lines: list[dict[str, Any]]) -> str:
    """WER in percent by decoder and mode, and how much it differs from that of the first decoder."""
    modes = {mode: scores["latency_ms"] for mode, scores in lines[0]["modes"].items()}
    header = ["decoder", "seeds", *(f"{mode} ({ms:.0f} ms late)" if ms else mode for mode, ms in modes.items())]
    groups: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        groups.setdefault(line["decoding"], []).append(line)
    rows = []
    for decoding, group in groups.items():
        rates = [mean_and_range([100 * one["modes"][mode]["wer"]["value"] for one in group]) for mode in modes]
        rows.append([decoding, str(len(group)), *rates])
        first = groups.get(DECODINGS[0].name, group)
        if group is not first:
            rows.append(["difference", "", *(difference(group, first, mode) for mode in modes)])
    return markdown(header, rows)


def difference(lines: list[dict[str, Any]], base: list[dict[str, Any]], mode: str) -> str:
    """The difference of two decoders' WER over the seeds that both have."""
    seeds = {line["seed"] for line in lines} & {line["seed"] for line in base}
    if not seeds:
        return ""
    mine, other = (
        np.sum([line["modes"][mode]["word_errors"] for line in part if line["seed"] in seeds], axis=0)
        for part in (lines, base)
    )
    return paired_difference(mine, other, len(seeds) * np.array(lines[0]["words"]), lines[0]["speaker"])


def main() -> None:
    """Make the lines that are missing, and print the table."""
    parser = argument_parser(__doc__, repeats=1)
    parser.set_defaults(threads=1)
    parser.add_argument("--an4_folder", type=Path, help="folder with AN4 and its metadata.csv")
    parser.add_argument("--synthetic_config", default="sentences=800,eval_sentences=100", help="'' leaves it out")
    parser.add_argument("--model", help="pretrained model that both heads begin with")
    parser.add_argument("--max_steps", type=int, default=600)
    parser.add_argument("--learning_rate", type=float, default=2e-3)
    parser.add_argument("--batch_seconds", type=float, default=24.0)
    parser.add_argument("--freeze_encoder_steps", type=int, default=0)
    parser.add_argument("--config_overrides", default="", help="fields of both heads' configurations")
    parser.add_argument("--rnnt_config", default="", help="fields of the transducer's configuration alone")
    parser.add_argument("--num_left_out", type=int, default=14, help="speakers of AN4 who are not trained on")
    parser.add_argument("--num_test_speakers", type=int, default=14, help="those of them who are tested on")
    parser.add_argument("--split_seed", type=int, default=9)
    parser.add_argument("--vocabulary_kind", default="unigram")
    parser.add_argument("--vocabulary_size", type=int, help="48 for AN4 and 38 for synthetic speech, if not given")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.output_dir = options.output_dir.resolve() / "rnnt"
    options.output_dir.mkdir(parents=True, exist_ok=True)
    pin(options.threads)
    record = options.output_dir.parent / "rnnt.jsonl"
    lines = [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []
    for corpus in corpora(options):
        for decoding in DECODINGS:
            wanted = facts(options, corpus, decoding)
            if any(wanted.items() <= line.items() for line in lines):
                continue
            folder = train(options, corpus, decoding.head)
            lines.append({**wanted, **evaluate(options, corpus, decoding, folder)})
            lines[-1]["machine"] = machine(options.threads)
            with open(record, "a", encoding="utf-8") as file:
                file.write(json.dumps(lines[-1]) + "\n")
            print(table(lines[-1:]))
    report = "\n\n".join([lines[-1]["machine"], NOTE, *tables(lines)])
    record.with_suffix(".md").write_text(report + "\n", encoding="utf-8")
    print(report)


if __name__ == "__main__":
    main()
