"""Selects the files of a folder to upload, and gives the reason for every file that is not."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from transformers.dynamic_module_utils import get_relative_imports

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
    PROCESS_FILES,
    RESULTS_FILE,
    STATE_FILE,
    TRACKER_FOLDER,
    Evaluation,
)
from .privacy import PrivacyCheck
from .short_card import addressed, checkpoint_card

WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
VOCABULARIES = ("vocab.*", "merges.txt", "tokenizer.json", "tokenizer.model", "spiece.model", "added_tokens.json")
# JSON in which a string that looks like a path is one.
SETTINGS = (
    *(CONFIG_FILE, "generation_config.json", "preprocessor_config.json", "processor_config.json"),
    *("tokenizer_config.json", "special_tokens_map.json", RESULTS_FILE, ARGUMENTS_FILE, LOG_FILE),
    *(EVALUATION_FILES, AVERAGING_FILE),
)
UPLOADED = (*WEIGHTS, *VOCABULARIES, *SETTINGS, "*.py", CARD_FILE, "LICENSE*", "*.png")
_STATE = "state of the run, not of the model"
_PICKLE = "pickle, which can run code when it is opened"
WITHHELD = {
    ".*": "hidden",
    "__pycache__": "compiled code",
    f"*{PARTIAL_SUFFIX}": "unfinished",
    CHECKPOINT_FOLDERS: "a checkpoint of the run; push it by itself, with --revision",
    **dict.fromkeys((STATE_FILE, OPTIMIZER_FILE, PROCESS_FILES), _STATE),
    "hparams.yml": f"repeats {ARGUMENTS_FILE}",
    **dict.fromkeys(("*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.ckpt"), _PICKLE),
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
        """The content as far as it may hold text: of weights the header alone."""
        if isinstance(self.source, bytes):
            return self.source
        if not fnmatchcase(self.path, WEIGHTS[0]):
            return self.source.read_bytes()
        with self.source.open("rb") as file:
            return file.read(int.from_bytes(file.read(8), "little"))


@dataclass(frozen=True)
class Contents:
    """The files to upload, and the reason why each other one is withheld, by path."""

    uploads: list[Upload]
    withheld: dict[str, str]

    def __str__(self) -> str:
        rows = [f"{upload.size:>13,}  {upload.path}" for upload in self.uploads]
        total = sum(upload.size for upload in self.uploads)
        lines = [f"To upload ({len(rows)} files, {total:,} bytes):", *rows]
        if self.withheld:
            lines += ["Not to upload:", *(f"  {path}: {reason}" for path, reason in self.withheld.items())]
        return "\n".join(lines)


def contents(folder: str | Path, repo_id: str | None = None, revision: str | None = None) -> Contents:
    """Select the files of a model's folder to upload.

    Settings that other libraries or older versions wrote lose the folders of their paths, evaluations lose names and
    transcripts of people, and TensorBoard's files lose the host in their names. A checkpoint gets a card that says
    that it is one. The snippets of a card load the model from `repo_id`, if given.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: there is no whole model in it (weights as safetensors, config.json, its code), or something private
            would be uploaded.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder} to upload.")
    withheld: dict[str, str] = {}
    uploads = [*_model_files(folder, withheld), *_event_files(folder, withheld)]
    _check_is_model(folder, {upload.path for upload in uploads}, withheld)
    if (folder / STATE_FILE).is_file() and not (folder / CARD_FILE).exists():
        uploads.append(Upload(CARD_FILE, checkpoint_card(folder).encode()))
    if repo_id is not None:
        uploads = [_addressed(one, repo_id, revision) if one.path == CARD_FILE else one for one in uploads]
    uploads = list(_refuse_private(folder, uploads, withheld))
    return Contents(sorted(uploads, key=lambda upload: upload.path), withheld)


