"""A bounded folder of fetched files, shared by a node's processes and safe against their crashes.

Used by shards/storage/remote.py, which fills it. Everything in it can be deleted at any time.

    <folder>/<set>/NAME           a whole, checked file; its readers hold a shared lock on it
    <folder>/<set>/NAME.part      being fetched; its full size is reserved from the start
    <folder>/<set>/NAME.lock      held by the process that fetches NAME
    <folder>/.lock                held by the process that makes room
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

logger = logging.getLogger("shards")

PART, LOCK = ".part", ".lock"
_EVICTABLE = (".tar", ".npy")
_POLL_S = 0.02
_ROOM_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class _CachedFile:
    """One file of the cache, in the order in which files are evicted."""

    used_ns: int
    size: int
    path: Path


@dataclass(frozen=True)
class Cache:
    """The folder of fetched files and the most bytes that it may hold."""

    folder: Path
    limit_bytes: int

    def reserve(self, part: Path, size: int, *, needed: bool) -> bool:
        """Make `part` a file of `size` bytes and evict the least recently used files for it.

        Files in use are never removed. If they leave no room, a file that is needed now exceeds
        the bound, with a warning; any other is not made.

        Returns:
            Whether `part` was made.

        Raises:
            OSError: The disk is full or cannot be written, or the lock is held for a minute.
        """
        with locked(self.folder / LOCK, _ROOM_TIMEOUT_S):
            part.unlink(missing_ok=True)
            excess = self._evict(size)

            if excess > 0 and not needed:
                return False
            if excess > 0:
                logger.warning(
                    "%s: %d bytes over the bound of %d, because all other files are in use; "
                    "raise data.cache_gb",
                    self.folder,
                    excess,
                    self.limit_bytes,
                )

            with part.open("wb") as stream:
                # The full size at once: what others reserve meanwhile must count it.
                stream.truncate(size)
        return True

    def sweep(self) -> None:
        """Remove what processes that no longer run have left half-fetched."""
        for part in self.folder.glob(f"*/*{PART}"):
            # A lock that is free belongs to nobody alive; one that is held is left alone.
            with suppress(TimeoutError), locked(part.with_suffix(LOCK), timeout_s=0.0):
                part.unlink(missing_ok=True)

    def _evict(self, size: int) -> int:
        """Remove idle files until `size` bytes fit; return the bytes that are still missing."""
        files = []
        for path in self.folder.glob("*/*"):
            with suppress(FileNotFoundError):
                status = path.stat()
                files.append(_CachedFile(status.st_mtime_ns, status.st_size, path))

        excess = sum(file.size for file in files) + size - self.limit_bytes
        for file in sorted(files, key=lambda file: file.used_ns):
            if excess <= 0:
                break
            # Locks and half-fetched files belong to somebody.
            if file.path.suffix in _EVICTABLE and _remove_idle(file.path):
                excess -= file.size
        return excess


@contextmanager
def locked(path: Path, timeout_s: float) -> Iterator[None]:
    """Hold a lock that the node's processes share; the system frees it when its holder dies.

    Raises:
        TimeoutError: Another process or thread holds it for longer than `timeout_s`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        # A lock object per use: threads of one process exclude each other too.
        with FileLock(path, timeout=timeout_s, poll_interval=_POLL_S, thread_local=False):
            yield
    except Timeout as error:
        raise TimeoutError(f"{path}: held by another process for {timeout_s:g} s") from error


def open_in_use(path: Path) -> int:
    """Open a cached file for reading; it is not evicted while the descriptor is open.

    Raises:
        OSError: The file cannot be opened.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)

    # If the file is being evicted at this moment, the descriptor still reads all of it.
    with suppress(BlockingIOError):
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    with suppress(OSError):
        # The time of the last use, by which files are evicted; access times are often switched off.
        os.utime(descriptor)
    return descriptor


def _remove_idle(path: Path) -> bool:
    """Remove a file unless it is being read: an exclusive lock fails while readers share it."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True
