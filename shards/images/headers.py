"""Parses JPEG, PNG and WebP headers without decoding: size, bits, channels, end of file.

Used by shards/loading/members.py: an image or mask that differs from its manifest (another size, a
palette, 16 bits) is recognized here in microseconds, before it fills the memory or is misaligned
with its mask.

It also keeps the process alive. DALI parses the headers of a batch in its threads and in the
executor's own; if the latter meets a broken one, it leaves while the others still work on what it
has freed, and they crash (DALI 2.4, image_decoder.h: an exception between RunAll(false) and
WaitForWork). So everything that its parsers read, up to a JPEG's first scan and to the end of a PNG
or WebP, is walked here first, at least as strictly. Damage in the pixels themselves ends in an
error that the decoder reports, as it should.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

_START_OF_SCAN = 0xDA
_END_OF_IMAGE = b"\xff\xd9"
# Baseline, extended, progressive; Huffman or arithmetic.
_FRAMES = frozenset({0xC0, 0xC1, 0xC2, 0xC9, 0xCA})
# Lossless, hierarchical.
_OTHER_FRAMES = frozenset(range(0xC0, 0xD0)) - _FRAMES - {0xC4, 0xC8, 0xCC}
# No marker, or one without a length.
_BARE = frozenset({0x00, 0x01, *range(0xD0, 0xDA)})
_EXIF = 0xE1
_EXIF_START = b"Exif\0\0"
# Segments that may state an orientation or a color space: EXIF, an ICC profile, Adobe's marker.
_TELLING = (b"\xff\xe1", b"\xff\xe2", b"\xff\xee")

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_START = _PNG_SIGNATURE + b"\x00\x00\x00\rIHDR"
_PNG_CHANNELS = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}
_PNG_PALETTE = 3

_WEBP_ANIMATION, _WEBP_ALPHA = 0x02, 0x10
_WEBP_LOSSLESS = 0x2F


@dataclass(frozen=True, slots=True)
class Header:
    """An image's header.

    Attributes:
        width: In pixels, as encoded: before any EXIF rotation.
        height: In pixels, as encoded.
        bits: Per sample; for a palette those of its colors.
        channels: 1 grey, 3 color, 2 and 4 with transparency.
        kind: "jpeg", "png" or "webp".
    """

    width: int
    height: int
    bits: int
    channels: int
    kind: str = "jpeg"


def image_header(data: bytes) -> Header | None:
    """Return an image's header; None if it is none of the three kinds, or is broken."""
    if data.startswith(_PNG_SIGNATURE):
        return png_header(data)
    if data[:4] == b"RIFF":
        return webp_header(data)
    return jpeg_header(data)


def is_loadable(data: bytes) -> bool:
    """Return whether loading takes an image as it is: intact, 8 bits, grey or RGB."""
    header = image_header(data)
    # What loading takes is decided here alone, for packing, indexing and reading.
    if header is None or header.bits > 8 or header.channels not in (1, 3):
        return False
    return header.kind != "jpeg" or jpeg_has_end(data)


def jpeg_header(data: bytes) -> Header | None:
    """Return a JPEG's header; None if it is not one, or is broken before its first scan."""
    if data[:2] != b"\xff\xd8":
        return None

    header = None
    position, end = 2, len(data)
    while position + 4 <= end and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:  # a fill byte
            position += 1
            continue
        # Only now: a frame behind the first scan is none that a decoder would use.
        if marker == _START_OF_SCAN:
            return header

        size = data[position + 2] << 8 | data[position + 3]
        if marker in _BARE or marker in _OTHER_FRAMES or size < 2 or position + 2 + size > end:
            return None
        if marker in _FRAMES:
            # Two frames are legal in hierarchical files alone, which nobody decodes.
            if header is not None:
                return None
            header = _frame(data, position, size)
            if header is None:
                return None
        elif marker == _EXIF and size < 8 and data[position + 4 : position + 10] == b"Exif\0\0":
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


def states_nothing_more(data: bytes) -> bool:
    """Return True for a JPEG without EXIF, profile or Adobe's marker: its pixels are upright sRGB.

    Args:
        data: A JPEG that `jpeg_header` has accepted.
    """
    scan = data.find(b"\xff\xda")
    return not any(data.find(marker, 2, scan) >= 0 for marker in _TELLING)


