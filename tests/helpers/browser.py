"""A headless Chromium, driven over its DevTools pipe: real clicks, keys, files and downloads."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((found for name in BROWSERS if (found := shutil.which(name))), None)
needs_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="needs a browser: apt-get install chromium"
)


class Page:
    """One tab; `call` sends a DevTools command and returns its result."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._number = 0
        self._session: str | None = None
        self.logged: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        # A tab behind others draws no frames, and answers no drop.
        self.call("Page.bringToFront")
        self.call("Page.enable")
        self.call("DOM.enable")
        self.call("Log.enable")
        self.call("Runtime.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and wait for its answer; messages of the page are kept in `logged`."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        assert self._process.stdin
        self._process.stdin.write(json.dumps(message).encode() + b"\0")
        self._process.stdin.flush()

        while (answer := self._receive()).get("id") != self._number:
            if answer.get("method") in ("Log.entryAdded", "Runtime.exceptionThrown"):
                self.logged.append(json.dumps(answer["params"]))
        assert "error" not in answer, answer
        result: dict[str, Any] = answer["result"]
        return result

    def _receive(self) -> dict[str, Any]:
        assert self._process.stdout
        message = bytearray()
        while (byte := self._process.stdout.read(1)) != b"\0":
            assert byte, "the browser has ended"
            message += byte
        answer: dict[str, Any] = json.loads(message)
        return answer

    def open(self, url: str, width: int = 1200, height: int = 900) -> None:
        """Open a page in a window of CSS pixels."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        self.call("Page.navigate", url=url)
        self.wait_for("document.readyState === 'complete'")

    def value(self, expression: str) -> Any:
        """Return the value of an expression in the page, awaited."""
        answer = self.call(
            "Runtime.evaluate",
            expression=expression,
            awaitPromise=True,
            returnByValue=True,
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait_for(self, condition: str) -> None:
        """Wait in the browser until an expression holds."""
        self.value(
            "new Promise(done => { const look = () => "
            f"({condition}) ? done() : setTimeout(look, 20); look() }})"
        )

    def choose(self, selector: str, *files: Path) -> None:
        """Choose files in a file field, as its dialog does."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call(
            "DOM.setFileInputFiles", nodeId=node, files=[str(file.resolve()) for file in files]
        )

    def drop(self, selector: str, *files: Path) -> None:
        """Drop files from outside on an element."""
        x, y = self._middle(selector)
        data = {
            "items": [],
            "files": [str(file.resolve()) for file in files],
            "dragOperationsMask": 1,
        }
        for kind in ("dragEnter", "dragOver", "drop"):
            self.call("Input.dispatchDragEvent", type=kind, x=x, y=y, data=data)

    def click(self, selector: str) -> None:
        """Click with the mouse in an element's middle."""
        x, y = self._middle(selector)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def download(self, selector: str, folder: Path) -> Path:
        """Click on what starts a download; return its file."""
        self.call(
            "Browser.setDownloadBehavior",
            behavior="allow",
            downloadPath=str(folder),
            eventsEnabled=True,
        )
        self.click(selector)
        name = ""
        while True:
            event = self._receive()
            if event.get("method") == "Browser.downloadWillBegin":
                name = event["params"]["suggestedFilename"]
            if event.get("params", {}).get("state") == "completed":
                return folder / name

    def _middle(self, selector: str) -> tuple[float, float]:
        element = f"document.querySelector({json.dumps(selector)})"
        self.value(f"{element}.scrollIntoView({{block: 'center', behavior: 'instant'}})")
        box = self.value(f"{element}.getBoundingClientRect().toJSON()")
        return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

    def screenshot(self, path: Path, *, whole: bool = False) -> None:
        """Write what is seen, or the whole page, as a PNG."""
        answer = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(answer["data"]))


@contextmanager
def chromium(profile: Path, *options: str) -> Iterator[Page]:
    """Start a browser with an empty profile and yield a tab; no name is ever resolved.

    Addresses of this machine by number (127.0.0.1) can be reached. A page that never answers is
    ended by the test's own limit.
    """
    # The pipe is file descriptors 3 and 4 of the browser; its own output is of no interest.
    pipe = 'exec "$0" "$@" 3<&0 4>&1 </dev/null >/dev/null 2>&1'
    words = [
        str(CHROMIUM),
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--remote-debugging-pipe",
        f"--user-data-dir={profile}",
        "--no-first-run",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        "--disable-extensions",
        *options,
    ]
    process = subprocess.Popen(
        ["sh", "-c", pipe, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        yield Page(process)
    finally:
        process.kill()
        process.communicate()
