"""Packed folders behind a URL: fetched file by file into a bounded cache, once a node, and read from there.

`open_shards` (shards/loading/shard_set.py) comes here for https://host/path/coco-train or s3://bucket/coco-train. Manifest and
table are fetched at once, a shard when the first of its samples is read, or ahead of that by shards/loading/stream.py.
A run's order does not depend on it: the same manifest gives the same batches from a folder and from a URL.
"""

import hashlib
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from shards.errors import ManifestError
from shards.manifest import MANIFEST_FILE, Manifest, parse_manifest
from shards.order import WINDOW_SHARDS
from shards.storage.cache import LOCK, PART, Cache, locked, open_in_use
from shards.storage.transfer import Promise, RetryPolicy, TransferError, check_scheme, fetch_into

PATIENCE = RetryPolicy()
DEFAULT_CACHE_GB = 100.0
_MAX_MANIFEST_BYTES = 64 << 20
_KEPT_FAILURE_S = 60.0  # so that a shard's thousand samples do not each wait for all the tries
_SAFE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,199}", re.ASCII)


class RemoteFolder:
    """A packed folder behind a URL and its part of the cache; used by any number of threads."""

    def __init__(self, url: str, manifest: Manifest, cache: Cache, patience: RetryPolicy) -> None:
        self._url, self._folder, self._cache, self._patience = url, manifest.folder, cache, patience
        table = manifest.samples_file
        self._promises = {
            shard.file: Promise(shard.bytes, shard.sha256) for shard in manifest.shards
        }
        self._promises[table.file] = Promise(table.bytes, table.sha256)
        self._lock = threading.Lock()
        self._fetching: Counter[str] = Counter()
        self._failures: dict[str, tuple[float, str]] = {}

    def open(self, name: str) -> int:
        """A descriptor of one of the set's files, fetched if need be; the file stays while it is open.

        Raises:
            TransferError: It cannot be fetched.
            OSError: The cache cannot be used.
        """
        for _ in range(3):
            self.fetch(name)
            try:
                return open_in_use(self._folder / name)
            except FileNotFoundError:  # evicted in between
                continue
        raise TransferError(
            f"{self._folder / name}: evicted as soon as fetched; raise data.cache_gb"
        )

    def fetch(self, name: str, *, needed: bool = True) -> None:
        """Bring a file into the cache, unless it is there or another process of the node is at it: then wait.

        Args:
            needed: Whether it is due; a file fetched ahead is left where there is no room for it.

        Raises:
            TransferError: It cannot be fetched.
            OSError: The cache cannot be used.
        """
        promise, path = self._promises[name], self._folder / name
        if _has(path, promise.size):
            return
        since, failure = self._failures.get(name, (0.0, ""))
        if failure and time.monotonic() - since < _KEPT_FAILURE_S:
            raise TransferError(failure)
        try:
            with (
                self._counted(name),
                locked(path.with_name(name + LOCK), self._patience.limit_s(promise.size)),
            ):
                if not _has(path, promise.size):
                    self._fetch(path, promise, needed)
        except (TransferError, TimeoutError) as error:
            self._failures[name] = (time.monotonic(), str(error))
            raise TransferError(str(error)) from error

    def is_fetching(self, name: str) -> bool:
        """Whether a thread of this process fetches the file, or waits for another process that does."""
        return self._fetching[name] > 0

    def _fetch(self, path: Path, promise: Promise, needed: bool) -> None:
        part = path.with_name(path.name + PART)
        if not self._cache.reserve(part, promise.size, needed=needed):
            return

        def open_part() -> BinaryIO:
            return part.open("r+b")

        try:
            fetch_into(f"{self._url}/{path.name}", open_part, promise, self._patience)
            _sync(part)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    @contextmanager
    def _counted(self, name: str) -> Iterator[None]:
        with self._lock:
            self._fetching[name] += 1
        try:
            yield
        finally:
            with self._lock:
                self._fetching[name] -= 1


# The open remote folders by their place in the cache: a path in there is enough to read from it (ShardFiles).
_FOLDERS: dict[Path, RemoteFolder] = {}


