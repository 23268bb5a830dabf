"""Antialiased linear resize and Lab of one image in one pass, compiled by numba.

The CPU's way for images that are not packed at the training size (shards/decoding/decoder.py). It
follows DALI's `resize(antialias=True, INTERP_LINEAR)` to the last bit or the one before: a triangle
filter, as wide as the scale when it shrinks, centered on pixel centers, borders repeated, rounded
to bytes. DALI takes 2 ms for a photo to 256x256 and goes through memory twice; here rows are
combined first, one output row at a time, and that row becomes Lab while it is in the cache.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from shards.decoding.lab import compiled, lab_row, row_to_linear


@numba.njit(inline="always")  # type: ignore[untyped-decorator]
def _num_taps(size_in: int, size_out: int) -> int:
    """Count the input samples that one output sample can reach."""
    return int(np.ceil(2.0 * max(1.0, size_in / size_out))) + 1


@numba.njit(inline="always")  # type: ignore[untyped-decorator]
def _triangle(size_in: int, size_out: int, first: Any, weights: Any) -> None:
    """Write, per output sample, the first input sample in reach and the weights from there on.

    The first sample may be outside the input, where borders are repeated.
    """
    scale = size_in / size_out
    radius = max(1.0, scale)

    for out in range(size_out):
        # Centers of pixels, not corners: the picture would move by half a pixel.
        center = (out + 0.5) * scale - 0.5
        begin = int(np.ceil(center - radius))

        total = 0.0
        for tap in range(weights.shape[1]):
            weights[out, tap] = max(0.0, 1.0 - abs(begin + tap - center) / radius)
            total += weights[out, tap]
        for tap in range(weights.shape[1]):
            # To a sum of 1, also at the borders, so that a flat area keeps its value.
            weights[out, tap] /= total
        first[out] = begin


@numba.njit(inline="always", fastmath=True)  # type: ignore[untyped-decorator]
def _combine_rows(rgb_HW3: Any, first: int, weights: Any, row: Any) -> None:
    """Add up the input rows that one output row reaches, each times its weight."""
    height, width, _ = rgb_HW3.shape
    row[:] = np.float32(0.0)

    for tap in range(len(weights)):
        weight = weights[tap]
        # Rows are many and weights at the ends often zero: skipped before the row is touched.
        if weight > 0.0:
            y = max(first + tap, 0)
            y = min(y, height - 1)
            source = rgb_HW3[y].reshape(3 * width)

            for x in range(3 * width):
                row[x] += weight * np.float32(source[x])


@numba.njit(inline="always", fastmath=True)  # type: ignore[untyped-decorator]
def _combine_columns(padded: Any, pad: int, first: Any, weights: Any, bytes_S3: Any) -> None:
    """Shrink or stretch one row to the output's width and round it to bytes."""
    white = np.float32(255.0)
    half = np.float32(0.5)

    for x in range(len(first)):
        # From 0.5 on, so that cutting the fraction off rounds to the nearest byte.
        r = half
        g = half
        b = half

        for tap in range(weights.shape[1]):
            weight = weights[x, tap]
            at = first[x] + pad + tap
            r += weight * padded[at, 0]
            g += weight * padded[at, 1]
            b += weight * padded[at, 2]

        bytes_S3[x, 0] = np.uint8(min(r, white))
        bytes_S3[x, 1] = np.uint8(min(g, white))
        bytes_S3[x, 2] = np.uint8(min(b, white))


@compiled
def lab_resized(
    rgb_HW3: NDArray[np.uint8],
    mirror: bool,
    lab_3SS: NDArray[np.float32],
    linear_256: NDArray[np.float32],
    ab_scale: float,
) -> None:
    """Resize an image to S x S and write its normalised Lab, without holding Python's lock.

    Args:
        rgb_HW3: sRGB bytes of any size.
        mirror: Write each row from right to left.
        lab_3SS: Output, float32, planes L', a', b'.
        linear_256: `shards.decoding.lab.linear_from_srgb()`.
        ab_scale: Divisor of a and b.
    """
    height, width, _ = rgb_HW3.shape
    size = lab_3SS.shape[1]

    row_weights = np.empty((size, _num_taps(height, size)), np.float32)
    row_first = np.empty(size, np.int64)
    _triangle(height, size, row_first, row_weights)
    weights = np.empty((size, _num_taps(width, size)), np.float32)
    first = np.empty(size, np.int64)
    _triangle(width, size, first, weights)

    # One row, with repeated borders wide enough for every tap.
    pad = int(np.ceil(max(1.0, width / size))) + 1
    padded = np.empty((width + 2 * pad, 3), np.float32)
    row = padded[pad : pad + width].reshape(3 * width)

    bytes_S3 = np.empty((size, 3), np.uint8)
    red = np.empty(size, np.float32)
    green = np.empty(size, np.float32)
    blue = np.empty(size, np.float32)

    for y in range(size):
        _combine_rows(rgb_HW3, row_first[y], row_weights[y], row)
        for channel in range(3):
            # Borders repeated here once a row, so that the inner loop needs no test for them.
            padded[:pad, channel] = padded[pad, channel]
            padded[pad + width :, channel] = padded[pad + width - 1, channel]

        _combine_columns(padded, pad, first, weights, bytes_S3)
        row_to_linear(bytes_S3, red, green, blue, linear_256, mirror)

        l_S = lab_3SS[0, y]
        a_S = lab_3SS[1, y]
        b_S = lab_3SS[2, y]
        lab_row(red, green, blue, l_S, a_S, b_S, ab_scale)
