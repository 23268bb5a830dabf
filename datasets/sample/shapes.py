"""The looks of the built-in sample's objects: a shape, a texture and a hue for each VOC class.

Shapes are signed distances (negative inside) over local coordinates x, y in about [-1, 1], y down;
one formula gives smooth edges, exact masks and outlines at any scale. Textures are luminance in
[-1, 1] over the same coordinates. A class has one hue, and shape and texture tell it from the
others: a grey picture holds what its colors depend on.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Plane = NDArray[Any]  # float32
Field = Callable[[Plane, Plane], Plane]


def disc(cx: float, cy: float, radius: float) -> Field:
    """Return a filled circle."""
    return lambda x, y: np.hypot(x - cx, y - cy) - radius


def ring(cx: float, cy: float, radius: float, thickness: float) -> Field:
    """Return a circle's line."""
    return lambda x, y: np.abs(np.hypot(x - cx, y - cy) - radius) - thickness / 2


def bar(x0: float, y0: float, x1: float, y1: float, radius: float) -> Field:
    """Return a thick line with round ends."""
    dx, dy = x1 - x0, y1 - y0
    # Squared; a line of no length is a point.
    length2 = max(dx * dx + dy * dy, 1e-9)

    def field(x: Plane, y: Plane) -> Plane:
        """Return the distance to the line."""
        along = np.clip(((x - x0) * dx + (y - y0) * dy) / length2, 0, 1)
        return np.hypot(x - x0 - along * dx, y - y0 - along * dy) - radius

    return field


def box(
    cx: float, cy: float, half_width: float, half_height: float, round_by: float = 0.08
) -> Field:
    """Return a rectangle with rounded corners."""

    def field(x: Plane, y: Plane) -> Plane:
        """Return the distance to the rectangle."""
        # The quarter plane of one corner stands for all four.
        over_x = np.abs(x - cx) - half_width + round_by
        over_y = np.abs(y - cy) - half_height + round_by

        outside = np.hypot(np.maximum(over_x, 0), np.maximum(over_y, 0))
        distance: Plane = outside + np.minimum(np.maximum(over_x, over_y), 0) - round_by
        return distance

    return field


def polygon(*corners: tuple[float, float]) -> Field:
    """Return a convex polygon; corners clockwise as seen with y down."""
    # Per edge: a corner, and the normal that points outwards.
    edges = []
    for (x0, y0), (x1, y1) in zip(corners, (*corners[1:], corners[0]), strict=True):
        length = math.hypot(x1 - x0, y1 - y0)
        edges.append((x0, y0, (y1 - y0) / length, -(x1 - x0) / length))

    def field(x: Plane, y: Plane) -> Plane:
        """Return the distance to the farthest edge."""
        # Distance to each edge's line; the farthest counts, as the shape is convex.
        sides = [(x - x0) * nx + (y - y0) * ny for x0, y0, nx, ny in edges]
        distance: Plane = np.maximum.reduce(sides)
        return distance

    return field


def union(*parts: Field) -> Field:
    """Return everything that is in one of the parts."""
    # The nearer part counts: a signed distance up to the sign of what lies inside both.
    return lambda x, y: np.minimum.reduce([part(x, y) for part in parts])


def _wave(phase: Plane, sharpness: float = 2.5) -> Plane:
    """Return a square wave with soft edges."""
    return np.clip(sharpness * np.sin(phase), -1, 1)


def stripes(angle_deg: float, per_unit: float) -> Field:
    """Return parallel stripes; 0 degrees makes them upright."""
    angle = math.radians(angle_deg)
    kx, ky = 2 * math.pi * per_unit * math.cos(angle), 2 * math.pi * per_unit * math.sin(angle)
    return lambda x, y: _wave(kx * x + ky * y)


def checks(per_unit: float, angle_deg: float = 0) -> Field:
    """Return a chessboard."""
    first, second = (
        stripes(angle_deg, per_unit),
        stripes(angle_deg + 90, per_unit),
    )

    def field(x: Plane, y: Plane) -> Plane:
        """Return the product of two stripes."""
        product: Plane = first(x, y) * second(x, y)
        return product

    return field


def dots(per_unit: float) -> Field:
    """Return dark dots on light ground."""
    k = 2 * math.pi * per_unit
    return lambda x, y: np.clip(0.4 - 2 * np.sin(k * x) * np.sin(k * y), -1, 1)


def rings(per_unit: float) -> Field:
    """Return rings about the centre."""
    return lambda x, y: _wave(2 * math.pi * per_unit * np.hypot(x, y))


