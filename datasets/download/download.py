"""Fetch and unpack the official archives of a split: `launcher/pack.py --download`.

    <root>/.download/NAME.part      the bytes so far; a further call resumes behind them
    <root>/.download/NAME           whole, of the right size and digest; removed once it is unpacked
    <root>/.download/NAME.d/        its files, before they are moved to their places (unpack.py)

Safe to kill at any moment. A broken connection is resumed; the count of tries starts again whenever
bytes arrive.
"""

import hashlib
import http.client
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

from datasets.download.archives import Archive
from datasets.download.unpack import unpack
from datasets.errors import DownloadError

FOLDER = ".download"
BLOCK_BYTES = 1 << 20
HEADROOM_BYTES = 64 << 20
# Another try would get the same answer. 416 is not among them: our part is too long then.
FINAL_STATUSES = (400, 401, 403, 404, 405, 410, 451)

Progress = Callable[[str, int, int], None]  # the archive's name, bytes that are there, bytes in all


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How long to try: `tries` without a new byte, with waits from `wait_s` doubling to a minute.

    `timeout_s` is how long the server may be silent.
    """

    tries: int = 6
    wait_s: float = 2.0
    timeout_s: float = 60.0


def download(
    archives: Sequence[Archive],
    root: Path,
    *,
    mirror: str | None = None,
    retries: RetryPolicy | None = None,
    progress: Progress | None = None,
) -> list[str]:
    """Fetch and unpack what is not there yet.

    Args:
        archives: those of a split, from `archives_for`.
        root: the corpus root; made if it is missing.
        mirror: a URL in place of the official hosts: `<mirror>/<file name>`. Digests stay the same.
        retries: when to give up.
        progress: called with each block that arrives.

    Returns:
        The names of the archives that were fetched.

    Raises:
        DownloadError: Too little space, an archive that cannot be reached, is not the official one
            or is hostile, another download at work, or a disk that fails.
    """
    # By what it unpacks to: users delete archives, and bring their own.
    wanted = [archive for archive in archives if not is_there(archive, root)]
    if not wanted:
        return []
    with _disk_errors_in_words(root), _alone(root):
        # Before the first byte: half of COCO on a full disk helps nobody.
        _check_space(wanted, root)
        for archive in wanted:
            path = fetch(archive, root / FOLDER, mirror=mirror, retries=retries, progress=progress)
            unpack(path, root, top=archive.top, max_bytes=8 * archive.bytes + HEADROOM_BYTES)
            # Once its files are in place: archive and images together take twice the room.
            path.unlink()
    return [archive.name for archive in wanted]


def is_there(archive: Archive, root: Path) -> bool:
    """Return whether an archive is unpacked below the root, by a download or by its user."""
    parts = [root / FOLDER / f"{archive.name}{ending}" for ending in ("", ".part", ".d")]
    return (root / archive.proof).exists() and not any(part.exists() for part in parts)


def fetch(
    archive: Archive,
    folder: Path,
    *,
    mirror: str | None = None,
    retries: RetryPolicy | None = None,
    progress: Progress | None = None,
) -> Path:
    """Fetch one archive into a folder, or resume an earlier call; return its checked file."""
    retries = retries or RetryPolicy()
    target, part = folder / archive.name, folder / f"{archive.name}.part"
    # Its digest was checked before it got this name.
    if target.exists() and target.stat().st_size == archive.bytes:
        return target
    url = f"{mirror.rstrip('/')}/{archive.name}" if mirror else archive.url
    # A wrong digest may come from two halves of different files: once more, from the start.
    for _ in range(2):
        _fetch_whole(url, archive, part, retries, progress)
        if _digest(part, archive.digest.partition(":")[0]) == archive.digest:
            part.replace(target)
            return target
        part.unlink()

    raise DownloadError(
        f"{url}: fetched twice, and its digest is not {archive.digest}; it is not the official "
        "archive."
    )


def _fetch_whole(
    url: str, archive: Archive, part: Path, retries: RetryPolicy, progress: Progress | None
) -> None:
    """Fill the part file up to the archive's size."""
    failures, trouble = 0, ""
    while True:
        have = _size(part)
        if have == archive.bytes:
            return

        if failures == retries.tries:
            raise DownloadError(
                f"{url}: stopped at {have:,} of {archive.bytes:,} bytes after {failures} tries "
                f"({trouble}); rerunning the command resumes it."
            )
        if failures:
            # Growing waits: a busy server is not helped by being asked again at once.
            time.sleep(min(60.0, retries.wait_s * 2 ** (failures - 1)))

        try:
            trouble = _fetch_some(url, archive, part, retries.timeout_s, progress)
        except _BrokenError as error:
            trouble = str(error)
        failures = 0 if _size(part) > have else failures + 1


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


