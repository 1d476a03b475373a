"""SpeechSSLFeatureExtractor against a slow reference, the prefix rule, and what transformers' users expect."""

import numpy as np
import pytest
import torch
from helpers import speech_like

from hf_speech_ssl import SpeechSSLFeatureExtractor
from hf_speech_ssl.data import audio
from hf_speech_ssl.modeling import feature_extraction_speech_ssl
from hf_speech_ssl.modeling.feature_extraction_speech_ssl import log_mel, num_frames


def kaldi_fbank(samples: np.ndarray, num_bins: int) -> np.ndarray:
    """Kaldi's filter bank features without dither, frame by frame in float64."""

    def to_mel(hertz):
        return 1127 * np.log1p(np.asarray(hertz) / 700)

    edges = np.linspace(to_mel(20), to_mel(8000), num_bins + 2)
    low, center, high = edges[:-2], edges[1:-1], edges[2:]
    mel = to_mel(np.arange(257) * 16_000 / 512)[:, None]
    bank = np.minimum((mel - low) / (center - low), (high - mel) / (high - center)).clip(0)
    window = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 399)) ** 0.85
    rows = []
    for start in range(0, len(samples) - 399, 160):
        frame = samples[start : start + 400].astype(np.float64) * 32768
        frame = frame - frame.mean()
        frame = frame - 0.97 * np.append(frame[0], frame[:-1])
        power = np.abs(np.fft.rfft(frame * window, 512)) ** 2
        rows.append(np.log(np.maximum(power @ bank, 12.0)))
    return np.array(rows)


@pytest.fixture
def extractor() -> SpeechSSLFeatureExtractor:
    """Normalizes with statistics that differ from bin to bin."""
    return SpeechSSLFeatureExtractor(mean=np.linspace(5, 9, 80).tolist(), variance=np.linspace(1, 4, 80).tolist())


@pytest.mark.parametrize("num_bins", [80, 40])
@pytest.mark.parametrize("samples", [400, 559, 560, 12_345])
def test_equals_slow_kaldi_fbank(num_bins: int, samples: int):
    wave = speech_like(1.0)[:samples]
    wave[:300] = 0.0  # the floor is reached in the bins of this frame that are low enough, and in all of a silent one
    wave[6000:7000] = 0.0
    fast = log_mel(torch.from_numpy(wave)[None], num_bins)[0].numpy()
    slow = kaldi_fbank(wave, num_bins)
    assert fast.shape == slow.shape == (num_frames(samples), num_bins)
    np.testing.assert_allclose(fast, slow, atol=2e-3)


def test_silence_is_finite(extractor):
    assert np.isfinite(extractor(np.zeros(1600), sampling_rate=16_000, return_tensors="np").input_features).all()


def test_normalization_is_per_bin(extractor):
    wave = speech_like(0.5)
    raw = SpeechSSLFeatureExtractor()(wave, sampling_rate=16_000, return_tensors="np").input_features
    wanted = (raw - np.array(extractor.mean)) / np.sqrt(extractor.variance)
    got = extractor(wave, sampling_rate=16_000, return_tensors="np").input_features
    np.testing.assert_allclose(got, wanted, atol=1e-5)


@pytest.mark.parametrize("samples", [400, 1000, 7_777])
def test_features_of_a_prefix_are_a_prefix_of_the_features(extractor, samples: int):
    wave = torch.from_numpy(speech_like(1.0))[None]
    whole, _ = extractor.extract(wave, torch.tensor([16_000]))
    prefix, _ = extractor.extract(wave[:, :samples], torch.tensor([samples]))
    torch.testing.assert_close(prefix, whole[:, : prefix.shape[1]], rtol=0, atol=1e-5)


def test_padded_batch_equals_single_utterances(extractor):
    waves = [speech_like(seconds, seed) for seed, seconds in enumerate((0.31, 1.0, 0.777))]
    batch = extractor(waves, sampling_rate=16_000, return_tensors="pt")
    for row, mask, wave in zip(batch.input_features, batch.attention_mask, waves, strict=True):
        single = extractor(wave, sampling_rate=16_000, return_tensors="pt").input_features[0]
        assert mask.sum() == len(single) == num_frames(len(wave))
        torch.testing.assert_close(row[: len(single)], single, rtol=0, atol=1e-5)
        assert (row[len(single) :] == extractor.padding_value).all()


