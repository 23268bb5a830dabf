"""One shard on its way to the disk: written under a temporary name, renamed when whole, then its state.

The state (a small file in `.packing/`) says that the shard is finished and what is in it; the manifest is
put together from the states, so the packer needs no memory of the shards behind it.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from shards.errors import PackError
from shards.files import _temporary_name, replacing, telling_disk_errors
from shards.manifest import SAMPLE_DTYPE
from shards.packing.samples import PackedChunk, shift_offsets, source_of
from shards.packing.tar import END, dali_index
from shards.records import Record

WORK_FOLDER = ".packing"


@dataclass(frozen=True)
class ShardState:
    """What a finished shard holds; `file` is empty where every record of it was rejected."""

    number: int
    file: str
    samples: int
    bytes: int
    sha256: str
    records: int  # records of the corpus behind it, the rejected ones too
    inputs: str  # sha256 of their keys and sources
    rejected: list[dict[str, str]]
    rows: NDArray[np.void] = field(repr=False, compare=False)  # SAMPLE_DTYPE

    def save(self, out: Path) -> None:
        """Write the state atomically: from here on the shard counts as finished."""
        head = {key: value for key, value in vars(self).items() if key != "rows"}
        with replacing(state_path(out, self.number)) as temporary:
            temporary.write_bytes(json.dumps(head).encode() + b"\n" + self.rows.tobytes())


def state_path(out: Path, number: int) -> Path:
    """Where a shard's state lies."""
    return out / WORK_FOLDER / f"{number:06d}.state"


def load_state(out: Path, number: int, *, with_rows: bool = True) -> ShardState | None:
    """The state of a finished shard; None where it is not finished or its files are gone."""
    try:
        with state_path(out, number).open("rb") as stream:
            head: dict[str, Any] = json.loads(stream.readline())
            rows = (
                np.frombuffer(stream.read(), SAMPLE_DTYPE)
                if with_rows
                else np.zeros(0, SAMPLE_DTYPE)
            )
        state = ShardState(**head, rows=rows)
        tar = out / state.file
        whole = not state.file or (
            tar.stat().st_size == state.bytes and tar.with_suffix(".idx").is_file()
        )
    except (OSError, ValueError, TypeError):
        return None
    return state if whole else None


def digest_of_inputs(root: Path, records: Sequence[Record]) -> str:
    """A digest of which records a shard is made of; pictures are not opened."""
    digest = hashlib.sha256()
    for record in records:
        digest.update(f"{record.key}\0{source_of(root, record)}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


class ShardWriter:
    """Writes one shard; leaving it before `finish` takes everything back."""

    def __init__(self, out: Path, name: str, number: int) -> None:
        self._out = out
        self._number = number
        self._file = f"{name}-{number:06d}.tar"
        self._temporary = out / WORK_FOLDER / _temporary_name(self._file)
        self._digest = hashlib.sha256()
        self._bytes = 0
        self._keys: set[str] = set()
        self._rows: list[NDArray[np.void]] = []
        self._index: list[str] = []
        self._rejected: list[dict[str, str]] = []
        with telling_disk_errors(self._temporary):
            self._stream = self._temporary.open("wb")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with telling_disk_errors(self._temporary):
            try:
                self._stream.close()
            finally:
                self._temporary.unlink(missing_ok=True)

    def add(self, packed: PackedChunk) -> None:
        """Append packed samples."""
        for key in packed.keys:
            if key in self._keys:
                raise PackError(
                    f"key {key!r} comes twice in {self._file}: a corpus must give each record its own."
                )
            self._keys.add(key)
        rows = packed.rows.copy()
        shift_offsets(rows, self._bytes)
        self._rows.append(rows)
        self._index += packed.index_lines(self._bytes)
        self._rejected += packed.rejected
        self._write(packed.blob)

    def finish(self, records: int, inputs: str) -> ShardState:
        """Put the shard in its place and save its state."""
        rows = np.concatenate([np.zeros(0, SAMPLE_DTYPE), *self._rows])
        if len(rows):
            self._write(END)
            with telling_disk_errors(self._out / self._file):
                self._stream.flush()
                os.fsync(self._stream.fileno())
            with replacing((self._out / self._file).with_suffix(".idx")) as temporary:
                temporary.write_text(dali_index(self._index, len(self._index)))
            with telling_disk_errors(self._out / self._file):
                self._temporary.replace(self._out / self._file)
        file, size, sha256 = (
            (self._file, self._bytes, self._digest.hexdigest()) if len(rows) else ("", 0, "")
        )
        state = ShardState(
            self._number, file, len(rows), size, sha256, records, inputs, self._rejected, rows
        )
        state.save(self._out)
        return state

    def _write(self, data: bytes) -> None:
        with telling_disk_errors(self._out / self._file):
            self._stream.write(data)
        self._digest.update(data)
        self._bytes += len(data)
