"""Members of any tar file, read in one pass with bounded memory; sha256 of the whole on the way.

For shards made elsewhere. Headers are parsed by tarfile; long names come from GNU's L members and
from pax records, both bounded here, since a tar may be hostile: tarfile itself would read such a
header whole.
"""

from __future__ import annotations

import hashlib
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

BLOCK = tarfile.BLOCKSIZE
MAX_NAME_BYTES = 1 << 16
MAX_PAX_BYTES = 1 << 20
SKIP_BYTES = 1 << 20
TYPE_AT = 156  # in a header
REGULAR = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)

LINKS = (tarfile.LNKTYPE, tarfile.SYMTYPE)


class DamagedTarError(ValueError):
    """The tar cannot be read on from here; the message is the reason."""


@dataclass(frozen=True)
class TarMember:
    """A regular file in a tar: where its data is."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True)
class _Header:
    type: bytes
    size: int
    name: str


# Name, mode, owner and group, size, time, checksum, type of a regular file, link name, magic of
# POSIX.
PLAIN_HEADER = re.compile(
    rb"(?P<name>[^\0]{1,100})\0*(?<=^.{100})"
    rb".{24}(?P<size>[0-7]{11})[\0 ].{12}(?P<checksum>[0-7]{6})[\0 ]{2}"
    rb"(?P<type>[0x]).{100}ustar\x0000",
    re.DOTALL,
)


class TarReader:
    """Reads a tar from its start to its end.

    Example:
        >>> reader = TarReader(stream)
        >>> for member in reader.members():
        ...     data = reader.read(member)
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._digest = hashlib.sha256()
        self._position = 0
        self._name = ""  # from a header before the member's own
        self._size: int | None = None
        self._is_sparse = False
        self._passed_over: list[tuple[str, str]] = []

    @property
    def num_bytes(self) -> int:
        """Bytes read so far."""
        return self._position

    def passed_over(self) -> list[tuple[str, str]]:
        """Return name and kind of what is neither a file nor a folder, since the last call."""
        passed_over, self._passed_over = self._passed_over, []
        return passed_over

    def members(self) -> Iterator[TarMember]:
        """Yield the regular files in order; what is not read of one is skipped.

        Raises:
            DamagedTarError: A header is damaged, or the file ends within a member.
            OSError: The file cannot be read.
        """
        while True:
            header = self._take(BLOCK)
            # Two blocks of zeros end a tar, but some writers leave them out.
            if not header or header == bytes(BLOCK):
                return

            start = self._position - len(header)
            if len(header) < BLOCK:
                raise DamagedTarError(f"it ends within a tar header, at byte {start:,}")
            info = _parsed(header, start)
            if info.type in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE):
                self._read_extension(info)
                continue

            size = info.size if self._size is None else self._size
            member = TarMember(self._name or info.name, self._position, size)
            is_sparse = self._is_sparse or info.type == tarfile.GNUTYPE_SPARSE
            self._name, self._size, self._is_sparse = "", None, False

            if is_sparse:
                self._passed_over.append((member.name, "a sparse file"))
            elif info.type in REGULAR:
                yield member
            elif info.type in LINKS:
                self._passed_over.append((member.name, "a link"))
            # From the member's own offset: the caller may have read all, some or nothing of it.
            self._skip_to(member.offset + _padded(size if _has_data(info) else 0))

    def read(self, member: TarMember) -> bytes:
        """Return the data of the member that was yielded last.

        Raises:
            DamagedTarError: The file ends within it.
        """
        data = self._take(member.size)
        if len(data) != member.size:
            raise DamagedTarError(f"it ends within {member.name}")
        return data

    def finish(self) -> str:
        """Read to the end of the file and return the sha256 of all of it."""
        # What follows the end counts too: the digest is the file's.
        while self._take(SKIP_BYTES):
            pass
        return self._digest.hexdigest()

    def _take(self, size: int) -> bytes:
        data = self._stream.read(size)
        self._digest.update(data)
        self._position += len(data)
        return data

    def _skip_to(self, position: int) -> None:
        while self._position < position:
            if not self._take(min(SKIP_BYTES, position - self._position)):
                raise DamagedTarError(f"it ends at byte {self._position:,} within a member")

    def _read_extension(self, info: _Header) -> None:
        most = MAX_NAME_BYTES if info.type == tarfile.GNUTYPE_LONGNAME else MAX_PAX_BYTES
        # Before it is read: a header may claim gigabytes of name.
        if info.size > most:
            raise DamagedTarError(f"an extended header of {info.size:,} bytes")

        start = self._position
        content = self._take(info.size)
        self._skip_to(start + _padded(info.size))

        if info.type == tarfile.GNUTYPE_LONGNAME:
            self._name = content.rstrip(b"\0").decode("utf-8", "surrogateescape")
            return
        for key, value in _pax_records(content):
            if key == b"path":
                self._name = value.decode("utf-8", "surrogateescape")
            # Holes of the file are left out of its data.
            elif key.startswith(b"GNU.sparse."):
                self._is_sparse = True
            # Sizes beyond the header's eleven octal digits come here.
            elif key == b"size" and value.isdigit() and len(value) < 16:
                self._size = int(value)


