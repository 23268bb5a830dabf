"""Check a packed folder against its manifest: `launcher/pack.py --verify DIR`.

Per shard: its size and sha256, and DALI's index; per sample: the tar headers, the crc32 of each
member, and that picture, label and mask decode to what the manifest promises. Every bad sample is
named.
"""

import hashlib
import io
import json
import mmap
import tarfile
import warnings
import zlib
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from shards.manifest import Manifest, ShardInfo, read_manifest
from shards.packing.samples import MEMBERS, member_spans
from shards.packing.tar import BLOCK, dali_index, index_line
from shards.packing.workers import new_pool
from shards.records import VOID
from shards.rejections import REJECTED_FILE


@dataclass(frozen=True)
class BadSample:
    """One sample and all that is wrong with it; `key` is empty where its headers cannot be read."""

    shard: str
    index: int  # in the set
    key: str
    faults: tuple[str, ...]

    def __str__(self) -> str:
        name = self.key or "(key unreadable)"
        return f"{self.shard}: {name} (sample {self.index:,}): {'; '.join(self.faults)}"


@dataclass
class ShardCheck:
    """What is wrong with one shard, or with the files beside the shards where `shard` is their name."""

    shard: str
    samples: int = 0
    faults: list[str] = field(default_factory=list)
    bad_samples: list[BadSample] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        """Nothing is wrong."""
        return not self.faults and not self.bad_samples


def verify(folder: Path, *, workers: int = 1) -> Iterator[ShardCheck]:
    """Check everything in a packed folder; first the tables, then each shard in order.

    Args:
        workers: Processes, one shard each; 0 works in this one.

    Raises:
        ManifestError: The manifest itself, or its table of samples, cannot be read.
    """
    manifest = read_manifest(folder, check_files=False)
    manifest.samples()
    yield from _check_tables(manifest)
    numbers = range(len(manifest.shards))
    if workers == 0:
        yield from (check_shard(folder, number) for number in numbers)
        return
    with new_pool(workers) as pool:
        checks = [pool.submit(check_shard, folder, number) for number in numbers]
        for check, shard in zip(checks, manifest.shards, strict=True):
            try:
                yield check.result()
            except BrokenProcessPool:
                # The pool is gone: this shard, and those behind it, were not checked.
                yield ShardCheck(
                    shard.file, 0, ["a worker died, so it was not checked; try --workers 1"]
                )


def _check_tables(manifest: Manifest) -> Iterator[ShardCheck]:
    table = manifest.folder / manifest.samples_file.file
    with table.open("rb") as stream:
        if hashlib.file_digest(stream, "sha256").hexdigest() != manifest.samples_file.sha256:
            yield ShardCheck(table.name, 0, ["sha256 is not the manifest's"])
    counts = np.bincount(manifest.samples()["shard"], minlength=len(manifest.shards))
    expected = [shard.samples for shard in manifest.shards]
    if (
        list(counts) != expected
        or not (np.diff(manifest.samples()["shard"].astype(np.int64)) >= 0).all()
    ):
        yield ShardCheck(
            table.name, 0, ["its samples do not lie in the shards as the manifest counts them"]
        )
    try:
        with (manifest.folder / REJECTED_FILE).open("rb") as stream:
            lines = sum(1 for _ in stream)
        if lines != manifest.num_rejected:
            fault = f"{lines} lines, the manifest says {manifest.num_rejected} were rejected"
            yield ShardCheck(REJECTED_FILE, 0, [fault])
    except OSError as error:
        yield ShardCheck(REJECTED_FILE, 0, [f"cannot be read ({error.strerror})"])


