"""The frame of the four training scripts: what comes before and after a run, and errors as one line."""

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from . import console
from .hub import check_push, publish
from .training.building import load_feature_extractor
from .training.corpus import Corpus, estimate_normalization
from .training.evaluators import LossEvaluator
from .training.loop import TrainingLoop
from .training.run import Run, started_run
from .training.settings import DataSettings, PretrainingSettings, TrainingSettings
from .training.updates import SelfSupervised

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


def pretrain(
    run: Run,
    model: PreTrainedModel,
    features_from: str | Path | None,
    choice: PretrainingSettings,
    data: DataSettings,
    unit: str = "num_masked_frames",
) -> TrainingLoop:
    """Pretrain a model and leave it in the output folder.

    Args:
        features_from: a saved model whose feature extractor to keep; a new one is fitted to the corpus if absent.
        unit: the field of the model's output that its loss is a mean over.
    """
    accelerator, settings = run.accelerator, run.settings
    features = load_feature_extractor(run.checkpoint or features_from)
    corpus = Corpus.load(data, accelerator)
    if features.mean is None:
        sample = corpus.sample_batches(settings.seed).epoch(0)
        estimate_normalization(features, sample, choice.normalization_seconds, accelerator)

    objective = SelfSupervised(features, unit)
    batches = corpus.train_batches(accelerator, settings.seed)
    splits = corpus.eval_batches(accelerator)
    evaluator = LossEvaluator(accelerator, objective, splits, settings.seed) if splits else None
    max_steps = corpus.num_steps(settings, batches, accelerator)
    loop = TrainingLoop(run, model, features, objective, batches, max_steps, evaluator)
    loop.run()
    return loop


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
