"""The folder of a training run: names of its files, names of its metrics, and typed records of what the files hold.

    run_arguments.json     RunArguments    the flags
    train_log.jsonl        LogEntry        one line per report or evaluation
    results.json           RunResults      figures of the finished run
    evaluation*.json       Evaluation      reports of `hf-speech-ssl evaluate --output_file`
    checkpoint-1000/       training_state.json is a TrainingState

Records are read and written here alone. They hold no folders of the machine; see `json_files`.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from .json_files import json_text, known_fields, read_json, write_json, write_text
from .verdict import Verdict

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
CARD_FILE = "README.md"
ARGUMENTS_FILE = "run_arguments.json"
RESULTS_FILE = "results.json"
LOG_FILE = "train_log.jsonl"
CURVES_FILE = "training_curves.png"
AVERAGING_FILE = "averaging.json"
EVALUATION_FILES = "evaluation*.json"
TRACKER_FOLDER = "runs"  # of Accelerate's trackers, TensorBoard's by default
STATE_FILE = "training_state.json"
OPTIMIZER_FILE = "optimizer.pt"
PROCESS_FILES = "process-*.pt"
CHECKPOINT_FOLDERS = "checkpoint-*"
PARTIAL_SUFFIX = ".partial"  # of what is being written

SYNTHETIC = "synthetic"  # the name of the data set that espeak-ng speaks
GREEDY = "greedy decoding"
OFFLINE = "offline"  # the mode of a model that processes whole utterances


def checkpoint_name(step: int) -> str:
    """The folder of the checkpoint that was written after `step` updates."""
    return CHECKPOINT_FOLDERS.replace("*", str(step))


def checkpoint_step(folder: str | Path) -> int | None:
    """The updates after which a checkpoint was written; `None` of any other folder."""
    match = re.fullmatch(CHECKPOINT_FOLDERS.replace("*", r"(\d+)"), Path(folder).name)
    return int(match[1]) if match else None


def process_file(index: int) -> str:
    """The file of a checkpoint that holds the random states and the data position of one process."""
    return PROCESS_FILES.replace("*", f"{index:05d}")


def mode_name(chunk_duration_ms: int = 0) -> str:
    """The mode of evaluation with chunks of this duration: "320 ms"; "offline" for 0."""
    return f"{chunk_duration_ms} ms" if chunk_duration_ms else OFFLINE


class MetricName(NamedTuple):
    """The name of an evaluation's figure in train_log.jsonl and results.json.

    As a string it is `eval_wer`, or `eval_test_320ms_wer` with a split and a mode.

    Args:
        metric: what was measured, as "loss" or "wer".
        split: left out in a run that evaluates on one split only.
        mode: see `mode_name`.
    """

    metric: str
    split: str = ""
    mode: str = OFFLINE

    def __str__(self) -> str:
        mode = "" if self.mode == OFFLINE else self.mode.replace(" ", "")
        return "_".join(part for part in ("eval", self.split, mode, self.metric) if part)

    @property
    def label(self) -> str:
        """The name for people: "test 320 ms wer"."""
        mode = "" if self.mode == OFFLINE else self.mode
        return " ".join(part for part in (self.split, mode, self.metric) if part)

    @classmethod
    def among(cls, splits: Iterable[str], split: str, metric: str, mode: str = OFFLINE) -> "MetricName":
        """The name in a run that evaluates on all of `splits`."""
        return cls(metric, "" if len(list(splits)) == 1 else split, mode)

    @classmethod
    def parse(cls, name: str, splits: Sequence[str] = ()) -> "MetricName | None":
        """The parts of a name; `None` if it is a figure of training.

        Without the run's `splits` a name such as `eval_a_b_wer` is cut before the longest metric of `METRICS`.
        """
        prefix, _, rest = name.partition("_")
        if prefix != "eval" or not rest:
            return None
        if match := re.fullmatch(r"(?:(.+)_)?(\d+)ms_(.+)", rest):
            return cls(match[3], match[1] or "", mode_name(int(match[2])))
        known = [split for split in splits if rest.startswith(f"{split}_")] if len(splits) > 1 else []
        if known:
            split = max(known, key=len)
            return cls(rest.removeprefix(f"{split}_"), split)
        endings = [metric for metric in METRICS if rest.endswith(f"_{metric}")] if not splits else []
        if endings and rest not in METRICS:
            metric = max(endings, key=len)
            return cls(metric, rest.removesuffix(f"_{metric}"))
        return cls(rest)


# Figures of evaluations that curves and cards know.
ERROR_RATES = ("wer", "cer")
ERROR_KINDS = ("substitutions", "deletions", "insertions")  # of words
TRANSLATION_SCORES = ("bleu", "chrf")  # of 100, the higher the better
LAGGINGS = ("al", "laal", "yaal")  # of translations in chunks, in ms
TRANSLATE = "translate"  # the task of a run that writes another language
METRICS = (
    *("loss", *ERROR_RATES, *TRANSLATION_SCORES, *LAGGINGS, "accuracy", "frame_accuracy", "second_accuracy"),
    *("anchor_loss", "enhanced_loss", "second_loss", "enhanced_accuracy"),
    *("explained_variance", "codebook_perplexity", "enhanced_perplexity", "level_perplexity", "codebook_usage"),
    *("level_usage", "distinct_labels"),
)


def badness(name: str, value: float) -> float:
    """The value of a metric by its name, so turned that the lowest one is the best."""
    parsed = MetricName.parse(name)
    return -value if parsed is not None and parsed.metric in TRANSLATION_SCORES else value


@dataclass(frozen=True)
class RunArguments:
    """The flags of a run, by name, since every script has its own."""

    values: Mapping[str, Any]

    @classmethod
    def read(cls, folder: str | Path, needed: Sequence[str] = ()) -> "RunArguments":
        """Read run_arguments.json.

        Raises:
            FileNotFoundError: the folder has none.
            ValueError: it is not JSON, or lacks a flag that is `needed`.
        """
        return cls(_read_record(folder, ARGUMENTS_FILE, needed))

    def write(self, folder: str | Path) -> None:
        """Write run_arguments.json."""
        write_json(Path(folder) / ARGUMENTS_FILE, dict(self.values))

    def get(self, name: str) -> Any:
        """The value of a flag; `None` if the script does not have it."""
        return self.values.get(name)

    @property
    def dataset(self) -> str:
        """The data set trained on: an id on the Hub, the name of a local one, or "synthetic"."""
        return str(self.values["dataset_name"])

    @property
    def eval_splits(self) -> list[str]:
        """The splits that the run was evaluated on."""
        return split_names(self.get("eval_split_name"))

    @property
    def pretrained(self) -> str | None:
        """The model whose weights this one began with."""
        fresh = self.get("from_scratch") or self.get("config_name")
        return None if fresh else self.get("model_name_or_path")


def split_names(flag: str | None) -> list[str]:
    """The splits that a flag names, separated by commas."""
    return [name.strip() for name in (flag or "").split(",") if name.strip()]


@dataclass(frozen=True)
class RunResults:
    """Figures of a finished run.

    Args:
        updates: made; `skipped_updates` of them changed no weight, `empty_updates` of those for want of anything to
            learn from, the others since their gradients were not finite.
        audio_hours: consumed by all processes, repetitions counted; `training_hours` is wall-clock time without
            evaluations and checkpoints.
        device: the name of the GPU, or "CPU".
        final_model_step: the update whose weights the final model has.
        metrics: of the last evaluation, by `MetricName`; one that is not finite is NaN.
        verdict: of pretraining.
        other: what other versions wrote.
    """

    updates: int
    audio_hours: float
    training_hours: float
    num_parameters: int
    num_processes: int
    device: str
    final_model_step: int | None = None
    skipped_updates: int = 0
    empty_updates: int = 0
    skipped_files: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    verdict: Verdict | None = None
    other: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: str | Path) -> "RunResults":
        """Read results.json.

        Raises:
            FileNotFoundError: the folder has none.
            ValueError: it is not JSON, or lacks what every run leaves.
        """
        needed = ["updates", "audio_hours", "training_hours", "num_parameters", "num_processes", "device"]
        values = _read_record(folder, RESULTS_FILE, needed)
        metrics = {name: _number(value) for name, value in values.items() if MetricName.parse(name)}
        own = {name: value for name, value in known_fields(cls, values).items() if name not in ("metrics", "other")}
        verdict = Verdict.from_values(values["verdict"]) if values.get("verdict") else None
        other = {name: value for name, value in values.items() if name not in metrics and name not in own}
        return cls(**{**own, "verdict": verdict}, metrics=metrics, other=other)

    def write(self, folder: str | Path) -> None:
        """Write results.json: metrics first, all in one level."""
        own = {name: value for name, value in asdict(self).items() if name not in ("metrics", "other")}
        own = {name: value for name, value in own.items() if value is not None}
        write_json(Path(folder) / RESULTS_FILE, {**self.metrics, **own, **self.other})


@dataclass(frozen=True)
class Evaluation:
    """A report of `hf-speech-ssl evaluate --output_file`.

    Args:
        modes: figures by mode. `wer`, `cer`, `substitutions`, `deletions` and `insertions` have `value`, `low` and
            `high`, shares of the reference; the bounds are `None` where there is no interval. Translations have
            `bleu` and `chrf` in the same form, of 100, instead.
        settings: which utterances, how they were decoded and how the intervals were drawn.
        speakers, worst: figures of speakers, and the utterances with the most errors. Both hold names of people and
            their words: they are for the owner of the data, and are not uploaded.
    """

    dataset: str
    split: str
    modes: Mapping[str, Mapping[str, Any]]
    settings: Mapping[str, Any]
    model: str = ""
    speakers: Sequence[Mapping[str, Any]] = ()
    worst: Sequence[Mapping[str, Any]] = ()

    rates = (*ERROR_RATES, *ERROR_KINDS)
    people = ("speakers", "worst")

    @classmethod
    def read(cls, file: str | Path) -> "Evaluation":
        """Read a report.

        Raises:
            ValueError: it is not JSON, or not as the command writes it.
        """
        file = Path(file)
        values = _read_record(file.parent, file.name, ["dataset", "split", "modes"])
        modes = values["modes"] if isinstance(values["modes"], dict) and values["modes"] else {"modes": None}
        for mode, scores in modes.items():
            for rate in TRANSLATION_SCORES if is_translation(scores) else cls.rates:
                estimate = scores.get(rate) if isinstance(scores, dict) else None
                if not isinstance(estimate, dict) or not {"value", "low", "high"} <= set(estimate):
                    raise ValueError(
                        f"{file} has no value, low and high for the {rate} of {mode!r}: it is not as `hf-speech-ssl "
                        f"evaluate --output_file` writes it. Write it again, or call it something else."
                    )
        return cls(**{**known_fields(cls, values), "settings": values.get("settings") or {}})

    def write(self, file: str | Path) -> None:
        """Write the report."""
        write_json(file, asdict(self))

    @classmethod
    def read_all(cls, folder: str | Path) -> list["Evaluation"]:
        """Read all reports in a run's folder."""
        return [cls.read(file) for file in sorted(Path(folder).glob(EVALUATION_FILES))]

    @property
    def is_translation(self) -> bool:
        """Whether translations were scored."""
        return any(map(is_translation, self.modes.values()))

    @property
    def decoder(self) -> str:
        """How hypotheses were found, in a few words."""
        return str(self.settings.get("decoder") or GREEDY)


