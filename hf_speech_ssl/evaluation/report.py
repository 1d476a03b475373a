"""An evaluation as text for a terminal, which is Markdown too: tables, and transcripts aligned with what was said."""

import unicodedata
from collections.abc import Sequence
from typing import Any

_SPEAKERS_SHOWN = 20
_LINE_WIDTH = 100  # columns of aligned text


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]], numbers_from: int = 1) -> list[str]:
    """Lines of a Markdown table whose columns stand under each other, those from `numbers_from` on to the right."""
    cells = [[_one_line(cell).replace("|", "\\|") for cell in row] for row in (head, *rows)]
    widths = [max(3, *map(_width, column)) for column in zip(*cells, strict=True)]
    rule = ["-" * (width - 1) + ":" if at >= numbers_from else "-" * width for at, width in enumerate(widths)]
    lines = []
    for row in (cells[0], rule, *cells[1:]):
        padded = [
            " " * (width - _width(cell)) + cell if at >= numbers_from else cell + " " * (width - _width(cell))
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append(f"| {' | '.join(padded)} |")
    return lines


def as_text(report: dict[str, Any]) -> str:
    """A report of [`hf_speech_ssl.commands.evaluate`] as Markdown."""
    modes, settings = report["modes"], report["settings"]
    first = next(iter(modes.values()))
    lines = [f"# {report['model']} on {report['dataset']} ({report['split']})", "", *_data_lines(first, settings), ""]
    for table in _mode_tables(modes):
        lines += [*table, ""]
    lines += _notes(modes, settings)
    if report["speakers"]:
        lines += ["", "## Speakers", "", *_speaker_lines(report["speakers"])]
    if report["worst"]:
        lines += ["", f"## Most errors ({next(iter(modes))})", "", *_worst_lines(report["worst"])]
    return "\n".join(lines).rstrip()


def aligned_lines(alignment: Sequence[tuple[str | None, str | None]], width: int = _LINE_WIDTH) -> list[str]:
    """Reference and prediction under each other, and below them S, D or I where they differ.

    Args:
        alignment: (reference, prediction) pairs, as in [`hf_speech_ssl.evaluation.align_words`].
        width: columns after which a line is broken.
    """
    lines: list[list[str]] = []
    room = 0
    for true, heard in alignment:
        kind = "D" if heard is None else "I" if true is None else "S" if true != heard else ""
        size = max(_width(true or ""), _width(heard or ""), 1)
        if not lines or room < size + 1:
            lines.append(["said: ", "heard:", "      "])
            room = width - len(lines[-1][0])
        shown = ("*" * size if true is None else true, "*" * size if heard is None else heard, kind)
        lines[-1] = [
            f"{line} {cell}{' ' * (size - _width(cell))}" for line, cell in zip(lines[-1], shown, strict=True)
        ]
        room -= size + 1
    return [line.rstrip() for block in lines for line in block if line.strip()]


def _data_lines(first: dict[str, Any], settings: dict[str, Any]) -> list[str]:
    decoder = settings["decoder"]
    if settings["lm_path"] or settings["lexicon_path"]:
        parts = {"language model": settings["lm_path"], "lexicon": settings["lexicon_path"]}
        decoder += " with " + " and ".join(f"{name} {path}" for name, path in parts.items() if path)
        decoder += f" (weight {settings['lm_weight']:g}, word bonus {settings['word_bonus']:g}"
        decoder += f", beam {settings['beam_size']})"
    texts = "texts normalised" if settings["normalize_text"] else "texts as they are"
    lines = [
        f"{_count(first['utterances'], 'utterance')}, {_count(first['words'], 'word')}, "
        f"{_duration(settings['audio_seconds'])}; {first['correct_utterances']:,} without a word error. "
        f"{decoder[0].upper()}{decoder[1:]}, {texts}."
    ]
    if settings["skipped"]:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(settings["skipped"].items()))
        lines.append(f"Files left out: {reasons}.")
    return lines


