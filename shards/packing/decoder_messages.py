"""Lines that C libraries print while they decode, caught and given the sample's name.

libtiff and others write to the process's standard error, where a line without a name helps nobody.
While a worker process of the packer decodes, its standard error is a file in memory, which is read
after each photo.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

MAX_BYTES = 4096
STANDARD_ERROR = 2


@contextmanager
def caught_messages() -> Iterator[list[str]]:
    """Catch what is printed to standard error in the block; the list is filled at its end.

    In the main process nothing is caught: other threads may be drawing a progress bar there.
    """
    lines: list[str] = []
    if multiprocessing.parent_process() is None:
        yield lines
        return

    # Once per process: C libraries write to descriptor 2, which Python's sys.stderr cannot
    # redirect.
    real, caught = _descriptors()
    os.dup2(caught, STANDARD_ERROR)
    try:
        yield lines
    finally:
        os.dup2(real, STANDARD_ERROR)
        lines += _taken(caught)


@lru_cache
def _descriptors() -> tuple[int, int]:
    """Return the real standard error, and the file in memory."""
    return os.dup(STANDARD_ERROR), os.memfd_create("decoder-messages", os.MFD_CLOEXEC)


def _taken(caught: int) -> list[str]:
    if os.fstat(caught).st_size == 0:
        return []

    # Bounded: a damaged TIFF may cause thousands of lines.
    content = os.pread(caught, MAX_BYTES, 0)
    # Emptied for the next photo, whose lines must not carry this one's name.
    os.ftruncate(caught, 0)
    os.lseek(caught, 0, os.SEEK_SET)
    lines = content.decode(errors="replace").splitlines()
    return [line.strip() for line in lines if line.strip()]
