"""The processes of a run: how they start, and what they decide together."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    ProjectConfiguration,
    TorchDynamoPlugin,
    broadcast_object_list,
    set_seed,
)
from transformers.utils.logging import disable_progress_bar

from hf_speech_ssl.run_folder import TRACKER_FOLDER

from .settings import TrainingSettings

SUPPORTED = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
T = TypeVar("T")


def make_accelerator(settings: TrainingSettings) -> Accelerator:
    """An Accelerator for the loop, and every random generator seeded per process.

    Raises:
        ValueError: a way of distributing that the loop does not know: it needs whole gradients on every process.
    """
    trackers = [name.strip() for name in settings.report_to.split(",") if name.strip() not in ("", "none")]
    accelerator = Accelerator(
        mixed_precision=settings.mixed_precision,
        log_with=trackers or None,
        project_config=ProjectConfiguration(
            settings.output_dir, logging_dir=str(Path(settings.output_dir) / TRACKER_FOLDER)
        ),
        # Our buffers never change, and every parameter gets a gradient in every backward pass.
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)],
        dynamo_plugin=TorchDynamoPlugin(backend="inductor", dynamic=True) if settings.torch_compile else None,
    )
    if accelerator.distributed_type not in SUPPORTED:
        raise ValueError(
            f"The training loop runs on one process or with DistributedDataParallel, not with "
            f"{accelerator.distributed_type.value}. Choose multi-GPU or multi-CPU in `accelerate config`."
        )
    disable_progress_bar()  # transformers' own, one for every checkpoint
    set_seed(settings.seed, device_specific=True)
    return accelerator


def decided_by_main_process(accelerator: Accelerator, decide: Callable[[], T]) -> T:
    """What `decide` returns or raises on the main process, on all processes: none waits for the others for ever.

    Raises:
        Exception: whatever the main process ran into.
    """
    answer: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            answer[0] = decide()
        except (ValueError, OSError) as error:
            answer[1] = error
    if accelerator.num_processes > 1:
        broadcast_object_list(answer)
    if answer[1] is not None:
        raise answer[1]
    result: T = answer[0]
    return result
