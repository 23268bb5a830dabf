"""The manifest of a packed folder: plain data that says what the shards hold and where each sample lies.

Written last by shards/packing/pack.py; the one thing that loading and training need to know of a corpus.

    manifest.json    classes, image policy, and per shard its samples, bytes and sha256
    samples.npy      one row of SAMPLE_DTYPE a sample, in shard order, read by memory mapping
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from shards.errors import ManifestError

SCHEMA_VERSION = 1
MANIFEST_FILE = "manifest.json"
SAMPLES_FILE = "samples.npy"
REJECTED_FILE = "rejected.jsonl"

# Offsets are those of a member's data in its tar; crc is zlib.crc32 of that data; mask_size 0 means no mask.
VOID = 255  # in stored masks: no class
SAMPLE_DTYPE = np.dtype(
    [
        ("shard", "<u4"),
        ("width", "<u4"),
        ("height", "<u4"),
        ("image_offset", "<u8"),
        ("image_size", "<u4"),
        ("image_crc", "<u4"),
        ("label_offset", "<u8"),
        ("label_size", "<u4"),
        ("label_crc", "<u4"),
        ("mask_offset", "<u8"),
        ("mask_size", "<u4"),
        ("mask_crc", "<u4"),
    ]
)


def _plain_file_name(name: str) -> str:
    """Refuse anything but a file name in the manifest's own folder: a manifest may come from a stranger."""
    if not name or name in (".", "..") or any(mark in name for mark in "/\\\0"):
        raise ValueError(f"{name!r} is not a plain file name")
    return name


