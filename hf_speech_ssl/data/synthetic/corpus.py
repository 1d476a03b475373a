"""The corpus `synthetic`: real speech from espeak-ng with text, speakers and the times of phones and words.

Made on first use (a few hundred times faster than real time on one core) and kept on disk as a `datasets` folder.
"""

import hashlib
import importlib.metadata
import itertools
import json
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Audio, Dataset, Features, Value, load_from_disk
from filelock import FileLock

from .clauses import LANGUAGES
from .grammar import CLAUSES, GRAMMARS, SPLITS
from .utterances import LEVELS, SAMPLING_RATE, Recipe, translation_column, utterance

# Part of every cache key: raise it when the same arguments come to mean other audio, text or times.
GENERATOR_VERSION = 2

DEFAULT_NUM_SENTENCES = 1000

_BLOCK = 256  # utterances handed to the workers at once


def build_synthetic(  # noqa: PLR0913 - keyword-only, and each is an entry of the corpus' option string
    split: str = "train",
    *,
    num_sentences: int | None = None,
    hours: float | None = None,
    seed: int = 0,
    grammar: str = "small",
    noise_snr_db: float | None = None,
    reverberation: bool = False,
    levels: str = "equal",
    languages: Sequence[str] = (),
    cache_dir: str | os.PathLike[str] | None = None,
    num_proc: int | None = None,
) -> Dataset:
    """Synthetic speech, from the cache where it has been made before.

    Sentence i of a split depends on the other arguments alone: a longer corpus begins with the shorter one, and the
    number of processes changes nothing. Splits share neither voices nor sentences, whatever their seeds.

    Args:
        split: "train", "validation" or "test".
        num_sentences: length of the corpus; 1000 where neither it nor `hours` is given.
        hours: length of the corpus in hours of audio, rounded up to a whole sentence; instead of `num_sentences`.
        seed: draws sentences, speakers, rates, levels, rooms and noise.
        grammar: "small" (30 words, 3 to 6 a sentence), "full" (277 words, 4 to 12 a sentence) or "clauses" (95
            words, 4 to 16 a sentence, most of them with a subordinate clause), which has translations.
        noise_snr_db: speech over noise in dB; no noise by default.
        reverberation: put each utterance in a room of its own.
        levels: "equal" (-30 to -20 dBFS), or "varied": each voice has a level of its own, up to 20 dB below that, each
            utterance is up to 10 dB softer still, seven of ten are in a room, and noise lies 5 to 40 dB below the
            speech, unless `noise_snr_db` says how far.
        languages: "de" and "es", of the translations that the sentences get; of the grammar "clauses" only.
        cache_dir: where corpora are kept; by default $HF_SPEECH_SSL_CACHE, else ~/.cache/hf_speech_ssl.
        num_proc: processes that synthesise (started afresh, so that a script that asks for them needs
            `if __name__ == "__main__"`); this process alone by default.

    Returns:
        A Dataset with the columns `audio` ({"path", "bytes"}: 16 kHz FLAC, not decoded), `text` (a-z, space and
        apostrophe), `text_de` and `text_es` (cased and punctuated) where `languages` asks for them, `speaker_id`,
        `duration` (s), `phones` (list of {"phone", "start", "end"}, s; espeak-ng's names without marks of stress; gaps
        are pauses) and `words` (list of {"word", "start", "end"}, s).

    Raises:
        ImportError: espeakng-loader is not installed.
        ValueError: an argument is out of its range.
    """
    if num_sentences is None and hours is None:
        num_sentences = DEFAULT_NUM_SENTENCES
    _check_length(num_sentences, hours)
    recipe = _recipe(Recipe(split, grammar, seed, noise_snr_db, reverberation, levels, tuple(languages)))
    size = {"num_sentences": num_sentences, "hours": hours}
    target = _cache_folder(cache_dir) / _folder_name(recipe, size)
    target.parent.mkdir(parents=True, exist_ok=True)
    # The lock makes a second process wait for the first; the rename makes a folder either whole or absent.
    with FileLock(f"{target}.lock"):
        if not target.exists():
            scratch = target.with_name(target.name + ".partial")
            shutil.rmtree(scratch, ignore_errors=True)  # a killed run's
            try:
                _write(recipe, size, num_proc or 1, scratch).rename(target)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
    return load_from_disk(str(target))


