"""Encoder blocks that are fast on a CPU in small steps, such as those of a live transcript; for inference only.

A streaming step has a few frames only, so that reading the weights and calling torch take its time, not arithmetic.
Here weights are put in oneDNN's order once instead of at every call, activations and residual sums happen inside the
products, and a block is one function without modules within. `benchmarks/streaming.py` measures what that brings.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from ..modeling.layouts import Layout
from ..modeling.modeling_conformer import ConformerFeedForward, ConformerLayer, rotate

_FRAMES = 16  # for which the order is chosen: chunk and look-ahead of 320 ms at 25 Hz
_PLAIN = (nn.Linear, nn.LayerNorm, nn.Conv2d)  # modules with weights that can be packed
_FUSED_ACTIVATIONS = {"silu": "swish", "swish": "swish", "relu": "relu"}  # by their names in oneDNN


class PackedLinear:
    """What a linear layer computes, times `scale`: (B, T, in_features) -> (B, T, out_features)."""

    def __init__(self, linear: nn.Linear, scale: float = 1.0):
        self.weight = torch.ops.mkldnn._reorder_linear_weight(scale * linear.weight.detach(), _FRAMES)
        self.bias = scale * linear.bias.detach()

    def __call__(self, inputs: torch.Tensor, activation: str = "none") -> torch.Tensor:
        output: torch.Tensor = torch.ops.mkldnn._linear_pointwise(inputs, self.weight, self.bias, activation, [], "")
        return output

    def plus(self, residual: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        """The layer's output added to `residual`."""
        add = torch.ops.mkldnn._linear_pointwise.binary
        output: torch.Tensor = add(inputs, residual, self.weight, self.bias, "add")
        return output


class PackedNorm:
    """What a layer norm computes."""

    def __init__(self, norm: nn.LayerNorm):
        self.arguments = norm.normalized_shape, norm.weight.detach(), norm.bias.detach(), norm.eps

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        return torch.layer_norm(inputs, *self.arguments)


class PackedDepthwise:
    """What the depthwise convolution computes: (B, T + kernel - 1, D) -> (B, T, D)."""

    def __init__(self, convolution: nn.Conv2d):
        self.bias = convolution.bias
        self.geometry: list[Any] = [[0, 0], [1, 1], [1, 1], convolution.groups]  # padding, stride, dilation, groups
        frames = [1, convolution.groups, _FRAMES + convolution.kernel_size[0] - 1, 1]
        reorder = torch.ops.mkldnn._reorder_convolution_weight
        self.weight = reorder(convolution.weight.detach(), *self.geometry, frames)

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        picture = inputs.unsqueeze(2).permute(0, 3, 1, 2)  # channels-last, as in ConformerConvolution
        convolve = torch.ops.mkldnn._convolution_pointwise
        output: torch.Tensor = convolve(picture, self.weight, self.bias, *self.geometry, "none", [], "")
        return output.permute(0, 2, 3, 1).squeeze(2)


class PackedFeedForward:
    """Layer norm, two linear layers around an activation, and half of the result added: (B, T, D) -> (B, T, D)."""

    def __init__(self, norm: nn.LayerNorm, feed_forward: ConformerFeedForward, hidden_act: str):
        self.norm = PackedNorm(norm)
        self.up, self.down = PackedLinear(feed_forward.up_proj), PackedLinear(feed_forward.down_proj, scale=0.5)
        self.fused = _FUSED_ACTIVATIONS.get(hidden_act, "none")
        self.activation = feed_forward.activation if self.fused == "none" else None

    def __call__(self, hidden_states: torch.Tensor) -> torch.Tensor:
        inner = self.up(self.norm(hidden_states), self.fused)
        return self.down.plus(hidden_states, inner if self.activation is None else self.activation(inner))


