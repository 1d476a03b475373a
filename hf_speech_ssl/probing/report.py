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
    found = []
    best = max(layers[1:] or layers, key=lambda layer: layer["accuracy"])
    found.append(
        f"Best: {best['what']}, {_percent(best['accuracy'], best['accuracy_interval'])} %; "
        f"{_points(best['gain'], best['gain_interval'])} points to the same layer with random weights, "
        f"{_points(best['accuracy'] - layers[0]['accuracy'])} to layer 0."
    )
    if best["gain_interval"][0] is not None and best["gain_interval"][0] <= 0:
        found.append("Its gain is not beyond its interval: as far as this data tells, training brought no phones.")
    collapsed = [layer["what"] for layer in layers[1:] if _is_collapsed(layer)]
    if collapsed:
        found.append(f"Collapsed, nearly all frames alike: {', '.join(collapsed)}.")
    few_codes = [
        layer for layer in layers[1:] if layer["code_perplexity"] < _FEW_CODES * layer["random_code_perplexity"]
    ]
    if few_codes:
        said = ", ".join(f"{layer['what']} ({layer['code_perplexity']:.1f})" for layer in few_codes)
        found.append(f"Few codes in use, by their perplexity: {said}. Labels from there would teach little.")
    if data["frames_of_unseen_phones"]:
        found.append(
            f"{data['frames_of_unseen_phones']:,} test frames are of phones that training did not have: they count as "
            "wrong."
        )
    if data["training_frames_left_out"]:
        found.append("There were more training frames than the limit has room for: those beyond it were left out.")
    if not has_labels:
        found.append("The checkpoint holds no pretraining labels (no pretraining head), so none are rated.")
    return found


def _is_collapsed(layer: dict[str, Any]) -> bool:
    alike = layer["mean_cosine"] > _SAME_WAY and layer["effective_rank"] < layer["random_effective_rank"] / 2
    return alike or layer["effective_rank"] < _FEW_DIRECTIONS


def as_text(report: dict[str, Any]) -> str:
    """A report of [`hf_speech_ssl.commands.probe`] as Markdown."""
    data, layers, labels = report["data"], report["layers"], report["labels"]
    lines = [f"# {report['model']} on {report['dataset']}", ""]
    if layers:
        lines.append(
            f"Linear probes, frozen encoder: {data['training_frames']:,} frames of {data['training_utterances']:,} "
            f"utterances ({report['split']})."
        )
    lines.append(
        f"Measured on {data['test_frames']:,} frames of {data['test_utterances']:,} utterances "
        f"({report['test_split']}) in {data['phones']} phones."
    )
    if data["skipped_files"]:
        lines.append(f"{data['skipped_files']} of its files could not be used.")
    if layers:
        lines.append(
            f"Always naming {data['majority_phone']}, the commonest: {_percent(data['majority_accuracy'])} %."
        )
        lines += ["", *_layer_table(layers), "", *_layer_notes(report["codes"])]
    if labels:
        lines += ["", *_label_table(labels), "", *_LABEL_NOTES]
    return "\n".join([*lines, "", *report["remarks"]]).rstrip()


def _layer_table(layers: list[dict[str, Any]]) -> list[str]:
    head = ["layer", "phones, %", "random", "gain", "effective rank", "mean cosine", "codes used, %", "perplexity"]
    measures = (("effective_rank", 1, 1), ("mean_cosine", 2, 1), ("code_usage", 1, 100), ("code_perplexity", 1, 1))
    rows = [
        [
            f"{layer['layer']} ({layer['what']})" if layer["layer"] == 0 else str(layer["layer"]),
            _percent(layer["accuracy"], layer["accuracy_interval"]),
            _percent(layer["random_accuracy"]),
            _points(layer["gain"], layer["gain_interval"]),
            *(
                f"{layer[name] * scale:.{digits}f} ({layer['random_' + name] * scale:.{digits}f})"
                for name, digits, scale in measures
            ),
        ]
        for layer in layers
    ]
    return markdown_table(head, rows)


def _layer_notes(codes: str) -> list[str]:
    return [
        "Phones: share of the test frames that lie in a phone whose phone the layer's probe names, ± half of a 95 %",
        "bootstrap interval over utterances. Random and in brackets: the same encoder with random weights.",
        "Effective rank: directions that the frames fill. Mean cosine: 1 if all frames point the same way.",
        f"Codes: {codes}. Perplexity 1 is one code for all frames.",
    ]


_LABEL_NOTES = [
    "Purity and PNMI rise with the number of labels in use, whatever the labels know. In brackets: the same labels",
    "dealt out to the frames at random. What labels know is what they score above that.",
]


def _label_table(labels: list[dict[str, Any]]) -> list[str]:
    head = ["labels", "phone purity", "PNMI", "cluster purity", "in use", "frames a label"]
    rows = [
        [
            one["name"],
            *(
                f"{one[name]:.3f} ({one['shuffled_' + name]:.3f})"
                for name in ("phone_purity", "pnmi", "cluster_purity")
            ),
            f"{one['num_labels']:,} of {one['codebook_size']:,}",
            f"{one['num_frames'] / one['num_labels']:.1f}",
        ]
        for one in labels
    ]
    return markdown_table(head, rows)


def _percent(share: float, interval: list[float | None] | None = None) -> str:
    return f"{100 * share:.1f}{_plus_minus(interval)}"


def _points(difference: float, interval: list[float | None] | None = None) -> str:
    return f"{100 * difference:+.1f}{_plus_minus(interval)}"


def _plus_minus(interval: list[float | None] | None) -> str:
    low, high = interval or (None, None)
    return "" if low is None or high is None else f" ± {50 * (high - low):.1f}"
