"""The flags of a training run, as frozen dataclasses.

Names follow Hugging Face's training examples. What a paper's recipe prescribes is no default here: the scripts set it.
"""

from dataclasses import dataclass

from ..options import flag
from ..run_folder import split_names

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
    freeze_encoder_steps: float = flag(0, "First updates in which only the head learns; below 1 a share of the run.")
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


@dataclass(frozen=True)
class DataSettings:
    """What to train and evaluate on. Units stand in each flag's help."""

    dataset_name: str = flag(None, "Id of a Hub data set, a local folder or file, or 'synthetic'.")
    dataset_config_name: str | None = flag(
        None, "Its configuration. For 'synthetic': options as 'sentences=500,grammar=full,seed=1'."
    )
    dataset_revision: str | None = flag(None, "Branch, tag or commit of a Hub data set.")
    train_split_name: str = flag("train", "Split to train on; several joined by '+'.")
    eval_split_name: str | None = flag(None, "Splits to evaluate on, separated by commas; none by default.")
    audio_column_name: str = flag("audio", "Column with the audio.")
    streaming: bool = flag(False, "Read the data set while training, rather than download it first.")
    per_device_train_batch_seconds: float = flag(200.0, "Seconds of padded audio in a training batch of a process.")
    per_device_eval_batch_seconds: float = flag(200.0, "The same in evaluation.")
    min_duration_in_seconds: float = flag(0.1, "Shorter audio is skipped.")
    max_duration_in_seconds: float = flag(
        30.0, "Longer audio is cut into pieces of this length in pretraining, and skipped and counted in fine-tuning."
    )
    max_train_samples: int | None = flag(None, "Train on the first so many utterances only.")
    max_eval_samples: int | None = flag(None, "Evaluate on the first so many utterances of each split only.")
    on_bad_audio: str = flag("skip", "'skip' warns and counts files that cannot be used, 'raise' stops the run.")
    dataloader_num_workers: int = flag(2, "Threads that decode audio ahead of training, per process.")
    dataset_cache_dir: str | None = flag(None, "Where data sets are kept once downloaded or made.")

    def __post_init__(self) -> None:
        if not self.dataset_name:
            raise ValueError("--dataset_name is needed: the id of a Hub data set, a local folder, or 'synthetic'.")

    @property
    def eval_split_names(self) -> list[str]:
        """The splits to evaluate on."""
        return split_names(self.eval_split_name)


@dataclass(frozen=True)
class PretrainingSettings:
    """Which model to pretrain."""

    config_name: str | None = flag(None, "Preset of the family, as birq-base, chunkssl-base or fsq-base.")
    config_overrides: str | None = flag(None, "Config fields, as 'hidden_size=128,num_hidden_layers=2'.")
    model_name_or_path: str | None = flag(None, "Pretrained model to continue from, instead of a preset.")
    normalization_seconds: float = flag(600.0, "Seconds of audio that the features' mean and variance come from.")
    picture_steps: int = flag(
        1000, "Updates between two pictures of mask and labels in TensorBoard or Weights & Biases; 0: none."
    )
