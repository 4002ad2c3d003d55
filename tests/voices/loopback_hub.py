"""A Hugging Face hub on the loopback interface: the REST calls that huggingface_hub 2.4 makes to load a model, served from folders.

The switches on `LoopbackHub` make it fail as real hubs, networks and hostile servers do.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


@dataclass
class Repository:
    """One commit of a model repository."""

    folder: Path
    branches: tuple[str, ...] = ("main",)
    licence: str | None = None
    gated: bool = False
    """Only requests with the token "let-me-in" may read files."""

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

    def paths(self, method: str) -> list[str]:
        return [path for seen, path, _ in self.requests if seen == method]

    def find(self, repo_id: str, revision: str) -> Repository | None:
        for repository in self.repositories.get(repo_id, ()):
            if revision in (*repository.branches, repository.commit):
                return repository
        return None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: LoopbackHub

    def log_message(self, *args) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path, {key.lower(): value for key, value in self.headers.items()}))
        if self.hub.status is not None:
            return self._error(self.hub.status, "", "out of order")
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+?)(?:/revision/(.+)|/(auth-check))?", path):
            return self._model(match[1], match[2] or "main", match[3] is not None)
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self._file(match[1], match[2], match[3])
        return self._error(404, "RepoNotFound", "Repository not found")

    def _allowed(self, repository: Repository) -> bool:
        return not repository.gated or self.headers.get("Authorization") == "Bearer let-me-in"

    def _model(self, repo_id: str, revision: str, auth_check: bool) -> None:
        if repo_id not in self.hub.repositories:
            return self._error(404, "RepoNotFound", "Repository not found")
        repository = self.hub.find(repo_id, revision)
        if repository is None:
            return self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if auth_check:
            return self._json({}) if self._allowed(repository) else self._error(403, "GatedRepo", "Access is restricted")
        siblings = [
            {"rfilename": file.name, "size": self.hub.declared_sizes.get(file.name, file.stat().st_size), "blobId": _etag(file)}
            for file in sorted(repository.folder.iterdir())
        ]
        card = {"license": repository.licence} if repository.licence else {}
        return self._json(
            {
                "id": repo_id,
                "modelId": repo_id,
                "sha": repository.commit,
                "private": False,
                "gated": "auto" if repository.gated else False,
                "disabled": False,
                "tags": [f"license:{repository.licence}"] if repository.licence else [],
                "cardData": card,
                "siblings": siblings,
            }
        )

    def _file(self, repo_id: str, revision: str, name: str) -> None:
        if repo_id not in self.hub.repositories:
            return self._error(404, "RepoNotFound", "Repository not found")
        repository = self.hub.find(repo_id, revision)
        if repository is None:
            return self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if not self._allowed(repository):
            return self._error(403, "GatedRepo", "Access is restricted")
        file = repository.folder / name
        if not file.is_file():
            return self._error(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": repository.commit})
        headers = {"X-Repo-Commit": repository.commit, "ETag": f'"{_etag(file)}"', "Accept-Ranges": "bytes"}
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

    def _error(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        named = {"X-Error-Code": code} if code else {}
        self._send(status, json.dumps({"error": message}).encode(), {**named, "X-Error-Message": message, **(headers or {})})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
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
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
