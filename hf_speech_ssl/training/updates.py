"""One update: forward and backward over its batches, one reduction of small numbers, one optimizer step."""

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from accelerate import Accelerator
from transformers import PreTrainedModel

from hf_speech_ssl.data.audio import SAMPLING_RATE
from hf_speech_ssl.data.batch import Batch

from .diagnostics import MEAN, UNITS, Sums, add, constants, reduce, weighted_scalars
from .objectives import Objective
from .optimization import parameter_groups, scale_and_clip, set_learning_rate, step_unless
from .schedules import Schedule
from .settings import TrainingSettings

# Losses are summed over units; divided by this constant they stay near 1, where fp16 can hold their gradients.
UNIT_SCALE = 256.0


class Learner:
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
            parameter_groups(model, settings.weight_decay, settings.freeze_encoder_steps),
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