def _mode_tables(modes: dict[str, Any]) -> list[list[str]]:
    """One table for one mode; else a second one for the kinds of errors, so that lines stay short."""
    rates = {"WER %": "wer", "CER %": "cer"}
    kinds = {"substituted %": "substitutions", "deleted %": "deletions", "inserted %": "insertions"}
    if len(modes) == 1:
        return [_mode_table(modes, rates | kinds)]
    return [_mode_table(modes, rates), _mode_table(modes, kinds, costs=False)]


def _mode_table(modes: dict[str, Any], figures: dict[str, str], costs: bool = True) -> list[str]:
    head, compared = ["mode", *figures], costs and len(modes) > 1
    if compared:
        head += [f"WER to {next(iter(modes))}", "latency ms (mean)"]
    if costs:
        head.append("RTF")
    rows = []
    for name, mode in modes.items():
        row = [name, *(_percent(mode[figure]) for figure in figures.values())]
        if compared:
            row.append(_percent(mode["wer_change"], sign="+") if "wer_change" in mode else "")
            latency = "latency_ms" in mode
            row.append(f"{mode['latency_ms']:g} ({mode['mean_latency_ms']:g})" if latency else "the utterance")
        if costs:
            row.append(f"{mode['real_time_factor']:.4f}")
        rows.append(row)
    return markdown_table(head, rows)


def _notes(modes: dict[str, Any], settings: dict[str, Any]) -> list[str]:
    if next(iter(modes.values()))["wer"]["low"] is None:
        notes = ["No intervals: they need two utterances and a number of resamples."]
    else:
        why = f" ({settings['why_resampled']})" if settings["why_resampled"] else ""
        notes = [
            f"In brackets: {100 * settings['confidence']:g} % intervals from {settings['num_resamples']:,} bootstrap "
            f"resamples of the {settings['resampled']}{why}."
        ]
    if len(modes) > 1:
        notes.append(
            "Latency: how long sound waits for the end of its chunk and of the look-ahead, at most and on average, "
            "computation not included."
        )
    live = "; a live stream costs more" if len(modes) > 1 else ""
    notes.append(
        f"RTF: seconds of computation per second of audio, in batches of {settings['batch_seconds']:g} s on "
        f"{settings['device']}{live}."
    )
    return notes


def _speaker_lines(speakers: list[dict[str, Any]]) -> list[str]:
    kinds = ("wer", "cer", "substitutions", "deletions", "insertions")
    head = ["speaker", "utterances", "words", "WER %", "CER %", "substituted %", "deleted %", "inserted %"]
    rows = [
        [
            one["speaker"],
            f"{one['utterances']:,}",
            f"{one['words']:,}",
            *("" if one[kind] is None else f"{100 * one[kind]:.2f}" for kind in kinds),
        ]
        for one in speakers
    ]
    lines = markdown_table(head, rows[:_SPEAKERS_SHOWN])
    if len(rows) > _SPEAKERS_SHOWN:
        lines += ["", f"{len(rows) - _SPEAKERS_SHOWN:,} more speakers with lower error rates are in the JSON report."]
    return lines


def _worst_lines(worst: list[dict[str, Any]]) -> list[str]:
    lines: list[str] = []
    for place, one in enumerate(worst, start=1):
        speaker = f", speaker {one['speaker']}" if one["speaker"] is not None else ""
        lines += [
            f"{place}. `{_one_line(one['name'])}`{speaker}, {one['seconds']:.1f} s: "
            f"{_count(one['errors'], 'error')} in {_count(one['words'], 'word')}",
            "",
            "```text",
            *aligned_lines(one["alignment"]),
            "```",
            "",
        ]
    return lines


def _percent(estimate: dict[str, float | None], sign: str = "") -> str:
    def number(share: float) -> str:
        return f"{100 * share + 0.0:{sign}.2f}"

    value, low, high = (estimate[part] for part in ("value", "low", "high"))
    assert value is not None
    return number(value) if low is None or high is None else f"{number(value)} [{number(low)}, {number(high)}]"


def _count(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'s' * (number != 1)}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _width(text: str) -> int:
    """Columns of a terminal that a text takes."""
    return sum(0 if unicodedata.combining(char) else 1 + (unicodedata.east_asian_width(char) in "WF") for char in text)
