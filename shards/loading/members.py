"""One sample's bytes, checked."""

from __future__ import annotations

import time
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shards.errors import ShardError
from shards.images.headers import Header, jpeg_header, mask_header
from shards.loading.labels import ClassVectors, Objects, class_vectors, labelled_objects
from shards.loading.shard_set import ShardSet
from shards.storage.shard_files import ReadAt


class BadSampleError(ShardError):
    """One sample that cannot be used; the message is the reason, with the file it lies in."""


@dataclass(slots=True)
class Members:
    """One sample as read: the bytes of picture and mask, and the label's class vectors or objects."""

    image: bytes
    label: ClassVectors | None
    mask: bytes | None
    objects: Objects | None = None


@dataclass(frozen=True)
class MemberSpec:
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


def read_members(shards: ShardSet, row: np.void, wanted: MemberSpec, read_at: ReadAt) -> Members:
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
                objects = labelled_objects(
                    text, wanted.num_classes, (int(row["width"]), int(row["height"]))
                )
            else:
                label = class_vectors(text, wanted.num_classes)
        except ValueError as error:
            raise BadSampleError(f"{path.name}: label: {error}") from None
    if wanted.mask:
        mask = _read_member(path, row, "mask", wanted, read_at)
        _check_header(path, "mask", mask_header(mask), row, (1,), wanted.max_pixels)
    return Members(image, label, mask, objects)


def _check_header(
    path: Path,
    kind: str,
    header: Header | None,
    row: np.void,
    channels: tuple[int, ...],
    max_pixels: int,
) -> None:
    width, height = int(row["width"]), int(row["height"])
    if header is None or header.bits != 8 or header.channels not in channels:
        raise BadSampleError(
            f"{path.name}: {kind} is no 8-bit {'JPEG' if kind == 'picture' else 'grey PNG'}"
        )
    if (header.width, header.height) != (width, height):
        raise BadSampleError(
            f"{path.name}: {kind} is {header.width}x{header.height}, the manifest says {width}x{height}"
        )
    if width * height > max_pixels:
        raise BadSampleError(
            f"{path.name}: {kind} of {width}x{height} has over {max_pixels} pixels"
        )


def _read_member(
    path: Path, row: np.void, member: str, wanted: MemberSpec, read_at: ReadAt
) -> bytes:
    offset, size, crc = (int(row[f"{member}_{part}"]) for part in ("offset", "size", "crc"))
    if size == 0:
        raise BadSampleError(f"{path.name}: no {member}")
    data = _read_patiently(path, offset, size, wanted, read_at)
    if len(data) != size:
        raise BadSampleError(
            f"{path.name}: {member} at byte {offset} ends after {len(data)} of {size} bytes"
        )
    if zlib.crc32(data) != crc:
        raise BadSampleError(
            f"{path.name}: {member} at byte {offset} has another checksum than the manifest says"
        )
    return data


def _read_patiently(
    path: Path, offset: int, size: int, wanted: MemberSpec, read_at: ReadAt
) -> bytes:
    """Try again after an OSError: network file systems fail for a moment and come back."""
    for attempt in range(wanted.num_tries):
        try:
            return read_at(path, offset, size)
        except OSError as error:
            if attempt + 1 == wanted.num_tries or isinstance(error, FileNotFoundError):
                raise BadSampleError(
                    f"{path.name}: cannot be read ({error.strerror or error})"
                ) from error
            time.sleep(wanted.retry_wait_s * 2**attempt)
    raise AssertionError("num_tries is 1 at least")
