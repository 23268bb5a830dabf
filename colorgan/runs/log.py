"""The story of a run on disk: `log.jsonl`, one JSON object a line, and TensorBoard scalars beside it.

    {"kind": "train", "images": 12800, "time": 1767225600.0, "values": {"loss/generator": 5.31}}

`images` is how many the run had seen, `time` seconds since 1970; a value that is no finite number is null. A
resumed run drops what was logged beyond the images that it resumes from, so the file reads as one story.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TextIO

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

Kind = Literal["train", "validate", "save", "event"]

LOG_NAME = "log.jsonl"
TENSORBOARD_NAME = "tensorboard"


class RunLog:
    """Writes a run's log; rank 0 has the real one, other ranks one that is not `enabled` and silent."""

    def __init__(
        self, folder: Path, resume_from_images: int | None, *, enabled: bool = True
    ) -> None:
        """Opens or goes on with the log in `folder`, which is made if absent.

        Args:
            folder: The run folder.
            resume_from_images: What the loaded checkpoint had seen: later lines are dropped. None for a run
                that starts at the beginning: all lines are dropped.
            enabled: False on ranks other than 0.
        """
        self._file: TextIO | None = None
        self._scalars: SummaryWriter | None = None
        if not enabled:
            return
        from torch.utils.tensorboard import SummaryWriter  # two seconds, for rank 0 only

        folder.mkdir(parents=True, exist_ok=True)
        path = folder / LOG_NAME
        last_images = -1 if resume_from_images is None else resume_from_images
        _keep_until(path, last_images)
        self._file = path.open("a", encoding="utf-8")
        # TensorBoard hides the older files' steps from purge_step on.
        self._scalars = SummaryWriter(str(folder / TENSORBOARD_NAME), purge_step=last_images + 1)

    def write(
        self, kind: Kind, images: int, values: Mapping[str, float] | None = None, **fields: Any
    ) -> None:
        """Appends one line, and each value to TensorBoard as `kind/name` at step `images`.

        Args:
            kind: What the line tells.
            images: How many images the run has seen.
            values: Scalars by name.
            fields: Anything else that JSON can hold: the text of an event, the folder of a checkpoint.
        """
        if self._file is None or self._scalars is None:
            return
        line: dict[str, Any] = {"kind": kind, "images": images, "time": round(time.time(), 3)}
        if values:
            line["values"] = {name: _finite(value) for name, value in values.items()}
        self._file.write(json.dumps({**line, **fields}, allow_nan=False, default=str) + "\n")
        self._file.flush()
        for name, value in (values or {}).items():
            self._scalars.add_scalar(f"{kind}/{name}", value, images, new_style=True)
        if kind != "train":
            self._scalars.flush()

    def close(self) -> None:
        """Closes both files; more than once does no harm."""
        if self._file is not None and self._scalars is not None:
            self._file.close()
            self._scalars.close()
        self._file = self._scalars = None

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
    """The lines of a run's log, also while it is being written: a half-written line is left out.

    Raises:
        OSError: There is no log.
    """
    return [
        line
        for line in map(_parse, (folder / LOG_NAME).read_bytes().split(b"\n"))
        if line is not None
    ]


def _keep_until(path: Path, last_images: int) -> None:
    """Rewrites the log, atomically, without later lines and without what a killed process half wrote."""
    try:
        before = path.read_bytes()
    except FileNotFoundError:
        return
    lines = before.split(b"\n")
    kept = [
        line
        for line in lines
        if (entry := _parse(line)) is not None and entry["images"] <= last_images
    ]
    after = b"".join(line + b"\n" for line in kept)
    if after == before:
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(after)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except ValueError:  # also of bytes that are no UTF-8
        return None
    whole = isinstance(entry, dict) and isinstance(entry.get("images"), int) and "kind" in entry
    return entry if whole else None


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