def is_url(folder: Path | str) -> bool:
    """Whether this names something remote; a Path never does."""
    return isinstance(folder, str) and "://" in folder


def remote_of(path: Path) -> RemoteFolder | None:
    """The remote folder whose cache the path lies in; None: an ordinary file."""
    return _FOLDERS.get(path.parent)


def open_remote(url: str, cache: Cache, patience: RetryPolicy = PATIENCE) -> Manifest:
    """Fetch manifest and table of a packed folder behind a URL; its `folder` is the set's part of the cache.

    Raises:
        ManifestError: No such URL, no packed folder there, hostile or wrong values, or a cache that is too small.
    """
    url = _checked_url(url)
    try:
        content = _fetch_manifest(url, patience)
        digest = hashlib.sha256(content).hexdigest()
        folder = (
            cache.folder.absolute()
            / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{digest[:16]}"
        )
        manifest = parse_manifest(content, f"{url}/{MANIFEST_FILE}", folder)
        _check_names(url, manifest)
        _check_room(url, manifest, cache)
        folder.mkdir(parents=True, exist_ok=True)
        cache.sweep()
        remote = _FOLDERS[folder] = RemoteFolder(url, manifest, cache, patience)
        os.close(remote.open(manifest.samples_file.file))
    except TransferError as error:
        raise ManifestError(
            f"{error}. Check the address (a folder that holds {MANIFEST_FILE}) and the network."
        ) from error
    except OSError as error:
        raise ManifestError(
            f"{cache.folder}: cannot hold fetched shards ({error.strerror or error}); name another with data.cache_dir."
        ) from error
    return manifest


def default_cache_dir() -> Path:
    """Where fetched shards lie unless told: in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "colorgan" / "shards"


def _fetch_manifest(url: str, patience: RetryPolicy) -> bytes:
    buffer = BytesIO()

    def restart() -> nullcontext[BytesIO]:
        buffer.seek(0)
        buffer.truncate()
        return nullcontext(buffer)

    fetch_into(f"{url}/{MANIFEST_FILE}", restart, Promise(_MAX_MANIFEST_BYTES), patience)
    return buffer.getvalue()


def _checked_url(url: str) -> str:
    check_scheme(url)
    parts: Any = urlsplit(url)
    if parts.query or parts.fragment or parts.username or parts.password or not parts.netloc:
        raise ManifestError(
            f"{parts.scheme}://{parts.hostname}{parts.path}: an address of a folder has a host, no user, password or "
            "query; names and keys belong in ~/.netrc or ~/.aws."
        )
    return url.rstrip("/")


def _check_names(url: str, manifest: Manifest) -> None:
    """Names become files of the cache and parts of URLs: refuse all but plain ones, each once."""
    table, shards = manifest.samples_file.file, [shard.file for shard in manifest.shards]
    seen = {table}
    for name in shards:
        if not _SAFE_NAME.fullmatch(name) or not name.endswith(".tar") or name in seen:
            raise ManifestError(
                f"{url}/{MANIFEST_FILE}: {name!r} is no name of a shard, or comes twice."
            )
        seen.add(name)
    if not _SAFE_NAME.fullmatch(table) or not table.endswith(".npy"):
        raise ManifestError(f"{url}/{MANIFEST_FILE}: {table!r} is no name of a table of samples.")


def _check_room(url: str, manifest: Manifest, cache: Cache) -> None:
    """A rank reads from all shards of a window in turn: with fewer in the cache, each read would be a fetch."""
    window = sorted((shard.bytes for shard in manifest.shards), reverse=True)[:WINDOW_SHARDS]
    needed = manifest.samples_file.bytes + sum(window)
    if needed > cache.limit_bytes:
        raise ManifestError(
            f"{url}: a window of its shards takes {needed / 1e9:.3g} GB, the cache may hold "
            f"{cache.limit_bytes / 1e9:.3g}; set data.cache_gb to {needed / 1e9 * 1.5:.2g} or more, or copy the folder."
        )


def _has(path: Path, size: int) -> bool:
    try:
        return path.stat(follow_symlinks=False).st_size == size
    except FileNotFoundError:
        return False


def _sync(path: Path) -> None:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