class PackedLayer(ConformerLayer):
    """What a `ConformerLayer` computes, for inference on the CPU; the layer that it is made from is not kept."""

    def __init__(self, layer: ConformerLayer):
        # A subclass of ConformerLayer so that transformers' output capturing recognizes it; it needs no submodules.
        nn.Module.__init__(self)
        self._forward_hooks = layer._forward_hooks  # the recorders that are there already
        attention, convolution = layer.attention, layer.convolution
        self.head_dim, self.scaling, self.layer_idx = attention.head_dim, attention.scaling, attention.layer_idx
        self.context, self.activation = convolution.context, convolution.activation
        act = attention.config.hidden_act
        self.half1 = PackedFeedForward(layer.feed_forward_norm1, layer.feed_forward1, act)
        self.half2 = PackedFeedForward(layer.feed_forward_norm2, layer.feed_forward2, act)
        self.pre_attention, self.pre_convolution = (
            PackedNorm(layer.attention_norm),
            PackedNorm(layer.convolution_norm),
        )
        self.inner, self.final = PackedNorm(convolution.norm), PackedNorm(layer.final_norm)
        self.qkv, self.attended = PackedLinear(attention.qkv_proj), PackedLinear(attention.out_proj)
        self.gate, self.convolved = PackedLinear(convolution.gate_proj), PackedLinear(convolution.out_proj)
        self.depthwise = PackedDepthwise(convolution.depthwise)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        layout: Layout,
        **kwargs: Any,
    ) -> torch.Tensor:
        """As in `ConformerLayer`: (B, T, D) -> (B, T, D)."""
        hidden_states = self.half1(hidden_states)
        attended = self.attend(self.pre_attention(hidden_states), attention_mask, position_embeddings, layout)
        hidden_states = self.attended.plus(hidden_states, attended.reshape(hidden_states.shape))
        gated = F.glu(self.gate(self.pre_convolution(hidden_states)), dim=-1)
        convolved = self.convolve(gated, layout)
        hidden_states = self.convolved.plus(hidden_states, self.activation(self.inner(convolved)))
        return self.final(self.half2(hidden_states))

    def attend(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        layout: Layout,
    ) -> torch.Tensor:
        """Self-attention up to its last product: (B, T, D) -> (B, T, H, d)."""
        states = self.qkv(hidden_states).view(*hidden_states.shape[:2], -1, self.head_dim)
        heads = states.shape[2] // 3
        query, key = rotate(states[..., : 2 * heads, :], *position_embeddings).split(heads, dim=-2)
        query, key, value = (part.transpose(1, 2) for part in (query, key, states[..., 2 * heads :, :]))
        if not layout.dense:
            return layout.attend(query, key, value, self.scaling, 0.0, self.layer_idx)[0]
        output = F.scaled_dot_product_attention(query, key, value, attention_mask, scale=self.scaling)
        return output.transpose(1, 2)

    def convolve(self, gated: torch.Tensor, layout: Layout) -> torch.Tensor:
        """The depthwise convolution, whose neighbors the layout decides: (B, T, D) -> (B, T, D)."""
        if layout.frame_mask is not None:
            gated = gated.masked_fill(~layout.frame_mask[..., None], 0.0)
        rows = layout.split_for_convolution(gated, self.context, self.layer_idx)
        return layout.join_after_convolution(self.depthwise(rows))

    def _save_to_state_dict(self, *args: Any) -> None:
        raise ValueError("A model with packed layers cannot be saved: its weights have no plain order any more.")


def can_pack(model: PreTrainedModel) -> bool:
    """Whether `pack_layers` works for a model where it is: plain float32 layers, on a CPU with oneDNN, with sdpa or
    eager attention. Layers that PEFT or a quantizer has replaced are not plain.
    """
    here = model.device.type == "cpu" and model.dtype == torch.float32 and torch.backends.mkldnn.is_available()
    layers: Any = model.base_model.layers
    weighted = [part for layer in layers for part in layer.modules() if hasattr(part, "weight")]
    plain = all(type(part) in _PLAIN for part in weighted)
    return here and plain and model.config._attn_implementation in ("sdpa", "eager")


@torch.no_grad()
def pack_layers(model: PreTrainedModel) -> PreTrainedModel:
    """Pack all blocks of an encoder, in place; outputs stay the same to rounding. Packing twice is packing once.

    The model can neither be trained nor saved nor moved afterwards; load it again for that.

    Args:
        model: any encoder of this package, with or without a head.

    Returns:
        The same model, in evaluation mode.

    Raises:
        ValueError: `can_pack` is false.
    """
    if not can_pack(model):
        raise ValueError(
            f"Packing is for plain float32 layers with sdpa attention on a CPU with oneDNN; this model is "
            f"{model.dtype} with {model.config._attn_implementation} attention on {model.device}"
            f"{'' if torch.backends.mkldnn.is_available() else ', and this build of torch has no oneDNN'}."
        )
    layers: Any = model.base_model.layers
    for index, layer in enumerate(layers):
        layers[index] = layer if isinstance(layer, PackedLayer) else PackedLayer(layer)
    return model.eval()
