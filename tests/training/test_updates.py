"""The gradient contract: a mean over all units of all batches, wherever they are computed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from toys import free_port, gradients_of_update, noise, toy_model

from hf_speech_ssl.modeling.feature_extraction_speech_ssl import SpeechSSLFeatureExtractor
from hf_speech_ssl.training.diagnostics import means
from hf_speech_ssl.training.settings import TrainingSettings
from hf_speech_ssl.training.updates import SelfSupervised, TrainStep

norm_of = torch.nn.utils.get_total_norm

HERE = Path(__file__).parent


def reference_gradients(*utterances):
    """The plain way: one loss over all units of all utterances, one backward pass."""
    model, total, count = toy_model(), 0.0, 0
    for utterance in utterances:
        features, mask = SpeechSSLFeatureExtractor().extract(utterance.waveforms, utterance.lengths)
        output = model(features, mask)
        total, count = total + output.loss * output.num_masked_frames, count + output.num_masked_frames
    (total / count).backward()
    return {name: p.grad for name, p in model.named_parameters()}, float(total.detach() / count), int(count)


def assert_same(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-8)


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    file = tmp_path_factory.mktemp("two") / "results.pt"
    environment = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    environment |= {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    command = [sys.executable, str(HERE / "two_processes.py"), str(file)]
    workers = [
        subprocess.Popen(command, env={**environment, "RANK": rank, "LOCAL_RANK": rank}, stderr=subprocess.PIPE)
        for rank in "01"
    ]
    for worker in workers:
        _, errors = worker.communicate(timeout=120)
        assert worker.returncode == 0, errors.decode()
    return torch.load(file)


BATCHES = {
    "one batch each": [noise(8000, 2000), noise(1600, seed=7)],
    "two steps each": [noise(8000), noise(2000, seed=2), noise(1600, seed=7), noise(3000, 2500, seed=3)],
    "one has no audio": [noise(8000, 2000)],
}


@pytest.mark.parametrize("case", BATCHES)
def test_two_processes_give_the_gradient_of_the_mean_over_all_units(two_processes, case):
    gradients, loss, count = reference_gradients(*BATCHES[case])
    result = two_processes[case]
    assert_same(result["gradients"], gradients)
    assert int(result["sums"]["units"]) == count
    assert means(result["sums"])["loss"] == pytest.approx(loss, rel=1e-5)
    assert means(result["sums"])["twice_the_loss"] == pytest.approx(2 * loss, rel=1e-5)


@pytest.mark.parametrize("case", BATCHES)
def test_accumulation_steps_give_the_gradient_of_the_mean_over_all_units(case):
    gradients, loss, count = reference_gradients(*BATCHES[case])
    actual, sums = gradients_of_update(Accelerator(cpu=True), BATCHES[case])
    assert_same(actual, gradients)
    assert (int(sums["units"]), means(sums)["loss"]) == (count, pytest.approx(loss, rel=1e-5))


def test_the_counts_of_these_batches_are_uneven():
    counts = [reference_gradients(batch)[2] for batch in BATCHES["two steps each"]]
    assert len(set(counts)) > 2, "with even counts a plain mean of means would pass as well"


def learner(**settings) -> TrainStep:
    settings = TrainingSettings(output_dir="unused", **settings)
    objective = SelfSupervised(SpeechSSLFeatureExtractor())
    return TrainStep(Accelerator(cpu=True), toy_model(), objective, settings, lambda step: 1.0)


@pytest.mark.parametrize("kind", ["no audio", "NaN loss"])
def test_an_update_without_units_or_with_nan_changes_nothing(kind):
    ours = learner()
    ours.update(1, [noise(4000)])
    before = [p.clone() for p in ours.parameters]
    moments = [state["exp_avg"].clone() for state in ours.adamw.state.values()]
    if kind == "NaN loss":
        spoil = lambda module, inputs, output: type(output)({**output, "loss": output["loss"] * float("nan")})
        ours.bare_model.register_forward_hook(spoil)
    sums = ours.update(2, [noise(4000) if kind == "NaN loss" else noise()])
    assert sums["skipped"] == 1 and sums["units"] == 0
    torch.testing.assert_close([*ours.parameters], before, rtol=0, atol=0)
    torch.testing.assert_close([s["exp_avg"] for s in ours.adamw.state.values()], moments, rtol=0, atol=0)
    assert all(state["step"] == 1 for state in ours.adamw.state.values())


def test_clipping_bounds_the_norm_and_reports_the_one_before():
    ours = learner(max_grad_norm=1e-3)
    norms = []
    ours.adamw.register_step_pre_hook(lambda *_: norms.append(float(norm_of(p.grad for p in ours.parameters))))
    sums = ours.update(1, [noise(8000)])
    gradients, _, _ = reference_gradients(noise(8000))
    assert float(sums["grad_norm"]) == pytest.approx(float(norm_of(gradients.values())), rel=1e-5)
    assert norms == [pytest.approx(1e-3, rel=1e-2)]


def test_a_frozen_encoder_keeps_still_while_the_head_learns():
    ours = learner(freeze_encoder_steps=1, weight_decay=0.1)
    encoder, head = ours.bare_model.encoder.weight.clone(), ours.bare_model.head.weight.clone()
    ours.update(1, [noise(4000)])
    assert torch.equal(encoder, ours.bare_model.encoder.weight) and not torch.equal(head, ours.bare_model.head.weight)
    ours.update(2, [noise(4000)])
    assert not torch.equal(encoder, ours.bare_model.encoder.weight)


def test_weight_decay_spares_biases_and_norms():
    for group in learner(weight_decay=0.5).adamw.param_groups:
        assert {p.ndim >= 2 for p in group["params"]} == {group["weight_decay"] == 0.5}
