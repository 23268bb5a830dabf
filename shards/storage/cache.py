"""A bounded folder of fetched files, shared by the processes of a node and safe against their crashes.

Used by shards/storage/remote.py, which fills it. Everything in it can be deleted at any time.

    <folder>/<set>/NAME           a whole, checked file; who reads it holds a shared flock on it
    <folder>/<set>/NAME.part      on its way; its full size is reserved from the start
    <folder>/<set>/NAME.lock      flock: who fetches NAME; free when its holder is dead
    <folder>/.lock                flock: who makes room
"""

import fcntl
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

logger = logging.getLogger("shards")

PART, LOCK = ".part", ".lock"
_EVICTABLE = (".tar", ".npy")
_POLL_S = 0.02
_ROOM_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Cache:
    """Where fetched files lie, and how many bytes of them."""

    folder: Path
    limit_bytes: int

    def reserve(self, part: Path, size: int, *, needed: bool) -> bool:
        """Make `part` a file of `size` bytes, at the cost of the files that nobody has used for longest.

        Files in use are never removed. Where they leave no room, a file that is needed now goes over the bound,
        with a warning, and any other gets none.

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
                    "%s: %d bytes over the bound of %d, since all else in it is in use; raise data.cache_gb",
                    *(self.folder, excess, self.limit_bytes),
                )
            with part.open("wb") as stream:
                stream.truncate(size)
        return True

    def sweep(self) -> None:
        """Remove what processes that are gone have left half-fetched."""
        for part in self.folder.glob(f"*/*{PART}"):
            with suppress(BlockingIOError), _flock_now(part.with_suffix(LOCK)):
                part.unlink(missing_ok=True)

    def _evict(self, size: int) -> int:
        """Remove idle files until `size` bytes fit; return by how many they do not."""
        files = []
        for path in self.folder.glob("*/*"):
            with suppress(FileNotFoundError):
                status = path.stat()
                files.append((status.st_mtime_ns, status.st_size, path))
        excess = sum(bytes_ for _, bytes_, _ in files) + size - self.limit_bytes
        for _, bytes_, path in sorted(files):
            if excess > 0 and path.suffix in _EVICTABLE and _remove_idle(path):
                excess -= bytes_
        return excess


@contextmanager
def locked(path: Path, timeout_s: float) -> Iterator[None]:
    """Hold a lock that the node's processes share; the system frees it when its holder dies.

    Raises:
        TimeoutError: Another process or thread has held it for `timeout_s`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + timeout_s
    while True:
        with suppress(BlockingIOError):
            lock = _take(path)
            break
        if time.monotonic() > deadline:
            raise TimeoutError(f"{path}: held by another process for {timeout_s:g} s")
        time.sleep(_POLL_S)
    try:
        yield
    finally:
        os.close(lock)


def open_in_use(path: Path) -> int:
    """A descriptor to read a cached file; the file is not evicted while it is open. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    with suppress(
        BlockingIOError
    ):  # being evicted at this moment: the descriptor reads on all the same
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    with suppress(OSError):
        os.utime(descriptor)
    return descriptor


@contextmanager
def _flock_now(path: Path) -> Iterator[None]:
    lock = _take(path)
    try:
        yield
    finally:
        os.close(lock)


def _take(path: Path) -> int:
    """A descriptor that holds the file's lock. Raises BlockingIOError."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _remove_idle(path: Path) -> bool:
    """Remove a file unless somebody reads it."""
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
