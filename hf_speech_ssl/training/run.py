"""A run from its flags on: accelerator, output folder, checkpoint to resume from, record of its arguments."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.logging import get_logger

from hf_speech_ssl.json_files import finite, without_folders
from hf_speech_ssl.run_folder import RunArguments

from .output_folder import claimed
from .processes import make_accelerator
from .settings import TrainingSettings

# Flags that may differ between the parts of one run without a word.
NOT_COMPARED = {"output_dir", "resume_from_checkpoint", "restart_data", "push_to_hub", "hub_model_id"}
NOT_COMPARED |= {"report_to", "verbose"}
DATA = {"dataset_name", "dataset_config_name", "dataset_revision", "train_split_name", "max_train_samples"}
logger = get_logger(__name__)


@dataclass(frozen=True)
class Run:
    """What all parts of a training run share.

    Args:
        checkpoint: where the run goes on from; `None` for a fresh start.
    """

    accelerator: Accelerator
    settings: TrainingSettings
    checkpoint: Path | None = None

    def source_of(self, model_name_or_path: str | None) -> str | None:
        """The model that a flag names, or the checkpoint instead: a resumed run needs the former no more."""
        return model_name_or_path if self.checkpoint is None or model_name_or_path is None else str(self.checkpoint)


@contextmanager
def started_run(settings: TrainingSettings, *other_settings: Any) -> Iterator[Run]:
    """Start the processes' common run: no other one may write into its folder until this ends.

    Args:
        other_settings: dataclasses whose values go into run_arguments.json as well.

    Raises:
        ValueError: see `make_accelerator` and `claimed`.
    """
    accelerator = make_accelerator(settings)
    with claimed(accelerator, settings.output_dir, settings.resume_from_checkpoint) as checkpoint:
        write_arguments(accelerator, settings, *other_settings, checkpoint=checkpoint)
        yield Run(accelerator, settings, checkpoint)
    accelerator.end_training()


def write_arguments(
    accelerator: Accelerator, settings: TrainingSettings, *other_settings: Any, checkpoint: Path | None
) -> None:
    """Record the run's settings with the trackers, which start here, and in `run_arguments.json`.

    Of local paths only the last part is kept: both are made to be shared.
    """
    parts = (*other_settings, settings)
    values = without_folders({name: value for part in parts for name, value in asdict(part).items()})
    scalars = {name: v if isinstance(v, (bool, int, float)) else str(v) for name, v in values.items() if v is not None}
    accelerator.init_trackers("hf_speech_ssl", config=scalars)  # TensorBoard takes no lists
    if not accelerator.is_main_process:
        return
    values["mixed_precision"] = accelerator.mixed_precision
    if checkpoint is not None:
        warn_of_changes(checkpoint.parent, values)
    RunArguments(values).write(settings.output_dir)


def warn_of_changes(before: Path, values: dict[str, Any]) -> None:
    """Name the flags of a resumed run that are not those it was started with; the new ones are in force."""
    try:
        earlier = RunArguments.read(before).values
    except (OSError, ValueError):
        return
    changed = [
        name
        for name, value in finite(values).items()
        if name in earlier and earlier[name] != value and name not in NOT_COMPARED
    ]
    if changed:
        pairs = ", ".join(f"--{name} {earlier[name]} -> {values[name]}" for name in changed)
        logger.warning(f"Resuming with other settings than before, which hold from now on: {pairs}.")
    if DATA & set(changed) and not values.get("restart_data"):
        logger.warning("The place in the data is that of the former data; --restart_data begins a new epoch instead.")
