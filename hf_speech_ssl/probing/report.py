"""A report of `hf-speech-ssl probe` as text for a terminal, which is Markdown too."""

from typing import Any

from ..evaluation.report import markdown_table

# A layer is called collapsed where its frames fill fewer directions than these, or all point the same way while
# training lost it half of the directions that it had.
_FEW_DIRECTIONS = 2.0
_SAME_WAY = 0.95
_FEW_CODES = 0.1  # of the perplexity before training: below it a layer's codes are called useless


def remarks(layers: list[dict[str, Any]], data: dict[str, Any], has_labels: bool) -> list[str]:
    """What a reader should not miss in a report, a sentence each."""
    found = [] if data.get("majority_target") is None else _about_gain(layers)
    collapsed = [layer["what"] for layer in layers[1:] if _is_collapsed(layer)]
    if collapsed:
        found.append(f"Collapsed, nearly all frames alike: {', '.join(collapsed)}.")
    few_codes = [
        layer for layer in layers[1:] if layer["code_perplexity"] < _FEW_CODES * layer["random_code_perplexity"]
    ]
    if few_codes:
        named = ", ".join(f"{layer['what']} ({layer['code_perplexity']:.1f})" for layer in few_codes)
        found.append(f"Few codes in use, by their perplexity: {named}. Labels from there would teach little.")
    if unseen := data.get("examples_of_unseen_targets"):
        found.append(
            f"{unseen:,} test {data['examples']} are of {data['targets']} that training did not have: they count as "
            "wrong."
        )
    if data.get("training_examples_left_out"):
        found.append(
            f"There were more training {data['examples']} than the limit has room for: those beyond it were left out."
        )
    if not data["targets"]:
        found.append(
            "Nothing says what is in the audio: name a column with phones (--phone_column_name) or with the class of "
            "each utterance (--class_column_name) for the accuracy of linear probes."
        )
    if not has_labels:
        found.append("The checkpoint holds no pretraining labels (no pretraining head), so none are rated.")
    return found


def _about_gain(layers: list[dict[str, Any]]) -> list[str]:
    best = max(layers[1:] or layers, key=lambda layer: layer["accuracy"])
    found = [
        f"Best: {best['what']}, {_percent(best['accuracy'], best['accuracy_interval'])} %; "
        f"{_points(best['gain'], best['gain_interval'])} points to the same layer with random weights, "
        f"{_points(best['accuracy'] - layers[0]['accuracy'])} to layer 0."
    ]
    if best["gain_interval"][0] is not None and best["gain_interval"][0] <= 0:
        found.append("Its gain is not beyond its interval: as far as this data tells, training brought nothing.")
    return found


def _is_collapsed(layer: dict[str, Any]) -> bool:
    alike = layer["mean_cosine"] > _SAME_WAY and layer["effective_rank"] < layer["random_effective_rank"] / 2
    return alike or layer["effective_rank"] < _FEW_DIRECTIONS


def as_text(report: dict[str, Any]) -> str:
    """A report of [`hf_speech_ssl.commands.probe`] as Markdown."""
    data, layers, labels = report["data"], report["layers"], report["labels"]
    targets, examples = data["targets"], data["examples"]
    lines = [f"# {report['model']} on {report['dataset']}", ""]
    if layers and targets:
        lines.append(
            f"Linear probes, frozen encoder: {data['training_examples']:,} {examples} of "
            f"{data['training_utterances']:,} utterances ({report['split']})."
        )
    if targets:
        lines.append(
            f"Measured on {data['test_examples']:,} {examples} of {data['test_utterances']:,} utterances "
            f"({report['test_split']}) in {data['num_targets']} {targets}."
        )
    else:
        lines.append(
            f"Measured on {data['test_frames']:,} frames of {data['test_utterances']:,} utterances "
            f"({report['test_split']})."
        )
    if data["skipped_files"]:
        lines.append(f"{data['skipped_files']} of its files could not be used.")
    if layers:
        if targets:
            lines.append(
                f"Always naming {data['majority_target']}, the commonest: {_percent(data['majority_accuracy'])} %."
            )
        lines += ["", *_layer_table(layers, targets), "", *_layer_notes(report["codes"], targets, examples)]
    if labels:
        lines += ["", *_label_table(labels, targets), "", *(_QUALITY_NOTES if targets else _USE_NOTES)]
    return "\n".join([*lines, "", *report["remarks"]]).rstrip()


