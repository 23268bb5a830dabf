"""Labelled objects of any corpus: check one box, and say why an object is dropped."""

import math
from typing import Any

Box = tuple[float, float, float, float]

MAX_COORDINATE = 1e6  # pixels; no picture is larger


def box_fault(box: Box, size: tuple[int, int] | None) -> str:
    """Return what is wrong with a box; empty if nothing is.

    Args:
        box: x0, y0, x1, y1, half-open pixels.
        size: width and height that the label states; None if it states none.
    """
    x0, y0, x1, y1 = box
    if not all(math.isfinite(value) and abs(value) <= MAX_COORDINATE for value in box):
        return "its box is not finite"
    if x1 <= x0 or y1 <= y0:
        return f"its box has no area ({x1 - x0:g} x {y1 - y0:g})"

    if size is not None:
        width, height = size
        if x0 >= width or y0 >= height or x1 <= 0 or y1 <= 0:
            return f"its box lies outside the picture ({width} x {height})"
    return ""


def object_of(class_index: int, box: Box, *, difficult: bool, crowd: bool) -> dict[str, Any]:
    """Return an object as `Record.label` has it."""
    return {"class": class_index, "box": list(box), "difficult": difficult, "crowd": crowd}
