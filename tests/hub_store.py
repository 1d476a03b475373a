"""What the Hub in memory keeps: repositories of branches of commits of files."""

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Blob:
    """The content of a file, and whether it is kept in LFS."""

    data: bytes
    large: bool

    @property
    def oid(self) -> str:
        """Git's name of the content, or LFS's."""
        if self.large:
            return hashlib.sha256(self.data).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(self.data) + self.data).hexdigest()

    def entry(self, path: str) -> dict[str, Any]:
        """As a line of a listing."""
        lfs = {"lfs": {"oid": self.oid, "size": len(self.data), "pointerSize": 130}} if self.large else {}
        return {"type": "file", "oid": self.oid, "size": len(self.data), "path": path, **lfs}


@dataclass(frozen=True)
class Commit:
    """The files of a moment, by path."""

    files: dict[str, Blob]

    @property
    def sha(self) -> str:
        content = json.dumps([(path, blob.oid) for path, blob in sorted(self.files.items())])
        return hashlib.sha1(content.encode()).hexdigest()


@dataclass
class Repository:
    """Branches by name, and every commit by its hash."""

    id: str
    private: bool = False
    branches: dict[str, Commit] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)

    def commit(self, files: dict[str, Blob], branch: str = "main") -> Commit:
        self.branches[branch] = commit = Commit(files)
        self.commits[commit.sha] = commit
        return commit
