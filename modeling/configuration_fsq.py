"""FSQConfig: the sizes of the tokenizer that Chunk SSL's labels come from."""

import dataclasses
import math
from typing import Any

from huggingface_hub.dataclasses import strict

from .configuration_conformer import SpeechSSLConfig
from .finite_scalars import check_levels

# The tokenizer of chunkssl-base and -large (Tang and Tseng, arXiv 2509.15579), and that of chunkssl-tiny.
_PRESETS: dict[str, dict[str, Any]] = {
    "fsq-tiny": {"fsq_levels": [5, 5, 5, 3, 3], "fsq_hidden_size": 128, "fsq_num_hidden_layers": 4},
    "fsq-base": {},
}


@strict
class FSQConfig(SpeechSSLConfig):
    r"""
    Configuration of the finite-scalar-quantization tokenizer of Chunk SSL (Tang and Tseng, arXiv 2509.15579). The
    defaults are `fsq-base`, with a codebook of 6,834,375 entries. [`ChunkSSLConfig`] has the `fsq_` fields too: it
    holds the encoder of this model, frozen.

    Args:
        num_mel_bins (`int`, defaults to 80): Features per 10 ms frame.
        frame_stacking (`int`, defaults to 4): Consecutive 10 ms frames joined into one token (40 ms).
        fsq_levels (`list[int]`): Levels of each channel, at least 2; their product is the codebook size.
        fsq_hidden_size (`int`, defaults to 512): Width of encoder and decoder.
        fsq_num_hidden_layers (`int`, defaults to 12): Residual layers of the encoder, and of the decoder.
        initializer_range (`float`, defaults to 0.02): Standard deviation of the initial weights.
    """

    model_type = "speech_fsq"
    _remote_classes = {"AutoConfig": "configuration_fsq.FSQConfig", "AutoModel": "modeling_fsq.FSQModel"}
    _presets = _PRESETS

    frame_stacking: int = 4
    fsq_levels: list[int] = dataclasses.field(default_factory=lambda: [5] * 5 + [3] * 7)
    fsq_hidden_size: int = 512
    fsq_num_hidden_layers: int = 12

    @property
    def codebook_size(self) -> int:
        """Entries of the product codebook."""
        return math.prod(self.fsq_levels)

    def validate_tokenizer(self) -> None:
        """Refuse sizes that no tokenizer can be built from."""
        for name in ("num_mel_bins", "frame_stacking", "fsq_hidden_size", "fsq_num_hidden_layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        check_levels(self.fsq_levels)


FSQConfig.register_for_auto_class()
