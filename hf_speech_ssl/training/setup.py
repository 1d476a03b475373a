"""Before the loop: the accelerator, the features' normalization, a record of the arguments."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
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

from hf_speech_ssl.data.batch import Batch
from hf_speech_ssl.json_files import without_folders
from hf_speech_ssl.modeling.feature_extraction_speech_ssl import SpeechSSLFeatureExtractor
from hf_speech_ssl.run_folder import TRACKER_FOLDER, RunArguments

from .settings import TrainingSettings

SUPPORTED = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)


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


def estimate_normalization(
    feature_extractor: SpeechSSLFeatureExtractor,
    batches: Iterable[Batch],
    seconds: float,
    accelerator: Accelerator,
) -> None:
    """Mean and variance of the features over the first `seconds` of `batches`, the same on all processes.

    Raises:
        ValueError: no usable audio.
    """
    failure = None
    if accelerator.is_main_process:
        try:
            feature_extractor.fit_normalization(_first(batches, seconds, accelerator.device))
        except ValueError as error:  # raised below, on all processes: none may wait for the others for ever
            failure = str(error)
    estimate: list[Any] = [feature_extractor.mean, feature_extractor.variance, failure]
    broadcast_object_list(estimate)
    if estimate[2] is not None:
        raise ValueError(f"The features' mean and variance could not be estimated: {estimate[2]}")
    feature_extractor.mean, feature_extractor.variance = estimate[:2]


def _first(
    batches: Iterable[Batch], seconds: float, device: torch.device
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    seen = 0.0
    for batch in batches:
        if batch.num_examples:
            yield batch.waveforms.to(device), batch.lengths.to(device)
        seen += batch.seconds
        if seen >= seconds:
            return


def write_arguments(output_dir: Path, accelerator: Accelerator, *settings: Any) -> None:
    """Record the run's settings with the trackers, which start here, and in `run_arguments.json`.

    Of local paths only the last part is kept: both are made to be shared.
    """
    values = without_folders({name: value for part in settings for name, value in asdict(part).items()})
    scalars = {name: v if isinstance(v, (bool, int, float)) else str(v) for name, v in values.items() if v is not None}
    accelerator.init_trackers("hf_speech_ssl", config=scalars)  # TensorBoard takes no lists
    if not accelerator.is_main_process:
        return
    output_dir.mkdir(parents=True, exist_ok=True)
    values["mixed_precision"] = accelerator.mixed_precision
    RunArguments(values).write(output_dir)
