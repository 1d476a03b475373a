"""The audio files that a person means by paths, folders and patterns, and those that are left out."""

from __future__ import annotations

import glob
import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from .ffmpeg import FFMPEG_SUFFIXES, has_ffmpeg
from .sound_file import is_remote

logger = logging.getLogger(__name__)

# What libsndfile reads, by the names that such files usually have.
AUDIO_SUFFIXES = frozenset(
    ".8svx .aif .aifc .aiff .au .avr .bw64 .bwf .caf .fap .flac .iff .ircam .mp1 .mp2 .mp3 .mpga .nist .oga .ogg "
    ".opus .paf .pvf .rf64 .sd2 .sds .snd .sph .svx .voc .w64 .wav .wave .wavex .wve .xi".split()
)
# No audio, by the names that other files of a corpus have: they are not opened to find out.
_OTHER_SUFFIXES = frozenset(
    ".arrow .bak .bin .bz2 .cfg .csv .ctm .doc .docx .eaf .gif .gz .h5 .hdf5 .html .ini .jpeg .jpg .json .jsonl .lab "
    ".lock .log .md .mlf .npy .npz .parquet .pdf .phn .pickle .pkl .png .pt .py .pth .rst .rttm .safetensors .sh .srt "
    ".sql .stm .svg .tar .textgrid .tex .tgz .toml .trn .trs .tsv .txt .vtt .wrd .xls .xlsx .xml .xz .yaml .yml .zip "
    ".zst".split()
)
_BEGINNINGS = (b"RIFF", b"RF64", b"BW64", b"RIFX", b"fLaC", b"OggS", b"ID3", b"FORM", b"caff", b".snd", b"NIST_1A")
_FFMPEG_BEGINNINGS = (b"#!AMR", b"\x1aE\xdf\xa3", b"\x30\x26\xb2\x75")  # amr, webm, wma
HIDDEN = "hidden"
NEEDS_FFMPEG = "for ffmpeg, which is not installed"


@dataclass(frozen=True)
class AudioFile:
    """A file that was found.

    Attributes:
        path: as `load_audio` takes it: a path or a URL.
        below: its path below the folder that was searched, or its bare name.
    """

    path: str
    below: PurePath


@dataclass(frozen=True)
class FoundFiles:
    """What was found in some sources.

    Attributes:
        files: audio that can be read.
        left_out: audio that is not used, by the reason.
        others: the number of other files, by their suffix.
        problems: for each source without audio, what was looked for.
    """

    files: list[AudioFile] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=dict)
    others: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    @property
    def num_audio(self) -> int:
        """All audio files, used or not."""
        return len(self.files) + sum(map(len, self.left_out.values()))

    def leave_out(self, reason: str, path: str) -> None:
        """Note audio that is not used."""
        self.left_out.setdefault(reason, []).append(path)

    def notes(self) -> list[str]:
        """Lines for a person about everything that was left out."""
        lines = [
            f"{count_files(len(paths))} left out ({reason}), such as {paths[0]}"
            for reason, paths in self.left_out.items()
        ]
        if self.others:
            suffixes = ", ".join(
                f"{count} {suffix or 'without a suffix'}" for suffix, count in self.others.most_common()
            )
            lines.append(f"{count_files(self.others.total())} left out (no audio by name): {suffixes}")
        return lines


def count_files(number: int) -> str:
    """ "1 file" or "7 files"."""
    return f"{number} file" + ("" if number == 1 else "s")


def find_audio_files(sources: Sequence[str]) -> FoundFiles:
    """Find the audio files of some sources, each of them once.

    Args:
        sources: files and URLs, which are taken as they are, there or not; folders, searched with all their
            sub-folders, also those that are links, for audio by suffix or beginning; patterns with `*`, `?`, `[...]`
            and `**`, which stand for the audio files and the folders that match.

    Returns:
        The files, in the order of the sources and by name within a folder, and what was left out.
    """
    found = FoundFiles()
    files: dict[str, AudioFile] = {}
    for source in sources:
        own = _find(source)
        for file in own.files:
            files.setdefault(file.path if is_remote(file.path) else os.path.realpath(file.path), file)
        for reason, paths in own.left_out.items():
            found.left_out.setdefault(reason, []).extend(paths)
        found.others.update(own.others)
        found.problems.extend(own.problems)
    found.files.extend(files.values())
    return found


