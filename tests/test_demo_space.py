"""The page to speak into as a folder for a Space."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import SpaceCard
from test_demo import CHUNK_MS, chunkssl_ctc, run_cli, save

from hf_speech_ssl import cli


def hub_cache(root: Path, name: str, folder: Path) -> Path:
    """A cache of the Hub that holds a model already."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    place = root / ("models--" + name.replace("/", "--"))
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(commit)
    (place / "snapshots").mkdir()
    folder.rename(place / "snapshots" / commit)
    return root


RUN_APP = """
import runpy, sys
sys.path.insert(0, "")
import gradio, hf_speech_ssl, hf_speech_ssl.serving.address as address
address.check_address = lambda host, port: None
gradio.Blocks.launch = lambda page, **options: print(page.title, options["server_name"], options["server_port"])
gradio.Blocks.block_thread = lambda page: None
runpy.run_path("app.py", run_name="__main__")
print(hf_speech_ssl.__file__)
"""


@pytest.mark.slow
def test_a_space_s_app_opens_the_page(tmp_path, capsys):
    space = tmp_path / "space"
    (space / ".git").mkdir(parents=True)  # a clone
    for _ in range(2):  # written again over itself
        assert cli.main(["demo", "user/tiny", "--space_dir", str(space), "--chunk_duration_ms", str(CHUNK_MS)]) == 0
    cache = hub_cache(tmp_path / "hub", "user/tiny", save(chunkssl_ctc(), tmp_path / "model"))
    environment = {**os.environ, "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    done = subprocess.run([sys.executable, "-c", RUN_APP], cwd=space, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Speak to user/tiny 0.0.0.0 7860" in done.stdout
    assert str(space) in done.stdout.splitlines()[-1]  # the Space's own copy
    card = (space / "README.md").read_text()
    assert "sdk: gradio" in card and "app_file: app.py" in card and SpaceCard(card).data.title == "tiny"
    needed = (space / "requirements.txt").read_text()
    assert "torch>=" in needed and "extra ==" not in needed


def test_a_space_s_title_is_text_and_its_labels_come_from_the_hub_too(tmp_path, capsys):
    space = str(tmp_path / "space")
    assert cli.main(["demo", "user/123", "--space_dir", space, "--labels_from", "user/fsq"]) == 0
    assert SpaceCard.load(tmp_path / "space" / "README.md").data.title == "123"
    assert "labels_from='user/fsq'" in (tmp_path / "space" / "app.py").read_text()
    assert "push it first" in run_cli(capsys, "user/123", "--space_dir", space, "--labels_from", str(tmp_path))


def test_a_space_needs_a_model_of_the_hub_and_a_folder_of_its_own(tmp_path, capsys):
    folder = save(chunkssl_ctc(), tmp_path / "model")
    capsys.readouterr()
    assert "push it first" in run_cli(capsys, str(folder), "--space_dir", str(tmp_path / "space"))
    assert "user/a b" in run_cli(capsys, "user/a b", "--space_dir", str(tmp_path / "space"))
    assert not (tmp_path / "space").exists()
    assert "is no part of the Space" in run_cli(capsys, "user/tiny", "--space_dir", str(folder))
