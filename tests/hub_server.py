"""A Hub in memory, on loopback, which speaks the endpoints that huggingface_hub uses. It can also fail on demand.

    with HubServer() as hub:
        subprocess.run([...], env=hub.environment(tmp_path))
        hub.repositories["models/me/name"].branches["main"].files

HF_ENDPOINT is read when huggingface_hub is imported, so clients are processes of their own.
"""

import base64
import hashlib
import json
import os
import re
import socket
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from hub_store import Blob, Commit, Repository

DATE = "2026-01-01T00:00:00.000Z"
TOKEN, READ_TOKEN = "hf_" + "w" * 34, "hf_" + "r" * 34  # of the user `me`: one may write, one may not
LARGE = (".safetensors", ".parquet", ".wav", ".png")  # kept in LFS, like everything that is not text
ID = r"(?P<kind>models|datasets)/(?P<id>[^/]+/[^/]+)"


class Refused(Exception):
    """An answer other than success: status, the Hub's error code and message."""

    def __init__(self, status: int, message: str, code: str = ""):
        self.status, self.message, self.code = status, message, code


class HubServer(ThreadingHTTPServer):
    """See the module. What has been asked is in `requests` as (method, path, status).

    Args:
        broken_uploads: so many times the connection of an upload breaks after `break_after` bytes.
        broken_downloads: the same of downloads.
        lost_commits: so many times the server answers 500 to a commit.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repositories: dict[str, Repository] = {}
        self.large_files: dict[str, bytes] = {}
        self.requests: list[tuple[str, str, int]] = []
        self.uploaded_bytes = 0  # of large files, whether they arrived whole or not
        self.broken_uploads = self.broken_downloads = self.lost_commits = 0
        self.break_after = 1000
        self.lock = threading.Lock()

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no news; anything else fails the test that reads standard error."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)

    def environment(self, home: Path, token: str | None = TOKEN) -> dict[str, str]:
        """The environment of a client without a past: nothing in its cache, no settings of this machine."""
        home.mkdir(exist_ok=True)
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",  # its protocol goes to servers of its own
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "*",
            "OMP_NUM_THREADS": "1",
            "PATH": os.environ["PATH"],
            **({"HF_TOKEN": token} if token else {}),
        }

    def add(self, repository: str, files: dict[str, bytes]) -> Repository:
        """A repository, such as `datasets/me/corpus`, that is there from the start."""
        blobs = {path: Blob(data, path.endswith(LARGE)) for path, data in files.items()}
        self.large_files |= {blob.oid: blob.data for blob in blobs.values() if blob.large}
        self.repositories[repository] = new = Repository(repository.partition("/")[2])
        new.commit({".gitattributes": Blob(b"*.safetensors filter=lfs\n", False), **blobs})
        return new

    def files(self, repository: str, branch: str = "main") -> dict[str, bytes]:
        """The files of a branch, by path."""
        return {path: blob.data for path, blob in self.repositories[repository].branches[branch].files.items()}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer
    routes: list[tuple[str, "re.Pattern[str]", Any]] = []

    def log_message(self, *_: object) -> None:
        """Nothing on the terminal."""

    def handle_any(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.query = {name: values[-1] for name, values in parse_qs(urlsplit(self.path).query).items()}
        try:
            for method, pattern, answer in self.routes:
                if method == self.command.replace("HEAD", "GET") and (match := pattern.fullmatch(path)):
                    answer(self, **{name: value for name, value in match.groupdict().items() if value is not None})
                    return
            self.body()
            raise Refused(404, f"no such endpoint: {self.command} {path}")
        except Refused as refused:
            codes = {"X-Error-Code": refused.code} if refused.code else {}
            # The request's body may not have been read, so this connection cannot serve another one.
            headers = {"X-Error-Message": refused.message, "Connection": "close", **codes}
            self.answer({"error": refused.message}, refused.status, headers)

    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    def answer(
        self, content: Any = None, status: int = 200, headers: dict[str, str] | None = None, breaks: bool = False
    ) -> None:
        """Send JSON, or bytes as they are; if it `breaks`, the first of them only."""
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.server.requests.append((self.command, self.path, status))
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[: self.server.break_after] if breaks else data)
        if breaks:
            self.hang_up()

    def hang_up(self) -> None:
        """Leave the client in the middle."""
        self.wfile.flush()
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def body_parts(self) -> Iterator[bytes]:
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return
        left = int(self.headers.get("Content-Length", 0))
        while left and (data := self.rfile.read(min(left, 1000))):
            left -= len(data)
            yield data

    def body(self) -> bytes:
        return b"".join(self.body_parts())

    def json(self) -> Any:
        return json.loads(self.body())

    def user(self) -> str | None:
        """Who asks; a token that is not known is refused whatever is asked."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in ("", TOKEN, READ_TOKEN):
            raise Refused(401, "Invalid credentials in Authorization header")
        return "me" if token else None

    def check_writer(self, owner: str) -> None:
        if self.user() is None:
            raise Refused(401, "Invalid username or password.")
        if owner != "me" or READ_TOKEN in self.headers["Authorization"]:
            raise Refused(403, f"You don't have the rights to write to {owner}")

    def repository(self, kind: str, id: str) -> Repository:
        user, found = self.user(), self.server.repositories.get(f"{kind}/{id}")
        if found is None or (found.private and user is None):
            raise Refused(404 if user else 401, "Repository not found", "RepoNotFound")
        return found

    def commit_of(self, repository: Repository, revision: str) -> Commit:
        revision = revision.removeprefix("refs/heads/")
        found = repository.branches.get(revision) or repository.commits.get(revision)
        if found is None:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return found

    def whoami(self) -> None:
        if self.user() is None:
            raise Refused(401, "Invalid username or password.")
        role = "read" if READ_TOKEN in self.headers["Authorization"] else "write"
        auth = {"type": "access_token", "accessToken": {"displayName": "test", "role": role}}
        self.answer({"type": "user", "name": "me", "orgs": [], "auth": auth})

    def create(self) -> None:
        wanted = self.json()
        owner, kind = wanted.get("organization") or "me", f"{wanted.get('type', 'model')}s"
        self.check_writer(owner)
        id = f"{owner}/{wanted['name']}"
        prefix = "" if kind == "models" else f"{kind}/"
        content = {"url": f"{self.server.url}/{prefix}{id}", "name": id}
        with self.server.lock:
            known = f"{kind}/{id}" in self.server.repositories
            if not known:
                self.server.add(f"{kind}/{id}", {}).private = wanted.get("visibility") == "private"
        self.answer({**content, "error": "You already created this repo"} if known else content, 409 if known else 200)

    def validate_card(self) -> None:
        self.body()
        self.answer({"errors": [], "warnings": []})

    def preupload(self, kind: str, id: str, revision: str) -> None:
        files = self.json()["files"]
        self.check_writer(id.split("/")[0])
        there = self.commit_of(self.repository(kind, id), revision).files
        modes = []
        for file in files:
            large = file["path"].endswith(LARGE) or b"\0" in base64.b64decode(file["sample"])
            known = {"oid": there[file["path"]].oid} if file["path"] in there else {}
            mode = "lfs" if large else "regular"
            modes.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, **known})
        self.answer({"files": modes})

    def large_file_batch(self, id: str, kind: str = "models") -> None:
        wanted = self.json()["objects"]
        self.check_writer(id.split("/")[0])
        objects = []
        for file in wanted:
            upload = {"upload": {"href": f"{self.server.url}/storage/{file['oid']}"}}
            objects.append(file if file["oid"] in self.server.large_files else {**file, "actions": upload})
        self.answer({"transfer": "basic", "objects": objects})

    def store(self, oid: str) -> None:
        data, size = b"", int(self.headers.get("Content-Length", sys.maxsize))
        breaks = self.is_to_break("broken_uploads", size)
        for part in self.body_parts():
            data += part
            self.server.uploaded_bytes += len(part)
            if breaks and len(data) >= self.server.break_after:
                self.server.requests.append((self.command, self.path, 0))
                self.hang_up()
                return
        if hashlib.sha256(data).hexdigest() != oid:
            raise Refused(400, "the content is not what was announced")
        self.server.large_files[oid] = data
        self.answer(b"")

    def make_commit(self, kind: str, id: str, revision: str) -> None:
        lines = [json.loads(line) for line in self.body().splitlines()]
        self.check_writer(id.split("/")[0])
        repository = self.repository(kind, id)
        if revision not in repository.branches:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        if self.server.lost_commits:
            self.server.lost_commits -= 1
            raise Refused(500, "Internal error")
        files = dict(repository.branches[revision].files)
        for line in lines:
            key, value = line["key"], line["value"]
            if key == "file":
                files[value["path"]] = Blob(base64.b64decode(value["content"]), False)
            elif key == "lfsFile":
                if value["oid"] not in self.server.large_files:
                    raise Refused(400, f"{value['path']} has not been uploaded")
                files[value["path"]] = Blob(self.server.large_files[value["oid"]], True)
            elif key == "deletedFile":
                del files[value["path"]]
        commit = repository.commit(files, revision)
        self.answer({"commitUrl": f"{self.server.url}/{id}/commit/{commit.sha}", "commitOid": commit.sha})

    def create_branch(self, kind: str, id: str, branch: str) -> None:
        start = self.json().get("startingPoint", "main")
        self.check_writer(id.split("/")[0])
        repository = self.repository(kind, id)
        if branch in repository.branches:
            raise Refused(409, f"Reference already exists: {branch}")
        repository.branches[branch] = self.commit_of(repository, start)
        self.answer(b"")

    def information(self, kind: str, id: str, revision: str = "main") -> None:
        repository = self.repository(kind, id)
        commit = self.commit_of(repository, revision)
        siblings = [{"rfilename": path} for path in sorted(commit.files)]
        content = {"id": id, "sha": commit.sha, "private": repository.private, "lastModified": DATE}
        content |= {"siblings": siblings, "tags": [], "createdAt": DATE, "disabled": False, "gated": False}
        self.answer(content if kind == "datasets" else {**content, "modelId": id})

    def references(self, kind: str, id: str) -> None:
        branches = self.repository(kind, id).branches.items()
        named = [{"name": name, "ref": f"refs/heads/{name}", "targetCommit": commit.sha} for name, commit in branches]
        self.answer({"branches": named, "tags": [], "converts": []})

    def tree(self, kind: str, id: str, revision: str, folder: str = "") -> None:
        files = self.commit_of(self.repository(kind, id), revision).files
        prefix = f"{folder}/" if folder else ""
        entries, folders = [], set()
        for path, blob in sorted(files.items()):
            parts = path.removeprefix(prefix).split("/")
            if not path.startswith(prefix):
                continue
            deep = self.query.get("recursive", "").lower() == "true"
            folders |= {
                prefix + "/".join(parts[:depth]) for depth in range(1, len(parts) if deep else min(len(parts), 2))
            }
            if deep or len(parts) == 1:
                entries.append(blob.entry(path))
        if folder and not entries and not folders:
            raise Refused(404, f"{folder} does not exist", "EntryNotFound")
        named = [{"type": "directory", "oid": "0" * 40, "size": 0, "path": name} for name in sorted(folders)]
        self.answer(named + entries)

    def paths_information(self, kind: str, id: str, revision: str) -> None:
        data = self.body().decode()
        as_json = "json" in self.headers.get("Content-Type", "")
        paths = json.loads(data)["paths"] if as_json else parse_qs(data).get("paths", [])
        files = self.commit_of(self.repository(kind, id), revision).files
        entries = [files[path].entry(path) for path in paths if path in files]
        for path in paths:
            if path not in files and any(name.startswith(f"{path}/") for name in files):
                entries.append({"type": "directory", "oid": "0" * 40, "size": 0, "path": path})
        self.answer(entries)

    def resolve(self, id: str, revision: str, path: str, kind: str = "models") -> None:
        commit = self.commit_of(self.repository(kind, id), revision)
        headers = {"X-Repo-Commit": commit.sha, "Accept-Ranges": "bytes"}
        if path not in commit.files:
            message = "Entry not found"
            self.answer(
                {"error": message}, 404, {**headers, "X-Error-Code": "EntryNotFound", "X-Error-Message": message}
            )
            return
        data, status = commit.files[path].data, 200
        headers["ETag"] = f'"{commit.files[path].oid}"'
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(asked[1]), min(int(asked[2] or len(data)), len(data) - 1)
            headers["Content-Range"], status = f"bytes {first}-{last}/{len(data)}", 206
            data = data[first : last + 1]
        breaks = self.command == "GET" and self.is_to_break("broken_downloads", len(data))
        self.answer(data, status, headers, breaks)

    def is_to_break(self, kind: str, size: int) -> bool:
        """Whether this connection is one of those that break; files that are too small to break do not count."""
        with self.server.lock:
            left = getattr(self.server, kind)
            if left and size > self.server.break_after:
                setattr(self.server, kind, left - 1)
                return True
        return False


