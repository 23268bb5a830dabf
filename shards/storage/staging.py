"""Packed folders copied to a node's own disk, once a node: `open_shards` reads from there when it is asked to.

    COLORGAN_STAGE_DIR   folder on the node's disk; unset: read the shards where they are
    COLORGAN_STAGE_GB    at most so many gigabytes (1e9 bytes) of it; unset: nine tenths of what is free

The first process of a node that opens a folder copies it, checked against the manifest, while the node's others wait.
Only what training reads is copied: shards, table and manifest. Every node reads from every shard (a global batch
is drawn from all of them), so all are copied; those for which there is no room are links, read where they are. Whoever
made the folder removes it (slurm/task.sh).
"""

import errno
import fcntl
import hashlib
import os
import shutil
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from shards.errors import ManifestError
from shards.manifest import MANIFEST_FILE, Manifest, read_manifest

STAGE_DIR, STAGE_GB = "COLORGAN_STAGE_DIR", "COLORGAN_STAGE_GB"
FREE_SHARE = 0.9
_BLOCK = 8 << 20
_THREADS = 4
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def staged(manifest: Manifest) -> Manifest:
    """The manifest's copy on this node's disk, made if need be; the manifest itself where none is asked for.

    Raises:
        ManifestError: A shard differs from what its manifest promises, or the disk cannot be used.
    """
    root = os.environ.get(STAGE_DIR, "")
    if not root:
        return manifest
    gigabytes = os.environ.get(STAGE_GB, "")
    try:
        limit = int(float(gigabytes) * 1e9) if gigabytes else None
    except ValueError:
        raise ManifestError(f"{STAGE_GB}={gigabytes}: not a number of gigabytes.") from None
    return stage(manifest, Path(root), limit)


def stage(manifest: Manifest, root: Path, limit_bytes: int | None = None) -> Manifest:
    """Copy a packed folder below `root`, unless another process of this node has; return the copy's manifest.

    Args:
        limit_bytes: Room for this folder; shards beyond it become links. None: nine tenths of what is free.

    Raises:
        ManifestError: A shard differs from what its manifest promises, or the disk cannot be used.
    """
    copy = root / manifest.digest[:16]
    try:
        with _locked(root / f"{copy.name}.lock"):
            if not copy.exists():
                free = int(shutil.disk_usage(root).free * FREE_SHARE)
                used = sum(path.lstat().st_size for path in root.glob("*/*.tar"))
                room = free if limit_bytes is None else min(free, limit_bytes - used)
                _copy(manifest, copy, room)
    except OSError as error:
        raise ManifestError(
            f"{root}: shards cannot be staged there ({error.strerror}); name another folder, or unset {STAGE_DIR}."
        ) from error
    return read_manifest(copy)


def _copy(manifest: Manifest, copy: Path, room: int) -> None:
    """Fill a folder under a temporary name, tell how much and how fast, and give it its name."""
    partial = copy.with_name(f".{copy.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    start = time.monotonic()
    for name in (MANIFEST_FILE, manifest.samples_file.file):
        shutil.copyfile(manifest.folder / name, partial / name)
    copied: list[tuple[str, str]] = []
    for shard in manifest.shards:
        room -= shard.bytes
        if room >= 0:
            copied.append((shard.file, shard.sha256))
        else:
            (partial / shard.file).symlink_to((manifest.folder / shard.file).resolve())
    with ThreadPoolExecutor(_THREADS) as pool:
        sizes = list(pool.map(lambda item: _copy_shard(manifest.folder, partial, *item), copied))
    partial.rename(copy)
    seconds, done = max(time.monotonic() - start, 1e-9), sum(size > 0 for size in sizes)
    linked = len(manifest.shards) - done
    print(
        f"[node {socket.gethostname()}] staged {manifest.folder} to {copy}: {done} of {len(manifest.shards)} shards, "
        f"{sum(sizes) / 1e6:,.1f} MB in {seconds:.1f} s ({sum(sizes) / 1e6 / seconds:,.0f} MB/s), sha256 checked"
        + (f"; no room for {linked}, read where they are" if linked else ""),
        flush=True,
    )


def _copy_shard(source: Path, target: Path, name: str, sha256: str) -> int:
    """Copy one shard and return its bytes; 0 where the disk was full and it is a link now."""
    for _ in range(2):  # a network file system may have had a bad moment
        digest, size = hashlib.sha256(), 0
        try:
            with (source / name).open("rb") as read, (target / name).open("wb") as write:
                while block := read.read(_BLOCK):
                    digest.update(block)
                    size += write.write(block)
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
            (target / name).unlink(missing_ok=True)
            (target / name).symlink_to((source / name).resolve())
            return 0
        if digest.hexdigest() == sha256:
            return size
    raise ManifestError(
        f"{source / name}: its sha256 is {digest.hexdigest()[:12]}, the manifest says {sha256[:12]}. Pack it again: "
        f"python launcher/pack.py --only NUMBER --out {source} ..., or check all with --verify {source}."
    )


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock of this node; its processes stage one after the other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
