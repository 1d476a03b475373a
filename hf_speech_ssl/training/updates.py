"""One update: what a batch means to a model, forward and backward, one reduction of small numbers, one optimizer step.

The loss of an update is a mean over units: masked frames in pretraining, utterances in CTC. Every batch
back-propagates its mean loss times its number of units; the sum of those, divided by the sum of the units of all
processes and accumulation steps, is the gradient of the mean over all units, however unevenly they fell.
"""

from collections.abc import Mapping, Sequence, Sized
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedModel

from hf_speech_ssl.data.audio import SAMPLING_RATE
from hf_speech_ssl.data.batch import Batch
from hf_speech_ssl.modeling.feature_extraction_speech_ssl import SpeechSSLFeatureExtractor

from .diagnostics import MEAN, UNITS, Sums, add, constants, reduce, weighted_scalars
from .schedules import Schedule
from .settings import TrainingSettings

# Losses are summed over units; divided by this constant they stay near 1, where fp16 can hold their gradients.
UNIT_SCALE = 256.0


class Objective(Protocol):
    """Turns a batch into a loss. `unit` names what the loss is a mean over, as it appears in the logs.

    A batch without examples is a second of silence and counts no units: every process takes part in every update.
    """

    @property
    def unit(self) -> str: ...

    @property
    def left_out(self) -> Sized:
        """Utterances seen in training that nothing can be learned from."""
        ...

    @property
    def why_nothing(self) -> str:
        """A sentence on why updates may have had no units, and what to do."""
        ...

    def __call__(self, model: nn.Module, batch: Batch, device: torch.device) -> tuple[Mapping[str, Any], torch.Tensor]:
        """The model's output, `loss` in it, and the 0-dim number of units that the loss is the mean of."""
        ...


def features_of(
    batch: Batch, feature_extractor: SpeechSSLFeatureExtractor, device: torch.device
) -> dict[str, torch.Tensor]:
    """`input_features` (B, F, M) and `attention_mask` (B, F), computed on `device`."""
    waveforms = batch.waveforms.to(device, non_blocking=True)
    features, mask = feature_extractor.extract(waveforms, batch.lengths.to(device, non_blocking=True))
    return {"input_features": features, "attention_mask": mask}


@dataclass(frozen=True)
class SelfSupervised:
    """Pretraining without labels: the model draws its own masks and counts what it masked."""

    feature_extractor: SpeechSSLFeatureExtractor
    unit: str = "num_masked_frames"  # the field of the model's output that counts
    left_out: Sequence[str] = ()
    why_nothing: str = (
        "Check the audio and the warnings about skipped files. Chunk SSL predicts nothing in utterances that one "
        "chunk holds: they must be longer than the shortest of chunk_durations_ms."
    )

    def __call__(self, model: nn.Module, batch: Batch, device: torch.device) -> tuple[Mapping[str, Any], torch.Tensor]:
        output = model(**features_of(batch, self.feature_extractor, device))
        return output, output[self.unit] * bool(batch.num_examples)


