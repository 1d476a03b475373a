"""A run as a whole: resume, best checkpoint, logs, interruption."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from toys import ToyBatches, free_port, noise, tiny_birq

from hf_speech_ssl import BiRQForPreTraining, SpeechSSLFeatureExtractor
from hf_speech_ssl.training.evaluators import LossEvaluator
from hf_speech_ssl.training.loop import TrainingLoop
from hf_speech_ssl.training.run import started_run
from hf_speech_ssl.training.settings import TrainingSettings
from hf_speech_ssl.training.updates import SelfSupervised

HERE = Path(__file__).parent


def make_loop(folder, batches=None, evaluator=LossEvaluator, max_steps=6, model=None, objective=None, **settings):
    """A run of a tiny BiRQ on noise; its folder is its own until `run` returns."""
    settings = {"logging_steps": 2, "save_steps": 3, "eval_steps": 0, "report_to": "none", **settings}
    settings = TrainingSettings(output_dir=str(folder), warmup_steps=2, learning_rate=1e-3, **settings)
    stack, model = ExitStack(), model or tiny_birq()
    run = stack.enter_context(started_run(settings))
    features = SpeechSSLFeatureExtractor()
    objective, batches = objective or SelfSupervised(features), batches or ToyBatches()
    if evaluator is LossEvaluator:
        evaluator = LossEvaluator(run.accelerator, objective, {"noise": batches})
    loop = TrainingLoop(run, model, features, objective, batches, max_steps, evaluator)
    train = loop.run

    def train_and_leave():
        with stack:
            return train()

    loop.run, loop.leave = train_and_leave, stack.close
    return loop


def log_of(folder):
    return [json.loads(line) for line in (folder / "train_log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    loop = make_loop(folder, eval_steps=2, report_to="tensorboard")
    loop.draw, loop.picture_steps = picture_of_random_labels, 4  # resumed runs, which draw none, must not differ
    loop.run()
    return folder


def picture_of_random_labels(model):
    assert not model.training and not torch.is_grad_enabled()
    return np.full((2, 3, 3), 255 * (model.prediction_head.weight.sum() > 0), dtype=np.uint8)


def test_a_resumed_run_has_the_weights_of_an_uninterrupted_one(whole_run, tmp_path):
    class Stops(ToyBatches):
        def infinite_batches(self, start=None):
            yield from (batch for batch, _ in zip(super().infinite_batches(start), range(4), strict=False))

    with pytest.raises(StopIteration):  # dies in update 5, after checkpoint-4
        make_loop(tmp_path, Stops(), eval_steps=2).run()
    assert not (tmp_path / "model.safetensors").exists()
    torch.manual_seed(123)  # a new process has other random numbers
    make_loop(tmp_path, eval_steps=2, resume_from_checkpoint="last").run()

    expected, actual = load_file(whole_run / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert expected.keys() == actual.keys() and all(torch.equal(expected[name], actual[name]) for name in expected)
    moments = [torch.load(f / "checkpoint-6" / "optimizer.pt")["optimizer"] for f in (whole_run, tmp_path)]
    torch.testing.assert_close(*moments, rtol=0, atol=0)
    states = [json.loads((f / "checkpoint-6" / "training_state.json").read_text()) for f in (whole_run, tmp_path)]
    for state in states:
        assert state.pop("training_seconds") > 0
    assert states[0] == states[1]
    assert [(line["step"], line.get("eval_loss")) for line in log_of(tmp_path)] == [
        (line["step"], line.get("eval_loss")) for line in log_of(whole_run)
    ]


def test_the_seed_matters_to_that(whole_run, tmp_path):
    make_loop(tmp_path, eval_steps=2, seed=1).run()
    expected, actual = load_file(whole_run / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert not all(torch.equal(expected[name], actual[name]) for name in expected)


def test_pictures_of_the_model_as_it_is_go_to_tensorboard(whole_run):
    from helpers import tracked_pictures  # other processes import this file from elsewhere

    assert [(one.step, one.width, one.height) for one in tracked_pictures(whole_run)] == [(4, 3, 2), (6, 3, 2)]


def test_the_final_folder_loads(whole_run):
    model = BiRQForPreTraining.from_pretrained(whole_run)
    features, mask = SpeechSSLFeatureExtractor.from_pretrained(whole_run).extract(
        torch.randn(1, 8000), torch.tensor([8000])
    )
    assert torch.isfinite(model(features, mask).loss)
    assert BiRQForPreTraining.from_pretrained(whole_run / "checkpoint-3").config == model.config


def test_the_log_names_every_scalar_and_the_rates(whole_run):
    lines = [line for line in log_of(whole_run) if "loss" in line]
    assert [line["step"] for line in lines] == [2, 4, 6]
    names = "loss anchor_loss enhanced_loss accuracy codebook_perplexity num_masked_frames learning_rate grad_norm "
    names += "audio_seconds_per_second padding_share audio_hours skipped_updates data_wait_share"
    assert set(names.split()) <= set(lines[-1])
    batches = [noise(4000, 3000 + 160 * (index % 7)) for index in range(6)]
    assert lines[-1]["audio_hours"] * 3600 == pytest.approx(sum(batch.seconds for batch in batches))
    shares = [1 - batch.seconds * 16_000 / batch.waveforms.numel() for batch in batches[4:]]
    assert lines[-1]["padding_share"] == pytest.approx(sum(shares) / 2)
    assert lines[0]["learning_rate"] == pytest.approx(1e-3)
    assert lines[-1]["loss"] == pytest.approx(2.4 * lines[-1]["anchor_loss"] + 0.1 * lines[-1]["enhanced_loss"])
    assert list(whole_run.glob("runs/**/events*")), "no TensorBoard events"


def test_evaluations_are_comparable_and_leave_the_training_alone(whole_run, tmp_path):
    make_loop(tmp_path, evaluator=None).run()
    expected, actual = load_file(whole_run / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(expected[name], actual[name]) for name in expected)
    loop = make_loop(tmp_path / "other")
    first, second = (loop.evaluator(loop.train_step.model, loop.interruption) for _ in range(2))
    assert first == second and first["eval_loss"] > 0


class ScriptedEvaluator:
    metric, examples = "eval_loss", ()

    def __init__(self, *values):
        self.values = list(values)
        self.weights = []

    def try_one_batch(self, model):
        pass

    def __call__(self, model, interruption):
        self.weights.append(model.prediction_head.weight.detach().clone())
        return {"eval_loss": self.values.pop(0)}


def test_the_best_checkpoint_survives_and_becomes_the_final_model(tmp_path):
    evaluator = ScriptedEvaluator(3.0, 1.0, 2.0, float("nan"), 2.0, 2.0, 1.5)
    loop = make_loop(
        tmp_path, evaluator=evaluator, eval_steps=1, save_steps=1, save_total_limit=2, load_best_model_at_end=True
    )
    metrics = loop.run()
    assert sorted(folder.name for folder in tmp_path.glob("checkpoint-*")) == [f"checkpoint-{n}" for n in (2, 5, 6)]
    assert metrics == {"eval_loss": 1.5}, "the final metrics are those of the final model"
    assert torch.equal(load_file(tmp_path / "model.safetensors")["prediction_head.weight"], evaluator.weights[1])


def test_a_folder_with_checkpoints_is_not_overwritten(whole_run, tmp_path):
    with pytest.raises(ValueError, match="already holds checkpoint-6.*--resume_from_checkpoint last"):
        make_loop(whole_run).run()
    with pytest.raises(ValueError, match="no checkpoint to resume from"):
        make_loop(tmp_path, resume_from_checkpoint=str(tmp_path / "checkpoint-9")).run()
    model = tiny_birq()
    del model.prediction_head
    with pytest.raises(ValueError, match="not those of this BiRQForPreTraining"):
        make_loop(tmp_path, model=model, resume_from_checkpoint=str(whole_run / "checkpoint-6"))


def test_half_written_checkpoints_are_not_resumed_from(tmp_path):
    (tmp_path / "checkpoint-50.partial").mkdir()
    (tmp_path / "checkpoint-40").mkdir()
    make_loop(tmp_path, resume_from_checkpoint="last", evaluator=None).run()
    assert log_of(tmp_path)[0]["step"] == 2
    assert not (tmp_path / "checkpoint-50.partial").exists()


def test_a_run_without_finite_gradients_ends_with_a_reason(tmp_path):
    loop = make_loop(tmp_path, max_steps=100, evaluator=None)
    spoil = lambda module, inputs, output: type(output)({**output, "loss": output["loss"] * float("nan")})
    loop.train_step.bare_model.register_forward_hook(spoil)
    with pytest.raises(FloatingPointError, match="25 updates in a row.*learning_rate"):
        loop.run()


def test_a_run_with_nothing_to_learn_from_ends_with_a_reason(tmp_path):
    class Empty(ToyBatches):
        def infinite_batches(self, start=None):
            while True:
                yield noise()

    with pytest.raises(ValueError, match="25 updates in a row.*num_masked_frames was 0.*chunk_durations_ms"):
        make_loop(tmp_path, Empty(), max_steps=100, evaluator=None).run()


def test_weights_of_another_shape_are_refused_in_one_line(whole_run, tmp_path):
    model = tiny_birq()
    model.encoder.feature_projection.weight = torch.nn.Parameter(torch.zeros(16, 80))
    with pytest.raises(
        ValueError, match=r"1 of \d+ are .*feature_projection.weight is \[16, 160\] there and \[16, 80\] here[^\n]*$"
    ):
        make_loop(tmp_path, model=model, resume_from_checkpoint=str(whole_run / "checkpoint-6"))


def test_the_terminal_shows_error_rates_of_all_splits_and_what_marks_the_best(tmp_path, capsys):
    loop = make_loop(tmp_path, max_steps=2, evaluator=None)
    loop.run()
    loop.log.write({"eval_dev_320ms_wer": 0.25, "eval_dev_loss": 7.0, "eval_dev_cer": 0.125}, 2, "eval_dev_loss")
    loop.log.write({"loss": 1.5, "frame_accuracy": 0.75, "skipped_updates": 3.0}, 2)
    out = capsys.readouterr().out
    assert "eval_dev_320ms_wer 0.25 | eval_dev_loss 7 | 0:00:00 left" in out and "0.125" not in out
    assert (
        "loss 1.5 | skipped_updates 3 |" in out
        and "1 process on CPU, float32; 11,456 trainable parameters, 2 updates" in out
    )
    assert f"The final model is in {tmp_path}." in out


def start_endless_runs(folder, num_processes):
    """Processes of one run, once it has come to its first report."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    if num_processes > 1:
        environment |= {"WORLD_SIZE": str(num_processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    workers = [
        subprocess.Popen(
            [sys.executable, str(HERE / "endless_run.py"), str(folder)],
            env=environment | ({"RANK": str(rank), "LOCAL_RANK": str(rank)} if num_processes > 1 else {}),
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(num_processes)
    ]
    deadline = time.monotonic() + 90
    while not (folder / "train_log.jsonl").exists() or not log_of(folder):
        assert time.monotonic() < deadline, "the run never came to its first report"
        assert all(worker.poll() is None for worker in workers), "the run ended by itself"
        time.sleep(0.05)
    return workers


@pytest.mark.parametrize(("number", "code", "num_processes"), [(signal.SIGINT, 130, 1), (signal.SIGTERM, 143, 2)])
def test_a_signal_to_one_process_ends_the_run_with_a_checkpoint(tmp_path, number, code, num_processes):
    workers = start_endless_runs(tmp_path, num_processes)
    workers[-1].send_signal(number)
    outputs = [worker.communicate(timeout=60)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [code] * num_processes, outputs
    (checkpoint,) = tmp_path.glob("checkpoint-*")
    step = json.loads((checkpoint / "training_state.json").read_text())["step"]
    assert (
        f"{number.name}: stopped after update {step}" in outputs[0] and "--resume_from_checkpoint last" in outputs[0]
    )
    for rank in range(num_processes):
        assert torch.load(checkpoint / f"process-{rank:05d}.pt")["position"]["epoch"] == step
    # With one process, whatever the number before.
    make_loop(tmp_path, resume_from_checkpoint="last", max_steps=step + 1, evaluator=None).run()


@pytest.mark.parametrize("option", [{"mixed_precision": "bf16"}, {"gradient_checkpointing": True}])
def test_memory_savers_change_little(whole_run, tmp_path, option):
    AcceleratorState._reset_state(reset_partial_state=True)  # which else refuses another precision
    make_loop(tmp_path, eval_steps=2, **option).run()
    losses = [[line["loss"] for line in log_of(folder) if "loss" in line] for folder in (whole_run, tmp_path)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-2 if "mixed_precision" in option else 1e-5)
    assert {value.dtype for value in load_file(tmp_path / "model.safetensors").values()} == {torch.float32}
    AcceleratorState._reset_state(reset_partial_state=True)
