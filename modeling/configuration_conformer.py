"""SpeechSSLConfig: what every configuration has; ConformerConfig: the sizes of the encoder that all families share."""

import dataclasses
import difflib
from typing import Any, ClassVar, TypeVar

from huggingface_hub.dataclasses import strict
from transformers import GenerationConfig, PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.utils import logging

logger = logging.get_logger(__name__)

SAMPLING_RATE = 16_000  # Hz
HOP_LENGTH = 160  # samples between two feature frames: 10 ms

# Keywords that the constructor of transformers' configurations takes beside their declared fields.
_CONSTRUCTOR_KEYWORDS = frozenset(
    """
    attn_implementation auto_map experts_implementation model_type name_or_path num_labels output_attentions
    per_layer_config quantization_config torch_dtype
    """.split()
)
_Config = TypeVar("_Config", bound="SpeechSSLConfig")
_SIZES = """
    num_mel_bins frame_stacking hidden_size num_hidden_layers num_attention_heads intermediate_size conv_kernel_size
    vocab_size mask_time_length mask_feature_length decoder_hidden_size num_decoder_layers decoder_attention_heads
    decoder_intermediate_size decoder_attention_window joint_hidden_size max_symbols_per_step loss_chunk_frames
    classifier_proj_size
    """.split()


