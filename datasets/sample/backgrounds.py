"""The backgrounds of the built-in sample: layers of materials, each with one hue and its own grain.

Grass is green and has blades, sand is yellow and speckled, the sky turns paler towards the horizon:
color can be read from luminance and place, as far as that goes in photos too.
"""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from datasets.sample.lab import from_hue
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


# Hues as in photos, so that a network that has learned the sample has learned something.
MATERIALS = {
    "sky": Material(
        lightness=(62, 86),
        hue_deg=255,
        chroma=(38, 12),
        grain=(24, 12),
        contrast=2,
        clouds=0.8,
    ),
    "evening": Material(
        lightness=(58, 84),
        hue_deg=55,
        chroma=(30, 48),
        grain=(40, 5),
        contrast=5,
    ),
    "grass": Material(
        lightness=(66, 48),
        hue_deg=125,
        chroma=(38, 46),
        grain=(1.5, 6),
        contrast=9,
    ),
    "brick": Material(
        lightness=(56, 46),
        hue_deg=35,
        chroma=(32, 36),
        grain=(9, 4),
        contrast=8,
    ),
    "sea": Material(
        lightness=(62, 44),
        hue_deg=225,
        chroma=(24, 34),
        grain=(14, 2),
        contrast=7,
    ),
    "sand": Material(
        lightness=(82, 72),
        hue_deg=82,
        chroma=(26, 32),
        grain=(1, 1),
        contrast=6,
    ),
    "road": Material(
        lightness=(58, 44),
        hue_deg=280,
        chroma=(4, 6),
        grain=(1.5, 1.5),
        contrast=4,
    ),
    "wall": Material(
        lightness=(84, 76),
        hue_deg=85,
        chroma=(16, 20),
        grain=(48, 48),
        contrast=1.5,
    ),
    "wallpaper": Material(
        lightness=(74, 66),
        hue_deg=15,
        chroma=(24, 26),
        grain=(48, 48),
        contrast=1.5,
        stripes=12,
    ),
    "planks": Material(
        lightness=(56, 44),
        hue_deg=60,
        chroma=(32, 36),
        grain=(60, 4),
        contrast=9,
    ),
    "carpet": Material(
        lightness=(50, 42),
        hue_deg=265,
        chroma=(26, 30),
        grain=(3, 3),
        contrast=8,
    ),
}


@dataclass(frozen=True, slots=True)
class Layer:
    """One material of a background; it begins at a share of the height drawn between two."""

    material: str
    lowest: float = 0.0
    highest: float = 0.0


@dataclass(frozen=True, slots=True)
class Background:
    """A place, and its layers from the top down."""

    place: str
    layers: tuple[Layer, ...]


_SKY = Layer("sky")
_PLANKS = Layer("planks", 0.6, 0.75)

BACKGROUNDS = (
    Background("meadow", (_SKY, Layer("grass", 0.35, 0.65))),
    Background("meadow", (Layer("evening"), Layer("grass", 0.4, 0.7))),
    Background("beach", (_SKY, Layer("sea", 0.3, 0.45), Layer("sand", 0.55, 0.75))),
    Background("sea", (_SKY, Layer("sea", 0.35, 0.6))),
    Background("street", (_SKY, Layer("road", 0.45, 0.65))),
    Background(
        "street",
        (_SKY, Layer("brick", 0.2, 0.35), Layer("road", 0.55, 0.7)),
    ),
    Background("room", (Layer("wall"), _PLANKS)),
    Background("room", (Layer("wallpaper"), _PLANKS)),
    Background("room", (Layer("wall"), Layer("carpet", 0.6, 0.75))),
)
HILLS = 0.04  # of grass, as a share of the height


def paint_background(
    lab: Plane, background: Background, unit: float, rng: np.random.Generator
) -> float:
    """Paint a background's layers from the top down.

    Args:
        lab: CIELAB planes, 3 x H x W, painted over.
        background: what to paint.
        unit: pixels in 1/128 of the picture's side.
        rng: draws the edges and grains.

    Returns:
        Where the last layer begins, as a share of the height.
    """
    height = lab.shape[1]
    rows = np.arange(height, dtype=np.float32)[:, None]
    start = 0.0

    # Each layer covers the lower part of those before it, down to the bottom.
    for layer in background.layers:
        start = rng.uniform(layer.lowest, layer.highest)
        edge = _edge(
            layer.material,
            start,
            lab.shape[1:],
            rng,
        )
        top = int(max(0, edge.min() - 1))
        # Half a pixel of softness at the edge; the first layer has none.
        opacity = np.clip(rows[top:] - edge + 0.5, 0, 1) if start > 0 else 1

        region = lab[:, top:]
        surface = _surface(
            MATERIALS[layer.material],
            region.shape[1:],
            unit,
            rng,
        )
        region += opacity * (surface - region)
    return start


def _edge(material: str, start: float, shape: tuple[int, int], rng: np.random.Generator) -> Plane:
    """Return the row at which a layer begins, per column; grass has hills."""
    height, width = shape
    columns = np.arange(width, dtype=np.float32)
    # The waves are drawn in any case: a layer must not shift the draws behind it.
    hills = HILLS * height if material == "grass" else 0.0
    phase, waves = (
        rng.uniform(0, 2 * math.pi),
        rng.uniform(1, 3),
    )
    return start * height + hills * np.sin(phase + waves * 2 * math.pi * columns / width)


def _surface(
    material: Material, shape: tuple[int, int], unit: float, rng: np.random.Generator
) -> Plane:
    """Return a material as CIELAB planes, 3 x H x W."""
    height, width = shape
    down = np.linspace(
        0,
        1,
        height,
        dtype=np.float32,
    )[:, None]
    grain_width, grain_height = material.grain
    grain = _noise(
        shape,
        grain_width * unit,
        grain_height * unit,
        rng,
    )

    upper, lower = material.lightness
    lightness = upper + down * (lower - upper)
    lightness = lightness + material.contrast * grain
    if material.stripes:
        columns = np.arange(width, dtype=np.float32)
        across = columns / (material.stripes * unit) + rng.uniform()
        lightness = lightness + 5 * np.clip(4 * np.sin(2 * math.pi * across), -1, 1)

    # Adding nothing of the grain makes a plane of the column.
    upper, lower = material.chroma
    chroma = upper + down * (lower - upper) + 0 * grain
    if material.clouds:
        density = (
            3
            * _noise(
                shape,
                40 * unit,
                14 * unit,
                rng,
            )
            - 0.6
        )
        # Clouds take color away as they lighten: white has none.
        cover = np.clip(density, 0, 1) * material.clouds
        lightness = lightness + cover * (95 - lightness)
        chroma = chroma * (1 - cover)
    return from_hue(lightness, chroma, material.hue_deg)


def _noise(
    shape: tuple[int, int], grain_width: float, grain_height: float, rng: np.random.Generator
) -> Plane:
    """Return smooth noise in about [-1, 1] with grains of this many pixels."""
    height, width = shape
    rows = max(2, round(height / max(grain_height, 1)))
    columns = max(2, round(width / max(grain_width, 1)))

    # A small random picture, enlarged: noise of any grain in one call.
    coarse = Image.fromarray(2 * rng.random((rows, columns), np.float32) - 1)
    return np.asarray(coarse.resize((width, height), Image.Resampling.BILINEAR))
