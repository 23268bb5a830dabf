"""Packed folders seen as one set, and their members fetched by offset and checked.

Between the order (shards/order.py) and the threads that read ahead (shards/loading/read_ahead.py). Shards are tar
files, but nothing here parses tar: the manifest's table says where each member lies. What cannot be read, or is
not what the manifest promises, becomes a `BadSampleError` with its reason; shards/loading/stream.py replaces it.
"""

import hashlib
import os
import resource
import threading
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shards.errors import ManifestError, ShardError
from shards.images.headers import Header, jpeg_header, mask_header
from shards.loading.labels import ClassVectors, Objects, class_vectors, labelled_objects
from shards.manifest import SAMPLE_DTYPE, Manifest, read_manifest
from shards.order import WINDOW_SHARDS
from shards.storage.cache import Cache
from shards.storage.remote import DEFAULT_CACHE_GB, default_cache_dir, is_url, open_remote, remote_of
from shards.storage.staging import staged

Rows = NDArray[np.void]
ReadAt = Callable[[Path, int, int], bytes]  # path, offset, size -> at most size bytes; raises OSError


class BadSampleError(ShardError):
    """One sample that cannot be used; the message is the reason, with the file it lies in."""


class ShardSet:
    """One or several packed folders as one sequence of samples, numbered 0 to num_samples - 1.

    Attributes:
        manifests: The folders' manifests, in the order given.
        num_samples: Samples in all folders.
        classes: Class names of the first folder that has any.
        palette: Mask colours that go with `classes`.
        has_masks: Whether every folder has masks.
        digest: One sha256 that names all the folders' contents and their order.
        image_policies: Each folder's image policy ("squash:256", ...).
        shard_sizes: Samples in each shard, folder after folder.
        shard_paths: Each shard's file.
    """

    def __init__(self, manifests: Sequence[Manifest]) -> None:
        self.manifests = tuple(manifests)
        labelled = next((manifest for manifest in manifests if manifest.classes), manifests[0])
        self.classes = labelled.classes
        self.palette = labelled.palette
        self.has_masks = all(manifest.has_masks for manifest in manifests)
        self.image_policies = tuple(manifest.image_policy for manifest in manifests)
        self.digest = hashlib.sha256("".join(manifest.digest for manifest in manifests).encode()).hexdigest()
        self.shard_sizes = [shard.samples for manifest in manifests for shard in manifest.shards]
        self.shard_paths = [m.folder / shard.file for m in manifests for shard in m.shards]
        self.num_samples = sum(self.shard_sizes)
        self._tables = [manifest.samples() for manifest in manifests]
        self._first_sample = np.cumsum([0, *(manifest.num_samples for manifest in manifests)])
        self._first_shard = np.cumsum([0, *(len(manifest.shards) for manifest in manifests)])

    def rows(self, ids: NDArray[np.int64]) -> Rows:
        """The table's rows for these samples, shape (N,); `shard` counts through all folders."""
        rows = np.empty(len(ids), SAMPLE_DTYPE)
        folders = np.searchsorted(self._first_sample, ids, side="right") - 1
        for folder in np.unique(folders):
            here = folders == folder
            rows[here] = self._tables[folder][ids[here] - self._first_sample[folder]]
            rows["shard"][here] += np.uint32(self._first_shard[folder])
        return rows

    def same_classes(self) -> bool:
        """Whether all folders have the same classes, so that one number means one class."""
        return all(manifest.classes == self.classes for manifest in self.manifests)


def open_shards(
    folders: Sequence[Path | str], cache_dir: Path | None = None, cache_gb: float = DEFAULT_CACHE_GB
) -> ShardSet:
    """Open packed folders as one set; nothing but their manifests is read.

    Args:
        folders: Folders; a text with :// in it is the URL of one (shards/storage/remote.py).
        cache_dir: Where what comes from URLs is kept; None: in the user's cache.
        cache_gb: How much of it is kept, in gigabytes (1e9 bytes).

    Raises:
        ManifestError: No folder is given, one is given twice, or one is no intact packed folder.
    """
    if not folders:
        raise ManifestError("no packed folder given; name one that python launcher/pack.py has written.")
    resolved = [str(folder).rstrip("/") if is_url(folder) else Path(folder).resolve() for folder in folders]
    for folder in resolved:
        if resolved.count(folder) > 1:
            raise ManifestError(f"{folder}: given twice; name each packed folder once.")
    return ShardSet([_open_folder(folder, cache_dir, cache_gb) for folder in folders])


def _open_folder(folder: Path | str, cache_dir: Path | None, cache_gb: float) -> Manifest:
    if is_url(folder):
        return open_remote(str(folder), Cache(cache_dir or default_cache_dir(), round(cache_gb * 1e9)))
    return staged(read_manifest(Path(folder)))


def _open_file(path: Path) -> int:
    remote = remote_of(path)
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC) if remote is None else remote.open(path.name)


