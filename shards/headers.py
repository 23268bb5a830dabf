"""The few bytes at the start of a picture that say what it will decode to, read without decoding.

Used by shards/reader.py: a picture or mask that is not what the manifest promises (another size, a
palette, 16 bits) is told apart here in microseconds, before it fills the memory or lies askew to its mask.
"""

import struct
from dataclasses import dataclass

_SIZE_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PNG_START = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"


@dataclass(frozen=True, slots=True)
class Header:
    """Size in pixels as encoded (before any EXIF rotation), bits and number of channels."""

    width: int
    height: int
    bits: int
    channels: int


def jpeg_header(data: bytes) -> Header | None:
    """What a JPEG says of itself; None where it is none, or its header is broken."""
    if data[:2] != b"\xff\xd8":
        return None
    position = 2
    while position + 10 <= len(data):
        if data[position] != 0xFF:
            return None
        marker = data[position + 1]
        if marker == 0xFF:  # padding
            position += 1
            continue
        if marker in _SIZE_MARKERS:
            bits, height, width, channels = struct.unpack_from(">BHHB", data, position + 4)
            return Header(width, height, bits, channels)
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return None


def mask_header(data: bytes) -> Header | None:
    """What a grey PNG says of itself; None where it is no PNG, or one of colours or a palette."""
    if len(data) < 29 or not data.startswith(_PNG_START):
        return None
    width, height, bits, colour_type = struct.unpack_from(">IIBB", data, 16)
    return Header(width, height, bits, 1) if colour_type == 0 else None
