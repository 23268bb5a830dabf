"""Walks the Huffman codes of a JPEG's scans to see whether every block is there (ITU-T T.81, F, G).

Used by shards/images/jpeg_damage.py for suspicious files. Nothing is decoded: a code says how many
bits to pass over. A scan that refines coefficients cannot be walked so, since what a bit means in
it depends on all earlier scans.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

PROGRESSIVE = 0xC2
RESTART = re.compile(rb"\xff+[\xd0-\xd7]")
# Where the all-zero AC code means "end of block", flat areas may be runs of zeros. Elsewhere it
# means a small coefficient, and blocks full of those do not exist; such a hole may even
# resynchronize without a trace.
ZERO_RUN = bytes(32)
END_OF_BLOCK = 0
NUM_COEFFICIENTS = 64
# Padding, and what careless encoders leave behind the last block.
MAX_LEFTOVER_BYTES = 8


@dataclass(frozen=True)
class Component:
    """A component's sampling factors."""

    across: int  # blocks per MCU
    down: int


@dataclass
class Frame:
    """What a frame's header states: its process by its marker, its size, its components."""

    process: int
    width: int
    height: int
    components: dict[int, Component]

    def blocks(self, chosen: list[int]) -> tuple[int, list[int]]:
        """Return the MCUs of a scan, and the component of each block of an MCU."""
        widest = max(each.across for each in self.components.values())
        tallest = max(each.down for each in self.components.values())

        if len(chosen) > 1:
            num_mcus = _ceil_div(self.width, 8 * widest) * _ceil_div(self.height, 8 * tallest)
            owners = []
            for name in chosen:
                owners += [name] * (self.components[name].across * self.components[name].down)
            return num_mcus, owners

        # A scan of one component has no padding to whole MCUs: its MCU is a block.
        only = self.components[chosen[0]]
        across = _ceil_div(_ceil_div(self.width * only.across, widest), 8)
        down = _ceil_div(_ceil_div(self.height * only.down, tallest), 8)
        return across * down, chosen


@dataclass
class Tables:
    """Huffman tables at a scan: (class, id) -> counts per code length, and symbols."""

    codes: dict[tuple[int, int], tuple[bytes, bytes]] = field(default_factory=dict)
    restart_interval: int = 0


@dataclass(frozen=True)
class Scan:
    """A scan's header.

    Attributes:
        components: Names of its components.
        selectors: Number of the DC and of the AC table of each.
        first: First coefficient of its band; 0 is DC.
        last: Last coefficient of its band.
        high: Lowest bit that earlier scans gave; 0 for a first scan of the band.
        low: Lowest bit that this scan gives.
    """

    components: list[int]
    selectors: list[tuple[int, int]]
    first: int = 0
    last: int = NUM_COEFFICIENTS - 1
    high: int = 0
    low: int = 0


def parse_frame(marker: int, body: bytes) -> Frame:
    """Return what a start of frame states; IndexError or ValueError if it is damaged."""
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
        components[name] = Component(sampling >> 4, sampling & 15)
    if not components:
        raise ValueError("no components")
    return Frame(marker, width, height, components)


def parse_codes(body: bytes, tables: Tables) -> None:
    """Add a segment's Huffman tables to those in force."""
    position = 0
    while position + 17 <= len(body):
        kind = body[position]
        counts = body[position + 1 : position + 17]
        symbols = body[position + 17 : position + 17 + sum(counts)]
        if len(symbols) != sum(counts):
            raise ValueError("a table is cut off")
        tables.codes[kind >> 4, kind & 15] = (counts, symbols)
        position += 17 + sum(counts)


def parse_scan(header: bytes, frame: Frame) -> Scan:
    """Return what a start of scan states; a sequential one has the whole band, whatever it says."""
    components, selectors = [], []
    for number in range(header[0]):
        name, selector = header[1 + 2 * number], header[2 + 2 * number]
        if name not in frame.components:
            raise ValueError("a component that the frame does not have")
        components.append(name)
        selectors.append((selector >> 4, selector & 15))
    if frame.process != PROGRESSIVE:
        return Scan(components, selectors)

    first, last, bits = header[1 + 2 * header[0] : 4 + 2 * header[0]]
    if not first <= last < NUM_COEFFICIENTS or (first > 0 and len(components) > 1):
        raise ValueError("a band that does not exist")
    return Scan(components, selectors, first, last, bits >> 4, bits & 15)


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


