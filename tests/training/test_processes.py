"""What was asked for and what runs: two processes, started in every way that people start them."""

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from toys import free_port

from hf_speech_ssl.training import processes
from hf_speech_ssl.training.processes import checked_trackers, describe_processes, make_accelerator
from hf_speech_ssl.training.settings import TrainingSettings

HERE = Path(__file__).parent
SCRIPT = str(HERE / "toy_script.py")
CONFIG = (
    "compute_environment: LOCAL_MACHINE\nnum_machines: 1\nnum_processes: 2\nmixed_precision: 'no'\nuse_cpu: true\n"
)
FSDP = "distributed_type: FSDP\nfsdp_config:\n  fsdp_version: 2\n  fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP\n"
WORKS = f"This works: ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2 {SCRIPT}"


def start(launcher, *flags, **environment):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **environment}
    command = [sys.executable, "-m", *shlex.split(launcher), SCRIPT, *map(str, flags)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def torchrun(*flags):
    launcher = f"torch.distributed.run --nproc_per_node 2 --master_port {free_port()}"
    return start(launcher, *flags, ACCELERATE_USE_CPU="true")


@pytest.mark.slow
def test_accelerate_that_starts_too_few_or_lonely_processes_is_refused(tmp_path):
    for name, text in {"multi_cpu": "distributed_type: MULTI_CPU\n", "fsdp": FSDP}.items():
        (tmp_path / f"{name}.yaml").write_text(CONFIG + text)
    accelerate = f"accelerate.commands.launch --main_process_port {free_port()} "
    ways = {"flags": accelerate + "--cpu --num_processes 2"}
    ways |= {name: f"{accelerate}--config_file {tmp_path / name}.yaml" for name in ("multi_cpu", "fsdp")}
    ways |= {"no_cpu_flag": f"torch.distributed.run --nproc_per_node 2 --master_port {free_port()}"}
    runs = {name: start(way, tmp_path / name, 0) for name, way in ways.items()}
    for name, run in runs.items():
        output = run.communicate(timeout=240)[0]
        assert run.returncode != 0 and f"{WORKS} {tmp_path / name} 0" in output, output
        assert ("FSDP, which shards" if name == "fsdp" else "2 processes were asked for") in output


def workers_of(run):
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(run.pid)], capture_output=True, text=True)
    return [int(pid) for pid in found.stdout.split()]


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # it may end between any two looks at it
        return False


def test_two_processes_train_resume_to_the_bit_and_end_together(tmp_path):
    run = torchrun(tmp_path, 100_000)
    deadline = time.monotonic() + 180
    while not (tmp_path / "checkpoint-4").exists():
        assert run.poll() is None and time.monotonic() < deadline, run.communicate(timeout=9)[0]
        time.sleep(0.05)
    first, second = workers_of(run)
    os.kill(second, signal.SIGKILL)
    killed = time.monotonic()
    while is_running(first):
        assert time.monotonic() < killed + 10, "the other process goes on alone"
        time.sleep(0.01)
    assert time.monotonic() < killed + 3  # 0.2 s on an idle machine
    output = run.communicate(timeout=60)[0]
    assert run.returncode != 0 and output.startswith("2 processes on CPU, float32, DistributedDataParallel over gloo;")

    run = torchrun(tmp_path, 4, tmp_path / "checkpoint-2")
    output = run.communicate(timeout=180)[0]
    assert run.returncode == 0 and "2 updates to make" in output, output
    old, new = (load_file(f / "model.safetensors") for f in (tmp_path / "set_aside" / "1" / "checkpoint-4", tmp_path))
    assert all(torch.equal(new[name], value) for name, value in old.items())


def test_trackers_that_cannot_be_are_named(monkeypatch):
    monkeypatch.setattr(processes, "get_available_trackers", lambda: ["tensorboard"])
    assert checked_trackers("tensorboard, none") == ["tensorboard"]
    with pytest.raises(ValueError, match="--report_to wandb needs a package that is not installed: pip install wandb"):
        checked_trackers("tensorboard,wandb")
    with pytest.raises(ValueError, match="no tracker 'wandbb'; --report_to takes .*tensorboard"):
        checked_trackers("wandbb")


def test_fp16_is_refused_where_it_cannot_be(tmp_path, request):
    AcceleratorState._reset_state(reset_partial_state=True)  # which else refuses another precision
    request.addfinalizer(lambda: AcceleratorState._reset_state(reset_partial_state=True))
    with pytest.raises(ValueError, match="fp16 needs a GPU.*--mixed_precision"):
        make_accelerator(TrainingSettings(output_dir=str(tmp_path), mixed_precision="fp16", report_to="none"))


@pytest.mark.parametrize(("capabilities", "told"), [({"avx2": True}, True), ({"avx512_bf16": True}, False)])
def test_bf16_that_a_cpu_emulates_is_told(tmp_path, request, monkeypatch, capabilities, told):
    AcceleratorState._reset_state(reset_partial_state=True)
    request.addfinalizer(lambda: AcceleratorState._reset_state(reset_partial_state=True))
    monkeypatch.setattr(processes.torch.cpu, "get_capabilities", lambda: capabilities)
    settings = TrainingSettings(output_dir=str(tmp_path), mixed_precision="bf16", report_to="none")
    described = describe_processes(make_accelerator(settings))
    assert ("emulates it slowly: use --mixed_precision no" in described) is told
