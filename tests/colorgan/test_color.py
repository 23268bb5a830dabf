"""Lab conversion against scikit-image, the normalisation, and gradients that stay numbers."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from skimage.color import lab2rgb, rgb2lab
from torch import Tensor

from colorgan.color import (
    denormalise_lab_B3HW,
    lab_to_rgb_B3HW,
    normalise_lab_B3HW,
    rgb_to_lab_B3HW,
    rgb_to_lightness_B1HW,
)


def all_corners_and_noise() -> Tensor:
    """1x3x64x65 float64: the cube on a grid, and noise near black, where the curves bend."""
    steps = torch.linspace(0, 1, 16, dtype=torch.float64)
    grid = torch.cartesian_prod(steps, steps, steps).T.reshape(1, 3, 64, 64)
    dark = (
        torch.rand((1, 3, 64, 1), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        * 0.06
    )
    return torch.cat([grid, dark], dim=3)


def hwc(picture_B3HW: Tensor) -> np.ndarray:
    return picture_B3HW[0].permute(1, 2, 0).double().numpy()


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-9), (torch.float32, 1e-5)],
)
def test_rgb_to_lab_is_skimage(dtype: torch.dtype, tolerance: float) -> None:
    rgb = all_corners_and_noise()
    expected = rgb2lab(hwc(rgb)) / [50, 128, 128]
    ours = hwc(rgb_to_lab_B3HW(rgb.to(dtype))) / [50, 128, 128]
    assert np.abs(ours - expected).max() < tolerance


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-9), (torch.float32, 1e-6)],
)
def test_lab_to_rgb_is_skimage_also_outside_srgb(dtype: torch.dtype, tolerance: float) -> None:
    inside = rgb_to_lab_B3HW(all_corners_and_noise())
    random = torch.rand(
        inside.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64
    )
    outside = random * torch.tensor([100.0, 256, 256]).view(3, 1, 1) - torch.tensor(
        [0.0, 128, 128]
    ).view(3, 1, 1)

    # skimage gets the rounded inputs, in float64.
    for lab in (inside.to(dtype), outside.to(dtype)):
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", UserWarning
            )  # "negative Z values that have been clipped to zero"
            expected = lab2rgb(hwc(lab))
        ours = hwc(lab_to_rgb_B3HW(lab))
        assert np.abs(ours - expected).max() < tolerance
        assert ours.min() >= 0.0
        assert ours.max() <= 1.0


def test_there_and_back() -> None:
    rgb = all_corners_and_noise()

    assert torch.allclose(
        lab_to_rgb_B3HW(rgb_to_lab_B3HW(rgb)), rgb, atol=2e-4
    )  # skimage's two curves meet to 1e-4

    lab = rgb_to_lab_B3HW(rgb)
    assert torch.allclose(
        denormalise_lab_B3HW(normalise_lab_B3HW(lab, 110.0), 110.0), lab, atol=1e-9
    )


def test_normalisation_by_hand() -> None:
    lab = torch.tensor([100.0, -64.0, 55.0]).view(
        1,
        3,
        1,
        1,
    )

    assert normalise_lab_B3HW(lab).flatten().tolist() == [1.0, -0.5, 55 / 128]
    assert normalise_lab_B3HW(lab, ab_scale=110.0).flatten()[2].item() == 0.5


def test_leading_dimensions_and_half_precision() -> None:
    rgb = all_corners_and_noise()[0]

    assert torch.equal(rgb_to_lab_B3HW(rgb), rgb_to_lab_B3HW(rgb[None])[0])
    assert rgb_to_lab_B3HW(rgb.bfloat16()).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(
            rgb_to_lab_B3HW(rgb.float()),
            rgb_to_lab_B3HW(rgb.float()[None])[0],
        )
        assert (rgb_to_lab_B3HW(rgb.float()) - rgb_to_lab_B3HW(rgb)).abs().max() < 1e-3


def test_gradients_are_numbers_at_black_and_white() -> None:
    rgb = (
        torch.tensor([0.0, 0.02, 1.0])
        .view(1, 1, 1, 3)
        .expand(
            1,
            3,
            1,
            3,
        )
        .clone()
        .requires_grad_()
    )
    lab_to_rgb_B3HW(rgb_to_lab_B3HW(rgb) * 0.99).sum().backward()

    assert rgb.grad is not None
    assert rgb.grad.isfinite().all()
    assert rgb.grad.abs().max() > 0

    lab = (
        torch.tensor([0.5, -100.0, 120.0], dtype=torch.float64)
        .view(
            1,
            3,
            1,
            1,
        )
        .requires_grad_()
    )
    lab_to_rgb_B3HW(lab).sum().backward()

    assert lab.grad is not None
    assert lab.grad.isfinite().all()


def test_lightness_alone_is_that_of_lab() -> None:
    rgb_B3HW = torch.rand(
        2,
        3,
        40,
        33,
        generator=torch.Generator().manual_seed(0),
    )
    rgb_B3HW[:, :, :4] = 0.0

    assert torch.equal(rgb_to_lightness_B1HW(rgb_B3HW), rgb_to_lab_B3HW(rgb_B3HW)[:, :1])