def test_extract_ignores_what_lies_beyond_the_lengths(extractor):
    lengths = torch.tensor([5_000, 16_000])
    waves = torch.from_numpy(np.stack([speech_like(1.0, 0), speech_like(1.0, 1)]))
    zeroed = torch.where(torch.arange(16_000) < lengths[:, None], waves, 0.0)
    for one, other in zip(extractor.extract(waves, lengths), extractor.extract(zeroed, lengths), strict=True):
        assert torch.equal(one, other)


def test_fit_normalization_equals_numpy():
    waves = torch.from_numpy(np.stack([speech_like(1.0, seed) for seed in range(4)]))
    lengths = torch.tensor([16_000, 9_000, 12_000, 16_000])
    extractor = SpeechSSLFeatureExtractor()
    extractor.fit_normalization([(waves[:2], lengths[:2]), (waves[2:], lengths[2:])])
    frames = np.concatenate([kaldi_fbank(w[:n].numpy(), 80) for w, n in zip(waves, lengths.tolist(), strict=True)])
    np.testing.assert_allclose(extractor.mean, frames.mean(0), atol=1e-3)
    np.testing.assert_allclose(extractor.variance, frames.var(0), rtol=1e-3)
    features, mask = extractor.extract(waves, lengths)
    np.testing.assert_allclose(features[mask].mean(0), 0, atol=1e-3)
    np.testing.assert_allclose(features[mask].std(0, correction=0), 1, atol=1e-3)


def test_fit_normalization_needs_audio():
    with pytest.raises(ValueError, match="at least 2 frames"):
        SpeechSSLFeatureExtractor().fit_normalization([(torch.zeros(1, 400), torch.tensor([400]))])


def test_autocast_changes_nothing(extractor):
    wave, lengths = torch.from_numpy(speech_like(0.5))[None], torch.tensor([8_000])
    plain, _ = extractor.extract(wave, lengths)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast, _ = extractor.extract(wave, lengths)
    assert cast.dtype == torch.float32
    assert torch.equal(cast, plain)


WAVE = speech_like(0.5)
SAME_AUDIO = {
    "list of floats": WAVE.tolist(),
    "float64": WAVE.astype(np.float64),
    "tensor": torch.from_numpy(WAVE),
    "list of arrays": [WAVE],
    "batch": WAVE[None],
    "list of lists": [WAVE.tolist()],
}


@pytest.mark.parametrize("audio", SAME_AUDIO.values(), ids=SAME_AUDIO.keys())
def test_accepted_forms_of_the_same_audio(extractor, audio):
    wanted = extractor(WAVE, sampling_rate=16_000, return_tensors="np").input_features
    np.testing.assert_array_equal(extractor(audio, sampling_rate=16_000, return_tensors="np").input_features, wanted)


@pytest.mark.parametrize(("dtype", "scale"), [(np.int16, 2**15), (np.int32, 2**31)])
def test_integer_samples_are_scaled(extractor, dtype, scale: int):
    samples = (WAVE.astype(np.float64) * scale).round().astype(dtype)
    wanted = extractor(samples / scale, sampling_rate=16_000, return_tensors="np").input_features
    np.testing.assert_allclose(
        extractor(samples, sampling_rate=16_000, return_tensors="np").input_features, wanted, atol=1e-6
    )


REFUSED = {
    "another rate": (WAVE, {"sampling_rate": 8_000}, "8000 Hz.*16000 Hz"),
    "NaN": (np.append(WAVE, np.nan), {}, "Utterance 0 holds NaN"),
    "infinity in the second": ([WAVE, np.append(WAVE, np.inf)], {}, "Utterance 1 holds NaN or infinite"),
    "stereo": ([np.stack([WAVE, WAVE], 1)], {}, r"\(8000, 2\), one channel"),
    "three dimensions": (np.zeros((2, 2, 8000)), {}, "mono"),
    "shorter than a frame": (WAVE[:399], {}, "399 samples, at least 400"),
    "empty array": (np.zeros(0), {}, "0 samples"),
    "empty list": ([], {}, "empty list"),
    "empty batch": (np.zeros((0, 8000)), {}, "empty list"),
    "floats in the range of int16": ((WAVE * 20_000).astype(np.float32), {}, "floats in .-1, 1. are needed"),
    "integers of unknown scale": ((WAVE * 100).astype(np.int64), {}, "int64"),
    "text": ("speech.wav", {}, "type <U1"),
}


