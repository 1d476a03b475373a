"""Small inputs and small models that several tests share."""

from pathlib import Path

import numpy as np
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hf_speech_ssl import BiRQConfig, ChunkSSLConfig, ChunkSSLForCTC, SpeechSSLFeatureExtractor
from hf_speech_ssl.decoding import build_ctc_processor
from hf_speech_ssl.recognition.recognizer import Recognizer

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "conv_kernel_size": 5,
    "hidden_dropout": 0.0,
    "decoder_hidden_size": 16,
    "decoder_attention_heads": 2,
    "decoder_intermediate_size": 24,
    "decoder_attention_window": 6,
    "joint_hidden_size": 20,
}


def tiny_birq(**overrides) -> BiRQConfig:
    """A BiRQ config whose models are built and run in milliseconds, without dropout."""
    labels = {"codebook_size": 24, "codebook_dim": 4, "mask_start_prob": 0.1, "mask_length": 5}
    return BiRQConfig(**{**SIZES, **labels, **overrides})


def tiny_chunkssl(**overrides) -> ChunkSSLConfig:
    """A Chunk SSL config of the same size, with one chunk duration: 4 frames of 40 ms."""
    labels = {"fsq_levels": [3, 5], "fsq_hidden_size": 16, "fsq_num_hidden_layers": 2, "chunk_durations_ms": [160]}
    return ChunkSSLConfig(**{**SIZES, **labels, **overrides})


def speech_like(seconds: float, seed: int = 0) -> np.ndarray:
    """Colored noise under a syllable-like envelope: float32 samples at 16 kHz in [-1, 1]."""
    rng = np.random.default_rng(seed)
    samples = round(seconds * 16_000)
    noise = np.convolve(rng.standard_normal(samples + 7), np.hanning(8), mode="valid")
    envelope = 0.05 + np.abs(np.sin(np.pi * 4 * np.arange(samples) / 16_000 + seed))
    return (0.05 * noise * envelope).astype(np.float32)


def babbler(**overrides) -> Recognizer:
    """A random Chunk SSL model that writes words, and changes its mind with what it hears."""
    torch.manual_seed(54)
    processor = build_ctc_processor(["ab c"], SpeechSSLFeatureExtractor(mean=[10.0] * 80, variance=[9.0] * 80))
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    config = ChunkSSLConfig(conv_kernel_size=5, vocab_size=len(processor.tokenizer), **sizes, **overrides)
    config.initializer_range = 0.5
    return Recognizer(ChunkSSLForCTC(config).eval(), processor)


def padded_features(*lengths: int, num_mel_bins: int = 80) -> tuple[torch.Tensor, torch.Tensor]:
    """Random features of utterances of these lengths in 10 ms frames: (B, F, M) with zeros in the padding, (B, F)."""
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return torch.randn(*mask.shape, num_mel_bins) * mask[..., None], mask


def tracked_pictures(folder: Path) -> list:
    """The pictures that TensorBoard shows of a run, in order."""
    found = []
    for events in folder.rglob("events.out.tfevents.*"):
        accumulator = EventAccumulator(str(events), size_guidance={"images": 0}).Reload()
        found += [image for tag in accumulator.Tags()["images"] for image in accumulator.Images(tag)]
    return found
