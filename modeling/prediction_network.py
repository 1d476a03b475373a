"""The prediction network of a transducer: tokens so far -> a state that says what may come next.

A causal Transformer (Zhang et al., arXiv 2002.02562), or an LSTM (Graves, arXiv 1211.3711). Whole texts go through it
at once in training; in decoding every hypothesis has a state of its own, and a step takes any hypotheses together.

Shape letters: B batch, U tokens, P width, J joint width, L layers, H heads, d head dimension, W attention window,
S remembered tokens, n hypotheses.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from transformers.activations import ACT2FN

from .configuration_conformer import ConformerConfig
from .modeling_conformer import RotaryEmbedding, rotate


@dataclass(frozen=True)
class PredictionState:
    """What the prediction network remembers of one hypothesis. It never changes, so that hypotheses can share it.

    Attributes:
        memory: keys and values (L, H, S, d) of the last tokens, or hidden and cell state (L, P) of an LSTM.
        position: tokens so far.
        output: (J,), what the joint network takes.
    """

    memory: tuple[torch.Tensor, torch.Tensor]
    position: int
    output: torch.Tensor


class PredictionLayer(nn.Module):
    """A causal pre-norm Transformer layer with rotary positions: (B, U, P) -> (B, U, P)."""

    def __init__(self, config: ConformerConfig):
        super().__init__()
        width, eps = config.decoder_hidden_size, config.layer_norm_eps
        self.heads = config.decoder_attention_heads
        self.attention_norm = nn.LayerNorm(width, eps=eps)
        self.qkv_proj = nn.Linear(width, 3 * width)
        self.out_proj = nn.Linear(width, width)
        self.feed_forward_norm = nn.LayerNorm(width, eps=eps)
        self.up_proj = nn.Linear(width, config.decoder_intermediate_size)
        self.down_proj = nn.Linear(config.decoder_intermediate_size, width)
        self.activation = ACT2FN[config.hidden_act]
        self.dropout = config.hidden_dropout

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        past: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Run the layer.

        Args:
            attention_mask: bool, true where a token (second to last dimension) sees another; `None` if all do.
            position_embeddings: of the tokens.
            past: keys and values (B, H, S, d) of the tokens before.

        Returns:
            The output, and keys and values of the past and these tokens.
        """
        batch, length, width = hidden_states.shape
        states = self.qkv_proj(self.attention_norm(hidden_states)).view(batch, length, 3 * self.heads, -1)
        query, key = rotate(states[:, :, : 2 * self.heads], *position_embeddings).split(self.heads, dim=2)
        value = states[:, :, 2 * self.heads :]
        query, key, value = (states.transpose(1, 2) for states in (query, key, value))
        if past is not None:
            key, value = torch.cat([past[0], key], dim=2), torch.cat([past[1], value], dim=2)
        attended = F.scaled_dot_product_attention(query, key, value, attention_mask)
        attended = self.out_proj(attended.transpose(1, 2).reshape(batch, length, width))
        hidden_states = hidden_states + F.dropout(attended, self.dropout, self.training)
        fed = self.down_proj(self.activation(self.up_proj(self.feed_forward_norm(hidden_states))))
        return hidden_states + F.dropout(fed, self.dropout, self.training), key, value


