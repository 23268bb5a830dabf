"""samples.npy: one row per sample in shard order, with the place of each of its members in the tar.

Written by the packer and the indexer, read by memory mapping: a set of any size opens at once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shards.errors import ManifestError
from shards.files import replacing

SAMPLES_FILE = "samples.npy"

# Offsets are those of a member's data in its tar; crc is zlib.crc32 of that data.
# Size 0 means that the sample has no such member. Width and height are in pixels as encoded.
SAMPLE_DTYPE = np.dtype(
    [
        ("shard", "<u4"),
        ("width", "<u4"),
        ("height", "<u4"),
        ("image_offset", "<u8"),
        ("image_size", "<u4"),
        ("image_crc", "<u4"),
        ("label_offset", "<u8"),
        ("label_size", "<u4"),
        ("label_crc", "<u4"),
        ("mask_offset", "<u8"),
        ("mask_size", "<u4"),
        ("mask_crc", "<u4"),
    ]
)


def write_samples(
    path: Path, num_samples: int, blocks: Iterable[NDArray[np.void]]
) -> tuple[int, str]:
    """Write the table block by block, whole or not at all.

    Args:
        path: The file to write.
        num_samples: Rows in all blocks together.
        blocks: Arrays of SAMPLE_DTYPE, in order.

    Returns:
        Bytes and sha256 of the file.
    """
    header = {"descr": SAMPLE_DTYPE.descr, "fortran_order": False, "shape": (num_samples,)}

    with replacing(path) as temporary:
        with temporary.open("wb") as stream:
            # Written by hand: np.save wants the whole table in memory.
            np.lib.format.write_array_header_1_0(stream, header)
            for rows in blocks:
                stream.write(rows.tobytes())

        with temporary.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()

        size = temporary.stat().st_size

    return size, digest


def read_samples(path: Path, num_samples: int, advice: str) -> NDArray[np.void]:
    """Map the table into memory; nothing is read yet.

    Args:
        path: The file.
        num_samples: Rows that the manifest promises.
        advice: Ends each error: what the user can do.

    Raises:
        ManifestError: The file is missing, is not a table of samples, or has another number of
            rows.
    """
    try:
        # Mapped: ranks of a node share its pages, and a set of a billion rows opens at once.
        table: NDArray[np.void] = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # numpy evaluates the header: tokenize and ast raise their own
        raise ManifestError(
            f"{path}: the table of samples cannot be read ({error}). {advice}"
        ) from error

    dtype = getattr(table, "dtype", None)
    shape = getattr(table, "shape", None)
    if dtype != SAMPLE_DTYPE or shape != (num_samples,):
        row_bytes = dtype.itemsize if dtype is not None else 0
        raise ManifestError(
            f"{path}: the table of samples should have {num_samples} rows of "
            f"{SAMPLE_DTYPE.itemsize} bytes, it has shape {shape} and {row_bytes} bytes a row. "
            f"{advice}"
        )
    return table
