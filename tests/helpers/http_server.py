"""A server on 127.0.0.1 that serves a folder and misbehaves as it is told."""

import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TypeVar

Server = TypeVar("Server", bound=ThreadingHTTPServer)


class FolderServer(ThreadingHTTPServer):
    """Serves a folder; `faults[name]` lists what the next requests for a file get instead.

    A fault is a status, "break", "wrong", "more", a redirect ("http://...") or "slow".
    Once a file's faults are used up, it is served whole.
    """

    # Or a client that hangs keeps the tests from ending.
    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        # Port 0: the system chooses, so that tests can run side by side.
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.faults: dict[str, deque[int | str]] = {}
        self.requests: Counter[str] = Counter()
        self.slow_s = 0.0
        self.url = f"http://127.0.0.1:{self.server_address[1]}/set"

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore a client that has gone."""


class _Handler(BaseHTTPRequestHandler):
    server: FolderServer

    def do_GET(self) -> None:
        # The last part alone: no path of a request can leave the folder.
        name = self.path.rpartition("/")[2]

        self.server.requests[name] += 1
        faults = self.server.faults.get(name)
        # One request each, so that a retry can succeed.
        fault = faults.popleft() if faults else None
        path = self.server.folder / name
        if isinstance(fault, int) or not path.is_file():
            self.send_error(fault if isinstance(fault, int) else 404)
        elif fault is not None and "://" in fault:
            self.send_response(302)
            self.send_header("Location", fault)
            self.end_headers()
        else:
            self._send(path.read_bytes(), fault)

    def _send(self, data: bytes, fault: str | None) -> None:
        if fault == "wrong":
            # One bit, the size stays: only a checksum can tell.
            data = bytes([data[0] ^ 1]) + data[1:]
        if fault == "more":
            # More than was announced by the manifest.
            data += bytes(1 << 20)
        self.send_response(200)
        self.send_header(
            "Content-Length",
            str(len(data)),
        )
        self.end_headers()
        # In halves, as a connection that ends at the start is the easy case.
        half = len(data) // 2
        self.wfile.write(data[:half])
        self.wfile.flush()
        if fault == "break":
            self.close_connection = True
            return

        if fault == "slow" or self.server.slow_s:
            # Longer than any client of the tests waits.
            time.sleep(self.server.slow_s or 60)
        self.wfile.write(data[half:])

    def log_message(self, *_: object) -> None:
        """Be quiet."""


@contextmanager
def serve(folder: Path) -> Iterator[FolderServer]:
    """Serve a folder's files at `url` while the context is open."""
    with serving(FolderServer(folder)) as server:
        yield server


@contextmanager
def serving(server: Server) -> Iterator[Server]:
    """Run a server in a thread while the context is open."""
    with server:
        thread = threading.Thread(
            target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )
        thread.start()
        try:
            yield server
        finally:
            # Before the socket closes, so that no request is answered by half.
            server.shutdown()
            thread.join()
