"""The Conformer encoder that all families share.

Blocks are pre-norm macarons (Gulati et al., arXiv 2005.08100): half a feed-forward, self-attention, convolution, half
a feed-forward, a final layer norm. Positions are rotary (Su et al., arXiv 2104.09864) where the papers have relative
biases, so that every attention kernel serves; the convolution normalizes over features, not over the batch, so that
an utterance's output does not depend on its neighbors.

Shape letters: B batch, F feature frames (10 ms), T encoder frames (F / frame_stacking), D hidden size, H heads.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers.activations import ACT2FN
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import can_return_tuple
from transformers.utils.output_capturing import capture_outputs

from .cache import ConformerCache
from .configuration_conformer import ConformerConfig
from .layouts import Layout, WholeLayout
from .modeling_speech_ssl import SpeechSSLPreTrainedModel


@dataclass
class ConformerModelOutput(BaseModelOutput):
    """Output of the encoder, for the T frames that went in, however they were laid out.

    Args:
        last_hidden_state: (B, T, D).
        attention_mask: (B, T) int64, 1 where an encoder frame is real; `None` if none was given.
        hidden_states: (B, T, D) each, the input of the first block and the output of every block.
        attentions: with eager attention only, (B, H, T, T) each. A look-ahead's weights are added to those of the
            frames that it copies. In a streaming step (B, H, C, S + L): the C frames of the chunk over the S cached
            frames, the chunk and its look-ahead.
        cache: the cache of a streaming step, where the family streams; `past_key_values` is the same.
    """

    attention_mask: torch.Tensor | None = None
    cache: ConformerCache | None = None

    @property
    def past_key_values(self) -> ConformerCache | None:
        """The cache, by the name that it has in transformers up to 5.23, which is deprecated since."""
        return self.cache


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention written out: (B, H, T, d) each -> (B, T, H, d) and the weights (B, H, T, T)."""
    scores = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = F.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = F.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2), weights


