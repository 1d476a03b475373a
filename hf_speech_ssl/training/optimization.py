"""AdamW over the right groups of parameters, and gradients as means over units that processes and batches share.

A unit is what the loss is a mean over: a masked frame in pretraining, an utterance in CTC. Every batch back-propagates
its mean loss times its number of units; the sum of those, divided by the sum of the units of all processes and
accumulation steps, is the gradient of the mean over all units, however unevenly they fell.
"""

from typing import Any

import torch
from torch import nn


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
