"""The verdict on pretraining, from the figures of a log and from results.json."""

import math

import pytest

from hf_speech_ssl.verdict import LabelUse, LayerRank, Verdict


def figures(kind: str, **changed: float) -> dict[str, float]:
    values = {"labels_used": 40.0, "label_perplexity": 12.5, "top_label_share": 0.25, "label_loudness": 0.1}
    return {f"{kind}_{name}".lstrip("_"): value for name, value in {**values, **changed}.items()}


def test_the_kinds_of_labels_of_a_log_line():
    anchor, enhanced = LabelUse.all_from_log({"accuracy": 0.5, **figures("anchor"), **figures("enhanced")})
    assert anchor == LabelUse("anchor", 40, 12.5, 0.25, 0.1, accuracy=0.5)
    assert enhanced == LabelUse("enhanced", 40, 12.5, 0.25, 0.1), "the accuracy is that of the first kind"
    (only,) = LabelUse.all_from_log({"accuracy": 0.9, "frame_accuracy": 0.5, **figures("")})
    assert (only.kind, only.accuracy) == ("", 0.5), (
        "of all channels of a frame, as the share of the commonest label is"
    )


@pytest.mark.parametrize(
    "values", [{"loss": 1.0}, figures("anchor", label_loudness=math.nan), {"top_label_share": 1.0}]
)
def test_lines_without_whole_statistics_have_none(values):
    assert LabelUse.all_from_log(values) == [] and Verdict.from_log([values]) is None


def test_the_last_line_with_statistics_counts():
    lines = [figures("anchor"), figures("anchor", labels_used=3.0), {"loss": 1.0}]
    verdict = Verdict.from_log(lines)
    assert verdict is not None and [use.entries_used for use in verdict.labels] == [3]


def test_fields_of_another_version_are_passed_over():
    label = {"kind": "anchor", "entries_used": 1, "perplexity": 1.0, "commonest_share": 1.0, "of_next_year": 2}
    values = {"labels": [label], "layers": [{"layer": 1, "effective_rank": 2.0, "of_next_year": 3}], "of_next_year": 4}
    assert Verdict.from_values(values) == Verdict([LabelUse("anchor", 1, 1.0, 1.0)], [LayerRank(1, 2.0)], [])
