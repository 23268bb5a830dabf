"""Servers on 127.0.0.1 that answer as the Hugging Face hub does.

One has a public data set, the other takes models and gives them back.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from helpers.http_server import serving

REPOSITORY = "me/photos"
# A full hash, as the library checks its form.
COMMIT = "a" * 40


class HubServer(ThreadingHTTPServer):
    """Serves a folder as `hf://datasets/me/photos/set`."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.endpoint = f"http://127.0.0.1:{self.server_address[1]}"
        self.url = f"hf://datasets/{REPOSITORY}/set"


class _Handler(BaseHTTPRequestHandler):
    server: HubServer

    def do_GET(self) -> None:
        if self.path.startswith(f"/datasets/{REPOSITORY}/resolve/"):
            self._send_file(self.path.rpartition("/")[2])
        elif self.path.startswith(f"/api/datasets/{REPOSITORY}/tree/"):
            self._send_json(self._tree())
        elif self.path.startswith(f"/api/datasets/{REPOSITORY}"):
            self._send_json(
                {
                    "id": REPOSITORY,
                    "sha": COMMIT,
                    "siblings": [],
                    "tags": [],
                }
            )
        else:
            self.send_error(404)

    # The library asks for the size first; `_send` leaves the body out.
    do_HEAD = do_GET

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        self.rfile.read(length)
        self._send_json(self._tree())

    def _tree(self) -> list[dict[str, Any]]:
        return [
            {"type": "file", "path": f"set/{path.name}", "size": path.stat().st_size, "oid": COMMIT}
            for path in sorted(self.server.folder.iterdir())
        ]

    def _send_file(self, name: str) -> None:
        path = self.server.folder / name
        if not path.is_file():
            self.send_response(404)
            # The library tells a missing file from a missing set by this header alone.
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self._send(path.read_bytes())

    def _send_json(self, document: Any) -> None:
        self._send(json.dumps(document).encode())

    def _send(self, data: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        # Without one the library refuses the answer.
        self.send_header("ETag", '"1"')
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Be quiet."""


class ModelHub(ThreadingHTTPServer):
    """Takes commits of the model me/landscapes with a token, and serves its files.

    Attributes:
        files: What has been uploaded, by name.
        created: What the library asked to make.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _ModelHandler)
        self.endpoint = f"http://127.0.0.1:{self.server_address[1]}"
        self.name = "me/landscapes"
        self.token = "hf_secret"
        self.files: dict[str, bytes] = {}
        self.created: list[dict[str, Any]] = []


class _ModelHandler(BaseHTTPRequestHandler):
    server: ModelHub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        hub = self.server
        if self.headers.get("Authorization") != f"Bearer {hub.token}":
            self._answer(401, b'{"error": "Invalid username or password."}')
        elif self.path == "/api/repos/create":
            hub.created.append(json.loads(body))
            self._answer(200, json.dumps({"url": f"{hub.endpoint}/{hub.name}"}).encode())
        elif self.path == f"/api/models/{hub.name}/preupload/main":
            files = [
                {"path": each["path"], "uploadMode": "regular", "shouldIgnore": False}
                for each in json.loads(body)["files"]
            ]
            self._answer(200, json.dumps({"files": files}).encode())
        elif self.path == f"/api/models/{hub.name}/commit/main":
            self._commit(body)
        else:
            self._answer(200, b"{}")

    def _commit(self, body: bytes) -> None:
        hub = self.server
        for line in body.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                value = entry["value"]
                hub.files[value["path"]] = base64.b64decode(value["content"])
        url = f"{hub.endpoint}/{hub.name}/commit/{COMMIT}"
        self._answer(200, json.dumps({"commitOid": COMMIT, "commitUrl": url}).encode())

    def do_GET(self) -> None:
        name = self.path.rpartition("/")[2]
        if self.path.startswith(f"/{self.server.name}/resolve/") and name in self.server.files:
            self._answer(200, self.server.files[name])
        else:
            self._answer(404, b"")

    do_HEAD = do_GET

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/json")
        # The library keeps files by their tag: equal tags are one file.
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Be quiet."""


@contextmanager
def serve_hub(folder: Path) -> Iterator[HubServer]:
    """Serve a folder while the context is open."""
    with serving(HubServer(folder)) as server:
        yield server
