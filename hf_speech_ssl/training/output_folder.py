"""The output folder of a run: who may write into it, which checkpoint to resume from, which ones to delete.

output_dir/
    checkpoint-1000/ ...    of this run, the highest number being the newest; see `checkpoints`
    set_aside/              checkpoints that the run went back behind, or that are damaged
    .lock                   held while a run writes here; the system releases it however the process ends
"""

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from accelerate import Accelerator
from filelock import FileLock, Timeout

from hf_speech_ssl.run_folder import (
    CHECKPOINT_FOLDERS,
    LOG_FILE,
    OPTIMIZER_FILE,
    PARTIAL_SUFFIX,
    RESULTS_FILE,
    STATE_FILE,
    WEIGHTS_FILE,
    checkpoint_name,
    checkpoint_step,
    process_file,
)

from .checkpoints import damage
from .processes import decided_by_main_process

LOCK_FILE = ".lock"
ASIDE = "set_aside"
UNFINISHED = (PARTIAL_SUFFIX, ".deleting")  # endings of folders that an interruption left half written or half deleted
# A folder with one of these holds work that a fresh run would overwrite.
FINISHED_WORK = (WEIGHTS_FILE, "model.safetensors.index.json", RESULTS_FILE)
logger = logging.getLogger(__name__)


@contextmanager
def claimed(accelerator: Accelerator, output_dir: str | Path, resume: str | None) -> Iterator[Path | None]:
    """Keep other runs out of the output folder, and choose the checkpoint to resume from. Every process calls this.

    Checkpoints of the folder that are newer than the chosen one are set aside, so that the newest checkpoint is always
    the one with the highest number.

    Args:
        resume: "last", the folder of a checkpoint, or `None` for a fresh start.

    Yields:
        The checkpoint, or `None`.

    Raises:
        ValueError: another run writes there, a fresh start would overwrite work, or there is no whole checkpoint.
    """
    output_dir = Path(output_dir)
    lock = FileLock(output_dir / LOCK_FILE)

    def claim() -> Path | None:
        output_dir.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            raise ValueError(
                f"Another run is writing into {output_dir}. Wait for it, stop it, or choose another --output_dir."
            ) from None
        remove_unfinished(output_dir)
        return choose_checkpoint(output_dir, resume)

    try:
        yield decided_by_main_process(accelerator, claim)
    finally:
        lock.release()


def list_checkpoints(output_dir: Path) -> list[Path]:
    """Checkpoints in `output_dir`, oldest first."""
    found = {
        step: folder
        for folder in output_dir.glob(CHECKPOINT_FOLDERS)
        if (step := checkpoint_step(folder)) is not None and (folder / STATE_FILE).is_file()
    }
    return [found[step] for step in sorted(found)]


def step_of(checkpoint: Path) -> int:
    """The update after which a checkpoint was written."""
    step = checkpoint_step(checkpoint)
    if step is None:
        raise ValueError(f"{checkpoint} is no checkpoint: its name is not {checkpoint_name(1000)} or the like.")
    return step


def choose_checkpoint(output_dir: Path, resume: str | None) -> Path | None:
    """The checkpoint that `--resume_from_checkpoint` means; the newer ones are set aside.

    "last" without a checkpoint starts afresh, so that a job that is queued again after an interruption can always be
    given the same command.

    Raises:
        ValueError: as in `claimed`.
    """
    checkpoints = list_checkpoints(output_dir)
    if not checkpoints and resume in (None, "last"):
        refuse_finished_work(output_dir)
        return None
    if resume is None:
        raise ValueError(
            f"{output_dir} already holds {checkpoints[-1].name}. Go on from it with --resume_from_checkpoint last, or "
            f"choose another --output_dir."
        )
    chosen = newest_whole(checkpoints, output_dir) if resume == "last" else checked(Path(resume), checkpoints)
    elsewhere = chosen.resolve().parent != output_dir.resolve()
    set_aside(output_dir, [one for one in checkpoints if elsewhere or step_of(one) > step_of(chosen)], chosen)
    return chosen