class ShardFiles:
    """Reads from many files through a bounded number of open descriptors, from any thread.

    Args:
        max_open: Files kept open; by default those of a window of the order, or a quarter of what the
            system lets a process open (often 1,024), whichever is less.
    """

    def __init__(self, max_open: int | None = None) -> None:
        allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._max_open = max_open or max(8, min(WINDOW_SHARDS + 8, allowed // 4))
        self._lock = threading.Lock()
        self._open: OrderedDict[Path, tuple[int, list[int]]] = OrderedDict()  # path -> descriptor, [users]

    def read_at(self, path: Path, offset: int, size: int) -> bytes:
        """Up to `size` bytes at `offset`: fewer at the file's end. Raises OSError."""
        with self._descriptor(path) as descriptor:
            data = os.pread(descriptor, size, offset)
            while 0 < len(data) < size:
                more = os.pread(descriptor, size - len(data), offset + len(data))
                if not more:
                    break
                data += more
            return data

    def will_need(self, path: Path, offset: int, size: int) -> None:
        """Let the system fetch this part of a file into the page cache, without waiting for it.

        Raises:
            OSError: The file cannot be opened. A part that it does not have is no error.
        """
        if hasattr(os, "posix_fadvise") and size > 0:  # no size: all the rest of the file
            with self._descriptor(path) as descriptor, suppress(OSError, OverflowError):
                os.posix_fadvise(descriptor, offset, size, os.POSIX_FADV_WILLNEED)

    @contextmanager
    def _descriptor(self, path: Path) -> Iterator[int]:
        opened = None if path in self._open else _open_file(path)  # unlocked: a remote shard is fetched here
        with self._lock:
            if opened is None and path not in self._open:  # closed in between
                opened = _open_file(path)
            if opened is not None and path in self._open:  # another thread was first
                os.close(opened)
            elif opened is not None:
                self._open[path] = (opened, [0])
            self._open.move_to_end(path)
            descriptor, users = self._open[path]
            users[0] += 1
            self._close_down_to(self._max_open)
        try:
            yield descriptor
        finally:
            with self._lock:
                users[0] -= 1

    def _close_down_to(self, number: int) -> None:
        """Close the least recently used files that no thread is reading."""
        idle = [path for path, (_, users) in self._open.items() if not users[0]]
        for path in idle[: max(0, len(self._open) - number)]:
            os.close(self._open.pop(path)[0])

    def close(self) -> None:
        """Close every file that is not being read at this moment."""
        with self._lock:
            self._close_down_to(0)


@dataclass(slots=True)
class Members:
    """One sample as read: the bytes of picture and mask, and the label's class vectors or objects."""

    image: bytes
    label: ClassVectors | None
    mask: bytes | None
    objects: Objects | None = None


@dataclass(frozen=True)
class Wanted:
    """Which members to read beside the picture, and how patient to be.

    Attributes:
        num_classes: Read the JSON label, with this many classes; None to leave it.
        boxes: Take the label's objects, not its class vectors.
        mask: Read the mask.
        max_pixels: Larger pictures are refused before anything is decoded.
        num_tries: Tries at a read that ends in an OSError, `retry_wait_s` apart and doubling.
        timeout_s: Seconds after which a read that does not return is given up.
    """

    num_classes: int | None = None
    boxes: bool = False
    mask: bool = False
    max_pixels: int = 2**27
    num_tries: int = 3
    retry_wait_s: float = 0.05
    timeout_s: float = 60.0


def read_members(shards: ShardSet, row: np.void, wanted: Wanted, read_at: ReadAt) -> Members:
    """Read one sample and check it against the manifest.

    Raises:
        BadSampleError: A read error, a short read, a wrong checksum, a mask that is not there, a picture
            or mask of another size or kind than promised, a label that is none.
    """
    path = shards.shard_paths[row["shard"]]
    image = _read_member(path, row, "image", wanted, read_at)
    _check_header(path, "picture", jpeg_header(image), row, (1, 3), wanted.max_pixels)
    label = objects = mask = None
    if wanted.num_classes is not None:
        text = _read_member(path, row, "label", wanted, read_at)
        try:
            if wanted.boxes:
                objects = labelled_objects(text, wanted.num_classes, (int(row["width"]), int(row["height"])))
            else:
                label = class_vectors(text, wanted.num_classes)
        except ValueError as error:
            raise BadSampleError(f"{path.name}: label: {error}") from None
    if wanted.mask:
        mask = _read_member(path, row, "mask", wanted, read_at)
        _check_header(path, "mask", mask_header(mask), row, (1,), wanted.max_pixels)
    return Members(image, label, mask, objects)


def _check_header(
    path: Path, kind: str, header: Header | None, row: np.void, channels: tuple[int, ...], max_pixels: int
) -> None:
    width, height = int(row["width"]), int(row["height"])
    if header is None or header.bits != 8 or header.channels not in channels:
        raise BadSampleError(f"{path.name}: {kind} is no 8-bit {'JPEG' if kind == 'picture' else 'grey PNG'}")
    if (header.width, header.height) != (width, height):
        raise BadSampleError(
            f"{path.name}: {kind} is {header.width}x{header.height}, the manifest says {width}x{height}"
        )
    if width * height > max_pixels:
        raise BadSampleError(f"{path.name}: {kind} of {width}x{height} has over {max_pixels} pixels")


def _read_member(path: Path, row: np.void, member: str, wanted: Wanted, read_at: ReadAt) -> bytes:
    offset, size, crc = (int(row[f"{member}_{part}"]) for part in ("offset", "size", "crc"))
    if size == 0:
        raise BadSampleError(f"{path.name}: no {member}")
    data = _read_patiently(path, offset, size, wanted, read_at)
    if len(data) != size:
        raise BadSampleError(f"{path.name}: {member} at byte {offset} ends after {len(data)} of {size} bytes")
    if zlib.crc32(data) != crc:
        raise BadSampleError(f"{path.name}: {member} at byte {offset} has another checksum than the manifest says")
    return data


def _read_patiently(path: Path, offset: int, size: int, wanted: Wanted, read_at: ReadAt) -> bytes:
    """Try again after an OSError: network file systems fail for a moment and come back."""
    for attempt in range(wanted.num_tries):
        try:
            return read_at(path, offset, size)
        except OSError as error:
            if attempt + 1 == wanted.num_tries or isinstance(error, FileNotFoundError):
                raise BadSampleError(f"{path.name}: cannot be read ({error.strerror or error})") from error
            time.sleep(wanted.retry_wait_s * 2**attempt)
    raise AssertionError("num_tries is 1 at least")
