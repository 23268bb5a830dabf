"""Tar members and DALI's index, byte for byte the same for the same samples.

Plain POSIX USTAR: no extended headers, owner 0, mode 644, a fixed time. GNU tar, Python's tarfile,
the webdataset library and DALI's readers.webdataset all read it.
"""

import tarfile
from collections.abc import Iterable

from shards.storage.tar_reader import BLOCK

END = bytes(2 * BLOCK)
MAX_NAME = tarfile.LENGTH_NAME  # 100: longer names need a second field or an extension
MAX_SIZE = 8**11 - 1  # bytes: eleven octal digits
TIME_S = 946_684_800  # 2000-01-01; GNU tar warns of times near zero

# A header's fields in turn (POSIX ustar). Written here since tarfile takes 20 times as long, 2 % of
# packing.
_MODE_AND_OWNER = b"0000644\0" + 2 * b"0000000\0"
_CHECKSUM_BLANK = 8 * b" "  # what stands in the checksum's place while it is computed
_TYPE_AND_REST = (b"0" + bytes(100) + b"ustar\x0000").ljust(BLOCK - 156, b"\0")
_FIXED_SUM = sum(_CHECKSUM_BLANK) + sum(_TYPE_AND_REST)


def member(name: str, data: bytes) -> bytes:
    """One tar member: a header of one block, then the data filled up with zeros to whole blocks.

    Raises:
        ValueError: A name that is too long or not ASCII, or more data than a header can state.
    """
    if len(name) > MAX_NAME or len(data) > MAX_SIZE:
        raise ValueError(
            f"{name}: names have up to {MAX_NAME} letters, members up to {MAX_SIZE} bytes"
        )
    start = (
        name.encode("ascii").ljust(MAX_NAME, b"\0")
        + _MODE_AND_OWNER
        + b"%011o\0%011o\0" % (len(data), TIME_S)
    )
    checksum = b"%06o\0 " % (sum(start) + _FIXED_SUM)
    # Padded to whole blocks, as every tar reader expects.
    return b"".join((start, checksum, _TYPE_AND_REST, data, bytes(-len(data) % BLOCK)))


def dali_index(samples: Iterable[str], num_samples: int) -> str:
    """DALI's index file, as its wds2idx writes it in version 1.2: one `index_line` per sample."""
    return "".join((f"v1.2 {num_samples}\n", *(f"{line}\n" for line in samples)))


def index_line(key: str, members: Iterable[tuple[str, int, int]]) -> str:
    """Return a sample's line: each member's extension, data offset, size and name, in tar order."""
    return " ".join(
        f"{extension} {offset} {size} {key}.{extension}" for extension, offset, size in members
    )
