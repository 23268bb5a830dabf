"""Records -> tar bytes: the packer's work on images, done in its worker processes.

shards/packing/pack.py sends chunks of records here and appends what comes back to the shard. A
record that cannot be packed becomes a line of rejected.jsonl; only a failing disk stops the
packing.
"""

import json
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.errors import PictureError
from shards.files import printable
from shards.images.conversion import StoredPicture, convert_mask, convert_picture
from shards.images.label_frame import LabelFrame, label_frame
from shards.images.policy import Encoding, Geometry
from shards.packing.decoder_messages import caught_messages
from shards.packing.inputs import file_stamps
from shards.packing.source_files import read_source
from shards.packing.tally import Tally
from shards.packing.tar import MAX_NAME, index_line, member
from shards.records import Mask, Record
from shards.rejections import Rejection
from shards.samples_table import SAMPLE_DTYPE
from shards.storage.tar_reader import BLOCK

MEMBERS = (("image", "jpg"), ("label", "json"), ("mask", "png"))  # in tar order
KEY = re.compile(r"[A-Za-z0-9_-]+")
TO_JSON = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False)


@dataclass(frozen=True)
class Job:
    """The settings that workers need beside the records."""

    root: Path
    encoding: Encoding
    num_classes: int


@dataclass
class PackedChunk:
    """Tar bytes of some records, in order, with their rows of the shard's tables.

    Attributes:
        blob: Whole tar members.
        rows: SAMPLE_DTYPE; offsets from the blob's start, shard 0.
        keys: One per row.
        rejected: The records that were left out, shard 0.
        tally: Counts for the summary.
        stamps: Size and time of each file that was read, in order.
        messages: What decoders printed, with the source's name.
    """

    blob: bytes = b""
    rows: NDArray[np.void] = field(default_factory=lambda: np.zeros(0, SAMPLE_DTYPE))
    keys: list[str] = field(default_factory=list)
    rejected: list[Rejection] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)
    stamps: list[tuple[int, int]] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)

    def index_lines(self, offset: int) -> list[str]:
        """Return lines of DALI's index for a blob that starts at `offset` in its tar."""
        pairs = zip(self.keys, self.rows, strict=True)
        return [index_line(key, member_spans(row, offset)) for key, row in pairs]


def pack_chunk(job: Job, records: Sequence[Record]) -> PackedChunk:
    """Read, convert and encode some records.

    Raises:
        PackError: The disk fails: an error other than a missing or forbidden file, three times
            over.
    """
    packed = PackedChunk()
    parts: list[bytes] = []
    rows: list[tuple[int, ...]] = []
    position = 0

    for record in records:
        # Before reading: a file that changes in between must look changed later.
        packed.stamps += file_stamps(record)
        source = source_of(job.root, record)
        try:
            with caught_messages() as printed:
                picture, members = _pack_record(job, record)
        # A photo's fault; the disk's own come as PackError and pass.
        except PictureError as error:
            packed.rejected.append(rejection(job.root, record, str(error)))
            continue
        finally:
            packed.messages += [f"{printable(source)}: {line}" for line in printed]

        spans = [0] * (3 * len(MEMBERS))
        for number, data in enumerate(members):
            # The data follows its header, which is one block.
            spans[3 * number : 3 * number + 3] = position + BLOCK, len(data), zlib.crc32(data)
            parts.append(member(f"{record.key}.{MEMBERS[number][1]}", data))
            position += len(parts[-1])

        rows.append((0, picture.geometry.width, picture.geometry.height, *spans))
        packed.keys.append(record.key)
        packed.tally.add_photo(picture, source, record.dropped)

    packed.blob = b"".join(parts)
    packed.rows = np.array(rows, SAMPLE_DTYPE)
    return packed


