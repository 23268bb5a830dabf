"""A server on 127.0.0.1 that answers as Google Cloud Storage's JSON API does, with one bucket."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from helpers.http_server import serving

BUCKET = "photos"
OBJECTS = f"/storage/v1/b/{BUCKET}/o"
MEDIA = f"/download{OBJECTS}"


class BucketServer(ThreadingHTTPServer):
    """Serves a folder's files as the objects `gs://photos/set/NAME`.

    Attributes:
        status: What every request gets in place of an answer; 0: answers.
        requests: Number of downloads of each object, by its last name.
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.endpoint = f"http://127.0.0.1:{self.server_address[1]}"
        self.url = f"gs://{BUCKET}/set"
        self.status = 0
        self.requests: Counter[str] = Counter()

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore a client that has gone."""


class _Handler(BaseHTTPRequestHandler):
    server: BucketServer
    # Connections stay open, as the library expects of Google's.
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        # An object's slashes are escaped in its address.
        media, _, name = parts.path.rpartition("/")
        name = unquote(name)
        if self.server.status:
            self._fail(self.server.status)
        elif parts.path == OBJECTS:
            prefix = parse_qs(parts.query).get("prefix", [""])[0]
            self._send_json({"kind": "storage#objects", "items": self._listed(prefix)})
        elif media not in (OBJECTS, MEDIA) or self._file(name) is None:
            self._fail(404)
        elif media == MEDIA or "alt=media" in parts.query:
            self._send_media(name)
        else:
            self._send_json(self._metadata(name))

    def _file(self, name: str) -> Path | None:
        folder, _, last = name.rpartition("/")
        path = self.server.folder / last
        return path if folder == "set" and path.is_file() else None

    def _listed(self, prefix: str) -> list[dict[str, Any]]:
        names = [f"set/{path.name}" for path in sorted(self.server.folder.iterdir())]
        return [self._metadata(name) for name in names if name.startswith(prefix)]

    def _metadata(self, name: str) -> dict[str, Any]:
        path = self.server.folder / name.rpartition("/")[2]
        return {
            "kind": "storage#object",
            "bucket": BUCKET,
            "name": name,
            "size": str(path.stat().st_size),
            "generation": "1",
            "updated": "2024-01-01T00:00:00.000Z",
            "timeCreated": "2024-01-01T00:00:00.000Z",
            "mediaLink": f"{self.server.endpoint}{MEDIA}/{name.replace('/', '%2F')}?alt=media",
        }

    def _send_media(self, name: str) -> None:
        data = (self.server.folder / name.rpartition("/")[2]).read_bytes()
        self.server.requests[name.rpartition("/")[2]] += 1

        first, _, last = self.headers.get("Range", "").removeprefix("bytes=").partition("-")
        if not first:
            self._send(200, data)
            return
        if int(first) >= len(data):
            self._fail(416)
            return
        part = data[int(first) : int(last or len(data)) + 1]
        reach = f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}"
        self._send(206, part, {"Content-Range": reach})

    def _send_json(self, document: Any) -> None:
        self._send(200, json.dumps(document).encode(), {"Content-Type": "application/json"})

    def _fail(self, status: int) -> None:
        error = {"error": {"code": status, "message": f"status {status}", "errors": []}}
        self._send(status, json.dumps(error).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Be quiet."""


@contextmanager
def serve_bucket(folder: Path) -> Iterator[BucketServer]:
    """Serve a folder as a bucket while the context is open."""
    with serving(BucketServer(folder)) as server:
        yield server