class _BrokenError(Exception):
    """The network or the server failed; worth another try."""


@contextmanager
def _network_errors() -> Iterator[None]:
    try:
        yield
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _BrokenError(str(error) or type(error).__name__) from error


def _fetch_some(
    url: str, archive: Archive, part: Path, timeout_s: float, progress: Progress | None
) -> str:
    """Append what the server sends behind the bytes that are there; return why it was not all."""
    have = _size(part)
    # Identity: a compressed answer has other offsets than the file.
    headers = {"User-Agent": "colorgan", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"

    request = urllib.request.Request(url, headers=headers)
    response = None
    with _network_errors():
        try:
            response = urllib.request.urlopen(request, timeout=timeout_s)
        except urllib.error.HTTPError as error:
            with error:
                trouble = _refusal(url, error)
            if error.code == 416:  # the part is longer than what the server has
                part.unlink(missing_ok=True)
    if response is None:
        return trouble

    with response, part.open("r+b" if have else "wb") as stream:
        start = _start_of(response, have, archive.bytes)
        # A server that does not resume starts again, and so do we.
        stream.truncate(start)
        stream.seek(start)
        _copy(url, response, stream, archive, start, progress)
    return "the connection broke off"


def _refusal(url: str, error: urllib.error.HTTPError) -> str:
    """Return a server's refusal in words.

    Raises:
        DownloadError: another try would get the same answer.
    """
    answer = f"the server answers {error.code} {error.reason}"
    if error.code in FINAL_STATUSES:
        raise DownloadError(f"{url}: {answer}; try a --mirror.") from error
    return answer


def _start_of(response: http.client.HTTPResponse, have: int, total: int) -> int:
    """Return where the answer's bytes belong: behind ours, or 0 if the server does not resume."""
    start = have if response.status == 206 else 0
    content_range = response.headers.get("Content-Range", "")
    length = response.headers.get("Content-Length")
    if response.status == 206 and not content_range.startswith(f"bytes {have}-"):
        raise _BrokenError(
            f"the server sends the range {content_range!r}, not the one behind byte {have:,}"
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
    """Copy an answer to the part file; errors of the network and of the disk are kept apart."""
    while True:
        with _network_errors():
            # read1 returns what is there; read would lose it when the connection stalls.
            block = response.read1(BLOCK_BYTES)
        if not block:
            return
        have += len(block)
        if have > archive.bytes:
            raise DownloadError(
                f"{url}: sends more than the {archive.bytes:,} bytes of the official archive; it "
                "is another file."
            )
        stream.write(block)
        if progress is not None:
            progress(archive.name, have, archive.bytes)


def _digest(path: Path, kind: str) -> str:
    with path.open("rb") as stream:
        return f"{kind}:{hashlib.file_digest(stream, kind).hexdigest()}"


def _check_space(archives: Sequence[Archive], root: Path) -> None:
    """Check for the archives' space, and as much again for their JPEGs, which do not compress."""
    names = [archive.name for archive in archives]
    parts = [root / FOLDER / f"{name}{ending}" for name in names for ending in ("", ".part")]
    there = sum(_size(part) for part in parts)
    needed = 2 * sum(archive.bytes for archive in archives) - there + HEADROOM_BYTES

    free = shutil.disk_usage(root).free
    if free < needed:
        raise DownloadError(
            f"{root}: {', '.join(names)} unpacked need {needed / 1e9:,.1f} GB, "
            f"{free / 1e9:,.1f} GB are free; give another --root."
        )


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Hold the download folder against other downloads, until the block or the process ends."""
    (root / FOLDER).mkdir(parents=True, exist_ok=True)
    # No waiting: the other download brings the same files.
    lock = FileLock(root / FOLDER / "lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise DownloadError(f"{root}: another download is at work here; wait for it.") from error

    try:
        yield
    finally:
        lock.release()


@contextmanager
def _disk_errors_in_words(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DownloadError(
            f"{error.filename or root}: cannot be written ({error.strerror or error}). Fix this; "
            "rerunning the command resumes it."
        ) from error
