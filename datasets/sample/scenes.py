"""Draw the scenes of the built-in sample: objects of the 20 VOC classes before a background.

Everything is painted in CIELAB, so that what a color depends on is exact (backgrounds.py,
shapes.py). One seed gives one scene, the same bytes each time. These pictures are no benchmark:
they let every command run on a machine without any data.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from datasets.sample.backgrounds import BACKGROUNDS, paint_background
from datasets.sample.lab import from_hue, lab_to_rgb
from datasets.sample.shapes import LOOKS, Look, Plane

NAMES = tuple(LOOKS)  # alphabetical, as VOC's own list
MIN_VISIBLE_PIXELS = 24  # an object with less to see is not annotated
DIFFICULT_SHARE = 0.35  # an object with less of it to see is marked difficult
OUTLINE_PX = 0.7  # half the width of the void outline
AT_HOME = 0.6  # share of the objects that are drawn from those of the place


@dataclass(frozen=True, slots=True)
class Instance:
    """One object of a scene.

    Attributes:
        class_index: index of its class.
        difficult: it is mostly hidden.
        truncated: the picture cuts it off.
    """

    class_index: int
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
    """The planes of a scene that is being painted.

    Attributes:
        lab: CIELAB, 3 x H x W.
        front: number of the object in front, 0 for the background.
        void_map: the objects' outlines.
        unit: pixels in 1/128 of the picture's side.
    """

    lab: NDArray[np.float32]
    front: NDArray[np.uint8]
    void_map: NDArray[np.bool_]
    unit: float


@dataclass(frozen=True, slots=True)
class _Placed:
    """An object to paint.

    Attributes:
        class_index: index of its class.
        x: its middle, pixels from the left.
        y: its middle, pixels from the top.
        radius: pixels.
    """

    class_index: int
    x: float
    y: float
    radius: float


@dataclass(frozen=True, slots=True)
class _Painted:
    """An object that was painted.

    Attributes:
        class_index: index of its class.
        pixels: those that it had before others hid it.
        is_cut: the picture cuts it off.
    """

    class_index: int
    pixels: int
    is_cut: bool


def draw_scene(seed: Sequence[int], size: int) -> Scene:
    """Draw one scene.

    Args:
        seed: numbers that name the scene.
        size: the longer side, pixels; the other is as long or three quarters of it.
    """
    # The order of the draws is part of the drawing: the same seed gives the same bytes.
    rng = np.random.default_rng(seed)
    shapes = [(size, size), (size, size * 3 // 4), (size * 3 // 4, size)]
    width, height = shapes[rng.integers(3)]
    canvas = _blank(height, width, size / 128)

    background = BACKGROUNDS[rng.integers(len(BACKGROUNDS))]
    horizon = paint_background(canvas.lab, background, canvas.unit, rng)
    painted = _paint_objects(canvas, background.place, horizon, rng)

    # Light of the day, and grain of the film.
    lightness = canvas.lab[0]
    lightness[:] = (lightness - 50) * rng.uniform(0.85, 1.08) + 50 + rng.uniform(-7, 7)
    lightness += 0.8 * rng.standard_normal((height, width), np.float32)

    # After all are painted: what hides an object is painted later.
    front_HW, instances = _visible(canvas.front, painted)
    void_map = canvas.void_map & (front_HW == 0)
    rgb = lab_to_rgb(canvas.lab)
    return Scene(rgb, front_HW, void_map, instances)


def _blank(height: int, width: int, unit: float) -> _Canvas:
    lab = np.zeros((3, height, width), np.float32)
    front = np.zeros((height, width), np.uint8)
    return _Canvas(lab, front, front.astype(bool), unit)


def _paint_objects(
    canvas: _Canvas, place: str, horizon: float, rng: np.random.Generator
) -> list[_Painted]:
    """Paint 1 to 5 objects, far ones first."""
    looks = list(LOOKS.values())
    fitting = [index for index, look in enumerate(looks) if place in look.places.split()]

    num_objects = rng.integers(1, 6)
    # Far ones first: near ones are painted over them.
    nearnesses = sorted(rng.uniform(0, 1, num_objects).tolist())
    painted: list[_Painted] = []
    taken: list[float] = []

    for nearness in nearnesses:
        # Not always: place must help to guess a class, not decide it.
        is_at_home = rng.uniform() < AT_HOME and bool(fitting)
        class_index = int(rng.choice(fitting) if is_at_home else rng.integers(len(NAMES)))
        look = looks[class_index]

        placed = _place(canvas, class_index, nearness, horizon, taken, rng)
        painted.append(
            _paint(
                canvas,
                look,
                len(painted) + 1,
                placed,
                rng,
            )
        )
    return painted


def _place(
    canvas: _Canvas,
    class_index: int,
    nearness: float,
    horizon: float,
    taken: list[float],
    rng: np.random.Generator,
) -> _Placed:
    """Draw where an object is, apart from the places that are taken if it can be; take its own."""
    height, width = canvas.front.shape
    radius = canvas.unit * (15 + 22 * nearness) * rng.uniform(0.85, 1.25)

    # Of four places the one farthest from the others.
    tries: list[float] = rng.uniform(0.05, 0.95, 4).tolist()
    x = width * max(
        tries,
        key=lambda at: _gap(at, taken),
    )
    taken.append(x / width)

    # Near objects stand lower on the ground; those of the sky fly before it.
    depth = 0.1 + 0.8 * nearness
    y = (horizon + (1 - horizon) * depth) * height - 0.7 * radius
    if "sky" in LOOKS[NAMES[class_index]].places.split():
        y = rng.uniform(0.12, 0.55) * height
    return _Placed(class_index, x, y, radius)


def _gap(at: float, taken: list[float]) -> float:
    return min(
        (abs(at - other) for other in taken),
        default=0,
    )


def _paint(
    canvas: _Canvas, look: Look, number: int, placed: _Placed, rng: np.random.Generator
) -> _Painted:
    """Paint one object in front."""
    height, width = canvas.front.shape
    rows = _span(placed.y, placed.radius, height)
    columns = _span(placed.x, placed.radius, width)
    mirror = 2 * int(rng.integers(2)) - 1
    turn = rng.uniform(-0.15, 0.15)
    tint: list[float] = rng.normal(0, 1, 3).tolist()
    # After its draws, so that those of later objects do not depend on it.
    if rows.start >= rows.stop or columns.start >= columns.stop:
        return _Painted(placed.class_index, 0, True)

    # Coordinates of the object: its radius is 1, turned a little, perhaps mirrored.
    u = _local(columns, placed.x, placed.radius)
    v = _local(rows, placed.y, placed.radius)[:, None]
    x = mirror * (math.cos(turn) * u + math.sin(turn) * v)
    y = math.cos(turn) * v - math.sin(turn) * u

    # Painted over what is there, with an edge one pixel wide.
    distance_px = look.shape(x, y) * placed.radius
    lab = _object_color(look, x, y, distance_px, tint, canvas.unit)
    region = canvas.lab[:, rows, columns]
    region += np.clip(0.5 - distance_px, 0, 1) * (lab - region)

    # The outline of the front object is void; those of objects behind it go.
    solid = distance_px < 0
    canvas.front[rows, columns][solid] = number
    void = canvas.void_map[rows, columns]
    void[solid] = False
    void |= np.abs(distance_px) < OUTLINE_PX
    return _Painted(placed.class_index, int(solid.sum()), _is_cut(placed, height, width))


def _local(span: slice, middle: float, radius: float) -> Plane:
    """Return the middles of pixels in coordinates of an object, whose radius is 1."""
    pixels = np.arange(span.start, span.stop, dtype=np.float32)
    return (pixels + (0.5 - middle)) / radius


def _span(middle: float, radius: float, size: int) -> slice:
    """Return the rows or columns that an object reaches, within the picture."""
    # Some shapes are a little larger than their radius.
    reach = radius * 1.15
    first = int(middle - reach)
    last = int(middle + reach) + 1
    return slice(max(0, first), max(0, min(size, last)))


def _is_cut(placed: _Placed, height: int, width: int) -> bool:
    radius = placed.radius
    is_left_or_above = placed.x - radius < 0 or placed.y - radius < 0
    return bool(is_left_or_above or placed.x + radius > width or placed.y + radius > height)


def _object_color(
    look: Look, x: Plane, y: Plane, distance_px: Plane, tint: list[float], unit: float
) -> NDArray[np.float32]:
    """Return an object's CIELAB planes: texture, light from above, a dark line along the edge."""
    brightness = min(max(tint[0], -1.5), 1.5)
    base = look.lightness + 6 * brightness
    lightness = base + 11 * look.texture(x, y) - 6 * y

    edge = np.clip(1 + distance_px / (1.6 * unit), 0, 1)
    lightness = lightness - 16 * edge

    chroma = np.full_like(lightness, look.chroma + 3 * tint[2])
    return from_hue(lightness, chroma, look.hue_deg + 4 * tint[1])


def _visible(
    front_HW: NDArray[np.uint8], painted: list[_Painted]
) -> tuple[NDArray[np.uint8], tuple[Instance, ...]]:
    """Drop the objects that others hide, and number the rest anew."""
    shown = np.bincount(front_HW.ravel(), minlength=len(painted) + 1)[1:].tolist()
    new_numbers = np.zeros(len(painted) + 1, np.uint8)
    instances: list[Instance] = []

    for number, (each, visible) in enumerate(zip(painted, shown, strict=True), start=1):
        # Nobody would find it, and a label of it would be noise.
        if visible < MIN_VISIBLE_PIXELS:
            continue
        is_difficult = visible < DIFFICULT_SHARE * each.pixels
        instances.append(Instance(each.class_index, is_difficult, each.is_cut))
        new_numbers[number] = len(instances)
    return new_numbers[front_HW], tuple(instances)
