"""Single samples of a set by their number: key and image, in any order, without a loader.

For commands that answer one image at a time; training reads through shards/loading/loader.py.
"""

from __future__ import annotations

import numpy as np

from shards.loading.members import BadSampleError, MemberSpec, read_members
from shards.loading.shard_set import ShardSet
from shards.storage.shard_files import ShardFiles
from shards.storage.tar_reader import BLOCK, DamagedTarError, last_name

# Before a member's data: its header, and extensions with a name of up to a path's 4,096 bytes.
HEADER_BYTES = 16 * BLOCK


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
            # Whole blocks: some images are at an odd place only in a damaged table.
            offset = int(row["image_offset"])
            first = max(offset % BLOCK, offset - HEADER_BYTES)
            name = last_name(self._files.read_at(path, first, offset - first))
        except OSError as error:
            raise BadSampleError(f"{path}: {error.strerror or error}") from None
        except DamagedTarError:
            raise BadSampleError(
                f"{path}: sample {sample_id} has no tar header before its image"
            ) from None

        # Names that are no UTF-8 have no one text.
        name = name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
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
