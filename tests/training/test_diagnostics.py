"""What a run says of its labels, from statistics over many updates."""

import math
import re
from dataclasses import dataclass

import pytest
import torch
from test_loop import log_of, make_loop

from hf_speech_ssl import SpeechSSLFeatureExtractor
from hf_speech_ssl.training import loop as loop_module
from hf_speech_ssl.training.diagnostics import label_warnings
from hf_speech_ssl.training.updates import SelfSupervised
from hf_speech_ssl.verdict import LabelUse

HEALTHY = {"kind": "anchor", "entries_used": 500, "perplexity": 300.0, "commonest_share": 0.02, "accuracy": 0.1}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, None),
        ({"perplexity": 3.0}, "The anchor labels collapse: .* perplexity is 3.0.*projection_kind=whitened"),
        ({"commonest_share": 0.5, "accuracy": 0.9}, "collapse: 50.0 %"),
        ({"kind": "enhanced", "perplexity": 2.0}, "The enhanced labels collapse.*enhanced_label_kind=clusters"),
        ({"accuracy": 0.02}, "no better than a constant guess: 2.0 % of the anchor .* makes up 2.0 %"),
        ({"loudness": 0.88}, "mostly say how loud .* 88 % .*projection_kind=whitened"),
        ({"loudness": 0.73, "accuracy": None}, None),
    ],
)
def test_labels_that_teach_nothing_are_named_with_a_remedy(changes, message):
    found = list(label_warnings([LabelUse(**{**HEALTHY, **changes})]).values())
    assert len(found) == (message is not None)
    assert message is None or re.search(message, found[0])


@dataclass(frozen=True)
class Collapsed(SelfSupervised):
    """Pretraining whose model says that its labels have collapsed."""

    def __call__(self, model, batch, device):
        output, units = super().__call__(model, batch, device)
        names = ("anchor_labels_used", "anchor_label_perplexity", "anchor_top_label_share", "anchor_label_loudness")
        return {**output, **dict(zip(names, torch.tensor([9.0, 2.0, 0.9, 0.1]), strict=True))}, units


def test_a_run_warns_once_of_labels(tmp_path, capsys, monkeypatch):
    objective = Collapsed(SpeechSSLFeatureExtractor())
    make_loop(tmp_path / "short", objective=objective, evaluator=None, logging_steps=1).run()
    assert "Warning" not in capsys.readouterr().out, "after a few seconds of audio nobody can know"
    monkeypatch.setattr(loop_module, "JUDGED_SECONDS", 0.0)
    make_loop(tmp_path / "long", objective=objective, evaluator=None, logging_steps=1).run()
    out = capsys.readouterr().out
    assert "| anchor_label_perplexity 2 | anchor_top_label_share 0.9 |" in out
    assert out.count("Warning: The anchor labels collapse") == 1 and "constant guess" not in out


class SometimesNothing(SelfSupervised):
    """Pretraining whose second batch has no masked frame and whose fourth has no finite loss."""

    def __call__(self, model, batch, device):
        output, units = super().__call__(model, batch, device)
        number = batch.position.epoch
        return {**output, "loss": output["loss"] * (math.nan if number == 4 else 1)}, units * (number != 2)


def test_updates_that_learn_nothing_are_counted_by_their_reason_and_a_resumed_run_goes_on_counting(tmp_path, capsys):
    objective = SometimesNothing(SpeechSSLFeatureExtractor())
    make_loop(tmp_path, objective=objective, evaluator=None).run()
    counts = [(line["skipped_updates"], line["empty_updates"]) for line in log_of(tmp_path)]
    assert counts == [(1, 1), (2, 1), (2, 1)]
    out = capsys.readouterr().out
    assert out.count("Note: skipped_updates counts updates that changed no weight") == 1
    assert "| skipped_updates 2 | empty_updates 1 |" in out
    resumed = make_loop(
        tmp_path, objective=objective, evaluator=None, resume_from_checkpoint=str(tmp_path / "checkpoint-3")
    )
    resumed.run()
    results = resumed.results()
    assert (results.skipped_updates, results.empty_updates) == (2, 1)
