"""Refuses paths that cannot be used, before anything that takes time is imported or done."""

from pathlib import Path


def check_model_folder(name_or_path: str) -> None:
    """Refuse a path where there is no folder. A name such as `user/name` may be one of the Hub.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    is_path = name_or_path.startswith((".", "/", "~")) or name_or_path.count("/") > 1
    if is_path and not Path(name_or_path).is_dir():
        raise FileNotFoundError(f"There is no model folder {name_or_path!r} (looked from {Path.cwd()}).")


def check_folder(path: str) -> None:
    """Refuse a folder that is not there.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    if not Path(path).is_dir():
        raise FileNotFoundError(f"There is no folder {path!r} (looked from {Path.cwd()}).")


def check_file(path: str | Path | None) -> None:
    """Refuse a file that is not there.

    Raises:
        FileNotFoundError: there is no such file.
    """
    if path is not None and not Path(path).exists():
        raise FileNotFoundError(f"There is no file {str(path)!r} (looked from {Path.cwd()}).")


def make_output_folder(path: str | None) -> None:
    """Make a folder that is to be written into.

    Raises:
        OSError: the path is a file, or cannot be made.
    """
    if path is not None:
        Path(path).mkdir(parents=True, exist_ok=True)


def check_output_file(path: str | None) -> None:
    """Make the folder of a file that is to be written.

    Raises:
        OSError: the path is a folder, or the folder above it cannot be made.
    """
    if path is None:
        return
    if Path(path).is_dir():
        raise IsADirectoryError(f"output_file {path!r} is a folder; name a file in it.")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
