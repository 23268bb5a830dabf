"""Damage in a JPEG's pixels that its decoder passes over in silence, found without decoding.

libjpeg fills what is missing with grey and only counts a warning, which Pillow and DALI do not hand
on. So the bytes are examined here (ITU-T T.81, annex B): every file for what stands between its
scans, and a suspicious one by walking its Huffman codes (jpeg_blocks.py) to see whether every block
of the image is there. Suspicious is a file without its end marker, with a marker that has no place
in pixel data, or with a long run of zeros: a block of a disk that was never written. Walking takes
some 1 us per code in Python, so it is done for suspicious files alone.

A file that ends early is whole if every coefficient of every component is there, those beside DC at
least but for their last bit: what a progressive file's last scans add. Decoders show such a file,
which differs from the whole one about as much as that one differs from what was encoded.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from shards.images.jpeg_blocks import (
    NUM_COEFFICIENTS,
    PROGRESSIVE,
    ZERO_RUN,
    Frame,
    Scan,
    Tables,
    parse_codes,
    parse_frame,
    parse_scan,
    walk_scan,
)

START_OF_IMAGE = b"\xff\xd8"
END_OF_IMAGE = b"\xff\xd9"
EOI, SOS, DHT, DRI, DNL = 0xD9, 0xDA, 0xC4, 0xDD, 0xDC
SEQUENTIAL = (0xC0, 0xC1)
OTHER_FRAMES = (0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF)
# Markers that may follow a scan: tables, another scan, the end.
AFTER_SCAN = frozenset({DHT, SOS, 0xDB, DRI, DNL, 0xFE, EOI, *range(0xE0, 0xF0)})
# What may follow 0xFF within pixel data: a stuffed zero, a restart, a fill byte.
INSIDE_PIXELS = np.zeros(256, np.bool_)
INSIDE_PIXELS[[0x00, 0xFF, *range(0xD0, 0xD8)]] = True
LEGAL = np.zeros(256, np.bool_)
LEGAL[list(AFTER_SCAN)] = True
PLAIN_HEADERS = AFTER_SCAN - {EOI}
MAX_WALK_BYTES = 8 << 20  # some 10 s
MAX_SEGMENTS = 4096
# Lowest bit of a coefficient that no scan gave yet, and the one that a file may end with.
NOTHING, LAST_BIT = 16, 1


@dataclass(frozen=True)
class Examined:
    """The result of `examine`.

    Attributes:
        fault: What is wrong, in words; empty if nothing is.
        lacks_end: The file ends early, and the image is whole nevertheless.
        whole_bytes: The bytes after which the end marker is missing, where `lacks_end`.
        process: The frame's marker: 0xC0 baseline, 0xC1 extended, 0xC2 progressive, 0xC3 lossless,
            ...
    """

    fault: str = ""
    lacks_end: bool = False
    whole_bytes: int = 0
    process: int = 0

    @property
    def is_common(self) -> bool:
        """True for processes that every decoder has: sequential and progressive, Huffman codes."""
        return self.process in (*SEQUENTIAL, PROGRESSIVE)


def examine(content: bytes) -> Examined:
    """Examine the bytes of a JPEG file from its first frame to its end marker; ignore the rest.

    Damaged headers and cut-off files are left to the decoder, which reports them.
    """
    process = _plainly_whole(content)
    if process:
        return Examined(process=process)
    try:
        return _walk_segments(content)
    except (IndexError, KeyError, ValueError):
        return Examined()


def _plainly_whole(content: bytes) -> int:
    """Return the process of a file without a trace of damage; 0 for one that has to be walked.

    Nearly every file: a common process, no hole of zeros, and behind the first scan no marker but
    those that belong there, with the end marker as the last two bytes. A fifth of the walk's time.
    """
    position, process = 2, 0
    while content[position : position + 1] == b"\xff":
        marker = content[position + 1 : position + 2]
        if marker == b"\xda":
            break
        if marker in (b"\xc0", b"\xc1", b"\xc2"):
            process = marker[0]
        elif not marker or marker[0] not in PLAIN_HEADERS:
            return 0
        position += 2 + max(2, int.from_bytes(content[position + 2 : position + 4], "big"))

    if not process or not content.endswith(END_OF_IMAGE) or content.find(ZERO_RUN, position) >= 0:
        return 0
    values = np.frombuffer(content, np.uint8, offset=position + 2)
    following = values[1:][values[:-1] == 0xFF]
    markers = following[~INSIDE_PIXELS[following]]
    is_plain = LEGAL[markers].all() and np.count_nonzero(markers == EOI) == 1
    return process if is_plain else 0


def _walk_segments(content: bytes) -> Examined:
    walk = _Walk(content, _marker_positions(content))
    position = 2

    for _ in range(MAX_SEGMENTS):
        # Fill bytes: any number may stand before a marker.
        while content[position : position + 2] == b"\xff\xff":
            position += 1
        marker, body = _segment(content, position)
        if marker == EOI:
            return Examined(process=walk.process)
        if marker is None:
            return walk.verdict_at_end(position)

        position += 4 + len(body)
        if marker == SOS:
            verdict = walk.examine_scan(position, body)
            if verdict is not None:
                return verdict
            position = walk.scan_end(position)
        else:
            walk.take_segment(marker, body)

    raise ValueError("more segments than a JPEG can sensibly have")


def _segment(content: bytes, position: int) -> tuple[int | None, bytes]:
    """Return a segment's marker and body; no marker where the file ends within it.

    Raises:
        ValueError: Something else stands here.
    """
    if content[position : position + 1] not in (b"", b"\xff"):
        raise ValueError("no marker")
    if content[position + 1 : position + 2] == END_OF_IMAGE[1:]:
        return EOI, b""

    size = int.from_bytes(content[position + 2 : position + 4], "big")
    body = content[position + 4 : position + 2 + size]
    if position + 4 > len(content) or position + 2 + size > len(content):
        return None, b""
    if size < 2:
        raise ValueError("a segment that is shorter than its length")
    return content[position + 1], body


def _marker_positions(content: bytes) -> NDArray[np.int64]:
    """Return where a marker that has no place within pixel data stands."""
    # By numpy, in some 30 us for 60 kB: a regular expression takes 50 times as long.
    values = np.frombuffer(content, np.uint8)
    positions = np.flatnonzero(values[:-1] == 0xFF)
    return positions[~INSIDE_PIXELS[values[positions + 1]]]


@dataclass
class _Walk:
    """A walk over a file's segments, with the frame and the tables that are in force.

    Attributes:
        content: The file.
        markers: Where markers that have no place within pixel data stand.
        frame: The frame's header, once it was seen.
        tables: Those in force.
        lowest_bits: Of each component, the lowest bit that the scans gave of each coefficient.
    """

    content: bytes
    markers: NDArray[np.int64]
    frame: Frame | None = None
    tables: Tables = field(default_factory=Tables)
    lowest_bits: dict[int, list[int]] = field(default_factory=dict)

    @property
    def process(self) -> int:
        return self.frame.process if self.frame else 0

    @property
    def _is_huffman(self) -> bool:
        return self.process in (*SEQUENTIAL, PROGRESSIVE)

    def take_segment(self, marker: int, body: bytes) -> None:
        """Note what a segment before or between the scans states."""
        if marker in (*SEQUENTIAL, PROGRESSIVE, *OTHER_FRAMES):
            self.frame = parse_frame(marker, body)
            for name in self.frame.components:
                self.lowest_bits[name] = [NOTHING] * NUM_COEFFICIENTS
        elif marker == DHT:
            parse_codes(body, self.tables)
        elif marker == DRI:
            self.tables.restart_interval = int.from_bytes(body[:2], "big")

    def scan_end(self, start: int) -> int:
        """Return the position of the marker that ends a scan's data, or of the file's end."""
        following = self.markers[np.searchsorted(self.markers, start) :]
        return int(following[0]) if len(following) else len(self.content)

    def examine_scan(self, start: int, header: bytes) -> Examined | None:
        """Return the verdict on the file, if the scan whose data starts here decides it.

        Raises:
            ValueError: A scan before the frame.
        """
        if self.frame is None:
            raise ValueError("a scan before the frame")

        scan = parse_scan(header, self.frame)
        end = self.scan_end(start)
        has_marker = end < len(self.content)
        is_legal = has_marker and self.content[end + 1] in AFTER_SCAN
        has_zeros = self.content.find(ZERO_RUN, start, end) >= 0

        is_walked = False
        if (has_zeros or not is_legal) and self._can_walk(scan, end - start):
            fault = walk_scan(self.content[start:end], scan, self.frame, self.tables)
            if fault:
                # Without any marker and without a hole the file is cut off: its decoder says so.
                fault = fault if has_marker or has_zeros else ""
                return Examined(fault, process=self.process)
            is_walked = True

        if is_legal or is_walked:
            self._note(scan)
        if is_legal:
            return None
        if has_marker and not is_walked:
            fault = f"marker 0x{self.content[end + 1]:02X} is in the middle of its pixels"
            return Examined(fault, process=self.process)
        # Without a marker only the end is missing; behind a strange one is waste.
        return self.verdict_at_end(end)

    def verdict_at_end(self, end: int) -> Examined:
        """Return the verdict on a file that ends here without its end marker."""
        lowest = max((max(bits) for bits in self.lowest_bits.values()), default=NOTHING)
        # A block's mean without its last bit would be seen: as a step at the block's edge.
        has_means = all(bits[0] == 0 for bits in self.lowest_bits.values())
        is_whole = lowest <= LAST_BIT and has_means and self._is_huffman
        whole_bytes = end if is_whole else 0
        return Examined(lacks_end=is_whole, whole_bytes=whole_bytes, process=self.process)

    def _can_walk(self, scan: Scan, size: int) -> bool:
        is_first = scan.high == 0
        return self._is_huffman and is_first and size <= MAX_WALK_BYTES

    def _note(self, scan: Scan) -> None:
        for name in scan.components:
            bits = self.lowest_bits[name]
            bits[scan.first : scan.last + 1] = [scan.low] * (scan.last + 1 - scan.first)
