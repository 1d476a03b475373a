"""The transducer head that all families share: prediction network, joint network, loss, greedy decoding.

Names and outputs follow transformers' ParakeetForRNNT. Shape letters: B batch, F feature frames (10 ms), T encoder
frames, D hidden size, J joint width, U tokens of the longest text, S steps of a greedy path, V vocabulary.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import ModelOutput, can_return_tuple

from .cache import ConformerCache
from .configuration_conformer import ConformerConfig
from .modeling_ctc import ConformerFineTuningModel
from .prediction_network import PredictionNetwork
from .transducer_loss import transducer_loss
from .transducer_search import GreedyPath, greedy_search


@dataclass
class ConformerForRNNTOutput(BaseModelOutputWithPooling):
    """Output of a transducer.

    Args:
        loss: 0-dim, where labels were given: `rnnt_loss`, and `ctc_loss` times `config.ctc_loss_weight`.
        rnnt_loss, ctc_loss: 0-dim, the two parts; no CTC loss where its weight is 0.
        logits: without labels. With `decoder_input_ids` those of the joint network, (B, T, U, V); else those of the
            greedy path, (B, S, V), whose best tokens are the path: joining repeats and dropping blanks gives the text.
        last_hidden_state: (B, T, D) of the encoder.
        pooler_output: (B, T, J), the encoder's frames as the joint network and a decoder take them.
        attention_mask: (B, T) int64, 1 where an encoder frame is real; `None` if none was given.
        hidden_states, attentions, cache: as in the encoder's output.
    """

    loss: torch.Tensor | None = None
    rnnt_loss: torch.Tensor | None = None
    ctc_loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    attention_mask: torch.Tensor | None = None
    cache: ConformerCache | None = None

    @property
    def past_key_values(self) -> ConformerCache | None:
        """The cache, by its older name, as in the encoder's output."""
        return self.cache


@dataclass
class RNNTGenerateOutput(ModelOutput):
    """Greedy paths, as `ParakeetForRNNT.generate` returns them.

    Args:
        sequences: (B, S) token ids with blanks in between, the blank first; the blank where a path has ended.
            `tokenizer.decode(ids, group_tokens=False)` drops the blanks.
        durations: (B, S) encoder frames that each step moves on; their cumulative sum up to a step, itself excluded,
            is the step's frame.
    """

    sequences: torch.Tensor | None = None
    durations: torch.Tensor | None = None


class JointNetwork(nn.Module):
    """The rest of the joint network: the sum of a frame's and a prefix's projections, (..., J) -> logits (..., V)."""

    def __init__(self, config: ConformerConfig):
        super().__init__()
        self.activation = ACT2FN[config.joint_act]
        self.head = nn.Linear(config.joint_hidden_size, config.vocab_size)

    def forward(self, joint_states: torch.Tensor) -> torch.Tensor:
        return self.head(self.activation(joint_states))


def _frames_of(outputs: ConformerForRNNTOutput) -> torch.Tensor:
    """The encoder's frames as the joint network takes them, (B, T, J)."""
    assert outputs.pooler_output is not None
    return outputs.pooler_output