def is_translation(scores: Any) -> bool:
    """Whether the figures of a mode are those of translations."""
    return isinstance(scores, dict) and any(name in scores for name in TRANSLATION_SCORES)


@dataclass
class TrainingState:
    """What a checkpoint knows of its run, beside weights and optimizer."""

    step: int = 0  # updates made
    audio_seconds: float = 0.0  # consumed by all processes
    training_seconds: float = 0.0  # wall clock, without evaluations and checkpoints
    skipped_updates: int = 0  # of `step`, those that learned nothing
    empty_updates: int = 0  # of those, the ones that had nothing to learn from
    evaluated_step: int = 0
    best_metric: float | None = None
    best_step: int = 0
    num_processes: int = 1
    max_steps: int = 0  # of the run as it was planned
    learning_rate: float = 0.0  # of the last update
    checksums: dict[str, str] = field(default_factory=dict)  # of the other files of the checkpoint

    @classmethod
    def read(cls, checkpoint: str | Path) -> "TrainingState":
        """Read training_state.json; fields of other versions are passed over."""
        return cls(**known_fields(cls, read_json(Path(checkpoint) / STATE_FILE)))

    def write(self, checkpoint: str | Path) -> None:
        """Write training_state.json."""
        write_json(Path(checkpoint) / STATE_FILE, asdict(self))


