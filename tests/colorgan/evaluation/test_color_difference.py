"""CIEDE2000 against its authors' test data and scikit-image, on drawn and real images."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.color import deltaE_ciede2000, rgb2lab
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio as torchmetrics_psnr

from colorgan.color import rgb_to_lab_B3HW
from colorgan.evaluation.color_difference import chroma_error_B, ciede2000_B
from colorgan.evaluation.metrics import psnr_B, ssim_B

DATA = Path(__file__).parents[4] / "shared" / "data" / "coco" / "val2017"
real = pytest.mark.skipif(
    not DATA.is_dir(),
    reason="no real photos in ../shared/data/coco",
)

# Sharma, Wu and Dalal 2005, table 1, pairs 1, 4, 7, 9, 13, 15, 17, 20, 25, 27, 34: both Lab
# colours, difference.
SHARMA = (
    (
        (50.0000, 2.6772, -79.7751),
        (50.0000, 0.0000, -82.7485),
        2.0425,
    ),
    (
        (50.0000, -1.3802, -84.2814),
        (50.0000, 0.0000, -82.7485),
        1.0000,
    ),
    ((50.0000, 0.0000, 0.0000), (50.0000, -1.0000, 2.0000), 2.3669),
    (
        (50.0000, 2.4900, -0.0010),
        (50.0000, -2.4900, 0.0009),
        7.1792,
    ),
    (
        (50.0000, -0.0010, 2.4900),
        (50.0000, 0.0009, -2.4900),
        4.8045,
    ),
    (
        (50.0000, -0.0010, 2.4900),
        (50.0000, 0.0011, -2.4900),
        4.7461,
    ),
    ((50.0000, 2.5000, 0.0000), (73.0000, 25.0000, -18.0000), 27.1492),
    ((50.0000, 2.5000, 0.0000), (58.0000, 24.0000, 15.0000), 19.4535),
    (
        (60.2574, -34.0099, 36.2677),
        (60.4626, -34.1751, 39.4387),
        1.2644,
    ),
    ((61.2901, 3.7196, -5.3901), (61.4292, 2.2480, -4.9620), 1.8731),
    (
        (2.0776, 0.0795, -1.1350),
        (0.9033, -0.0636, -0.5514),
        0.9082,
    ),
)


def drawn() -> tuple[Tensor, Tensor]:
    """Two pictures of Lab noise, far outside sRGB too, with grey areas in one, the other, and both.

    4x3x32x33.
    """
    generator = torch.Generator().manual_seed(0)
    scale, shift = (
        torch.tensor(values).view(3, 1, 1)
        for values in ([100.0, 256.0, 256.0], [0.0, -128.0, -128.0])
    )
    first, second = (
        torch.rand((4, 3, 32, 33), generator=generator).double() * scale + shift for _ in range(2)
    )
    first[0, 1:, :20] = 0.0
    second[0, 1:, 10:] = 0.0
    second[1] = first[1]
    second[2] = first[2] + 0.01 * second[2]

    return first, second


@pytest.mark.parametrize(("first", "second", "expected"), SHARMA)
def test_ciede2000_gives_its_authors_numbers(
    first: tuple[float, ...], second: tuple[float, ...], expected: float
) -> None:
    one, other = (
        torch.tensor(color, dtype=torch.float64).view(1, 3, 1, 1) for color in (first, second)
    )
    assert ciede2000_B(one, other).item() == pytest.approx(expected, abs=5e-5)
    assert ciede2000_B(other, one).item() == pytest.approx(expected, abs=5e-5)


def test_ciede2000_and_chroma_error_are_skimage_and_numpy_on_drawn_colors() -> None:
    first, second = drawn()
    expected = deltaE_ciede2000(
        first.numpy(),
        second.numpy(),
        channel_axis=1,
    ).mean(axis=(1, 2))

    assert ciede2000_B(first, second).tolist() == pytest.approx(expected.tolist(), rel=1e-6)
    assert ciede2000_B(first.float(), second.float()).tolist() == pytest.approx(
        expected.tolist(), rel=1e-6
    )

    distance = np.linalg.norm(
        (first - second)[:, 1:].numpy(),
        axis=1,
    ).mean(axis=(1, 2))

    assert chroma_error_B(first, second).tolist() == pytest.approx(distance.tolist(), rel=1e-9)


def test_differences_refuse_unequal_shapes() -> None:
    first, second = drawn()
    for difference in (ciede2000_B, chroma_error_B):
        with pytest.raises(ValueError, match="not B3HW"):
            difference(first, second[:2])
        with pytest.raises(ValueError, match="not B3HW"):
            difference(first[:, 1:], second[:, 1:])


@real
def test_every_score_of_real_photos_is_the_libraries() -> None:
    for path in sorted(DATA.glob("*.jpg"))[:4]:
        with Image.open(path) as picture:
            photo = np.asarray(picture.convert("RGB"), np.float64)[::3, ::3] / 255.0
        other = np.clip(
            photo[::-1, :, ::-1] * 0.5 + photo * 0.5,
            0.0,
            1.0,
        )
        one, two = (
            torch.from_numpy(array.copy()).permute(2, 0, 1)[None] for array in (photo, other)
        )
        difference = deltaE_ciede2000(rgb2lab(photo), rgb2lab(other)).mean()

        assert ciede2000_B(
            rgb_to_lab_B3HW(one),
            rgb_to_lab_B3HW(two),
        ).item() == pytest.approx(difference, rel=1e-6)

        error = np.linalg.norm(
            rgb2lab(photo)[..., 1:] - rgb2lab(other)[..., 1:],
            axis=-1,
        ).mean()

        assert chroma_error_B(
            rgb_to_lab_B3HW(one),
            rgb_to_lab_B3HW(two),
        ).item() == pytest.approx(error, rel=1e-6)

        psnr = psnr_B(one, two).item()
        assert psnr == pytest.approx(
            peak_signal_noise_ratio(photo, other, data_range=1.0), rel=1e-6
        )
        assert psnr == pytest.approx(
            torchmetrics_psnr(one, two, data_range=1.0).item(),
            rel=1e-6,
        )

        similarity = structural_similarity(
            photo,
            other,
            channel_axis=2,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=1.0,
        )

        assert ssim_B(one, two).item() == pytest.approx(similarity, rel=1e-6)
        assert math.isfinite(psnr)
