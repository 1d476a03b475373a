"""Checkpoints: a model folder that `from_pretrained` loads, beside everything that going on needs.

    checkpoint-1000/
        config.json, model.safetensors, ...   the model, its feature extractor or processor, its code
        optimizer.pt                          moments of AdamW, and the loss scaler's state with fp16
        training_state.json                   `TrainingState`, and the checksums of the other files
        process-00000.pt                      one per process: random states, position in the data

A checkpoint is written under another name and renamed once all of it is on the disk. What happens to it later (a disk
that fails, a copy that is cut short) the checksums show.
"""

import errno
import logging
import os
import random
import re
import shutil
import tempfile
import zipfile
import zlib
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel

from hf_speech_ssl.data.batch import DataPosition
from hf_speech_ssl.run_folder import (
    OPTIMIZER_FILE,
    PARTIAL_SUFFIX,
    STATE_FILE,
    WEIGHTS_FILE,
    TrainingState,
    checkpoint_name,
    checkpoint_step,
    process_file,
)

from .updates import parameter_groups

WRITE_ERRORS = (OSError, RuntimeError, SafetensorError)  # the latter are torch's and safetensors' for a full disk
logger = logging.getLogger(__name__)


class Saveable(Protocol):
    """A feature extractor or processor: whatever belongs into the folder of a model."""

    def save_pretrained(self, save_directory: str | Path) -> Any: ...


def save_model(folder: Path, model: PreTrainedModel, processor: Saveable) -> None:
    """Model, configuration, code and processor, as `from_pretrained` expects them. Only for the main process."""
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def save_final_model(folder: Path, model: PreTrainedModel, processor: Saveable) -> None:
    """The same into the output folder, file by file once all are written: a full disk leaves no half model."""
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix="model.", suffix=PARTIAL_SUFFIX) as partial:
            save_model(Path(partial), model, processor)
            for file in Path(partial).iterdir():
                _to_disk(file)
                file.replace(folder / file.name)
    except WRITE_ERRORS as error:
        raise OSError(
            f"The final model could not be written into {folder} ({error}). Its weights are in the last checkpoint: "
            f"make room, then give the same command with --resume_from_checkpoint last."
        ) from error
    _to_disk(folder)


def save_checkpoint(
    output_dir: Path,
    accelerator: Accelerator,
    state: TrainingState,
    model: PreTrainedModel,
    processor: Saveable,
    optimizer: torch.optim.Optimizer,
    position: DataPosition | None,
) -> Path:
    """Write checkpoint-N, N being `state.step`; every process calls this and writes its own share.

    Raises:
        OSError: it could not be written; older checkpoints are as they were.
    """
    folder = output_dir / checkpoint_name(state.step)
    partial = folder.with_name(folder.name + PARTIAL_SUFFIX)
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    accelerator.wait_for_everyone()
    partial.mkdir(exist_ok=True)
    try:
        place = asdict(position) if position else None
        own_file = partial / process_file(accelerator.process_index)
        torch.save({"position": place, **random_states()}, own_file)
        _to_disk(own_file)
        if accelerator.is_main_process:
            save_model(partial, model, processor)
            scaler = accelerator.scaler.state_dict() if accelerator.scaler is not None else None
            torch.save({"optimizer": named_state(optimizer, model), "scaler": scaler}, partial / OPTIMIZER_FILE)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            for file in partial.iterdir():
                _to_disk(file)
            state.checksums = {file.name: checksum(file) for file in sorted(partial.iterdir())}
            state.write(partial)
    except WRITE_ERRORS as error:
        free = shutil.disk_usage(output_dir).free / 2**20
        shutil.rmtree(partial, ignore_errors=True)
        raise OSError(
            f"{folder} could not be written ({error}); {free:,.0f} MiB were free there. Checkpoints written before "
            f"are whole: make room, then go on with --resume_from_checkpoint last."
        ) from error
    if accelerator.is_main_process:
        replace_folder(partial, folder)
    accelerator.wait_for_everyone()
    return folder


def damage(folder: Path) -> str | None:
    """Why a checkpoint cannot be used, or `None`. Checkpoints without checksums are checked for their ends only."""
    try:
        state = TrainingState.read(folder)
    except (OSError, ValueError, TypeError) as error:
        return str(error)
    if checkpoint_step(folder) not in (None, state.step):
        return f"{STATE_FILE} is of update {state.step}"
    for name, expected in state.checksums.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if checksum(folder / name) != expected:
            return f"{name} is not as it was written"
    if not state.checksums:
        for name in (WEIGHTS_FILE, OPTIMIZER_FILE, process_file(0)):
            if not (folder / name).is_file():
                return f"{name} is missing"
            if name.endswith(".pt") and not zipfile.is_zipfile(folder / name):
                return f"{name} is cut short"
        try:
            with safe_open(folder / WEIGHTS_FILE, framework="pt"):
                pass
        except SafetensorError:
            return f"{WEIGHTS_FILE} is cut short"
    return None


def checksum(file: Path) -> str:
    """Length and CRC-32 of a file: enough to recognize one that was cut short or spoiled."""
    crc, length = 0, 0
    with file.open("rb") as stream:
        while block := stream.read(1 << 22):
            crc, length = zlib.crc32(block, crc), length + len(block)
    return f"{length}-{crc:08x}"


