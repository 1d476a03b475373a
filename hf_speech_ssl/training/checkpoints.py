"""Checkpoints: a model folder that `from_pretrained` loads, beside everything that going on needs.

    checkpoint-1000/
        config.json, model.safetensors, ...   the model, its feature extractor or processor, its code
        optimizer.pt                          moments of AdamW, and the loss scaler's state with fp16
        training_state.json                   `TrainingState`
        process-00000.pt                      one per process: random states, position in the data

A checkpoint is written under another name and renamed when complete, so whatever is called checkpoint-N is whole.
"""

import random
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from safetensors.torch import load_file
from transformers import PreTrainedModel

from hf_speech_ssl.data.batch import DataPosition
from hf_speech_ssl.run_folder import (
    CHECKPOINT_FOLDERS,
    OPTIMIZER_FILE,
    PARTIAL_SUFFIX,
    STATE_FILE,
    TrainingState,
    checkpoint_name,
    checkpoint_step,
    process_file,
)

logger = get_logger(__name__)


class Saveable(Protocol):
    """A feature extractor or processor: whatever belongs into the folder of a model."""

    def save_pretrained(self, save_directory: str | Path) -> Any: ...


def save_model(folder: Path, model: PreTrainedModel, companions: Sequence[Saveable]) -> None:
    """Model, configuration, code and companions, as `from_pretrained` expects them. Only for the main process."""
    model.save_pretrained(folder)
    for companion in companions:
        companion.save_pretrained(folder)


def save_checkpoint(
    output_dir: Path,
    accelerator: Accelerator,
    state: TrainingState,
    model: PreTrainedModel,
    companions: Sequence[Saveable],
    optimizer: torch.optim.Optimizer,
    position: DataPosition | None,
) -> Path:
    """Write checkpoint-N, N being `state.step`; every process calls this and writes its own share."""
    folder = output_dir / checkpoint_name(state.step)
    partial = folder.with_name(folder.name + PARTIAL_SUFFIX)
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    accelerator.wait_for_everyone()
    partial.mkdir(exist_ok=True)
    place = asdict(position) if position else None
    torch.save({"position": place, **random_states()}, partial / process_file(accelerator.process_index))
    if accelerator.is_main_process:
        save_model(partial, model, companions)
        scaler = accelerator.scaler.state_dict() if accelerator.scaler is not None else None
        torch.save({"optimizer": optimizer.state_dict(), "scaler": scaler}, partial / OPTIMIZER_FILE)
        state.write(partial)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    accelerator.wait_for_everyone()
    return folder


def load_checkpoint(
    folder: Path, accelerator: Accelerator, model: PreTrainedModel, optimizer: torch.optim.Optimizer
) -> tuple[TrainingState, DataPosition | None]:
    """Put weights, optimizer and random states back; returns the state and this process's position in the data.

    With another number of processes than the checkpoint's, the run begins the epoch anew and with fresh random states:
    correct, but not what the uninterrupted run would have computed.
    """
    state = TrainingState.read(folder)
    load_weights(folder, model)
    tensors = torch.load(folder / OPTIMIZER_FILE, map_location=accelerator.device, weights_only=True)
    optimizer.load_state_dict(tensors["optimizer"])
    if accelerator.scaler is not None and tensors["scaler"]:
        accelerator.scaler.load_state_dict(tensors["scaler"])
    position = restore_process(folder, accelerator, state)
    state.num_processes = accelerator.num_processes
    return state, position


def restore_process(folder: Path, accelerator: Accelerator, state: TrainingState) -> DataPosition | None:
    """This process's random states, put back, and its position in the data."""
    same = state.num_processes == accelerator.num_processes
    index = accelerator.process_index if same else 0
    process = torch.load(folder / f"process-{index:05d}.pt", map_location="cpu", weights_only=True)
    position = DataPosition(**process["position"]) if process["position"] else None
    if same:
        set_random_states(process)
        return position
    logger.warning(
        f"{folder.name} was written by {state.num_processes} processes and goes on with {accelerator.num_processes}: "
        f"the epoch begins anew, and random numbers differ from an uninterrupted run."
    )
    return DataPosition(position.epoch) if position else None


def load_weights(folder: Path, model: PreTrainedModel) -> None:
    """The weights of a checkpoint, into a model of exactly the same shape.

    Raises:
        ValueError: the checkpoint holds another model.
    """
    theirs, ours = load_file(folder / "model.safetensors"), model.state_dict()
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


def list_checkpoints(output_dir: Path) -> list[Path]:
    """Complete checkpoints in `output_dir`, oldest first."""
    found = {
        step: folder
        for folder in output_dir.glob(CHECKPOINT_FOLDERS)
        if (step := checkpoint_step(folder)) is not None and (folder / STATE_FILE).is_file()
    }
    return [found[step] for step in sorted(found)]


def checkpoint_to_resume(output_dir: str | Path, resume_from_checkpoint: str | None) -> Path | None:
    """The checkpoint folder that `--resume_from_checkpoint` means; `None` starts afresh.

    `last` without a checkpoint starts afresh, so that a job that is queued again after an interruption can always be
    given the same command.

    Raises:
        ValueError: no checkpoint there, or one would be overwritten by a run that does not resume.
    """
    checkpoints = list_checkpoints(Path(output_dir))
    if resume_from_checkpoint is None:
        if checkpoints:
            raise ValueError(
                f"{output_dir} already holds {checkpoints[-1].name}. Go on from it with --resume_from_checkpoint "
                f"last, or choose another --output_dir."
            )
        return None
    if resume_from_checkpoint == "last":
        return checkpoints[-1] if checkpoints else None
    folder = Path(resume_from_checkpoint)
    if not (folder / STATE_FILE).is_file():
        known = ", ".join(checkpoint.name for checkpoint in checkpoints) or "none"
        raise ValueError(
            f"{folder} is no checkpoint to resume from: it has no {STATE_FILE}. Checkpoints in {output_dir}: {known}."
        )
    return folder


def delete_old_checkpoints(output_dir: Path, keep: int | None, best_step: int) -> None:
    """Leave the newest `keep` checkpoints and the best one; also remove what an interrupted save left behind."""
    for partial in output_dir.glob(CHECKPOINT_FOLDERS + PARTIAL_SUFFIX):
        shutil.rmtree(partial, ignore_errors=True)
    old = list_checkpoints(output_dir)[:-keep] if keep else []
    for folder in old:
        if folder.name != checkpoint_name(best_step):
            shutil.rmtree(folder, ignore_errors=True)
