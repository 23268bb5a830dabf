"""Packed folders seen as one set, and their members fetched by offset and checked.

Between the order (shards/order.py) and the threads that read ahead (shards/loading/read_ahead.py). Shards are tar
files, but nothing here parses tar: the manifest's table says where each member lies. What cannot be read, or is
not what the manifest promises, becomes a `BadSampleError` with its reason; shards/loading/stream.py replaces it.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shards.errors import ManifestError
from shards.manifest import SAMPLE_DTYPE, Manifest, read_manifest
from shards.storage.cache import Cache
from shards.storage.remote import DEFAULT_CACHE_GB, default_cache_dir, is_url, open_remote
from shards.storage.staging import staged

Rows = NDArray[np.void]


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
        self.digest = hashlib.sha256(
            "".join(manifest.digest for manifest in manifests).encode()
        ).hexdigest()
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
        raise ManifestError(
            "no packed folder given; name one that python launcher/pack.py has written."
        )
    resolved = [
        str(folder).rstrip("/") if is_url(folder) else Path(folder).resolve() for folder in folders
    ]
    for folder in resolved:
        if resolved.count(folder) > 1:
            raise ManifestError(f"{folder}: given twice; name each packed folder once.")
    return ShardSet([_open_folder(folder, cache_dir, cache_gb) for folder in folders])


def _open_folder(folder: Path | str, cache_dir: Path | None, cache_gb: float) -> Manifest:
    if is_url(folder):
        return open_remote(
            str(folder), Cache(cache_dir or default_cache_dir(), round(cache_gb * 1e9))
        )
    return staged(read_manifest(Path(folder)))
