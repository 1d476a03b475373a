"""Finds what must not be uploaded: access tokens, paths of this machine, its host name."""

import re
import socket
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import get_token

# Access tokens of the Hub, of GitHub and of AWS; and folders that begin with a person's name.
TOKENS = rb"\b(?:hf_|api_org_|gh[opsu]_)[A-Za-z0-9]{20,}|\bgithub_pat_\w{20,}|\bAKIA[0-9A-Z]{16}\b"
HOMES = rb"(?<![\w.])(?:/(?:home|Users)/[^/\s\"'<>{}]+|/root/)|\b[A-Za-z]:\\+Users\\+[^\\\s\"']+"


class PrivacyCheck:
    """Finds access tokens, paths of this machine and its host name in bytes.

    A host name that is a plain word, such as `vm`, is not looked for, because the word may stand for itself.

    Args:
        folder: the folder to upload; its own path is private as well.
    """

    def __init__(self, folder: Path):
        self.patterns = {"an access token": [TOKENS], "a path of this machine": [HOMES], "the name of this host": []}
        if token := get_token():
            self.patterns["an access token"].append(re.escape(token.encode()))
        for place in (folder.resolve(), folder.resolve().parent, Path.cwd(), Path.home()):
            if len(place.parts) > 2:  # one below the root names nobody
                self.patterns["a path of this machine"].append(re.escape(str(place).encode()) + rb"(?![\w-])")
        host = socket.gethostname()
        if re.search(r"[\d._-]", host) and len(host) > 3 and host != "localhost":
            self.patterns["the name of this host"].append(rb"(?<![\w.-])" + re.escape(host.encode()) + rb"(?![\w-])")

    def __call__(self, data: bytes) -> Iterator[tuple[int, str, str]]:
        """Yield (line, kind, text) of everything private in `data`; tokens are cut off after 6 characters."""
        for what, patterns in self.patterns.items():
            for found in (match for pattern in patterns for match in re.finditer(pattern, data)):
                text = found[0].decode(errors="replace")
                yield data.count(b"\n", 0, found.start()) + 1, what, text if "token" not in what else text[:6] + "..."