class PredictionNetwork(nn.Module):
    """Embedding, causal layers and the projection to the joint width. The blank stands before every text."""

    def __init__(self, config: ConformerConfig):
        super().__init__()
        width, layers = config.decoder_hidden_size, config.num_decoder_layers
        self.blank, self.window, self.dropout = (
            config.pad_token_id,
            config.decoder_attention_window,
            config.hidden_dropout,
        )
        self.num_heads = config.decoder_attention_heads
        self.embedding = nn.Embedding(config.vocab_size, width)
        self.is_lstm = config.decoder_kind == "lstm"
        if self.is_lstm:
            self.lstm = nn.LSTM(width, width, layers, batch_first=True)
        else:
            self.rotary = RotaryEmbedding(width // config.decoder_attention_heads, config.rope_theta)
            self.layers = nn.ModuleList([PredictionLayer(config) for _ in range(layers)])
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.decoder_projector = nn.Linear(width, config.joint_hidden_size)

    def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
        """The output behind every token of texts that begin with the blank: (B, U) -> (B, U, J)."""
        hidden_states = F.dropout(self.embedding(token_ids), self.dropout, self.training)
        if self.is_lstm:
            hidden_states, _ = self.lstm(hidden_states)
        else:
            place = torch.arange(token_ids.shape[1], device=token_ids.device)
            distance = place[:, None] - place
            mask = (distance >= 0) & (distance < self.window)
            for layer in self.layers:
                hidden_states, _, _ = layer(hidden_states, mask, self.rotary(place))
        return self.decoder_projector(self.norm(hidden_states))

    def start(self) -> PredictionState:
        """The state of a hypothesis without tokens."""
        width, layers = self.embedding.embedding_dim, 1
        if self.is_lstm:
            layers = self.lstm.num_layers
            nothing = self.embedding.weight.new_zeros(layers, width)
        else:
            heads = self.num_heads
            nothing = self.embedding.weight.new_zeros(len(self.layers), heads, 0, width // heads)
        return self.advance([PredictionState((nothing, nothing), 0, nothing.new_zeros(0))], [self.blank])[0]

    def advance(self, states: Sequence[PredictionState], tokens: Sequence[int]) -> list[PredictionState]:
        """Give every hypothesis its next token: n states and n token ids -> n states."""
        ids = torch.tensor(tokens, device=self.embedding.weight.device)
        hidden_states = self.embedding(ids)[:, None]  # (n, 1, P)
        if self.is_lstm:
            past = tuple(torch.stack([state.memory[i] for state in states], dim=1) for i in range(2))  # (L, n, P)
            hidden_states, (hidden, cell) = self.lstm(hidden_states, past)
            memories = list(zip(hidden.unbind(1), cell.unbind(1), strict=True))
        else:
            hidden_states, memories = self._attend(hidden_states, states)
        outputs = self.decoder_projector(self.norm(hidden_states))[:, 0]
        return [
            PredictionState(memory, state.position + 1, output)
            for memory, state, output in zip(memories, states, outputs.unbind(), strict=True)
        ]

    def _attend(
        self, hidden_states: torch.Tensor, states: Sequence[PredictionState]
    ) -> tuple[torch.Tensor, list[tuple[torch.Tensor, torch.Tensor]]]:
        """Run the Transformer layers on one token of each hypothesis, (n, 1, P)."""
        device = hidden_states.device
        lengths = [state.memory[0].shape[2] for state in states]
        longest, mask = max(lengths), None
        if min(lengths) < longest:  # shorter ones have padding in front
            seen = torch.arange(longest + 1, device=device) >= longest - torch.tensor(lengths, device=device)[:, None]
            mask = seen[:, None, None]
        past = [
            torch.stack([F.pad(one.memory[i], (0, 0, longest - one.memory[i].shape[2], 0)) for one in states])
            for i in range(2)
        ]  # (n, L, H, S, d)
        rotation = self.rotary(torch.tensor([[state.position] for state in states], device=device))
        memories = []
        for index, layer in enumerate(self.layers):
            hidden_states, key, value = layer(hidden_states, mask, rotation, (past[0][:, index], past[1][:, index]))
            memories.append((key, value))
        keys, values = (torch.stack([memory[i] for memory in memories], dim=1) for i in range(2))
        kept = []
        for row, length in enumerate(lengths):
            begin = longest - length + max(0, length + 2 - self.window)  # the next token sees window - 1 before it
            kept.append((keys[row, :, :, begin:].clone(), values[row, :, :, begin:].clone()))
        return hidden_states, kept