def refuse_finished_work(output_dir: Path) -> None:
    """Raise a ValueError if a run that starts afresh would overwrite a model."""
    for name in FINISHED_WORK:
        if (output_dir / name).exists():
            raise ValueError(
                f"{output_dir} already holds a model ({name}) and no checkpoint to go on from; a new run would "
                f"overwrite it. Choose another --output_dir."
            )


def newest_whole(checkpoints: list[Path], output_dir: Path) -> Path:
    """The newest checkpoint that is not damaged.

    Raises:
        ValueError: all are.
    """
    reasons: list[str] = []
    for folder in reversed(checkpoints):
        if (reason := damage(folder)) is None:
            for one in reasons:
                logger.warning(f"{one}; going on from {folder.name} instead.")
            return folder
        reasons.append(f"{folder.name} is damaged: {reason}")
    raise ValueError(
        f"No checkpoint in {output_dir} is whole: {'; '.join(reasons)}. Start anew in another --output_dir."
    )


def checked(folder: Path, checkpoints: list[Path]) -> Path:
    """A checkpoint that was named.

    Raises:
        ValueError: it is none, or it is damaged.
    """
    reason = damage(folder) if (folder / STATE_FILE).is_file() else f"it has no {STATE_FILE}"
    if reason is None:
        return folder
    known = ", ".join(checkpoint.name for checkpoint in checkpoints) or "none"
    raise ValueError(
        f"{folder} is no checkpoint to resume from: {reason}. Checkpoints in the output folder: {known}; the newest "
        f"whole one is taken with --resume_from_checkpoint last."
    )


def set_aside(output_dir: Path, checkpoints: list[Path], chosen: Path) -> None:
    """Move checkpoints where neither `last` nor the limit on their number finds them, with the log that led there."""
    if not checkpoints:
        return
    number = 1
    while (aside := output_dir / ASIDE / str(number)).exists():
        number += 1
    aside.mkdir(parents=True)
    if (output_dir / LOG_FILE).exists():
        shutil.copy2(output_dir / LOG_FILE, aside)
    for folder in checkpoints:
        folder.rename(aside / folder.name)
    names = ", ".join(folder.name for folder in checkpoints)
    logger.warning(
        f"Resuming from {chosen}: {names} moved to {aside}. Delete that folder if you do not need them; to go back "
        f"to one of them, give its path to --resume_from_checkpoint."
    )


def delete_checkpoint(folder: Path) -> None:
    """Delete a checkpoint under another name, so that an interruption leaves nothing that looks like one."""
    doomed = folder.with_name(folder.name + ".deleting")
    shutil.rmtree(doomed, ignore_errors=True)
    folder.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def delete_old_checkpoints(output_dir: Path, keep: int | None, best_step: int) -> None:
    """Leave the newest `keep` checkpoints and the best one."""
    old = list_checkpoints(output_dir)[:-keep] if keep else []
    for folder in old:
        if step_of(folder) != best_step:
            delete_checkpoint(folder)


def remove_unfinished(output_dir: Path) -> None:
    """Remove what interrupted saving or deleting left behind, a checkpoint without state and weights included."""
    for folder in output_dir.glob(CHECKPOINT_FOLDERS):
        if folder.name.endswith(UNFINISHED) or (checkpoint_step(folder) is not None and _is_remnant(folder)):
            logger.warning(f"Removing {folder}, which an interruption left unfinished.")
            shutil.rmtree(folder, ignore_errors=True)
    for folder in output_dir.glob("model.*.partial"):
        shutil.rmtree(folder, ignore_errors=True)


def _is_remnant(folder: Path) -> bool:
    names = {path.name for path in folder.iterdir()}
    kept = {STATE_FILE, WEIGHTS_FILE, "trainer_state.json"}  # the last is of transformers' Trainer
    ours = not names or OPTIMIZER_FILE in names or process_file(0) in names
    return ours and not names & kept
