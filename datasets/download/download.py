"""Fetch the official archives of a split into the corpus root and unpack them: `launcher/pack.py --download`.

    <root>/.download/NAME.part      what has arrived so far; a further call goes on behind it
    <root>/.download/NAME           whole, and of the right size and digest; removed once it is unpacked
    <root>/.download/NAME.d/        its files on their way to their places (datasets/download/unpack.py)

Safe to kill at any moment. A connection that breaks is taken up again; tries are counted anew as long as
bytes arrive.
"""

import fcntl
import hashlib
import http.client
import os
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from datasets.download.archives import Archive
from datasets.download.unpack import unpack
from datasets.errors import DownloadError

FOLDER = ".download"
BLOCK_BYTES = 1 << 20
HEADROOM_BYTES = 64 << 20
# Told at once: another try would be told the same. 416 is not among them: it means that our part is too long.
FINAL_STATUSES = (400, 401, 403, 404, 405, 410, 451)

Progress = Callable[[str, int, int], None]  # the archive's name, bytes that are there, bytes in all


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How long to try: `tries` without a new byte, the wait before each doubling from `wait_s` to a minute."""

    tries: int = 6
    wait_s: float = 2.0
    timeout_s: float = 60.0


def download(
    archives: Sequence[Archive],
    root: Path,
    *,
    mirror: str | None = None,
    patience: RetryPolicy | None = None,
    progress: Progress | None = None,
) -> list[str]:
    """Fetch and unpack what is not there yet.

    Args:
        archives: those of a split, from `archives_for`.
        root: the corpus root; made where it is missing.
        mirror: a URL that stands for the official hosts: `<mirror>/<file name>`. Digests hold all the same.
        patience: when to give up.
        progress: called with each block that arrives.

    Returns:
        The names of the archives that were fetched.

    Raises:
        DownloadError: Too little space, an archive that cannot be reached, is not the official one or is
            hostile, another download at work, or a disk that fails.
    """
    wanted = [archive for archive in archives if not is_there(archive, root)]
    if not wanted:
        return []
    with _telling_disk_errors(root), _alone(root):
        _check_space(wanted, root)
        for archive in wanted:
            path = fetch(
                archive, root / FOLDER, mirror=mirror, patience=patience, progress=progress
            )
            unpack(path, root, top=archive.top, max_bytes=8 * archive.bytes + HEADROOM_BYTES)
            path.unlink()
    return [archive.name for archive in wanted]


def is_there(archive: Archive, root: Path) -> bool:
    """Whether an archive is unpacked below the root: by us, or by the user's own hands."""
    begun = any(
        (root / FOLDER / f"{archive.name}{ending}").exists() for ending in ("", ".part", ".d")
    )
    return (root / archive.proof).exists() and not begun


def fetch(
    archive: Archive,
    folder: Path,
    *,
    mirror: str | None = None,
    patience: RetryPolicy | None = None,
    progress: Progress | None = None,
) -> Path:
    """Fetch one archive into a folder, or go on where an earlier call has stopped; return its checked file."""
    patience = patience or RetryPolicy()
    target, part = folder / archive.name, folder / f"{archive.name}.part"
    if target.exists() and target.stat().st_size == archive.bytes:
        return target
    url = f"{mirror.rstrip('/')}/{archive.name}" if mirror else archive.url
    for again in (True, False):
        _fetch_whole(url, archive, part, patience, progress)
        if _digest(part, archive.digest.partition(":")[0]) == archive.digest:
            part.replace(target)
            return target
        part.unlink()  # perhaps two halves of different files: once more, from the start
        if not again:
            break
    raise DownloadError(
        f"{url}: fetched twice, and its digest is not {archive.digest}; it is not the official archive."
    )


def _fetch_whole(
    url: str, archive: Archive, part: Path, patience: RetryPolicy, progress: Progress | None
) -> None:
    """Fill the part file up to the archive's size."""
    failures, trouble = 0, ""
    while True:
        have = part.stat().st_size if part.exists() else 0
        if have == archive.bytes:
            return
        if failures == patience.tries:
            raise DownloadError(
                f"{url}: stopped at {have:,} of {archive.bytes:,} bytes after {failures} tries ({trouble}); run "
                "the same line again to go on from there."
            )
        if failures:
            time.sleep(min(60.0, patience.wait_s * 2 ** (failures - 1)))
        try:
            trouble = _fetch_some(url, archive, part, have, patience.timeout_s, progress)
        except _BrokenError as error:
            trouble = str(error)
        now = part.stat().st_size if part.exists() else 0
        failures = 0 if now > have else failures + 1


