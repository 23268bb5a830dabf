"""Packed folders behind a URL: fetched file by file into a bounded cache, once per node.

`open_shards` (shards/loading/shard_set.py) comes here for https://host/path/coco-train or
s3://bucket/coco-train. Manifest and table are fetched at once; a shard when the first of its
samples is read, or earlier by shards/loading/fetch_ahead.py. The order of samples does not depend
on it: one manifest gives the same batches from a folder and from a URL.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from shards.errors import ManifestError
from shards.manifest import MANIFEST_FILE, Manifest, parse_manifest
from shards.order import WINDOW_SHARDS
from shards.storage.cache import LOCK, PART, Cache, locked, open_in_use
from shards.storage.retries import RetryPolicy
from shards.storage.transfer import Promise, TransferError, check_scheme, fetch_into

DEFAULT_CACHE_GB = 100.0
_MAX_MANIFEST_BYTES = 64 << 20
# A shard's thousand samples must not each wait for all tries at a file that cannot be fetched.
_KEPT_FAILURE_S = 60.0
_SAFE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,199}", re.ASCII)


@dataclass(frozen=True)
class RemoteFile:
    """One file of a set: its URL, and what the manifest promises about it."""

    url: str
    promise: Promise


class RemoteFolder:
    """A set's files behind URLs and their folder in the cache; used by any number of threads.

    Args:
        folder: The set's part of the cache.
        files: The files by their names in it.
        cache: The cache.
        retry: When a fetch is tried again and given up.
    """

    def __init__(
        self, folder: Path, files: Mapping[str, RemoteFile], cache: Cache, retry: RetryPolicy
    ) -> None:
        self._folder = folder
        self._files = files
        self._cache = cache
        self._retry = retry
        self._lock = threading.Lock()
        self._fetching: Counter[str] = Counter()
        self._failures: dict[str, tuple[float, str]] = {}

    def open(self, name: str) -> int:
        """Open one of the set's files, fetched if need be; it stays cached while it is open.

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
        """Bring a file into the cache, or wait for the process of this node that is doing so.

        Args:
            name: One of the set's files.
            needed: False for a file fetched ahead: it is skipped if there is no room for it.

        Raises:
            TransferError: It cannot be fetched.
            OSError: The cache cannot be used.
        """
        path = self._folder / name
        promise = self._files[name].promise
        # The usual case: one `stat`, no lock.
        if _is_whole(path, promise.size):
            return

        since, failure = self._failures.get(name, (0.0, ""))
        if failure and time.monotonic() - since < _KEPT_FAILURE_S:
            raise TransferError(failure)

        lock = path.with_name(name + LOCK)
        try:
            with self._counted(name), locked(lock, self._retry.limit_s(promise.size)):
                # Asked again: another process may have fetched it while this one waited for the
                # lock.
                if not _is_whole(path, promise.size):
                    self._fetch(path, needed)
        except (TransferError, TimeoutError) as error:
            self._failures[name] = (time.monotonic(), str(error))
            raise TransferError(str(error)) from error

    def is_fetching(self, name: str) -> bool:
        """Return whether a thread of this process fetches the file or waits for its fetch."""
        return self._fetching[name] > 0

    def forget_failures(self) -> None:
        """Try files again that could not be fetched a moment ago."""
        self._failures.clear()

    def _fetch(self, path: Path, needed: bool) -> None:
        part = path.with_name(path.name + PART)
        url, promise = self._files[path.name].url, self._files[path.name].promise
        if not self._cache.reserve(part, promise.size, needed=needed):
            return

        def open_part() -> BinaryIO:
            return part.open("r+b")

        try:
            fetch_into(url, open_part, promise, self._retry)
            _sync(part)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    @contextmanager
    def _counted(self, name: str) -> Iterator[None]:
        with self._lock:
            # Counted, as several threads may wait for one file.
            self._fetching[name] += 1
        try:
            yield
        finally:
            with self._lock:
                self._fetching[name] -= 1


# Open remote folders by their place in the cache. Readers know a shard by its path alone, in every
# thread and for local and remote sets alike; this finds the fetcher that belongs to the path.
_FOLDERS: dict[Path, RemoteFolder] = {}


def is_url(folder: Path | str) -> bool:
    """Return whether this names something remote; a Path never does."""
    return isinstance(folder, str) and "://" in folder


def remote_of(path: Path) -> RemoteFolder | None:
    """Return the remote folder whose cache the path is in; None for an ordinary file."""
    return _FOLDERS.get(path.parent)


def open_remote(url: str, cache: Cache, retry: RetryPolicy) -> Manifest:
    """Fetch manifest and table of a packed folder behind a URL.

    Returns:
        The manifest; its `folder` is the set's part of the cache.

    Raises:
        ManifestError: No such URL, no packed folder there, hostile or wrong values, or a cache that
            is too small.
    """
    url = checked_url(url)
    try:
        content = _fetch_manifest(url, retry)
        folder = _cache_folder(url, content, cache)
        manifest = parse_manifest(content, f"{url}/{MANIFEST_FILE}", folder)

        # Before a name becomes a path or part of a URL.
        _check_names(url, manifest)
        _check_room(url, manifest, cache)

        table = manifest.samples_file
        files = _remote_shards(url, manifest)
        files[table.file] = RemoteFile(f"{url}/{table.file}", Promise(table.bytes, table.sha256))
        remote = _open_folder(folder, files, cache, retry)
        os.close(remote.open(table.file))
    except TransferError as error:
        raise ManifestError(
            f"{error}. Check the address (a folder that holds {MANIFEST_FILE}) and the network."
        ) from error
    except OSError as error:
        raise _unusable(cache, error) from error
    return _located(manifest, folder)


