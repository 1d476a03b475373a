"""An upstream for s3prl (0.4.18), for SUPERB's tasks: all layers of an encoder of this package.

Copy this file as `expert.py` over that of s3prl's `upstream/example`, which is made for it, or register it:

    import s3prl.hub
    from s3prl.nn import S3PRLUpstream
    from s3prl_upstream import UpstreamExpert

    s3prl.hub.hf_speech_ssl = UpstreamExpert
    upstream = S3PRLUpstream("hf_speech_ssl", path_or_url="outputs/birq")
"""

from typing import Any

import numpy as np
import torch
from torch import nn

from hf_speech_ssl.data.audio import SAMPLING_RATE
from hf_speech_ssl.modeling.configuration_conformer import HOP_LENGTH
from hf_speech_ssl.modeling.feature_extraction_speech_ssl import FRAME_LENGTH
from hf_speech_ssl.probing.encoders import extract_features, load_encoder


class UpstreamExpert(nn.Module):
    """A pretraining, base or fine-tuned checkpoint of BiRQ or Chunk SSL.

    Args:
        ckpt: its folder or Hub id.
        model_config: not used; s3prl passes it.
    """

    def __init__(self, ckpt: str, model_config: str | None = None, **kwargs: Any) -> None:
        super().__init__()
        loaded = load_encoder(ckpt, device="cpu")
        if not hasattr(loaded.model, "stack_frames"):
            raise ValueError(f"{ckpt} is no encoder of BiRQ or Chunk SSL; s3prl has upstreams of its own for others.")
        self.model, self.extractor = loaded.model, loaded.extractor

    def get_downsample_rates(self, key: str | None = None) -> int:
        """Samples from one frame to the next."""
        return int(SAMPLING_RATE / self.model.config.frame_rate)

    def forward(self, wavs: list[torch.Tensor]) -> dict[str, Any]:
        """Encode waveforms (samples,) at 16 kHz: `hidden_states`, (batch, frames, hidden_size) each.

        The first is what enters the first block. s3prl counts a frame for every begun hop, so up to a hop and a window
        of silence is added at the end of an utterance. Frames behind those are padding.
        """
        hop = self.get_downsample_rates()
        lengths = [-(-len(wav) // hop) * hop + FRAME_LENGTH - HOP_LENGTH for wav in wavs]
        waveforms = [
            np.pad(wav.detach().cpu().float().numpy(), (0, length - len(wav)))
            for wav, length in zip(wavs, lengths, strict=True)
        ]
        features, mask = extract_features(self.extractor, waveforms, wavs[0].device)
        return {"hidden_states": self.model(features, attention_mask=mask, output_hidden_states=True).hidden_states}