class _BrokenError(Exception):
    """The network or the server failed; worth another try."""


@contextmanager
def _telling_network_errors() -> Iterator[None]:
    try:
        yield
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _BrokenError(str(error) or type(error).__name__) from error


def _fetch_some(
    url: str, archive: Archive, part: Path, have: int, timeout_s: float, progress: Progress | None
) -> str:
    """Append what the server sends behind the bytes that are there; return why it was not all."""
    headers = {"User-Agent": "colorgan", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    request = urllib.request.Request(url, headers=headers)
    with _telling_network_errors():
        try:
            response = urllib.request.urlopen(request, timeout=timeout_s)
        except urllib.error.HTTPError as error:
            with error:
                status = f"{error.code} {error.reason}"
                if error.code in FINAL_STATUSES:
                    raise DownloadError(
                        f"{url}: the server answers {status}; try a --mirror."
                    ) from error
            response = None
            if error.code == 416:  # what we have is longer than what the server has
                part.unlink(missing_ok=True)
    if response is None:
        return f"the server answers {status}"
    with response, part.open("r+b" if have else "wb") as stream:
        start = _start_of(response, have, archive.bytes)
        stream.truncate(start)
        stream.seek(start)
        _copy(url, response, stream, archive, start, progress)
    return "the connection broke off"


def _start_of(response: http.client.HTTPResponse, have: int, total: int) -> int:
    """Where the answer's bytes belong: behind ours, or at the start where the server does not resume."""
    start = have if response.status == 206 else 0
    content_range = response.headers.get("Content-Range", "")
    length = response.headers.get("Content-Length")
    if response.status == 206 and not content_range.startswith(f"bytes {have}-"):
        raise _BrokenError(
            f"the server sends the range {content_range!r} instead of the one behind byte {have:,}"
        )
    if length is not None and start + int(length) != total:
        raise _BrokenError(
            f"the server offers {start + int(length):,} bytes, the official archive has {total:,}"
        )
    return start


def _copy(
    url: str,
    response: http.client.HTTPResponse,
    stream: BinaryIO,
    archive: Archive,
    have: int,
    progress: Progress | None,
) -> None:
    """Errors of the network and errors of the disk must not be mistaken for each other."""
    while True:
        with _telling_network_errors():
            block = response.read1(
                BLOCK_BYTES
            )  # what is there: read() would lose it when the line stalls
        if not block:
            return
        have += len(block)
        if have > archive.bytes:
            raise DownloadError(
                f"{url}: sends more than the {archive.bytes:,} bytes of the official archive; it is another file."
            )
        stream.write(block)
        if progress is not None:
            progress(archive.name, have, archive.bytes)


def _digest(path: Path, kind: str) -> str:
    with path.open("rb") as stream:
        return f"{kind}:{hashlib.file_digest(stream, kind).hexdigest()}"


def _check_space(archives: Sequence[Archive], root: Path) -> None:
    """The archives, and the pictures in them, which are as large again (JPEGs do not compress)."""
    parts = (
        root / FOLDER / f"{archive.name}{ending}"
        for archive in archives
        for ending in ("", ".part")
    )
    there = sum(part.stat().st_size for part in parts if part.exists())
    needed = 2 * sum(archive.bytes for archive in archives) - there + HEADROOM_BYTES
    free = shutil.disk_usage(root).free
    if free < needed:
        names = ", ".join(archive.name for archive in archives)
        raise DownloadError(
            f"{root}: {names} and what is in them need {needed / 1e9:,.1f} GB, {free / 1e9:,.1f} GB are free; give "
            "another --root."
        )


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Hold the download folder against other downloads, until the block ends or the process dies."""
    (root / FOLDER).mkdir(parents=True, exist_ok=True)
    descriptor = os.open(root / FOLDER / "lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DownloadError(
                f"{root}: another download is at work here; wait for it."
            ) from error
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _telling_disk_errors(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DownloadError(
            f"{error.filename or root}: cannot be written ({error.strerror or error}). Mend that and run the same "
            "line again: it goes on where it stopped."
        ) from error
