"""What the files of a run's own folder say: the only source of a card."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError

from ..modeling.configuration_birq import BiRQConfig
from ..modeling.configuration_chunkssl import ChunkSSLConfig
from ..modeling.configuration_conformer import SpeechSSLConfig
from ..modeling.configuration_fsq import FSQConfig
from .privacy import without_paths

RESULTS_FILE = "results.json"
ARGUMENTS_FILE = "run_arguments.json"
EVALUATIONS = "evaluation*.json"
SYNTHETIC = "synthetic"
GREEDY = "greedy decoding"
CONFIGS: dict[str, type[SpeechSSLConfig]] = {one.model_type: one for one in (BiRQConfig, ChunkSSLConfig, FSQConfig)}
RATES = ("wer", "cer", "substitutions", "deletions", "insertions")
NEEDED_RESULTS = ("updates", "audio_hours", "training_hours", "num_parameters", "num_processes", "device")


@dataclass(frozen=True)
class Evaluation:
    """One `evaluation*.json`, as `hf-speech-ssl evaluate --output_file` writes it.

    Args:
        dataset, split: what was listened to; of a local data set the last part of its path.
        modes: by name ("offline", "320 ms") what was found. `wer`, `cer`, `substitutions`, `deletions`, `insertions`
            have `value`, `low` and `high`, shares of what was said; the bounds are `None` where there is no interval.
        settings: which utterances, how they were decoded and how the intervals were drawn.
    """

    dataset: str
    split: str
    modes: dict[str, dict[str, Any]]
    settings: dict[str, Any]

    @property
    def decoder(self) -> str:
        """How transcripts were found, in a few words."""
        return str(self.settings.get("decoder") or GREEDY)


@dataclass(frozen=True)
class Run:
    """A finished run's folder.

    Args:
        config: of the model, defaults filled in.
        architecture: the class that was saved.
        arguments: the run's flags.
    """

    folder: Path
    config: SpeechSSLConfig
    architecture: str
    results: dict[str, Any]
    arguments: dict[str, Any]
    evaluations: list[Evaluation]

    @classmethod
    def read(cls, folder: str | Path) -> "Run":
        """Read config.json, results.json, run_arguments.json and what evaluations there are.

        Raises:
            FileNotFoundError: there is no such folder, or one of the three files is not in it.
            ValueError: a file is no JSON or lacks something, or the model is of no family of this package.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise FileNotFoundError(
                f"There is no folder {folder}: a model card is written from that of a finished run."
            )
        config, results, arguments = (_read(folder / name) for name in ("config.json", RESULTS_FILE, ARGUMENTS_FILE))
        if config.get("model_type") not in CONFIGS:
            raise ValueError(
                f"{folder} holds a model of type {config.get('model_type')!r}, not one of {list(CONFIGS)}."
            )
        _check(folder / RESULTS_FILE, results, NEEDED_RESULTS)
        _check(folder / ARGUMENTS_FILE, arguments, ("dataset_name",))
        return cls(
            folder,
            _config(folder / "config.json", config),
            (config.get("architectures") or [""])[0],
            results,
            arguments,
            [_evaluation(file) for file in sorted(folder.glob(EVALUATIONS))],
        )

    @property
    def name(self) -> str:
        """What the model is called: its repository, or its folder."""
        return str(self.arguments.get("hub_model_id") or self.folder.resolve().name)

    @property
    def kind(self) -> str:
        """ "ctc", "tokenizer" or "encoder"."""
        if self.architecture.endswith("ForCTC"):
            return "ctc"
        return "tokenizer" if self.config.model_type == FSQConfig.model_type else "encoder"

    @property
    def dataset(self) -> str:
        """The data set trained on: a Hub id, the name of a local one, or "synthetic"."""
        return str(self.arguments["dataset_name"])

    @property
    def pretrained(self) -> str | None:
        """The model whose weights this one began with."""
        fresh = self.arguments.get("from_scratch") or self.arguments.get("config_name")
        return None if fresh else self.arguments.get("model_name_or_path")

    @property
    def eval_splits(self) -> list[str]:
        """The splits that were evaluated in training."""
        names = (self.arguments.get("eval_split_name") or "").split(",")
        return [name.strip() for name in names if name.strip()]


def _read(file: Path) -> dict[str, Any]:
    """A JSON object, without the folders of the local paths in it."""
    if not file.is_file():
        raise FileNotFoundError(
            f"{file.parent} has no {file.name}: a model card is written from the folder of a finished run."
        )
    try:
        values = json.loads(without_paths(file.read_text(encoding="utf-8")))
    except ValueError as error:
        raise ValueError(
            f"{file} is no JSON ({error}); a card is written from the files as a run leaves them."
        ) from error
    if not isinstance(values, dict):
        raise ValueError(f"{file} holds a {type(values).__name__}, not a JSON object.")
    return values


def _config(file: Path, values: dict[str, Any]) -> SpeechSSLConfig:
    try:
        return CONFIGS[values["model_type"]].from_dict(values)
    except (StrictDataclassError, ValueError) as error:
        raise ValueError(f"{file} is no configuration of a {values['model_type']} model: {error}") from error


def _check(file: Path, values: dict[str, Any], needed: tuple[str, ...]) -> None:
    if missing := [name for name in needed if values.get(name) is None]:
        raise ValueError(f"{file} has no {', '.join(missing)}: it is not as a finished run leaves it.")


def _evaluation(file: Path) -> Evaluation:
    values = _read(file)
    _check(file, values, ("dataset", "split", "modes"))
    modes = values["modes"] if isinstance(values["modes"], dict) and values["modes"] else {"modes": None}
    for mode, scores in modes.items():
        for rate in RATES:
            estimate = scores.get(rate) if isinstance(scores, dict) else None
            if not isinstance(estimate, dict) or not {"value", "low", "high"} <= set(estimate):
                raise ValueError(
                    f"{file} has no value, low and high for the {rate} of {mode!r}: it is not as `hf-speech-ssl "
                    f"evaluate --output_file` writes it. Write it again, or call it something else."
                )
    return Evaluation(values["dataset"], values["split"], values["modes"], values.get("settings") or {})