def load_checkpoint(
    folder: Path,
    accelerator: Accelerator,
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    restart_data: bool = False,
) -> tuple[TrainingState, DataPosition | None]:
    """Put weights, optimizer and random states back; returns the state and this process's position in the data.

    With another number of processes than the checkpoint's, the run begins the epoch anew and with fresh random states:
    correct, but not what the uninterrupted run would have computed.

    Args:
        optimizer: keeps the settings that it has; only the moments are the checkpoint's.
        restart_data: begin a new epoch rather than go on within one.
    """
    state = TrainingState.read(folder)
    load_weights(folder, model)
    tensors = torch.load(folder / OPTIMIZER_FILE, map_location="cpu", weights_only=True)
    load_named_state(optimizer, model, tensors["optimizer"])
    if accelerator.scaler is not None and tensors["scaler"]:
        accelerator.scaler.load_state_dict(tensors["scaler"])
    position = restore_process(folder, accelerator, state)
    state.num_processes = accelerator.num_processes
    if restart_data and position is not None:
        position = DataPosition(position.epoch + 1)
    return state, position


def restore_process(folder: Path, accelerator: Accelerator, state: TrainingState) -> DataPosition | None:
    """This process's random states, put back, and its position in the data."""
    same = state.num_processes == accelerator.num_processes
    index = accelerator.process_index if same else 0
    process = torch.load(folder / process_file(index), map_location="cpu", weights_only=True)
    known = {field.name for field in fields(DataPosition)}
    saved = process["position"]
    position = DataPosition(**{name: value for name, value in saved.items() if name in known}) if saved else None
    if same:
        set_random_states(process)
        return position
    log = logger.warning if accelerator.is_main_process else logger.debug
    log(
        f"{folder.name} was written by {state.num_processes} processes and goes on with {accelerator.num_processes}: "
        f"the epoch begins anew, and random numbers differ from an uninterrupted run."
    )
    return DataPosition(position.epoch) if position else None


def load_weights(folder: Path, model: PreTrainedModel) -> None:
    """The weights of a checkpoint, into a model of exactly the same shape.

    Raises:
        ValueError: the checkpoint holds another model.
    """
    theirs, ours = load_file(folder / WEIGHTS_FILE), model.state_dict()
    # Statistics that older checkpoints do not have begin anew.
    optional = "|".join(model._keys_to_ignore_on_load_missing or ["$^"])
    theirs |= {name: value for name, value in ours.items() if name not in theirs and re.search(optional, name)}
    shapes = [{name: list(tensor.shape) for name, tensor in tensors.items()} for tensors in (theirs, ours)]
    wrong = sorted(name for name in theirs.keys() | ours.keys() if shapes[0].get(name) != shapes[1].get(name))
    if wrong:
        there, here = (found.get(wrong[0], "absent") for found in shapes)
        raise ValueError(
            f"The weights in {folder} are not those of this {type(model).__name__}: {len(wrong)} of {len(ours)} are "
            f"absent or of another shape; {wrong[0]} is {there} there and {here} here. Resume with the configuration "
            f"that the run was started with."
        )
    model.load_state_dict(theirs)


def named_state(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Any]:
    """What the optimizer has learned, by the names of the parameters: how they are grouped does not matter to it."""
    names: dict[torch.Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {names[parameter]: state for parameter, state in optimizer.state.items()}


def load_named_state(optimizer: torch.optim.Optimizer, model: nn.Module, saved: dict[str, Any]) -> None:
    """Put `named_state` back. Groups, decay, betas and epsilon stay as the optimizer was made with.

    A parameter that was frozen when the state was saved begins without moments.

    Raises:
        ValueError: the state is of an earlier version, which numbered the parameters, and their number differs.
    """
    names = {parameter: name for name, parameter in model.named_parameters()}
    if "param_groups" in saved:
        saved = _by_name(saved, model)
    whole = optimizer.state_dict()
    ordered = [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]
    whole["state"] = {index: saved[name] for index, name in enumerate(ordered) if name in saved}
    optimizer.load_state_dict(whole)


def _by_name(saved: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """The state of an earlier version, which grouped all that was trained by the settings of its time."""
    old = saved["param_groups"]
    decay, frozen = (max(group[name] for group in old) for name in ("weight_decay", "frozen_steps"))
    names = {parameter: name for name, parameter in model.named_parameters()}
    ordered = [names[p] for group in parameter_groups(model, decay, frozen) for p in group["params"]]
    if len(ordered) != sum(len(group["params"]) for group in old):
        raise ValueError(
            "The checkpoint was written by an earlier version with other parameters frozen. Resume with the flags "
            "--freeze_encoder and --freeze_feature_projection that it was started with."
        )
    return {ordered[index]: state for index, state in saved["state"].items()}


def random_states() -> dict[str, Any]:
    """States of Python's, numpy's and torch's generators, as types that `torch.load(weights_only=True)` accepts."""
    name, keys, *rest = np.random.get_state()  # noqa: NPY002 - the global generator that libraries draw from
    states: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def set_random_states(states: dict[str, Any]) -> None:
    """Put back what `random_states` gave."""
    random.setstate(states["python"])
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def replace_folder(new: Path, folder: Path) -> None:
    """Rename a complete folder, over an older one if there is one; both names reach the disk."""
    old = folder.with_name(folder.name + ".deleting")
    shutil.rmtree(old, ignore_errors=True)
    _to_disk(new)
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    _to_disk(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def _to_disk(path: Path) -> None:
    """Wait until a file or the names in a folder have reached the disk; a rename before that may outrun them."""
    if os.name == "nt" and path.is_dir():  # which Windows does not open
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF, errno.ENOTSUP):  # some file systems have no such call
            raise
    finally:
        os.close(descriptor)
