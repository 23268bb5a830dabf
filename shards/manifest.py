"""The manifest of a packed folder: plain data about its shards and where each sample is in them.

The one thing that loading and training need to know of a corpus. Packing and indexing write it
last.

    manifest.json    classes, image policy, and per shard its samples, bytes and sha256
    samples.npy      one row per sample (shards/samples_table.py)

A set is packed or indexed. A packed set's shards are our own (shards/packing/pack.py). An indexed
set's shards were made elsewhere and stay where they are (shards/packing/indexing.py); its manifest
differs in this:

    shards[].location    absolute path or URL of the tar; without it, the tar is beside the manifest
    image_formats        what the image members are: "jpeg", "png", "webp"; told apart by their
                         first bytes
    label_format         what the label members are: "cls" (an integer as text) or "json:FIELD"
                         (shards/foreign_labels.py reads both); without it, the packer's own JSON
"""

import hashlib
import json
import re
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from shards.errors import ManifestError
from shards.files import replacing
from shards.samples_table import read_samples
from shards.summary import Summary, read_summary

SCHEMA_VERSION = 2
PACKED_VERSION = 1  # packed sets are still written as version 1, which older releases read
MANIFEST_FILE = "manifest.json"
INDEXED_POLICY = "original"
ImageFormat = Literal["jpeg", "png", "webp"]
IMAGE_FORMATS: tuple[ImageFormat, ...] = ("jpeg", "png", "webp")
ADDED_FIELDS = ("image_formats", "label_format")  # absent from the file where they have the default

REPAIR = (
    "Check it with python launcher/pack.py --verify DIR; --only NUMBER packs a damaged shard again."
)


def _plain_file_name(name: str) -> str:
    """Refuse anything but a file name in the manifest's own folder: a manifest may be hostile."""
    if not name or name in (".", "..") or any(mark in name for mark in "/\\\0"):
        raise ValueError(f"{name!r} is not a plain file name")
    return name


class _Plain(BaseModel):
    # Strict: "5" for 5 or an unknown key means that another tool wrote the file.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class FileInfo(_Plain):
    """A file beside the manifest, with its promised size and digest."""

    file: str
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")

    _check_file = field_validator("file")(_plain_file_name)


class ShardInfo(_Plain):
    """One tar file of the set.

    `file` is its name, unique in the set. `location` is where it is if not beside the manifest: an
    absolute path or a URL.
    """

    file: str
    samples: int = Field(ge=0)
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    location: str = ""

    _check_file = field_validator("file")(_plain_file_name)

    @field_validator("location")
    @classmethod
    def _check_location(cls, location: str) -> str:
        # A relative path would mean another place in each process.
        if location and not re.match(r"/|[a-z0-9]+://[^/]", location):
            raise ValueError(f"{location!r} is neither an absolute path nor a URL")
        if "\0" in location:
            raise ValueError(f"{location!r} holds a zero byte")
        return location

    @property
    def is_remote(self) -> bool:
        """True if the shard is behind a URL."""
        return "://" in self.location


class Manifest(_Plain):
    """The content of manifest.json; `folder` and `digest` (where it was read) are not in the file.

    `digest` is the sha256 of manifest.json's bytes: it names the set, byte for byte.
    """

    schema_version: int = PACKED_VERSION
    name: str
    corpus: str
    split: str
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    has_masks: bool
    image_policy: str
    jpeg_quality: int
    chroma_subsampling: str
    image_formats: tuple[ImageFormat, ...] = ("jpeg",)
    label_format: str = Field("", pattern=r"^(|cls|json:.{1,200})$")
    num_samples: int = Field(ge=0)
    num_rejected: int = Field(ge=0)
    samples_file: FileInfo
    shards: tuple[ShardInfo, ...]
    folder: Path = Field(default=Path(), exclude=True)
    digest: str = Field(default="", exclude=True)

    @model_validator(mode="after")
    def _counts_agree(self) -> Self:
        # Checked here, as the order of samples is computed from these numbers alone.
        promised = sum(shard.samples for shard in self.shards)
        if promised != self.num_samples:
            raise ValueError(f"num_samples is {self.num_samples}, the shards add up to {promised}")
        return self

    @property
    def is_indexed(self) -> bool:
        """True if the shards were made elsewhere."""
        # Only indexing needs what version 2 adds.
        return self.schema_version > PACKED_VERSION

    def shard_path(self, shard: ShardInfo) -> Path:
        """Return the local path of a shard; behind a URL, its place in the folder or cache."""
        if shard.location and not shard.is_remote:
            return Path(shard.location)
        return self.folder / shard.file

    def samples(self) -> NDArray[np.void]:
        """Return the table of samples, memory-mapped: rows of SAMPLE_DTYPE in shard order.

        Raises:
            ManifestError: The table is missing, is not a table of samples, or has another number of
                rows.
        """
        return read_samples(self.folder / self.samples_file.file, self.num_samples, REPAIR)

    def summary(self) -> Summary | None:
        """Return the counts of summary.json; None for a set without one."""
        return read_summary(self.folder)

    def to_bytes(self) -> bytes:
        """Return the content of manifest.json; the same manifest always gives the same bytes."""
        # Fields that are newer than a set are left out where they change nothing: its digest stays.
        defaults = {name for name in ADDED_FIELDS if getattr(self, name) == _default_of(name)}
        without: dict[str, Any] = dict.fromkeys(defaults, True)

        local = {
            number: {"location"} for number, shard in enumerate(self.shards) if not shard.location
        }
        if local:
            without["shards"] = local

        return (self.model_dump_json(indent=1, exclude=without) + "\n").encode()