def parse_synthetic_options(text: str | None, split: str = "train") -> dict[str, Any]:
    """Keyword arguments of `build_synthetic` from one string, such as "sentences=500,grammar=small,seed=1".

    Options: `sentences` or `hours`, and `eval_sentences` or `eval_hours`, which take their place for the splits
    validation and test; `grammar`, whose name may also stand alone ("full"); `seed`; `noise` (dB); `reverb` (true or
    false); `levels` (equal or varied); `languages` (de, es or de+es).

    Raises:
        ValueError: an option that does not exist, comes twice or has a value that cannot be read.
    """
    options: dict[str, Any] = {}
    for item in filter(None, (part.strip() for part in (text or "").split(","))):
        name, _, value = (part.strip() for part in (f"grammar={item}" if item in GRAMMARS else item).partition("="))
        if name not in _OPTIONS:
            raise ValueError(
                f"Cannot read {item!r} in the options {text!r} of the synthetic corpus; needed: name=value, "
                f"separated by commas, with the names {', '.join(_OPTIONS)}."
            )
        if name in options:
            raise ValueError(f"The option {name!r} comes twice in {text!r}; give it once.")
        _, read, needed = _OPTIONS[name]
        try:
            options[name] = read(value)
        except (ValueError, KeyError):
            raise ValueError(f"Option {name!r} of the synthetic corpus is {value!r}; needed: {needed}.") from None
    of_eval = {name: options.pop(name) for name in ("eval_sentences", "eval_hours") if name in options}
    if of_eval and split != "train":
        options = {name: value for name, value in options.items() if name not in ("sentences", "hours")} | of_eval
    return {_OPTIONS[name][0]: value for name, value in options.items()}


# Name of the option -> (argument of build_synthetic, how to read it, what is needed)
_OPTIONS: dict[str, tuple[str, Callable[[str], Any], str]] = {
    "sentences": ("num_sentences", int, "a whole number"),
    "hours": ("hours", float, "a number of hours"),
    "eval_sentences": ("num_sentences", int, "a whole number"),
    "eval_hours": ("hours", float, "a number of hours"),
    "grammar": ("grammar", str, "small, full or clauses"),
    "seed": ("seed", int, "a whole number"),
    "noise": ("noise_snr_db", float, "a number of decibels"),
    "levels": ("levels", str, "equal or varied"),
    "languages": ("languages", lambda value: tuple(value.split("+")), "de, es or de+es"),
    "reverb": ("reverberation", {"true": True, "false": False}.__getitem__, "true or false"),
}


def _check_length(num_sentences: int | None, hours: float | None) -> None:
    if num_sentences is not None and hours is not None:
        raise ValueError(f"Got both num_sentences={num_sentences} and hours={hours}; give one of them.")
    length = num_sentences if num_sentences is not None else hours
    if length is None or not 0 < length < float("inf"):
        raise ValueError(f"A synthetic corpus of {num_sentences} sentences or {hours} hours; needed: more than none.")


