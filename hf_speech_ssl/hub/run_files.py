"""A finished run's folder as a card needs it."""

from dataclasses import dataclass
from pathlib import Path

from huggingface_hub.errors import StrictDataclassError

from ..families import FAMILIES, Family, family_of
from ..json_files import read_json
from ..modeling.configuration_conformer import SpeechSSLConfig
from ..run_folder import CONFIG_FILE, Evaluation, RunArguments, RunResults


@dataclass(frozen=True)
class Run:
    """A finished run's folder.

    Args:
        config: of the model, defaults filled in.
        architecture: the class that was saved.
    """

    folder: Path
    family: Family
    config: SpeechSSLConfig
    architecture: str
    results: RunResults
    arguments: RunArguments
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
            raise FileNotFoundError(f"There is no folder {folder}: a model card is written from a finished run's.")
        try:
            config = read_json(folder / CONFIG_FILE)
            results, arguments = RunResults.read(folder), RunArguments.read(folder, ["dataset_name"])
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{error} A model card is written from the folder of a finished run.") from error
        family = family_of(config.get("model_type"))
        if family is None:
            known = ", ".join(one.model_type for one in FAMILIES)
            raise ValueError(f"{folder} holds a model of type {config.get('model_type')!r}, not one of {known}.")
        try:
            filled = family.config_class.from_dict(config)
        except (StrictDataclassError, ValueError) as error:
            raise ValueError(
                f"{folder / CONFIG_FILE} is no configuration of a {family.model_type} model: {error}"
            ) from error
        architecture = (config.get("architectures") or [""])[0]
        return cls(folder, family, filled, architecture, results, arguments, Evaluation.read_all(folder))

    @property
    def name(self) -> str:
        """What the model is called: its repository, or its folder."""
        return str(self.arguments.get("hub_model_id") or self.folder.resolve().name)

    @property
    def kind(self) -> str:
        """ "ctc", "tokenizer" or "encoder"."""
        if self.architecture.endswith("ForCTC"):
            return "ctc"
        return "tokenizer" if self.family.is_tokenizer else "encoder"
