"""Formats an evaluation as Markdown that also reads well in a terminal."""

import textwrap
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from ..run_folder import ERROR_KINDS, LAGGINGS, TRANSLATION_SCORES, Evaluation, is_translation

_SPEAKERS_SHOWN = 20
_LINE_WIDTH = 80  # columns of a narrow terminal


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


def as_text(evaluation: Evaluation) -> str:
    """Format a report of `hf-speech-ssl evaluate` as Markdown."""
    modes, settings = evaluation.modes, evaluation.settings
    first = next(iter(modes.values()))
    title = f"# {evaluation.model} on {evaluation.dataset} ({evaluation.split})"
    lines = [title, "", *_data_lines(first, settings), ""]
    for table in [_scores(modes)] if evaluation.is_translation else _mode_tables(modes):
        lines += [*table, ""]
    lines += _notes(modes, settings)
    if live := {name: mode["live"] for name, mode in modes.items() if mode.get("live")}:
        lines += ["", "## Live streams", "", *_live_lines(live)]
    if evaluation.speakers:
        lines += ["", "## Speakers", "", *_speaker_lines(evaluation.speakers)]
    if evaluation.worst and evaluation.is_translation:
        lines += ["", f"## Least like their references ({next(iter(modes))})", "", *_worst_of(evaluation.worst)]
    elif evaluation.worst:
        lines += ["", f"## Most errors ({next(iter(modes))})", "", *_worst_lines(evaluation.worst)]
    return "\n".join(lines).rstrip()


def aligned_lines(alignment: Sequence[tuple[str | None, str | None]], width: int = _LINE_WIDTH) -> list[str]:
    """Write reference and hypothesis under each other, and below them S, D or I where they differ.

    Args:
        alignment: (reference, hypothesis) pairs, as in [`hf_speech_ssl.evaluation.align_words`].
        width: columns after which a line is broken.
    """
    lines: list[list[str]] = []
    room = 0
    for true, guess in alignment:
        kind = "D" if guess is None else "I" if true is None else "S" if true != guess else ""
        size = max(_width(true or ""), _width(guess or ""), 1)
        if not lines or room < size + 1:
            lines.append(["ref:", "hyp:", "    "])
            room = width - len(lines[-1][0])
        shown = ("*" * size if true is None else true, "*" * size if guess is None else guess, kind)
        lines[-1] = [
            f"{line} {cell}{' ' * (size - _width(cell))}" for line, cell in zip(lines[-1], shown, strict=True)
        ]
        room -= size + 1
    return [line.rstrip() for block in lines for line in block if line.strip()]


def _data_lines(first: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    decoder = settings["decoder"]
    if settings["lm_path"] or settings["lexicon_path"]:
        parts = {"language model": settings["lm_path"], "lexicon": settings["lexicon_path"]}
        decoder += " with " + " and ".join(f"{name} {path}" for name, path in parts.items() if path)
        decoder += f" (weight {settings['lm_weight']:g}, word bonus {settings['word_bonus']:g}"
        decoder += f", beam {settings['beam_size']})"
    texts = "texts normalized" if settings["normalize_text"] else "texts as they are"
    right = f"; {first['correct_utterances']:,} without a word error" if "correct_utterances" in first else ""
    lines = [
        f"{_count(first['utterances'], 'utterance')}, {_count(first['words'], 'word')}, "
        f"{_duration(settings['audio_seconds'])}{right}. "
        f"{decoder[0].upper()}{decoder[1:]}, {texts}."
    ]
    if settings["skipped"]:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(settings["skipped"].items()))
        lines.append(f"Files left out: {reasons}.")
    return [part for line in lines for part in _wrapped(line)]


def _mode_tables(modes: Mapping[str, Any]) -> list[list[str]]:
    """Tables of the rates, of the kinds of errors and of the cost of chunks; three, so that lines stay short."""
    tables = [_rates(modes)]
    rows = [[name, *(_percent(mode[kind]) for kind in ERROR_KINDS)] for name, mode in modes.items()]
    tables.append(markdown_table(["mode", *(f"{kind} %" for kind in ERROR_KINDS)], rows))
    changes = [[name, _percent(mode["wer_change"], "+")] for name, mode in modes.items() if "wer_change" in mode]
    if changes:
        tables.append(markdown_table(["mode", f"WER to {next(iter(modes))}"], changes))
    return tables


def _rates(modes: Mapping[str, Any]) -> list[str]:
    """Error rates, latency and computation of each mode."""
    compared = len(modes) > 1
    rows = []
    for name, mode in modes.items():
        row = [name, _percent(mode["wer"]), _percent(mode["cer"])]
        if compared:
            live = "latency_ms" in mode
            row.append(f"{mode['latency_ms']:g} ({mode['mean_latency_ms']:g})" if live else "at the end")
        rows.append([*row, f"{mode['real_time_factor']:.4f}"])
    return markdown_table(["mode", "WER %", "CER %", *(["latency ms"] if compared else []), "RTF"], rows)


