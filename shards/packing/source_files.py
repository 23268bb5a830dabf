"""Read a corpus's files: a fault of one file costs its record, one of the disk ends the packing."""

from __future__ import annotations

import errno
import stat
import time
from pathlib import Path

from shards.errors import PackError, PictureError
from shards.records import TarMember

MAX_FILE_BYTES = 1 << 30
READ_TRIES = 3
READ_RETRY_WAIT_S = 1.0
# Faults of one file; any other error (EIO, ESTALE, ...) is the disk's: no reason to drop photos.
FILE_FAULTS = {
    errno.ENOENT: "missing file",
    errno.ENOTDIR: "missing file",
    errno.EACCES: "no permission to read it",
    errno.EPERM: "no permission to read it",
    errno.ELOOP: "a link that leads back to itself",
    errno.ENAMETOOLONG: "its name is too long",
}


def read_source(source: Path | TarMember) -> bytes:
    """Return the bytes of one file, or of one member of a tar.

    Raises:
        PictureError: The file is missing, forbidden, not a regular file, or too large.
        PackError: The disk fails, three times over.
    """
    for attempt in range(READ_TRIES):
        try:
            return _read_member(source) if isinstance(source, TarMember) else _read_regular(source)
        except OSError as error:
            if error.errno in FILE_FAULTS:
                raise PictureError(FILE_FAULTS[error.errno]) from error
            failure = error
        # A network disk that fails once is often back within a second.
        time.sleep(READ_RETRY_WAIT_S * attempt)

    raise PackError(
        f"{source}: cannot be read after {READ_TRIES} tries ({failure.strerror}). Once the disk is "
        "back, rerun the same command; finished shards are kept."
    ) from failure


def _read_member(member: TarMember) -> bytes:
    if member.size > MAX_FILE_BYTES:
        raise PictureError(f"more bytes than a picture file can sensibly have: {member.size}")
    with member.tar.open("rb") as file:
        file.seek(member.offset)
        content = file.read(member.size)
    # The tar was cut off since it was listed.
    if len(content) < member.size:
        raise PictureError(f"{member.tar.name} ends before it does")
    return content


def _read_regular(path: Path) -> bytes:
    status = path.stat()
    # Opening a pipe or a device would wait for ever.
    if not stat.S_ISREG(status.st_mode):
        raise PictureError("not a regular file")
    if status.st_size > MAX_FILE_BYTES:
        raise PictureError(f"more bytes than a picture file can sensibly have: {status.st_size}")
    return path.read_bytes()
