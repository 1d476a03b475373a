"""Corpora of speech translation as they are unpacked: MuST-C, and CoVoST 2 beside Common Voice's clips.

MuST-C, the folder `en-de/` or its `data/`:

    data/train/txt/train.yaml   a list of {wav, offset, duration, speaker_id}, in seconds
    data/train/txt/train.en     a line for each entry; likewise train.de
    data/train/wav/ted_1.wav    whole talks, of which the entries are segments

CoVoST 2, Common Voice's folder with the tables of a pair of languages in it:

    covost_v2.en_de.train.tsv   path, sentence, translation, client_id; likewise dev and test
    clips/common_voice_en_1.mp3
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from .folders import split_word
from .tables import Table, read_table

_MUST_C = ("*/txt/*.yaml", "data/*/txt/*.yaml")
_ENTRY_FIELDS = {"wav", "offset", "duration"}
_COVOST_COLUMNS = {"path", "translation"}


def find_translation_corpus(folder: Path) -> dict[str, Table] | None:
    """The splits of a folder in one of these layouts, as tables; `None` of any other folder.

    MuST-C's splits have its columns, one called as each language (`en`, `de`) and `audio`; CoVoST's have its columns.
    A split is called train, validation or test where its name begins so (`dev` is validation, `tst-COMMON` test), and
    by its own name if there would be two of them (`tst-COMMON` beside `tst-HE`).

    Raises:
        ValueError: a file is not as its layout has it, or there are tables of several pairs of languages.
    """
    listings = [path for pattern in _MUST_C for path in sorted(folder.glob(pattern)) if path.parts[-3] == path.stem]
    if listings:
        return _by_split({path.stem: _read_must_c(path) for path in listings})
    tables = {path: path.name.split(".") for path in sorted(folder.glob("covost_v2.*.*.tsv"))}
    if not tables:
        return None
    if len(pairs := sorted({pair for _, pair, *_ in tables.values()})) > 1:
        raise ValueError(
            f"{folder} has the tables of CoVoST for several pairs of languages ({', '.join(pairs)}): keep those of "
            f"one pair in it, or name a table, as --dataset_name {str(next(iter(tables)))!r}"
        )
    return _by_split({parts[-2]: _read_covost(path) for path, parts in tables.items()})


def _by_split(tables: dict[str, Table]) -> dict[str, Table]:
    words = {name: "test" if name.startswith("tst") else split_word(name) or name for name in tables}
    unique = {word for word in words.values() if list(words.values()).count(word) == 1}
    return {word if word in unique else name: tables[name] for name, word in words.items()}


def _read_must_c(path: Path) -> Table:
    """A split of MuST-C from its yaml file."""
    try:
        # The loader in C takes seconds for the training split, that in Python minutes. Both are safe.
        entries = yaml.load(path.read_text("utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    is_list = isinstance(entries, list) and bool(entries)
    if not is_list or not all(isinstance(one, dict) and one.keys() >= _ENTRY_FIELDS for one in entries):
        raise ValueError(f"{path} is no list of segments with {', '.join(sorted(_ENTRY_FIELDS))}, as MuST-C has it.")
    columns: dict[str, list[Any]] = {
        "audio": [str(path.parents[1] / "wav" / str(one["wav"])) for one in entries],
        **{name: [one.get(name) for one in entries] for name in ("offset", "duration", "speaker_id")},
    }
    for text in sorted(path.parent.glob(f"{path.stem}.*")):
        language = text.suffix.removeprefix(".")
        if language.isalpha() and len(language) <= 3:
            columns[language] = _lines(text, len(entries))
    return Table(path, columns)


def _lines(path: Path, wanted: int) -> list[str]:
    lines = path.read_text("utf-8").removesuffix("\n").split("\n")
    if len(lines) != wanted:
        raise ValueError(
            f"{path} has {len(lines)} lines, the yaml file beside it {wanted} segments; they must be equally many."
        )
    return [line.strip() for line in lines]


def _read_covost(path: Path) -> Table:
    table = read_table(path)
    if missing := sorted(_COVOST_COLUMNS - table.columns.keys()):
        raise ValueError(
            f"{path} has no column {missing[0]!r}, which CoVoST has; its columns are {list(table.columns)}."
        )
    return table
