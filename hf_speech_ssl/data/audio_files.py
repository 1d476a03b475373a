"""The audio files that a person means by paths, folders and patterns."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from .audio import is_remote

# What libsndfile reads, by the names that such files usually have.
AUDIO_SUFFIXES = frozenset(
    ".aif .aifc .aiff .au .caf .flac .mp3 .oga .ogg .opus .rf64 .snd .sph .voc .w64 .wav .wave".split()
)


@dataclass(frozen=True)
class AudioFile:
    """A file that was found.

    Attributes:
        path: as `load_audio` takes it: a path or a URL.
        below: its path below the folder that was searched, or its bare name.
    """

    path: str
    below: PurePath


def find_audio_files(sources: Sequence[str]) -> tuple[list[AudioFile], list[str]]:
    """The audio files of some sources, each of them once.

    Args:
        sources: files and URLs, which are taken as they are, there or not; folders, searched with all their
            sub-folders for files with an audio suffix that are not hidden; patterns with `*`, `?`, `[...]` and `**`,
            which stand for the files with an audio suffix and the folders that match.

    Returns:
        The files, in the order of the sources and by name within a folder, and for each source in which there are
        none what was looked for.
    """
    files: dict[str, AudioFile] = {}
    problems = []
    for source in sources:
        found, problem = _found(source)
        for file in found:
            files.setdefault(file.path if is_remote(file.path) else os.path.realpath(file.path), file)
        if not found:
            problems.append(problem)
    return list(files.values()), problems


def _found(source: str) -> tuple[list[AudioFile], str]:
    """The files of one source, and what to say where there are none."""
    wanted = f"files are found by their suffix ({', '.join(sorted(AUDIO_SUFFIXES))})"
    if os.path.isdir(source):
        return _in_folder(Path(source)), f"{source}: there is no audio in this folder; {wanted}."
    if is_remote(source) or not glob.has_magic(source) or os.path.exists(source):
        return [AudioFile(source, PurePath(PurePath(source).name))], ""
    found = []
    for path in sorted(glob.glob(source, recursive=True)):
        if os.path.isdir(path):
            found += _in_folder(Path(path))
        elif _is_audio(path):
            found.append(AudioFile(path, PurePath(PurePath(path).name)))
    return found, f"{source}: no audio file matches this pattern; {wanted}."


def _in_folder(folder: Path) -> list[AudioFile]:
    below = (path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file() and _is_audio(path))
    return [
        AudioFile(str(folder / path), path) for path in below if not any(one.startswith(".") for one in path.parts)
    ]


def _is_audio(path: str | Path) -> bool:
    return PurePath(path).suffix.lower() in AUDIO_SUFFIXES