def walk_files(folder: Path) -> Iterator[Path]:
    """All files below a folder, sorted by name within each folder, as paths relative to it.

    Folders that are links are entered, unless they lead to a folder that was or will be visited by itself.
    """
    waiting, visited = [(folder, Path())], set()
    links: list[tuple[Path, Path]] = []
    while waiting or links:
        here, below = waiting.pop() if waiting else links.pop(0)
        real = os.path.realpath(here)
        if real in visited:
            continue
        visited.add(real)
        try:
            entries = sorted(os.scandir(here), key=lambda entry: entry.name)
        except OSError as error:
            logger.warning("The folder %s was left out: %s", here, error)
            continue
        for entry in entries:
            if _is_loop(entry):
                yield below / entry.name
            elif entry.is_dir():
                (links if entry.is_symlink() else waiting).append((here / entry.name, below / entry.name))
            elif entry.is_file() or (entry.is_symlink() and not os.path.exists(entry.path)):
                yield below / entry.name  # a link to nowhere is missed by name when it is read


def _is_loop(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a link that leads to itself."""
    try:
        entry.is_dir()
    except OSError:
        return True
    return False


def search_folder(folder: Path) -> FoundFiles:
    """The audio files below a folder, sorted, and what else lies there."""
    found = FoundFiles()
    can_use_ffmpeg = has_ffmpeg()
    for below in sorted(walk_files(folder)):
        path, suffix = folder / below, below.suffix.lower()
        kind = _kind(path, suffix)
        if kind is None:
            found.others[suffix] += 1
        elif any(part.startswith(".") or part == "__MACOSX" for part in below.parts):
            found.leave_out(HIDDEN, str(below))
        elif kind == "ffmpeg" and not can_use_ffmpeg:
            found.leave_out(NEEDS_FFMPEG, str(below))
        else:
            found.files.append(AudioFile(str(path), below))
    return found


def _kind(path: Path, suffix: str) -> str | None:
    """Who reads a file: "libsndfile", "ffmpeg" or nobody."""
    if suffix in AUDIO_SUFFIXES:
        return "libsndfile"
    if suffix in FFMPEG_SUFFIXES:
        return "ffmpeg"
    if suffix in _OTHER_SUFFIXES:
        return None
    try:
        with path.open("rb") as file:
            head = file.read(12)
    except OSError:
        return None
    if head.startswith(_BEGINNINGS) and (head[:4] not in (b"RIFF", b"FORM") or head[8:11] in (b"WAV", b"AIF")):
        return "libsndfile"
    return "ffmpeg" if head.startswith(_FFMPEG_BEGINNINGS) or head[4:8] == b"ftyp" else None


def _find(source: str) -> FoundFiles:
    """The files of one source."""
    wanted = f"files are found by their suffix ({', '.join(sorted(AUDIO_SUFFIXES | FFMPEG_SUFFIXES))})"
    if os.path.isdir(source):
        found = search_folder(Path(source))
        what = "there is no audio in this folder"
    elif is_remote(source) or not glob.has_magic(source) or os.path.exists(source):
        return FoundFiles([AudioFile(source, PurePath(PurePath(source).name))])
    else:
        found = _match(sorted(glob.glob(source, recursive=True)))
        what = "no audio file matches this pattern"
    if not found.files:
        notes = "".join(f" {note};" for note in found.notes())
        found.problems.append(f"{source}: {what};{notes} {wanted}.")
    return found


def _match(paths: Iterable[str]) -> FoundFiles:
    found = FoundFiles()
    for path in map(Path, paths):
        if path.is_dir():
            own = search_folder(path)
            found.files.extend(own.files)
            found.others.update(own.others)
            for reason, names in own.left_out.items():
                found.left_out.setdefault(reason, []).extend(str(path / name) for name in names)
        elif (kind := _kind(path, path.suffix.lower())) is None:
            found.others[path.suffix.lower()] += 1
        elif kind == "ffmpeg" and not has_ffmpeg():
            found.leave_out(NEEDS_FFMPEG, str(path))
        else:
            found.files.append(AudioFile(str(path), PurePath(path.name)))
    return found
