"""Draws the scenes of the built-in sample: a background in layers, objects of the 20 VOC classes before it.

Everything is painted in CIELAB, so that what a colour depends on is exact: see datasets/sample/backgrounds.py and
datasets/sample/shapes.py. One seed, one scene, the same bytes each time. These pictures are no benchmark: they are
there to see every verb work on a machine without any data.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from datasets.sample.backgrounds import BACKGROUNDS, from_hue, paint_background
from datasets.sample.shapes import LOOKS, Look, Plane

NAMES = tuple(LOOKS)  # alphabetical, as VOC's own list
MIN_VISIBLE_PIXELS = 24  # an object with less to see is not annotated
DIFFICULT_SHARE = 0.35  # an object with less of it to see is marked difficult


@dataclass(frozen=True, slots=True)
class Instance:
    """One object of a scene: its class index, if it is mostly hidden, if the picture cuts it off."""

    place: int
    difficult: bool
    truncated: bool


@dataclass(frozen=True, slots=True)
class Scene:
    """A drawn scene.

    Attributes:
        rgb: H x W x 3, uint8 sRGB.
        instance_map: H x W uint8, 0 = background, i + 1 = `instances[i]`.
        void_map: H x W bool, the objects' outlines, where masks have 255.
        instances: the objects that can be seen.
    """

    rgb: NDArray[np.uint8]
    instance_map: NDArray[np.uint8]
    void_map: NDArray[np.bool_]
    instances: tuple[Instance, ...]


@dataclass(slots=True)
class _Canvas:
    """What is painted on: CIELAB, which object is in front, outlines; `unit` pixels are 1/128 side."""

    lab: NDArray[np.float32]
    front: NDArray[np.uint8]
    void_map: NDArray[np.bool_]
    unit: float


def draw_scene(seed: Sequence[int], size: int) -> Scene:
    """Draws one scene.

    Args:
        seed: numbers that name the scene.
        size: the longer side, pixels; the other is as long or three quarters of it.
    """
    rng = np.random.default_rng(seed)
    width, height = [(size, size), (size, size * 3 // 4), (size * 3 // 4, size)][rng.integers(3)]
    zeros = np.zeros((height, width), np.uint8)
    canvas = _Canvas(
        np.zeros((3, height, width), np.float32), zeros, zeros.astype(bool), size / 128
    )
    place, layers = BACKGROUNDS[rng.integers(len(BACKGROUNDS))]
    horizon = paint_background(canvas.lab, layers, canvas.unit, rng)
    painted = _paint_objects(canvas, place, horizon, rng)
    canvas.lab[0] = (canvas.lab[0] - 50) * rng.uniform(0.85, 1.08) + 50 + rng.uniform(-7, 7)
    canvas.lab[0] += 0.8 * rng.standard_normal((height, width), np.float32)
    front_HW, instances = _visible(canvas.front, painted)
    return Scene(lab_to_rgb(canvas.lab), front_HW, canvas.void_map & (front_HW == 0), instances)


def _paint_objects(
    canvas: _Canvas, place: str, horizon: float, rng: np.random.Generator
) -> list[tuple[int, int, bool]]:
    """Paints 1 to 5 objects, far ones first; returns for each: class, pixels if alone, if cut off."""
    height, width = canvas.front.shape
    fitting = [index for index, look in enumerate(LOOKS.values()) if place in look.places.split()]
    feet = sorted(rng.uniform(0, 1, rng.integers(1, 6)).tolist())
    painted: list[tuple[int, int, bool]] = []
    taken: list[float] = []  # objects keep apart where they can
    for nearness in feet:
        index = int(
            rng.choice(fitting) if rng.uniform() < 0.6 and fitting else rng.integers(len(NAMES))
        )
        look = LOOKS[NAMES[index]]
        radius = canvas.unit * (15 + 22 * nearness) * rng.uniform(0.85, 1.25)
        tries = rng.uniform(0.05, 0.95, 4).tolist()
        x = width * max(tries, key=lambda at: min((abs(at - other) for other in taken), default=0))
        taken.append(x / width)
        y = (horizon + (1 - horizon) * (0.1 + 0.8 * nearness)) * height - 0.7 * radius
        if "sky" in look.places.split():
            y = rng.uniform(0.12, 0.55) * height
        pixels, cut = _paint(canvas, look, len(painted) + 1, (x, y, radius), rng)
        painted.append((index, pixels, cut))
    return painted


def _paint(
    canvas: _Canvas,
    look: Look,
    number: int,
    where: tuple[float, float, float],
    rng: np.random.Generator,
) -> tuple[int, bool]:
    """Paints one object in front; returns its pixels within the picture, and if the picture cuts it off."""
    cx, cy, radius = where
    height, width = canvas.front.shape
    reach = radius * 1.15
    rows = slice(max(0, int(cy - reach)), max(0, min(height, int(cy + reach) + 1)))
    columns = slice(max(0, int(cx - reach)), max(0, min(width, int(cx + reach) + 1)))
    mirror, turn = 2 * int(rng.integers(2)) - 1, rng.uniform(-0.15, 0.15)
    tint: list[float] = rng.normal(0, 1, 3).tolist()
    if rows.start >= rows.stop or columns.start >= columns.stop:
        return 0, True
    u = (np.arange(columns.start, columns.stop, dtype=np.float32) + (0.5 - cx)) / radius
    v = ((np.arange(rows.start, rows.stop, dtype=np.float32) + (0.5 - cy)) / radius)[:, None]
    x, y = (
        mirror * (math.cos(turn) * u + math.sin(turn) * v),
        math.cos(turn) * v - math.sin(turn) * u,
    )
    distance_px = look.shape(x, y) * radius
    lab = _object_color(look, x, y, distance_px, tint, canvas.unit)
    region = canvas.lab[:, rows, columns]
    region += np.clip(0.5 - distance_px, 0, 1) * (lab - region)
    solid = distance_px < 0
    canvas.front[rows, columns][solid] = number
    void = canvas.void_map[rows, columns]
    void[solid] = False
    void |= np.abs(distance_px) < 0.7
    cut = cx - radius < 0 or cy - radius < 0 or cx + radius > width or cy + radius > height
    return int(solid.sum()), bool(cut)


def _object_color(
    look: Look, x: Plane, y: Plane, distance_px: Plane, tint: list[float], unit: float
) -> NDArray[np.float32]:
    """Returns an object's CIELAB planes: texture, light from above, a dark line along the edge."""
    lightness = look.lightness + 6 * min(max(tint[0], -1.5), 1.5) + 11 * look.texture(x, y) - 6 * y
    lightness = lightness - 16 * np.clip(1 + distance_px / (1.6 * unit), 0, 1)
    chroma = np.full_like(lightness, look.chroma + 3 * tint[2])
    return from_hue(lightness, chroma, look.hue_deg + 4 * tint[1])


