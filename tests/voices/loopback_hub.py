"""A Hugging Face hub on the loopback interface: the REST calls that huggingface_hub 2.4 makes.

Repositories are served from folders; a commit makes a new folder and is seen whole or not at all.
The switches on `LoopbackHub` make it fail as real hubs, networks and hostile servers do.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tests.voices.loopback_push import Account, Fault, PushCalls, git_hash, time_silent
from tests.voices.loopback_xet import LoopbackXet


@dataclass
class Repository:
    """One commit of a model repository."""

    folder: Path
    branches: tuple[str, ...] = ("main",)
    licence: str | None = None
    gated: bool = False
    """Only requests with the token "let-me-in" may read files."""
    private: bool = False
    """Only accounts that may write to it see it."""

    @property
    def commit(self) -> str:
        return hashlib.sha1(str(self.folder).encode()).hexdigest()


@dataclass
class LoopbackHub:
    """Repositories by id, one or several commits each, and what the server does wrong."""

    repositories: dict[str, list[Repository]] = field(default_factory=dict)
    url: str = ""
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    """(method, path, headers in lower case) in order of arrival."""
    declared_sizes: dict[str, int] = field(default_factory=dict)
    """File -> size that the listing states instead of the true one."""
    cut_after: int | None = None
    """Close the connection for good before this byte of a .safetensors file."""
    endless: str | None = None
    """A file that is sent without end and without Content-Length."""
    endless_sent: int = 0
    status: int | None = None
    """Answer everything with this status."""
    redirect_weights_to: str | None = None
    """Origin of another server (no slash at the end) that .safetensors files are redirected to."""
    accounts: dict[str, Account] = field(default_factory=dict)
    """By token."""
    store: Path | None = None
    """Where commits are kept; nothing can be pushed without."""
    large: tuple[str, ...] = (".safetensors", ".onnx", ".wav", ".flac", ".png")
    """Endings of files that are kept outside git, as the hub's .gitattributes says."""
    objects: dict[str, bytes] = field(default_factory=dict)
    """Large files by their SHA-256, whether a commit names them or not."""
    part_bytes: int | None = None
    """Take large files in parts of this size."""
    ignored: tuple[str, ...] = ()
    """Files that the repository's .gitignore names."""
    public_always: bool = False
    """Make every new repository public whatever is asked for."""
    faults: list[Fault] = field(default_factory=list)
    commits: list[dict] = field(default_factory=list)
    """Header, added and deleted files of each commit that was made."""
    before_commit: Callable[[], None] | None = None
    cut: Callable[[BaseHTTPRequestHandler], bool] | None = None
    """Called with each request; whether it is as good as answered then."""
    xet: LoopbackXet | None = None
    """Storage in chunks; where there is none, large files are put whole."""
    parts: dict[str, dict[int, bytes]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def publish(
        self, repo_id: str, files: dict[str, bytes], like: Repository | None = None
    ) -> Repository:
        """Make these the files of the main branch."""
        folder = self.store / f"commit-{len(self.commits)}-{time.monotonic_ns()}"
        folder.mkdir()
        for name, content in files.items():
            path = folder / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
        made = Repository(folder, private=like.private if like else False)
        older = self.repositories.get(repo_id, [])
        for repository in older:
            repository.branches = ()
        self.repositories[repo_id] = [made, *older]
        return made

    def blank(self, private: bool) -> Repository:
        """What a new repository is like, for `publish`."""
        return Repository(self.store, private=private)

    def files(self, repo_id: str) -> dict[str, bytes]:
        """What the main branch holds."""
        folder = self.find(repo_id, "main").folder
        return {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }

    def is_large(self, name: str) -> bool:
        return name.endswith(self.large)

    def paths(self, method: str) -> list[str]:
        return [path for seen, path, _ in self.requests if seen == method]

    def find(self, repo_id: str, revision: str) -> Repository | None:
        for repository in self.repositories.get(repo_id, ()):
            if revision in (*repository.branches, repository.commit):
                return repository
        return None


class _Handler(PushCalls, BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: LoopbackHub

    def log_message(self, *args) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(
            (self.command, path, {key.lower(): value for key, value in self.headers.items()})
        )
        if self.hub.cut and self.hub.cut(self):
            self.close_connection = True
            return None
        with self.hub.lock:
            fault = next(
                (
                    f
                    for f in self.hub.faults
                    if f.method == self.command and re.search(f.pattern, path) and f.times != 0
                ),
                None,
            )
            if fault and fault.times:
                fault.times -= 1
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(
            length if not fault or fault.after_bytes is None else min(fault.after_bytes, length)
        )
        if fault:
            time_silent(fault.silent)
            if fault.late:
                self.lost = True
                self._serve(path)
            if fault.status is None:
                self.close_connection = True
                return None
            self.lost = False
            return self._error(fault.status, "", fault.message)
        if self.hub.status is not None:
            return self._error(self.hub.status, "", "out of order")
        return self._serve(path)

    def _serve(self, path: str) -> None:
        if self.hub.xet and (
            match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/xet-write-token/main", path)
        ):
            return self._xet_token(match[1])
        if self.hub.xet and re.match(r"/v[12]/", path):
            return self._xet(self.hub.xet, path)
        if self.command in ("POST", "PUT") or path == "/api/whoami-v2":
            return self._write(path)
        if match := re.fullmatch(
            r"/api/models/([^/]+/[^/]+?)(?:/revision/(.+)|/(auth-check))?", path
        ):
            return self._model(match[1], match[2] or "main", match[3] is not None)
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self._file(match[1], match[2], match[3])
        return self._error(404, "RepoNotFound", "Repository not found")

    def _allowed(self, repository: Repository) -> bool:
        return not repository.gated or self.headers.get("Authorization") == "Bearer let-me-in"

    @property
    def account(self) -> Account | None:
        return self.hub.accounts.get(
            (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        )

    def _seen(self, repo_id: str) -> bool:
        """Whether the requests' account can see a repository."""
        held = self.hub.repositories.get(repo_id)
        owner = repo_id.partition("/")[0]
        return bool(held) and (
            not held[0].private
            or bool(self.account and (self.account.may_write(owner) or self.account.name == owner))
        )

    def _model(self, repo_id: str, revision: str, auth_check: bool) -> None:
        if not self._seen(repo_id):
            return self._error(404, "RepoNotFound", "Repository not found")
        repository = self.hub.find(repo_id, revision)
        if repository is None:
            return self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if auth_check:
            return (
                self._json({})
                if self._allowed(repository)
                else self._error(403, "GatedRepo", "Access is restricted")
            )
        siblings = []
        for file in sorted(path for path in repository.folder.rglob("*") if path.is_file()):
            name, size = (
                file.relative_to(repository.folder).as_posix(),
                self.hub.declared_sizes.get(file.name, file.stat().st_size),
            )
            siblings.append(
                {"rfilename": name, "size": size, "blobId": git_hash(file.read_bytes())}
            )
            if self.hub.is_large(name):
                siblings[-1]["lfs"] = {
                    "sha256": _etag(file),
                    "size": file.stat().st_size,
                    "pointerSize": 134,
                }
        card = {"license": repository.licence} if repository.licence else {}
        return self._json(
            {
                "id": repo_id,
                "modelId": repo_id,
                "sha": repository.commit,
                "private": repository.private,
                "gated": "auto" if repository.gated else False,
                "disabled": False,
                "tags": [f"license:{repository.licence}"] if repository.licence else [],
                "cardData": card,
                "siblings": siblings,
            }
        )

    def _file(self, repo_id: str, revision: str, name: str) -> None:
        if not self._seen(repo_id):
            return self._error(404, "RepoNotFound", "Repository not found")
        repository = self.hub.find(repo_id, revision)
        if repository is None:
            return self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if not self._allowed(repository):
            return self._error(403, "GatedRepo", "Access is restricted")
        file = repository.folder / name
        if not file.is_file():
            return self._error(
                404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": repository.commit}
            )
        headers = {
            "X-Repo-Commit": repository.commit,
            "ETag": f'"{_etag(file)}"',
            "Accept-Ranges": "bytes",
        }
        if self.hub.redirect_weights_to and name.endswith(".safetensors"):
            headers |= {
                "Location": self.hub.redirect_weights_to + self.path,
                "X-Linked-Size": str(file.stat().st_size),
                "X-Linked-ETag": headers["ETag"],
            }
            return self._send(302, b"", headers)
        if name == self.hub.endless and self.command == "GET":
            return self._send_endless(headers)
        return self._send_file(name, file.read_bytes(), headers)

    def _send_file(self, name: str, data: bytes, headers: dict[str, str]) -> None:
        start = 0
        if match := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start = int(match[1])
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self.send_response(206 if start else 200)
        for key, value in {**headers, "Content-Length": str(len(data) - start)}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.hub.cut_after is not None and name.endswith(".safetensors"):
            self.wfile.write(data[start : self.hub.cut_after])
            self.wfile.flush()
            self.close_connection = True
            return
        self.wfile.write(data[start:])

    def _send_endless(self, headers: dict[str, str]) -> None:
        self.send_response(200)
        for key, value in {**headers, "Connection": "close"}.items():
            self.send_header(key, value)
        self.end_headers()
        self.close_connection = True
        with contextlib.suppress(OSError):
            while self.hub.endless_sent < 1 << 30:
                self.wfile.write(b"x" * (1 << 20))
                self.hub.endless_sent += 1 << 20

    def _json(self, values: dict) -> None:
        self._send(200, json.dumps(values).encode(), {"Content-Type": "application/json"})

    def _error(
        self, status: int, code: str, message: str, headers: dict[str, str] | None = None
    ) -> None:
        named = {"X-Error-Code": code} if code else {}
        self._send(
            status,
            json.dumps({"error": message}).encode(),
            {**named, "X-Error-Message": message, **(headers or {})},
        )

    lost = False

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        if self.lost:  # carried out, but the answer never arrives
            return
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _etag(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


@contextlib.contextmanager
def serving(host: str = "127.0.0.1") -> Iterator[LoopbackHub]:
    """A LoopbackHub that answers at its `url` inside the block."""
    hub = LoopbackHub()
    server = ThreadingHTTPServer((host, 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://{host}:{server.server_address[1]}"
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
    )
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def connect(monkeypatch, server: LoopbackHub, folder: Path) -> Path:
    """Let this process talk to that hub only, nobody logged in; return its empty cache."""
    from huggingface_hub import constants, file_download

    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_XET_CACHE", str(folder / "xet"))
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(
        constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        server.url + "/{repo_id}/resolve/{revision}/{filename}",
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(folder / "no-token"))
    monkeypatch.setattr(constants, "HF_STORED_TOKENS_PATH", str(folder / "no-tokens"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    # The client waits seconds between its attempts; nothing here depends on that.
    monkeypatch.setattr(file_download.time, "sleep", lambda seconds: None)
    return folder / "cache"