def _scores(modes: Mapping[str, Any]) -> list[str]:
    """Scores of translations, how late their words are, and computation."""
    lags = [name for name in LAGGINGS if any(mode.get(name) is not None for mode in modes.values())]
    rows = []
    for name, mode in modes.items():
        row = [name, *(_score(mode[score]) for score in TRANSLATION_SCORES)]
        row += ["" if mode.get(lag) is None else f"{mode[lag]:.0f}" for lag in lags]
        rows.append([*row, f"{mode['real_time_factor']:.4f}"])
    return markdown_table(["mode", "BLEU", "chrF", *(f"{lag.upper()} ms" for lag in lags), "RTF"], rows)


def _score(estimate: Mapping[str, float | None]) -> str:
    value, low, high = (estimate[part] for part in ("value", "low", "high"))
    return f"{value:.1f}" if low is None or high is None else f"{value:.1f} [{low:.1f}, {high:.1f}]"


def _worst_of(worst: Sequence[Mapping[str, Any]]) -> list[str]:
    lines: list[str] = []
    for place, one in enumerate(worst, start=1):
        lines += [
            f"{place}. `{_one_line(one['name'])}`, {one['seconds']:.1f} s: chrF {one['chrf']:.1f}",
            "",
            "```text",
        ]
        lines += [f"ref: {one['reference']}", f"hyp: {one['hypothesis']}".rstrip(), "```", ""]
    return lines


def _notes(modes: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    first = next(iter(modes.values()))
    if first["bleu" if is_translation(first) else "wer"]["low"] is None:
        notes = ["No intervals: they need two utterances and a number of resamples."]
    else:
        why = f" ({settings['why_resampled']})" if settings["why_resampled"] else ""
        notes = [
            f"In brackets: {100 * settings['confidence']:g} % intervals from {settings['num_resamples']:,} bootstrap "
            f"resamples of the {settings['resampled']}{why}."
        ]
    if settings.get("signatures"):
        notes.append("; ".join(f"{name}: {signature}" for name, signature in settings["signatures"].items()) + ".")
    if any(mode.get("laal") is not None for mode in modes.values()):
        notes.append(
            "AL, LAAL and YAAL: average laggings. A word comes with the end of its chunk and of the look-ahead; "
            "computation is not included."
        )
    elif len(modes) > 1 and not is_translation(first):
        notes.append(
            "Latency: how long sound waits for the end of its chunk and of the look-ahead, at most (and on average), "
            "computation not included."
        )
    live = "; a live stream costs more" if len(modes) > 1 else ""
    notes.append(
        f"RTF: seconds of computation per second of audio, in batches of {settings['batch_seconds']:g} s on "
        f"{settings['device']}{live}."
    )
    return [line for note in notes for line in _wrapped(note)]


def _live_lines(live: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """How late the text of live streams is."""
    head = ["chunks", "word to text", "with computation", "end to text", "LAAL", "YAAL", "step"]
    rows = []
    for name, one in live.items():
        names = ("emission_delay", "emission_delay_computed", "final_delay")
        spreads = [_spread(one[each]) for each in names]
        lags = ["" if one[each] is None else f"{one[each]:.0f}" for each in ("laal", "yaal")]
        rows.append([name, *spreads, *lags, _spread(one["step"])])
    note = (
        "In ms, median (99th percentile): from the end of a word to when it is shown as it stays, without and with "
        "the time of computation; from the end of the speech, where the stream ends, to the whole text; computation "
        "of a block with a step of the encoder. LAAL and YAAL are means, without computation."
    )
    return [*markdown_table(head, rows), "", *_wrapped(note)]


def _spread(values: Mapping[str, float] | None) -> str:
    return "" if values is None else f"{values['median']:.0f} ({values['p99']:.0f})"


def _speaker_lines(speakers: Sequence[Mapping[str, Any]]) -> list[str]:
    """The speakers with the highest error rates; those without errors are only counted."""
    shown = [one for one in speakers if one["wer"]][:_SPEAKERS_SHOWN]
    if not shown:
        return [f"No errors of {_count(len(speakers), 'speaker')}."]
    head = ["speaker", "utterances", "words", "WER %", "CER %", "S %", "D %", "I %"]
    rows = [
        [
            one["speaker"],
            f"{one['utterances']:,}",
            f"{one['words']:,}",
            *("" if one[kind] is None else f"{100 * one[kind]:.2f}" for kind in Evaluation.rates),
        ]
        for one in shown
    ]
    notes = ["S, D, I: words substituted, deleted, inserted."]
    if others := len(speakers) - len(shown):
        perfect = sum(not one["wer"] for one in speakers)
        notes.append(
            f"Not shown: {_count(others, 'speaker')} with no higher WER, {perfect:,} without errors; the report "
            "of --output_file has all."
        )
    return [*markdown_table(head, rows), "", *_wrapped(" ".join(notes))]


def _worst_lines(worst: Sequence[Mapping[str, Any]]) -> list[str]:
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


def _percent(estimate: Mapping[str, float | None], sign: str = "") -> str:
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


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, _LINE_WIDTH, break_long_words=False, break_on_hyphens=False)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _width(text: str) -> int:
    """Columns of a terminal that a text takes."""
    return sum(0 if unicodedata.combining(char) else 1 + (unicodedata.east_asian_width(char) in "WF") for char in text)
