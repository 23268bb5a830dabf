"""What a picture says of itself before its pixels, read without decoding: its size, its kind, and whether it is whole.

Used by shards/loading/shard_set.py: a picture or mask that is not what the manifest promises (another size, a palette, 16 bits)
is told apart here in microseconds, before it fills the memory or lies askew to its mask.

It is also what keeps the process alive. DALI reads the headers of a batch in its threads and in the executor's own;
where the latter meets a broken one it leaves while the others still work on what it has taken down, and they crash
(DALI 2.4, image_decoder.h: an exception between RunAll(false) and WaitForWork). So everything that its parsers read,
up to a JPEG's first scan and to a PNG's end, is walked here first, at least as strictly. Damage in the pixels
themselves ends in an error that the decoder reports, as it should.
"""

import struct
from dataclasses import dataclass

_START_OF_SCAN = 0xDA
_END_OF_IMAGE = b"\xff\xd9"
_FRAMES = frozenset(
    {0xC0, 0xC1, 0xC2, 0xC9, 0xCA}
)  # baseline, extended, progressive; Huffman or arithmetic
_OTHER_FRAMES = (
    frozenset(range(0xC0, 0xD0)) - _FRAMES - {0xC4, 0xC8, 0xCC}
)  # lossless, hierarchical
_BARE = frozenset({0x00, 0x01, *range(0xD0, 0xDA)})  # no marker, or one without a length
_PNG_START = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"


@dataclass(frozen=True, slots=True)
class Header:
    """Size in pixels as encoded (before any EXIF rotation), bits and number of channels."""

    width: int
    height: int
    bits: int
    channels: int


def jpeg_header(data: bytes) -> Header | None:
    """What a JPEG says of itself; None where it is none, or anything before its first scan is broken."""
    if data[:2] != b"\xff\xd8":
        return None
    header = None
    position, end = 2, len(data)
    while position + 4 <= end and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:  # a fill byte
            position += 1
            continue
        if marker == _START_OF_SCAN:
            return header
        size = data[position + 2] << 8 | data[position + 3]
        if marker in _BARE or marker in _OTHER_FRAMES or size < 2 or position + 2 + size > end:
            return None
        if marker in _FRAMES:
            if header is not None or size < 8 or size < 8 + 3 * data[position + 9]:
                return None
            bits, height, width, channels = struct.unpack_from(">BHHB", data, position + 4)
            header = Header(width, height, bits, channels)
        elif marker == 0xE1 and size < 8 and data[position + 4 : position + 10] == b"Exif\0\0":
            return None
        position += 2 + size
    return None


def jpeg_has_end(data: bytes) -> bool:
    """Return whether a JPEG that has a header (`jpeg_header`) has its end marker after its pixels.

    Without one it was cut off. Each decoder treats that differently: libjpeg-turbo in DALI refuses
    the image, nvJPEG may fill the rest with grey.
    """
    if data.endswith(_END_OF_IMAGE):
        return True

    # Something follows the image. A thumbnail before the first scan has an end marker too.
    position = 2
    while data[position + 1] != _START_OF_SCAN:
        if data[position + 1] == 0xFF:  # a fill byte
            position += 1
        else:
            position += 2 + (data[position + 2] << 8 | data[position + 3])
    return data.find(_END_OF_IMAGE, position) >= 0


def mask_header(data: bytes) -> Header | None:
    """What a grey PNG says of itself; None where it is no PNG, not grey, or its chunks are broken."""
    if len(data) < 33 or not data.startswith(_PNG_START):
        return None
    width, height, bits, color_type = struct.unpack_from(">IIBB", data, 16)
    if color_type != 0:
        return None
    position = 33
    while position + 12 <= len(data):
        size, name = (
            int.from_bytes(data[position : position + 4], "big"),
            data[position + 4 : position + 8],
        )
        if name == b"IEND":
            return Header(width, height, bits, 1)
        if name == b"eXIf":  # nothing that we write, and a parser less to trust
            return None
        position += 12 + size
    return None
