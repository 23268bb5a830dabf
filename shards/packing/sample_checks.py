"""One sample of a shard checked against the manifest: headers, checksums, decoded members.

Images are judged by shards/images/photo.py, as when they are packed.
"""

from __future__ import annotations

import io
import json
import tarfile
import zlib
from dataclasses import dataclass

import numpy as np
from PIL import Image

from shards.errors import PictureError
from shards.foreign_labels import class_indices
from shards.images.headers import image_header, is_loadable
from shards.images.photo import decoding, open_photo
from shards.images.policy import MAX_PIXELS_LIMIT
from shards.manifest import Manifest
from shards.packing.samples import MEMBERS
from shards.records import VOID
from shards.storage.tar_reader import BLOCK


@dataclass(frozen=True)
class SampleCheck:
    """What was found of one sample; `key` is empty if its headers cannot be read."""

    key: str
    faults: tuple[str, ...]


def check_sample(manifest: Manifest, row: np.void, data: memoryview) -> SampleCheck:
    """Check one sample.

    Args:
        manifest: Of the set.
        row: The sample's row of the table.
        data: The bytes of its shard.
    """
    faults: list[str] = []
    keys: list[str] = []

    for name, extension in MEMBERS:
        offset, size = int(row[f"{name}_offset"]), int(row[f"{name}_size"])
        if size == 0:
            if _is_needed(manifest, name):
                faults.append(f"{name} is missing")
            continue
        # Before slicing: a slice beyond the end would silently be shorter.
        if offset < BLOCK or offset + size > len(data):
            faults.append(f"{name} lies beyond the end of the shard")
            continue

        key, fault = "", ""
        # Shards made elsewhere have headers of any kind; ours have one form.
        if not manifest.is_indexed:
            key, fault = _check_header(bytes(data[offset - BLOCK : offset]), extension, size)
            keys.append(key)

        content = bytes(data[offset : offset + size])
        if zlib.crc32(content) != row[f"{name}_crc"]:
            fault = "checksum differs"
        # A wrong checksum says enough: what such bytes decode to means nothing.
        fault = fault or _content_fault(manifest, row, name, content, key)
        if fault:
            faults.append(f"{name}: {fault}")

    # Members of two samples side by side would pass every other check.
    known = sorted({key for key in keys if key})
    if len(known) > 1:
        faults.append(f"its members have different keys: {', '.join(known)}")
    return SampleCheck(next((key for key in keys if key), ""), tuple(faults))


def _is_needed(manifest: Manifest, name: str) -> bool:
    if name == "mask":
        return manifest.has_masks
    if name == "label":
        return not manifest.is_indexed or bool(manifest.label_format)
    return True


def _check_header(header: bytes, extension: str, size: int) -> tuple[str, str]:
    """Return a member's key, empty if the header is damaged, and its fault."""
    try:
        # By tarfile, not by our own writer: two readings that agree are worth more than one.
        info = tarfile.TarInfo.frombuf(header, "ascii", "strict")
    except (tarfile.TarError, ValueError) as error:
        return "", f"tar header is damaged ({error})"

    key, _, ending = info.name.partition(".")
    if ending != extension or info.size != size or not info.isreg():
        stated = f"{info.name} of {info.size} bytes"
        return key, f"tar header says {stated}, the manifest .{extension} of {size}"
    return key, ""


def _content_fault(manifest: Manifest, row: np.void, name: str, content: bytes, key: str) -> str:
    """Return what is wrong with a member whose checksum is right; empty if nothing is."""
    try:
        if name == "label":
            return _label_fault(manifest, content, key)
        if name == "mask":
            return _mask_fault(manifest, row, content)
        return _image_fault(manifest, row, content)
    except (PictureError, ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        reason = str(error)
        return reason if reason.startswith("cannot be decoded") else f"cannot be decoded ({reason})"


def _label_fault(manifest: Manifest, content: bytes, key: str) -> str:
    if manifest.label_format:
        class_indices(content, manifest.label_format, manifest.classes)
        return ""

    label = json.loads(content)
    if key and label["key"] != key:
        return f"is that of {label['key']}"

    num_classes = len(manifest.classes)
    bad = [index for index in label.get("classes", []) if not 0 <= index < num_classes]
    return f"class {bad[0]} is none of the {num_classes} classes" if bad else ""


def _image_fault(manifest: Manifest, row: np.void, content: bytes) -> str:
    if image_header(content) is None:
        names = " or ".join(name.upper() for name in manifest.image_formats)
        return f"cannot be decoded (it is no {names})"

    with decoding():
        photo = open_photo(content, MAX_PIXELS_LIMIT)
        fault = _size_fault(photo.image.size, row)
        if fault:
            return fault
        # Decoded in full: headers say nothing about the pixels behind them.
        photo.image.load()

    return "" if is_loadable(content) else "is not an 8-bit grey or RGB image that training reads"


def _mask_fault(manifest: Manifest, row: np.void, content: bytes) -> str:
    with decoding():
        image = Image.open(io.BytesIO(content), formats=["PNG"])
        fault = _size_fault(image.size, row)
        if fault or image.mode != "L":
            return fault or f"pixels of mode {image.mode}"
        image.load()
        values = np.asarray(image)

    # Indices above the classes would fail in the loss, hours later.
    highest = int(values[values != VOID].max(initial=0))
    if highest > len(manifest.classes):
        return f"holds index {highest}, above the {len(manifest.classes)} classes"
    return ""


def _size_fault(size: tuple[int, int], row: np.void) -> str:
    expected = int(row["width"]), int(row["height"])
    if size == expected:
        return ""
    return f"{size[0]} x {size[1]}, the manifest says {expected[0]} x {expected[1]}"
