"""The fused kernel against skimage, on every corner of the color cube and a fine grid."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from skimage.color import rgb2lab

from shards.decoding.lab import lab_from_srgb, linear_from_srgb


def reference_lab(rgb_HW3: NDArray[np.uint8], ab_scale: float = 128.0) -> NDArray[np.float64]:
    lab = rgb2lab(rgb_HW3)
    planes = [
        lab[..., 0] / 50 - 1,
        lab[..., 1] / ab_scale,
        lab[..., 2] / ab_scale,
    ]
    return np.stack(planes)


def kernel_lab(
    rgb_HW3: NDArray[np.uint8], ab_scale: float = 128.0, mirror: bool = False
) -> NDArray[np.float32]:
    lab_3HW = np.empty((3, *rgb_HW3.shape[:2]), np.float32)
    lab_from_srgb(
        rgb_HW3[None],
        np.array([mirror]),
        lab_3HW[None],
        linear_from_srgb(),
        ab_scale,
    )

    return lab_3HW


def slice_of_the_cube(red: int) -> NDArray[np.uint8]:
    """All 65,536 colours with one value of red."""
    byte = np.arange(256, dtype=np.uint8)
    planes = np.broadcast_arrays(
        np.uint8(red),
        byte[:, None],
        byte[None, :],
    )
    return np.ascontiguousarray(np.stack(planes, -1))


@pytest.mark.parametrize(
    "red",
    [
        *range(0, 12),
        *range(15, 255, 30),
        254,
        255,
    ],
)
def test_equals_skimage(red: int) -> None:
    rgb_HW3 = slice_of_the_cube(red)
    assert np.abs(kernel_lab(rgb_HW3) - reference_lab(rgb_HW3)).max() < 2e-6


@pytest.mark.parametrize(
    "size",
    [(1, 1), (1, 7), (3, 33), (256, 255)],
)
def test_any_width_and_scale(size: tuple[int, int]) -> None:
    """Widths that are no multiple of a vector register."""
    rgb_HW3 = np.random.default_rng(0).integers(
        0,
        256,
        (*size, 3),
        dtype=np.uint8,
    )
    assert np.abs(kernel_lab(rgb_HW3, 110.0) - reference_lab(rgb_HW3, 110.0)).max() < 2e-6


def test_greys_have_no_color_and_the_ends_are_exact() -> None:
    grey = np.repeat(
        np.arange(256, dtype=np.uint8)[None, :, None],
        3,
        2,
    )
    lab_3HW = kernel_lab(np.ascontiguousarray(grey))

    assert np.abs(lab_3HW[1:]).max() < 5e-5  # skimage's own matrix leaves b = -0.0046 on white
    assert lab_3HW[0, 0, 0] == pytest.approx(-1.0, abs=1e-6)
    assert lab_3HW[0, 0, 255] == pytest.approx(1.0, abs=1e-6)
    assert (np.diff(lab_3HW[0, 0]) > 0).all()


def test_mirror_is_the_picture_mirrored() -> None:
    rgb_HW3 = slice_of_the_cube(100)[:, :45]
    assert np.array_equal(
        kernel_lab(rgb_HW3, mirror=True),
        kernel_lab(rgb_HW3[:, ::-1].copy()),
    )


def test_strided_picture() -> None:
    rgb_HW3 = slice_of_the_cube(77)[:, ::-1][10:50]
    assert np.abs(kernel_lab(rgb_HW3) - reference_lab(rgb_HW3)).max() < 2e-6


def test_kernel_compiles_where_nothing_can_be_cached(tmp_path: Path) -> None:
    """A read-only install without a home: numba finds no folder for its cache and raises."""
    program = (
        "import numba.core.caching as caching\n"
        "caching.CacheImpl._locator_classes = []\n"
        "import shards.decoding.lab as lab, numpy as np\n"
        "out = np.empty((1, 3, 1, 1), np.float32)\n"
        "white = np.full((1, 1, 1, 3), 255, np.uint8)\n"
        "lab.lab_from_srgb(white, np.zeros(1, bool), out, lab.linear_from_srgb(), 128.0)\n"
        "assert abs(out[0, 0, 0, 0] - 1) < 1e-5\n"
    )

    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    subprocess.run(
        [sys.executable, "-W", "error", "-c", program], check=True, env=environment, cwd=tmp_path
    )
