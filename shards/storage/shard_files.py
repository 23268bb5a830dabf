"""Bounded open files, local or remote."""

from __future__ import annotations

import os
import resource
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from shards.order import WINDOW_SHARDS
from shards.storage.remote import remote_of

ReadAt = Callable[
    [Path, int, int], bytes
]  # path, offset, size -> at most size bytes; raises OSError


def _open_file(path: Path) -> int:
    remote = remote_of(path)
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC) if remote is None else remote.open(path.name)


class ShardFiles:
    """Reads from many files through a bounded number of open descriptors, from any thread.

    Args:
        max_open: Files kept open; by default those of a window of the order, or a quarter of what the
            system lets a process open (often 1,024), whichever is less.
    """

    def __init__(self, max_open: int | None = None) -> None:
        allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._max_open = max_open or max(8, min(WINDOW_SHARDS + 8, allowed // 4))
        self._lock = threading.Lock()
        self._open: OrderedDict[Path, tuple[int, list[int]]] = (
            OrderedDict()
        )  # path -> descriptor, [users]

    def read_at(self, path: Path, offset: int, size: int) -> bytes:
        """Up to `size` bytes at `offset`: fewer at the file's end. Raises OSError."""
        with self._descriptor(path) as descriptor:
            data = os.pread(descriptor, size, offset)
            while 0 < len(data) < size:
                more = os.pread(descriptor, size - len(data), offset + len(data))
                if not more:
                    break
                data += more
            return data

    def will_need(self, path: Path, offset: int, size: int) -> None:
        """Let the system fetch this part of a file into the page cache, without waiting for it.

        Raises:
            OSError: The file cannot be opened. A part that it does not have is no error.
        """
        if hasattr(os, "posix_fadvise") and size > 0:  # no size: all the rest of the file
            with self._descriptor(path) as descriptor, suppress(OSError, OverflowError):
                os.posix_fadvise(descriptor, offset, size, os.POSIX_FADV_WILLNEED)

    @contextmanager
    def _descriptor(self, path: Path) -> Iterator[int]:
        opened = (
            None if path in self._open else _open_file(path)
        )  # unlocked: a remote shard is fetched here
        with self._lock:
            if opened is None and path not in self._open:  # closed in between
                opened = _open_file(path)
            if opened is not None and path in self._open:  # another thread was first
                os.close(opened)
            elif opened is not None:
                self._open[path] = (opened, [0])
            self._open.move_to_end(path)
            descriptor, users = self._open[path]
            users[0] += 1
            self._close_down_to(self._max_open)
        try:
            yield descriptor
        finally:
            with self._lock:
                users[0] -= 1

    def _close_down_to(self, number: int) -> None:
        """Close the least recently used files that no thread is reading."""
        idle = [path for path, (_, users) in self._open.items() if not users[0]]
        for path in idle[: max(0, len(self._open) - number)]:
            os.close(self._open.pop(path)[0])

    def close(self) -> None:
        """Close every file that is not being read at this moment."""
        with self._lock:
            self._close_down_to(0)
