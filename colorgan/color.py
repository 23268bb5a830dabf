"""sRGB <-> CIELAB on tensors, as scikit-image does it, and the networks' normalisation of Lab.

Used on the validation and colorize side; the loader's Lab is computed inside its DALI graph.
Channels: R, G, B in [0, 1]; L in [0, 100], a and b about [-128, 127]; white D65, 2 degree observer.
Only elementwise arithmetic (a matrix product would become bfloat16 under autocast, and TF32 on a
GPU); differentiable everywhere, with zero gradient where a value is clipped.
"""

# ruff: noqa: N802 (a function's name ends in the shape that it returns)

from __future__ import annotations

import torch
from torch import Tensor

# skimage.color.colorconv: xyz_from_rgb, its inverse, and xyz_tristimulus_values("D65", "2").
_XYZ_FROM_RGB = (
    (0.412453, 0.357580, 0.180423),
    (0.212671, 0.715160, 0.072169),
    (0.019334, 0.119193, 0.950227),
)
_WHITE = (0.95047, 1.0, 1.08883)
_Matrix = tuple[tuple[float, ...], ...]
_RGB_FROM_XYZ: _Matrix = tuple(
    tuple(row)
    for row in torch.linalg.inv(torch.tensor(_XYZ_FROM_RGB, dtype=torch.float64)).tolist()
)


def rgb_to_lab_B3HW(rgb_B3HW: Tensor) -> Tensor:
    """SRGB in [0, 1] -> CIELAB, equal to `skimage.color.rgb2lab`.

    Takes any leading dimensions; half precisions are computed, and returned, in float32.
    """
    # Channel by channel: a matrix product would leave float32 under autocast (see above).
    linear = _linear(rgb_B3HW)
    x, y, z = (
        _lab_curve(part / white)
        for part, white in zip(_mix(_XYZ_FROM_RGB, linear), _WHITE, strict=True)
    )
    return torch.stack([116.0 * y - 16.0, 500.0 * (x - y), 200.0 * (y - z)], dim=-3)


def rgb_to_lightness_B1HW(rgb_B3HW: Tensor) -> Tensor:
    """Return L of `rgb_to_lab_B3HW` alone, in a third of the time."""
    red, green, blue = _linear(rgb_B3HW).unbind(-3)
    # Lightness needs Y alone.
    weights = _XYZ_FROM_RGB[1]
    luminance = weights[0] * red + weights[1] * green + weights[2] * blue
    return (116.0 * _lab_curve(luminance / _WHITE[1]) - 16.0).unsqueeze(-3)


def _linear(rgb_B3HW: Tensor) -> Tensor:
    """Undo sRGB's gamma."""
    rgb_B3HW = _at_least_float32(rgb_B3HW)
    # Clamped: no NaN gradient from the side that is not taken.
    above = ((rgb_B3HW.clamp(min=0.04045) + 0.055) / 1.055) ** 2.4
    return torch.where(rgb_B3HW > 0.04045, above, rgb_B3HW / 12.92)


def lab_to_rgb_B3HW(lab_B3HW: Tensor) -> Tensor:
    """CIELAB -> sRGB in [0, 1], equal to `skimage.color.lab2rgb`: colors outside sRGB are clipped.

    Takes any leading dimensions; returns float32, or float64 for float64. Computed in float64: in
    float32 the sums of large terms cancel, and both this and skimage's own float32 are 4e-6 off, in
    the same time.
    """
    lightness, a, b = lab_B3HW.double().unbind(-3)
    y = (lightness + 16.0) / 116.0
    x, z = a / 500.0 + y, (y - b / 200.0).clamp(min=0.0)
    xyz = torch.stack(
        [_lab_curve_inverse(part) * white for part, white in zip((x, y, z), _WHITE, strict=True)],
        -3,
    )
    linear = torch.stack(_mix(_RGB_FROM_XYZ, xyz), dim=-3)
    # Clamped like `_linear`: a power of a negative number is NaN, also in the branch not taken.
    above = 1.055 * linear.clamp(min=0.0031308) ** (1 / 2.4) - 0.055
    rgb_B3HW = torch.where(linear > 0.0031308, above, linear * 12.92).clamp(0.0, 1.0)
    return rgb_B3HW if lab_B3HW.dtype == torch.float64 else rgb_B3HW.float()


def normalise_lab_B3HW(lab_B3HW: Tensor, ab_scale: float = 128.0) -> Tensor:
    """Return the networks' Lab: L / 50 - 1, ab / ab_scale (128 in the paper, 110 in pix2pix)."""
    lightness, a, b = lab_B3HW.unbind(-3)
    return torch.stack([lightness / 50.0 - 1.0, a / ab_scale, b / ab_scale], dim=-3)


def denormalise_lab_B3HW(normalised_B3HW: Tensor, ab_scale: float = 128.0) -> Tensor:
    """Invert `normalise_lab_B3HW`."""
    lightness, a, b = normalised_B3HW.unbind(-3)
    return torch.stack([(lightness + 1.0) * 50.0, a * ab_scale, b * ab_scale], dim=-3)


def _at_least_float32(picture: Tensor) -> Tensor:
    return picture if picture.dtype == torch.float64 else picture.float()


def _mix(matrix: _Matrix, picture_B3HW: Tensor) -> list[Tensor]:
    first, second, third = picture_B3HW.unbind(-3)
    return [row[0] * first + row[1] * second + row[2] * third for row in matrix]


def _lab_curve(part: Tensor) -> Tensor:
    # The root's slope is infinite at 0; clamped, its gradient stays finite there.
    root = part.clamp(min=0.008856) ** (1 / 3)
    return torch.where(part > 0.008856, root, 7.787 * part + 16.0 / 116.0)


def _lab_curve_inverse(part: Tensor) -> Tensor:
    # The inverse's border is the cube root of the other one's: 0.008856 ** (1 / 3).
    return torch.where(part > 0.2068966, part**3, (part - 16.0 / 116.0) / 7.787)
