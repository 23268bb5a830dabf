"""Reads from local and remote files through a bounded number of open descriptors."""

from __future__ import annotations

import os
import resource
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from shards.order import WINDOW_SHARDS
from shards.storage.remote import remote_of

# Arguments: path, offset, size; returns at most `size` bytes; raises OSError.
ReadAt = Callable[[Path, int, int], bytes]


@dataclass
class _OpenFile:
    """One descriptor and the number of threads that read from it."""

    descriptor: int
    num_readers: int = 0


class ShardFiles:
    """Reads from many files through a bounded number of open descriptors, from any thread.

    Args:
        max_open: Files kept open; by default a window of the order, or a quarter of what the system
            lets a process open (often 1,024), whichever is less.
    """

    def __init__(self, max_open: int | None = None) -> None:
        allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        # A window's shards are read in turn; with fewer open, nearly every read would open a file.
        self._max_open = max_open or max(8, min(WINDOW_SHARDS + 8, allowed // 4))
        self._lock = threading.Lock()
        self._open: OrderedDict[Path, _OpenFile] = OrderedDict()

    @property
    def num_open(self) -> int:
        """Return the number of files that are open now."""
        return len(self._open)

    def read_at(self, path: Path, offset: int, size: int) -> bytes:
        """Return up to `size` bytes at `offset`: fewer at the file's end.

        Raises:
            OSError: The file cannot be opened or read.
        """
        with self._descriptor(path) as descriptor:
            # pread keeps no position: threads share a descriptor without a lock.
            data = os.pread(descriptor, size, offset)
            # Network file systems may return less than asked for in the middle of a file.
            while 0 < len(data) < size:
                more = os.pread(descriptor, size - len(data), offset + len(data))
                if not more:
                    break
                data += more
            return data

    def will_need(self, path: Path, offset: int, size: int) -> None:
        """Ask the kernel to prefetch this part of a file into the page cache, without waiting.

        Raises:
            OSError: The file cannot be opened. A part beyond the file's end is ignored.
        """
        # To the kernel size 0 means "to the end of the file", which nobody asks for here.
        if hasattr(os, "posix_fadvise") and size > 0:
            with self._descriptor(path) as descriptor, suppress(OSError, OverflowError):
                os.posix_fadvise(descriptor, offset, size, os.POSIX_FADV_WILLNEED)

    def close(self) -> None:
        """Close every file that is not being read at this moment."""
        with self._lock:
            self._close_down_to(0)

    @contextmanager
    def _descriptor(self, path: Path) -> Iterator[int]:
        # Opened without the lock: a remote shard is fetched here.
        opened = None if path in self._open else _open_file(path)

        with self._lock:
            if path in self._open:
                if opened is not None:  # another thread was first
                    os.close(opened)
            else:  # `opened` is None if the file was closed in between
                self._open[path] = _OpenFile(_open_file(path) if opened is None else opened)
            self._open.move_to_end(path)
            file = self._open[path]
            file.num_readers += 1
            self._close_down_to(self._max_open)

        try:
            yield file.descriptor
        finally:
            with self._lock:
                file.num_readers -= 1

    def _close_down_to(self, number: int) -> None:
        """Close the least recently used files that no thread is reading."""
        idle = [path for path, file in self._open.items() if not file.num_readers]
        for path in idle[: max(0, len(self._open) - number)]:
            os.close(self._open.pop(path).descriptor)


def _open_file(path: Path) -> int:
    remote = remote_of(path)
    if remote is not None:
        return remote.open(path.name)
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