PLAIN_ID = r"(?:(?P<kind>datasets)/)?(?P<id>[^/]+/[^/]+?)"  # the kind of a model is not said
_Handler.routes = [
    (method, re.compile(pattern), answer)
    for method, pattern, answer in (
        ("GET", "/api/whoami-v2", _Handler.whoami),
        ("POST", "/api/repos/create", _Handler.create),
        ("POST", "/api/validate-yaml", _Handler.validate_card),
        ("POST", rf"/api/{ID}/preupload/(?P<revision>.+)", _Handler.preupload),
        ("POST", rf"/api/{ID}/commit/(?P<revision>.+)", _Handler.make_commit),
        ("POST", rf"/api/{ID}/branch/(?P<branch>.+)", _Handler.create_branch),
        ("POST", rf"/api/{ID}/paths-info/(?P<revision>.+)", _Handler.paths_information),
        ("GET", rf"/api/{ID}/refs", _Handler.references),
        ("GET", rf"/api/{ID}/tree/(?P<revision>[^/]+)(?:/(?P<folder>.+))?", _Handler.tree),
        ("GET", rf"/api/{ID}/revision/(?P<revision>.+)", _Handler.information),
        ("GET", rf"/api/{ID}", _Handler.information),
        ("POST", rf"/{PLAIN_ID}\.git/info/lfs/objects/batch", _Handler.large_file_batch),
        ("PUT", r"/storage/(?P<oid>[0-9a-f]{64})", _Handler.store),
        ("GET", rf"/{PLAIN_ID}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", _Handler.resolve),
    )
]
