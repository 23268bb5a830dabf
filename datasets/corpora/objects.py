"""Labelled objects of any corpus: check one box, and say why an object is dropped."""

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
    # Written so that NaN is refused too.
    if not all(abs(value) <= MAX_COORDINATE for value in box):
        return "its box is not finite"

    # Empty boxes come from tools that save a click; no score can match them.
    width, height = x1 - x0, y1 - y0
    if width <= 0 or height <= 0:
        return f"its box has no area ({width:g} x {height:g})"

    # A box that sticks out is kept: the loader clips it.
    if size is not None:
        width, height = size
        is_left_or_above = x1 <= 0 or y1 <= 0
        is_right_or_below = x0 >= width or y0 >= height
        if is_left_or_above or is_right_or_below:
            return f"its box lies outside the picture ({width} x {height})"
    return ""


def number_of(value: Any) -> float | None:
    """Return a number that may be written as text; None if it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


def is_crowd(annotation: dict[str, Any]) -> bool:
    """Return whether an annotation of COCO marks a crowd, by a number, its text, or true."""
    value = annotation.get("iscrowd")
    if isinstance(value, str):
        number = number_of(value)
        return value.strip().lower() == "true" if number is None else number > 0
    return bool(value)


def object_of(class_index: int, box: Box, *, difficult: bool, crowd: bool) -> dict[str, Any]:
    """Return an object as `Record.label` has it."""
    return {"class": class_index, "box": list(box), "difficult": difficult, "crowd": crowd}