def _default_of(name: str) -> Any:
    return Manifest.model_fields[name].default


def write_manifest(manifest: Manifest, folder: Path) -> Manifest:
    """Write manifest.json atomically and return the manifest as `read_manifest` would.

    Raises:
        PackError: The disk is full, read-only or gone.
    """
    content = manifest.to_bytes()
    with replacing(folder / MANIFEST_FILE) as temporary:
        temporary.write_bytes(content)

    digest = hashlib.sha256(content).hexdigest()
    return manifest.model_copy(update={"folder": folder, "digest": digest})


def read_manifest(folder: Path, *, check_files: bool = True) -> Manifest:
    """Read and validate the manifest of a packed folder.

    Args:
        folder: A folder that launcher/pack.py has written.
        check_files: Also check that each shard and the table of samples exist and are not too short
            (one `stat` per shard); off for shards that are elsewhere.

    Raises:
        ManifestError: Not a packed folder, written by a newer version, wrong or hostile values,
            counts that disagree, or files that are missing or shorter than promised.
    """
    manifest = parse_manifest(_read_bytes(folder), folder / MANIFEST_FILE, folder)
    if check_files:
        _check_files(manifest)
    return manifest


def parse_manifest(content: bytes, where: Path | str, folder: Path) -> Manifest:
    """Validate manifest.json's bytes.

    Args:
        content: The bytes, of any origin.
        where: Names the file or URL of the bytes in errors.
        folder: The set's folder.

    Raises:
        ManifestError: Written by a newer version, wrong or hostile values, or counts that disagree.
    """
    # Before the schema, which would list every field that a newer version has added.
    _check_version(where, content)
    try:
        manifest = Manifest.model_validate_json(content)
    except ValidationError as error:
        raise ManifestError(_in_one_sentence(where, error)) from error

    digest = hashlib.sha256(content).hexdigest()
    return manifest.model_copy(update={"folder": folder, "digest": digest})


def _read_bytes(folder: Path) -> bytes:
    if folder.is_file() and folder.suffix in (".tar", ".tgz"):
        raise ManifestError(
            f"{folder}: a tar file; name the packed folder that holds it. Shards made elsewhere "
            "are made usable by python launcher/pack.py --index SHARDS --out DIR."
        )
    if not folder.is_dir():
        raise ManifestError(
            f"{folder}: no such folder; pack a data set there with python launcher/pack.py."
        )
    try:
        return (folder / MANIFEST_FILE).read_bytes()
    except FileNotFoundError as error:
        raise ManifestError(_no_manifest(folder)) from error
    except OSError as error:
        raise ManifestError(
            f"{folder / MANIFEST_FILE}: cannot be read ({error.strerror})."
        ) from error


def _no_manifest(folder: Path) -> str:
    # Shards without a manifest: a set of another tool is a likelier cause than an unfinished one.
    tars = next(folder.glob("*.tar"), None)
    if tars is not None and not (folder / "packing.json").exists():
        return (
            f"{folder}: no {MANIFEST_FILE} in it; its shards were made elsewhere. Make them usable "
            f"with python launcher/pack.py --index {folder} --out DIR, then name DIR."
        )
    return (
        f"{folder}: no {MANIFEST_FILE} in it, so it is not a packed data set, or its packing has "
        "not finished; rerun the same python launcher/pack.py command."
    )


def _check_version(path: Path | str, content: bytes) -> None:
    try:
        document: Any = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"{path}: not JSON ({error}). {REPAIR}") from error

    version = document.get("schema_version") if isinstance(document, dict) else None
    if not isinstance(version, int) or version < 1:
        raise ManifestError(
            f"{path}: schema_version is {version!r}, so this is not one of our manifests. {REPAIR}"
        )
    if version > SCHEMA_VERSION:
        raise ManifestError(
            f"{path}: written by a newer colorgan (schema_version {version}, this one reads up to "
            f"{SCHEMA_VERSION}); update colorgan, or pack the data again with this one."
        )


def _in_one_sentence(path: Path | str, error: ValidationError) -> str:
    # The first of many: a user can mend one thing at a time.
    problems = error.errors(include_url=False)
    first = problems[0]
    key = ".".join(str(part) for part in first["loc"])
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    where = f"{key}: " if key else ""
    return f"{path}: {where}{first['msg'].removeprefix('Value error, ')}{more}. {REPAIR}"


def _check_files(manifest: Manifest) -> None:
    for shard in manifest.shards:
        if not shard.is_remote:
            _check_size(manifest.shard_path(shard), shard.bytes)

    table = manifest.samples_file
    _check_size(manifest.folder / table.file, table.bytes)
    manifest.samples()


def _check_size(path: Path, promised: int) -> None:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise ManifestError(f"{path}: promised by the manifest, but missing. {REPAIR}") from error

    # Longer is allowed: some file systems pad, and each member has its checksum.
    if size < promised:
        raise ManifestError(
            f"{path}: {size} bytes, shorter than the {promised} that the manifest promises. "
            f"{REPAIR}"
        )
