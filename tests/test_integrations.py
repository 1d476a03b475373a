"""The encoder for X-ARES, the upstream for s3prl, the items for fastabx; with these packages where they are."""

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from families import FAMILIES
from helpers import speech_like

from hf_speech_ssl import SpeechSSLFeatureExtractor
from hf_speech_ssl.extraction.writing import ParquetWriter

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


def write_frames(file: Path) -> None:
    """Frames of two recordings as `hf-speech-ssl features` writes them, 40 ms each."""
    starts = (0.04 * np.arange(10)).astype(np.float32)
    times = {"start_s": starts, "end_s": starts + np.float32(0.04)}
    spoken = [("a", 0.0, 0.1), ("b c", 0.1, 0.2), ("d", 0.2, 0.21), ("a", 0.21, 0.4)]
    phones = [{"phone": phone, "start": start, "end": end} for phone, start, end in spoken]
    with ParquetWriter(file, {"phones": pa.array([phones]).type, "speaker_id": pa.string()}) as writer:
        for index in range(2):
            features = np.random.default_rng(index).standard_normal((10, 4)).astype(np.float32)
            columns = {"phones": phones, "speaker_id": f"speaker {index}"}
            writer.write(index, f"{index}.wav", columns, {"features": features, **times})


def test_items_of_fastabx(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(EXAMPLES)
    import abx

    write_frames(tmp_path / "test.parquet")
    seen = []

    def error(folder: Path, options: object) -> tuple[float, int]:
        seen.append(np.load(folder / "times" / "000001.npy"))
        return 0.25, 7

    monkeypatch.setattr(abx, "abx_error", error)
    for flags, items, left_out in (
        ([], ["0.0000 0.2100 bc a d", "0.1000 0.4000 d bc a"], 0),
        (["--any_context"], ["0.0000 0.1000 a SIL bc", "0.1000 0.2000 bc a d", "0.2100 0.4000 a d SIL"], 2),
    ):
        command = ["abx.py", str(tmp_path / "test.parquet"), "--items", str(tmp_path / "some.item"), *flags]
        monkeypatch.setattr(sys, "argv", command)
        abx.main()
        header, *lines = (tmp_path / "some.item").read_text().splitlines()
        assert header == "#file onset offset #phone prev-phone next-phone speaker"
        assert lines == [f"00000{index} {item} speaker{index}" for index in range(2) for item in items]
        assert (
            f"25.00 %, chance is 50 % (7 cells of {2 * len(items)} items, {left_out} left out"
            in capsys.readouterr().out
        )
    np.testing.assert_allclose(seen[0], 0.02 + 0.04 * np.arange(10), atol=1e-4)
    monkeypatch.setattr(sys, "argv", [*command, "--phone_column", "phonemes"])
    with pytest.raises(SystemExit, match="no column phonemes; write it with --columns phonemes speaker_id"):
        abx.main()
