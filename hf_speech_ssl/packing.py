"""Linear layers with their weights in the order in which the CPU reads them: for inference in small steps.

The few frames of a streaming step leave a linear layer no time to rearrange its weights at every call, which is what
torch's own layer does on x86. oneDNN's order, made once, takes a third off a whole step (`benchmarks/streaming.py`).
"""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

_FRAMES = 16  # for which the order is chosen: chunk and look-ahead of 320 ms at 25 Hz


class PackedLinear(nn.Module):
    """What a linear layer computes, for inference on the CPU: (..., in_features) -> (..., out_features)."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        with torch.no_grad():
            self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), _FRAMES)
            self.bias = None if linear.bias is None else linear.bias.detach()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = torch.ops.mkldnn._linear_pointwise(inputs, self.weight, self.bias, "none", [], "")
        return output

    def _save_to_state_dict(self, *args: Any) -> None:
        raise ValueError("A model with packed layers cannot be saved: its weights have no plain order any more.")


def can_pack(model: PreTrainedModel) -> bool:
    """Whether `pack_linear_layers` works for a model where it is: float32 on a CPU with oneDNN."""
    return model.device.type == "cpu" and model.dtype == torch.float32 and torch.backends.mkldnn.is_available()


def pack_linear_layers(model: PreTrainedModel) -> PreTrainedModel:
    """Pack the linear layers of all encoder blocks, in place; outputs stay the same to rounding.

    The model can neither be trained nor saved nor moved afterwards; load it again for that.

    Args:
        model: any encoder of this package, with or without a head.

    Returns:
        The same model, in evaluation mode.

    Raises:
        ValueError: the model is not in float32 on a CPU with oneDNN.
    """
    if not can_pack(model):
        raise ValueError(
            f"Packing is for float32 models on a CPU with oneDNN; this model is {model.dtype} on {model.device}"
            f"{'' if torch.backends.mkldnn.is_available() else ', and this build of torch has no oneDNN'}."
        )
    for parent in list(model.base_model.get_submodule("layers").modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, PackedLinear(child))
    return model.eval()
