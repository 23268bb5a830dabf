"""A run's log: `log.jsonl`, one JSON object per line, written and read.

    {"kind": "train", "images": 12800, "time": 1767225600.0, "values": {"loss/generator": 5.31}}

`images` is how many the run had seen, `time` seconds since 1970; NaN and infinity are written as
null. A resumed run drops what was logged beyond the images that it resumes from, so that the file
reads as the log of one uninterrupted run.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from colorgan.files import replacing, whole

Kind = Literal["train", "validate", "save", "event"]

LOG_NAME = "log.jsonl"


class RunLog:
    """Appends to a run's log. Rank 0 only.

    Args:
        folder: The run folder, which is made if absent.
        resume_from_images: Images seen by the loaded checkpoint: later lines are dropped. None at
            the beginning of a run: all lines are dropped.
    """

    def __init__(self, folder: Path, resume_from_images: int | None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / LOG_NAME
        # Before appending: lines of steps that are run again would stand twice.
        _keep_until(path, -1 if resume_from_images is None else resume_from_images)
        self._file = path.open("a", encoding="utf-8")

    def write(
        self, kind: Kind, images: int, values: Mapping[str, float] | None = None, **fields: Any
    ) -> None:
        """Append one line; it is on disk when this returns.

        Args:
            kind: What the line reports.
            images: How many images the run has seen.
            values: Scalars by name.
            fields: Anything else that JSON can hold: the text of an event, a checkpoint's folder.

        Raises:
            OSError: The line could not be written.
        """
        line: dict[str, Any] = {"kind": kind, "images": images, "time": round(time.time(), 3)}
        if values:
            line["values"] = {name: _finite(value) for name, value in values.items()}

        # NaN is not JSON: other readers would refuse the whole line.
        text = json.dumps({**line, **fields}, allow_nan=False, default=str)
        self._file.write(text + "\n")
        # Each line at once: a killed run's log ends where it ended.
        self._file.flush()

    def close(self) -> None:
        """Close the file; calling it again does nothing."""
        self._file.close()

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def read_log(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's log, also while it is being written.

    A half-written or damaged line is left out.

    Raises:
        OSError: There is no log.
    """
    # Bytes: one damaged character must not lose the file.
    lines = (folder / LOG_NAME).read_bytes().split(b"\n")
    entries = [_parse(line) for line in lines]
    return [entry for entry in entries if entry is not None]


def _keep_until(path: Path, last_images: int) -> None:
    """Drop later lines, and what a killed process wrote half of."""
    try:
        before = path.read_bytes()
    except FileNotFoundError:
        return

    kept = []
    for line in before.split(b"\n"):
        entry = _parse(line)
        if entry is not None and entry["images"] <= last_images:
            kept.append(line + b"\n")

    after = b"".join(kept)
    # Most starts change nothing, and a large log need not be written again.
    if after != before:
        with replacing(path) as partial:
            partial.write_bytes(after)


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):  # also of bytes that are not UTF-8
        return None
    if not isinstance(entry, dict) or not isinstance(entry.get("kind"), str):
        return None
    return entry if whole(entry.get("images")) is not None else None


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
