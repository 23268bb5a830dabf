"""Check a packed or indexed folder against its manifest: `launcher/pack.py --verify DIR`.

Files, sizes and sha256, the table, DALI's index, the tar headers, the crc32 of each member, and
that image, label and mask decode to what the manifest promises. Every bad sample is named.
"""

import hashlib
import io
import mmap
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from shards.manifest import Manifest, ShardInfo, read_manifest
from shards.packing.fetching import opened_shard
from shards.packing.sample_checks import check_sample
from shards.packing.samples import member_spans
from shards.packing.source_files import FILE_FAULTS
from shards.packing.tar import dali_index, index_line
from shards.packing.workers import new_pool
from shards.rejections import PASSED_OVER, REJECTED_FILE
from shards.storage.transfer import TransferError

HASHED_BYTES = 1 << 20


@dataclass(frozen=True)
class BadSample:
    """One sample and all that is wrong with it; `key` is empty if its headers cannot be read."""

    shard: str
    index: int  # in the set
    key: str
    faults: tuple[str, ...]

    def __str__(self) -> str:
        name = self.key or "(key unreadable)"
        return f"{self.shard}: {name} (sample {self.index:,}): {'; '.join(self.faults)}"


@dataclass
class ShardCheck:
    """The faults of one shard, or of a file beside the shards if `shard` is its name.

    `is_unread` is True for a shard that was not checked, as it could not be read: what keeps it
    away may pass.
    """

    shard: str
    samples: int = 0
    faults: list[str] = field(default_factory=list)
    bad_samples: list[BadSample] = field(default_factory=list)
    is_unread: bool = False

    @property
    def is_good(self) -> bool:
        """True if nothing is wrong."""
        return not self.faults and not self.bad_samples


def verify(folder: Path, *, workers: int = 1) -> Iterator[ShardCheck]:
    """Check everything in a packed folder; first the tables, then each shard in order.

    Args:
        folder: Of the set.
        workers: Processes, one shard each; 0 works in this one.

    Raises:
        ManifestError: The manifest itself, or its table of samples, cannot be read.
    """
    manifest = read_manifest(folder, check_files=False)
    # Opened once here, so that a damaged table is one error and not one per shard.
    manifest.samples()
    yield from _check_tables(manifest)

    numbers = range(len(manifest.shards))
    if workers == 0:
        yield from (check_shard(folder, number) for number in numbers)
        return

    with new_pool(workers) as pool:
        # Numbers, not manifests: a large one would be pickled per shard.
        checks = [pool.submit(check_shard, folder, number) for number in numbers]
        for check, shard in zip(checks, manifest.shards, strict=True):
            try:
                yield check.result()
            except BrokenProcessPool:
                # The pool is gone: this shard, and those after it, were not checked.
                fault = "a worker died, so it was not checked; try --workers 1"
                yield ShardCheck(shard.file, 0, [fault], is_unread=True)


def check_shard(folder: Path, number: int) -> ShardCheck:
    """Check one shard; done in a worker, which opens the manifest by itself."""
    manifest = read_manifest(folder, check_files=False)
    info = manifest.shards[number]
    check = ShardCheck(info.file, info.samples)

    location = info.location or str(manifest.shard_path(info))
    try:
        with opened_shard(location, folder / info.file) as stream:
            _check_open_shard(manifest, number, stream, check)
    except OSError as error:
        is_fetched = isinstance(error, TransferError)
        fault = str(error) if is_fetched else f"cannot be read ({error.strerror or error})"
        # What is not there is damage of a folder on this machine, and may be a hiccup of a server.
        is_unread = is_fetched or error.errno not in FILE_FAULTS
        return ShardCheck(info.file, 0, [fault], is_unread=is_unread)
    return check


