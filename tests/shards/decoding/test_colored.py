"""shards/decoding/colored.py against scikit-image and against the same steps in torch."""

import warnings

import numpy as np
import pytest
import torch
from skimage.color import lab2rgb, rgb2lab

from colorgan.color import rgb_to_lightness_B1HW
from colorgan.evaluation.picture_grids import to_uint8_HWC
from colorgan.models.colorizing import to_rgb
from shards.decoding.colored import ColoringTables, color_rows


@pytest.mark.parametrize("ab_scale", [110.0, 128.0])
def test_rows_are_those_of_skimage_and_of_torch(ab_scale: float) -> None:
    random = np.random.default_rng(4)
    rgb_HW3 = random.integers(
        0,
        256,
        (40, 333, 3),
        np.uint8,
    )
    rgb_HW3[0, :256] = np.arange(256)[:, None]  # every grey, black and white among them
    chroma_2HW = random.uniform(-1, 1, (2, 40, 333)).astype(np.float32)
    chroma_2HW[:, :2] = 0.0
    colored_HW3 = np.empty_like(rgb_HW3)
    color_rows(
        rgb_HW3,
        chroma_2HW,
        colored_HW3,
        ab_scale,
        ColoringTables(),
    )

    lab_HW3 = rgb2lab(rgb_HW3)
    lab_HW3[..., 1:] = chroma_2HW.transpose(1, 2, 0) * ab_scale
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # colors beyond sRGB
        expected = lab2rgb(lab_HW3)
    luminance = rgb_to_lightness_B1HW(torch.from_numpy(rgb_HW3 / 255.0).permute(2, 0, 1)[None])
    by_torch = to_rgb(
        luminance / 50.0 - 1.0,
        torch.from_numpy(chroma_2HW)[None],
        ab_scale,
    )
    for bytes_HW3 in (np.rint(expected * 255), to_uint8_HWC(by_torch[0])):
        difference = np.abs(colored_HW3.astype(int) - bytes_HW3)
        assert difference.max() <= 1
        assert (difference > 0).mean() < 1e-3


def test_greys_stay_themselves_and_rows_may_be_overwritten() -> None:
    rgb_HW3 = np.repeat(
        np.arange(256, dtype=np.uint8)[None, :, None],
        3,
        axis=2,
    )
    greys = rgb_HW3.copy()
    color_rows(
        rgb_HW3,
        np.zeros((2, 1, 256), np.float32),
        rgb_HW3,
        110.0,
        ColoringTables(),
    )

    assert np.abs(rgb_HW3.astype(int) - greys).max() <= 1