def last_name(blocks: bytes) -> str:
    """Return the name of the file whose header is the last block, or in an extension before it.

    Args:
        blocks: Whole blocks of the tar.

    Raises:
        DamagedTarError: The last block is no header.
    """
    end = len(blocks) - BLOCK
    name = _parsed(blocks[end:], end).name
    while end > 0:
        extension = _extension_before(blocks, end)
        if extension is None:
            return name
        start, long_name = extension
        if long_name:
            return long_name
        end = start
    return name


def _extension_before(blocks: bytes, end: int) -> tuple[int, str] | None:
    """Return where an extension that ends at `end` starts, and the name in it, if it has one."""
    for start in range(end - 2 * BLOCK, -1, -BLOCK):
        kind = blocks[start + TYPE_AT : start + TYPE_AT + 1]
        if kind not in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE):
            continue
        try:
            info = _parsed(blocks[start : start + BLOCK], start)
        except DamagedTarError:
            continue
        # It must fill the place between: else it is data that looks like a header.
        if start + BLOCK + _padded(info.size) == end:
            content = blocks[start + BLOCK : start + BLOCK + info.size]
            return start, _name_in(kind, content)
    return None


def _name_in(kind: bytes, content: bytes) -> str:
    if kind == tarfile.GNUTYPE_LONGNAME:
        return content.rstrip(b"\0").decode("utf-8", "surrogateescape")
    names = [value for key, value in _pax_records(content) if key == b"path"]
    return names[-1].decode("utf-8", "surrogateescape") if names else ""


def _parsed(header: bytes, position: int) -> _Header:
    """Return a header's type, size and name.

    Raises:
        DamagedTarError: Its checksum is wrong, or its numbers are damaged.
    """
    # Nearly all headers are plain POSIX ones, which tarfile takes 10 times as long to parse.
    plain = PLAIN_HEADER.match(header)
    if plain is not None and _checksum(header) == int(plain["checksum"], 8):
        prefix = header[345:500].rstrip(b"\0")
        name = plain["name"] if not prefix else prefix + b"/" + plain["name"]
        return _Header(
            plain["type"], int(plain["size"], 8), name.decode("utf-8", "surrogateescape")
        )

    try:
        info = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
    except (tarfile.TarError, ValueError) as error:
        raise DamagedTarError(
            f"the tar header at byte {position:,} is damaged ({error})"
        ) from error
    if info.size < 0:
        raise DamagedTarError(f"the tar header at byte {position:,} states a negative size")
    return _Header(info.type, info.size, info.name)


def _checksum(header: bytes) -> int:
    # The checksum's own place counts as blanks.
    return sum(header) - sum(header[148:156]) + 8 * ord(" ")


def _pax_records(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield key and value of each record: LENGTH, a blank, KEY=VALUE and a line end."""
    position = 0
    while position < len(content):
        blank = content.find(b" ", position)
        digits = content[position:blank] if blank >= 0 else b""
        # A damaged record ends the list; a length of 0 would never end it.
        if not digits.isdigit() or len(digits) > 8 or int(digits) < 3:
            return
        record = content[blank + 1 : position + int(digits) - 1]
        key, _, value = record.partition(b"=")
        yield key, value
        position += int(digits)


def _has_data(info: _Header) -> bool:
    # Links, devices and folders may state a size and have none.
    without_data = (
        tarfile.LNKTYPE,
        tarfile.SYMTYPE,
        tarfile.CHRTYPE,
        tarfile.BLKTYPE,
        tarfile.DIRTYPE,
        tarfile.FIFOTYPE,
    )
    return info.type not in without_data


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK
