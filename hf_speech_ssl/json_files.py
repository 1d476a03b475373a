"""JSON files as this package writes them: whole, UTF-8, finite, without folders of this machine.

Whatever is written may be shared. So folders are taken out of paths here, and nowhere else: of `/data/calls/ctc` only
`ctc` is kept. Other libraries and older versions wrote files with whole paths; reading takes the folders out as well.
"""

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

LOCAL_PATH = re.compile(r"(?:~\w*|\.{1,2}|[A-Za-z]:)?[\\/](?!/).*\w.*")
# Fields that hold a path even where it does not look like one.
PATH_FIELDS = ("resume_from_checkpoint",)
PATH_ENDINGS = ("_dir", "_path")
# Fields that hold the name of a repository on the Hub, or else a path.
SOURCE_FIELDS = ("dataset", "dataset_name", "model")
SOURCE_ENDINGS = ("name_or_path",)
# Fields that hold what people say, which is never a path.
TEXT_FIELDS = ("text", "word", "reference", "hypothesis", "alignment")


def write_json(file: str | Path, values: Any) -> None:
    """Write `values` as JSON; a number that is not finite becomes null, and paths lose their folders."""
    write_text(file, json_text(values, indent=2))


def read_json(file: str | Path) -> dict[str, Any]:
    """Read a JSON object; paths in it lose their folders.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not JSON, or not an object.
    """
    file = Path(file)
    if not file.is_file():
        raise FileNotFoundError(f"{file.parent} has no {file.name}.")
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is no JSON ({error}); restore it, or remove it.") from error
    if not isinstance(values, dict):
        raise ValueError(f"{file} holds a {type(values).__name__}, not a JSON object.")
    without: dict[str, Any] = without_folders(values)
    return without


def json_text(values: Any, indent: int | None = None) -> str:
    """`values` as a JSON document that ends with a new line, or as one line without `indent`."""
    return json.dumps(shareable(values), indent=indent, ensure_ascii=False, allow_nan=False) + "\n"


def write_text(file: str | Path, text: str) -> None:
    """Write UTF-8 to a file; a reader finds the old content or the new one, never half of it."""
    file = Path(file)
    data = text.encode("utf-8", errors="backslashreplace")  # of a lone surrogate: its escape, which JSON knows too
    if file.exists() and not file.is_file():  # a pipe or a terminal
        file.write_bytes(data)
        return
    partial = file.with_name(f"{file.name}.partial")
    with partial.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(file)


def shareable(values: Any) -> Any:
    """The same values as they are written: finite numbers, and paths without folders."""
    return finite(without_folders(values))


def known_fields(record: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that a dataclass has fields for; another version may have written more."""
    names = {one.name for one in fields(record)}
    return {name: value for name, value in values.items() if name in names}


def finite(values: Any) -> Any:
    """The same values with `None` for every number that is NaN or infinite, which JSON cannot hold."""
    if isinstance(values, dict):
        return {name: finite(value) for name, value in values.items()}
    if isinstance(values, list | tuple):
        return [finite(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values


def without_folders(values: Any, field: str = "") -> Any:
    """The same values with the last part alone of every local path. `field` is the name of what `values` are."""
    if isinstance(values, dict):
        return {name: without_folders(value, str(name)) for name, value in values.items()}
    if isinstance(values, list | tuple):
        return [without_folders(value, field) for value in values]
    if isinstance(values, str) and _is_local_path(values, field):
        return re.split(r"[\\/]", values.rstrip("\\/"))[-1]
    return values


def is_hub_id(name: str | None) -> bool:
    """Whether a data set or a model is named as on the Hub, `user/name`, and is no folder here."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    if not name or name.count("/") != 1 or Path(name).exists():
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def _is_local_path(value: str, field: str) -> bool:
    if field in TEXT_FIELDS:
        return False
    if field in SOURCE_FIELDS or field.endswith(SOURCE_ENDINGS):
        return not is_hub_id(value)
    return field in PATH_FIELDS or field.endswith(PATH_ENDINGS) or bool(LOCAL_PATH.fullmatch(value))
