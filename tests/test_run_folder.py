"""The run's folder: names of metrics and checkpoints, records that are read as they were written."""

import json
import math

import pytest

from hf_speech_ssl.run_folder import (
    LogEntry,
    MetricName,
    RunArguments,
    RunResults,
    TrainingState,
    append_to_log,
    checkpoint_name,
    checkpoint_step,
    cut_log_after,
    read_log,
)
from hf_speech_ssl.verdict import LabelUse, LayerRank, Verdict

NAMES = {
    "eval_loss": MetricName("loss"),
    "eval_anchor_loss": MetricName("anchor_loss"),
    "eval_320ms_wer": MetricName("wer", mode="320 ms"),
    "eval_test_wer": MetricName("wer", "test"),
    "eval_test.clean_160ms_cer": MetricName("cer", "test.clean", "160 ms"),
    "eval_dev_other_anchor_loss": MetricName("anchor_loss", "dev_other"),
}


@pytest.mark.parametrize("name", NAMES)
def test_a_metric_name_is_parsed_into_what_it_was_built_from(name):
    assert str(NAMES[name]) == name and MetricName.parse(name) == NAMES[name]


def test_the_splits_of_a_run_decide_where_a_name_is_cut():
    splits = ["dev", "dev_other"]
    assert MetricName.parse("eval_dev_other_new_score", splits) == MetricName("new_score", "dev_other")
    assert MetricName.parse("eval_dev_other_score", ["dev", "test"]) == MetricName("other_score", "dev")
    assert MetricName.parse("eval_anchor_loss", ["anchor"]) == MetricName("anchor_loss"), "one split is not named"
    assert MetricName.among(splits, "dev", "wer") == MetricName("wer", "dev")
    assert MetricName.among(["dev"], "dev", "wer") == MetricName("wer")
    assert [MetricName.parse(name) for name in ("loss", "evaluated_step", "eval_", "eval")] == [None] * 4


def test_checkpoints_are_known_by_their_names(tmp_path):
    assert checkpoint_step(tmp_path / checkpoint_name(12)) == 12
    assert [checkpoint_step(name) for name in ("checkpoint-12.partial", "checkpoint-", "my-checkpoint-1")] == [
        None
    ] * 3


def test_results_are_read_as_they_were_written(tmp_path):
    verdict = Verdict([LabelUse("anchor", 3, 2.5, 0.5, 0.1, 0.6, 4)], [LayerRank(0, 8.0, 9.0)], ["It learns."])
    results = RunResults(
        10, 1.5, 0.5, 1000, 1, "CPU", final_model_step=8, metrics={"eval_loss": 2.0}, verdict=verdict, other={"x": 1}
    )
    results.write(tmp_path)
    assert RunResults.read(tmp_path) == results
    RunResults(10, 1.5, 0.5, 1000, 1, "CPU", metrics={"eval_loss": math.inf}).write(tmp_path)
    assert math.isnan(RunResults.read(tmp_path).metrics["eval_loss"])


def test_unknown_fields_of_a_checkpoint_are_passed_over(tmp_path):
    TrainingState(step=3, best_metric=math.nan).write(tmp_path)
    file = tmp_path / "training_state.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "of_next_year": 1}))
    assert TrainingState.read(tmp_path) == TrainingState(step=3, best_metric=None)


def test_flags_lose_their_folders(tmp_path):
    RunArguments({"output_dir": "/data/ana/run", "dataset_name": "synthetic", "eval_split_name": "a, b,"}).write(
        tmp_path
    )
    arguments = RunArguments.read(tmp_path)
    assert arguments.get("output_dir") == "run" and arguments.eval_splits == ["a", "b"]
    with pytest.raises(ValueError, match="run_arguments.json has no model_name_or_path"):
        RunArguments.read(tmp_path, ["model_name_or_path"])


def test_half_a_line_of_the_log_stops_nothing(tmp_path):
    for step in (1, 2, 3):
        append_to_log(tmp_path, step, {"loss": math.nan if step == 2 else float(step)})
    with (tmp_path / "train_log.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    first, second, third = read_log(tmp_path)
    assert (first, third) == (LogEntry(1, {"loss": 1.0}), LogEntry(3, {"loss": 3.0}))
    assert second.step == 2 and math.isnan(second.values["loss"])
    cut_log_after(tmp_path, 2)
    append_to_log(tmp_path, 3, {"loss": 0.5})
    lines = (tmp_path / "train_log.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"step": 1, "loss": 1.0},
        {"step": 2, "loss": None},
        {"step": 3, "loss": 0.5},
    ]