def _layer_table(layers: list[dict[str, Any]], targets: str) -> list[str]:
    measures = (("effective_rank", 1, 1), ("mean_cosine", 2, 1), ("code_usage", 1, 100), ("code_perplexity", 1, 1))
    head = ["layer", *([f"{targets}, %", "random", "gain"] if targets else [])]
    head += ["effective rank", "mean cosine", "codes used, %", "perplexity"]
    rows = []
    for layer in layers:
        row = [f"{layer['layer']} ({layer['what']})" if layer["layer"] == 0 else str(layer["layer"])]
        if targets:
            row += [
                _percent(layer["accuracy"], layer["accuracy_interval"]),
                _percent(layer["random_accuracy"]),
                _points(layer["gain"], layer["gain_interval"]),
            ]
        row += [
            f"{layer[name] * scale:.{digits}f} ({layer['random_' + name] * scale:.{digits}f})"
            for name, digits, scale in measures
        ]
        rows.append(row)
    return markdown_table(head, rows)


def _layer_notes(codes: str, targets: str, examples: str) -> list[str]:
    of_probes = {
        "": ["In brackets: the same encoder with random weights."],
        "phones": [
            "Phones: share of the test frames in a phone whose phone the layer's probe names, ± half of a 95 %",
            "bootstrap interval over utterances. Random and in brackets: the same encoder with random weights.",
        ],
        "classes": [
            "Classes: share of the test utterances whose class a probe names from the mean of the layer's frames, ±",
            "half of a 95 % bootstrap interval. Random and in brackets: the same encoder with random weights.",
        ],
    }[targets]
    return [
        *of_probes,
        "Effective rank: directions that the frames fill. Mean cosine: 1 if all frames point the same way.",
        f"Codes: {codes}. Perplexity 1 is one code for all frames.",
    ]


_USE_NOTES = [
    "Perplexity: how many labels would be in use if all were as frequent. Commonest: the share of frames that have",
    "the most frequent label, which a model reaches that has learned nothing.",
]
_QUALITY_NOTES = [
    *_USE_NOTES,
    "Purity and PNMI rise with the number of labels in use, whatever the labels know. In brackets: the same labels",
    "dealt out to the frames at random. What labels know is what they score above that.",
]


def _label_table(labels: list[dict[str, Any]], targets: str) -> list[str]:
    head = ["labels", *(["purity", "PNMI", "cluster purity"] if targets else [])]
    head += ["in use", "perplexity", "commonest, %", "frames a label"]
    rows = []
    for one in labels:
        quality = [
            f"{one[name]:.3f} ({one['shuffled_' + name]:.3f})"
            for name in ("phone_purity", "pnmi", "cluster_purity")
            if targets
        ]
        use = [f"{one['num_labels']:,} of {one['codebook_size']:,}", f"{one['perplexity']:.1f}"]
        use += [_percent(one["commonest_share"]), f"{one['num_frames'] / one['num_labels']:.1f}"]
        rows.append([one["name"], *quality, *use])
    return markdown_table(head, rows)


def _percent(share: float, interval: list[float | None] | None = None) -> str:
    return f"{100 * share:.1f}{_plus_minus(interval)}"


def _points(difference: float, interval: list[float | None] | None = None) -> str:
    return f"{100 * difference:+.1f}{_plus_minus(interval)}"


def _plus_minus(interval: list[float | None] | None) -> str:
    low, high = interval or (None, None)
    return "" if low is None or high is None else f" ± {50 * (high - low):.1f}"