def is_upload(path: str) -> bool:
    """Whether a file of a repository is of the kinds that are uploaded."""
    in_folder = "/" in path
    return path.startswith(f"{TRACKER_FOLDER}/") if in_folder else _matches(path, UPLOADED)


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _model_files(folder: Path, withheld: dict[str, str]) -> Iterator[Upload]:
    """The files of the model itself, which lie flat in its folder."""
    for path in sorted(folder.iterdir()):
        if path.name == TRACKER_FOLDER and path.is_dir():
            continue
        reason = next((why for pattern, why in WITHHELD.items() if fnmatchcase(path.name, pattern)), None)
        if reason is None and (path.is_dir() or not _matches(path.name, UPLOADED)):
            reason = "no part of a model"
        if reason is not None:
            withheld[path.name + "/" * path.is_dir()] = reason
        else:
            yield Upload(path.name, _scrubbed(path, withheld) if _matches(path.name, SETTINGS) else path)


def _scrubbed(path: Path, withheld: dict[str, str]) -> Path | bytes:
    """A JSON file, or its content without local paths and people where it has some."""
    text = path.read_text(encoding="utf-8", errors="replace")
    people = Evaluation.people if fnmatchcase(path.name, EVALUATION_FILES) else ()
    if people:
        withheld[f"{path.name}, {' and '.join(people)}"] = "names of people and their words"
    if path.suffix != ".jsonl":
        try:
            cleaned = _scrubbed_json(text, people)
        except ValueError as error:
            raise ValueError(f"{path} is no JSON ({error}); restore or remove it, then push.") from error
        return path if cleaned == text else cleaned.encode()
    kept = []
    for number, line in enumerate(text.splitlines(keepends=True), start=1):
        try:
            kept.append(_scrubbed_json(line))
        except ValueError:  # what a killed run leaves
            withheld[f"{path.name}, line {number}"] = "no JSON"
    return path if "".join(kept) == text else "".join(kept).encode()


def _scrubbed_json(text: str, left_out: tuple[str, ...] = ()) -> str:
    values: Any = json.loads(text)
    kept = {name: value for name, value in values.items() if name not in left_out} if left_out else values
    if without_folders(kept) == values:
        return text
    return json_text(kept, indent=2 if "\n" in text.strip() else None)


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
            withheld[place.as_posix()] = WITHHELD.get(path.name, "no file of TensorBoard")


def _check_is_model(folder: Path, names: set[str], withheld: dict[str, str]) -> None:
    if CONFIG_FILE not in names or not any(fnmatchcase(name, WEIGHTS[0]) for name in names):
        pickled = [name for name, reason in withheld.items() if reason == _PICKLE]
        hint = f" {', '.join(pickled)} would be pickle: load the model and save it again." if pickled else ""
        checkpoints = sorted(name for name in withheld if fnmatchcase(name, f"{CHECKPOINT_FOLDERS}/"))
        hint += f" Its checkpoints are models: {', '.join(checkpoints)}." if checkpoints else ""
        raise ValueError(f"{folder} holds no model: {CONFIG_FILE} and weights in *.safetensors are needed.{hint}")
    code = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8")).get("auto_map", {}).values()
    modules = {name.split(".")[0] for name in code if isinstance(name, str) and "--" not in name}
    for path in folder.glob("*.py"):
        modules.update(get_relative_imports(path))
    if missing := sorted({f"{module}.py" for module in modules} - names):
        raise ValueError(
            f"{folder} lacks code that its model needs, {', '.join(missing)}: nobody without this package "
            f"could load it. Load the model with `import hf_speech_ssl` and save it again."
        )


def _addressed(card: Upload, repo_id: str, revision: str | None) -> Upload:
    before = card.text()
    after = addressed(before.decode(errors="surrogateescape"), repo_id, revision).encode(errors="surrogateescape")
    return card if after == before else Upload(card.path, after)


def _refuse_private(folder: Path, uploads: list[Upload], withheld: dict[str, str]) -> Iterator[Upload]:
    """The uploads, without the TensorBoard files that hold something private; any other such file is refused."""
    check = PrivacyCheck(folder)
    for upload in uploads:
        found = next(check(upload.text()), None)
        if found is None:
            yield upload
            continue
        line, what, text = found
        if not TENSORBOARD.match(Path(upload.path).name):
            raise ValueError(f"{folder / upload.path}, line {line}, holds {what}: {text}. Take it out, then push.")
        withheld[upload.path] = f"holds {what}"