def png_header(data: bytes) -> Header | None:
    """Return a PNG's header; None if it is not one, or its chunks are broken."""
    if len(data) < 33 or not data.startswith(_PNG_START):
        return None

    width, height, bits, color_type = struct.unpack_from(">IIBB", data, 16)
    if color_type not in _PNG_CHANNELS or _chunk_names(data) is None:
        return None
    if color_type == _PNG_PALETTE:
        bits = 8  # of the colors; its indices have fewer
    return Header(width, height, bits, _PNG_CHANNELS[color_type], "png")


def mask_header(data: bytes) -> Header | None:
    """Return a grey PNG's header; None if it is not one or is broken.

    Masks with EXIF are refused: the packer writes none, and it is a parser less to trust.
    """
    header = png_header(data)
    if header is None or header.channels != 1:
        return None
    return None if b"eXIf" in (_chunk_names(data) or ()) else header


def webp_header(data: bytes) -> Header | None:
    """Return a WebP's header; None if it is not one, is broken, or is animated."""
    chunks = _webp_chunks(data)
    if not chunks or chunks[0].name not in (b"VP8X", b"VP8 ", b"VP8L"):
        return None

    frames = [chunk for chunk in chunks if chunk.name in (b"VP8 ", b"VP8L")]
    if len(frames) != 1:
        return None
    header = _webp_frame(frames[0])
    if header is None or chunks[0] is frames[0]:
        return header

    # The extended form states size and transparency once more.
    flags, canvas = chunks[0].start[0], chunks[0].start[4:10]
    width = int.from_bytes(canvas[:3], "little") + 1
    height = int.from_bytes(canvas[3:], "little") + 1
    if len(canvas) < 6 or flags & _WEBP_ANIMATION:
        return None
    if (width, height) != (header.width, header.height):
        return None
    return (
        Header(
            width,
            height,
            8,
            4,
            "webp",
        )
        if flags & _WEBP_ALPHA
        else header
    )


def _frame(data: bytes, position: int, size: int) -> Header | None:
    if size < 8 or size < 8 + 3 * data[position + 9]:
        return None
    bits, height, width, channels = struct.unpack_from(">BHHB", data, position + 4)
    return Header(width, height, bits, channels)


def _chunk_names(data: bytes) -> list[bytes] | None:
    """Return a PNG's chunks up to its end chunk; None if they are broken or have broken EXIF."""
    names: list[bytes] = []
    position = 33
    while position + 12 <= len(data):
        size = int.from_bytes(data[position : position + 4], "big")
        name = data[position + 4 : position + 8]
        if name == b"IEND":
            return names
        if name == b"eXIf" and not _is_exif(data[position + 8 : position + 8 + size]):
            return None
        names.append(name)
        position += 12 + size
    return None


def _is_exif(body: bytes) -> bool:
    """Return whether EXIF begins as a TIFF file does; DALI parses it for the orientation."""
    return len(body) >= 8 and body[:4] in (b"II*\0", b"MM\0*")


@dataclass(frozen=True, slots=True)
class _Chunk:
    """A WebP's chunk: its name, and the start of its body."""

    name: bytes
    start: bytes


def _webp_chunks(data: bytes) -> list[_Chunk] | None:
    """Return the chunks up to the end that RIFF states; None if any, or their EXIF, is broken."""
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP":
        return None
    end = 8 + int.from_bytes(data[4:8], "little")
    if end > len(data):
        return None

    chunks = []
    position = 12
    while position + 8 <= end:
        name = data[position : position + 4]
        size = int.from_bytes(data[position + 4 : position + 8], "little")
        body = position + 8
        if body + size > end:
            return None

        chunk = _Chunk(name, data[body : body + min(size, 32)])
        if name == b"EXIF" and not _is_exif(chunk.start.removeprefix(_EXIF_START)):
            return None
        chunks.append(chunk)
        position = body + size + (size & 1)
    return chunks if position == end else None


def _webp_frame(chunk: _Chunk) -> Header | None:
    start = chunk.start
    if len(start) < 10:
        return None
    if chunk.name == b"VP8L":
        if start[0] != _WEBP_LOSSLESS:
            return None
        sides = int.from_bytes(start[1:5], "little")
        channels = 4 if sides >> 28 & 1 else 3
        return Header(
            (sides & 0x3FFF) + 1,
            (sides >> 14 & 0x3FFF) + 1,
            8,
            channels,
            "webp",
        )

    # A key frame with its start code; both sides are 14 bits, with a scale above them.
    if start[0] & 1 or start[3:6] != b"\x9d\x01\x2a":
        return None
    width, height = struct.unpack_from("<HH", start, 6)
    return Header(
        width & 0x3FFF,
        height & 0x3FFF,
        8,
        3,
        "webp",
    )
