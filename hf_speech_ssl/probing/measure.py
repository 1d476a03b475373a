"""An encoder's layers and labels measured on phones, beside the same encoder with random weights."""

from typing import Any

import numpy as np
from tqdm.auto import tqdm

from ..evaluation.bootstrap import bootstrap_ratios
from ..modeling.label_statistics import perplexity
from .encoders import SpeechEncoder
from .linear_probe import LinearProbes
from .probe import PhoneReader, Scores, TrainingFrames, collect_training_frames, score
from .report import remarks

NUM_RESAMPLES = 1000  # of the intervals


def measure(
    encoder: SpeechEncoder,
    train: PhoneReader,
    test: PhoneReader,
    phone_ids: dict[str, int],
    num_epochs: int,
    seed: int,
) -> dict[str, Any]:
    """Measure layers and labels beside those of the same encoder with random weights.

    Of every layer: the frame accuracy of a linear probe on phones, fitted on one split and measured on another, and
    that of the same encoder with random weights (the gain is what training brought); the effective rank and the mean
    cosine of its frames ([`hf_speech_ssl.probing.collapse.FrameSpread`]), and the use of a codebook by labels of its
    frames. Ranks and perplexities fall, and the cosine rises, where an encoder collapses. Of the pretraining labels:
    purity and PNMI beside those of the same labels shuffled. Frames in no phone (pauses) count for the spread and the
    codebooks alone; frames of a phone that training did not have count as wrong.

    Args:
        encoder: as [`load_encoder`] returns it.
        train, test: splits to fit the probes on, and to measure on. Training frames beyond 200,000, or beyond 2 GiB as
            float16 of all layers, are left out.
        phone_ids: the number of every phone.
        num_epochs: passes over the training frames.
        seed: of the probes' order, the random weights and the shuffled labels.

    Returns:
        "data" (frames, utterances, phones), "codes", "layers" (an entry each), "labels" (an entry for each kind) and
        "remarks". Accuracies are shares; "..._interval" holds the ends of a 95 % bootstrap interval over the test
        utterances.
    """
    if encoder.model is None:  # a tokenizer has no layers to compare
        scores = score(encoder, test, phone_ids, None)
        data = _describe_data(scores, test)
        return {"data": data, "codes": "", "layers": [], "labels": _labels(encoder, scores, seed), "remarks": []}
    pretrained, training = _probe_one(encoder, train, test, phone_ids, num_epochs, seed)
    random, _ = _probe_one(encoder.with_random_weights(seed), train, test, phone_ids, num_epochs, seed)
    layers = _layers(encoder, pretrained, random, seed)
    counts = training.targets.bincount(minlength=len(phone_ids)).numpy()
    frames = np.array(pretrained.frames)
    data = {
        "training_frames": len(training.targets),
        "training_utterances": training.num_utterances,
        "training_frames_left_out": training.full,
        **_describe_data(pretrained, test),
        "frames_of_unseen_phones": int(frames[:, counts == 0].sum()),
        "majority_phone": list(phone_ids)[int(counts.argmax())],
        "majority_accuracy": float(frames[:, int(counts.argmax())].sum() / frames.sum()),
    }
    labels = _labels(encoder, pretrained, seed)
    report = {"data": data, "codes": encoder.codes_are, "layers": layers, "labels": labels}
    return report | {"remarks": remarks(layers, data, bool(labels))}


def _probe_one(
    encoder: SpeechEncoder,
    train: PhoneReader,
    test: PhoneReader,
    phone_ids: dict[str, int],
    num_epochs: int,
    seed: int,
) -> tuple[Scores, TrainingFrames]:
    """Scores of one encoder; of the training frames only their phones are kept."""
    training = collect_training_frames(encoder, train, phone_ids)
    with tqdm(total=num_epochs, desc="probes", unit="epoch", dynamic_ncols=True, disable=None) as bar:
        probes = LinearProbes(
            training.features,
            training.targets,
            len(phone_ids),
            num_epochs,
            seed,
            encoder.device,
            on_epoch=bar.update,
        )
    training.features.clear()
    return score(encoder, test, phone_ids, probes), training


def _describe_data(scores: Scores, test: PhoneReader) -> dict[str, Any]:
    frames = np.array(scores.frames)
    return {
        "test_frames": int(frames.sum()),
        "test_utterances": len(frames),
        "phones": int((frames.sum(0) > 0).sum()),
        "skipped_files": len(test.reader.skipped),
    }


def _layers(encoder: SpeechEncoder, pretrained: Scores, random: Scores, seed: int) -> list[dict[str, Any]]:
    hits, random_hits = np.array(pretrained.hits), np.array(random.hits)  # (utterances, layers)
    numerators = np.concatenate([hits, hits - random_hits], axis=1)
    frames = np.broadcast_to(np.array(pretrained.frames).sum(-1)[:, None], numerators.shape)
    estimates = bootstrap_ratios(numerators, frames, num_resamples=NUM_RESAMPLES, seed=seed)
    layers = []
    for index, (accuracy, gain) in enumerate(zip(estimates[: hits.shape[1]], estimates[hits.shape[1] :], strict=True)):
        layers.append(
            {
                "layer": index,
                "what": encoder.input_name if index == 0 else f"block {index}",
                "accuracy": accuracy.value,
                "accuracy_interval": [accuracy.low, accuracy.high],
                "random_accuracy": accuracy.value - gain.value,
                "gain": gain.value,
                "gain_interval": [gain.low, gain.high],
                **_describe_layer(pretrained, index),
                **{f"random_{name}": value for name, value in _describe_layer(random, index).items()},
            }
        )
    return layers


def _describe_layer(scores: Scores, index: int) -> dict[str, float]:
    counts = scores.code_counts[index]
    return {
        **scores.spreads[index].compute(),
        "code_usage": float((counts > 0).float().mean()),
        "code_perplexity": float(perplexity(counts.float()).mean()),
    }


def _labels(encoder: SpeechEncoder, scores: Scores, seed: int) -> list[dict[str, Any]]:
    entries = []
    for name, quality in scores.labels.items():
        control = quality.shuffled(seed).compute()
        shuffled = {f"shuffled_{measure}": control[measure] for measure in ("phone_purity", "cluster_purity", "pnmi")}
        entries.append({"name": name, "codebook_size": encoder.num_labels, **quality.compute(), **shuffled})
    return entries
