"""A sample's JSON label as class vectors (which classes are in the picture) or as its objects with their boxes.

Used by shards/loading/shard_set.py where the task asks for classes or boxes.
"""

import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class ClassVectors:
    """One picture's classes, both of shape (C,).

    Attributes:
        present: 1.0 for each class in the picture, difficult objects included, else 0.0.
        difficult: True for each class that is in the picture only as objects marked difficult.
    """

    present: NDArray[np.float32]
    difficult: NDArray[np.bool_]


def class_vectors(label: bytes, num_classes: int) -> ClassVectors:
    """Parse a label.

    Raises:
        ValueError: No JSON object with a list `classes` of numbers under `num_classes`; with the reason.
    """
    document: Any = json.loads(label)
    classes = document.get("classes") if isinstance(document, dict) else None
    if not isinstance(classes, list) or not all(_is_class(index, num_classes) for index in classes):
        raise ValueError(f"classes is {classes!r}, no list of numbers from 0 to {num_classes - 1}")
    present = np.zeros(num_classes, np.float32)
    present[classes] = 1.0
    easy = np.zeros(num_classes, np.bool_)
    difficult = np.zeros(num_classes, np.bool_)
    for item in document.get("objects", []):
        index = item.get("class") if isinstance(item, dict) else None
        if not _is_class(index, num_classes):
            raise ValueError(f"an object of class {index!r}, no number from 0 to {num_classes - 1}")
        (difficult if item.get("difficult") else easy)[index] = True
    return ClassVectors(present, difficult & ~easy & (present > 0))


@dataclass(frozen=True, slots=True)
class Objects:
    """One picture's objects as labelled, N of them.

    Attributes:
        boxes_N4: x0, y0, x1, y1 as shares of the stored picture's width and height, float64; not clipped.
        classes_N: int64, from 0.
        difficult_N: bool, VOC's objects that are left out of the scores.
        crowd_N: bool, COCO's regions of many objects.
        areas_N: float64, square pixels of the source: of the object where the corpus says so (COCO), or of its box.
        source_size: Width and height of the upright source in pixels.
    """

    boxes_N4: NDArray[np.float64]
    classes_N: NDArray[np.int64]
    difficult_N: NDArray[np.bool_]
    crowd_N: NDArray[np.bool_]
    areas_N: NDArray[np.float64]
    source_size: tuple[int, int]


def labelled_objects(label: bytes, num_classes: int, stored_size: tuple[int, int]) -> Objects:
    """Parse a label; `stored_size` is the stored picture's width and height, in whose pixels its boxes are.

    Raises:
        ValueError: No list of objects with class and box, or no size of the source; with the reason.
    """
    document: Any = json.loads(label)
    items = document.get("objects") if isinstance(document, dict) else None
    if not isinstance(items, list):
        raise ValueError("no list of objects")
    size = document.get("width"), document.get("height")
    if not all(isinstance(side, int) and side > 0 for side in size):
        raise ValueError(f"the source's size is {size!r}, no two numbers of pixels")
    for item in items:
        if (
            not isinstance(item, dict)
            or not _is_class(item.get("class"), num_classes)
            or not _is_box(item.get("box"))
        ):
            raise ValueError(
                f"object {item!r} lacks a class from 0 to {num_classes - 1} or a box of 4 numbers"
            )
    boxes_N4 = np.array([item["box"] for item in items], np.float64).reshape(-1, 4) / np.array(
        stored_size * 2
    )
    sides_N2 = (boxes_N4[:, 2:] - boxes_N4[:, :2]) * np.array(size, np.float64)
    return Objects(
        boxes_N4,
        np.array([item["class"] for item in items], np.int64),
        np.array([bool(item.get("difficult")) for item in items], np.bool_),
        np.array([bool(item.get("crowd")) for item in items], np.bool_),
        np.array(
            [
                float(item.get("area", box))
                for item, box in zip(items, sides_N2.prod(1), strict=True)
            ]
        ),
        (int(size[0]), int(size[1])),
    )


def _is_box(box: Any) -> bool:
    numbers = (
        isinstance(box, list)
        and len(box) == 4
        and all(isinstance(value, int | float) for value in box)
    )
    return numbers and all(map(math.isfinite, box)) and box[0] <= box[2] and box[1] <= box[3]


def _is_class(index: Any, num_classes: int) -> bool:
    return isinstance(index, int) and not isinstance(index, bool) and 0 <= index < num_classes
