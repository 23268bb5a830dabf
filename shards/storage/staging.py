"""Copies packed folders to a node's own disk, once per node.

`open_shards(stage_dir=...)` comes here. The first process of a node that opens a folder copies it,
checked against the manifest, while the node's others wait. Only what training reads is copied:
shards, table and manifest. Every node reads from every shard (a global batch is drawn from all of
them), so all are copied; those without room are links to where they are. Whoever made the staging
folder removes it (slurm/task.sh).
"""

from __future__ import annotations

import errno
import hashlib
import shutil
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from shards.errors import ManifestError
from shards.manifest import MANIFEST_FILE, Manifest, ShardInfo, read_manifest
from shards.storage.cache import LOCK, locked
from shards.summary import SUMMARY_FILE

FREE_SHARE = 0.9
_BLOCK = 8 << 20
_THREADS = 4
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_WAIT_S = 24 * 3600.0  # for the process that copies: terabytes take hours


def stage(manifest: Manifest, root: Path, limit_bytes: int | None = None) -> Manifest:
    """Copy a packed folder below `root`, unless another process of this node has done so.

    Args:
        manifest: The folder's manifest.
        root: A folder on the node's own disk.
        limit_bytes: Room for all staged folders; None: nine tenths of what is free. Shards beyond
            it become links.

    Returns:
        The manifest of the copy.

    Raises:
        ManifestError: A shard differs from its manifest, or the disk cannot be used.
    """
    # By content: the same set from two places is copied once.
    copy = root / manifest.digest[:16]
    try:
        with locked(root / f"{copy.name}{LOCK}", _WAIT_S):
            if not copy.exists():
                _copy(manifest, copy, _room(root, limit_bytes))
    except OSError as error:
        raise ManifestError(
            f"{root}: shards cannot be staged there ({error.strerror or error}); name another "
            "folder, or unset COLORGAN_STAGE_DIR."
        ) from error

    # The copy of a manifest still has the locations of shards made elsewhere.
    staged = read_manifest(copy, check_files=False)
    shards = [shard.model_copy(update={"location": ""}) for shard in staged.shards]

    return staged.model_copy(update={"shards": tuple(shards)})


def _room(root: Path, limit_bytes: int | None) -> int:
    """Return how many bytes of shards may still be copied below `root`."""
    free = int(shutil.disk_usage(root).free * FREE_SHARE)
    if limit_bytes is None:
        return free

    # lstat: links take no room.
    used = sum(path.lstat().st_size for path in root.glob("*/*.tar"))
    return min(free, limit_bytes - used)


def _copy(manifest: Manifest, copy: Path, room: int) -> None:
    """Fill a folder under a temporary name, rename it, and print how much was copied."""
    partial = copy.with_name(f".{copy.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()

    start = time.monotonic()
    for name in (MANIFEST_FILE, manifest.samples_file.file):
        shutil.copyfile(manifest.folder / name, partial / name)
    if (manifest.folder / SUMMARY_FILE).exists():
        shutil.copyfile(manifest.folder / SUMMARY_FILE, partial / SUMMARY_FILE)

    fitting = []
    for shard in manifest.shards:
        room -= shard.bytes
        if room >= 0:
            fitting.append(shard)
        else:
            _link(manifest.shard_path(shard), partial / shard.file)

    with ThreadPoolExecutor(_THREADS) as pool:
        sizes = list(pool.map(lambda shard: _copy_shard(manifest, shard, partial), fitting))
    # Only when all is there: the name is what other processes wait for.
    partial.rename(copy)
    _print_summary(manifest, copy, sizes, time.monotonic() - start)


def _print_summary(manifest: Manifest, copy: Path, sizes: list[int], seconds: float) -> None:
    num_shards = len(manifest.shards)
    num_copied = sum(size > 0 for size in sizes)
    megabytes = sum(sizes) / 1e6

    text = (
        f"[node {socket.gethostname()}] staged {manifest.folder} to {copy}: {num_copied} of "
        f"{num_shards} shards, {megabytes:,.1f} MB in {seconds:.1f} s "
        f"({megabytes / max(seconds, 1e-9):,.0f} MB/s), sha256 checked"
    )
    if num_copied < num_shards:
        text += f"; no room for {num_shards - num_copied}, read where they are"
    print(text, flush=True)


def _copy_shard(manifest: Manifest, shard: ShardInfo, folder: Path) -> int:
    """Copy one shard and return its bytes; 0 if the disk was full and it is a link now."""
    source, target = manifest.shard_path(shard), folder / shard.file
    digest = ""
    for _ in range(2):  # a network file system may have had a bad moment
        try:
            digest, size = _copy_file(source, target)
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
            # Half a shard; the room is needed by others.
            target.unlink(missing_ok=True)
            _link(source, target)
            return 0
        if digest == shard.sha256:
            return size

    raise ManifestError(
        f"{source}: its sha256 is {digest[:12]}, the manifest has {shard.sha256[:12]}. Check the "
        f"folder with python launcher/pack.py --verify {manifest.folder}, and pack the shard again "
        "with --only NUMBER."
    )


def _copy_file(source: Path, target: Path) -> tuple[str, int]:
    """Copy one file; return its sha256 and size."""
    digest, size = hashlib.sha256(), 0
    with source.open("rb") as read, target.open("wb") as write:
        while block := read.read(_BLOCK):
            digest.update(block)
            size += write.write(block)
    return digest.hexdigest(), size


def _link(source: Path, target: Path) -> None:
    target.symlink_to(source.resolve())