def patches() -> Field:
    """Return large irregular patches, like a cow's."""

    def field(x: Plane, y: Plane) -> Plane:
        """Return two waves that bend each other."""
        mix: Plane = np.sin(5.5 * x + 2 * np.sin(3.5 * y)) + np.sin(6.5 * y + 2 * np.sin(3 * x))
        clipped: Plane = np.clip(3 * mix, -1, 1)
        return clipped

    return field


def bulge() -> Field:
    """Return light in the middle, dark at the rim."""
    return lambda x, y: 1 - 1.6 * np.hypot(x, y)


def even() -> Field:
    """Return no texture."""
    return lambda x, y: np.zeros_like(x)


@dataclass(frozen=True, slots=True)
class Look:
    """How one class is drawn.

    Attributes:
        shape: signed distance, local units.
        texture: luminance in [-1, 1], local units.
        hue_deg: CIELAB hue, degrees: 25 red, 65 orange, 90 yellow, 140 green, 200 teal, 270 blue,
            320 purple.
        chroma: CIELAB chroma.
        lightness: CIELAB L about which a scene varies it.
        places: the backgrounds where it is mostly seen; `sky` for what flies before them.
    """

    shape: Field
    texture: Field
    hue_deg: float
    chroma: float
    lightness: float
    places: str


# Shared by the animals, which body and texture tell apart.
_LEGS = (
    bar(-0.5, 0.3, -0.5, 0.8, 0.11),
    bar(
        0.45,
        0.3,
        0.45,
        0.8,
        0.11,
    ),
)
_WHEELS = (
    disc(-0.5, 0.5, 0.25),
    disc(0.5, 0.5, 0.25),
)

