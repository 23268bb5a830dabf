"""One shard being written: under a temporary name, renamed when whole, then its state.

The state (a small file in `.packing/`) marks the shard as finished and holds its rows; the manifest
is put together from the states, so the packer needs no memory of the shards before.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from shards.errors import PackError
from shards.files import disk_errors_reported, replacing, temporary_path
from shards.packing.inputs import FileStamps, ShardInputs
from shards.packing.samples import PackedChunk, shift_offsets, source_of
from shards.packing.tally import Tally
from shards.packing.tar import END, dali_index
from shards.records import Record
from shards.rejections import Rejection
from shards.samples_table import SAMPLE_DTYPE

WORK_FOLDER = ".packing"


@dataclass(frozen=True)
class ShardState:
    """A finished shard; `file` is empty if every record of it was rejected.

    Attributes:
        number: Of the shard, from 0.
        file: Name of the tar.
        samples: In the tar.
        bytes: Of the tar.
        sha256: Of the tar.
        records: Records of the corpus for this shard, the rejected ones included.
        inputs: Digests of these records, and their counts for the summary.
        rejected: The records that were left out.
        rows: SAMPLE_DTYPE, one per sample.
    """

    number: int
    file: str
    samples: int
    bytes: int
    sha256: str
    records: int
    inputs: ShardInputs
    rejected: list[Rejection]
    rows: NDArray[np.void] = field(repr=False, compare=False)

    def save(self, out: Path) -> None:
        """Write the state atomically: from here on the shard counts as finished."""
        head = {
            "number": self.number,
            "file": self.file,
            "samples": self.samples,
            "bytes": self.bytes,
            "sha256": self.sha256,
            "records": self.records,
            "inputs": asdict(self.inputs),
            "rejected": [asdict(rejection) for rejection in self.rejected],
        }
        with replacing(state_path(out, self.number)) as temporary:
            temporary.write_bytes(json.dumps(head).encode() + b"\n" + self.rows.tobytes())


def state_path(out: Path, number: int) -> Path:
    """Return the path of a shard's state."""
    return out / WORK_FOLDER / f"{number:06d}.state"


def load_state(out: Path, number: int, *, with_rows: bool = True) -> ShardState | None:
    """Return the state of a finished shard; None if it is not finished or its files are gone."""
    try:
        with state_path(out, number).open("rb") as stream:
            head = json.loads(stream.readline())
            content = stream.read() if with_rows else b""

        state = _parsed(head, np.frombuffer(content, SAMPLE_DTYPE))
        # By size, not digest: a thousand shards are looked at on each resume.
        is_whole = not state.file or _is_whole(out / state.file, state.bytes)
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return state if is_whole else None


def _parsed(head: dict[str, Any], rows: NDArray[np.void]) -> ShardState:
    number = head["number"]

    # A packing that an older release began has the records' digest alone, and rejections without a
    # number.
    inputs = head["inputs"]
    known = inputs if isinstance(inputs, dict) else {"shard": number, "records": inputs}
    rejected = [Rejection(**{"shard": number, **line}) for line in head["rejected"]]

    return ShardState(
        number,
        head["file"],
        head["samples"],
        head["bytes"],
        head["sha256"],
        head["records"],
        ShardInputs(**known),
        rejected,
        rows,
    )


def _is_whole(tar: Path, promised: int) -> bool:
    return tar.stat().st_size == promised and tar.with_suffix(".idx").is_file()


def digest_of_inputs(root: Path, records: Sequence[Record]) -> str:
    """Return a digest of a shard's keys and sources; no photo is opened."""
    digest = hashlib.sha256()
    for record in records:
        # A zero byte, which no path holds, between the two.
        digest.update(f"{record.key}\0{source_of(root, record)}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


class ShardWriter:
    """Writes one shard; leaving it before `finish` removes everything it has written."""

    def __init__(self, out: Path, name: str, number: int) -> None:
        self._out = out
        self._number = number
        self._file = f"{name}-{number:06d}.tar"
        # In the work folder, so that the set's own folder holds whole files alone.
        self._temporary = temporary_path(out / WORK_FOLDER / self._file)

        self._digest = hashlib.sha256()
        self._bytes = 0
        self._keys: set[str] = set()
        self._rows: list[NDArray[np.void]] = []
        self._index: list[str] = []
        self._rejected: list[Rejection] = []
        self._tally = Tally()
        self._stamps = FileStamps()

        with disk_errors_reported(self._temporary):
            self._stream = self._temporary.open("wb")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with disk_errors_reported(self._temporary):
            try:
                self._stream.close()
            finally:
                self._temporary.unlink(missing_ok=True)

    def add(self, packed: PackedChunk) -> None:
        """Append packed samples.

        Raises:
            PackError: A key comes twice, or the disk is full, read-only or gone.
        """
        for key in packed.keys:
            # Within a shard only: samples of one key would be one sample to webdataset.
            if key in self._keys:
                raise PackError(
                    f"key {key!r} comes twice in {self._file}: a corpus must give each record its "
                    "own."
                )
            self._keys.add(key)

        rows = packed.rows.copy()
        shift_offsets(rows, self._bytes)
        self._rows.append(rows)
        self._index += packed.index_lines(self._bytes)

        self._rejected += [replace(each, shard=self._number) for each in packed.rejected]
        self._tally.add(packed.tally)
        self._stamps.add(packed.stamps)
        self._write(packed.blob)

    def finish(self, records: int, inputs: ShardInputs) -> ShardState:
        """Give the shard its name and save its state.

        Args:
            records: Of the corpus, for this shard.
            inputs: Their digests; those of the files, and the counts, are filled in here.

        Raises:
            PackError: The disk is full, read-only or gone.
        """
        rows = np.concatenate([np.zeros(0, SAMPLE_DTYPE), *self._rows])
        if len(rows):
            self._publish()

        # Of the files as they were read, not as they are by now.
        sizes, times = self._stamps.digests()
        state = ShardState(
            self._number,
            self._file if len(rows) else "",
            len(rows),
            self._bytes,
            self._digest.hexdigest() if len(rows) else "",
            records,
            replace(inputs, sizes=sizes, times=times, tally=self._tally.to_json()),
            self._rejected,
            rows,
        )
        # Last of all: a shard without its state is packed again.
        state.save(self._out)
        return state

    def _publish(self) -> None:
        tar = self._out / self._file
        self._write(END)
        with disk_errors_reported(tar):
            self._stream.flush()
            # The state that follows promises these bytes, also after a power cut.
            os.fsync(self._stream.fileno())

        # The index first: a tar that has its name is whole only with its index.
        with replacing(tar.with_suffix(".idx")) as temporary:
            temporary.write_text(dali_index(self._index, len(self._index)))

        with disk_errors_reported(tar):
            self._temporary.replace(tar)

    def _write(self, data: bytes) -> None:
        with disk_errors_reported(self._out / self._file):
            self._stream.write(data)
        # On the way out: reading the shard again would double its cost.
        self._digest.update(data)
        self._bytes += len(data)
