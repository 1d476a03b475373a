"""The files that commands write their reports to."""

from pathlib import Path
from typing import Any

from ..json_files import write_json


def check_output_file(path: str | None) -> None:
    """Make its folder: what cannot be written is found out before the work, not after it.

    Raises:
        OSError: it is a folder, or its folder cannot be made.
    """
    if path is None:
        return
    if Path(path).is_dir():
        raise IsADirectoryError(f"output_file {path!r} is a folder; name a file in it.")
    Path(path).parent.mkdir(parents=True, exist_ok=True)


def write_report(report: dict[str, Any], path: str | None) -> None:
    """Write a report as JSON, if it goes anywhere."""
    if path is not None:
        write_json(path, report)
