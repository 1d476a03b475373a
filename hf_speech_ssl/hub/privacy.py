"""What must not go up: paths of this machine, tokens, its host name. Found, and where that is safe taken out."""

import json
import re
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

# Access tokens of the Hub, of GitHub and of AWS; and folders that begin with a person's name.
TOKENS = rb"\b(?:hf_|api_org_|gh[opsu]_)[A-Za-z0-9]{20,}|\bgithub_pat_\w{20,}|\bAKIA[0-9A-Z]{16}\b"
HOMES = rb"(?<![\w.])(?:/(?:home|Users)/[^/\s\"'<>{}]+|/root/)|\b[A-Za-z]:\\+Users\\+[^\\\s\"']+"
LOCAL_PATH = re.compile(r"(?:~\w*|\.{1,2}|[A-Za-z]:)?[\\/](?!/).*\w.*")
# Settings that name a folder even where they do not look like one.
FOLDERS = {"output_dir", "resume_from_checkpoint", "dataset_cache_dir", "cache_dir", "logging_dir"}
# Settings that name a repository of the Hub or else something here; so does all that ends in `name_or_path`.
SOURCES = {"dataset", "dataset_name", "model"}


def without_paths(text: str, left_out: Iterable[str] = ()) -> str:
    """A JSON document, or a line of JSON, with the last part only of every local path in it.

    The text comes back as it is if there is nothing to change.

    Args:
        left_out: entries of the document to drop.
    """
    values = json.loads(text)
    scrubbed = _scrub(values)
    if isinstance(scrubbed, dict):
        scrubbed = {name: value for name, value in scrubbed.items() if name not in left_out}
    if scrubbed == values:
        return text
    return json.dumps(scrubbed, indent=2 if "\n" in text.strip() else None, ensure_ascii=False) + "\n"


def _scrub(value: Any, name: str = "") -> Any:
    if isinstance(value, dict):
        return {key: _scrub(part, key) for key, part in value.items()}
    if isinstance(value, list):
        return [_scrub(part, name) for part in value]
    if isinstance(value, str) and _is_local(value, name):
        return re.split(r"[\\/]", value.rstrip("\\/"))[-1]
    return value


def _is_local(value: str, name: str) -> bool:
    if name in SOURCES or name.endswith("name_or_path"):
        return not is_hub_id(value)
    return name in FOLDERS or name.endswith("_path") or bool(LOCAL_PATH.fullmatch(value))


def is_hub_id(name: str | None) -> bool:
    """Whether a data set or model is one of the Hub by its name, `user/name`, and no folder here."""
    if not name or name.count("/") != 1 or Path(name).exists():
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


class PrivacyCheck:
    """Finds in bytes what belongs to this machine or person.

    A host name that is a plain word, as `vm`, cannot be told from the word and is not looked for.

    Args:
        folder: what is to go up; its own place is private as well.
    """

    def __init__(self, folder: Path):
        self.patterns = {"an access token": [TOKENS], "a path of this machine": [HOMES], "the name of this host": []}
        if token := get_token():
            self.patterns["an access token"].append(re.escape(token.encode()))
        for place in (folder.resolve(), folder.resolve().parent, Path.cwd(), Path.home()):
            if len(place.parts) > 2:  # one below the root says nothing of anybody
                self.patterns["a path of this machine"].append(re.escape(str(place).encode()) + rb"(?![\w-])")
        host = socket.gethostname()
        if re.search(r"[\d._-]", host) and len(host) > 3 and host != "localhost":
            self.patterns["the name of this host"].append(rb"(?<![\w.-])" + re.escape(host.encode()) + rb"(?![\w-])")

    def __call__(self, data: bytes) -> Iterator[tuple[int, str, str]]:
        """(line, what it is, the text itself, tokens shortened) of everything private in `data`."""
        for what, patterns in self.patterns.items():
            for found in (match for pattern in patterns for match in re.finditer(pattern, data)):
                text = found[0].decode(errors="replace")
                yield data.count(b"\n", 0, found.start()) + 1, what, text if "token" not in what else text[:6] + "..."