def walk_scan(data: bytes, scan: Scan, frame: Frame, tables: Tables) -> str:
    """Return what is wrong with the blocks of a band's first scan; empty if each is there."""
    is_progressive = frame.process == PROGRESSIVE
    has_dc, has_ac = scan.first == 0, scan.last > 0
    codes = {}
    for name, (dc_table, ac_table) in zip(scan.components, scan.selectors, strict=True):
        dc_codes = _prefix_table(tables.codes[0, dc_table]) if has_dc else []
        ac_codes = _prefix_table(tables.codes[1, ac_table]) if has_ac else []
        if not is_progressive and ZERO_RUN in data and ac_codes[0] & 255 != END_OF_BLOCK:
            return "it has a hole of zeros in its pixels"
        codes[name] = (dc_codes, ac_codes)

    num_mcus, owners = frame.blocks(scan.components)
    blocks = [codes[name] for name in owners]
    interval = tables.restart_interval or num_mcus

    parts = RESTART.split(data)
    expected = _ceil_div(num_mcus, interval)
    if len(parts) != expected:
        return f"it has {len(parts)} of {expected} restart intervals"

    left = num_mcus
    for part in parts:
        bits = _Bits(part.replace(b"\xff\x00", b"\xff"))
        if has_dc:
            fault = _walk_interval(bits, min(interval, left), blocks, has_ac=has_ac)
        else:
            fault = _walk_band(bits, min(interval, left), blocks[0][1], scan)
        fault = fault or _leftover_fault(bits)
        if fault:
            return fault
        left -= interval
    return ""


def _walk_interval(
    bits: _Bits, num_mcus: int, blocks: list[tuple[list[int], list[int]]], *, has_ac: bool
) -> str:
    for mcu in range(num_mcus):
        for dc_codes, ac_codes in blocks:
            is_there = _skip_dc(bits, dc_codes) and (not has_ac or _skip_ac(bits, ac_codes))
            if not is_there or bits.is_overrun:
                return _missing(num_mcus - mcu, num_mcus)
    return ""


def _walk_band(bits: _Bits, num_blocks: int, codes: list[int], scan: Scan) -> str:
    """Walk over the blocks of a progressive band without DC, with its runs of ended blocks."""
    block = 0
    while block < num_blocks:
        block += _skip_band(bits, codes, scan)
        if bits.is_overrun:
            return _missing(num_blocks - block + 1, num_blocks)
    return "" if block == num_blocks else "a run of its blocks goes beyond the last one"


def _skip_band(bits: _Bits, codes: list[int], scan: Scan) -> int:
    """Walk over one block of a band; return how many blocks ended with it.

    A code that is in no table, or a coefficient beyond the band, is passed over as the end of the
    data.
    """
    index = scan.first
    while index <= scan.last:
        code = codes[bits.peek16()]
        if not code:
            bits.exhaust()
            return 1
        run, size = code >> 4 & 15, code & 15
        bits.skip(code >> 8)

        if size == 0 and run != 15:
            # G.1.2.2: 2 to the power of `run` blocks, and as many more as the next bits say.
            more = bits.peek16() >> (16 - run) if run else 0
            bits.skip(run)
            return (1 << run) + more
        bits.skip(size)
        index += run + 1

    if index > scan.last + 1:
        bits.exhaust()
    return 1


def _leftover_fault(bits: _Bits) -> str:
    leftover = bits.leftover_bytes()
    if leftover <= MAX_LEFTOVER_BYTES:
        return ""
    return f"{leftover:,} bytes are left over behind its last block, so there is a hole before it"


def _missing(number: int, num_blocks: int) -> str:
    return f"{number:,} of its {num_blocks:,} blocks are missing or damaged"


def _skip_dc(bits: _Bits, codes: list[int]) -> bool:
    """Walk over a block's DC code; False if it is in no table."""
    code = codes[bits.peek16()]
    if not code or code & 255 > 16:
        return False
    bits.skip((code >> 8) + (code & 255))
    return True


def _skip_ac(bits: _Bits, codes: list[int]) -> bool:
    """Walk over a block's AC codes; False if one is in no table, or they are too many."""
    index = 1
    while index < NUM_COEFFICIENTS:
        code = codes[bits.peek16()]
        if not code:
            return False
        size = code & 15
        bits.skip((code >> 8) + size)

        run = code >> 4 & 15
        if size == 0 and run != 15:
            break  # end of block
        index += run + 1

    return index <= NUM_COEFFICIENTS


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
            self._buffer = (self._buffer << 8 * len(more)) | int.from_bytes(more, "big")
            self._count += 8 * len(more)
            if self._count < 16:
                missing = 16 - max(self._count, 0)
                return (self._buffer << missing | (1 << missing) - 1) & 0xFFFF

        return self._buffer >> (self._count - 16) & 0xFFFF

    def exhaust(self) -> None:
        """Pass over everything, and more."""
        self._position, self._buffer, self._count = len(self._data), 0, -1

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
        self._buffer = int.from_bytes(more, "big") & ((1 << kept) - 1)

    def leftover_bytes(self) -> int:
        """Return the whole bytes that were not used."""
        return len(self._data) - self._position + max(self._count, 0) // 8


def _ceil_div(number: int, divisor: int) -> int:
    return -(-number // divisor)