def with_cached_shards(manifest: Manifest, cache: Cache, retry: RetryPolicy) -> Manifest:
    """Let the shards of a local manifest that are behind URLs be read through the cache.

    Returns:
        The manifest; those shards' locations are their paths in the cache.

    Raises:
        ManifestError: Hostile names or addresses, or a cache that is too small or cannot be used.
    """
    where = str(manifest.folder)
    _check_names(where, manifest)
    _check_room(where, manifest, cache)
    for shard in manifest.shards:
        if shard.is_remote:
            checked_url(shard.location)

    folder = cache.folder.absolute() / f"indexed-{manifest.digest[:32]}"
    try:
        _open_folder(folder, _remote_shards(where, manifest), cache, retry)
    except OSError as error:
        raise _unusable(cache, error) from error
    return _located(manifest, folder)


def _remote_shards(url: str, manifest: Manifest) -> dict[str, RemoteFile]:
    """Return the shards that are behind URLs: their own, or beside a manifest behind a URL."""
    files = {}
    for shard in manifest.shards:
        address = shard.location or f"{url}/{shard.file}"
        if is_url(address):
            files[shard.file] = RemoteFile(address, Promise(shard.bytes, shard.sha256))
    return files


def _located(manifest: Manifest, folder: Path) -> Manifest:
    """Return the manifest with its remote shards at their paths in the cache."""
    shards = []
    for shard in manifest.shards:
        location = str(folder / shard.file) if shard.is_remote else shard.location
        shards.append(shard.model_copy(update={"location": location}))
    return manifest.model_copy(update={"shards": tuple(shards)})


def _open_folder(
    folder: Path, files: Mapping[str, RemoteFile], cache: Cache, retry: RetryPolicy
) -> RemoteFolder:
    folder.mkdir(parents=True, exist_ok=True)
    # At the opening of a set, when nobody is in a hurry.
    cache.sweep()
    remote = _FOLDERS[folder] = RemoteFolder(folder, files, cache, retry)
    return remote


def _unusable(cache: Cache, error: OSError) -> ManifestError:
    return ManifestError(
        f"{cache.folder}: cannot hold fetched shards ({error.strerror or error}); name another "
        "folder with data.cache_dir."
    )


def default_cache_dir() -> Path:
    """Return the folder for fetched shards in the user's cache (XDG_CACHE_HOME or ~/.cache)."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "colorgan" / "shards"


def _cache_folder(url: str, content: bytes, cache: Cache) -> Path:
    """Name the set's part of the cache by address and content: a changed set starts anew."""
    address = hashlib.sha256(url.encode()).hexdigest()[:16]
    digest = hashlib.sha256(content).hexdigest()[:16]
    return cache.folder.absolute() / f"{address}-{digest}"


def _fetch_manifest(url: str, retry: RetryPolicy) -> bytes:
    buffer = BytesIO()

    def restart() -> nullcontext[BytesIO]:
        buffer.seek(0)
        buffer.truncate()
        return nullcontext(buffer)

    fetch_into(f"{url}/{MANIFEST_FILE}", restart, Promise(_MAX_MANIFEST_BYTES), retry)
    return buffer.getvalue()


def checked_url(url: str) -> str:
    """Return an address of a folder or a shard that can be kept and read later.

    Raises:
        ManifestError: An unsupported scheme, no host, or a user, password or query.
    """
    check_scheme(url)
    parts: Any = urlsplit(url)

    # The message leaves user, password and query out: they may be secrets.
    if parts.query or parts.fragment or parts.username or parts.password or not parts.netloc:
        raise ManifestError(
            f"{parts.scheme}://{parts.hostname}{parts.path}: an address has a host "
            "and no user, password or query; names and keys belong in ~/.netrc or ~/.aws."
        )
    return url.rstrip("/")


def _check_names(where: str, manifest: Manifest) -> None:
    """Refuse all but plain names, each once: they become files of the cache and parts of URLs.

    A manifest behind a URL must not name files of this machine either.
    """
    table = manifest.samples_file.file
    seen = {table}

    for shard in manifest.shards:
        name = shard.file
        if not _SAFE_NAME.fullmatch(name) or not name.endswith(".tar") or name in seen:
            raise ManifestError(
                f"{where}/{MANIFEST_FILE}: {name!r} is not the name of a shard, or comes twice."
            )
        if is_url(where) and shard.location and not shard.is_remote:
            raise ManifestError(
                f"{where}/{MANIFEST_FILE}: shard {name} is at {shard.location}, on the machine "
                "that indexed it; index its address there instead."
            )
        seen.add(name)

    if not _SAFE_NAME.fullmatch(table) or not table.endswith(".npy"):
        raise ManifestError(
            f"{where}/{MANIFEST_FILE}: {table!r} is not the name of a table of samples."
        )


def _check_room(where: str, manifest: Manifest, cache: Cache) -> None:
    """Require room for a window of shards.

    A rank reads from all shards of a window in turn; with fewer in the cache every read would be a
    fetch.
    """
    window = sorted((shard.bytes for shard in manifest.shards), reverse=True)[:WINDOW_SHARDS]
    needed = manifest.samples_file.bytes + sum(window)

    if needed > cache.limit_bytes:
        needed_gb, limit_gb = needed / 1e9, cache.limit_bytes / 1e9
        raise ManifestError(
            f"{where}: a window of its shards takes {needed_gb:.3g} GB, the cache may hold "
            f"{limit_gb:.3g}; set data.cache_gb to {needed_gb * 1.5:.2g} or more, or copy the "
            "folder."
        )


def _is_whole(path: Path, size: int) -> bool:
    try:
        return path.stat(follow_symlinks=False).st_size == size
    except FileNotFoundError:
        return False


def _sync(path: Path) -> None:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
