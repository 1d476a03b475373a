"""The folders that `labels.py` reads, and the speakers it leaves out.

    python benchmarks/labels_data.py FOLDER --config levels=varied,grammar=full,hours=20

writes a split of the synthetic corpus as such a folder. Its speakers are synthetic voices; splits share none.
"""

import argparse
import csv
import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Utterance:
    """A row of a folder's metadata.

    Args:
        audio: absolute path.
    """

    audio: str
    text: str
    speaker_id: str


def read_folder(folder: Path) -> list[Utterance]:
    """The utterances that a folder's metadata.csv lists."""
    with open(folder / "metadata.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return [Utterance(str((folder / row["file_name"]).resolve()), row["text"], row["speaker_id"]) for row in rows]


def split_speakers(
    folder: Path, num_test_speakers: int, seed: int, test_speakers: Sequence[str] | None = None
) -> tuple[list[str], list[str]]:
    """Test speakers and the others, in an order that the seed fixes.

    Args:
        test_speakers: by name, instead of the first `num_test_speakers`.
    """
    speakers = sorted({one.speaker_id for one in read_folder(folder)})
    random.Random(seed).shuffle(speakers)
    test = list(test_speakers or speakers[:num_test_speakers])
    return test, [speaker for speaker in speakers if speaker not in test]


def write_table(file: Path, utterances: Iterable[Utterance]) -> Path:
    """A data set as JSON lines, which the training scripts read."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(asdict(one)) + "\n" for one in utterances), encoding="utf-8")
    return file


def read_table(file: Path) -> list[Utterance]:
    """What `write_table` wrote."""
    return [Utterance(**json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()]


def write_synthetic(folder: Path, config: str, split: str) -> Path:
    """A split of the synthetic corpus as such a folder; `config` as in `--dataset_config_name`."""
    from hf_speech_ssl.data.corpora import load_corpus

    corpus = load_corpus("synthetic", config_name=config, split=split)
    (folder / "audio").mkdir(parents=True, exist_ok=True)
    with open(folder / "metadata.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "text", "speaker_id"])
        for index, row in enumerate(corpus):
            name = f"audio/{index:06d}.flac"
            (folder / name).write_bytes(row["audio"]["bytes"])
            writer.writerow([name, row["text"], row["speaker_id"]])
    return folder


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--config", default="levels=varied,grammar=full,hours=20")
    parser.add_argument("--split", default="train", choices=["train", "validation", "test"])
    options = parser.parse_args()
    write_synthetic(options.folder, options.config, options.split)
