"""The frame of the four training scripts: what comes before and after a run, and errors as one line."""

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from . import console
from .hub import check_push, publish
from .training.loop import TrainingLoop
from .training.run import Run, started_run
from .training.settings import TrainingSettings

LOST_PROCESS = re.compile(r"gloo|NCCL|Connection (reset|closed)|remote process exited")  # in torch's error messages


@contextmanager
def training_run(settings: TrainingSettings, *other_settings: Any) -> Iterator[Run]:
    """A run whose folder nobody else writes into; whether it can be pushed at its end is known before it begins.

    Args:
        other_settings: dataclasses whose values go into run_arguments.json as well.

    Raises:
        ValueError, OSError: see `started_run` and `check_push`.
    """
    if settings.push_to_hub:
        check_push(settings.output_dir, settings.hub_model_id)
    with started_run(settings, *other_settings) as run:
        yield run


def publish_run(run: Run, loop: TrainingLoop) -> dict[str, float]:
    """Write the results and the model card of a finished run, push it if asked to, and return its last metrics."""
    results, settings = loop.results(), run.settings
    if run.accelerator.is_main_process:
        publish(settings.output_dir, results, settings.push_to_hub, settings.hub_model_id)
    return loop.metrics


def call(main: Callable[[], object]) -> None:
    """Run a script and end the process: an error that a user can mend is one line, unless --verbose is given."""
    name, world = os.path.basename(sys.argv[0]), int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1:
        name += f" (process {os.environ.get('RANK')} of {world})"

    def run_together() -> None:
        try:
            main()
        except RuntimeError as error:
            if world == 1 or not LOST_PROCESS.search(str(error)):
                raise
            raise ConnectionError(f"another process of the run has ended: {error}") from error

    sys.exit(console.run(name, run_together, console.VERBOSE in sys.argv))