def _visible(
    front_HW: NDArray[np.uint8], painted: list[tuple[int, int, bool]]
) -> tuple[NDArray[np.uint8], tuple[Instance, ...]]:
    """Drops the objects that others hide and numbers the rest anew."""
    shown = np.bincount(front_HW.ravel(), minlength=len(painted) + 1)[1:]
    renumber = np.zeros(len(painted) + 1, np.uint8)
    instances: list[Instance] = []
    for number, ((index, pixels, cut), visible) in enumerate(
        zip(painted, shown.tolist(), strict=True), start=1
    ):
        if visible >= MIN_VISIBLE_PIXELS:
            instances.append(Instance(index, visible < DIFFICULT_SHARE * pixels, cut))
            renumber[number] = len(instances)
    return renumber[front_HW], tuple(instances)


_GAMMA = np.linspace(0, 1, 4097)
_GAMMA = np.where(_GAMMA <= 0.0031308, 12.92 * _GAMMA, 1.055 * _GAMMA ** (1 / 2.4) - 0.055)
_GAMMA_BYTES = np.round(255 * _GAMMA).astype(np.uint8)
_XYZ_TO_RGB = np.array(
    [
        [3.2404542, -1.5371385, -0.4985314],
        [-0.9692660, 1.8760108, 0.0415560],
        [0.0556434, -0.2040259, 1.0572252],
    ],
    np.float32,
) * np.array([0.95047, 1.0, 1.08883], np.float32)


def lab_to_rgb(lab_3HW: NDArray[np.float32]) -> NDArray[np.uint8]:
    """CIELAB (D65, 2 degrees) to 8-bit sRGB, H x W x 3; what lies outside is cut off.

    The gamma curve is looked up in 4,097 steps: within 4 of 255 in the darkest tones, within 1 elsewhere.
    """
    lightness, a, b = lab_3HW
    middle = (lightness + 16) / 116
    f = np.stack([middle + a / 500, middle, middle - b / 200])
    xyz = np.where(f > 6 / 29, f * f * f, (f - 4 / 29) * np.float32(108 / 841))
    linear = np.clip(np.tensordot(_XYZ_TO_RGB, xyz, 1), 0, 1)
    rgb: NDArray[np.uint8] = _GAMMA_BYTES[(linear * 4096 + 0.5).astype(np.int32)]
    return np.moveaxis(rgb, 0, -1).copy()
