"""Open a whole shard, local or behind a URL, for one pass over it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import BinaryIO

from shards.files import temporary_path
from shards.storage.retries import FETCH_RETRIES
from shards.storage.transfer import Promise, fetch_into

MAX_SHARD_BYTES = 1 << 40


@contextmanager
def opened_shard(location: str, scratch: Path) -> Iterator[BinaryIO]:
    """Open a shard; one behind a URL is fetched to a temporary file, which is removed at the end.

    Args:
        location: A path, or a URL.
        scratch: The temporary file is made beside this path, under a name of this process.

    Raises:
        TransferError: The URL cannot be fetched.
        OSError: The file cannot be read.
    """
    if "://" not in location:
        # A large buffer: tar headers are read in blocks of 512 bytes.
        with Path(location).open("rb", buffering=1 << 20) as stream:
            yield stream
        return

    fetched = temporary_path(scratch)
    try:
        with fetched.open("w+b") as stream:
            # A retry writes from the start; the stream stays open for the reader behind it.
            def restart() -> nullcontext[BinaryIO]:
                stream.seek(0)
                stream.truncate()
                return nullcontext(stream)

            fetch_into(location, restart, Promise(MAX_SHARD_BYTES), FETCH_RETRIES)
            stream.seek(0)
            yield stream
    finally:
        fetched.unlink(missing_ok=True)
