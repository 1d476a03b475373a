"""A run from its flags on: accelerator, output folder, checkpoint to resume from, record of its arguments."""

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from hf_speech_ssl.json_files import finite, without_folders
from hf_speech_ssl.run_folder import RunArguments, TrainingState, checkpoint_name

from .output_folder import claimed
from .processes import make_accelerator
from .settings import TrainingSettings

# Flags that may differ between the parts of one run without a word.
NOT_COMPARED = {"output_dir", "resume_from_checkpoint", "restart_data", "push_to_hub", "hub_model_id"}
NOT_COMPARED |= {"report_to", "verbose"}
DATA = {"dataset_name", "dataset_config_name", "dataset_revision", "train_split_name", "max_train_samples"}
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """What all parts of a training run share.

    Args:
        arguments: all flags, as run_arguments.json holds them once training begins.
        checkpoint: where the run goes on from; `None` for a fresh start.
    """

    accelerator: Accelerator
    settings: TrainingSettings
    arguments: RunArguments
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
        arguments = start_trackers(accelerator, *other_settings, settings)
        if checkpoint is not None and accelerator.is_main_process:
            warn_of_changes(checkpoint.parent, arguments.values)
        yield Run(accelerator, settings, arguments, checkpoint)
    accelerator.end_training()


def start_trackers(accelerator: Accelerator, *settings: Any) -> RunArguments:
    """Start the trackers with the run's settings, and return these as run_arguments.json holds them.

    Of local paths only the last part is kept: both are made to be shared.
    """
    values = without_folders({name: value for part in settings for name, value in asdict(part).items()})
    scalars = {name: v if isinstance(v, (bool, int, float)) else str(v) for name, v in values.items() if v is not None}
    accelerator.init_trackers("hf_speech_ssl", config=scalars)  # TensorBoard takes no lists
    return RunArguments({**values, "mixed_precision": accelerator.mixed_precision})


def warn_of_changes(before: Path, values: Mapping[str, Any]) -> None:
    """Name the flags of a resumed run that are not those it was started with; the new ones are in force."""
    try:
        earlier = RunArguments.read(before).values
    except (OSError, ValueError):
        return
    changed = [
        name
        for name, value in finite(dict(values)).items()
        if name in earlier and earlier[name] != value and name not in NOT_COMPARED
    ]
    if changed:
        pairs = ", ".join(f"--{name} {earlier[name]} -> {values[name]}" for name in changed)
        logger.warning(f"Resuming with other settings than before, which hold from now on: {pairs}.")
    if DATA & set(changed) and not values.get("restart_data"):
        logger.warning("The place in the data is that of the former data; --restart_data begins a new epoch instead.")


def compare_plans(run: Run, state: TrainingState, max_steps: int, learning_rate: float) -> list[str]:
    """Say what differs from the plan of the checkpoint that a run goes on from.

    A best checkpoint that is not in the output folder is forgotten: `state` is changed.

    Args:
        learning_rate: of the next update.

    Raises:
        ValueError: the checkpoint has made more updates than the run is to make.
    """
    found, step = [], state.step
    if step > max_steps:
        raise ValueError(
            f"{run.checkpoint} has made {step:,} updates, more than the {max_steps:,} of this run. Raise --max_steps, "
            f"or resume from an earlier checkpoint."
        )
    if state.max_steps not in (0, max_steps) and not math.isclose(learning_rate, state.learning_rate, rel_tol=0.05):
        found.append(
            f"The run was planned for {state.max_steps:,} updates and is now to make {max_steps:,}. The learning rate "
            f"was {state.learning_rate:.2g} in update {step:,} and is {learning_rate:.2g} in the next: "
            f"--lr_scheduler_type {run.settings.lr_scheduler_type} is drawn over the whole run."
        )
    if state.best_step and not (Path(run.settings.output_dir) / checkpoint_name(state.best_step)).exists():
        found.append(
            f"The best checkpoint so far, of update {state.best_step:,}, is not in {run.settings.output_dir}: the "
            f"best one is chosen among those from here on."
        )
        state.best_step, state.best_metric = 0, None
    return found
