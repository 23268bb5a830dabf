"""Small ICC profiles from primaries and a transfer curve, so that all color takes one path.

A PNG's gAMA, cHRM and cICP chunks and EXIF's "Adobe RGB" become a matrix profile here
(ICC.1:2001-04, "Three- component matrix-based input profiles"); shards/images/color_space.py hands
it to littlecms like an embedded one.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CURVE_POINTS = 4096  # finer than 8-bit input needs: sRGB comes out within half a level
D50 = np.array([0.9642, 1.0, 0.8249])  # the profile connection space's white
BRADFORD = np.array(
    [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
)
HEADER_BYTES = 128

Point = tuple[float, float]  # CIE xy
Curve = Callable[[NDArray[np.float64]], NDArray[np.float64]]  # sample in [0, 1] -> linear light


@dataclass(frozen=True)
class Primaries:
    """CIE xy of white, red, green and blue."""

    white: Point
    red: Point
    green: Point
    blue: Point

    def to_pcs(self) -> NDArray[np.float64]:
        """Return the matrix from linear RGB to XYZ under D50.

        Raises:
            ValueError: The primaries span no color space.
        """
        columns = np.array([_xyz(point) for point in (self.red, self.green, self.blue)]).T
        white = _xyz(self.white)
        try:
            scales = np.linalg.solve(columns, white)
        except np.linalg.LinAlgError:
            raise ValueError("its primaries lie on one line") from None
        # A primary that adds nothing to white cannot be inverted.
        if not (np.isfinite(scales).all() and (np.abs(scales) > 1e-6).all()):
            raise ValueError("its primaries span no color space")

        cones = BRADFORD @ white
        # Bradford's adaptation from the space's white to D50, in which ICC profiles count.
        adapted = np.linalg.inv(BRADFORD) @ np.diag((BRADFORD @ D50) / cones) @ BRADFORD
        matrix: NDArray[np.float64] = adapted @ (columns * scales)
        return matrix


D65 = (0.3127, 0.3290)
BT709 = Primaries(
    D65,
    (0.64, 0.33),
    (0.30, 0.60),
    (0.15, 0.06),
)
ADOBE_RGB = Primaries(
    D65,
    (0.64, 0.33),
    (0.21, 0.71),
    (0.15, 0.06),
)
BT2020 = Primaries(
    D65,
    (0.708, 0.292),
    (0.170, 0.797),
    (0.131, 0.046),
)
DISPLAY_P3 = Primaries(
    D65,
    (0.680, 0.320),
    (0.265, 0.690),
    (0.150, 0.060),
)
DCI_P3 = Primaries(
    (0.314, 0.351),
    (0.680, 0.320),
    (0.265, 0.690),
    (0.150, 0.060),
)
BT601_625 = Primaries(
    D65,
    (0.64, 0.33),
    (0.29, 0.60),
    (0.15, 0.06),
)
BT601_525 = Primaries(
    D65,
    (0.630, 0.340),
    (0.310, 0.595),
    (0.155, 0.070),
)
BT470_M = Primaries(
    (0.310, 0.316),
    (0.67, 0.33),
    (0.21, 0.71),
    (0.14, 0.08),
)
ADOBE_GAMMA = 563 / 256


def gamma_curve(gamma: float) -> Curve:
    """Return light = sample ** gamma."""
    return lambda samples: samples**gamma


def srgb_curve(samples: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the light of sRGB samples (IEC 61966-2-1)."""
    return np.where(
        samples <= 0.04045,
        samples / 12.92,
        ((samples + 0.055) / 1.055) ** 2.4,
    )


def bt709_curve(samples: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the light of BT.709 samples, the inverse of its camera curve."""
    return np.where(
        samples < 0.081,
        samples / 4.5,
        ((samples + 0.099) / 1.099) ** (1 / 0.45),
    )


def rgb_profile(primaries: Primaries, curve: Curve) -> bytes:
    """Return a version 2 display profile with these primaries and this curve on each channel.

    Raises:
        ValueError: The primaries span no color space.
    """
    matrix = primaries.to_pcs()
    trc = _curve_tag(curve)
    tags = [
        (b"desc", _description_tag()),
        (b"cprt", b"text\0\0\0\0none\0"),
        (b"wtpt", _xyz_tag(D50)),
        *((name, _xyz_tag(matrix[:, column])) for column, name in enumerate(COLORANTS)),
        *((name, trc) for name in (b"rTRC", b"gTRC", b"bTRC")),
    ]
    return _assembled(b"RGB ", tags)


def grey_profile(curve: Curve) -> bytes:
    """Return a version 2 display profile of grey with this curve."""
    tags = [
        (b"desc", _description_tag()),
        (b"cprt", b"text\0\0\0\0none\0"),
        (b"wtpt", _xyz_tag(D50)),
        (b"kTRC", _curve_tag(curve)),
    ]
    return _assembled(b"GRAY", tags)


COLORANTS = (b"rXYZ", b"gXYZ", b"bXYZ")


def _xyz(point: Point) -> NDArray[np.float64]:
    x, y = point
    # y divides below; a PNG may state any number.
    if not 1e-4 <= y <= 1.0 or not -0.5 <= x <= 1.5:
        raise ValueError(f"chromaticity {x:g}, {y:g} is not a color")
    return np.array([x / y, 1.0, (1.0 - x - y) / y])


def _xyz_tag(values: NDArray[np.float64]) -> bytes:
    # s15Fixed16Number of the ICC specification.
    fixed = [round(float(value) * 65536) for value in values]
    if any(abs(number) >= 1 << 31 for number in fixed):
        raise ValueError("its primaries span no color space")
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *fixed)


def _curve_tag(curve: Curve) -> bytes:
    light = np.clip(curve(np.linspace(0.0, 1.0, CURVE_POINTS)), 0.0, 1.0)
    # ICC files are big-endian throughout.
    values = np.round(light * 65535).astype(">u2")
    return b"curv\0\0\0\0" + struct.pack(">I", CURVE_POINTS) + values.tobytes()


def _description_tag() -> bytes:
    text = b"colorgan\0"
    return b"desc\0\0\0\0" + struct.pack(">I", len(text)) + text + bytes(78)


def _assembled(color_space: bytes, tags: list[tuple[bytes, bytes]]) -> bytes:
    table = struct.pack(">I", len(tags))
    offset = HEADER_BYTES + 4 + 12 * len(tags)
    data = b""

    for name, content in tags:
        table += name + struct.pack(">II", offset + len(data), len(content))
        # Tags begin at multiples of four bytes.
        data += content + bytes(-len(content) % 4)

    size = HEADER_BYTES + len(table) + len(data)
    header = struct.pack(
        ">I4sI4s4s4s",
        size,
        bytes(4),
        0x02400000,
        b"mntr",
        color_space,
        b"XYZ ",
    )
    header += (
        struct.pack(
            ">6H",
            2000,
            1,
            1,
            0,
            0,
            0,
        )
        + b"acsp"
        + bytes(28)
    )
    header += struct.pack(
        ">3i",
        *(round(float(value) * 65536) for value in D50),
    )
    return header.ljust(HEADER_BYTES, b"\0") + table + data
