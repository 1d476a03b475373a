"""A table of what a frozen encoder knows of phones, layer by layer, beside the same encoder with random weights; and
one of the labels that it was pretrained on."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from ..encoders import SpeechEncoder, load_encoder
from ..evaluation.linear_probe import LinearProbes, share_with_error
from ..modeling.quantization import perplexity
from ..probing import PhoneReader, Scores, TrainingFrames, collect_training_frames, number_phones, score

# A layer is called collapsed where its frames fill fewer directions than these, or all point the same way while
# training lost it half of the directions that it had.
_FEW_DIRECTIONS = 2.0
_SAME_WAY = 0.95


def probe(
    model_name_or_path: str,
    dataset_name: str,
    dataset_config_name: str | None = None,
    split_name: str = "train",
    test_split_name: str = "test",
    audio_column_name: str = "audio",
    phone_column_name: str = "phones",
    num_epochs: int = 10,
    seed: int = 0,
    output_file: str | None = None,
    max_samples: int | None = None,
    batch_seconds: float = 60.0,
    **loading: Any,
) -> dict[str, Any]:
    """Measure an encoder's layers and labels, print tables, and write the figures as JSON.

    Of every layer: the frame accuracy of a linear probe on phones, fitted on one split and measured on another, beside
    that of the same encoder with random weights (the gain is what training brought); the effective rank and the mean
    cosine of its frames ([`hf_speech_ssl.evaluation.collapse.FrameSpread`]), and the use of a codebook by labels of
    its frames. Ranks and perplexities fall, and the cosine rises, where an encoder collapses. Of the pretraining
    labels: purity and PNMI beside those of the same labels shuffled. Frames in no phone (pauses) count for the spread
    and the codebooks alone; frames of a phone that training did not have count as wrong.

    Args:
        model_name_or_path: as in [`load_encoder`].
        dataset_name, dataset_config_name, audio_column_name, batch_seconds: as in
            [`hf_speech_ssl.data.reading.UtteranceReader`].
        split_name, test_split_name: splits to fit the probes on, and to measure on. Training frames beyond 200,000, or
            beyond 2 GiB as float16 of all layers, are left out.
        phone_column_name: column with a list of {"phone", "start", "end"} (s) for every utterance.
        num_epochs: passes over the training frames.
        seed: of the probes' order, the random weights and the shuffled labels.
        output_file: where the report goes as JSON.
        max_samples: the first so many utterances of each split only.
        **loading: revision, trust_remote_code and device, as in [`load_encoder`].

    Returns:
        The report: "model", "dataset", "data" (frames, utterances, phones), "codes", "layers" (an entry each),
        "labels" (an entry for each kind) and "remarks". Accuracies are shares; "..._error" is half of a 95 %
        confidence interval over utterances.

    Raises:
        OSError, ValueError: no such model, data set, split or column; no phones; too few frames.
    """
    _check(split_name, test_split_name, num_epochs, output_file)
    reading = {
        "dataset_name": dataset_name,
        "dataset_config_name": dataset_config_name,
        "audio_column_name": audio_column_name,
        "max_samples": max_samples,
        "batch_seconds": batch_seconds,
    }
    train, test = (PhoneReader(name, phone_column_name, **reading) for name in (split_name, test_split_name))
    phone_ids = number_phones(train.inventory(), test.inventory())
    encoder = load_encoder(model_name_or_path, **loading)
    asked = {"model": model_name_or_path, "dataset": dataset_name, "split": split_name, "test_split": test_split_name}
    report = asked | measure(encoder, train, test, phone_ids, num_epochs, seed)
    print(as_text(report))
    if output_file is not None:
        Path(output_file).write_text(json.dumps(report, indent=2) + "\n")
    return report


def _check(split_name: str, test_split_name: str, num_epochs: int, output_file: str | None) -> None:
    if split_name == test_split_name:
        raise ValueError(f"Probes cannot be measured on the split they are fitted on, {split_name!r}; name another.")
    if num_epochs < 1:
        raise ValueError(f"num_epochs must be at least 1, got {num_epochs}.")
    if output_file is not None and not Path(output_file).absolute().parent.is_dir():
        raise FileNotFoundError(f"There is no folder {str(Path(output_file).parent)!r} to write the report to.")


def measure(
    encoder: SpeechEncoder,
    train: PhoneReader,
    test: PhoneReader,
    phone_ids: dict[str, int],
    num_epochs: int,
    seed: int,
) -> dict[str, Any]:
    """ "data", "codes", "layers", "labels" and "remarks" of a report, as [`probe`] describes them."""
    if encoder.model is None:  # a tokenizer has no layers to compare
        scores = score(encoder, test, phone_ids, None)
        data = _describe_data(scores, test)
        return {"data": data, "codes": "", "layers": [], "labels": _labels(encoder, scores, seed), "remarks": []}
    pretrained, training = _probe_one(encoder, train, test, phone_ids, num_epochs, seed)
    random, _ = _probe_one(encoder.with_random_weights(seed), train, test, phone_ids, num_epochs, seed)
    layers = _layers(encoder, pretrained, random)
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
    return report | {"remarks": _remarks(layers, data, bool(labels))}


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


def _layers(encoder: SpeechEncoder, pretrained: Scores, random: Scores) -> list[dict[str, Any]]:
    frames = np.array(pretrained.frames).sum(-1)
    hits, random_hits = np.array(pretrained.hits), np.array(random.hits)
    layers = []
    for index in range(hits.shape[1]):
        accuracy, error = share_with_error(hits[:, index], frames)
        gain, gain_error = share_with_error(hits[:, index] - random_hits[:, index], frames)
        layers.append(
            {
                "layer": index,
                "what": encoder.input_name if index == 0 else f"block {index}",
                "accuracy": accuracy,
                "accuracy_error": error,
                "random_accuracy": float(random_hits[:, index].sum() / frames.sum()),
                "gain": gain,
                "gain_error": gain_error,
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


def _remarks(layers: list[dict[str, Any]], data: dict[str, Any], labels: bool) -> list[str]:
    remarks = []
    best = max(layers[1:] or layers, key=lambda layer: layer["accuracy"])
    over_input = 100 * (best["accuracy"] - layers[0]["accuracy"])
    remarks.append(
        f"Best: {best['what']}, {_percent(best['accuracy'], best['accuracy_error'])} %; "
        f"{_signed(best['gain'], best['gain_error'])} points to the same layer with random weights, "
        f"{over_input:+.1f} to layer 0."
    )
    if best["gain_error"] is not None and best["gain"] <= best["gain_error"]:
        remarks.append("No gain beyond the interval: as far as this data tells, training brought no phones.")
    collapsed = [layer["what"] for layer in layers[1:] if _is_collapsed(layer)]
    if collapsed:
        remarks.append(f"Collapsed, nearly all frames alike: {', '.join(collapsed)}.")
    if data["frames_of_unseen_phones"]:
        remarks.append(
            f"{data['frames_of_unseen_phones']:,} test frames are of phones that training did not have: they count as "
            "wrong."
        )
    if data["training_frames_left_out"]:
        remarks.append("More training frames than fit the limit: those beyond the first were left out.")
    if not labels:
        remarks.append("The checkpoint holds no pretraining labels (no pretraining head), so none are rated.")
    return remarks


def _is_collapsed(layer: dict[str, Any]) -> bool:
    alike = layer["mean_cosine"] > _SAME_WAY and layer["effective_rank"] < layer["random_effective_rank"] / 2
    return alike or layer["effective_rank"] < _FEW_DIRECTIONS


def as_text(report: dict[str, Any]) -> str:
    """A report as Markdown tables with what they mean."""
    data = report["data"]
    lines = [f"# {report['model']} on {report['dataset']}", ""]
    if report["layers"]:
        lines += [
            f"Linear probes on {data['training_frames']:,} frames of {data['training_utterances']:,} utterances "
            f"({report['split']}), frozen encoder."
        ]
    lines += [
        f"Measured on {data['test_frames']:,} frames of {data['test_utterances']:,} utterances "
        f"({report['test_split']}) in {data['phones']} phones."
    ]
    if report["layers"]:
        lines += [f"Naming the commonest phone ({data['majority_phone']}): {100 * data['majority_accuracy']:.1f} %."]
        lines += ["", *_layer_table(report["layers"]), ""]
        lines += [
            "Accuracy in % of the frames in a phone, with 95 % intervals over utterances. In brackets: the same "
            "encoder with random weights.",
            "Effective rank: directions that the frames fill. Mean cosine: 1 if all frames point the same way.",
            f"Codes: {report['codes']}; perplexity 1 is one code for everything.",
        ]
    if report["labels"]:
        lines += ["", *_label_table(report["labels"]), ""]
        lines += [
            "Purity and PNMI rise with the number of labels in use, whatever the labels know. In brackets: the same "
            "labels dealt out to the frames at random; what exceeds that is knowledge.",
        ]
    return "\n".join([*lines, "", *report["remarks"]]).rstrip()


def _layer_table(layers: list[dict[str, Any]]) -> list[str]:
    head = ["layer", "phone accuracy", "random", "gain", "effective rank", "mean cosine", "codes used", "perplexity"]
    rows = [
        [
            f"{layer['layer']} ({layer['what']})" if layer["layer"] == 0 else str(layer["layer"]),
            _percent(layer["accuracy"], layer["accuracy_error"]),
            f"{100 * layer['random_accuracy']:.1f}",
            _signed(layer["gain"], layer["gain_error"]),
            *(
                f"{layer[name] * scale:.{digits}f} ({layer['random_' + name] * scale:.{digits}f})"
                for name, digits, scale in (
                    ("effective_rank", 1, 1),
                    ("mean_cosine", 2, 1),
                    ("code_usage", 1, 100),
                    ("code_perplexity", 1, 1),
                )
            ),
        ]
        for layer in layers
    ]
    head[6] += " %"
    return _table(head, rows)


def _label_table(labels: list[dict[str, Any]]) -> list[str]:
    head = ["labels", "phone purity", "PNMI", "cluster purity", "labels in use", "frames a label"]
    rows = [
        [
            one["name"],
            *(f"{one[name]:.3f} ({one['shuffled_' + name]:.3f})" for name in ("phone_purity", "pnmi")),
            f"{one['cluster_purity']:.3f} ({one['shuffled_cluster_purity']:.3f})",
            f"{one['num_labels']:,} of {one['codebook_size']:,}",
            f"{one['num_frames'] / one['num_labels']:.1f}",
        ]
        for one in labels
    ]
    return _table(head, rows)


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Markdown whose columns stand under each other."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [head, ["-" * width for width in widths], *rows]
    return ["| " + " | ".join(cell.ljust(n) for cell, n in zip(line, widths, strict=True)) + " |" for line in lines]


def _percent(share: float, error: float | None) -> str:
    return f"{100 * share:.1f}" + ("" if error is None else f" ± {100 * error:.1f}")


def _signed(share: float, error: float | None) -> str:
    return f"{100 * share:+.1f}" + ("" if error is None else f" ± {100 * error:.1f}")
