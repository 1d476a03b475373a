"""The settings of a training run, as a frozen dataclass whose fields become flags.

Names follow Hugging Face's training examples. What a paper's recipe prescribes is no default here: the scripts set it.
"""

import ast
import difflib
import re
from dataclasses import dataclass, fields
from typing import Any

from ..options import flag

SCHEDULES = "constant, linear, cosine, inverse_sqrt, exponential or tri_stage"


@dataclass(frozen=True)
class TrainingSettings:
    """How to train: duration, optimizer, precision, reports and checkpoints. Units stand in each flag's help."""

    output_dir: str = flag(None, "Folder for checkpoints, logs and the final model; on a file system all nodes share.")
    resume_from_checkpoint: str | None = flag(
        None, "'last' (the newest checkpoint in output_dir, or a fresh start if there is none) or a checkpoint folder."
    )
    restart_data: bool = flag(
        False, "When resuming, begin a new epoch: for other data, or other batches, than the checkpoint's."
    )
    max_steps: int | None = flag(None, "Updates in all; wins over num_train_epochs. Required with --streaming.")
    num_train_epochs: float = flag(1.0, "Passes over the training data.")
    gradient_accumulation_steps: int = flag(1, "Batches per process and update.")
    learning_rate: float = flag(1e-4, "Peak learning rate of AdamW.")
    weight_decay: float = flag(0.01, "Weight decay of AdamW; biases and norms (fewer than two dimensions) have none.")
    adam_beta1: float = flag(0.9, "Decay of AdamW's mean of gradients.")
    adam_beta2: float = flag(0.98, "Decay of AdamW's mean of squared gradients.")
    adam_epsilon: float = flag(1e-8, "Epsilon of AdamW.")
    max_grad_norm: float = flag(1.0, "Gradients are clipped to this norm; 0 does not clip.")
    lr_scheduler_type: str = flag("constant", f"Curve after the linear warm-up: {SCHEDULES}.")
    warmup_steps: float = flag(0.0, "Updates of linear warm-up; below 1 a share of the run.")
    hold_steps: float = flag(0.0, "Updates at the peak after the warm-up; below 1 a share of the run.")
    num_anneals: int = flag(10, "tri_stage: divisions of the learning rate by sqrt(2) after the hold.")
    final_lr_factor: float = flag(0.1, "exponential: learning rate at the end, as a share of the peak.")
    freeze_encoder_steps: int = flag(0, "First updates in which only the head learns.")
    mixed_precision: str | None = flag(None, "no, bf16 or fp16; by default what `accelerate launch` was told.")
    gradient_checkpointing: bool = flag(False, "Recompute activations in the backward pass, to save memory.")
    torch_compile: bool = flag(False, "Compile the model with torch.compile.")
    seed: int = flag(0, "Seed of initial weights, masks, dropout and the order of the data.")
    logging_steps: int = flag(20, "Updates between two log lines.")
    eval_steps: int = flag(1000, "Updates between two evaluations; 0 evaluates at the end only.")
    save_steps: int = flag(
        1000, "Updates between two checkpoints; evaluations begin with one too, and 0 saves there alone."
    )
    save_total_limit: int | None = flag(3, "Checkpoints kept: the newest ones; the best one is never deleted.")
    load_best_model_at_end: bool = flag(False, "Let the final model be the best checkpoint rather than the last.")
    push_to_hub: bool = flag(False, "Upload the final folder to the Hub.")
    hub_model_id: str | None = flag(None, "Repository to upload to; the name of output_dir by default.")
    verbose: bool = flag(False, "Show the traceback of an error, rather than its message alone.")
    report_to: str = flag("tensorboard", "Trackers known to Accelerate, separated by commas, or none.")

    def __post_init__(self) -> None:
        if not self.output_dir:
            raise ValueError("--output_dir is needed: the folder for checkpoints, logs and the final model.")
        if self.max_steps is not None and self.max_steps < 1:
            raise ValueError(f"max_steps must be at least 1, got {self.max_steps}.")
        for name in ("num_train_epochs", "learning_rate", "gradient_accumulation_steps", "logging_steps"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}.")
        not_negative = "eval_steps save_steps warmup_steps hold_steps freeze_encoder_steps weight_decay max_grad_norm"
        for name in not_negative.split():
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}.")
        if self.mixed_precision not in (None, "no", "bf16", "fp16"):
            raise ValueError(f"mixed_precision must be no, bf16 or fp16, got {self.mixed_precision!r}.")
        if self.save_total_limit is not None and self.save_total_limit < 1:
            raise ValueError(f"save_total_limit must be at least 1, got {self.save_total_limit}.")


def parse_config_overrides(text: str | None, config_class: type) -> dict[str, Any]:
    """Config fields from `"hidden_size=128,label_layer=None"`; the config itself checks types and ranges.

    Raises:
        ValueError: a part without `=`, or a name that is no field of `config_class` (with the nearest one).
    """
    overrides: dict[str, Any] = {}
    names = [field.name for field in fields(config_class)]
    # A comma separates two fields only before the next `name=`, so that lists may hold commas.
    for part in re.split(r",(?=\s*\w+\s*=)", text or ""):
        if not part.strip():
            continue
        name, separator, value = (piece.strip() for piece in part.partition("="))
        if not separator:
            raise ValueError(f"--config_overrides needs name=value pairs separated by commas, got {part!r}.")
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise ValueError(f"{config_class.__name__} has no field '{name}' to override.{hint}")
        overrides[name] = _typed(value)
    return overrides


def _typed(value: str) -> Any:
    """A Python literal (numbers, lists, None, True, also in lower case), anything else as the string it is."""
    literal = {"true": "True", "false": "False", "none": "None", "null": "None"}.get(value.lower(), value)
    try:
        return ast.literal_eval(literal)
    except (ValueError, SyntaxError):
        return value