def check_shard(folder: Path, number: int) -> ShardCheck:
    """Check one shard; done in a worker, which opens the manifest by itself."""
    manifest = read_manifest(folder, check_files=False)
    info = manifest.shards[number]
    first = [0, *accumulate(shard.samples for shard in manifest.shards)][number]
    rows = manifest.samples()[first : first + info.samples]
    check = ShardCheck(info.file, info.samples)
    try:
        with (folder / info.file).open("rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != info.sha256:
                check.faults.append("sha256 is not the manifest's")
            size = stream.seek(0, io.SEEK_END)
            if size != info.bytes:
                check.faults.append(f"{size:,} bytes, the manifest says {info.bytes:,}")
            if size == 0:
                return check
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
                keys = _check_samples(manifest, info, rows, first, memoryview(data), check)
    except OSError as error:
        check.faults.append(f"cannot be read ({error.strerror or error})")
        return check
    if not check.bad_samples:
        _check_index(folder / info.file, rows, keys, check)
    return check


def _check_index(tar: Path, rows: NDArray[np.void], keys: list[str], check: ShardCheck) -> None:
    index = tar.with_suffix(".idx")
    lines = [index_line(key, member_spans(row)) for key, row in zip(keys, rows, strict=True)]
    try:
        if index.read_text() != dali_index(lines, len(lines)):
            check.faults.append(f"{index.name} is not the index of these samples")
    except (OSError, UnicodeDecodeError) as error:
        check.faults.append(f"{index.name} cannot be read ({error})")


def _check_samples(
    manifest: Manifest,
    info: ShardInfo,
    rows: NDArray[np.void],
    first: int,
    data: memoryview,
    check: ShardCheck,
) -> list[str]:
    """Check each sample, and return the keys that the tar headers give."""
    keys = []
    with data:
        for index, row in enumerate(rows, first):
            key, faults = _check_sample(manifest, row, data)
            keys.append(key)
            if faults:
                check.bad_samples.append(BadSample(info.file, index, key, tuple(faults)))
    return keys


def _check_sample(manifest: Manifest, row: np.void, data: memoryview) -> tuple[str, list[str]]:
    """A sample's key by its first readable header, and its faults."""
    faults: list[str] = []
    keys = []
    for name, extension in MEMBERS:
        offset, size = int(row[f"{name}_offset"]), int(row[f"{name}_size"])
        if size == 0:
            if name != "mask" or manifest.has_masks:
                faults.append(f"{name} is missing")
            continue
        if offset < BLOCK or offset + size > len(data):
            faults.append(f"{name} lies beyond the end of the shard")
            continue
        key, fault = _check_header(bytes(data[offset - BLOCK : offset]), extension, size)
        keys.append(key)
        content = bytes(data[offset : offset + size])
        if zlib.crc32(content) != row[f"{name}_crc"]:
            fault = "checksum differs"
        fault = fault or _content_fault(manifest, row, name, content, key)
        if fault:
            faults.append(f"{name}: {fault}")
    known = [key for key in keys if key]
    if len(set(known)) > 1:
        faults.append(f"its members have different keys: {', '.join(sorted(set(known)))}")
    return (known[0] if known else ""), faults


def _check_header(header: bytes, extension: str, size: int) -> tuple[str, str]:
    """A member's key, empty where the header is damaged, and its fault."""
    try:
        info = tarfile.TarInfo.frombuf(header, "ascii", "strict")
    except (tarfile.TarError, ValueError) as error:
        return "", f"tar header is damaged ({error})"
    key, _, ending = info.name.partition(".")
    if ending != extension or info.size != size or not info.isreg():
        return (
            key,
            f"tar header says {info.name} of {info.size} bytes, the manifest .{extension} of "
            f"{size}",
        )
    return key, ""


def _content_fault(manifest: Manifest, row: np.void, name: str, content: bytes, key: str) -> str:
    """What is wrong with a member whose bytes are the packer's; empty where nothing is."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if name == "label":
                return _label_fault(manifest, content, key)
            return _picture_fault(manifest, row, name, content)
    except UnidentifiedImageError:
        return f"cannot be decoded (it is no {'PNG' if name == 'mask' else 'JPEG'})"
    except Exception as error:  # PIL's decoders raise nearly every type there is on damaged files
        return f"cannot be decoded ({error})"


def _label_fault(manifest: Manifest, content: bytes, key: str) -> str:
    label = json.loads(content)
    if key and label["key"] != key:
        return f"is that of {label['key']}"
    bad = [index for index in label.get("classes", []) if not 0 <= index < len(manifest.classes)]
    return f"class {bad[0]} is none of the {len(manifest.classes)} classes" if bad else ""


def _picture_fault(manifest: Manifest, row: np.void, name: str, content: bytes) -> str:
    is_mask = name == "mask"
    image = Image.open(io.BytesIO(content), formats=["PNG" if is_mask else "JPEG"])
    expected = int(row["width"]), int(row["height"])
    if image.size != expected:
        return f"{image.size[0]} x {image.size[1]}, the manifest says {expected[0]} x {expected[1]}"
    if image.mode not in (("L",) if is_mask else ("RGB", "L")):
        return f"pixels of mode {image.mode}"
    image.load()
    if is_mask:
        values = np.asarray(image)
        highest = int(values[values != VOID].max(initial=0))
        if highest > len(manifest.classes):
            return f"holds index {highest}, above the {len(manifest.classes)} classes"
    return ""
