"""Reads one sample's members by offset and checks them against the manifest."""

from __future__ import annotations

import time
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shards.errors import ShardError
from shards.foreign_labels import class_indices
from shards.images.headers import Header, image_header, jpeg_has_end, mask_header
from shards.loading.labels import (
    ClassVectors,
    Objects,
    class_vectors,
    labelled_objects,
    vectors_of,
)
from shards.loading.shard_set import ShardSet
from shards.storage.retries import READ_RETRIES, RetryPolicy
from shards.storage.shard_files import ReadAt

# The most bytes of a member: 4 per pixel (an uncompressed RGBA image) and room for metadata. A
# table from elsewhere may promise 4 GB per member, which would be read before any checksum fails.
_BYTES_PER_PIXEL = 4
_METADATA_BYTES = 16 << 20


class BadSampleError(ShardError):
    """One sample that cannot be used; the message is the reason, with its file."""


@dataclass(slots=True)
class Members:
    """One sample as read: the bytes of image and mask, and the parsed label."""

    image: bytes
    label: ClassVectors | None
    mask: bytes | None
    objects: Objects | None = None


@dataclass(frozen=True)
class MemberSpec:
    """Which members to read beside the image, and how.

    Attributes:
        classes: Read the label of a set with these classes; None: no label.
        boxes: Parse the label's objects instead of its class vectors.
        mask: Read the mask.
        max_pixels: Larger images are refused before anything is decoded.
        retry: How often a read that ends in an OSError is tried, and after how many seconds
            (`stall_s`) a read that does not return is given up.
    """

    classes: tuple[str, ...] | None = None
    boxes: bool = False
    mask: bool = False
    max_pixels: int = 2**27
    retry: RetryPolicy = READ_RETRIES


def read_members(shards: ShardSet, row: np.void, spec: MemberSpec, read_at: ReadAt) -> Members:
    """Read one sample and check it against the manifest.

    Raises:
        BadSampleError: A read error, a short read, a wrong checksum, a missing mask, an image or
            mask of another size or kind than promised, or an invalid label.
    """
    path = shards.shard_paths[row["shard"]]
    # From the table, before a byte is read.
    _check_num_pixels(path, row, spec.max_pixels)

    image = _read_member(path, row, "image", spec, read_at)
    # The header too: a file with the right checksum may have been packed wrong by another tool.
    _check_image(path, row, image, shards.manifest_of(row).image_formats)
    members = read_labels(shards, row, spec, read_at)
    members.image = image
    return members


def read_labels(shards: ShardSet, row: np.void, spec: MemberSpec, read_at: ReadAt) -> Members:
    """Read one sample's label and mask, not its image, and check them against the manifest.

    Raises:
        BadSampleError: As in `read_members`.
    """
    path = shards.shard_paths[row["shard"]]
    manifest = shards.manifest_of(row)
    members = Members(b"", None, None)

    if spec.classes is not None:
        text = _read_member(path, row, "label", spec, read_at)
        try:
            _parse_label(members, text, row, spec.classes, spec.boxes, manifest.label_format)
        except ValueError as error:
            raise BadSampleError(f"{path.name}: label: {error}") from None

    if spec.mask:
        members.mask = _read_member(path, row, "mask", spec, read_at)
        _check_mask(path, row, members.mask)
    return members


def _check_num_pixels(path: Path, row: np.void, max_pixels: int) -> None:
    width, height = int(row["width"]), int(row["height"])
    if width * height > max_pixels:
        raise BadSampleError(
            f"{path.name}: the image of {width}x{height} has over {max_pixels} pixels"
        )


def _parse_label(
    members: Members,
    text: bytes,
    row: np.void,
    classes: tuple[str, ...],
    boxes: bool,
    label_format: str,
) -> None:
    if label_format:  # a shard made elsewhere: classes only
        indices = class_indices(text, label_format, classes)
        members.label = vectors_of(indices, len(classes))
    elif boxes:
        stored_size = int(row["width"]), int(row["height"])
        members.objects = labelled_objects(text, len(classes), stored_size)
    else:
        members.label = class_vectors(text, len(classes))


def _check_image(path: Path, row: np.void, image: bytes, formats: tuple[str, ...]) -> None:
    header = image_header(image)
    if header is None or header.kind not in formats:
        names = " or ".join(name.upper() if name != "webp" else "WebP" for name in formats)
        raise BadSampleError(f"{path.name}: the image is not an intact {names}")

    # Decoders disagree on the rest: DALI cuts 16 bits down, Pillow may refuse them.
    if header.bits > 8 or header.channels not in (1, 3):
        raise BadSampleError(
            f"{path.name}: the image has {header.bits} bits and {header.channels} channels, not "
            "8-bit grey or RGB; packing converts such images"
        )

    # Decided here, so that the same samples are replaced on a CPU and on a GPU.
    if header.kind == "jpeg" and not jpeg_has_end(image):
        raise BadSampleError(f"{path.name}: the image is cut off before its end")

    _check_size(path, "image", header, row)


def _check_mask(path: Path, row: np.void, mask: bytes) -> None:
    header = mask_header(mask)
    if header is None or header.bits != 8 or header.channels != 1:
        raise BadSampleError(f"{path.name}: the mask is not an 8-bit grey PNG")
    _check_size(path, "mask", header, row)


def _check_size(path: Path, kind: str, header: Header, row: np.void) -> None:
    width, height = int(row["width"]), int(row["height"])
    if (header.width, header.height) != (width, height):
        raise BadSampleError(
            f"{path.name}: the {kind} is {header.width}x{header.height}, the manifest has "
            f"{width}x{height}"
        )


def _read_member(path: Path, row: np.void, name: str, spec: MemberSpec, read_at: ReadAt) -> bytes:
    offset, size, crc = (int(row[f"{name}_{part}"]) for part in ("offset", "size", "crc"))
    if size == 0:
        raise BadSampleError(f"{path.name}: no {name}")

    num_pixels = int(row["width"]) * int(row["height"])
    if size > _BYTES_PER_PIXEL * num_pixels + _METADATA_BYTES:
        raise BadSampleError(
            f"{path.name}: the {name} has {size} bytes, too many for {num_pixels} pixels"
        )

    data = _read_with_retries(path, offset, size, spec.retry, read_at)
    # Short first: the checksum of too few bytes would only say that it differs.
    if len(data) != size:
        raise BadSampleError(
            f"{path.name}: the {name} at byte {offset} ends after {len(data)} of {size} bytes"
        )
    if zlib.crc32(data) != crc:
        raise BadSampleError(
            f"{path.name}: the {name} at byte {offset} has another checksum than in the manifest"
        )
    return data


def _read_with_retries(
    path: Path, offset: int, size: int, retry: RetryPolicy, read_at: ReadAt
) -> bytes:
    for attempt in range(1, retry.num_tries + 1):
        try:
            return read_at(path, offset, size)
        except OSError as error:
            # A missing file stays missing, and a failed fetch was retried by the fetch itself.
            if attempt == retry.num_tries or isinstance(error, FileNotFoundError):
                reason = error.strerror or error
                raise BadSampleError(f"{path.name}: cannot be read ({reason})") from error
            # Growing pauses: a storage server that restarts needs seconds, not another request at
            # once.
            time.sleep(retry.pause_s(attempt))

    raise AssertionError("num_tries is at least 1")
