"""A local hub server: the endpoints that the client requests, and faults that tests inject."""

import hashlib
import json
import socket
from contextlib import AbstractContextManager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from local_server import running


class Handler(BaseHTTPRequestHandler):
    """Answers `/api/models/NAME/...` and `/NAME/resolve/COMMIT/FILE`."""

    server: "HubServer"
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.requests.append(f"{self.command} {self.path}")
        path = self.path.split("?")[0]
        owner, name, *rest = path.removeprefix("/api/models/").strip("/").split("/")
        model = f"{owner}/{name}"
        if model in self.server.refused:
            code, error = self.server.refused[model]
            self.send(code, b"{}", **({"X-Error-Code": error} if error else {}))
        elif model not in self.server.commits:
            self.send(404, b"{}", **{"X-Error-Code": "RepoNotFound"})
        elif path.startswith("/api/models/"):
            self.describe(model, rest)
        else:
            self.file(model, rest[1], "/".join(rest[2:]))

    def do_HEAD(self) -> None:
        self.do_GET()

    def log_message(self, *words: object) -> None:
        pass

    def describe(self, model: str, rest: list[str]) -> None:
        revision = rest[1] if len(rest) > 1 else "main"
        commit = self.server.branches[model].get(revision, revision)
        files = self.server.commits[model].get(commit)
        if files is None:
            self.send(404, b"{}", **{"X-Error-Code": "RevisionNotFound"})
        elif rest and rest[0] == "tree":
            tree = [
                {
                    "type": "file",
                    "path": path,
                    "size": self.server.reported_sizes.get(path, len(body)),
                    "oid": digest(body),
                }
                for path, body in files.items()
            ]
            self.send(200, json.dumps(tree).encode())
        else:
            siblings = [{"rfilename": path} for path in files]
            about: dict[str, Any] = {"id": model, "sha": commit, "siblings": siblings, "tags": [], "downloads": 0}
            self.send(200, json.dumps(about).encode())

    def file(self, model: str, revision: str, path: str) -> None:
        commit = self.server.branches[model].get(revision, revision)
        body = self.server.commits[model][commit].get(path)
        if body is None:
            self.send(404, b"", **{"X-Error-Code": "EntryNotFound"})
            return
        headers = {"ETag": f'"{digest(body)}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").split("-")[0])
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
            self.server.resumed.append((path, start))
        truncated = self.command == "GET" and self.server.truncations.get(path, 0) > 0
        self.server.truncations[path] = self.server.truncations.get(path, 0) - truncated
        self.send(
            206 if start else 200, body[start:], stop=max(0, len(body) // 2 - start) if truncated else None, **headers
        )

    def send(self, code: int, body: bytes, stop: int | None = None, **headers: str) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[:stop])
        if stop is not None:
            self.close_connection = True


class HubServer(ThreadingHTTPServer):
    """Serves models from memory: the bytes of their files, by commit.

    `refused` maps a model to an HTTP status and the hub's error code; `truncations` maps a file to the number of its
    transfers that end half way; `reported_sizes` replace the true file sizes; `requests` and `resumed` record the
    requests.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.commits: dict[str, dict[str, dict[str, bytes]]] = {}
        self.branches: dict[str, dict[str, str]] = {}
        self.refused: dict[str, tuple[int, str | None]] = {}
        self.truncations: dict[str, int] = {}
        self.reported_sizes: dict[str, int] = {}
        self.requests: list[str] = []
        self.resumed: list[tuple[str, int]] = []
        self.url = f"http://127.0.0.1:{self.server_port}"

    def publish(self, model: str, files: dict[str, bytes], branch: str = "main") -> str:
        """Put files on a branch; returns the commit."""
        commit = digest(repr(sorted(files.items())).encode())
        self.commits.setdefault(model, {})[commit] = files
        self.branches.setdefault(model, {})[branch] = commit
        return commit

    def redirect_client(self, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
        """Sets what HF_ENDPOINT and HF_HUB_CACHE set when the client is imported."""
        self._point(monkeypatch, self.url)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    def offline(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Sets what HF_HUB_OFFLINE=1 sets."""
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    def unreachable(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Points the client to a port without a server."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._point(monkeypatch, f"http://127.0.0.1:{free.getsockname()[1]}")

    def _point(self, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
        monkeypatch.setattr(constants, "ENDPOINT", url)
        template = url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # some tests use clients that disconnect


def serving() -> AbstractContextManager[HubServer]:
    return running(HubServer())


def digest(body: bytes) -> str:
    return hashlib.sha1(body).hexdigest()