@pytest.mark.parametrize(("audio", "options", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_refused_audio(extractor, audio, options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        extractor(audio, **{"sampling_rate": 16_000, **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampling_rate": 8_000}, "Resample"),
        ({"mean": [0.0] * 80}, "both or neither"),
        ({"mean": [0.0] * 79, "variance": [1.0] * 80}, "one value per mel bin"),
    ],
)
def test_refused_settings(options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        SpeechSSLFeatureExtractor(**options)


@pytest.mark.parametrize("shape", [(1, 399), (8000,)])
def test_extract_refuses_shapes(extractor, shape: tuple):
    with pytest.raises(ValueError, match="at least 400 samples"):
        extractor.extract(torch.zeros(shape), torch.tensor([shape[-1]]))


# What transformers' common feature extractor tests ask for; 0.2, 0.5 and 0.4 s are 18, 48 and 38 frames.
BATCH = [speech_like(seconds, seed) for seed, seconds in enumerate((0.2, 0.5, 0.4))]


@pytest.mark.parametrize(
    ("options", "frames"),
    [
        ({}, 48),
        ({"padding": "longest"}, 48),
        ({"padding": "longest", "pad_to_multiple_of": 10}, 50),
        ({"padding": "max_length", "max_length": 60}, 60),
        ({"padding": "max_length", "max_length": 30, "truncation": True}, 30),
        ({"padding": "max_length", "max_length": 30, "truncation": True, "pad_to_multiple_of": 8}, 32),
    ],
)
@pytest.mark.parametrize("kind", ["np", "pt"])
def test_padding_and_truncation(extractor, options: dict, frames: int, kind: str):
    batch = extractor(BATCH, sampling_rate=16_000, return_tensors=kind, **options)
    assert isinstance(batch.input_features, np.ndarray if kind == "np" else torch.Tensor)
    assert batch.input_features.shape == (3, frames, 80)
    assert batch.attention_mask.shape == (3, frames)
    assert batch.attention_mask.sum(-1).tolist() == [min(n, frames) for n in (18, 48, 38)]
    assert (batch.input_features[0, 18:] == 0).all()


def test_no_padding_returns_a_list(extractor):
    batch = extractor(BATCH, sampling_rate=16_000, padding=False)
    assert [one.shape for one in batch["input_features"]] == [(18, 80), (48, 80), (38, 80)]


def test_attention_mask_can_be_left_out(extractor):
    assert "attention_mask" not in extractor(BATCH, sampling_rate=16_000, return_attention_mask=False)


@pytest.mark.parametrize("as_json", [False, True])
def test_save_and_load(extractor, tmp_path, as_json: bool):
    if as_json:
        extractor.to_json_file(tmp_path / "features.json")
        loaded = SpeechSSLFeatureExtractor.from_json_file(tmp_path / "features.json")
    else:
        extractor.save_pretrained(tmp_path)
        loaded = SpeechSSLFeatureExtractor.from_pretrained(tmp_path)
    assert loaded.to_dict() == extractor.to_dict()
    one, other = (each(WAVE, sampling_rate=16_000, return_tensors="np") for each in (loaded, extractor))
    np.testing.assert_array_equal(one.input_features, other.input_features)


def test_the_limit_of_floats_is_that_of_the_data_room():
    assert feature_extraction_speech_ssl.LOUDEST == audio.LOUDEST


def test_floats_in_the_range_of_int16_are_refused_and_overshoot_is_not(extractor):
    """Everywhere the extractor is: the pipeline, the processor, the recognizer (inference case 13)."""
    for samples in (WAVE * 30_000, torch.from_numpy(WAVE.astype(np.float32) * 30_000), (WAVE * 30_000).tolist()):
        with pytest.raises(ValueError, match="divide them by what stands for 1"):
            extractor(samples, sampling_rate=16_000)
    extractor(WAVE / np.abs(WAVE).max() * 1.9, sampling_rate=16_000)
