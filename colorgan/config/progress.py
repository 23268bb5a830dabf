"""Progress of counted work (packing, downloads): a bar on a terminal, else a line now and then.

Training has a display of its own, colorgan/runs/display.py.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

PLAIN_EVERY_S = 10.0


@contextmanager
def images_shown(
    total: int | None, console: Console | None = None
) -> Iterator[Callable[[int, int], None]]:
    """Show images done and images rejected.

    Args:
        total: Number of images; None if it is not known before the end.
        console: Where to show, by default standard error.

    Yields:
        A function to call with both counts.
    """
    console = console or Console(stderr=True)
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[words]}"),
        TimeRemainingColumn(),
    )
    start, every = time.monotonic(), _Every(PLAIN_EVERY_S)
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("images", total=total, words="")

        def show(done: int, rejected: int) -> None:
            # Over the whole time: the rate of the last moment jumps with every large photo.
            speed = done / max(time.monotonic() - start, 1e-9)
            words = f"{speed:,.0f} images/s, {rejected:,} rejected"
            bar.update(task, completed=done, words=words)
            if not console.is_terminal and every.is_due():
                of = "" if total is None else f" of {total:,}"
                console.print(f"{done:,}{of} images, {words}", highlight=False)

        yield show


@contextmanager
def bytes_shown(console: Console | None = None) -> Iterator[Callable[[str, int, int], None]]:
    """Show files that arrive, one bar per file.

    Args:
        console: Where to show, by default standard error.

    Yields:
        A function to call with a file's name, its bytes so far, and its bytes in all.
    """
    console = console or Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
    )
    every = _Every(PLAIN_EVERY_S)
    with Progress(
        *columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal
    ) as bar:
        tasks: dict[str, TaskID] = {}

        def show(name: str, have: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = bar.add_task(name, total=total)
            bar.update(tasks[name], completed=have)
            if not console.is_terminal and every.is_due():
                console.print(
                    f"{name}: {have / 1e9:,.2f} of {total / 1e9:,.2f} GB", highlight=False
                )

        yield show


class _Every:
    """Answers yes at most once per interval."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        # From now: work of a few seconds needs no line.
        self._last = time.monotonic()

    def is_due(self) -> bool:
        now = time.monotonic()
        if now - self._last < self._seconds:
            return False
        self._last = now
        return True
