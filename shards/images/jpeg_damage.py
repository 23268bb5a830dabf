"""Damage in a JPEG's pixels that its decoder passes over in silence, found without decoding.

libjpeg fills what is missing with grey and only counts a warning, which Pillow and DALI do not hand
on. So the bytes are examined here (ITU-T T.81, annexes B and F): every file for what stands between
its scans, and a suspicious one by walking its Huffman codes to see whether every block of the image
is there. Suspicious is a file without its end marker, with a marker that has no place in pixel
data, or with a long run of zeros: a block of a disk that was never written. Walking takes some 1 us
per code in Python, so it is done for suspicious files alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

START_OF_IMAGE = b"\xff\xd8"
END_OF_IMAGE = b"\xff\xd9"
EOI, SOS, DHT, DRI, DNL = 0xD9, 0xDA, 0xC4, 0xDD, 0xDC
SEQUENTIAL = (0xC0, 0xC1)
PROGRESSIVE = 0xC2
OTHER_FRAMES = (0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF)
# Markers that may follow a scan: tables, another scan, the end.
AFTER_SCAN = frozenset({DHT, SOS, 0xDB, DRI, DNL, 0xFE, EOI, *range(0xE0, 0xF0)})
# What may follow 0xFF within pixel data: a stuffed zero, a restart, a fill byte.
INSIDE_PIXELS = np.zeros(256, np.bool_)
INSIDE_PIXELS[[0x00, 0xFF, *range(0xD0, 0xD8)]] = True
RESTART = re.compile(rb"\xff+[\xd0-\xd7]")
# Where the all-zero AC code means "end of block", flat areas may be runs of zeros. Elsewhere it
# means a small coefficient, and blocks full of those do not exist; such a hole may even
# resynchronize without a trace.
ZERO_RUN = bytes(32)
END_OF_BLOCK = 0
MAX_WALK_BYTES = 8 << 20  # some 10 s
# Padding, and what careless encoders leave behind the last block.
MAX_LEFTOVER_BYTES = 8
MAX_SEGMENTS = 4096


@dataclass(frozen=True)
class Examined:
    """The result of `examine`.

    Attributes:
        fault: What is wrong, in words; empty if nothing is.
        lacks_end: All blocks are there, and only the end marker is missing.
        process: The frame's marker: 0xC0 baseline, 0xC1 extended, 0xC2 progressive, 0xC3 lossless,
            ...
    """

    fault: str = ""
    lacks_end: bool = False
    process: int = 0

    @property
    def is_common(self) -> bool:
        """True for processes that every decoder has: sequential and progressive, Huffman codes."""
        return self.process in (*SEQUENTIAL, PROGRESSIVE)


@dataclass(frozen=True)
class _Component:
    across: int  # blocks per MCU
    down: int


@dataclass
class _Frame:
    process: int
    width: int
    height: int
    components: dict[int, _Component]

    def blocks(self, chosen: list[int]) -> tuple[int, list[int]]:
        """Return the MCUs of a scan, and the component of each block of an MCU."""
        widest = max(each.across for each in self.components.values())
        tallest = max(each.down for each in self.components.values())

        if len(chosen) > 1:
            num_mcus = _ceil_div(
                self.width,
                8 * widest,
            ) * _ceil_div(
                self.height,
                8 * tallest,
            )
            owners = []
            for name in chosen:
                owners += [name] * (self.components[name].across * self.components[name].down)
            return num_mcus, owners

        # A scan of one component has no padding to whole MCUs: its MCU is a block.
        only = self.components[chosen[0]]
        across = _ceil_div(
            _ceil_div(self.width * only.across, widest),
            8,
        )
        down = _ceil_div(
            _ceil_div(self.height * only.down, tallest),
            8,
        )
        return across * down, chosen


@dataclass
class _Tables:
    """Huffman tables at a scan: (class, id) -> counts per code length, and symbols."""

    codes: dict[tuple[int, int], tuple[bytes, bytes]] = field(default_factory=dict)
    restart_interval: int = 0


def examine(content: bytes) -> Examined:
    """Examine the bytes of a JPEG file from its first frame to its end marker; ignore the rest.

    Damaged headers and cut-off files are left to the decoder, which reports them.
    """
    try:
        return _walk_segments(content)
    except (IndexError, KeyError, ValueError):
        return Examined()


def _walk_segments(content: bytes) -> Examined:
    walk = _Walk(content, _marker_positions(content))
    position = 2

    for _ in range(MAX_SEGMENTS):
        while content[position : position + 2] == b"\xff\xff":
            position += 1
        if content[position] != 0xFF:
            raise ValueError("no marker")

        marker = content[position + 1]
        if marker == EOI:
            return Examined(process=walk.process)

        size = int.from_bytes(
            content[position + 2 : position + 4],
            "big",
        )
        body = content[position + 4 : position + 2 + size]
        if size < 2 or len(body) != size - 2:
            raise ValueError("a segment is cut off")

        position += 2 + size
        if marker == SOS:
            verdict = walk.examine_scan(position, body)
            if verdict is not None:
                return verdict
            position = walk.scan_end(position)
        else:
            walk.take_segment(marker, body)

    raise ValueError("more segments than a JPEG can sensibly have")


def _marker_positions(content: bytes) -> NDArray[np.int64]:
    """Return where a marker that has no place within pixel data stands."""
    # By numpy, in some 30 us for 60 kB: a regular expression takes 50 times as long.
    values = np.frombuffer(content, np.uint8)
    positions = np.flatnonzero(values[:-1] == 0xFF)
    return positions[~INSIDE_PIXELS[values[positions + 1]]]


@dataclass
class _Walk:
    """A walk over a file's segments, with the frame and the tables that are in force."""

    content: bytes
    markers: NDArray[np.int64]
    frame: _Frame | None = None
    tables: _Tables = field(default_factory=_Tables)

    @property
    def process(self) -> int:
        return self.frame.process if self.frame else 0

    def take_segment(self, marker: int, body: bytes) -> None:
        """Note what a segment before or between the scans states."""
        if marker in (*SEQUENTIAL, PROGRESSIVE, *OTHER_FRAMES):
            self.frame = _parse_frame(marker, body)
        elif marker == DHT:
            _parse_codes(body, self.tables)
        elif marker == DRI:
            self.tables.restart_interval = int.from_bytes(
                body[:2],
                "big",
            )

    def scan_end(self, start: int) -> int:
        """Return the position of the marker that ends a scan's data, or of the file's end."""
        following = self.markers[
            np.searchsorted(
                self.markers,
                start,
            ) :
        ]
        return int(following[0]) if len(following) else len(self.content)

    def examine_scan(self, start: int, header: bytes) -> Examined | None:
        """Return the verdict on the file, if the scan whose data starts here decides it.

        Raises:
            ValueError: A scan before the frame.
        """
        if self.frame is None:
            raise ValueError("a scan before the frame")

        end = self.scan_end(start)
        has_marker = end < len(self.content)
        is_legal = has_marker and self.content[end + 1] in AFTER_SCAN
        has_zeros = self.content.find(ZERO_RUN, start, end) >= 0
        if is_legal and not has_zeros:
            return None

        can_walk = self.process in SEQUENTIAL and end - start <= MAX_WALK_BYTES
        if not can_walk:
            if is_legal:
                return None
            if not has_marker:
                return Examined(process=self.process)
            fault = f"marker 0x{self.content[end + 1]:02X} is in the middle of its pixels"
            return Examined(fault, process=self.process)

        fault = _walk_scan(
            self.content[start:end],
            header,
            self.frame,
            self.tables,
        )
        if fault:
            # Without any marker and without a hole the file is cut off, which its decoder reports.
            return Examined(
                fault if has_marker or has_zeros else "",
                process=self.process,
            )
        if is_legal:
            return None

        # Every block is there. Without a marker only the end is missing; behind a strange one is
        # waste.
        return Examined(lacks_end=True, process=self.process)


