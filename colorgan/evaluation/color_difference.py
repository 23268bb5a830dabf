"""How far apart the colors of two images are, in units of CIELAB.

CIEDE2000 and the distance of chroma.

Lab as in colorgan/color.py: D65, 2 degree observer. Both are means over an image's pixels, in
float64.
"""

# ruff: noqa: N802 (a function's name ends in the shape that it returns)

from __future__ import annotations

from math import radians

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from colorgan.color import rgb_to_lab_B3HW

# Side of the copy that `mean_chroma_B` judges, as packing does: noise of single pixels is no color.
CHROMA_SIDE = 16


def ciede2000_B(lab_B3HW: Tensor, target_B3HW: Tensor) -> Tensor:
    """Return the mean CIEDE2000 difference per image, float64, B; about 1 is just noticeable.

    With kL = kC = kH = 1. Source: Sharma, Wu and Dalal, "The CIEDE2000 color-difference formula:
    implementation notes, supplementary test data, and mathematical observations", 2005, equations 2
    to 22; equal to `skimage.color.deltaE_ciede2000`.

    Args:
        lab_B3HW: CIELAB, L in [0, 100].
        target_B3HW: CIELAB of the same shape; the measure is symmetric.
    """
    _check_shapes(lab_B3HW, target_B3HW)
    l_1, a_1, b_1 = lab_B3HW.double().unbind(1)
    l_2, a_2, b_2 = target_B3HW.double().unbind(1)

    # Equations 2 to 7: a is stretched near grey, then chroma and hue.
    mean_chroma = (torch.hypot(a_1, b_1) + torch.hypot(a_2, b_2)) / 2
    stretch = 1.0 + 0.5 * (1.0 - _seventh_power_share(mean_chroma))
    a_1, a_2 = stretch * a_1, stretch * a_2
    chroma_1, chroma_2 = torch.hypot(a_1, b_1), torch.hypot(a_2, b_2)
    hue_1, hue_2 = torch.atan2(b_1, a_1), torch.atan2(b_2, a_2)

    # Equations 8 to 14: differences and means.
    product = chroma_1 * chroma_2
    chroma = (chroma_1 + chroma_2) / 2
    turn, hue = _hue_difference_and_mean(hue_1, hue_2, grey=product == 0.0)
    lightness = ((l_1 + l_2) / 2 - 50.0).square()

    # Equations 15 to 22: each difference over its weight.
    d_lightness = (l_2 - l_1) / (1.0 + 0.015 * lightness / (20.0 + lightness).sqrt())
    d_chroma = (chroma_2 - chroma_1) / (1.0 + 0.045 * chroma)
    d_hue = 2.0 * product.sqrt() * torch.sin(turn / 2) / (1.0 + 0.015 * chroma * _hue_weight(hue))
    rotated = _rotation(chroma, hue) * d_chroma * d_hue
    square = d_lightness**2 + d_chroma**2 + d_hue**2 + rotated
    return square.clamp(min=0.0).sqrt().flatten(1).mean(dim=1)


def chroma_error_B(lab_B3HW: Tensor, target_B3HW: Tensor) -> Tensor:
    """Return the mean over the pixels of sqrt((a - a*)^2 + (b - b*)^2), in Lab units, float64, B.

    Lightness is left out.
    """
    _check_shapes(lab_B3HW, target_B3HW)
    difference_B2HW = lab_B3HW[:, 1:].double() - target_B3HW[:, 1:].double()
    return torch.hypot(*difference_B2HW.unbind(1)).flatten(1).mean(dim=1)


def mean_chroma_B(rgb_B3HW: Tensor) -> Tensor:
    """Return the mean of chroma, sqrt(a^2 + b^2), of an image's copy of `CHROMA_SIDE` squared.

    Args:
        rgb_B3HW: sRGB in [0, 1].

    Returns:
        float64, B, in Lab units; shards/images/chroma.py measures photos so while packing.
    """
    small_B3HW = adaptive_avg_pool2d(rgb_B3HW.double(), CHROMA_SIDE)
    a_BHW, b_BHW = rgb_to_lab_B3HW(small_B3HW)[:, 1:].unbind(1)
    return torch.hypot(a_BHW, b_BHW).flatten(1).mean(dim=1)


def _check_shapes(lab_B3HW: Tensor, target_B3HW: Tensor) -> None:
    if lab_B3HW.shape != target_B3HW.shape or lab_B3HW.ndim != 4 or lab_B3HW.shape[1] != 3:
        raise ValueError(
            f"Lab images of shapes {tuple(lab_B3HW.shape)} and {tuple(target_B3HW.shape)}, not B3HW"
        )


def _seventh_power_share(chroma: Tensor) -> Tensor:
    power = chroma**7
    return (power / (power + 25.0**7)).sqrt()


def _hue_difference_and_mean(hue_1: Tensor, hue_2: Tensor, grey: Tensor) -> tuple[Tensor, Tensor]:
    """Return the shorter way round from one hue to the other, and the hue half way.

    Radians, the mean in [0, 2 pi).

    A grey pixel has no hue: no difference, and the mean is then the sum, the other's hue (equations
    10 and 14).
    """
    full = 2.0 * torch.pi
    hue_1, hue_2 = hue_1 % full, hue_2 % full
    turn, total = hue_2 - hue_1, hue_1 + hue_2

    # Over half a turn apart, the shorter way crosses 0.
    far = turn.abs() > torch.pi
    crossed = torch.where(total < full, total + full, total - full)
    mean = torch.where(far, crossed, total) / 2
    turn = torch.where(far, turn - full * turn.sign(), turn)
    return turn.masked_fill(grey, 0.0), torch.where(grey, total, mean)


def _hue_weight(hue: Tensor) -> Tensor:
    """T of equation 15."""
    return (
        1.0
        - 0.17 * torch.cos(hue - radians(30.0))
        + 0.24 * torch.cos(2.0 * hue)
        + 0.32 * torch.cos(3.0 * hue + radians(6.0))
        - 0.20 * torch.cos(4.0 * hue - radians(63.0))
    )


def _rotation(chroma: Tensor, hue: Tensor) -> Tensor:
    """R_T of equation 21: chroma and hue influence each other in the blues, about 275 degrees."""
    distance = (torch.rad2deg(hue) - 275.0) / 25.0
    angle = radians(30.0) * torch.exp(-(distance**2))
    return -torch.sin(2.0 * angle) * 2.0 * _seventh_power_share(chroma)
