"""The encoder for X-ARES and the upstream for s3prl, against what these ask for; with the packages where they are."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from families import FAMILIES
from helpers import speech_like

from hf_speech_ssl import SpeechSSLFeatureExtractor

EXAMPLES = Path(__file__).parents[1] / "examples"
EXTRACTOR = SpeechSSLFeatureExtractor(mean=[6.0] * 80, variance=[2.0] * 80)


@pytest.fixture(params=FAMILIES)
def checkpoint(request, tmp_path, monkeypatch) -> str:
    FAMILIES[request.param].build("pretraining").save_pretrained(tmp_path)
    EXTRACTOR.save_pretrained(tmp_path)
    monkeypatch.setenv("HF_SPEECH_SSL_MODEL", str(tmp_path))
    monkeypatch.syspath_prepend(EXAMPLES)
    for module in ("xares_encoder", "s3prl_upstream"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    return str(tmp_path)


@torch.no_grad()
def test_xares_encoder(checkpoint: str, monkeypatch):
    import xares_encoder

    assert [name for name in dir(xares_encoder) if name.endswith("Encoder")] == ["HFSpeechSSLEncoder"]
    audio = torch.from_numpy(np.stack([speech_like(2.0, seed) for seed in (0, 1)]))
    encoder = xares_encoder.HFSpeechSSLEncoder()
    frames = encoder(audio)
    assert encoder.sampling_rate == 16_000 and frames.shape[2] == encoder.output_dim == 32
    assert frames.shape[1] == 2000 // encoder.hop_size_in_ms - 1
    inputs = EXTRACTOR(audio, sampling_rate=16_000, return_tensors="pt")
    states = encoder.model(**inputs, output_hidden_states=True).hidden_states
    torch.testing.assert_close(frames, states[-1], atol=1e-5, rtol=1e-4)
    assert list(encoder.parameters())  # what `.to(device)` moves
    monkeypatch.setenv("HF_SPEECH_SSL_LAYERS", "1 2")
    torch.testing.assert_close(
        xares_encoder.HFSpeechSSLEncoder()(audio[0]), (states[1] + states[2])[:1] / 2, atol=1e-5, rtol=1e-4
    )
    checker = pytest.importorskip("xares.audio_encoder_checker")
    assert checker.check_audio_encoder(encoder)


@torch.no_grad()
def test_s3prl_upstream(checkpoint: str):
    import s3prl_upstream

    upstream = s3prl_upstream.UpstreamExpert(checkpoint).eval()
    hop = upstream.get_downsample_rates("hidden_states")
    assert hop == upstream.model.config.inputs_to_logits_ratio
    waves = [torch.from_numpy(speech_like(seconds, 3)) for seconds in (1.0, 0.613)]
    states = upstream(waves)["hidden_states"]
    assert len(states) == upstream.model.config.num_hidden_layers + 1
    for row, wave in enumerate(waves):
        frames = -(-len(wave) // hop)
        assert states[-1].shape[1] >= frames
        for layer, alone in zip(states, upstream([wave])["hidden_states"], strict=True):
            assert alone.shape == (1, frames, 32)  # one for every begun hop
            torch.testing.assert_close(layer[row, :frames], alone[0], atol=1e-5, rtol=1e-4)
    hub = pytest.importorskip("s3prl.hub")
    from s3prl.nn import Featurizer, S3PRLUpstream

    hub.hf_speech_ssl = s3prl_upstream.UpstreamExpert
    model = S3PRLUpstream("hf_speech_ssl", path_or_url=checkpoint).eval()
    lengths = torch.tensor([len(wave) for wave in waves])
    padded = torch.nn.utils.rnn.pad_sequence(waves, True)
    layers, counts = model(padded, lengths)
    assert counts[0].tolist() == [-(-len(wave) // hop) for wave in waves]
    torch.testing.assert_close(layers[-1], states[-1], atol=1e-5, rtol=1e-4)
    averaged, _ = Featurizer(model)(layers, counts)
    torch.testing.assert_close(averaged, torch.stack(states).mean(0), atol=1e-4, rtol=1e-3)
