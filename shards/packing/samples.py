"""Records -> tar bytes: the packer's work on pictures, done in its worker processes.

shards/packing/pack.py sends chunks of records here and appends what comes back to the shard. A record that
cannot be packed becomes a line of rejected.jsonl; only a failing disk stops the packing.
"""

import errno
import json
import re
import stat
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.errors import PackError, PictureError
from shards.images.conversion import convert_mask, convert_picture
from shards.images.label_frame import LabelFrame, label_frame
from shards.images.policy import Encoding, Geometry
from shards.packing.tar import BLOCK, MAX_NAME, index_line, member
from shards.records import Mask, Record
from shards.samples_table import SAMPLE_DTYPE

MEMBERS = (("image", "jpg"), ("label", "json"), ("mask", "png"))  # in tar order
KEY = re.compile(r"[A-Za-z0-9_-]+")
TO_JSON = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False)
MAX_FILE_BYTES = 1 << 30
READ_TRIES = 3
READ_RETRY_WAIT_S = 1.0
# What is wrong with one file; any other error (EIO, ESTALE, ...) is the disk's: no reason to drop pictures.
FILE_FAULTS = {
    errno.ENOENT: "missing file",
    errno.ENOTDIR: "missing file",
    errno.EACCES: "no permission to read it",
    errno.EPERM: "no permission to read it",
    errno.ELOOP: "a link that leads back to itself",
    errno.ENAMETOOLONG: "its name is too long",
}


@dataclass(frozen=True)
class Job:
    """What the workers need to know beside the records."""

    root: Path
    encoding: Encoding
    num_classes: int


@dataclass
class PackedChunk:
    """Tar bytes of some records, in order, with what the shard's tables say of them."""

    blob: bytes
    rows: NDArray[np.void]  # SAMPLE_DTYPE; offsets from the blob's start, shard 0
    keys: list[str]
    rejected: list[dict[str, str]] = field(default_factory=list)

    def index_lines(self, offset: int) -> list[str]:
        """Lines of DALI's index for a blob that starts at `offset` in its tar."""
        return [
            index_line(key, member_spans(row, offset))
            for key, row in zip(self.keys, self.rows, strict=True)
        ]


def pack_chunk(job: Job, records: Sequence[Record]) -> PackedChunk:
    """Read, convert and encode some records.

    Raises:
        PackError: The disk fails: an error other than a missing or forbidden file, three times over.
    """
    parts: list[bytes] = []
    rows: list[tuple[int, ...]] = []
    keys, rejected = [], []
    position = 0
    for record in records:
        try:
            geometry, members = _pack_record(job, record)
        except PictureError as error:
            rejected.append(rejection(job.root, record, str(error)))
            continue
        spans = [0] * (3 * len(MEMBERS))
        for number, data in enumerate(members):
            spans[3 * number : 3 * number + 3] = position + BLOCK, len(data), zlib.crc32(data)
            parts.append(member(f"{record.key}.{MEMBERS[number][1]}", data))
            position += len(parts[-1])
        rows.append((0, geometry.width, geometry.height, *spans))
        keys.append(record.key)
    return PackedChunk(b"".join(parts), np.array(rows, SAMPLE_DTYPE), keys, rejected)


def join_chunks(
    chunks: Sequence[PackedChunk], rejected: Sequence[dict[str, str]] = ()
) -> PackedChunk:
    """Chunks in a row as one, and further rejections."""
    joined = PackedChunk(b"", np.zeros(0, SAMPLE_DTYPE), [], list(rejected))
    for chunk in chunks:
        rows = chunk.rows.copy()
        shift_offsets(rows, len(joined.blob))
        joined.blob += chunk.blob
        joined.rows = np.concatenate([joined.rows, rows])
        joined.keys += chunk.keys
        joined.rejected += chunk.rejected
    return joined


def shift_offsets(rows: NDArray[np.void], offset: int) -> None:
    """Move the members that rows of SAMPLE_DTYPE point to, in place."""
    for name, _ in MEMBERS:
        rows[f"{name}_offset"][rows[f"{name}_size"] > 0] += np.uint64(offset)


