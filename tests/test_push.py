"""Pushing a folder: what goes up and what does not, nothing private, and errors that say what to do."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from families import FAMILIES
from hub_server import READ_TOKEN, TOKEN, HubServer
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from test_pipeline import save_recognizer

from hf_speech_ssl.cli import main
from hf_speech_ssl.hub.contents import contents
from hf_speech_ssl.hub.push import push_folder

HOST = "gpu-node-17"
EVENTS = "runs/hf_speech_ssl/events.out.tfevents.1700000000"
EVENT_FILES = (f"{EVENTS}.{HOST}.31.0", f"{EVENTS}.{HOST}.31.1")
# Calls the command line for each [token, endpoint, arguments] of standard input: one process instead of one each.
ATTEMPTS = """
import contextlib, io, json, os, sys, time
from huggingface_hub import constants
from hf_speech_ssl.cli import main
time.sleep = lambda seconds: None  # the pauses between retries
answers = []
for token, endpoint, arguments in json.load(sys.stdin):
    os.environ["HF_TOKEN"], constants.ENDPOINT = token, endpoint
    with contextlib.redirect_stdout(io.StringIO()) as output, contextlib.redirect_stderr(io.StringIO()) as error:
        answers.append((main(["push", *arguments]), output.getvalue(), error.getvalue()))