# No two classes have shape, texture and hue in common.
LOOKS: dict[str, Look] = {
    "aeroplane": Look(
        union(
            bar(-0.85, 0, 0.85, 0, 0.15),
            bar(0.1, 0, -0.35, 0.75, 0.12),
            bar(0.1, 0, -0.35, -0.75, 0.12),
        ),
        stripes(0, 1.6),
        25,
        52,
        62,
        "sky meadow sea street",
    ),
    "bicycle": Look(
        union(
            ring(-0.5, 0.25, 0.38, 0.17),
            ring(0.5, 0.25, 0.38, 0.17),
            bar(-0.5, 0.25, -0.1, -0.4, 0.09),
            bar(0.5, 0.25, 0.2, -0.45, 0.09),
            bar(-0.1, -0.35, 0.25, -0.35, 0.09),
        ),
        even(),
        335,
        50,
        42,
        "street meadow",
    ),
    "bird": Look(
        union(
            disc(0, 0.15, 0.35),
            bar(-0.85, -0.45, 0, 0.1, 0.17),
            bar(0.85, -0.45, 0, 0.1, 0.17),
        ),
        dots(1.5),
        60,
        60,
        66,
        "sky meadow sea beach",
    ),
    "boat": Look(
        union(
            polygon(
                (-0.95, 0.25),
                (0.95, 0.25),
                (0.6, 0.75),
                (-0.6, 0.75),
            ),
            bar(0, -0.85, 0, 0.3, 0.07),
            polygon((0.1, -0.85), (0.75, 0.1), (0.1, 0.1)),
        ),
        stripes(0, 1.2),
        45,
        55,
        58,
        "sea",
    ),
    "bottle": Look(
        union(box(0, 0.25, 0.34, 0.65, 0.15), box(0, -0.6, 0.13, 0.35)),
        stripes(90, 1.2),
        150,
        45,
        50,
        "room",
    ),
    "bus": Look(
        union(box(0, 0, 0.95, 0.5, 0.15), *_WHEELS),
        checks(1.1),
        85,
        65,
        70,
        "street",
    ),
    "car": Look(
        union(
            box(0, 0.2, 0.95, 0.27, 0.15),
            box(-0.05, -0.15, 0.52, 0.32, 0.2),
            *_WHEELS,
        ),
        bulge(),
        280,
        50,
        48,
        "street",
    ),
    "cat": Look(
        union(
            disc(0, 0.15, 0.65),
            polygon((-0.62, -0.8), (-0.1, -0.4), (-0.6, 0.1)),
            polygon((0.62, -0.8), (0.6, 0.1), (0.1, -0.4)),
        ),
        stripes(90, 1.7),
        68,
        55,
        62,
        "room",
    ),
    "chair": Look(
        union(
            bar(-0.4, -0.8, -0.4, 0.8, 0.14),
            bar(-0.4, 0.1, 0.45, 0.1, 0.16),
            bar(0.45, 0.1, 0.45, 0.8, 0.14),
        ),
        stripes(45, 1.8),
        110,
        48,
        60,
        "room",
    ),
    "cow": Look(
        union(box(0, 0.05, 0.75, 0.38, 0.2), disc(0.75, -0.3, 0.27), *_LEGS),
        patches(),
        350,
        30,
        62,
        "meadow",
    ),
    "diningtable": Look(
        union(
            box(0, -0.25, 0.95, 0.2, 0.1),
            bar(-0.65, 0, -0.65, 0.7, 0.12),
            bar(0.65, 0, 0.65, 0.7, 0.12),
        ),
        stripes(90, 2.4),
        55,
        38,
        46,
        "room",
    ),
    "dog": Look(
        union(
            box(-0.1, 0.15, 0.55, 0.27, 0.15),
            disc(0.55, -0.25, 0.33),
            bar(0.38, -0.4, 0.22, -0.02, 0.13),
            bar(0.7, -0.15, 0.88, -0.12, 0.14),
            bar(-0.6, 0.05, -0.88, -0.4, 0.1),
            *_LEGS,
        ),
        dots(1.3),
        78,
        42,
        60,
        "room meadow",
    ),
    "horse": Look(
        union(
            box(-0.05, 0.1, 0.65, 0.3, 0.2),
            bar(0.5, 0.05, 0.72, -0.6, 0.18),
            bar(0.72, -0.6, 0.95, -0.45, 0.15),
            *_LEGS,
        ),
        bulge(),
        48,
        42,
        44,
        "meadow",
    ),
    "motorbike": Look(
        union(
            disc(-0.55, 0.35, 0.36),
            disc(0.55, 0.35, 0.36),
            bar(-0.5, 0.1, 0.45, -0.05, 0.2),
            bar(0.3, 0, 0.45, -0.55, 0.1),
        ),
        rings(2.0),
        205,
        40,
        48,
        "street",
    ),
    "person": Look(
        union(
            disc(0, -0.65, 0.27),
            box(0, 0.15, 0.36, 0.5, 0.2),
            bar(-0.2, 0.5, -0.2, 0.85, 0.14),
            bar(0.2, 0.5, 0.2, 0.85, 0.14),
        ),
        checks(1.6),
        310,
        50,
        55,
        "street room meadow beach",
    ),
    "pottedplant": Look(
        union(
            disc(0, -0.55, 0.32),
            disc(-0.38, -0.25, 0.32),
            disc(0.38, -0.25, 0.32),
            disc(0, -0.1, 0.3),
            polygon(
                (-0.4, 0.2),
                (0.4, 0.2),
                (0.28, 0.85),
                (-0.28, 0.85),
            ),
        ),
        dots(1.8),
        138,
        52,
        52,
        "room",
    ),
    "sheep": Look(
        union(
            disc(-0.4, 0, 0.38),
            disc(0, -0.15, 0.42),
            disc(0.4, 0, 0.38),
            disc(0, 0.2, 0.4),
            disc(0.78, -0.2, 0.22),
            *_LEGS,
        ),
        rings(2.4),
        92,
        32,
        76,
        "meadow",
    ),
    "sofa": Look(
        union(
            box(0, -0.15, 0.75, 0.42, 0.2),
            box(0, 0.3, 0.85, 0.3, 0.1),
            box(-0.82, 0.15, 0.16, 0.45, 0.15),
            box(0.82, 0.15, 0.16, 0.45, 0.15),
        ),
        checks(1.5, 45),
        12,
        55,
        48,
        "room",
    ),
    "train": Look(
        union(
            box(-0.5, -0.1, 0.42, 0.6, 0.08),
            box(0.3, 0.15, 0.6, 0.35, 0.15),
            bar(0.55, -0.2, 0.55, -0.55, 0.13),
            disc(-0.6, 0.55, 0.24),
            disc(0, 0.55, 0.24),
            disc(0.6, 0.55, 0.24),
        ),
        stripes(90, 1.5),
        180,
        42,
        52,
        "street meadow",
    ),
    "tvmonitor": Look(
        union(
            box(0, -0.15, 0.85, 0.6, 0.1),
            box(0, 0.55, 0.12, 0.2),
            box(0, 0.78, 0.45, 0.1),
        ),
        stripes(60, 1.3),
        250,
        42,
        50,
        "room",
    ),
}
