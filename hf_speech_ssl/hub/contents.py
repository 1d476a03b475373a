"""What of a folder goes up to the Hub, under which name, and what stays back for which reason."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from transformers.dynamic_module_utils import get_relative_imports

from ..families import family_of
from ..json_files import json_text, without_folders
from ..run_folder import (
    ARGUMENTS_FILE,
    AVERAGING_FILE,
    CARD_FILE,
    CHECKPOINT_FOLDERS,
    CONFIG_FILE,
    EVALUATION_FILES,
    LOG_FILE,
    OPTIMIZER_FILE,
    PARTIAL_SUFFIX,
    RESULTS_FILE,
    STATE_FILE,
    TRACKER_FOLDER,
    TrainingState,
)
from .card import addressed, duration_in_words
from .metadata import COMMON_TAGS, LIBRARY, pipeline_tag
from .privacy import PrivacyCheck

WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
VOCABULARIES = ("vocab.*", "merges.txt", "tokenizer.json", "tokenizer.model", "spiece.model", "added_tokens.json")
# JSON in which a string that looks like a path is one.
SETTINGS = (
    *(CONFIG_FILE, "generation_config.json", "preprocessor_config.json", "processor_config.json"),
    *("tokenizer_config.json", "special_tokens_map.json", RESULTS_FILE, ARGUMENTS_FILE, LOG_FILE),
    *(EVALUATION_FILES, AVERAGING_FILE),
)
# Entries of an evaluation: the names of those who spoke, and sentences as they were said.
OF_PEOPLE = ("speakers", "worst")
GOES_UP = (*WEIGHTS, *VOCABULARIES, *SETTINGS, "*.py", CARD_FILE, "LICENSE*", "*.png")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.ckpt")
STAYS_BACK = {
    ".*": "hidden",
    "__pycache__": "compiled code",
    f"*{PARTIAL_SUFFIX}": "unfinished",
    CHECKPOINT_FOLDERS: "a checkpoint of the run; push it by itself, with --revision",
    STATE_FILE: "state of the run, not of the model",
    OPTIMIZER_FILE: "state of the run, not of the model",
    "process-*.pt": "state of the run, not of the model",
    "hparams.yml": f"repeats {ARGUMENTS_FILE}",
    **dict.fromkeys(PICKLES, "pickle, which can run code when it is opened"),
}
TENSORBOARD = re.compile(r"events\.out\.tfevents\.(\d+)\..+")  # time, host, process, number


@dataclass(frozen=True)
class Upload:
    """One file of the repository: its path there, and a file here or the bytes themselves."""

    path: str
    source: Path | bytes

    @property
    def size(self) -> int:
        """In bytes."""
        return len(self.source) if isinstance(self.source, bytes) else self.source.stat().st_size

    def text(self) -> bytes:
        """All that a person could read in it: everything, but of weights the header alone."""
        if isinstance(self.source, bytes):
            return self.source
        if not fnmatchcase(self.path, "*.safetensors"):
            return self.source.read_bytes()
        with self.source.open("rb") as file:
            return file.read(int.from_bytes(file.read(8), "little"))


@dataclass(frozen=True)
class Contents:
    """What goes up, and what stays back: reasons by path."""

    uploads: list[Upload]
    withheld: dict[str, str]

    def __str__(self) -> str:
        rows = [f"{upload.size:>13,}  {upload.path}" for upload in self.uploads]
        total = sum(upload.size for upload in self.uploads)
        lines = [f"Goes up ({len(rows)} files, {total:,} bytes):", *rows]
        if self.withheld:
            lines += ["Stays back:", *(f"  {path}: {reason}" for path, reason in self.withheld.items())]
        return "\n".join(lines)


def contents(folder: str | Path, repo_id: str | None = None, revision: str | None = None) -> Contents:
    """What of a model's folder goes up; to `repo_id`, the snippets of its card load it from there.

    Settings lose the folders of the paths in them, evaluations the people, TensorBoard's files the host's name in
    theirs; a checkpoint gets a card that says so.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: there is no whole model in it (weights as safetensors, config.json, its code), or something private
            would go up.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder} to upload.")
    withheld: dict[str, str] = {}
    uploads = [*_files(folder, withheld), *_event_files(folder, withheld)]
    _check_is_model(folder, {upload.path for upload in uploads}, withheld)
    if (folder / STATE_FILE).is_file() and not (folder / CARD_FILE).exists():
        uploads.append(Upload(CARD_FILE, checkpoint_card(folder).encode()))
    if repo_id is not None:
        uploads = [_addressed(one, repo_id, revision) if one.path == CARD_FILE else one for one in uploads]
    check = PrivacyCheck(folder)
    for upload in list(uploads):
        for line, what, text in check(upload.text()):
            if not TENSORBOARD.match(Path(upload.path).name):
                raise ValueError(f"{folder / upload.path}, line {line}, holds {what}: {text}. Take it out, then push.")
            withheld[upload.path] = f"holds {what}"
            uploads.remove(upload)
            break
    return Contents(sorted(uploads, key=lambda upload: upload.path), withheld)


