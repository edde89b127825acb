"""A Hugging Face hub on 127.0.0.1: what its client asks of the real one, and faults on demand."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

LARGE = (".safetensors", ".gguf", ".litertlm", ".bin")  # in the hub's large storage
COMMIT = "1" * 40


@dataclass
class Hub:
    """`files` by (repository, commit) and name; `revisions` by name. Faults: `status` for every
    request to a repository, `cut_after` bytes of a body's connection (once for each entry), `lies`
    about hashes by file name, `raw` bodies instead of lists of files. Large files are sent from
    `storage`, another hub, if set, as the real one does. `seen` are the requests, `tokens` their
    authorization."""

    url: str = ""
    files: dict[tuple[str, str], dict[str, bytes]] = field(default_factory=dict)
    revisions: dict[str, str] = field(default_factory=lambda: {"main": COMMIT})
    status: dict[str, tuple[int, str]] = field(default_factory=dict)
    token: str | None = None
    cut_after: list[int] = field(default_factory=list)
    lies: dict[str, str] = field(default_factory=dict)
    raw: dict[str, bytes] = field(default_factory=dict)
    storage: "Hub | None" = None
    seen: list[tuple[str, str, str | None]] = field(default_factory=list)
    tokens: list[str | None] = field(default_factory=list)

    def add(self, repo: str, directory: Path, commit: str = COMMIT) -> None:
        found = {
            path.relative_to(directory).as_posix(): path.read_bytes()
            for path in directory.rglob("*")
            if path.is_file()
        }
        self.files.setdefault((repo, commit), {}).update(found)

    def put(self, repo: str, name: str, data: bytes, commit: str = COMMIT) -> None:
        self.files.setdefault((repo, commit), {})[name] = data

    @property
    def fetched(self) -> set[str]:
        """Names of the files whose bytes were asked for."""
        return {
            p.split("/resolve/")[1].split("/", 1)[1]
            for m, p, _ in self.seen
            if m == "GET" and "/resolve/" in p
        }

    def commit(self, revision: str) -> str | None:
        known = {commit for _, commit in self.files}
        return revision if revision in known else self.revisions.get(revision)

    def sibling(self, name: str, data: bytes) -> dict[str, Any]:
        row: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": git_hash(data)}
        if name.endswith(LARGE):
            row["lfs"] = {"size": len(data), "sha256": self.sha256(name, data), "pointerSize": 134}
        return row

    def sha256(self, name: str, data: bytes) -> str:
        return self.lies.get(name) or hashlib.sha256(data).hexdigest()


def git_hash(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@contextmanager
def serve() -> Iterator[Hub]:
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments: object) -> None:
            pass

        def do_GET(self) -> None:
            _answer(self, hub)

        do_HEAD = do_GET

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def serve_alone(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Within it the hub is the only one, `directory` holds its caches, and is where one works."""
    with serve() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        monkeypatch.setenv("HF_HUB_CACHE", str(directory / "hf"))
        monkeypatch.setenv("XDG_CACHE_HOME", str(directory / "cache"))
        monkeypatch.setenv("HF_TOKEN_PATH", str(directory / "no-token"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.chdir(directory)
        yield running


def _answer(request: BaseHTTPRequestHandler, hub: Hub) -> None:
    path = unquote(urlsplit(request.path).path).lstrip("/")
    hub.seen.append((request.command, path, request.headers.get("Range")))
    hub.tokens.append(request.headers.get("Authorization"))
    listing = path.startswith("api/models/")
    parts = path.removeprefix("api/models/").split("/")
    repo, rest = "/".join(parts[:2]), parts[2:]
    if repo in hub.status:
        return _refuse(request, *hub.status[repo])
    if hub.token and request.headers.get("Authorization") != f"Bearer {hub.token}":
        return _refuse(request, 401, "RepoNotFound")
    if repo not in {name for name, _ in hub.files}:
        return _refuse(request, 404, "RepoNotFound")
    revision = rest[1] if len(rest) > 1 else "main"
    commit = hub.commit(revision)
    files = hub.files.get((repo, commit or ""))
    if commit is None or files is None:
        return _refuse(request, 404, "RevisionNotFound")
    if listing and repo in hub.raw:
        return _send(request, hub.raw[repo])
    if listing and rest[:1] in ([], ["revision"]):
        rows = [hub.sibling(name, data) for name, data in files.items()]
        return _send(request, json.dumps({"id": repo, "sha": commit, "siblings": rows}).encode())
    name = "/".join(rest[2:])
    if rest[:1] != ["resolve"] or name not in files:
        return _refuse(request, 404, "EntryNotFound")
    if hub.storage is not None and name.endswith(LARGE):
        # The client reads size and hash off this answer, and follows it for the bytes.
        return _send(
            request,
            b"",
            302,
            {
                "Location": f"{hub.storage.url}/{path}",
                "X-Linked-Size": str(len(files[name])),
                "X-Linked-Etag": f'"{hub.sha256(name, files[name])}"',
                "X-Repo-Commit": commit,
            },
        )
    return _send_file(request, hub, name, files[name], commit)


def _refuse(request: BaseHTTPRequestHandler, status: int, code: str) -> None:
    _send(request, b"{}", status, {"X-Error-Code": code, "X-Error-Message": code})


def _send(
    request: BaseHTTPRequestHandler,
    body: bytes,
    status: int = 200,
    headers: dict[str, str] | None = None,
) -> None:
    request.send_response(status)
    for key, value in ({"Content-Type": "application/json"} | (headers or {})).items():
        request.send_header(key, value)
    request.send_header("Content-Length", str(len(body)))
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(body)


def _send_file(
    request: BaseHTTPRequestHandler, hub: Hub, name: str, data: bytes, commit: str
) -> None:
    etag = hub.sha256(name, data) if name.endswith(LARGE) else git_hash(data)
    headers = {"ETag": f'"{etag}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
    start, status, total = 0, 200, len(data)
    asked = request.headers.get("Range")
    if asked:
        start, status = int(asked.removeprefix("bytes=").split("-")[0]), 206
        headers["Content-Range"] = f"bytes {start}-{total - 1}/{total}"
    body = data[start:]
    if request.command == "HEAD" or not name.endswith(LARGE) or not hub.cut_after:
        return _send(request, body, status, headers)
    request.send_response(status)
    for key, value in (headers | {"Content-Length": str(len(body))}).items():
        request.send_header(key, value)
    request.end_headers()
    request.wfile.write(body[: hub.cut_after.pop(0)])
    request.wfile.flush()
    request.close_connection = True
    return None