def _parse_frame(marker: int, body: bytes) -> _Frame:
    height, width, count = (
        int.from_bytes(body[1:3], "big"),
        int.from_bytes(body[3:5], "big"),
        body[5],
    )
    components = {}
    for number in range(count):
        name, sampling = body[6 + 3 * number], body[7 + 3 * number]
        if not (1 <= sampling >> 4 <= 4 and 1 <= sampling & 15 <= 4):
            raise ValueError("sampling factors")
        components[name] = _Component(
            sampling >> 4,
            sampling & 15,
        )
    if not components:
        raise ValueError("no components")
    return _Frame(marker, width, height, components)


def _parse_codes(body: bytes, tables: _Tables) -> None:
    position = 0
    while position + 17 <= len(body):
        kind = body[position]
        counts = body[position + 1 : position + 17]
        symbols = body[position + 17 : position + 17 + sum(counts)]
        if len(symbols) != sum(counts):
            raise ValueError("a table is cut off")
        tables.codes[kind >> 4, kind & 15] = (counts, symbols)
        position += 17 + sum(counts)


def _prefix_table(codes: tuple[bytes, bytes]) -> list[int]:
    """Return length * 256 + symbol for each 16-bit prefix; 0 for a prefix that is not a code."""
    counts, symbols = codes
    table: list[int] = []
    used = 0
    for length, count in enumerate(counts, 1):
        for _ in range(count):
            table += [length << 8 | symbols[used]] * (1 << 16 - length)
            used += 1
    if len(table) > 1 << 16:
        raise ValueError("a table has too many codes")
    return table + [0] * ((1 << 16) - len(table))