class ConformerForRNNT(ConformerFineTuningModel):
    """An encoder with a transducer head; each family says which encoder. The blank is `config.pad_token_id`."""

    _can_compile_fullgraph = False  # how many steps a path has, and how many points a lattice, depends on values

    def __init__(self, config: ConformerConfig):
        super().__init__(config)
        self.encoder = self.encoder_class(config)
        self.encoder_projector = nn.Linear(config.hidden_size, config.joint_hidden_size)
        self.decoder = PredictionNetwork(config)
        self.joint = JointNetwork(config)
        if config.ctc_loss_weight:
            self.ctc_head = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self.joint.head:
            # The blank begins with a probability of 0.9, about its share of a path: the loss starts lower, and
            # decoding an untrained model is not a burst of tokens at every frame.
            bias = torch.zeros_like(module.bias)
            bias[self.config.pad_token_id] = math.log(9 * max(1, self.config.vocab_size - 1))
            init.copy_(module.bias, bias)

    @can_return_tuple
    def get_audio_features(
        self, input_features: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> ConformerForRNNTOutput:
        """Encode a batch; `pooler_output` (B, T, J) is what a decoder takes. Arguments as in the encoder's forward."""
        outputs = self.encoder(input_features, attention_mask=attention_mask, return_dict=True, **kwargs)
        hidden_states = F.dropout(outputs.last_hidden_state, self.config.final_dropout, self.training)
        return ConformerForRNNTOutput(
            last_hidden_state=hidden_states,
            pooler_output=self.encoder_projector(hidden_states),
            attention_mask=outputs.attention_mask,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            cache=outputs.cache,
        )

    @can_return_tuple
    def forward(
        self,
        input_features: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        decoder_input_ids: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> ConformerForRNNTOutput:
        """Compute the loss where labels are given, and logits where they are not.

        Args:
            input_features: (B, F, num_mel_bins). In training, SpecAugment masks parts of them.
            attention_mask: (B, F), non-zero where a frame is real.
            labels: (B, U) token ids, padded with -100 (or any negative number) or with the blank, which no text holds.
            decoder_input_ids: (B, U) texts with the blank in front, for the logits of all prefixes.

        Returns:
            [`ConformerForRNNTOutput`]; with labels it has no logits, because those of the whole lattice never exist.

        Raises:
            ValueError: a label is not below `vocab_size`.
        """
        if self.training:
            input_features = self.spec_augment(input_features, attention_mask)
        outputs: ConformerForRNNTOutput = self.get_audio_features(
            input_features, attention_mask, return_dict=True, **kwargs
        )
        frames = _frames_of(outputs)
        if labels is not None:
            for name, value in self.losses(outputs, labels).items():
                outputs[name] = value
        elif decoder_input_ids is not None:
            outputs["logits"] = self.joint(frames[:, :, None] + self.decoder(decoder_input_ids)[:, None])
        else:
            outputs["logits"] = self._path_logits(frames, self._frame_lengths(outputs).tolist())
        return outputs

    def losses(self, outputs: ConformerForRNNTOutput, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """The transducer loss, averaged or summed as the config says, the CTC loss beside it, and their sum."""
        config = self.config
        self.check_labels(labels)
        real = (labels >= 0) & (labels != config.pad_token_id)
        counts = real.sum(-1)
        first = (~real).long().argsort(dim=-1, stable=True)[:, : int(counts.max())]
        texts = labels.gather(1, first).masked_fill(~real.gather(1, first), 0)  # (B, U), real ones first
        lengths = self._frame_lengths(outputs)
        states = self.decoder(F.pad(texts, (1, 0), value=config.pad_token_id))
        losses = transducer_loss(
            _frames_of(outputs),
            states,
            self.joint,
            texts,
            lengths.clamp_min(1),
            counts,
            config.pad_token_id,
            config.loss_chunk_frames,
        )
        losses = losses.masked_fill(lengths == 0, 0.0)
        total = losses.sum() if config.ctc_loss_reduction == "sum" else (losses / counts.clamp_min(1)).mean()
        if not config.ctc_loss_weight:
            return {"loss": total, "rnnt_loss": total.detach()}
        frame_mask = None if outputs.attention_mask is None else outputs.attention_mask.bool()
        ctc = self.ctc_loss(self.ctc_head(outputs.last_hidden_state), frame_mask, labels)
        both = total + config.ctc_loss_weight * ctc
        return {"loss": both, "rnnt_loss": total.detach(), "ctc_loss": ctc.detach()}

    def _frame_lengths(self, outputs: ConformerForRNNTOutput) -> torch.Tensor:
        frames = _frames_of(outputs)
        if outputs.attention_mask is None:
            return torch.full(frames.shape[:1], frames.shape[1], device=frames.device)
        return outputs.attention_mask.sum(-1)

    @torch.no_grad()
    def generate(
        self, input_features: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> RNNTGenerateOutput:
        """Decode greedily, with at most `config.max_symbols_per_step` tokens at a frame.

        Beam search and language models are in `hf_speech_ssl.decoding`.
        """
        outputs = self.get_audio_features(input_features, attention_mask, return_dict=True, **kwargs)
        lengths = self._frame_lengths(outputs).tolist()
        paths = greedy_search(self, outputs.pooler_output, lengths, [self.decoder.start() for _ in lengths])
        steps = [path.steps(self.config.pad_token_id) for path in paths]
        tokens, durations = (
            nn.utils.rnn.pad_sequence(
                [torch.tensor([fill, *(step[i] for step in row)]) for row in steps], True, padding_value=fill
            )
            for i, fill in enumerate((self.config.pad_token_id, 0))
        )
        return RNNTGenerateOutput(sequences=tokens.to(self.device), durations=durations.to(self.device))

    @torch.no_grad()
    def _path_logits(self, frames: torch.Tensor, lengths: list[int]) -> torch.Tensor:
        """Logits (B, S, V) of the steps of the greedy paths; a certain blank stands between two tokens of a frame."""
        blank = frames.new_full((1, self.config.vocab_size), torch.finfo(frames.dtype).min)
        blank[:, self.config.pad_token_id] = 0
        rows = [GreedyPath.Logits(blank) for _ in lengths]
        greedy_search(self, frames, lengths, [self.decoder.start() for _ in lengths], rows)
        pieces = [torch.cat(row.pieces or [blank]) for row in rows]
        longest = max(map(len, pieces))
        return torch.stack([torch.cat([piece, blank.expand(longest - len(piece), -1)]) for piece in pieces])
