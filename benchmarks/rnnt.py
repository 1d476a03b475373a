"""CTC and transducer on the same encoder: word error rates offline and in chunks, and how late a chunk's text comes.

    python benchmarks/rnnt.py --an4_folder shared/data/an4 [--model FOLDER] [--max_steps 600] [--threads 1]

Two Chunk SSL models are fine-tuned with as many updates on the same batches: one with CTC on letters, one with a
transducer. They begin with `--model`, a pretrained `chunkssl-tiny`, or with random weights. CTC is decoded greedily
and with a 4-gram of the training transcripts, the transducer greedily and with a beam of 8; all also in chunks. AN4's
test speakers are those that `labels.py` leaves out (14, seed 9); the synthetic corpus is that of `--synthetic_config`,
with unseen sentences and voices in its test split.

Every line of `rnnt.jsonl` is one corpus and decoder. What is there is not made again, and a killed training run
resumes, so the same command goes on where it stopped. Latency is from a sound to its text, without computation.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import argument_parser, machine, markdown, pin
from labels import call_script
from labels_data import read_folder, split_speakers, write_table

CHUNKS_MS = [160, 320, 640, 1280]
CHUNKS = " ".join(map(str, CHUNKS_MS))
NUM_TEST_SPEAKERS, SPLIT_SEED = 14, 9
BEAM_SIZE = 8
LM_WEIGHT, WORD_BONUS = 1.0, 1.0


@dataclass(frozen=True)
class Corpus:
    """Where a corpus' training and test data are.

    Args:
        name: in the table.
        train: flags of the training scripts.
        test: arguments of `ReadingOptions`.
    """

    name: str
    train: dict[str, Any]
    test: dict[str, Any]


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
        test, others = split_speakers(options.an4_folder, NUM_TEST_SPEAKERS, SPLIT_SEED)
        rows = read_folder(options.an4_folder)
        tables = {
            name: write_table(options.output_dir / f"an4-{name}.jsonl", [one for one in rows if one.speaker_id in who])
            for name, who in (("train", others), ("test", test))
        }
        yield Corpus(
            "AN4", {"dataset_name": tables["train"]}, {"dataset_name": str(tables["test"]), "split_name": "train"}
        )
    if options.synthetic_config:
        data = {"dataset_name": "synthetic", "dataset_config_name": options.synthetic_config}
        yield Corpus("synthetic", data, {**data, "split_name": "test"})


def train(options: argparse.Namespace, corpus: Corpus, head: str) -> Path:
    """Fine-tune a model with a head, unless that is done."""
    folder = options.output_dir / f"{corpus.name}-{head}-{options.max_steps}-updates-{options.learning_rate:g}"
    start: dict[str, Any] = (
        {"model_name_or_path": options.model} if options.model else {"config_name": "chunkssl-tiny"}
    )
    fields = f"streaming_durations_ms={CHUNKS_MS}".replace(" ", "")
    own: dict[str, Any] = {"freeze_encoder_steps": options.freeze_encoder_steps, "config_overrides": fields}
    if head == "rnnt":
        own |= {"vocabulary_kind": options.vocabulary_kind, "vocabulary_size": options.vocabulary_size}
        # SpecAugment as CTC has it, so that nothing but the head differs.
        own["config_overrides"] = (
            f"{fields},num_time_masks=0,num_feature_masks=0,mask_time_prob=0.05,mask_feature_prob=0.1"
        )
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
    """Word error rates of a decoder in every mode, with latency."""
    from hf_speech_ssl.data.reading import UtteranceReader
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
    report = evaluator.report(UtteranceReader(ReadingOptions(**corpus.test), "text"), num_worst=0, num_resamples=0)
    return {
        mode: {"wer": scores["wer"]["value"], "latency_ms": scores.get("mean_latency_ms")}
        | {"real_time_factor": scores["real_time_factor"]}
        for mode, scores in report["modes"].items()
    }


def facts(options: argparse.Namespace, corpus: Corpus, decoding: Decoding) -> dict[str, Any]:
    """What a line says of how it was made. Two lines of equal facts are of the same run."""
    names = "max_steps learning_rate batch_seconds seed vocabulary_kind vocabulary_size freeze_encoder_steps"
    made = {name: getattr(options, name) for name in names.split()}
    made |= {"model": Path(options.model).name if options.model else None, "decoding": decoding.name}
    return made | {"corpus": corpus.name, "synthetic_config": options.synthetic_config}


def table(lines: list[dict[str, Any]]) -> str:
    """WER in percent, a row for each corpus and decoder, a column for each mode."""
    modes = list(lines[0]["modes"])
    latency = {mode: lines[0]["modes"][mode]["latency_ms"] for mode in modes}
    header = ["corpus", "decoder", *(f"{m} ({latency[m]:.0f} ms late)" if latency[m] else m for m in modes)]
    rows = [
        [line["corpus"], line["decoding"], *(f"{100 * line['modes'][mode]['wer']:.1f}" for mode in modes)]
        for line in lines
    ]
    return markdown(header, rows)


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
    parser.add_argument("--vocabulary_kind", default="unigram")
    parser.add_argument("--vocabulary_size", type=int, default=48)
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
            lines.append({**wanted, "modes": evaluate(options, corpus, decoding, folder)})
            lines[-1]["machine"] = machine(options.threads)
            with open(record, "a", encoding="utf-8") as file:
                file.write(json.dumps(lines[-1]) + "\n")
            print(table(lines[-1:]))
    print(table(lines))


if __name__ == "__main__":
    main()
