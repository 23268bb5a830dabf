"""Whole or not at all: temporary name, fsync, rename."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shards.errors import PackError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary name to write to; after success it takes the place of `path`, else it is removed."""
    temporary = path.with_name(_temporary_name(path.name))
    with telling_disk_errors(path):
        try:
            yield temporary
            with temporary.open("rb") as stream:
                os.fsync(stream.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def telling_disk_errors(path: Path) -> Iterator[None]:
    """Turn a disk that is full, read-only or gone into one sentence."""
    try:
        yield
    except OSError as error:
        raise PackError(
            f"{path}: cannot be written ({error.strerror or error}). Mend that and run the same line again: "
            "finished shards are kept."
        ) from error


def _temporary_name(name: str) -> str:
    return f".{name}.{os.uname().nodename}-{os.getpid()}.tmp"