print(json.dumps(answers))
"""


@pytest.fixture
def run(tmp_path):
    """The output folder of a run, with all that may lie in one."""
    folder = tmp_path / "exp" / "run"
    save_recognizer(FAMILIES["birq"], folder)
    save_recognizer(FAMILIES["birq"], folder / "checkpoint-500")
    (folder / "checkpoint-500" / "training_state.json").write_text('{"step": 500, "audio_seconds": 7200.0}')
    write(folder, "checkpoint-500/optimizer.pt", b"\x80")
    write(folder, "README.md", "---\nlicense: mit\n---\n# A model\n")
    write(folder, "training_curves.png", os.urandom(30_000))
    write(folder, "results.json", '{"eval_wer": 0.5}\n')
    arguments = {"dataset_name": str(folder / "speech"), "output_dir": "exp/run", "cache": "~/x", "name": "me/birq"}
    write(folder, "run_arguments.json", json.dumps(arguments, indent=2))
    write(folder, "train_log.jsonl", '{"step": 1, "file": "/data/a.wav"}\n{"step": 2}\n')
    evaluation = {
        "model": "exp/ann/run",
        "dataset": "C:\\audio\\calls",
        "split": "yes/no",
        "settings": {"lm_path": "a/b"},
    }
    people = {"speakers": [{"speaker": "Ann"}], "worst": [{"reference": "a secret"}]}
    write(folder, "evaluation_test.json", json.dumps(evaluation | people))
    for name in (*EVENT_FILES, "runs/hf_speech_ssl/1700000000.5/hparams.yml"):
        write(folder, name, b"\x00brain.Event:2" + os.urandom(9))
    for name in (
        "pytorch_model.bin",
        "optimizer.pt",
        "process-00000.pt",
        "checkpoint-7.partial/x",
        ".cache/x",
        "a.wav",
    ):
        write(folder, name, b"\x80")
    return folder


def write(folder: Path, name: str, content: str | bytes) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("a request")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_what_goes_up_and_what_stays_back(run, no_network):
    found = contents(run)
    uploads = {upload.path: upload for upload in found.uploads}
    code = {path.name for path in run.glob("*.py")}
    assert {"modeling_birq.py", "configuration_birq.py", "feature_extraction_speech_ssl.py"} <= code
    assert uploads.keys() == code | {
        *("model.safetensors", "config.json", "processor_config.json", "tokenizer_config.json", "vocab.json"),
        *("README.md", "training_curves.png", "results.json", "run_arguments.json", "train_log.jsonl"),
        *("evaluation_test.json", f"{EVENTS}.0", f"{EVENTS}.1"),
    }
    for name, reason in {
        "checkpoint-500/": "push it by itself",
        "checkpoint-7.partial/": "unfinished",
        ".cache/": "hidden",
        "pytorch_model.bin": "pickle",
        "optimizer.pt": "state of the run",
        "process-00000.pt": "state of the run",
        "runs/hf_speech_ssl/1700000000.5/hparams.yml": "repeats",
        "a.wav": "no part of a model",
        "evaluation_test.json, speakers and worst": "people",
    }.items():
        assert reason in found.withheld.pop(name)
    assert not found.withheld
    assert all(HOST not in str(upload.path) for upload in found.uploads)
    assert uploads["model.safetensors"].source == run / "model.safetensors", "sent as it is"


def test_local_paths_lose_their_folders_in_a_copy(run):
    before = (run / "run_arguments.json").read_bytes()
    uploads = {upload.path: upload.text().decode() for upload in contents(run).uploads if upload.path[-1] in "nl"}
    arguments = json.loads(uploads["run_arguments.json"])
    assert arguments == {"dataset_name": "speech", "output_dir": "run", "cache": "x", "name": "me/birq"}
    assert uploads["train_log.jsonl"] == '{"step": 1, "file": "a.wav"}\n{"step": 2}\n'
    evaluation = {"model": "run", "dataset": "calls", "split": "yes/no", "settings": {"lm_path": "b"}}
    assert json.loads(uploads["evaluation_test.json"]) == evaluation, "nor do people go up"
    assert uploads["config.json"] == (run / "config.json").read_text(), "nothing to change: not a byte is"
    assert (run / "run_arguments.json").read_bytes() == before


def test_half_a_line_of_a_log_stays_back(run):
    (run / "train_log.jsonl").write_bytes(b'{"step": 1, "loss": 2.0}\n{"step": 2, "lo\xff')
    found = contents(run)
    (log,) = (upload for upload in found.uploads if upload.path == "train_log.jsonl")
    assert log.text() == b'{"step": 1, "loss": 2.0}\n' and found.withheld["train_log.jsonl, line 2"] == "no JSON"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("README.md", f"a\nb {READ_TOKEN} c", "README.md, line 2, holds an access token: hf_rrr..."),
        ("README.md", "see /home/ann/data", "line 1, holds a path of this machine: /home/ann"),
        ("README.md", "see PLACE/other", "holds a path of this machine"),
        ("README.md", "the-token-of-this-test", "an access token: the-to..."),
        ("results.json", '{\n"note": "read from /Users/ann/x"}', "results.json, line 2"),
        ("modeling_birq.py", f"# made on {HOST}.example.org", f"the name of this host: {HOST}"),
        ("model.safetensors", "", "model.safetensors, line 1, holds a path of this machine"),
    ],
)
def test_what_is_private_is_refused_by_file_and_line(run, monkeypatch, name, text, message):
    monkeypatch.setattr(socket, "gethostname", lambda: HOST)
    monkeypatch.setenv("HF_TOKEN", "the-token-of-this-test")
    contents(run)
    if name == "model.safetensors":
        save_file(load_file(run / name), run / name, {"format": "pt", "source": "/home/ann/model"})
    else:
        write(run, name, text.replace("PLACE", str(run.parent)))
    with pytest.raises(ValueError) as error:
        contents(run)
    assert message in str(error.value) and "the-token" not in str(error.value) and READ_TOKEN not in str(error.value)


def test_what_is_not_private_goes_up(run, monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "model")  # a word like any other
    write(run, "README.md", "https://example.org/home/ann hf_speech_ssl.training https://huggingface.co/me/x model")
    contents(run)


def test_a_log_with_a_private_path_stays_back(run):
    write(run, f"{EVENTS}.{HOST}.31.1", b"\x02\n/home/ann/x")
    found = contents(run)
    assert found.withheld[f"{EVENTS}.1"] == "holds a path of this machine"
    assert f"{EVENTS}.0" in {upload.path for upload in found.uploads}


def test_a_folder_that_is_no_whole_model_is_refused(run, tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder"):
        contents(tmp_path / "none")
    with pytest.raises(ValueError, match="no model.*Its checkpoints are models: checkpoint-500/"):
        (run / "config.json").rename(run / "config")
        contents(run)
    (run / "config").rename(run / "config.json")
    (run / "masking.py").unlink()  # no entry of the config, but imported by one
    with pytest.raises(ValueError, match="lacks code .* masking.py"):
        contents(run)
    (run / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="pytorch_model.bin would be pickle: load the model and save it again"):
        contents(run)
    write(run, "run_arguments.json", "{")
    with pytest.raises(ValueError, match="run_arguments.json is no JSON"):
        contents(run)


def test_a_checkpoint_says_that_it_is_one(run):
    found = contents(run / "checkpoint-500")
    (card,) = (upload for upload in found.uploads if upload.path == "README.md")
    card = ModelCard(card.source.decode())
    assert "after 500 updates" in card.text and "(2.0 hours of audio)" in card.text
    assert (card.data.library_name, card.data.pipeline_tag) == ("transformers", "automatic-speech-recognition")
    assert set(found.withheld) == {"optimizer.pt", "training_state.json"}
    assert 'AutoModelForCTC.from_pretrained("checkpoint-500", trust_remote_code=True)' in card.text


def test_a_card_names_the_place_that_it_is_read_at(run):
    """Its snippets, that is; and a card that another wrote is left alone."""
    ours = "---\ntags:\n- hf-speech-ssl\nmodel_name: run\n---\n\n# run\n\n`run`, `a.py --model_name_or_path run --x`, "
    ours += '`hf-speech-ssl demo run`\n```python\nrun = f("run")\n```\n'
    elsewhere = re.sub(r'"run"|(?<=path )run|(?<=demo )run', lambda found: found[0].replace("run", "me/a.b"), ours)
    branch = elsewhere.replace('"me/a.b"', '"me/a.b", revision="v1"').replace(
        "demo me/a.b", "demo me/a.b --revision v1"
    )
    places: dict[tuple[str, ...], str] = {
        (): ours,
        ("me/a.b",): elsewhere,
        ("me/a.b", "main"): elsewhere,
        ("me/a.b", "v1"): branch,
    }
    for place, wanted in places.items():
        write(run, "README.md", ours)
        (card,) = (upload for upload in contents(run, *place).uploads if upload.path == "README.md")
        assert card.text().decode() == wanted
    for other in (ours.replace("- hf-speech-ssl", "- other"), ours.replace("tags:", "tags: ]"), "# run\n`run`\n"):
        write(run, "README.md", other)
        (card,) = (upload for upload in contents(run, "me/a.b").uploads if upload.path == "README.md")
        assert card.text().decode() == other


def test_a_dry_run_makes_no_request(run, no_network, capsys, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE")
    assert main(["push", str(run), "me/birq", "--dry_run"]) == 0
    printed = capsys.readouterr().out
    size = (run / "model.safetensors").stat().st_size
    assert f"{size:,}  model.safetensors\n" in printed and "  checkpoint-500/: a checkpoint" in printed


def test_offline_and_an_impossible_name(run, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with pytest.raises(OSError, match="HF_HUB_OFFLINE is set"):
        push_folder(run, "me/birq")
    for name in ("me/bi rq", "me/a/b", "me/--", ""):
        with pytest.raises(ValueError, match="give user/name"):
            push_folder(run, name)


def attempts(hub, home, *wanted):
    """(exit status, output, error) of pushing with each of these (token, endpoint, arguments)."""
    result = subprocess.run(
        [sys.executable, "-c", ATTEMPTS],
        input=json.dumps(wanted),
        env=hub.environment(home),
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout.splitlines()[-1])


def test_refusals_are_one_line_that_says_what_to_do(run, tmp_path):
    push = [str(run), "me/birq"]
    with HubServer() as hub:
        answers = attempts(
            hub,
            tmp_path / "home",
            ("", hub.url, push),
            ("hf_wrong", hub.url, push),
            (READ_TOKEN, hub.url, push),
            (TOKEN, hub.url, [str(run), "you/birq"]),
            (TOKEN, "http://127.0.0.1:9", push),
            (TOKEN, hub.url, [str(run / "runs"), "me/birq"]),
        )
        assert not hub.repositories
    for (status, output, error), words in zip(
        answers,
        ("not logged in", "(401)", "(403)", "write to you/birq", "The connection to the Hub", "no model"),
        strict=True,
    ):
        assert (status, output) == (1, "") and words in error and error.count("\n") == 1
    for _, _, error in answers[:4]:
        assert "hf auth login" in error


def test_what_has_arrived_is_not_sent_again(run, tmp_path):
    weights = (run / "model.safetensors").stat().st_size
    with HubServer() as hub:
        hub.break_after, hub.broken_uploads, hub.lost_commits = weights - 1000, 6, 1
        first, lost, third, fourth = attempts(
            hub,
            tmp_path / "home",
            *[(TOKEN, hub.url, [str(run), "me/birq", *private]) for private in ([], ["--private"], [], [])],
        )
        assert first[0] == 1 and "model.safetensors" in first[2] and "not sent again: repeat hf-sp" in first[2]
        assert lost[0] == 1 and "(500): Internal error" in lost[2]
        assert third[0] == fourth[0] == 0 and third[1].strip() == f"{hub.url}/me/birq"
        # The weights were broken off six times and then went up once; the rest went up once, while the weights failed.
        others = sum((run / name).stat().st_size for name in ("training_curves.png", *EVENT_FILES))
        assert 0 <= hub.uploaded_bytes - (others + weights + 6 * hub.break_after) < 6 * 1000
        commits = [status for _, path, status in hub.requests if "/commit/" in path]
        assert commits == [500, 200], "one commit holds everything, and nothing is left for the fourth"
        assert hub.files("models/me/birq")["model.safetensors"] == (run / "model.safetensors").read_bytes()


def test_a_branch_holds_one_model_alone(run, tmp_path):
    with HubServer() as hub:
        hub.add(
            "models/me/birq", {"notes.md": b"by hand", "results.json": b"{}", "runs/old": b"", "assets/a.png": b""}
        )
        checkpoint = [str(run / "checkpoint-500"), "me/birq", "--revision", "step-500"]
        answers = attempts(
            hub,
            tmp_path / "home",
            *[(TOKEN, hub.url, pushed) for pushed in ([str(run), "me/birq"], checkpoint, checkpoint)],
        )
        assert [status for status, *_ in answers] == [0, 0, 0], answers
        assert answers[1][1].strip().endswith("/me/birq/tree/step-500")
        files, main_files = hub.files("models/me/birq", "step-500"), hub.files("models/me/birq")
        assert {"notes.md", "assets/a.png", "runs/old", f"{EVENTS}.0", "results.json"} <= main_files.keys()
        assert not {"results.json", "runs/old", f"{EVENTS}.0"} & files.keys() and "notes.md" in files
        assert b"Checkpoint after 500" in files["README.md"] and b"# A model" in main_files["README.md"]
