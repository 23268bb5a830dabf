"""The fused resize against DALI's operator, and against a triangle filter written down plainly."""

from typing import Any

import numpy as np
import pytest
from helpers.tiny_set import picture
from numpy.typing import NDArray
from nvidia.dali import Pipeline, fn, types

from shards.decoding.lab import lab_from_srgb, linear_from_srgb
from shards.decoding.resize import lab_resized

LINEAR = linear_from_srgb()
BYTE = 0.02  # what one step of a byte can change in normalised Lab


def ours(
    rgb_HW3: NDArray[np.uint8],
    size: int,
    mirror: bool = False,
) -> NDArray[np.float32]:
    lab_3SS = np.empty((3, size, size), np.float32)
    lab_resized(rgb_HW3, mirror, lab_3SS, LINEAR, 128.0)
    return lab_3SS


def lab_of(rgb_HW3: NDArray[np.uint8]) -> NDArray[np.float32]:
    lab_13HW = np.empty(
        (1, 3, *rgb_HW3.shape[:2]),
        np.float32,
    )
    lab_from_srgb(
        np.ascontiguousarray(rgb_HW3)[None], np.zeros(1, np.bool_), lab_13HW, LINEAR, 128.0
    )

    return lab_13HW[0]


def dali(images: list[NDArray[np.uint8]], size: int) -> NDArray[np.uint8]:
    pipeline = Pipeline(
        batch_size=len(images), num_threads=1, device_id=None, prefetch_queue_depth=1
    )
    with pipeline:
        source = fn.external_source(
            name="images",
            dtype=types.UINT8,
            ndim=3,
            layout="HWC",
        )
        pipeline.set_outputs(
            fn.resize(
                source,
                size=[size, size],
                interp_type=types.INTERP_LINEAR,
                antialias=True,
            )
        )

    pipeline.build()
    pipeline.feed_input("images", images)
    resized: Any = pipeline.run()[0].as_array()

    return np.array(resized)


def by_hand(rgb_HW3: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Return the filter as matrices, in float64."""

    def matrix(number: int) -> NDArray[np.float64]:
        scale = number / size
        radius = max(1.0, scale)
        weights = np.zeros((size, number))

        for out in range(size):
            centre = (out + 0.5) * scale - 0.5
            for source in range(int(np.floor(centre - radius)), int(np.ceil(centre + radius)) + 1):
                weight = max(
                    0.0,
                    1.0 - abs(source - centre) / radius,
                )
                weights[out, min(max(source, 0), number - 1)] += weight

        return weights / weights.sum(1, keepdims=True)

    height, width, _ = rgb_HW3.shape
    rows = np.tensordot(
        matrix(height),
        rgb_HW3.astype(np.float64),
        (1, 0),
    )
    mixed = np.tensordot(
        matrix(width),
        rows,
        (1, 1),
    ).transpose(
        1,
        0,
        2,
    )
    return np.floor(mixed + 0.5).astype(np.uint8)


IMAGE_SIZES = [
    (1, 1),
    (1, 9),
    (7, 3),
    (31, 32),
    (33, 64),
    (64, 64),
    (100, 150),
    (300, 211),
    (517, 40),
]


@pytest.mark.parametrize("size", [1, 16, 31, 64, 100])
def test_equals_dali_and_the_plain_filter(size: int) -> None:
    random = np.random.default_rng(size)
    images = [random.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in IMAGE_SIZES]
    images += [picture(index, *shape) for index, shape in enumerate(IMAGE_SIZES)]

    for image, theirs in zip(images, dali(images, size), strict=True):
        lab_3SS = ours(image, size)
        for expected in (theirs, by_hand(image, size)):
            difference = np.abs(lab_3SS - lab_of(expected)).max(0)
            assert difference.max() < 3 * BYTE  # dark colours are the steepest
            assert (
                difference > 1e-5
            ).mean() < 0.08  # exact halves, frequent in 33 -> 64, round either way


def test_same_size_changes_nothing_and_mirror_mirrors() -> None:
    rgb_HW3 = np.random.default_rng(0).integers(
        0,
        256,
        (48, 48, 3),
        dtype=np.uint8,
    )

    assert np.array_equal(ours(rgb_HW3, 48), lab_of(rgb_HW3))
    assert np.array_equal(
        ours(rgb_HW3, 48, mirror=True),
        lab_of(rgb_HW3[:, ::-1]),
    )

    wide = np.random.default_rng(0).integers(
        0,
        256,
        (70, 90, 3),
        dtype=np.uint8,
    )

    assert np.abs(ours(wide, 33, mirror=True) - ours(wide, 33)[:, :, ::-1]).max() < 1e-6


def test_flat_pictures_stay_flat() -> None:
    for value in (0, 1, 127, 254, 255):
        flat = np.full((37, 53, 3), value, np.uint8)
        for size in (5, 36, 64):
            assert np.array_equal(
                ours(flat, size),
                lab_of(
                    np.full(
                        (size, size, 3),
                        value,
                        np.uint8,
                    )
                ),
            )
