"""An encoder for X-ARES, the benchmark of audio encoders (xares 0.1.3): frames of one layer, or an average of layers.

    HF_SPEECH_SSL_MODEL=outputs/birq python -m xares.run examples/xares_encoder.py src/tasks/*.py

HF_SPEECH_SSL_LAYERS names the layers: "last" by default, "6", "4 5 6" or "all" for an average, as `hf-speech-ssl
features --layers` takes them. X-ARES pads the crops of a batch with silence and passes no lengths, so silence is what
the model hears there.
"""

import os

import numpy as np
import torch
from torch import nn

from hf_speech_ssl.data.audio import SAMPLING_RATE
from hf_speech_ssl.extraction.frames import FrameExtractor
from hf_speech_ssl.options import FrameOptions
from hf_speech_ssl.probing.encoders import load_encoder


class HFSpeechSSLEncoder(nn.Module):
    """Any checkpoint of this package, or another encoder of Transformers, with what X-ARES asks an encoder for.

    Attributes:
        sampling_rate: of the audio that it takes, Hz.
        output_dim: features of a frame.
        hop_size_in_ms: from one frame to the next.
    """

    def __init__(self) -> None:
        super().__init__()
        loaded = load_encoder(os.environ["HF_SPEECH_SSL_MODEL"])
        options = FrameOptions(layers=os.environ.get("HF_SPEECH_SSL_LAYERS", "last").split())
        self.frames = FrameExtractor(loaded, options)
        self.model = self.frames.encoder.model  # so that `.to(device)` moves it
        self.sampling_rate = SAMPLING_RATE
        self.output_dim = self.frames.num_features
        self.hop_size_in_ms = 1000 / self.frames.frame_rate

    def forward(self, audio: torch.Tensor) -> torch.Tensor:
        """Encode audio (batch, samples) or (samples,): (batch, frames, output_dim)."""
        waveforms = list(np.atleast_2d(audio.detach().cpu().float().numpy()))
        frames = [torch.from_numpy(one.values) for one in self.frames(waveforms)]
        return torch.stack(frames).to(audio.device)
