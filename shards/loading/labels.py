"""Parses a sample's JSON label into class vectors or into its objects with their boxes.

Used by shards/loading/members.py if the task asks for classes or boxes. Labels are checked, not
trusted: a set may come from elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class ClassVectors:
    """One image's classes, both of shape (C,).

    Attributes:
        present: 1.0 for each class in the image, difficult objects included, else 0.0.
        difficult: True for each class that is in the image only as objects marked difficult.
    """

    present: NDArray[np.float32]
    difficult: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Objects:
    """One image's objects as labelled, N of them.

    Attributes:
        boxes_N4: x0, y0, x1, y1 as shares of the stored image's width and height, float64; not
            clipped.
        classes_N: int64, from 0.
        difficult_N: bool, VOC's objects that are left out of the scores.
        crowd_N: bool, COCO's regions of many objects.
        areas_N: float64, square pixels of the source: the object's if the corpus gives it (COCO),
            else its box's.
        source_size: Width and height of the upright source in pixels.
    """

    boxes_N4: NDArray[np.float64]
    classes_N: NDArray[np.int64]
    difficult_N: NDArray[np.bool_]
    crowd_N: NDArray[np.bool_]
    areas_N: NDArray[np.float64]
    source_size: tuple[int, int]


def class_vectors(label: bytes, num_classes: int) -> ClassVectors:
    """Parse the classes of a label.

    Raises:
        ValueError: Not a JSON object with a list `classes` of numbers below `num_classes`, or an
            object of another class; the message is the reason.
    """
    document = _document(label)
    classes = document.get("classes")
    if not isinstance(classes, list) or not all(_is_class(index, num_classes) for index in classes):
        raise ValueError(
            f"classes is {_short(classes)}, not a list of numbers from 0 to {num_classes - 1}"
        )

    # Optional: ImageNet's labels have classes and no objects.
    objects = document.get("objects", [])
    if not isinstance(objects, list):
        raise ValueError(f"objects is {_short(objects)}, not a list")

    present = np.zeros(num_classes, np.float32)
    # Set, not added: a class that is listed twice is still one label.
    present[classes] = 1.0
    easy = np.zeros(num_classes, np.bool_)
    difficult = np.zeros(num_classes, np.bool_)

    for item in objects:
        index = item.get("class") if isinstance(item, dict) else None
        if not _is_class(index, num_classes):
            raise ValueError(
                f"an object of class {_short(index)}, not a number from 0 to {num_classes - 1}"
            )
        # One easy object makes the class count; VOC's rule for its classification task.
        group = difficult if item.get("difficult") else easy
        group[index] = True

    return ClassVectors(present, difficult & ~easy & (present > 0))


def vectors_of(indices: Sequence[int], num_classes: int) -> ClassVectors:
    """Return the class vectors of a label that has classes and no objects."""
    present = np.zeros(num_classes, np.float32)
    present[list(indices)] = 1.0
    return ClassVectors(present, np.zeros(num_classes, np.bool_))


def labelled_objects(label: bytes, num_classes: int, stored_size: tuple[int, int]) -> Objects:
    """Parse the objects of a label.

    Args:
        label: The JSON label.
        num_classes: Classes of the set.
        stored_size: Width and height of the stored image, in whose pixels the boxes are.

    Raises:
        ValueError: No list of objects with class and box, or no size of the source; the message is
            the reason.
    """
    document = _document(label)
    items = document.get("objects")
    if not isinstance(items, list):
        raise ValueError("no list of objects")

    width, height = document.get("width"), document.get("height")
    if width is None or height is None or not _is_side(width) or not _is_side(height):
        raise ValueError(
            f"the source's size is {_short((width, height))}, not two positive numbers of pixels"
        )
    for item in items:
        _check_object(item, num_classes)

    # Shaped by hand, as an image without objects gives an array of one dimension.
    boxes_N4 = np.array([item["box"] for item in items], np.float64).reshape(-1, 4)
    boxes_N4 /= np.array(stored_size * 2, np.float64)
    sides_N2 = (boxes_N4[:, 2:] - boxes_N4[:, :2]) * np.array([width, height], np.float64)
    box_areas_N = sides_N2.prod(axis=1).tolist()
    # COCO's areas are those of the outline, by which it sorts objects into small to large.
    areas = [item.get("area", area) for item, area in zip(items, box_areas_N, strict=True)]

    return Objects(
        boxes_N4=boxes_N4,
        classes_N=np.array([item["class"] for item in items], np.int64),
        difficult_N=np.array([bool(item.get("difficult")) for item in items], np.bool_),
        crowd_N=np.array([bool(item.get("crowd")) for item in items], np.bool_),
        areas_N=np.array(areas, np.float64),
        source_size=(int(width), int(height)),
    )


def _document(label: bytes) -> dict[str, Any]:
    try:
        document: Any = json.loads(label)
    # Thousands of brackets are valid JSON, and a cheap attack.
    except RecursionError:
        raise ValueError("JSON that is nested too deeply") from None
    return document if isinstance(document, dict) else {}


def _check_object(item: Any, num_classes: int) -> None:
    whole = (
        isinstance(item, dict)
        and _is_class(item.get("class"), num_classes)
        and _is_box(item.get("box"))
    )
    if not whole:
        raise ValueError(
            f"object {_short(item)} lacks a class from 0 to {num_classes - 1} or a box of 4 numbers"
        )
    if not _is_number(item.get("area", 0.0)):
        raise ValueError(f"an object's area is {_short(item['area'])}, not a number")


def _is_box(box: Any) -> bool:
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
        return False
    x0, y0, x1, y1 = box
    # Empty boxes are allowed: corpora hold some, and scoring passes over them.
    return bool(x0 <= x1 and y0 <= y1)


def _is_class(index: Any, num_classes: int) -> bool:
    # True is an int in Python, and would be class 1.
    return isinstance(index, int) and not isinstance(index, bool) and 0 <= index < num_classes


def _is_side(side: Any) -> bool:
    return isinstance(side, int) and not isinstance(side, bool) and 0 < side < 2**31


def _is_number(value: Any) -> bool:
    """Accept finite numbers that fit into a float32: larger ones would become infinite."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < 1e30  # False for NaN and infinity too


def _short(value: Any) -> str:
    """Return a value for a message; a label from elsewhere may hold megabytes."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
