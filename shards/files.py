"""Files written whole or not at all, and locks between processes.

Every file that packing leaves behind goes through `replacing`: temporary name, fsync, rename.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from shards.errors import PackError


def printable(name: str) -> str:
    """Return a name as text: bytes of a file name that are not UTF-8 become their numbers."""
    try:
        content = name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        # Half a character, as JSON may state one: no file has such a name.
        content = name.encode("utf-8", "backslashreplace")
    return content.decode("utf-8", "backslashreplace")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to; on success it replaces `path`, else it is removed.

    Raises:
        PackError: The disk is full, read-only or gone.
    """
    temporary = temporary_path(path)
    with disk_errors_reported(path):
        try:
            yield temporary
            # The bytes before the name: a rename may reach the disk first otherwise.
            _sync(temporary)
            temporary.replace(path)
        finally:
            # After a success there is nothing left to remove.
            temporary.unlink(missing_ok=True)


@contextmanager
def disk_errors_reported(path: Path) -> Iterator[None]:
    """Turn an OSError into one sentence that names `path`.

    Raises:
        PackError: The disk is full, read-only or gone.
    """
    try:
        yield
    except OSError as error:
        raise PackError(
            f"{path}: cannot be written ({error.strerror or error}). Fix this and rerun the same "
            "command; finished shards are kept."
        ) from error


@contextmanager
def locked(path: Path, timeout_s: float) -> Iterator[None]:
    """Hold a lock file between processes, across machines if the file system supports it.

    The lock ends with the block or with the process; the empty file stays.

    Raises:
        TimeoutError: Another process holds it for longer than `timeout_s`.
        OSError: The file cannot be made.
    """
    # The system frees it when its holder dies; a file that merely exists would lock for ever.
    lock = FileLock(path, timeout=timeout_s)
    try:
        lock.acquire()
    except Timeout:
        raise TimeoutError(f"{path}: held by another process for {timeout_s:g} s") from None

    try:
        yield
    finally:
        lock.release()


def temporary_path(path: Path) -> Path:
    """Return the hidden name beside `path` that this process writes to first."""
    # Host and process: packers on several machines may write into one folder.
    return path.with_name(f".{path.name}.{os.uname().nodename}-{os.getpid()}.tmp")


def _sync(path: Path) -> None:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
