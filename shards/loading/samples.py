"""Single samples of a set by their number: key and image, in any order, without a loader.

For commands that answer one image at a time; training reads through shards/loading/loader.py.
"""

from __future__ import annotations

import numpy as np

from shards.loading.members import BadSampleError, MemberSpec, read_members
from shards.loading.shard_set import ShardSet
from shards.storage.shard_files import ShardFiles

# Of a ustar header: the block before a member's data, the name in it, and the name's folders.
HEADER_BYTES = 512
NAME, MAGIC, PREFIX = slice(0, 100), slice(257, 262), slice(345, 500)


class Samples:
    """The samples of a set, read one by one; `close` closes the files."""

    def __init__(self, shards: ShardSet) -> None:
        self.shards = shards
        self._files = ShardFiles()

    def __len__(self) -> int:
        return self.shards.num_samples

    def key(self, sample_id: int) -> str:
        """Return a sample's key: its image's name in the tar, up to the first dot behind folders.

        Raises:
            BadSampleError: The shard cannot be read there.
        """
        row = self._row(sample_id)
        path = self.shards.shard_paths[row["shard"]]
        try:
            header = self._files.read_at(
                path, int(row["image_offset"]) - HEADER_BYTES, HEADER_BYTES
            )
        except OSError as error:
            raise BadSampleError(f"{path}: {error.strerror or error}") from None

        if header[MAGIC] != b"ustar":
            raise BadSampleError(f"{path}: sample {sample_id} has no tar header before its image")
        name = _text(header[NAME])
        # GNU tar uses the prefix for other things.
        if header[MAGIC.stop : MAGIC.stop + 1] == b"\0" and header[PREFIX.start]:
            name = f"{_text(header[PREFIX])}/{name}"
        folder, slash, last = name.rpartition("/")
        return folder + slash + last.partition(".")[0]

    def image(self, sample_id: int) -> bytes:
        """Return a sample's image file, checked against the manifest.

        Raises:
            BadSampleError: It cannot be read, or is not what the manifest promises.
        """
        return read_members(
            self.shards, self._row(sample_id), MemberSpec(), self._files.read_at
        ).image

    def close(self) -> None:
        """Close the files."""
        self._files.close()

    def _row(self, sample_id: int) -> np.void:
        row: np.void = self.shards.rows(np.array([sample_id]))[0]
        return row


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "replace")
