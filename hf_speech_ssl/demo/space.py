"""The page as a folder for a Space of the Hub: it runs there as it runs here."""

from __future__ import annotations

import importlib.metadata
import shutil
from pathlib import Path

from huggingface_hub.utils import validate_repo_id

OWN_FILES = ("README.md", "app.py", "requirements.txt", "hf_speech_ssl")
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"

APP = '''"""The page to speak into, for {model}."""

from hf_speech_ssl.commands.demo import DemoOptions, demo
from hf_speech_ssl.options import LoadingOptions

if __name__ == "__main__":
    options = DemoOptions(
        model_name_or_path={model!r},
        chunk_duration_ms={chunk_duration_ms},
        labels_from={labels_from!r},
        host="0.0.0.0",
        port=7860,
    )
    demo(options, LoadingOptions(revision={revision!r}, trust_remote_code={trust_remote_code}))
'''
CARD = """---
title: "{title}"
emoji: 🎙️
colorFrom: blue
colorTo: indigo
sdk: gradio
sdk_version: {sdk_version}
app_file: app.py
license: apache-2.0
short_description: Speak, and see the transcript grow
models:
- {model}
---

# {title}

A page to speak into, for [{model}](https://huggingface.co/{model}): transcript, spectrogram, and what pretraining
masks of it. Made by `hf-speech-ssl demo {model} --space_dir ...`; `hf_speech_ssl/` is a copy of the package.
"""


def write_space(
    space_dir: str | Path,
    model_name: str,
    chunk_duration_ms: int = 320,
    revision: str | None = None,
    trust_remote_code: bool = False,
    labels_from: str | None = None,
) -> Path:
    """Write `app.py`, `requirements.txt`, a `README.md` with the Space's metadata, and a copy of the package.

    Args:
        space_dir: a new or empty folder, a clone of a Space, or one that was written before.
        model_name: of a model on the Hub.
        labels_from: of another one, as in `load_demo_model`.

    Returns:
        The folder.

    Raises:
        ValueError: the model is a local folder or no name of the Hub, or the folder holds something else.
    """
    folder = Path(space_dir)
    for name in filter(None, (model_name, labels_from)):
        _check_model(name)
    _check_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(folder / "hf_speech_ssl", ignore_errors=True)
    package = Path(__file__).parents[1]
    shutil.copytree(package, folder / "hf_speech_ssl", ignore=shutil.ignore_patterns("__pycache__"))
    app = APP.format(
        model=model_name,
        chunk_duration_ms=chunk_duration_ms,
        revision=revision,
        trust_remote_code=trust_remote_code,
        labels_from=labels_from,
    )
    card = CARD.format(
        title=model_name.rpartition("/")[2], model=model_name, sdk_version=importlib.metadata.version("gradio")
    )
    (folder / "app.py").write_text(app, encoding="utf-8")
    (folder / "README.md").write_text(card, encoding="utf-8")
    (folder / "requirements.txt").write_text("\n".join(_requirements()) + "\n", encoding="utf-8")
    return folder


def _check_model(model_name: str) -> None:
    push = "push it first (hf-speech-ssl push FOLDER user/name) and name it as user/name"
    if Path(model_name).exists() or model_name.startswith((".", "/", "~")) or model_name.count("/") > 1:
        raise ValueError(f"A Space loads its model from the Hub, and {model_name!r} is a folder here: {push}.")
    validate_repo_id(model_name)


def _check_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; give a folder for the Space.")
    strangers = [one.name for one in folder.iterdir()] if folder.exists() else []
    strangers = sorted(name for name in strangers if name not in OWN_FILES and not name.startswith("."))
    if strangers:
        raise ValueError(
            f"{folder} holds {', '.join(strangers[:3])}{', ...' if len(strangers) > 3 else ''}, which is no part of "
            "the Space; give a new folder."
        )


def _requirements() -> list[str]:
    """What the package needs, as it is installed here, with torch's CPU builds; gradio comes with the Space."""
    needed = [one for one in importlib.metadata.requires("hf-speech-ssl") or [] if "extra ==" not in one]
    return [f"--extra-index-url {TORCH_INDEX}  # leave this line out on a Space with a GPU", *needed]