def _recipe(asked: Recipe) -> Recipe:
    """A recipe after a check of what it holds."""
    choices = {"split": SPLITS, "grammar": GRAMMARS, "levels": LEVELS}
    for name, known in choices.items():
        value = getattr(asked, name)
        if value not in known:
            raise ValueError(f"The synthetic corpus has no {name} {value!r}; needed: one of {', '.join(known)}.")
    if unknown := [language for language in asked.languages if language not in LANGUAGES]:
        raise ValueError(
            f"The synthetic corpus has no translations into {unknown[0]!r}; needed: languages={'+'.join(LANGUAGES)}, "
            f"or one of them."
        )
    if asked.languages and asked.grammar != CLAUSES:
        raise ValueError(
            f"The grammar {asked.grammar!r} of the synthetic corpus has no translations; needed: grammar={CLAUSES}."
        )
    if asked.seed < 0:
        raise ValueError(f"The seed of a synthetic corpus is {asked.seed}; needed: 0 or more.")
    noise = asked.noise_snr_db
    if noise is not None and not -100 <= noise <= 100:
        raise ValueError(f"The noise of a synthetic corpus is {noise} dB below the speech; needed: -100 to 100.")
    return replace(
        asked, noise_snr_db=None if noise is None else float(noise), reverberation=bool(asked.reverberation)
    )


def _cache_folder(cache_dir: str | os.PathLike[str] | None) -> Path:
    default = os.environ.get("HF_SPEECH_SSL_CACHE") or "~/.cache/hf_speech_ssl"
    return Path(cache_dir or default).expanduser() / "synthetic"


def _folder_name(recipe: Recipe, size: dict[str, Any]) -> str:
    """Readable at its beginning, unique at its end: a hash of all that the corpus depends on."""
    try:
        espeak_version = importlib.metadata.version("espeakng-loader")
    except importlib.metadata.PackageNotFoundError:
        espeak_version = None  # told as an error when the first sentence is to be said
    # Fields that came later are left out where they change nothing, so that older corpora are found.
    came_later = [("levels", "equal"), ("languages", ())]
    own = {name: value for name, value in asdict(recipe).items() if (name, value) not in came_later}
    everything = {**own, **size, "generator": GENERATOR_VERSION, "espeakng_loader": espeak_version}
    key = hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()[:16]
    return f"{recipe.grammar}-{recipe.split}-{key}"


def _features(languages: Sequence[str]) -> Features:
    return Features(
        {
            # The storage of an audio column: encoding one as such asks for torchcodec.
            "audio": {"bytes": Value("binary"), "path": Value("string")},
            "text": Value("string"),
            **{translation_column(language): Value("string") for language in languages},
            "speaker_id": Value("string"),
            "duration": Value("float64"),
            "phones": [{"phone": Value("string"), "start": Value("float64"), "end": Value("float64")}],
            "words": [{"word": Value("string"), "start": Value("float64"), "end": Value("float64")}],
        }
    )


def _write(recipe: Recipe, size: dict[str, Any], num_proc: int, scratch: Path) -> Path:
    """Synthesise to disk row by row, so that memory does not grow with the corpus; return its folder in `scratch`."""
    dataset = Dataset.from_generator(
        _rows,
        features=_features(recipe.languages),
        cache_dir=str(scratch / "rows"),
        gen_kwargs={"recipe": recipe, "num_proc": num_proc, **size},
    )
    folder = scratch / "corpus"
    dataset.cast_column("audio", Audio(sampling_rate=SAMPLING_RATE, decode=False)).save_to_disk(str(folder))
    return folder


def _rows(recipe: Recipe, num_sentences: int | None, hours: float | None, num_proc: int) -> Iterator[dict[str, Any]]:
    seconds = 0.0
    with _mapper(num_proc) as mapper:
        for start in itertools.count(step=_BLOCK):
            stop = start + _BLOCK if num_sentences is None else min(start + _BLOCK, num_sentences)
            for row in mapper(partial(utterance, recipe), range(start, stop)):
                if hours is not None and seconds >= hours * 3600:
                    return
                yield row
                seconds += row["duration"]
            if stop == num_sentences:
                return


@contextmanager
def _mapper(num_proc: int) -> Iterator[Callable[..., Any]]:
    """`map`, in this process or over a pool: results in order either way."""
    if num_proc == 1:
        yield map
    else:
        # Not forked: the parent may hold threads of torch or a GPU.
        with multiprocessing.get_context("spawn").Pool(num_proc) as pool:
            yield partial(pool.imap, chunksize=8)
