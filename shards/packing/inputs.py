"""inputs.jsonl: digests of what each shard was packed from, to notice later changes at the source.

A shard has four digests, over its records in order: their keys and sources, their labels, the sizes
of their files, and the times of their files. Times alone also differ after a copy, so they count
less. Its counts for the summary are kept with them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from shards.files import replacing
from shards.records import Record, TarMember

INPUTS_FILE = "inputs.jsonl"
MAX_LINE_BYTES = 1 << 18
MISSING = (-1, -1)


@dataclass(frozen=True)
class ShardInputs:
    """Digests of one shard's records, sha256 in hexadecimal; "" is not known.

    `tally` has the shard's counts as plain data (shards/packing/tally.py); None if they are not
    known.
    """

    shard: int
    records: str = ""
    labels: str = ""
    sizes: str = ""
    times: str = ""
    tally: dict[str, Any] | None = None

    def changes(self, now: ShardInputs) -> list[str]:
        """Return what differs: "records", "labels", "sizes", "times"; unknown digests are equal."""
        names = ("records", "labels", "sizes", "times")
        pairs = {name: (getattr(self, name), getattr(now, name)) for name in names}
        return [name for name, (then, later) in pairs.items() if then and later and then != later]


class FileStamps:
    """Running digests of the sizes and the times of a shard's files."""

    def __init__(self) -> None:
        self._sizes = hashlib.sha256()
        self._times = hashlib.sha256()

    def add(self, stamps: Iterable[tuple[int, int]]) -> None:
        """Add size in bytes and time of change in ns of each file of a record."""
        for size, time_ns in stamps:
            self._sizes.update(b"%d\n" % size)
            self._times.update(b"%d\n" % time_ns)

    def digests(self) -> tuple[str, str]:
        """Return the digest of the sizes and that of the times."""
        return self._sizes.hexdigest(), self._times.hexdigest()


def file_stamps(record: Record) -> list[tuple[int, int]]:
    """Return size and modification time of a record's photo and mask; (-1, -1) if missing."""
    # A member has no time of its own; its tar has.
    image = record.image.tar if isinstance(record.image, TarMember) else record.image
    return [_stamp(path) for path in (image, *_mask_files(record))]


def inputs_now(number: int, records_digest: str, records: Sequence[Record]) -> ShardInputs:
    """Return the digests of a shard's records as they are now; files are not read, only sized."""
    stamps = FileStamps()
    for record in records:
        stamps.add(file_stamps(record))

    sizes, times = stamps.digests()
    return ShardInputs(number, records_digest, labels_digest(records), sizes, times)


def labels_digest(records: Sequence[Record]) -> str:
    """Return a digest of the records' labels, and of the sizes that they state."""
    digest = hashlib.sha256()
    for record in records:
        made_for = [record.label, record.label_size, record.fault]
        # Sorted: adapters may build equal labels in any order.
        text = json.dumps(made_for, sort_keys=True, default=str)
        # Names of files that are not UTF-8 come as surrogates.
        digest.update(text.encode(errors="surrogatepass") + b"\n")
    return digest.hexdigest()


def write_inputs(path: Path, inputs: Iterable[ShardInputs]) -> None:
    """Write inputs.jsonl whole or not at all."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
        for each in inputs:
            stream.write(json.dumps(asdict(each)) + "\n")


def read_inputs(path: Path) -> dict[int, ShardInputs]:
    """Return the shards' digests by number; empty for a set without them or a damaged file."""
    names = {each.name for each in fields(ShardInputs)}
    by_shard = {}
    try:
        with path.open("rb") as stream:
            while line := stream.readline(MAX_LINE_BYTES):
                document = json.loads(line)
                # Fields of a newer release are passed over.
                known = {name: value for name, value in document.items() if name in names}
                inputs = ShardInputs(**known)
                by_shard[int(inputs.shard)] = inputs
    # Without digests nothing is said to have changed; the set itself is whole.
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return {}
    return by_shard


def _mask_files(record: Record) -> list[Path]:
    # An adapter's mask is a small dataclass; which files it reads is seen from its fields.
    names = getattr(record.mask, "__dataclass_fields__", ())
    values = [getattr(record.mask, name, None) for name in names]
    return [value for value in values if isinstance(value, Path)]


def _stamp(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except (OSError, ValueError):
        # A value of its own: a file that vanishes must change the digest.
        return MISSING
    return status.st_size, status.st_mtime_ns
