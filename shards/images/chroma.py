"""How much color an image has, and how coarsely a JPEG keeps it: color is what is learned.

Measured once per photo while packing, on a copy of 32 x 32 pixels, in some 50 us.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, JpegImagePlugin

# Mean chroma below which a photo counts as grey. Lab units: 1 is about the least that is seen. Grey
# photos saved as color JPEGs have 0 to 1.3 on VOC and COCO, the palest color photos 1.7 and more.
GREY_CHROMA = 1.5
SIDE = 32
COARSE_SIDE = 256  # larger images are sampled to this size first

LOW_QUALITY = 50
LOW_QUALITY_SUBSAMPLED = 70
SUBSAMPLED_4_2_0 = 2

# sRGB to XYZ divided by D65's white (IEC 61966-2-1).
_XYZ_FROM_RGB = np.array(
    [[0.433953, 0.376219, 0.189828], [0.212671, 0.715160, 0.072169], [0.017758, 0.109477, 0.872766]]
)
# Annex K's luminance table, which encoders scale by quality; row by row.
_STANDARD_TABLE = np.array(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ]
).ravel()


def mean_chroma(image: Image.Image) -> float:
    """Return the mean of Lab's chroma, sqrt(a^2 + b^2), of an sRGB image; 0 for a grey one."""
    if image.mode == "L":
        return 0.0

    if max(image.size) > COARSE_SIDE:
        coarse = (min(image.width, COARSE_SIDE), min(image.height, COARSE_SIDE))
        image = image.resize(coarse, Image.Resampling.NEAREST)
    small = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX)

    a, b = _ab_of_srgb(np.asarray(small, np.float64) / 255)
    return float(np.hypot(a, b).mean())


def is_low_quality(image: Image.Image) -> bool:
    """Return whether a JPEG has coarse chroma: quality under 50, or 4:2:0 under 70."""
    if image.format != "JPEG":
        return False

    quality = jpeg_quality(image)
    if quality is None:
        return False

    is_subsampled = JpegImagePlugin.get_sampling(image) == SUBSAMPLED_4_2_0
    return quality < (LOW_QUALITY_SUBSAMPLED if is_subsampled else LOW_QUALITY)


def jpeg_quality(image: Image.Image) -> float | None:
    """Return the quality, 1 to 100, whose scaled standard table is nearest to the luminance's."""
    tables: dict[int, list[int]] = getattr(image, "quantization", {})
    table = np.array(tables.get(0, []), np.float64)
    if table.shape != _STANDARD_TABLE.shape:
        return None

    # libjpeg's jpeg_quality_scaling, solved for the quality.
    scale = 100 * float(table.sum()) / float(_STANDARD_TABLE.sum())
    quality = 5000 / max(scale, 1e-9) if scale > 100 else 100 - scale / 2
    return min(100.0, max(1.0, quality))


def _ab_of_srgb(
    srgb_HW3: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    light = np.where(srgb_HW3 <= 0.04045, srgb_HW3 / 12.92, ((srgb_HW3 + 0.055) / 1.055) ** 2.4)
    xyz = light @ _XYZ_FROM_RGB.T
    delta = 6 / 29
    f = np.where(xyz > delta**3, np.cbrt(xyz), xyz / (3 * delta**2) + 4 / 29)
    return 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])
