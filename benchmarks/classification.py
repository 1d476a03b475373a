"""Classes of utterances by a frozen encoder: the classification head on a learned average of layers, on real speech.

    python benchmarks/classification.py MODEL FOLDER [--class_column text] [--test_share 0.2] [--steps 1000]

MODEL is a pretrained encoder of this package, FOLDER one with audio and a metadata.csv that has the columns
`file_name`, `speaker_id` and that of the classes. Test speakers are left out of training the head; with
`--class_column speaker_id`, every fifth utterance of each speaker is. The rows: the pretrained encoder with
`use_weighted_layer_sum`, the same with its last layer alone, and an encoder of the same sizes with random weights.

The encoder is frozen and in evaluation mode. The head is linear up to the mean over an utterance, so training it on
means of layers that were computed once is training it as the Trainer would. It is then put into the model, and the
model names the classes of the test utterances from their audio. Intervals are bootstrapped over speakers (over
utterances where speakers are the classes).
"""

import argparse
import copy
import random
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from common import machine, markdown, pin, write_results
from labels_data import read_folder
from torch.nn import functional as F

from hf_speech_ssl.data.audio import load_audio
from hf_speech_ssl.data.planning import plan_steps
from hf_speech_ssl.evaluation.bootstrap import bootstrap_ratios

_BATCH_SECONDS = 60.0


@dataclass(frozen=True)
class Recording:
    """An utterance: its samples, the number of its class, and what is drawn in the bootstrap."""

    waveform: np.ndarray
    label: int
    group: str


def read(folder: Path, column: str, test_share: float) -> tuple[list[Recording], list[Recording], list[str]]:
    """Training and test utterances, and the names of the classes."""
    utterances = read_folder(folder)
    names = sorted({getattr(one, column) for one in utterances})
    by_speaker = column == "speaker_id"
    speakers = sorted({one.speaker_id for one in utterances})
    random.Random(0).shuffle(speakers)
    test_speakers = set(speakers[: round(test_share * len(speakers))])
    parts: tuple[list[Recording], list[Recording]] = [], []
    for number, one in enumerate(utterances):
        is_test = number % 5 == 0 if by_speaker else one.speaker_id in test_speakers
        group = one.audio if by_speaker else one.speaker_id
        parts[is_test].append(Recording(load_audio(one.audio), names.index(getattr(one, column)), group))
    return *parts, names


def batches(recordings: list[Recording]) -> list[list[int]]:
    seconds = [len(one.waveform) / 16_000 for one in recordings]
    return [batch for (batch,) in plan_steps(seconds, batch_seconds=_BATCH_SECONDS)]


def inputs_of(extractor, recordings: list[Recording], batch: list[int]):
    waveforms = [recordings[row].waveform for row in batch]
    return extractor(waveforms, sampling_rate=16_000, return_attention_mask=True, return_tensors="pt")


@torch.inference_mode()
def layer_means(encoder, extractor, recordings: list[Recording]) -> torch.Tensor:
    """The mean of every layer over every utterance: (utterances, layers, features)."""
    means: list = [None] * len(recordings)
    for batch in batches(recordings):
        outputs = encoder(**inputs_of(extractor, recordings, batch), output_hidden_states=True)
        real = outputs.attention_mask[:, None, :, None]
        rows = (torch.stack(outputs.hidden_states, 1) * real).sum(2) / real.sum(2)
        for row, mean in zip(batch, rows, strict=True):
            means[row] = mean
    return torch.stack(means).clone()


def train_head(model, means: torch.Tensor, labels: torch.Tensor, steps: int) -> None:
    """AdamW on batches of 64 utterances, the rate going down to 0."""
    head = [parameter for name, parameter in model.named_parameters() if not name.startswith("encoder.")]
    optimizer = torch.optim.AdamW(head, lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    torch.manual_seed(0)
    for _ in range(steps):
        rows = torch.randint(len(labels), (64,))
        average = means[rows, -1]
        if model.config.use_weighted_layer_sum:
            average = torch.einsum("l,bld->bd", model.layer_weights.softmax(-1), means[rows])
        F.cross_entropy(model.classifier(model.classifier_projector(average)), labels[rows]).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()


@torch.inference_mode()
def hits_of(model, extractor, recordings: list[Recording]) -> np.ndarray:
    """Which test utterances the model names, from their audio."""
    hits = np.zeros(len(recordings))
    for batch in batches(recordings):
        named = model(**inputs_of(extractor, recordings, batch)).logits.argmax(-1).tolist()
        hits[batch] = [name == recordings[row].label for row, name in zip(batch, named, strict=True)]
    return hits


def accuracy(hits: np.ndarray, recordings: list[Recording]) -> str:
    groups = [one.group for one in recordings]
    [estimate] = bootstrap_ratios(hits[:, None], np.ones((len(hits), 1)), groups)
    if estimate.low is None or estimate.high is None:  # one test speaker
        return f"{100 * estimate.value:.1f} %"
    return f"{100 * estimate.value:.1f} % ({100 * estimate.low:.1f}–{100 * estimate.high:.1f})"


def main() -> None:
    from transformers import AutoFeatureExtractor, AutoModelForAudioClassification

    import hf_speech_ssl  # noqa: F401  # registers the models

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--class_column", default="text")
    parser.add_argument("--test_share", type=float, default=0.2)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output_dir", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    pin(options.threads)
    where, began = machine(options.threads), time.process_time()
    train, test, names = read(options.folder, options.class_column, options.test_share)
    extractor = AutoFeatureExtractor.from_pretrained(options.model)
    labels = torch.tensor([one.label for one in train])
    rows, results, cached = [], {}, {}
    for title, weighted, pretrained in (
        ("pretrained, all layers", True, True),
        ("pretrained, last layer", False, True),
        ("random weights, all layers", True, False),
    ):
        torch.manual_seed(1)
        sizes = {"num_labels": len(names), "use_weighted_layer_sum": weighted}
        model = AutoModelForAudioClassification.from_pretrained(options.model, **sizes).eval()
        if not pretrained:
            model = type(model)(copy.deepcopy(model.config)).eval()
        if pretrained not in cached:
            cached[pretrained] = layer_means(model.encoder, extractor, train)
        train_head(model, cached[pretrained], labels, options.steps)
        hits = hits_of(model, extractor, test)
        weights = model.layer_weights.softmax(-1).tolist() if weighted else []
        rows.append([title, accuracy(hits, test), " ".join(f"{weight:.2f}" for weight in weights)])
        results[title] = {"accuracy": hits.mean(), "layer_weights": weights}
    counts = np.bincount([one.label for one in test])
    name = f"classification_{options.folder.resolve().name}_{options.class_column}"
    facts = (
        f"{len(train)} utterances to train the head on, {len(test)} to measure on, of {len({o.group for o in test})} "
        f"{'utterances' if options.class_column == 'speaker_id' else 'other speakers'}; {len(names)} classes, the "
        f"commonest is {100 * counts.max() / counts.sum():.1f} % of the test. {options.steps} steps of 64, "
        f"{time.process_time() - began:.0f} s of processor time in all."
    )
    table = markdown(["encoder, frozen", "accuracy", "weight of each layer, the first block's input first"], rows)
    write_results(options.output_dir, name, where, [facts, table], results)


if __name__ == "__main__":
    main()
