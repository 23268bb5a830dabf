"""Tar members and DALI's index, byte for byte the same for the same samples.

Plain POSIX USTAR: no extended headers, owner 0, mode 644, a fixed time. GNU tar, Python's tarfile, the
webdataset library and DALI's readers.webdataset all read it.
"""

import tarfile
from collections.abc import Iterable

BLOCK = tarfile.BLOCKSIZE  # 512
END = bytes(2 * BLOCK)
MAX_NAME = tarfile.LENGTH_NAME  # 100: longer names need a second field or an extension
TIME_S = 946_684_800  # 2000-01-01; GNU tar warns of times near zero


def member(name: str, data: bytes) -> bytes:
    """One tar member: a header of one block, then the data filled up with zeros to whole blocks."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    info.mtime = TIME_S
    header = info.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict")
    return header + data + bytes(-len(data) % BLOCK)


def dali_index(samples: Iterable[str], num_samples: int) -> str:
    """DALI's index file, as its wds2idx writes it in version 1.2; one line of `index_line` a sample."""
    return "".join((f"v1.2 {num_samples}\n", *(f"{line}\n" for line in samples)))


def index_line(key: str, members: Iterable[tuple[str, int, int]]) -> str:
    """One sample's line: extension, offset of the data, size and name of each member, in tar order."""
    return " ".join(f"{extension} {offset} {size} {key}.{extension}" for extension, offset, size in members)