def join_chunks(chunks: Sequence[PackedChunk]) -> PackedChunk:
    """Return consecutive chunks as one."""
    joined = PackedChunk()
    for chunk in chunks:
        rows = chunk.rows.copy()
        shift_offsets(rows, len(joined.blob))

        joined.blob += chunk.blob
        joined.rows = np.concatenate([joined.rows, rows])
        joined.keys += chunk.keys
        joined.rejected += chunk.rejected
        joined.tally.add(chunk.tally)
        joined.stamps += chunk.stamps
        joined.messages += chunk.messages
    return joined


def shift_offsets(rows: NDArray[np.void], offset: int) -> None:
    """Move the members that rows of SAMPLE_DTYPE point to, in place."""
    for name, _ in MEMBERS:
        # Absent members keep offset 0.
        rows[f"{name}_offset"][rows[f"{name}_size"] > 0] += np.uint64(offset)


def rejection(root: Path, record: Record, reason: str) -> Rejection:
    """Return a line of rejected.jsonl, shard 0; paths in it are relative to the corpus root."""
    source = printable(source_of(root, record))
    return Rejection(0, record.key, source, printable(reason.replace(f"{root}/", "")))


def source_of(root: Path, record: Record) -> str:
    """Return the photo's path relative to the corpus root; the whole path if it is elsewhere.

    As the system has it: `printable` (shards/files.py) makes a name text for people.
    """
    # As text: a member of a tar is no path.
    return str(record.image).removeprefix(f"{str(root).rstrip('/')}/")


def member_spans(row: np.void, offset: int = 0) -> list[tuple[str, int, int]]:
    """Return extension, offset and size of a row's members; `offset` is added to the row's."""
    return [
        (extension, int(row[f"{name}_offset"]) + offset, int(row[f"{name}_size"]))
        for name, extension in MEMBERS
        if row[f"{name}_size"]
    ]


def _pack_record(job: Job, record: Record) -> tuple[StoredPicture, list[bytes]]:
    """Return a record's converted photo, and the data of its members in tar order."""
    if not KEY.fullmatch(record.key) or len(record.key) + len(".json") > MAX_NAME:
        raise PictureError(
            f"its key cannot name a tar member: 1 to {MAX_NAME - 5} letters, digits, _ and - are "
            "allowed"
        )
    if record.fault:
        raise PictureError(record.fault)

    # The photo first: its size decides where boxes and masks go.
    picture = convert_picture(read_source(record.image), job.encoding)
    members = [picture.jpeg, _label(job, record, picture.geometry)]
    if record.mask is not None:
        mask = _read_mask(record.mask)
        members.append(convert_mask(mask, picture.geometry, job.num_classes))

    return picture, members


def _label(job: Job, record: Record, geometry: Geometry) -> bytes:
    """Return the json member: the label, boxes in stored pixels, the upright source's size."""
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
        # Sorted keys and no spaces: equal labels are equal bytes.
        return TO_JSON.encode(label).encode()
    except (TypeError, ValueError) as error:
        raise PictureError(f"its label cannot be stored: {error}") from error


def _moved(item: dict[str, Any], frame: LabelFrame, geometry: Geometry) -> dict[str, Any]:
    """Return an object: its box in pixels of the shard's image, its area in the source's."""
    moved = dict(item)
    if "box" in item:
        x0, y0, x1, y1 = (float(value) for value in item["box"])
        box = frame.move_box((x0, y0, x1, y1), geometry)
        # A thousandth of a pixel: more digits only make labels longer, and differ between CPUs.
        moved["box"] = [round(value, 3) for value in box]

    if "area" in item:
        moved["area"] = frame.move_area(item["area"], geometry)
    return moved


def _read_mask(mask: Mask) -> NDArray[np.uint8]:
    try:
        return mask.read()
    # Not the record's fault: the worker's memory, as a photo before it may have been huge.
    except MemoryError:
        raise
    except Exception as error:  # the adapter's own error types are not known here
        raise PictureError(f"its mask cannot be read: {error}") from error