def _files(folder: Path, withheld: dict[str, str]) -> Iterator[Upload]:
    """The files of the model itself, which lie flat in its folder."""
    for path in sorted(folder.iterdir()):
        reason = next((why for pattern, why in STAYS_BACK.items() if fnmatchcase(path.name, pattern)), None)
        if path.name == TRACKER_FOLDER and path.is_dir():
            continue
        if reason is None and (path.is_dir() or not any(fnmatchcase(path.name, pattern) for pattern in GOES_UP)):
            reason = "no part of a model"
        if reason is not None:
            withheld[path.name + "/" * path.is_dir()] = reason
        else:
            if fnmatchcase(path.name, EVALUATION_FILES):
                withheld[f"{path.name}, {' and '.join(OF_PEOPLE)}"] = "names of people and what they said"
            yield Upload(path.name, _scrubbed(path))


def _scrubbed(path: Path) -> Path | bytes:
    """The file, or its content without local paths and people where it has some."""
    if not any(fnmatchcase(path.name, pattern) for pattern in SETTINGS):
        return path
    text = path.read_text(encoding="utf-8")
    try:
        if path.suffix == ".jsonl":
            cleaned = "".join(_scrubbed_json(line) for line in text.splitlines(keepends=True) if line.strip())
        else:
            cleaned = _scrubbed_json(text, OF_PEOPLE if fnmatchcase(path.name, EVALUATION_FILES) else ())
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}); mend or remove it, then push.") from error
    return path if cleaned == text else cleaned.encode()


def _scrubbed_json(text: str, left_out: tuple[str, ...] = ()) -> str:
    """A JSON document as other libraries and older versions wrote it, without folders and the entries left out."""
    values = json.loads(text)
    kept = {name: value for name, value in values.items() if name not in left_out} if left_out else values
    if without_folders(kept) == values:
        return text
    return json_text(kept, indent=2 if "\n" in text.strip() else None)


def _addressed(card: Upload, repo_id: str, revision: str | None) -> Upload:
    before = card.text()
    after = addressed(before.decode(errors="surrogateescape"), repo_id, revision).encode(errors="surrogateescape")
    return card if after == before else Upload(card.path, after)


def _event_files(folder: Path, withheld: dict[str, str]) -> Iterator[Upload]:
    """TensorBoard's files, in their order, under names without host and process."""
    numbers: Counter[str] = Counter()
    for path in sorted((folder / TRACKER_FOLDER).rglob("*")):
        place, event = path.relative_to(folder), TENSORBOARD.fullmatch(path.name)
        if event and path.is_file():
            name = f"{place.parent.as_posix()}/events.out.tfevents.{event[1]}"
            yield Upload(f"{name}.{numbers[name]}", path)
            numbers[name] += 1
        elif path.is_file():
            withheld[place.as_posix()] = STAYS_BACK.get(path.name, "no file of TensorBoard")


def _check_is_model(folder: Path, names: set[str], withheld: dict[str, str]) -> None:
    if CONFIG_FILE not in names or not any(fnmatchcase(name, WEIGHTS[0]) for name in names):
        pickled = [name for name, reason in withheld.items() if reason.startswith("pickle")]
        hint = f" {', '.join(pickled)} would be pickle: load the model and save it again." if pickled else ""
        checkpoints = sorted(name for name in withheld if fnmatchcase(name, f"{CHECKPOINT_FOLDERS}/"))
        hint += f" Its checkpoints are models: {', '.join(checkpoints)}." if checkpoints else ""
        raise ValueError(f"{folder} holds no model: config.json and weights in *.safetensors are needed.{hint}")
    code = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8")).get("auto_map", {}).values()
    modules = {name.split(".")[0] for name in code if isinstance(name, str) and "--" not in name}
    for path in folder.glob("*.py"):
        modules.update(get_relative_imports(path))
    if missing := sorted({f"{module}.py" for module in modules} - names):
        raise ValueError(
            f"{folder} lacks code that its model needs, {', '.join(missing)}: nobody without this package "
            f"could load it. Load the model with `import hf_speech_ssl` and save it again."
        )


def checkpoint_card(folder: Path) -> str:
    """A short card that says what a checkpoint is, and is not."""
    state = TrainingState.read(folder)
    after = f"after {state.step:,} update{'s' * (state.step != 1)}"
    text = f"Weights as they were {after} ({duration_in_words(state.audio_seconds / 3600)} of audio), in the middle "
    text += "of a training run. The figures of the run's final model do not apply to them."
    return short_card(folder, f"Checkpoint {after}", text)


def short_card(folder: Path, title: str, text: str) -> str:
    """A card without figures, for weights that have none."""
    config: dict[str, Any] = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    is_ctc = any(name.endswith("ForCTC") for name in config.get("architectures") or [])
    auto, name = "AutoModelForCTC" if is_ctc else "AutoModel", folder.resolve().name
    metadata = ModelCardData(
        library_name=LIBRARY,
        pipeline_tag=pipeline_tag("ctc" if is_ctc else "encoder"),
        tags=[*COMMON_TAGS, *(family.tags if (family := family_of(config.get("model_type"))) else [])],
        model_name=name,
    )
    use = f"from transformers import {auto}\n\n"
    use += f'model = {auto}.from_pretrained("{name}", trust_remote_code=True)'
    head = f"---\n{metadata.to_yaml()}\n---\n\n# {title}\n\n"
    return str(ModelCard(f"{head}{text}\n\n```python\n{use}\n```\n"))
