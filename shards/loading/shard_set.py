"""Packed folders as one numbered set of samples.

Between the order (shards/order.py) and the threads that read ahead (shards/loading/read_ahead.py).
Shards are tar files, but nothing here parses tar: the manifest's table has the offset of each
member.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shards.errors import ManifestError
from shards.manifest import Manifest, read_manifest
from shards.samples_table import SAMPLE_DTYPE
from shards.storage.cache import Cache
from shards.storage.remote import (
    DEFAULT_CACHE_GB,
    default_cache_dir,
    is_url,
    open_remote,
    with_cached_shards,
)
from shards.storage.retries import FETCH_RETRIES, RetryPolicy
from shards.storage.staging import stage

Rows = NDArray[np.void]

_BLOCK_ROWS = 100_000


class ShardSet:
    """One or several packed folders as one sequence of samples, numbered 0 to num_samples - 1.

    Attributes:
        manifests: The folders' manifests, in the order given.
        num_samples: Samples in all folders.
        classes: Class names of the first folder that has any.
        palette: Mask colors that go with `classes`.
        has_masks: Whether every folder has masks.
        digest: One sha256 that names all the folders' contents and their order.
        image_policies: Each folder's image policy ("squash:256", ...).
        shard_sizes: Samples in each shard, folder after folder.
        shard_paths: Each shard's file.
    """

    def __init__(self, manifests: Sequence[Manifest]) -> None:
        self.manifests = tuple(manifests)
        # The first with classes: pretraining mixes labelled and unlabelled folders.
        labelled = next((manifest for manifest in manifests if manifest.classes), manifests[0])
        self.classes = labelled.classes
        self.palette = labelled.palette
        self.has_masks = all(manifest.has_masks for manifest in manifests)
        self.image_policies = tuple(manifest.image_policy for manifest in manifests)

        digests = "".join(manifest.digest for manifest in manifests)
        self.digest = hashlib.sha256(digests.encode()).hexdigest()

        self.shard_sizes: list[int] = []
        self.shard_paths: list[Path] = []
        for manifest in manifests:
            self.shard_sizes += [shard.samples for shard in manifest.shards]
            self.shard_paths += [manifest.shard_path(shard) for shard in manifest.shards]
        self.num_samples = sum(self.shard_sizes)

        self._tables = [manifest.samples() for manifest in manifests]
        # Sums, not a joined table: tables are mapped from disk and may be gigabytes.
        self._first_sample = np.cumsum([0, *(manifest.num_samples for manifest in manifests)])
        self._first_shard = np.cumsum([0, *(len(manifest.shards) for manifest in manifests)])

    def rows(self, ids: NDArray[np.int64]) -> Rows:
        """Return these samples' rows of the table, shape (N,); `shard` counts over all folders."""
        rows = np.empty(len(ids), SAMPLE_DTYPE)
        folders = np.searchsorted(self._first_sample, ids, side="right") - 1
        # One fancy index per folder: a mapped table is read where it is asked, and no further.
        for folder in np.unique(folders):
            here = folders == folder
            rows[here] = self._tables[folder][ids[here] - self._first_sample[folder]]
            rows["shard"][here] += np.uint32(self._first_shard[folder])
        return rows

    def manifest_of(self, row: np.void) -> Manifest:
        """Return the manifest of the folder that a row of `rows` belongs to."""
        folder = int(np.searchsorted(self._first_shard, row["shard"], side="right")) - 1
        return self.manifests[folder]

    def grey_share(self) -> float:
        """Return the share of near-grey images, in [0, 1], over the folders that have a summary."""
        summaries = [manifest.summary() for manifest in self.manifests]
        known = [summary for summary in summaries if summary is not None]
        taken = sum(summary.taken for summary in known)
        return sum(summary.near_grey for summary in known) / taken if taken else 0.0

    def all_are_square(self, size: int) -> bool:
        """Return whether every stored image is size x size, so that nothing has to be resized.

        A set packed at another policy may be so too: shards made elsewhere often are.
        """
        for manifest, table in zip(self.manifests, self._tables, strict=True):
            if manifest.image_policy == f"squash:{size}":
                continue
            # Photos differ, so the first block answers for nearly every set that is not square.
            for begin in range(0, len(table), _BLOCK_ROWS):
                block = table[begin : begin + _BLOCK_ROWS]
                if (block["width"] != size).any() or (block["height"] != size).any():
                    return False
        return True

    def same_classes(self) -> bool:
        """Return whether all folders have the same classes, so that a number means one class."""
        return all(manifest.classes == self.classes for manifest in self.manifests)


@dataclass(frozen=True)
class Storage:
    """Where the files of a set are kept besides where they are.

    Attributes:
        cache_dir: Keeps what is fetched from URLs; None: the user's cache.
        cache_gb: How much of it is kept, in gigabytes (1e9 bytes).
        stage_dir: A folder on this node's own disk to copy local sets to; None: read in place.
        stage_gb: Room for them there, in gigabytes; None: nine tenths of what is free.
        retry: When a fetch from a URL is tried again and given up.
    """

    cache_dir: Path | None = None
    cache_gb: float = DEFAULT_CACHE_GB
    stage_dir: Path | None = None
    stage_gb: float | None = None
    retry: RetryPolicy = FETCH_RETRIES

    @property
    def cache(self) -> Cache:
        """Return the cache for what comes from URLs."""
        return Cache(self.cache_dir or default_cache_dir(), round(self.cache_gb * 1e9))


def open_shards(folders: Sequence[Path | str], storage: Storage | None = None) -> ShardSet:
    """Open packed folders as one set; only their manifests are read.

    Args:
        folders: Folders; a string with :// in it is the URL of one (shards/storage/remote.py).
        storage: Cache and staging; None: the default cache, no staging.

    Raises:
        ManifestError: No folder is given, one is given twice, or one is not an intact packed
            folder.
    """
    if not folders:
        raise ManifestError(
            "no packed folder given; name one that python launcher/pack.py has written."
        )

    resolved = [
        str(folder).rstrip("/") if is_url(folder) else Path(folder).resolve() for folder in folders
    ]
    for folder in resolved:
        # Twice would double its share of the stream without a word.
        if resolved.count(folder) > 1:
            raise ManifestError(f"{folder}: given twice; name each packed folder once.")

    storage = storage or Storage()
    return ShardSet([_open_folder(folder, storage) for folder in folders])


def _open_folder(folder: Path | str, storage: Storage) -> Manifest:
    if is_url(folder):
        return open_remote(str(folder), storage.cache, storage.retry)

    manifest = read_manifest(Path(folder))
    # A local index of shards elsewhere: fetched like a remote folder's.
    if any(shard.is_remote for shard in manifest.shards):
        return with_cached_shards(manifest, storage.cache, storage.retry)
    if storage.stage_dir is None:
        return manifest
    limit_bytes = None if storage.stage_gb is None else round(storage.stage_gb * 1e9)
    # Local sets only: what comes from URLs is on this node already, in the cache.
    return stage(manifest, storage.stage_dir, limit_bytes)