class LogEntry(NamedTuple):
    """A line of train_log.jsonl: figures after `step` updates; one that is not finite is NaN."""

    step: int
    values: dict[str, float]

    @property
    def is_evaluation(self) -> bool:
        """Whether the figures are those of an evaluation."""
        return any(MetricName.parse(name) for name in self.values)


def read_log(folder: str | Path) -> list[LogEntry]:
    """Read train_log.jsonl; a folder without one has no entries.

    A line that is cut off, as a killed run leaves it, and one that is no report are passed over.
    """
    return [entry for _, entry in _log_lines(Path(folder) / LOG_FILE) if entry is not None]


def append_to_log(folder: str | Path, step: int, values: Mapping[str, float]) -> None:
    """Add a line to train_log.jsonl."""
    with (Path(folder) / LOG_FILE).open("a", encoding="utf-8") as file:
        file.write(json_text({"step": step, **values}))


def cut_log_after(folder: str | Path, step: int) -> None:
    """Take out of train_log.jsonl what follows `step`, which a resumed run does again, and what is no report."""
    file = Path(folder) / LOG_FILE
    kept = [line for line, entry in _log_lines(file) if entry is not None and entry.step <= step]
    write_text(file, "".join(f"{line}\n" for line in kept))


def _log_lines(file: Path) -> list[tuple[str, LogEntry | None]]:
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []
    return [(line, _parse_log_line(line)) for line in lines]


def _parse_log_line(line: str) -> LogEntry | None:
    try:
        values = json.loads(line)
    except ValueError:
        return None
    if not isinstance(values, dict) or type(values.get("step")) is not int:
        return None
    step = values.pop("step")
    return LogEntry(step, {name: _number(value) for name, value in values.items() if _is_number(value)})


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _number(value: Any) -> float:
    return float(value) if _is_number(value) and value is not None else math.nan


def _read_record(folder: str | Path, name: str, needed: Sequence[str]) -> dict[str, Any]:
    file = Path(folder) / name
    values = read_json(file)
    if missing := [one for one in needed if values.get(one) is None]:
        raise ValueError(f"{file} has no {', '.join(missing)}: it is not as a finished run leaves it.")
    return values
