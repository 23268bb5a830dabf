"""CIELAB for the sample's painters: planes from a hue, and the way to 8-bit sRGB."""

import math

import numpy as np
from numpy.typing import NDArray

from datasets.sample.shapes import Plane

# The gamma curve is looked up in 4,097 steps: within 4 of 255 in the darkest tones, within 1
# elsewhere.
_STEPS = 4096
_LINEAR = np.linspace(0, 1, _STEPS + 1)
_CURVE = 1.055 * _LINEAR ** (1 / 2.4) - 0.055
_GAMMA = np.where(_LINEAR <= 0.0031308, 12.92 * _LINEAR, _CURVE)
_GAMMA_BYTES = np.round(255 * _GAMMA).astype(np.uint8)

_D65 = np.array([0.95047, 1.0, 1.08883], np.float32)
_XYZ_TO_RGB = np.array(
    [
        [3.2404542, -1.5371385, -0.4985314],
        [-0.9692660, 1.8760108, 0.0415560],
        [0.0556434, -0.2040259, 1.0572252],
    ],
    np.float32,
)
_WHITE_TO_RGB = _XYZ_TO_RGB * _D65


def from_hue(lightness: Plane, chroma: Plane, hue_deg: float) -> Plane:
    """Return CIELAB planes, 3 x H x W, of one hue."""
    hue = math.radians(hue_deg)
    a = chroma * math.cos(hue)
    b = chroma * math.sin(hue)
    return np.stack([lightness, a, b])


def lab_to_rgb(lab_3HW: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return CIELAB (D65, 2 degrees) as 8-bit sRGB, H x W x 3; colors outside of it are clipped."""
    lightness, a, b = lab_3HW
    middle = (lightness + 16) / 116
    f = np.stack([middle + a / 500, middle, middle - b / 200])

    # The curve is a cube, with a straight line near black.
    dark = (f - 4 / 29) * np.float32(108 / 841)
    xyz = np.where(f > 6 / 29, f * f * f, dark)

    linear = np.clip(np.tensordot(_WHITE_TO_RGB, xyz, 1), 0, 1)
    # Looked up: a power per pixel would take most of the drawing's time.
    steps = (linear * _STEPS + 0.5).astype(np.int32)
    return np.moveaxis(_GAMMA_BYTES[steps], 0, -1).copy()
