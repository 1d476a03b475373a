"""training_curves.png: drawn from logs as runs leave them, whole, resumed, broken or empty."""

import json
import math

import numpy as np
import pytest
from matplotlib.image import imread

from hf_speech_ssl.hub import draw_training_curves
from hf_speech_ssl.hub.curves import LOSS, PANELS, draw, lines_of, read_curves

TITLES = {panel.title: panel for panel in PANELS}


def log_of(folder, *entries):
    (folder / "train_log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return folder


def pretraining_log(folder, updates=30):
    entries = [
        {
            "step": step,
            "loss": 20 / step,
            "anchor_loss": 10 / step,
            "accuracy": step / 100,
            "learning_rate": 1e-3,
            "codebook_perplexity": 40.0,
            "codebook_usage": 0.3,
        }
        for step in range(1, updates + 1)
    ]
    return log_of(folder, *entries, {"step": updates, "eval_loss": 0.5, "eval_anchor_loss": 0.2, "eval_accuracy": 0.3})


def panels_drawn(folder):
    curves = read_curves(folder)
    return {panel.title: lines_of(panel, curves) for panel in (LOSS, *PANELS) if lines_of(panel, curves)}


def test_a_run_becomes_small_pictures(tmp_path):
    file = draw_training_curves(pretraining_log(tmp_path))
    assert file == tmp_path / "training_curves.png"
    picture = imread(file)
    assert picture.shape[1] >= 1400, "sharp at the width of a card"
    assert 0.01 < np.mean(picture[..., :3].min(-1) < 0.9) < 0.5, "something is drawn, on a light ground"
    drawn = panels_drawn(tmp_path)
    titles = ["loss", "accuracy at masked frames", "perplexity of the labels", "use of the labels", "learning rate"]
    assert list(drawn) == titles
    assert [line.label for line in drawn["loss"]] == ["loss", "anchor loss", "evaluation"]
    assert [line.label for line in drawn["accuracy at masked frames"]] == ["accuracy", "evaluation"]
    assert drawn["accuracy at masked frames"][0].series[30] == pytest.approx(30.0), "in percent"


def test_axes_have_units_and_lines_names(tmp_path):
    drawn = panels_drawn(pretraining_log(tmp_path))
    figure = draw([(TITLES.get(title, LOSS), lines) for title, lines in drawn.items()])
    assert [axes.get_ylabel() for axes in figure.axes] == ["nats", "%", "effective number", "%", ""]
    assert figure.get_supxlabel() == "updates"
    assert all(axes.get_xlim() == (0, 30) for axes in figure.axes)
    legends = [
        [text.get_text() for text in axes.get_legend().get_texts()] for axes in figure.axes if axes.get_legend()
    ]
    assert legends == [
        ["loss", "anchor loss", "evaluation"],
        ["accuracy", "evaluation"],
        ["codebook perplexity"],
        ["codebook usage"],
    ]


def test_error_rates_of_every_split_and_chunk_size(tmp_path):
    names = ("eval_validation_wer", "eval_test_wer", "eval_test_320ms_wer", "eval_test_cer")
    log_of(tmp_path, {"step": 5, "loss": 2.0}, *({"step": 10 * i, **dict.fromkeys(names, 1 / i)} for i in (1, 2)))
    lines = panels_drawn(tmp_path)["WER in evaluations"]
    assert [line.label for line in lines] == ["validation", "test", "test 320 ms"]
    assert lines[0].series == {10: 100.0, 20: 50.0} and len({line.color for line in lines}) == 3
    assert draw_training_curves(tmp_path)


def test_updates_made_again_replace_those_of_before(tmp_path):
    steps = [10, 20, 30, 20, 30, 40, 35]
    log_of(tmp_path, *({"step": step, "loss": float(i)} for i, step in enumerate(steps)))
    assert read_curves(tmp_path) == {"loss": {10: 0.0, 20: 3.0, 30: 4.0, 35: 6.0}}
    assert draw_training_curves(tmp_path)


def test_the_best_checkpoint_evaluated_again_at_the_end_is_no_point_of_the_curve(tmp_path):
    log_of(tmp_path, {"step": 10, "eval_wer": 0.2}, {"step": 20, "eval_wer": 0.5}, {"step": 20, "eval_wer": 0.2})
    assert read_curves(tmp_path)["eval_wer"] == {10: 0.2, 20: 0.5}


def test_what_is_not_finite_is_a_gap_and_a_lonely_point_a_dot(tmp_path):
    values = [1.0] * 30
    values[10], values[12], values[20] = math.nan, math.inf, -math.inf
    log_of(tmp_path, *({"step": i, "loss": value, "accuracy": math.nan} for i, value in enumerate(values)))
    drawn = panels_drawn(tmp_path)
    assert list(drawn) == ["loss"], "nothing to draw of the accuracy"
    series = drawn["loss"][0].series
    assert [step for step, value in series.items() if not math.isfinite(value)] == [10, 12, 20]
    (line,) = draw([(LOSS, drawn["loss"])]).axes[0].get_lines()
    assert line.get_markevery() == [11]
    assert draw_training_curves(tmp_path)


@pytest.mark.parametrize("log", [None, "", "\n", "{\n", '{"step": 3}\n', '{"loss": 3}\n', "[1]\nnull\n"])
def test_a_log_without_values_gives_no_picture_and_takes_an_old_one_away(tmp_path, log):
    (tmp_path / "training_curves.png").write_bytes(b"of before")
    if log is not None:
        (tmp_path / "train_log.jsonl").write_text(log)
    assert draw_training_curves(tmp_path) is None
    assert not (tmp_path / "training_curves.png").exists()


def test_a_line_that_a_killed_run_left_is_passed_over(tmp_path):
    log_of(tmp_path, {"step": 1, "loss": 2.0, "note": "text", "flag": True})
    with (tmp_path / "train_log.jsonl").open("ab") as file:
        file.write(b'{"step": 2, "los\xff')
    assert read_curves(tmp_path) == {"loss": {1: 2.0}}
    assert draw_training_curves(tmp_path)


def test_the_loss_of_a_tokenizer_is_a_squared_error(tmp_path):
    log_of(tmp_path, {"step": 1, "loss": 1.0, "explained_variance": -0.1}, {"step": 2, "loss": 0.5})
    assert draw_training_curves(tmp_path)
    assert panels_drawn(tmp_path)["variance of the features explained"][0].series == {1: -10.0}


def test_no_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        draw_training_curves(tmp_path / "nowhere")


def test_accuracy_stands_beside_the_share_of_the_commonest_label(tmp_path):
    entries = [
        {"step": s, "accuracy": 0.1, "anchor_top_label_share": 0.2, "anchor_label_perplexity": 9} for s in (1, 2)
    ]
    drawn = panels_drawn(log_of(tmp_path, *entries))
    accuracy = drawn["accuracy at masked frames"]
    assert [(line.label, line.series[2]) for line in accuracy] == [
        ("accuracy", 10.0),
        ("anchor top label share", 20.0),
    ]
    assert [line.label for line in drawn["perplexity of the labels"]] == ["anchor label perplexity"]
    assert draw_training_curves(tmp_path)