class _Plain(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class FileInfo(_Plain):
    """A file beside the manifest, with what it must weigh and hash to."""

    file: str
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")

    _check_file = field_validator("file")(_plain_file_name)


class ShardInfo(_Plain):
    """One tar file of the set."""

    file: str
    samples: int = Field(ge=0)
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")

    _check_file = field_validator("file")(_plain_file_name)


class Manifest(_Plain):
    """What stands in manifest.json, and where it was read (`folder`, `digest`: not part of the file).

    `digest` is the sha256 of manifest.json's bytes: it names the set, byte for byte.
    """

    schema_version: int = SCHEMA_VERSION
    name: str
    corpus: str
    split: str
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    has_masks: bool
    image_policy: str
    jpeg_quality: int
    chroma_subsampling: str
    num_samples: int = Field(ge=0)
    num_rejected: int = Field(ge=0)
    samples_file: FileInfo
    shards: tuple[ShardInfo, ...]
    folder: Path = Field(default=Path(), exclude=True)
    digest: str = Field(default="", exclude=True)

    @model_validator(mode="after")
    def _counts_agree(self) -> Self:
        promised = sum(shard.samples for shard in self.shards)
        if promised != self.num_samples:
            raise ValueError(f"num_samples is {self.num_samples}, the shards add up to {promised}")
        return self

    def samples(self) -> NDArray[np.void]:
        """The table of samples, memory-mapped: `num_samples` rows of SAMPLE_DTYPE in shard order.

        Raises:
            ManifestError: The table is missing, is no such table, or has another number of rows.
        """
        path = self.folder / self.samples_file.file
        try:
            table: NDArray[np.void] = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise ManifestError(
                f"{path}: the table of samples cannot be read ({error}). {REPAIR}"
            ) from error
        if table.dtype != SAMPLE_DTYPE or table.shape != (self.num_samples,):
            raise ManifestError(
                f"{path}: the table of samples should have {self.num_samples} rows of "
                f"{SAMPLE_DTYPE.itemsize} bytes, it has shape {table.shape} and {table.dtype.itemsize} bytes "
                f"a row. {REPAIR}"
            )
        return table

    def to_bytes(self) -> bytes:
        """The content of manifest.json; the same manifest always gives the same bytes."""
        return (self.model_dump_json(indent=1) + "\n").encode()


REPAIR = (
    "Check it with python launcher/pack.py --verify DIR; --only NUMBER packs a damaged shard again."
)


def write_manifest(manifest: Manifest, folder: Path) -> Manifest:
    """Write manifest.json atomically and return the manifest as `read_manifest` would."""
    content = manifest.to_bytes()
    temporary = folder / f".{MANIFEST_FILE}.tmp"
    with temporary.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(folder / MANIFEST_FILE)
    return manifest.model_copy(
        update={"folder": folder, "digest": hashlib.sha256(content).hexdigest()}
    )


def read_manifest(folder: Path, *, check_files: bool = True) -> Manifest:
    """Read and validate the manifest of a packed folder.

    Args:
        folder: A folder that launcher/pack.py has written.
        check_files: Also look that each shard and the table of samples are there and not too short
            (one `stat` a shard); off for shards that lie elsewhere.

    Raises:
        ManifestError: Not a packed folder, written by a newer version, wrong or hostile values, counts
            that disagree, or files that are missing or shorter than promised.
    """
    manifest = parse_manifest(_read_bytes(folder), folder / MANIFEST_FILE, folder)
    if check_files:
        _check_files(manifest)
    return manifest


def parse_manifest(content: bytes, where: Path | str, folder: Path) -> Manifest:
    """Validate manifest.json's bytes.

    Args:
        where: What errors name: the file or URL the bytes came from.
        folder: Where the set's files lie.

    Raises:
        ManifestError: Written by a newer version, wrong or hostile values, or counts that disagree.
    """
    _check_version(where, content)
    try:
        manifest = Manifest.model_validate_json(content)
    except ValidationError as error:
        raise ManifestError(_in_one_sentence(where, error)) from error
    return manifest.model_copy(
        update={"folder": folder, "digest": hashlib.sha256(content).hexdigest()}
    )


def _read_bytes(folder: Path) -> bytes:
    if not folder.is_dir():
        raise ManifestError(
            f"{folder}: no such folder; pack a data set there with python launcher/pack.py."
        )
    try:
        return (folder / MANIFEST_FILE).read_bytes()
    except FileNotFoundError as error:
        raise ManifestError(
            f"{folder}: no {MANIFEST_FILE} in it, so it is no packed data set, or its packing has not "
            "finished; run the same python launcher/pack.py line (again)."
        ) from error
    except OSError as error:
        raise ManifestError(
            f"{folder / MANIFEST_FILE}: cannot be read ({error.strerror})."
        ) from error


def _check_version(path: Path | str, content: bytes) -> None:
    try:
        document: Any = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"{path}: not JSON ({error}). {REPAIR}") from error
    version = document.get("schema_version") if isinstance(document, dict) else None
    if not isinstance(version, int) or version < 1:
        raise ManifestError(
            f"{path}: schema_version is {version!r}, so this is no manifest of ours. {REPAIR}"
        )
    if version > SCHEMA_VERSION:
        raise ManifestError(
            f"{path}: written by a newer colorgan (schema_version {version}, this one reads up to "
            f"{SCHEMA_VERSION}); update colorgan, or pack the data again with this one."
        )


def _in_one_sentence(path: Path | str, error: ValidationError) -> str:
    problems = error.errors(include_url=False)
    first = problems[0]
    key = ".".join(str(part) for part in first["loc"])
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    where = f"{key}: " if key else ""
    return f"{path}: {where}{first['msg'].removeprefix('Value error, ')}{more}. {REPAIR}"


def _check_files(manifest: Manifest) -> None:
    files = [(shard.file, shard.bytes) for shard in manifest.shards]
    files.append((manifest.samples_file.file, manifest.samples_file.bytes))
    for name, promised in files:
        path = manifest.folder / name
        try:
            size = path.stat().st_size
        except OSError as error:
            raise ManifestError(
                f"{path}: promised by the manifest, but missing. {REPAIR}"
            ) from error
        if size < promised:
            raise ManifestError(
                f"{path}: {size} bytes, shorter than the {promised} that the manifest promises. {REPAIR}"
            )
    manifest.samples()