def _walk_scan(data: bytes, header: bytes, frame: _Frame, tables: _Tables) -> str:
    """Return what is wrong with a scan's blocks; empty if each is there."""
    chosen, selectors = [], {}
    for number in range(header[0]):
        name, selector = header[1 + 2 * number], header[2 + 2 * number]
        dc_codes = _prefix_table(tables.codes[0, selector >> 4])
        ac_codes = _prefix_table(tables.codes[1, selector & 15])
        if ZERO_RUN in data and ac_codes[0] & 255 != END_OF_BLOCK:
            return "it has a hole of zeros in its pixels"

        chosen.append(name)
        selectors[name] = (dc_codes, ac_codes)

    num_mcus, owners = frame.blocks(chosen)
    blocks = [selectors[name] for name in owners]
    interval = tables.restart_interval or num_mcus

    parts = RESTART.split(data)
    expected = _ceil_div(num_mcus, interval)
    if len(parts) != expected:
        return f"it has {len(parts)} of {expected} restart intervals"

    left = num_mcus
    for part in parts:
        fault = _walk_interval(
            part.replace(b"\xff\x00", b"\xff"),
            min(interval, left),
            blocks,
        )
        if fault:
            return fault
        left -= interval
    return ""


def _walk_interval(data: bytes, num_mcus: int, blocks: list[tuple[list[int], list[int]]]) -> str:
    bits = _Bits(data)
    for mcu in range(num_mcus):
        for dc_codes, ac_codes in blocks:
            if not _skip_block(bits, dc_codes, ac_codes):
                return f"{num_mcus - mcu:,} of its {num_mcus:,} blocks are missing or damaged"

    leftover = bits.leftover_bytes()
    if leftover > MAX_LEFTOVER_BYTES:
        return (
            f"{leftover:,} bytes are left over behind its last block, so there is a hole before it"
        )
    return ""


def _skip_block(bits: _Bits, dc_codes: list[int], ac_codes: list[int]) -> bool:
    """Walk over one block; False if it is cut off or has a code that is in no table."""
    code = dc_codes[bits.peek16()]
    if not code or code & 255 > 16:
        return False
    bits.skip((code >> 8) + (code & 255))

    index = 1
    while index < 64:
        code = ac_codes[bits.peek16()]
        if not code:
            return False
        size = code & 15
        bits.skip((code >> 8) + size)

        run = code >> 4 & 15
        if size == 0 and run != 15:
            break  # end of block
        index += run + 1

    return index <= 64 and not bits.is_overrun


class _Bits:
    """Reads bits from bytes without stuffing."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0  # bytes taken into the buffer
        self._buffer = 0
        self._count = 0  # bits in the buffer; negative beyond the end

    @property
    def is_overrun(self) -> bool:
        """True if more bits were used than there are."""
        return self._count < 0

    def peek16(self) -> int:
        """Return the next 16 bits; ones beyond the end, which start no code."""
        if self._count < 16:
            more = self._data[self._position : self._position + 8]
            self._position += len(more)
            self._buffer = (self._buffer << 8 * len(more)) | int.from_bytes(
                more,
                "big",
            )
            self._count += 8 * len(more)
            if self._count < 16:
                missing = 16 - max(self._count, 0)
                return (self._buffer << missing | (1 << missing) - 1) & 0xFFFF

        return self._buffer >> (self._count - 16) & 0xFFFF

    def skip(self, number: int) -> None:
        """Pass over some bits."""
        self._count -= number
        if self._count > 0:
            self._buffer &= (1 << self._count) - 1
        else:
            self._refill()

    def _refill(self) -> None:
        more = self._data[self._position : self._position + 8]
        self._position += len(more)
        self._count += 8 * len(more)
        kept = max(self._count, 0)
        self._buffer = int.from_bytes(
            more,
            "big",
        ) & ((1 << kept) - 1)

    def leftover_bytes(self) -> int:
        """Return the whole bytes that were not used."""
        return (
            len(self._data)
            - self._position
            + max(
                self._count,
                0,
            )
            // 8
        )


def _ceil_div(number: int, divisor: int) -> int:
    return -(-number // divisor)
