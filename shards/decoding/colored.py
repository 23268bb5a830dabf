"""The lightness of sRGB bytes with other chroma -> sRGB bytes, as one pass compiled by numba.

The last step of coloring a photo of any size (colorgan/tasks/photo_coloring.py). Torch's operators
go through memory some forty times for the same numbers and take ten times as long. A byte may
differ from theirs by one where the true value lies half-way between two.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from shards.decoding.lab import WHITE, XYZ_FROM_RGB, compiled, lab_curve, linear_from_srgb

# White enters with the matrix: columns for x / white, y / white, z / white.
_RGB_FROM_XYZ = np.linalg.inv(XYZ_FROM_RGB) * WHITE
_RX, _RY, _RZ = (float(each) for each in _RGB_FROM_XYZ[0])
_GX, _GY, _GZ = (float(each) for each in _RGB_FROM_XYZ[1])
_BX, _BY, _BZ = (float(each) for each in _RGB_FROM_XYZ[2])
_YR, _YG, _YB = (float(each) for each in XYZ_FROM_RGB[1])

_SLOPE, _OFFSET = 7.787, 16.0 / 116.0
_ROOT_BELOW = 0.2068966
# So many that no bin holds two steps from one byte to the next: sRGB rises by 12.92 at most.
NUM_BINS = 4096


class ColoringTables:
    """What `color_rows` looks up.

    Attributes:
        linear_256: Light of each sRGB byte, in [0, 1].
        steps_257: Light from which each byte is the nearest; infinite behind the last.
        bytes_of_bins: The byte at the lower end of each bin of light.
    """

    def __init__(self) -> None:
        self.linear_256 = linear_from_srgb()
        halves = (np.arange(256) - 0.5) / 255.0
        light = np.where(halves > 0.04045, ((halves + 0.055) / 1.055) ** 2.4, halves / 12.92)
        self.steps_257 = np.append(light, np.inf)
        edges = np.arange(NUM_BINS + 1) / NUM_BINS
        self.bytes_of_bins = (np.searchsorted(light, edges, side="right") - 1).astype(np.uint8)


@numba.njit(inline="always", fastmath=True)  # type: ignore[untyped-decorator]
def _cube(root: Any) -> Any:
    return root * root * root if root > _ROOT_BELOW else (root - _OFFSET) / _SLOPE


@numba.njit(inline="always")  # type: ignore[untyped-decorator]
def _byte(light: float, steps_257: Any, bytes_of_bins: Any) -> Any:
    light = min(max(light, 0.0), 1.0)
    below = bytes_of_bins[int(light * NUM_BINS)]
    return below + 1 if light >= steps_257[below + 1] else below


def color_rows(
    rgb_HW3: NDArray[np.uint8],
    chroma_2HW: NDArray[np.float32],
    colored_HW3: NDArray[np.uint8],
    ab_scale: float,
    tables: ColoringTables,
) -> None:
    """Write rows with the lightness of `rgb_HW3` and other chroma, without holding Python's lock.

    Args:
        rgb_HW3: sRGB bytes.
        chroma_2HW: a and b, divided by `ab_scale`.
        colored_HW3: Output, sRGB bytes, clipped to what can be shown; may be `rgb_HW3`.
        ab_scale: Divisor of a and b.
        tables: What is looked up.
    """
    _color_rows(
        rgb_HW3,
        chroma_2HW,
        colored_HW3,
        ab_scale,
        tables.linear_256,
        tables.steps_257,
        tables.bytes_of_bins,
    )


@compiled
def _color_rows(
    rgb_HW3: Any,
    chroma_2HW: Any,
    colored_HW3: Any,
    ab_scale: float,
    linear_256: Any,
    steps_257: Any,
    bytes_of_bins: Any,
) -> None:
    height, width, _ = rgb_HW3.shape
    for y in range(height):
        for x in range(width):
            luminance = (
                _YR * linear_256[rgb_HW3[y, x, 0]]
                + _YG * linear_256[rgb_HW3[y, x, 1]]
                + _YB * linear_256[rgb_HW3[y, x, 2]]
            )
            root = lab_curve(luminance)
            x_light = _cube(root + chroma_2HW[0, y, x] * ab_scale / 500.0)
            y_light = _cube(root)
            z_light = _cube(max(root - chroma_2HW[1, y, x] * ab_scale / 200.0, 0.0))

            red = _RX * x_light + _RY * y_light + _RZ * z_light
            green = _GX * x_light + _GY * y_light + _GZ * z_light
            blue = _BX * x_light + _BY * y_light + _BZ * z_light
            colored_HW3[y, x, 0] = _byte(red, steps_257, bytes_of_bins)
            colored_HW3[y, x, 1] = _byte(green, steps_257, bytes_of_bins)
            colored_HW3[y, x, 2] = _byte(blue, steps_257, bytes_of_bins)
