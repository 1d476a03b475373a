"""Writes the page of the presets: their sizes and fields, how to train them, what the papers did.

A preset is a configuration without weights. The page links to measurements that the repository holds and gives no
other results.
"""

import re
from typing import Any

import torch
from jinja2 import Environment

from ..evaluation.report import markdown_table
from ..families import FAMILIES, Family
from ..modeling.configuration_conformer import SpeechSSLConfig
from .card import TEMPLATE, codebook_entries, config_rows, count_text, frame_ms

PAGE_TEMPLATE = TEMPLATE.with_name("presets_template.md")
RESULTS = TEMPLATE.resolve().parents[1] / "benchmarks" / "results"  # only where the repository is
HEAD_NAMES = {
    "base": "parameters of the encoder",
    "pretraining": "with the pretraining head",
    "ctc": "with a CTC head",
    "rnnt": "with a transducer head",
    "classification": "with a head for 2 classes",
    "frame_classification": "with a head for 2 classes of frames",
}


def preset_names() -> list[str]:
    """All presets."""
    return [name for family in FAMILIES for name in family.preset_names]


def presets_page() -> str:
    """The page as Markdown."""
    environment = Environment(keep_trailing_newline=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(PAGE_TEMPLATE.read_text(encoding="utf-8"))
    return template.render(families=[_template_values(family) for family in FAMILIES])


def _template_values(family: Family) -> dict[str, Any]:
    example = f"{family.presets}-base"
    return {
        "name": family.name,
        "kind": family.kind,
        "script": family.script,
        "example": example,
        "smallest": f"{family.presets}-tiny",
        "needs_tokenizer": "fsq" in family.label_fields,
        "override": family.override,
        "config_class": family.config_class.__name__,
        "model_class": family.model_class("pretraining").__name__,
        "table": "\n".join(_table(family)),
        "recipe": family.recipe,
        "notes": family.preset_notes,
        "figures": _figures(family.preset_names),
        "papers": family.papers,
    }


def _table(family: Family) -> list[str]:
    """Sizes and fields, a column for each preset."""
    configs = {name: family.config_class.from_preset(name) for name in family.preset_names}
    columns = {name: _sizes(family, config) | _fields(family, config) for name, config in configs.items()}
    fields = dict.fromkeys(field for column in columns.values() for field in column)
    rows = [[field, *(column.get(field, "") for column in columns.values())] for field in fields]
    return markdown_table(["", *columns], rows)


def _sizes(family: Family, config: SpeechSSLConfig) -> dict[str, str]:
    """Numbers of trained parameters, counted on models without memory."""
    with torch.device("meta"):
        if family.is_tokenizer:
            counts = {"parameters, decoder included": family.model_class("base")(config).num_parameters()}
        else:
            counts = {what: family.model_class(head)(config).num_parameters() for head, what in HEAD_NAMES.items()}
    sizes = {what: count_text(count) for what, count in counts.items()}
    sizes["frame"] = f"{frame_ms(config)} ms"
    return sizes | ({"labels": f"{codebook_entries(config):,}"} if family.is_tokenizer else {})


def _fields(family: Family, config: SpeechSSLConfig) -> dict[str, str]:
    return {f"`{name}`": value for name, value in config_rows(family, config, family.kind).items()}


def _figures(names: list[str]) -> dict[str, list[str]]:
    """The presets that the result files of the benchmarks name, by file."""
    files = sorted(RESULTS.rglob("*.md")) if RESULTS.is_dir() else []
    found = {}
    for file in files:
        text = file.read_text(encoding="utf-8")
        named = [name for name in names if re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", text)]
        if named:
            found[file.relative_to(RESULTS).as_posix()] = named
    return found