def rejection(root: Path, record: Record, reason: str) -> dict[str, str]:
    """A line of rejected.jsonl; paths in it are relative to the corpus root."""
    return {
        "key": record.key,
        "source": source_of(root, record),
        "reason": reason.replace(f"{root}/", ""),
    }


def source_of(root: Path, record: Record) -> str:
    """The picture's path relative to the corpus root; the whole path where it lies elsewhere."""
    return str(record.image).removeprefix(f"{str(root).rstrip('/')}/")


def member_spans(row: np.void, offset: int = 0) -> list[tuple[str, int, int]]:
    """Extension, offset and size of a row's members; `offset` is added to those in the row."""
    return [
        (extension, int(row[f"{name}_offset"]) + offset, int(row[f"{name}_size"]))
        for name, extension in MEMBERS
        if row[f"{name}_size"]
    ]


def _pack_record(job: Job, record: Record) -> tuple[Geometry, list[bytes]]:
    """Where a record's picture has gone, and the data of its members in tar order."""
    if not KEY.fullmatch(record.key) or len(record.key) + len(".json") > MAX_NAME:
        raise PictureError(
            f"its key cannot name a tar member: 1 to {MAX_NAME - 5} letters, digits, _ and - are allowed"
        )
    if record.fault:
        raise PictureError(record.fault)

    picture = convert_picture(_read(record.image), job.encoding)
    geometry = picture.geometry
    members = [picture.jpeg, _label(job, record, geometry)]
    if record.mask is not None:
        members.append(convert_mask(_read_mask(record.mask), geometry, job.num_classes))
    return geometry, members


def _label(job: Job, record: Record, geometry: Geometry) -> bytes:
    """The json member: the label with boxes in stored pixels, and the upright source's size."""
    label: dict[str, Any] = dict(record.label)
    try:
        if label.get("objects"):
            frame = label_frame(record.label_size, geometry)
            frame.check_boxes(item["box"] for item in label["objects"] if "box" in item)
            label["objects"] = [_moved(item, frame, geometry) for item in label["objects"]]

        width, height = geometry.upright
        label |= {
            "key": record.key,
            "source": source_of(job.root, record),
            "width": width,
            "height": height,
        }
        return TO_JSON.encode(label).encode()
    except (TypeError, ValueError) as error:
        raise PictureError(f"its label cannot be stored: {error}") from error


def _moved(item: dict[str, Any], frame: LabelFrame, geometry: Geometry) -> dict[str, Any]:
    """Return an object with its box in pixels of the shard's image and its area in those of the upright source."""
    moved = dict(item)
    if "box" in item:
        x0, y0, x1, y1 = (float(value) for value in item["box"])
        box = frame.move_box((x0, y0, x1, y1), geometry)
        moved["box"] = [round(value, 3) for value in box]

    if "area" in item:
        moved["area"] = frame.move_area(item["area"], geometry)
    return moved


def _read_mask(mask: Mask) -> NDArray[np.uint8]:
    try:
        return mask.read()
    except MemoryError:
        raise
    except Exception as error:  # the adapter's own error types are not known here
        raise PictureError(f"its mask cannot be read: {error}") from error


def _read(path: Path) -> bytes:
    for attempt in range(READ_TRIES):
        try:
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):
                raise PictureError("not a regular file")
            if status.st_size > MAX_FILE_BYTES:
                raise PictureError(
                    f"{status.st_size} bytes, more than a picture file can sensibly have"
                )
            return path.read_bytes()
        except OSError as error:
            if error.errno in FILE_FAULTS:
                raise PictureError(FILE_FAULTS[error.errno]) from error
            failure = error
        time.sleep(READ_RETRY_WAIT_S * attempt)
    raise PackError(
        f"{path}: cannot be read after {READ_TRIES} tries ({failure.strerror}). When the disk is well again, "
        "run the same line once more: it goes on where it stopped."
    ) from failure