@strict
class SpeechSSLConfig(PreTrainedConfig):
    r"""
    Base of all configurations of the package: the frames that go in, presets, and the class table for remote code.

    A keyword that is no field is refused by name, because a misspelt field would otherwise build a model of the
    default size without a word. A saved configuration may hold keys of other tools and of other versions: they are
    kept as attributes and saved again, and one warning names them.

    Args:
        num_mel_bins (`int`, defaults to 80): Features per 10 ms frame.
        frame_stacking (`int`, defaults to 2): Consecutive 10 ms frames joined into one frame of the model.
        initializer_range (`float`, defaults to 0.02): Standard deviation of the initial weights.
    """

    num_mel_bins: int = 80
    frame_stacking: int = 2
    initializer_range: float = 0.02

    # Every checkpoint names the classes of the whole family, so that a pretraining checkpoint also answers to
    # AutoModel and AutoModelForCTC where this package is not installed.
    _remote_classes: ClassVar[dict[str, str]] = {}
    _presets: ClassVar[dict[str, dict[str, Any]]] = {}

    def __post_init__(self, **kwargs: Any) -> None:
        # Every saved configuration names its `model_type`, which nobody types: so does `config.to_dict()`, and so does
        # a configuration inside another one's file.
        saved = kwargs.pop("_saved", False) or "model_type" in kwargs
        unknown = [key for key in kwargs if not key.startswith("_") and key not in _CONSTRUCTOR_KEYWORDS]
        if saved:
            # transformers drops these, which have a file of their own.
            generation = GenerationConfig._get_default_generation_params()
            unknown = [key for key in unknown if key not in generation]
            # A property or a method must not be replaced by what a file says.
            taken = [key for key in unknown if hasattr(type(self), key)]
            kwargs = {key: value for key, value in kwargs.items() if key not in taken}
            self._warn_of_unknown_keys([key for key in unknown if key not in taken], taken)
        elif unknown:
            fields = ", ".join(self._field_names())
            raise ValueError(
                f"{type(self).__name__} has no field {self._with_near_misses(unknown)}. Correct the name or remove "
                f"it; the fields are: {fields}."
            )
        kwargs.pop("auto_map", None)
        super().__post_init__(**kwargs)
        if self._remote_classes:
            self.auto_map = dict(self._remote_classes)

    @classmethod
    def from_dict(cls: type[_Config], config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """The configuration that was saved as `config_dict`; see `PreTrainedConfig.from_dict`.

        Keys that are no field are kept as attributes, and one warning names them.
        """
        return super().from_dict({**config_dict, "_saved": True}, **kwargs)

    def _warn_of_unknown_keys(self, kept: list[str], taken: list[str]) -> None:
        """Warn once about keys of a saved configuration that are no fields."""
        name = type(self).__name__
        if kept:
            logger.warning_once(
                f"The saved {name} holds keys that are no fields of it: {self._with_near_misses(kept)}. They are kept "
                f"as attributes and change nothing in the model."
            )
        if taken:
            logger.warning_once(
                f"The saved {name} holds {', '.join(map(repr, taken))}, which {name} works out by itself. The saved "
                f"values are ignored."
            )

    @classmethod
    def _field_names(cls) -> list[str]:
        return sorted(field.name for field in dataclasses.fields(cls))

    @classmethod
    def _with_near_misses(cls, keys: list[str]) -> str:
        """The keys in quotes, each with the field whose name is nearest, if one is near."""
        hints = []
        for key in keys:
            near = difflib.get_close_matches(key, cls._field_names(), n=1)
            hints.append(f"'{key}'" + (f" (did you mean '{near[0]}'?)" if near else ""))
        return ", ".join(hints)

    @classmethod
    def from_preset(cls: type[_Config], name: str, **overrides: Any) -> _Config:
        """Build the published configuration `name`, with `overrides` applied.

        Raises:
            ValueError: no such preset, or an override that is no field.
        """
        if name not in cls._presets:
            raise ValueError(f"There is no preset '{name}'; the presets are {', '.join(cls._presets)}.")
        return cls(**{**cls._presets[name], **overrides})

    @property
    def stacked_size(self) -> int:
        """Features per frame of the model before the first projection: mel bins times stacked frames."""
        return self.num_mel_bins * self.frame_stacking

    @property
    def inputs_to_logits_ratio(self) -> int:
        """Audio samples per output frame, which the ASR pipeline needs for chunks and time stamps."""
        return HOP_LENGTH * self.frame_stacking

    @property
    def frame_rate(self) -> float:
        """Frames of the model per second of audio."""
        return SAMPLING_RATE / self.inputs_to_logits_ratio


@strict
class ConformerConfig(SpeechSSLConfig):
    r"""
    Sizes of the Conformer encoder (Gulati et al., arXiv 2005.08100; rotary positions instead of relative ones) and of
    its heads. The families add what only they need; all configs are flat.

    Args:
        hidden_size (`int`, defaults to 512): Width of the blocks.
        num_hidden_layers (`int`, defaults to 12): Number of Conformer blocks.
        num_attention_heads (`int`, defaults to 8): Heads per block; `hidden_size / num_attention_heads` must be even.
        intermediate_size (`int`, defaults to 2048): Inner width of both feed-forward modules.
        conv_kernel_size (`int`, defaults to 31): Depthwise kernel in encoder frames; odd.
        attention_window (`int`, *optional*): Width of the local attention window in encoder frames: a frame sees the
            frames at most `attention_window // 2` away on either side. `None` sees the whole utterance.
        hidden_act (`str`, defaults to `"silu"`): Activation of the feed-forward and convolution modules.
        hidden_dropout (`float`, defaults to 0.1): Dropout of every module's output, before it joins the residual.
        attention_dropout (`float`, defaults to 0.0): Dropout of the attention weights. Above zero the CPU leaves its
            fused attention kernel, at about four times the cost.
        activation_dropout (`float`, defaults to 0.0): Dropout inside the feed-forward modules.
        layerdrop (`float`, defaults to 0.0): Probability that a training step skips a block.
        layer_norm_eps (`float`, defaults to 1e-5): Epsilon of the layer norms.
        rope_theta (`float`, defaults to 10000.0): Base of the rotary wavelengths.
        vocab_size (`int`, defaults to 32): Outputs of the CTC or transducer head.
        pad_token_id (`int`, defaults to 0): Padding token of the tokenizer, and blank of CTC and of the transducer.
        ctc_loss_reduction (`str`, defaults to `"mean"`): `"mean"` (over utterances, each divided by its number of
            labels) or `"sum"`; of the transducer's loss too.
        ctc_zero_infinity (`bool`, defaults to `True`): Whether utterances with more labels than frames count as zero
            instead of infinity.
        mask_time_prob (`float`, defaults to 0.05): SpecAugment in fine-tuning: share of the 10 ms frames that would be
            masked if spans never overlapped; 0 switches it off.
        mask_time_length (`int`, defaults to 10): Length of a masked time span in 10 ms frames.
        mask_time_min_masks (`int`, defaults to 1): Least number of time spans per utterance.
        mask_feature_prob (`float`, defaults to 0.1): The same along the mel bins.
        mask_feature_length (`int`, defaults to 8): Width of a masked band in mel bins.
        mask_feature_min_masks (`int`, defaults to 0): Least number of masked bands per utterance.
        num_time_masks (`int`, defaults to 0): SpecAugment with drawn lengths: time masks of each utterance, beside
            those of `mask_time_prob`.
        max_time_mask_share (`float`, defaults to 0.05): The longest of them, as a share of the utterance.
        num_feature_masks (`int`, defaults to 0): The same along the mel bins.
        max_feature_mask_width (`int`, defaults to 27): The widest of them, in mel bins.
        final_dropout (`float`, defaults to 0.0): Dropout of the encoder output before the head.
        decoder_kind (`str`, defaults to `"transformer"`): Prediction network of the transducer: causal
            `"transformer"`, or `"lstm"`.
        decoder_hidden_size (`int`, defaults to 512): Its width.
        num_decoder_layers (`int`, defaults to 1): Its layers; the paper of Chunk SSL has 1 for recognition and 2 for
            translation.
        decoder_attention_heads (`int`, defaults to 8): Heads of its attention.
        decoder_intermediate_size (`int`, defaults to 2048): Inner width of its feed-forward modules.
        decoder_attention_window (`int`, defaults to 64): Tokens that one of its tokens sees, itself included, so that
            the state of a stream does not grow with its text. The papers have no bound.
        joint_hidden_size (`int`, defaults to 1024): Width of the joint network.
        joint_act (`str`, defaults to `"tanh"`): Its activation.
        max_symbols_per_step (`int`, defaults to 10): Tokens that decoding emits at one frame, at most.
        loss_chunk_frames (`int`, defaults to 16): Encoder frames whose joint logits are in memory at once in training.
        ctc_loss_weight (`float`, defaults to 0.0): Weight of a CTC loss beside the transducer's; above 0 the model has
            a CTC head too, and loads as a CTC model.
        use_weighted_layer_sum (`bool`, defaults to `False`): Whether the classification heads take a learned average
            of what enters the first block and of all blocks' outputs, instead of the last block's output.
        classifier_proj_size (`int`, defaults to 256): Width of the projection before the mean over an utterance's
            frames, in classification of utterances.
    """

    hidden_size: int = 512
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    intermediate_size: int = 2048
    conv_kernel_size: int = 31
    attention_window: int | None = None
    hidden_act: str = "silu"
    hidden_dropout: float | int = 0.1
    attention_dropout: float | int = 0.0
    activation_dropout: float | int = 0.0
    layerdrop: float | int = 0.0
    layer_norm_eps: float = 1e-5
    rope_theta: float | int = 10000.0
    vocab_size: int = 32
    pad_token_id: int = 0
    ctc_loss_reduction: str = "mean"
    ctc_zero_infinity: bool = True
    mask_time_prob: float | int = 0.05
    mask_time_length: int = 10
    mask_time_min_masks: int = 1
    mask_feature_prob: float | int = 0.1
    mask_feature_length: int = 8
    mask_feature_min_masks: int = 0
    num_time_masks: int = 0
    max_time_mask_share: float | int = 0.05
    num_feature_masks: int = 0
    max_feature_mask_width: int = 27
    final_dropout: float | int = 0.0
    decoder_kind: str = "transformer"
    decoder_hidden_size: int = 512
    num_decoder_layers: int = 1
    decoder_attention_heads: int = 8
    decoder_intermediate_size: int = 2048
    decoder_attention_window: int = 64
    joint_hidden_size: int = 1024
    joint_act: str = "tanh"
    max_symbols_per_step: int = 10
    loss_chunk_frames: int = 16
    ctc_loss_weight: float | int = 0.0
    use_weighted_layer_sum: bool = False
    classifier_proj_size: int = 256

    @property
    def head_dim(self) -> int:
        """Features per attention head."""
        return self.hidden_size // self.num_attention_heads

    def validate_sizes(self) -> None:
        """Refuse sizes that no encoder can be built from."""
        for name in _SIZES:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.hidden_size % self.num_attention_heads or self.head_dim % 2:
            raise ValueError(
                f"hidden_size / num_attention_heads must be an even whole number (rotary positions turn pairs of "
                f"features), got {self.hidden_size} / {self.num_attention_heads}."
            )
        if self.conv_kernel_size % 2 == 0:
            raise ValueError(f"conv_kernel_size must be odd so that it has a center, got {self.conv_kernel_size}.")
        if self.hidden_act not in ACT2FN:
            raise ValueError(f'hidden_act must be one of {", ".join(sorted(ACT2FN))}, got "{self.hidden_act}".')
        if self.attention_window is not None and self.attention_window < 1:
            raise ValueError(f"attention_window must be at least 1 frame or None, got {self.attention_window}.")

    def validate_probabilities(self) -> None:
        """Refuse probabilities outside [0, 1)."""
        for name in self._field_names():
            value = getattr(self, name)
            if name.endswith(("dropout", "_prob", "layerdrop")) and not 0 <= value < 1:
                raise ValueError(f"{name} must lie in [0, 1), got {value}.")

    def validate_spec_augment(self) -> None:
        """Refuse masks of drawn lengths that cannot be drawn."""
        for name in ("num_time_masks", "num_feature_masks", "max_feature_mask_width"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}.")
        if not 0 <= self.max_time_mask_share <= 1:
            raise ValueError(f"max_time_mask_share must lie in [0, 1], got {self.max_time_mask_share}.")

    def validate_transducer(self) -> None:
        """Refuse a transducer head that cannot be built."""
        if self.decoder_kind not in ("transformer", "lstm"):
            raise ValueError(f'decoder_kind must be "transformer" or "lstm", got "{self.decoder_kind}".')
        if self.decoder_kind == "transformer" and self.decoder_hidden_size % (2 * self.decoder_attention_heads):
            raise ValueError(
                f"decoder_hidden_size / decoder_attention_heads must be an even whole number, got "
                f"{self.decoder_hidden_size} / {self.decoder_attention_heads}."
            )
        if self.joint_act not in ACT2FN:
            raise ValueError(f'joint_act must be one of {", ".join(sorted(ACT2FN))}, got "{self.joint_act}".')
        if self.ctc_loss_weight < 0:
            raise ValueError(f"ctc_loss_weight must not be negative, got {self.ctc_loss_weight}.")

    def validate_ctc(self) -> None:
        """Refuse a CTC set-up that the loss would not take."""
        if self.ctc_loss_reduction not in ("mean", "sum"):
            raise ValueError(f'ctc_loss_reduction must be "mean" or "sum", got "{self.ctc_loss_reduction}".')
        if not 0 <= self.pad_token_id < self.vocab_size:
            raise ValueError(
                f"pad_token_id is the blank and must lie in [0, vocab_size), got {self.pad_token_id} of "
                f"{self.vocab_size}."
            )