class TrainStep:
    """A model, its optimizer and what they learn from.

    The gradient of an update is that of the mean loss over all units (masked frames, utterances) of all its batches on
    all processes. An update without a unit, or whose gradients are not finite, changes nothing and counts as skipped.

    Args:
        model: the bare model, in float32; it is moved to the accelerator's device.
        schedule: factor of the peak learning rate by number of the update, from 1.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: PreTrainedModel,
        objective: Objective,
        settings: TrainingSettings,
        schedule: Schedule,
    ):
        self.accelerator, self.objective, self.settings, self.schedule = accelerator, objective, settings, schedule
        if settings.gradient_checkpointing:
            # The second name is the older one.
            (getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable)()
        self.bare_model = model
        self.model = accelerator.prepare_model(model)
        self.adamw = torch.optim.AdamW(
            parameter_groups(model, settings.weight_decay, round(settings.freeze_encoder_steps)),
            lr=settings.learning_rate,
            betas=(settings.adam_beta1, settings.adam_beta2),
            eps=settings.adam_epsilon,
            fused=True,
        )
        self.optimizer = accelerator.prepare_optimizer(self.adamw)
        self.parameters = [parameter for group in self.adamw.param_groups for parameter in group["params"]]

    def learning_rate(self, step: int) -> float:
        """The learning rate of update number `step`."""
        return self.settings.learning_rate * self.schedule(step)

    def update(self, step: int, batches: Sequence[Batch], **numbers: float) -> Sums:
        """Update number `step`, on one batch per accumulation step.

        Returns:
            Sums over the batches of all processes: units, scalars of the output times units, seconds of audio, the
            given `numbers`; beside them, equal everywhere, `grad_norm`, `skipped` and `empty`: 0 or 1, whether nothing
            was learned, and whether for want of units.
        """
        set_learning_rate(self.adamw, self.learning_rate(step), step)
        parts = [self.backward(batch, synchronize=batch is batches[-1]) for batch in batches]
        sums = reduce(self.accelerator, add([*parts, constants(self.accelerator.device, **numbers)]))
        norm = self.average_gradients(sums[UNITS])
        empty = sums[UNITS] == 0
        skip = ~torch.isfinite(norm) | empty
        if self.accelerator.scaler is None:
            step_unless(self.adamw, skip)
        else:
            self.optimizer.step()  # the loss scaler finds the same and skips by itself
        self.optimizer.zero_grad()
        means = {name: torch.where(skip, 0.0, value) for name, value in sums.items() if name.startswith((MEAN, UNITS))}
        flags = {"skipped": skip.to(norm.dtype), "empty": empty.to(norm.dtype)}
        return sums | means | flags | {"grad_norm": torch.where(skip, 0.0, norm)}

    def backward(self, batch: Batch, synchronize: bool) -> Sums:
        """Add the gradient of one batch's summed loss; only the last one of an update meets the other processes."""
        device = self.accelerator.device
        with nullcontext() if synchronize else self.accelerator.no_sync(self.model):
            output, units = self.objective(self.model, batch, device)
            self.accelerator.backward(output["loss"] * (units / UNIT_SCALE))
        audio = constants(device, audio_seconds=batch.seconds, padded_seconds=batch.waveforms.numel() / SAMPLING_RATE)
        return weighted_scalars(output, units, self.objective.unit) | audio

    def average_gradients(self, units: torch.Tensor) -> torch.Tensor:
        """Turn the summed gradients into those of the mean over `units`, clipped; returns their norm before that.

        DistributedDataParallel has already divided them by the number of processes.
        """
        self.accelerator.unscale_gradients(self.optimizer)
        scale = self.accelerator.num_processes * UNIT_SCALE / units.clamp_min(1.0)
        return scale_and_clip(self.parameters, scale.float(), self.settings.max_grad_norm)


def parameter_groups(model: nn.Module, weight_decay: float, freeze_encoder_steps: int = 0) -> list[dict[str, Any]]:
    """Trainable parameters by weight decay (matrices have it, biases and norms do not) and by first learning step."""
    encoder = getattr(model, "base_model_prefix", "") + "."
    groups: dict[tuple[float, int], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decay = weight_decay if parameter.ndim >= 2 else 0.0
            frozen_steps = freeze_encoder_steps if name.startswith(encoder) else 0
            groups.setdefault((decay, frozen_steps), []).append(parameter)
    if not groups:
        raise ValueError("Nothing to train: every parameter of the model is frozen.")
    return [
        {"params": parameters, "weight_decay": decay, "frozen_steps": frozen_steps}
        for (decay, frozen_steps), parameters in groups.items()
    ]


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float, step: int) -> None:
    """The learning rate of update number `step`, zero for groups that are still frozen.

    A zero learning rate rather than `requires_grad = False`: DistributedDataParallel fixes at the start which
    gradients it waits for.
    """
    for group in optimizer.param_groups:
        group["lr"] = 0.0 if step <= group["frozen_steps"] else learning_rate


def scale_and_clip(parameters: list[nn.Parameter], scale: torch.Tensor, max_norm: float) -> torch.Tensor:
    """Multiply all gradients by `scale` and clip the result to `max_norm` (0: do not), in one pass over them.

    Returns:
        The 0-dim norm of the scaled gradients before clipping, still on the device.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = nn.utils.get_total_norm(gradients) * scale
    factor = scale * (max_norm / (norm + 1e-6)).clamp(max=1.0) if max_norm else scale
    torch._foreach_mul_(gradients, factor)
    return norm


def step_unless(optimizer: torch.optim.Optimizer, skip: torch.Tensor) -> None:
    """One optimizer step, or none where the 0-dim bool `skip` holds, without asking the device for its value.

    torch's fused optimizers leave parameters and state alone where `found_inf` is 1; `GradScaler` speaks to them in
    the same way.
    """
    optimizer.found_inf = skip.float()  # type: ignore[attr-defined]
    try:
        optimizer.step()
    finally:
        del optimizer.found_inf  # type: ignore[attr-defined]
