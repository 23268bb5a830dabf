"""The backgrounds of the built-in sample: layers of materials, each with one hue and a grain that tells it.

Grass is green and has blades, sand is yellow and speckled, the sky turns paler towards the horizon: the
colour can be read from luminance and place, as far as that goes in photos too.
"""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from datasets.sample.shapes import Plane


@dataclass(frozen=True, slots=True)
class Material:
    """A surface: lightness and chroma at its upper and lower end, and grain.

    Attributes:
        lightness: CIELAB L at its top and bottom.
        hue_deg: CIELAB hue.
        chroma: CIELAB chroma at its top and bottom.
        grain: width and height of a grain in 1/128 of the picture's side.
        contrast: of the grain, in L.
        stripes: width of upright stripes in 1/128 of the side, 0 for none.
        clouds: how dense white clouds are, 0 for none.
    """

    lightness: tuple[float, float]
    hue_deg: float
    chroma: tuple[float, float]
    grain: tuple[float, float]
    contrast: float
    stripes: float = 0
    clouds: float = 0


MATERIALS = {
    "sky": Material((62, 86), 255, (38, 12), (24, 12), 2, clouds=0.8),
    "evening": Material((58, 84), 55, (30, 48), (40, 5), 5),
    "grass": Material((66, 48), 125, (38, 46), (1.5, 6), 9),
    "brick": Material((56, 46), 35, (32, 36), (9, 4), 8),
    "sea": Material((62, 44), 225, (24, 34), (14, 2), 7),
    "sand": Material((82, 72), 82, (26, 32), (1, 1), 6),
    "road": Material((58, 44), 280, (4, 6), (1.5, 1.5), 4),
    "wall": Material((84, 76), 85, (16, 20), (48, 48), 1.5),
    "wallpaper": Material((74, 66), 15, (24, 26), (48, 48), 1.5, stripes=12),
    "planks": Material((56, 44), 60, (32, 36), (60, 4), 9),
    "carpet": Material((50, 42), 265, (26, 30), (3, 3), 8),
}

# which place it is; what it is made of from the top down; between which shares of the height each begins
BACKGROUNDS: tuple[tuple[str, tuple[tuple[str, float, float], ...]], ...] = (
    ("meadow", (("sky", 0, 0), ("grass", 0.35, 0.65))),
    ("meadow", (("evening", 0, 0), ("grass", 0.4, 0.7))),
    ("beach", (("sky", 0, 0), ("sea", 0.3, 0.45), ("sand", 0.55, 0.75))),
    ("sea", (("sky", 0, 0), ("sea", 0.35, 0.6))),
    ("street", (("sky", 0, 0), ("road", 0.45, 0.65))),
    ("street", (("sky", 0, 0), ("brick", 0.2, 0.35), ("road", 0.55, 0.7))),
    ("room", (("wall", 0, 0), ("planks", 0.6, 0.75))),
    ("room", (("wallpaper", 0, 0), ("planks", 0.6, 0.75))),
    ("room", (("wall", 0, 0), ("carpet", 0.6, 0.75))),
)


def paint_background(
    lab: Plane, layers: tuple[tuple[str, float, float], ...], unit: float, rng: np.random.Generator
) -> float:
    """Paints a background's layers from the top down.

    Args:
        lab: CIELAB planes, 3 x H x W, painted over.
        layers: as in BACKGROUNDS.
        unit: pixels in 1/128 of the picture's side.
        rng: where the edges and grains come from.

    Returns:
        Where the last layer begins, as a share of the height.
    """
    _, height, width = lab.shape
    x, y = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)[:, None]
    start = 0.0
    for name, lowest, highest in layers:
        start = rng.uniform(lowest, highest)
        hills = 0.04 * height if name == "grass" else 0.0
        phase, waves = rng.uniform(0, 2 * math.pi), rng.uniform(1, 3)
        edge = start * height + hills * np.sin(phase + waves * 2 * math.pi * x / width)
        top = int(max(0, edge.min() - 1))
        opacity = np.clip(y[top:] - edge + 0.5, 0, 1) if start > 0 else 1
        region = lab[:, top:]
        region += opacity * (_surface(MATERIALS[name], region.shape[1:], unit, rng) - region)
    return start


def _surface(
    material: Material, shape: tuple[int, int], unit: float, rng: np.random.Generator
) -> Plane:
    """Returns a material as CIELAB planes, 3 x H x W."""
    height, width = shape
    down = np.linspace(0, 1, height, dtype=np.float32)[:, None]
    grain = _noise(shape, material.grain[0] * unit, material.grain[1] * unit, rng)
    lightness = material.lightness[0] + down * (material.lightness[1] - material.lightness[0])
    lightness = lightness + material.contrast * grain
    if material.stripes:
        across = np.arange(width, dtype=np.float32) / (material.stripes * unit) + rng.uniform()
        lightness = lightness + 5 * np.clip(4 * np.sin(2 * math.pi * across), -1, 1)
    chroma = material.chroma[0] + down * (material.chroma[1] - material.chroma[0]) + 0 * grain
    if material.clouds:
        cover = np.clip(3 * _noise(shape, 40 * unit, 14 * unit, rng) - 0.6, 0, 1) * material.clouds
        lightness, chroma = lightness + cover * (95 - lightness), chroma * (1 - cover)
    return from_hue(lightness, chroma, material.hue_deg)


def from_hue(lightness: Plane, chroma: Plane, hue_deg: float) -> Plane:
    """Stacks CIELAB planes, 3 x H x W."""
    hue = math.radians(hue_deg)
    return np.stack([lightness, chroma * math.cos(hue), chroma * math.sin(hue)])


def _noise(
    shape: tuple[int, int], grain_width: float, grain_height: float, rng: np.random.Generator
) -> Plane:
    """Smooth noise in about [-1, 1] with grains of this many pixels."""
    rows = max(2, round(shape[0] / max(grain_height, 1)))
    columns = max(2, round(shape[1] / max(grain_width, 1)))
    coarse = Image.fromarray(2 * rng.random((rows, columns), np.float32) - 1)
    return np.asarray(coarse.resize((shape[1], shape[0]), Image.Resampling.BILINEAR))
