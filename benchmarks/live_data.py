"""Synthetic speech for the benchmarks of live transcription: sentences with names, and the times of their words.

    python benchmarks/live_data.py OUTPUT_DIR [--sentences 4000]

The sentences are those of the synthetic corpus' grammar. In the training split every name is invented, a new one
nearly each time, so that a model learns how letters sound and no list of names. The splits `validation` and `test`
have real names that no training sentence has, and `plain` has none but the grammar's own words. The voices of a split
are those of the synthetic corpus, so that no test voice has been in training.
"""

import argparse
import csv
import json
import random
from pathlib import Path

import numpy as np
import soundfile

from hf_speech_ssl.data.synthetic import espeak
from hf_speech_ssl.data.synthetic.grammar import FULL, draw_sentence
from hf_speech_ssl.data.synthetic.utterances import ACCENTS, VOICES, place

RATE = 16_000  # Hz
COLUMNS = ["file_name", "text", "speaker_id", "words"]
SIDES = ("start", "end")
RARE_NAMES = {
    "validation": (
        "ambrose", "beatrix", "clementine", "desmond", "evangeline", "ferdinand", "gwendolyn", "hamilton",
        "isadora", "jefferson", "leopold", "marigold", "nathaniel", "philippa", "rosalind", "sylvester",
    ),
    "test": (
        "augustus", "bartholomew", "cordelia", "demetrius", "esmeralda", "fitzgerald", "gabriella", "humphrey",
        "ignatius", "josephine", "katarina", "lancelot", "montgomery", "nicodemus", "ophelia", "penelope",
        "quentin", "rasmus", "seraphina", "tobias", "ursula", "valentina", "winifred", "yolanda", "zachary",
    ),
}  # fmt: skip
NAMED = ("call NAME and NAME", "NAME and NAME PAST OBJECT", "give NAME OBJECT", "NAME PAST OBJECT", "who is NAME")
ONSETS = "b d f g h j k l m n p r s t v w z br cl dr fl gr pl st tr sh ch".split()
NUCLEI = "a e i o u a e i o ee oo".split()
CODAS = ["", "", "", "", *"n l r s m t x ck nd".split()]


def invent_name(rng: random.Random) -> str:
    """A name of two to four syllables."""
    syllables = rng.choice((2, 2, 3, 3, 4))
    name = "".join(rng.choice(ONSETS) + rng.choice(NUCLEI) + rng.choice(CODAS) for _ in range(syllables))
    return name + rng.choice(("", "", "a", "o", "us", "ine"))


def draw_text(split: str, rng: random.Random) -> str:
    """A sentence; two of three in the splits with names have one."""
    grammar = "test" if split == "plain" else split
    if split == "plain" or rng.random() < 1 / 3:
        return draw_sentence("full", grammar, rng)
    names = RARE_NAMES.get(split)
    words = []
    for word in rng.choice(NAMED).split():
        if word == "NAME":
            words.append(rng.choice(names) if names else invent_name(rng))
        else:
            words += expand(word, rng)
    return " ".join(words)


def expand(symbol: str, rng: random.Random) -> list[str]:
    """The words of a symbol of the grammar."""
    if symbol not in FULL:
        return [symbol]
    return [word for part in rng.choice(FULL[symbol]).split() for word in expand(part, rng)]


def say(text: str, split: str, rng: random.Random) -> tuple[np.ndarray, str, list[dict]]:
    """Samples at 16 kHz, the speaker, and the words with their times in seconds.

    Raises:
        ValueError: espeak-ng runs two words together, which then have no times of their own.
    """
    voices = "test" if split == "plain" else split
    variant, accent = rng.choice(VOICES[voices]), rng.choice(ACCENTS)
    speaker = f"{variant.replace(' ', '_')}.{accent}"
    pitch = random.Random(speaker).randint(35, 65)
    speech = espeak.speak(text, f"{accent}+{variant}", words_per_minute=rng.randint(140, 200), pitch=pitch)
    lead, tail = (round(rng.uniform(0.1, 0.3) * RATE) for _ in range(2))
    samples = place(speech, lead, tail, level_dbfs=rng.uniform(-30, -20))
    words = [
        {"word": one.label, **{side: lead / RATE + getattr(one, side) / espeak.SAMPLING_RATE for side in SIDES}}
        for one in speech.words
    ]
    return samples, speaker, words


def write_split(folder: Path, split: str, sentences: int, seed: int = 0) -> Path:
    """FLAC files and metadata.csv, which lists them with texts, speakers and, as JSON, words with times."""
    (folder / split).mkdir(parents=True, exist_ok=True)
    rng, rows = random.Random(f"{seed}/{split}"), []
    while len(rows) < sentences:
        text = draw_text(split, rng)
        try:
            samples, speaker, words = say(text, split, rng)
        except ValueError:
            continue
        name = f"{len(rows):06d}.flac"
        soundfile.write(folder / split / name, samples, RATE, subtype="PCM_16")
        rows.append([name, text, speaker, json.dumps(words)])
    path = folder / split / "metadata.csv"
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *rows])
    return path


def read_split(folder: Path, split: str) -> list[dict]:
    """The rows of a split, with `samples` at 16 kHz."""
    with open(folder / split / "metadata.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return [
        row
        | {
            "samples": soundfile.read(folder / split / row["file_name"], dtype="float32")[0],
            "words": json.loads(row["words"]),
        }
        for row in rows
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output_dir", type=Path)
    parser.add_argument("--sentences", type=int, default=6000, help="in the training split")
    parser.add_argument("--eval_sentences", type=int, default=200, help="in each of the others")
    options = parser.parse_args()
    for split in ("train", "validation", "test", "plain"):
        count = options.sentences if split == "train" else options.eval_sentences
        print(write_split(options.output_dir, split, count))


if __name__ == "__main__":
    main()