def _check_tables(manifest: Manifest) -> Iterator[ShardCheck]:
    table = manifest.folder / manifest.samples_file.file
    with table.open("rb") as stream:
        if hashlib.file_digest(stream, "sha256").hexdigest() != manifest.samples_file.sha256:
            yield ShardCheck(table.name, 0, ["sha256 is not the manifest's"])

    if not _rows_agree(manifest):
        fault = "its samples do not lie in the shards as the manifest counts them"
        yield ShardCheck(table.name, 0, [fault])

    fault = _rejected_fault(manifest)
    if fault:
        yield ShardCheck(REJECTED_FILE, 0, [fault])


def _rows_agree(manifest: Manifest) -> bool:
    shards = manifest.samples()["shard"].astype(np.int64)
    # Before they are counted: a number from a damaged table may ask for any amount of memory.
    if len(shards) and shards.max() >= len(manifest.shards):
        return False

    counts = np.bincount(shards, minlength=len(manifest.shards))
    expected = [shard.samples for shard in manifest.shards]
    # In order, too: loading finds a shard's rows by running sums.
    return list(counts) == expected and bool((np.diff(shards) >= 0).all())


# The ends of lines that the manifest does not count: the reason comes last.
_PASSED_OVER = tuple(f'{reason}"}}\n'.encode() for reason in PASSED_OVER)


def _rejected_fault(manifest: Manifest) -> str:
    try:
        with (manifest.folder / REJECTED_FILE).open("rb") as stream:
            lines = sum(1 for line in stream if not line.endswith(_PASSED_OVER))
    except OSError as error:
        return f"cannot be read ({error.strerror})"

    if lines == manifest.num_rejected:
        return ""
    return f"{lines} lines, the manifest says {manifest.num_rejected} were rejected"


def _check_open_shard(manifest: Manifest, number: int, stream: BinaryIO, check: ShardCheck) -> None:
    info = manifest.shards[number]
    # Not the end of it: which samples are bad is what a user needs to know.
    if _sha256(stream) != info.sha256:
        check.faults.append("sha256 is not the manifest's")

    size = stream.seek(0, io.SEEK_END)
    if size != info.bytes:
        check.faults.append(f"{size:,} bytes, the manifest says {info.bytes:,}")
    # mmap refuses empty files.
    if size == 0:
        return

    first = [0, *accumulate(shard.samples for shard in manifest.shards)][number]
    rows = manifest.samples()[first : first + info.samples]
    # Mapped: members are looked at where they lie, without a copy of the shard.
    with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        keys = _check_samples(manifest, info, rows, first, memoryview(data), check)

    # With bad samples the index differs as a consequence, which is no news.
    if not check.bad_samples and not manifest.is_indexed:
        _check_index(manifest.folder / info.file, rows, keys, check)


def _sha256(stream: BinaryIO) -> str:
    digest = hashlib.sha256()
    while block := stream.read(HASHED_BYTES):
        digest.update(block)
    return digest.hexdigest()


def _check_samples(
    manifest: Manifest,
    info: ShardInfo,
    rows: NDArray[np.void],
    first: int,
    data: memoryview,
    check: ShardCheck,
) -> list[str]:
    """Check each sample, and return the keys in the tar headers."""
    keys = []
    with data:
        for index, row in enumerate(rows, first):
            result = check_sample(manifest, row, data)
            keys.append(result.key)
            if result.faults:
                bad = BadSample(info.file, index, result.key, result.faults)
                check.bad_samples.append(bad)
    return keys


def _check_index(tar: Path, rows: NDArray[np.void], keys: list[str], check: ShardCheck) -> None:
    index = tar.with_suffix(".idx")
    lines = [index_line(key, member_spans(row)) for key, row in zip(keys, rows, strict=True)]
    try:
        if index.read_text() != dali_index(lines, len(lines)):
            check.faults.append(f"{index.name} is not the index of these samples")
    except (OSError, UnicodeDecodeError) as error:
        check.faults.append(f"{index.name} cannot be read ({error})")
