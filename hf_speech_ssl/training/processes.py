"""The processes of a run: how they start, what they decide together, and how a signal ends them all."""

import os
import re
import shlex
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    ProjectConfiguration,
    TorchDynamoPlugin,
    broadcast_object_list,
    set_seed,
    str_to_bool,
)
from transformers.utils.logging import disable_progress_bar

from hf_speech_ssl.run_folder import TRACKER_FOLDER

from .settings import TrainingSettings

SUPPORTED = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
WORLD_SIZES = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")  # torchrun and kinds of MPI
# Warnings that users can do nothing about: on an argument of DistributedDataParallel, and of the latter on the memory
# layout of depthwise convolutions' gradients.
NOISE = r"(?s).*(`broadcast_buffers` is deprecated|Grad strides do not match bucket view strides)"
BF16_INSTRUCTIONS = ("amx_bf16", "avx512_bf16", "bf16", "sve_bf16")  # as torch names what x86 and ARM processors have
SIGNALS = (signal.SIGINT, signal.SIGTERM)
IMPATIENCE = 1.0  # seconds after which a second Ctrl-C is meant; launchers and terminals may both deliver the first
T = TypeVar("T")


def make_accelerator(settings: TrainingSettings) -> Accelerator:
    """An Accelerator for the loop, and every random generator seeded per process.

    Raises:
        ValueError: what runs is not what was asked for: the number of processes, how they share the work, or fp16.
    """
    refuse_sharding()
    warnings.filterwarnings("ignore", message=NOISE)
    accelerator = Accelerator(
        mixed_precision=settings.mixed_precision,
        log_with=checked_trackers(settings.report_to) or None,
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
            f"{accelerator.distributed_type.value}. {_working_command(accelerator.num_processes)}"
        )
    compare_processes(accelerator)
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise ValueError(
            "fp16 needs a GPU: on a CPU it would be float32 under another name. Use --mixed_precision no, or bf16."
        )
    disable_progress_bar()  # transformers' own, one for every checkpoint
    set_seed(settings.seed, device_specific=True)
    return accelerator


def checked_trackers(report_to: str) -> list[str]:
    """The trackers that a flag names.

    Raises:
        ValueError: one is not known to Accelerate, or not installed; it would be left out without a word.
    """
    names = [name.strip() for name in report_to.split(",") if name.strip() not in ("", "none")]
    available = [str(one) for one in get_available_trackers()]
    for name in names:
        if name in LOGGER_TYPE_TO_CLASS and name not in available:
            raise ValueError(f"--report_to {name} needs a package that is not installed: pip install {name}.")
        if name != "all" and name not in LOGGER_TYPE_TO_CLASS:
            raise ValueError(f"There is no tracker {name!r}; --report_to takes {', '.join(LOGGER_TYPE_TO_CLASS)}.")
    return names


def refuse_sharding() -> None:
    """Raise a ValueError if Accelerate was told to shard the model: the loop needs whole gradients everywhere."""
    for name in ("FSDP", "DEEPSPEED", "MEGATRON_LM", "PARALLELISM_CONFIG"):
        if str_to_bool(os.environ.get(f"ACCELERATE_USE_{name}", "false")):
            raise ValueError(
                f"Accelerate was told to use {name}, which shards the model; the training loop runs on one process or "
                f"with DistributedDataParallel. {_working_command(_asked_processes())}"
            )


def compare_processes(accelerator: Accelerator) -> None:
    """Raise a ValueError if fewer processes work together than the launcher was asked for.

    On a CPU some of Accelerate's configurations start one process in place of several, or several that do not know of
    each other and would all write into one folder.
    """
    asked = _asked_processes()
    if asked != accelerator.num_processes:
        raise ValueError(
            f"{asked} processes were asked for, but this one trains by itself: Accelerate did not join them. "
            f"{_working_command(asked)} For a single process, start the script with python."
        )


def _asked_processes() -> int:
    """The number of processes by what launchers leave in the environment."""
    asked = max(int(os.environ.get(name) or 1) for name in WORLD_SIZES)
    # `accelerate launch` sets an address to meet at if it was asked for several, even where it starts one.
    by_accelerate = "ACCELERATE_DYNAMO_BACKEND" in os.environ and "MASTER_PORT" in os.environ
    return max(2, _number_in_launch_command()) if asked == 1 and by_accelerate else asked


def _number_in_launch_command() -> int:
    try:
        command = Path(f"/proc/{os.getppid()}/cmdline").read_bytes().decode(errors="replace")
    except OSError:  # no Linux
        return 0
    match = re.search(r"--num_processes[\0=](\d+)", command)
    return int(match[1]) if match else 0


def _working_command(processes: int) -> str:
    on_cpu = "" if torch.cuda.is_available() else "ACCELERATE_USE_CPU=true "
    return f"This works: {on_cpu}torchrun --nproc_per_node {max(2, processes)} {shlex.join(sys.argv)}"


def describe_processes(accelerator: Accelerator) -> str:
    """How many processes train, on what, and how they share the work."""
    on = torch.cuda.get_device_name() if accelerator.device.type == "cuda" else accelerator.device.type.upper()
    precision = "float32" if accelerator.mixed_precision == "no" else f"{accelerator.mixed_precision} autocast"
    computed = accelerator.device.type != "cpu" or any(map(torch.cpu.get_capabilities().get, BF16_INSTRUCTIONS))
    if accelerator.mixed_precision == "bf16" and not computed:
        precision += " (this CPU computes no bf16 and emulates it slowly: use --mixed_precision no)"
    if accelerator.num_processes == 1:
        return f"1 process on {on}, {precision}"
    backend = torch.distributed.get_backend()
    return f"{accelerator.num_processes} processes on {on}, {precision}, DistributedDataParallel over {backend}"


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


class Interrupted(SystemExit):
    """A run was asked to end. Uncaught, the process exits with 128 + the signal's number (130 Ctrl-C, 143 SIGTERM)."""

    def __init__(self, signal_number: int):
        super().__init__(128 + signal_number)
        self.signal_name = signal.Signals(signal_number).name


class Interruption:
    """Notes a signal instead of dying of it; a second Ctrl-C leaves at once.

    Signals reach the processes of a distributed run at different moments, if they reach all of them: `meet` makes
    them a common decision.
    """

    def __init__(self) -> None:
        self.signal_number = 0
        self._noted_at = 0.0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():  # Python refuses handlers elsewhere
            self._previous = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self.signal_number:
            self.signal_number, self._noted_at = number, time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self._noted_at > IMPATIENCE:
            raise KeyboardInterrupt

    def meet(self, accelerator: Accelerator, busy: bool = True) -> bool:
        """Whether any process is busy. A collective call: every process makes it at the same point.

        Raises:
            Interrupted: on every process with the same signal, if any of them got one.
        """
        number = self.signal_number
        if accelerator.num_processes > 1:
            mine = torch.tensor([[number, busy]], device=accelerator.device)
            number, busy = accelerator.gather(mine).amax(0).tolist()
        if number:
            raise Interrupted(number)
        return bool(busy)