class RotaryEmbedding(nn.Module):
    """Angles of the rotary positions: positions (..., T) -> what `rotate` takes, (..., T, 1, head_dim) each."""

    def __init__(self, head_dim: int, theta: float):
        super().__init__()
        self.head_dim, self.theta = head_dim, theta

    def forward(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        pairs = torch.arange(0, self.head_dim, 2, device=positions.device, dtype=torch.float32)
        angles = positions[..., None].float() * self.theta ** (-pairs / self.head_dim)
        cos, sin = angles.cos(), angles.sin()
        return torch.cat([cos, cos], dim=-1)[..., None, :], torch.cat([-sin, sin], dim=-1)[..., None, :]


def rotate(vectors: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turn the feature pairs (i, i + d / 2) of (..., T, H, d) by the angles of their positions."""
    cos, sin = cos.to(vectors.dtype), sin.to(vectors.dtype)
    return torch.addcmul(vectors * cos, vectors.roll(vectors.shape[-1] // 2, dims=-1), sin)


class ConformerFeedForward(nn.Module):
    """Two linear layers around an activation, frame by frame."""

    def __init__(self, config: ConformerConfig):
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size)
        self.activation = ACT2FN[config.hidden_act]
        self.dropout = config.activation_dropout

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = self.activation(self.up_proj(hidden_states))
        return self.down_proj(F.dropout(hidden_states, self.dropout, self.training))


class ConformerAttention(nn.Module):
    """Multi-head self-attention with rotary positions; queries, keys and values come from one product."""

    def __init__(self, config: ConformerConfig, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.scaling = config.head_dim**-0.5
        self.attention_dropout = config.attention_dropout
        self.is_causal = False
        self.qkv_proj = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        layout: Layout,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        shape = hidden_states.shape[:-1]
        heads = self.config.num_attention_heads
        states = self.qkv_proj(hidden_states).view(*shape, 3 * heads, self.head_dim)
        query, key = rotate(states[..., : 2 * heads, :], *position_embeddings).split(heads, dim=-2)
        value = states[..., 2 * heads :, :]
        query, key, value = (states.transpose(1, 2) for states in (query, key, value))  # (B, H, L, d) each
        dropout = self.attention_dropout if self.training else 0.0
        if layout.dense:
            attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
            output, weights = attend(
                self, query, key, value, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs
            )
        else:
            output, weights = layout.attend(query, key, value, self.scaling, dropout, self.layer_idx)
        return self.out_proj(output.reshape(*shape, -1)), None if weights is None else layout.base_weights(weights)


class ConformerConvolution(nn.Module):
    """Gated pointwise layer, depthwise convolution over time, layer norm, activation, pointwise layer."""

    def __init__(self, config: ConformerConfig, layer_idx: int):
        super().__init__()
        self.layer_idx = layer_idx
        width, kernel = config.hidden_size, config.conv_kernel_size
        self.gate_proj = nn.Linear(width, 2 * width)
        # A convolution over (T, 1) pictures: in the channels-last layout, which (B, T, D) activations already have,
        # the CPU runs it five times faster than the same Conv1d on (B, D, T).
        self.depthwise = nn.Conv2d(width, width, (kernel, 1), groups=width)
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.activation = ACT2FN[config.hidden_act]
        self.out_proj = nn.Linear(width, width)
        self.context = kernel // 2

    def forward(self, hidden_states: torch.Tensor, layout: Layout) -> torch.Tensor:
        hidden_states = F.glu(self.gate_proj(hidden_states), dim=-1)
        if layout.frame_mask is not None:
            hidden_states = hidden_states.masked_fill(~layout.frame_mask[..., None], 0.0)
        rows = layout.split_for_convolution(hidden_states, self.context, self.layer_idx)
        hidden_states = layout.join_after_convolution(self.convolve(rows))
        return self.out_proj(self.activation(self.norm(hidden_states)))

    def convolve(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Depthwise convolution without padding: (B, T + kernel - 1, D) -> (B, T, D)."""
        picture = hidden_states.unsqueeze(2).permute(0, 3, 1, 2)  # (B, D, T, 1), channels-last in memory
        return self.depthwise(picture).permute(0, 2, 3, 1).squeeze(2)


class ConformerLayer(GradientCheckpointingLayer):
    """One macaron block: (B, T, D) -> (B, T, D), layer-normed."""

    def __init__(self, config: ConformerConfig, layer_idx: int):
        super().__init__()
        width, eps = config.hidden_size, config.layer_norm_eps
        self.feed_forward_norm1 = nn.LayerNorm(width, eps=eps)
        self.feed_forward1 = ConformerFeedForward(config)
        self.attention_norm = nn.LayerNorm(width, eps=eps)
        self.attention = ConformerAttention(config, layer_idx)
        self.convolution_norm = nn.LayerNorm(width, eps=eps)
        self.convolution = ConformerConvolution(config, layer_idx)
        self.feed_forward_norm2 = nn.LayerNorm(width, eps=eps)
        self.feed_forward2 = ConformerFeedForward(config)
        self.final_norm = nn.LayerNorm(width, eps=eps)
        self.dropout = config.hidden_dropout

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        layout: Layout,
        **kwargs: Any,
    ) -> torch.Tensor:
        def drop(output: torch.Tensor) -> torch.Tensor:
            return F.dropout(output, self.dropout, self.training)

        fed = drop(self.feed_forward1(self.feed_forward_norm1(hidden_states)))
        hidden_states = hidden_states.add(fed, alpha=0.5)
        attended, _ = self.attention(
            self.attention_norm(hidden_states), attention_mask, position_embeddings, layout, **kwargs
        )
        hidden_states = hidden_states + drop(attended)
        convolved = self.convolution(self.convolution_norm(hidden_states), layout)
        hidden_states = hidden_states + drop(convolved)
        fed = drop(self.feed_forward2(self.feed_forward_norm2(hidden_states)))
        hidden_states = hidden_states.add(fed, alpha=0.5)
        return self.final_norm(hidden_states)


class ConformerPreTrainedModel(SpeechSSLPreTrainedModel):
    """Base of the Conformer models: which attention kernels and outputs they offer, and what can be frozen."""

    config_class = ConformerConfig
    base_model_prefix = "encoder"
    # PEFT and activation checkpointing ask for the layer whose output begins the blocks, and make it carry gradients.
    _input_embed_layer = "feature_projection"
    _no_split_modules = ["ConformerLayer"]
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_record_outputs = {"hidden_states": ConformerLayer, "attentions": ConformerAttention}

    def freeze_feature_encoder(self) -> None:
        """Exclude the first projection, all that comes before the blocks, from training."""
        self.base_model.feature_projection.requires_grad_(False)

    def freeze_base_model(self, frozen: bool = True) -> None:
        """Exclude the whole encoder from training, so that the head learns alone; `frozen=False` undoes it."""
        self.base_model.requires_grad_(not frozen)


class ConformerModel(ConformerPreTrainedModel):
    """Feature frames -> encoder frames: stack, project, K blocks."""

    def __init__(self, config: ConformerConfig):
        super().__init__(config)
        self.feature_projection = nn.Linear(config.stacked_size, config.hidden_size)
        self.rotary = RotaryEmbedding(config.head_dim, config.rope_theta)
        self.layers = nn.ModuleList([ConformerLayer(config, index) for index in range(config.num_hidden_layers)])
        self.gradient_checkpointing = False
        self.post_init()

    @can_return_tuple
    def forward(
        self, input_features: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> ConformerModelOutput:
        """Encode a batch.

        Args:
            input_features: (B, F, num_mel_bins), normalized log-mel frames of 10 ms.
            attention_mask: (B, F), non-zero where a frame is real; real frames come first. All are, if absent.

        Returns:
            [`ConformerModelOutput`] with T = F // frame_stacking frames.

        Raises:
            ValueError: `input_features` has another shape, or fewer frames than one stack.
        """
        stacked, frame_mask = self.stack_frames(input_features, attention_mask)
        return self.encode(self.project(stacked), self.whole_layout(stacked, frame_mask), frame_mask, **kwargs)

    def project(self, stacked: torch.Tensor) -> torch.Tensor:
        """Apply the first projection: (B, T, stacked_size) -> (B, T, D)."""
        # Not the dtype of the layer's weight: a layer that int8 quantization has put in its place has no such weight.
        hidden_states = self.feature_projection(stacked.to(self.dtype))
        return F.dropout(hidden_states, self.config.hidden_dropout, self.training)

    def whole_layout(self, frames: torch.Tensor, frame_mask: torch.Tensor | None) -> WholeLayout:
        """Return the layout of a pass over whole utterances: frames (B, T, ...), (B, T) bool."""
        return WholeLayout(frames.shape[1], frame_mask, self.config.attention_window)

    def encode(
        self, hidden_states: torch.Tensor, layout: Layout, frame_mask: torch.Tensor | None, **kwargs: Any
    ) -> ConformerModelOutput:
        """Run all blocks in a layout, and return their outputs for the T frames that went in.

        Args:
            hidden_states: (B, L, D), projected frames in the order of the layout.
            frame_mask: (B, T) bool, true where a frame that went in is real.
        """
        outputs = self.record_layers(hidden_states, layout=layout, return_dict=True, **kwargs)
        recorded = outputs.hidden_states
        if recorded is not None:  # only the asked for ones of them, if indices were given
            recorded = tuple(None if states is None else layout.base_frames(states) for states in recorded)
        return ConformerModelOutput(
            last_hidden_state=layout.base_frames(outputs.last_hidden_state),
            attention_mask=None if frame_mask is None else frame_mask.long(),
            hidden_states=recorded,
            attentions=outputs.attentions,
        )

    @capture_outputs
    def record_layers(self, hidden_states: torch.Tensor, **kwargs: Any) -> BaseModelOutput:
        """Call `run_layers`, and record the hidden states and attentions that `kwargs` or the config ask for."""
        return BaseModelOutput(last_hidden_state=self.run_layers(hidden_states, **kwargs))

    def run_layers(
        self,
        hidden_states: torch.Tensor,
        frame_mask: torch.Tensor | None = None,
        start: int = 0,
        stop: int | None = None,
        layout: Layout | None = None,
        block_outputs: dict[int, torch.Tensor] | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Run blocks `start` to `stop` (not included): (B, L, D) -> (B, L, D).

        Args:
            hidden_states: frames in the order of the layout.
            frame_mask: (B, T) bool, of whole utterances; not with a layout, which has its own.
            layout: whole utterances, if absent.
            block_outputs: gets the output of every block that was run, (B, L, D), by its number, from 1.
        """
        layout = self.whole_layout(hidden_states, frame_mask) if layout is None else layout
        attention_mask = self.make_attention_mask(hidden_states, layout)
        position_embeddings = self.rotary(layout.positions(hidden_states.device))
        for number, layer in enumerate(self.layers[start:stop], start + 1):
            output = layer(hidden_states, attention_mask, position_embeddings, layout, **kwargs)
            hidden_states = self.skip_at_random(output, hidden_states)
            if block_outputs is not None:
                block_outputs[number] = hidden_states
        return hidden_states

    def make_attention_mask(self, hidden_states: torch.Tensor, layout: Layout) -> Any:
        """Make the mask of the chosen attention implementation, or `None` where it needs none."""
        if not layout.dense:
            return None
        return create_bidirectional_mask(
            config=self.config,
            inputs_embeds=hidden_states,
            attention_mask=layout.frame_mask,
            and_mask_function=layout.mask_function(),
        )

    def skip_at_random(self, output: torch.Tensor, skipped: torch.Tensor) -> torch.Tensor:
        """Apply LayerDrop. The block is computed either way, because a process that skipped it alone would leave the
        others waiting for its gradients.
        """
        if not self.training or self.config.layerdrop == 0:
            return output
        return torch.where(torch.rand((), device=output.device) < self.config.layerdrop, skipped, output)
