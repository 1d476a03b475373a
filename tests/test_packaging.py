"""What is installed is the whole package, whichever way it went."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import hf_speech_ssl

REPOSITORY = Path(__file__).parents[1]
BUILD = "import sys, setuptools.build_meta as backend; getattr(backend, sys.argv[1])(sys.argv[2])"


def build(what: str, root: Path, target: Path) -> Path:
    """The file that setuptools writes; `root` gets its scratch folders."""
    command = [sys.executable, "-c", BUILD, what, str(target)]
    subprocess.run(command, cwd=root, check=True, capture_output=True)
    [file] = target.iterdir()
    return file


def package_files() -> set[str]:
    listed = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout
    files = set()
    for name in listed.splitlines():
        folder, _, rest = name.partition("/")
        if folder == "hf_speech_ssl" and (REPOSITORY / name).is_file():
            files.add(name)
        elif folder in ("modeling", "model_cards") and rest:
            files.add(f"hf_speech_ssl/{name}")
    return files


@pytest.mark.skipif(not (REPOSITORY / ".git").exists(), reason="the repository tells what belongs into the package")
def test_a_wheel_made_from_the_source_archive_holds_every_file(tmp_path) -> None:
    copy = tmp_path / "repository"
    subprocess.run(["git", "checkout-index", "--all", f"--prefix={copy}/"], cwd=REPOSITORY, check=True)
    archive = build("build_sdist", copy, tmp_path / "sdist")
    with tarfile.open(archive) as file:
        file.extractall(tmp_path / "unpacked", filter="data")
    [unpacked] = (tmp_path / "unpacked").iterdir()
    wheel = build("build_wheel", unpacked, tmp_path / "wheel")
    assert hf_speech_ssl.__version__ in wheel.name
    with zipfile.ZipFile(wheel) as file:
        there = {name for name in file.namelist() if name.startswith("hf_speech_ssl/")}
    assert there == package_files()
