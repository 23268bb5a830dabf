"""A sample's JSON label as class vectors: which classes are in the picture, and which only as difficult ones.

Used by shards/reader.py where the task asks for classes.
"""

import json
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


def _is_class(index: Any, num_classes: int) -> bool:
    return isinstance(index, int) and not isinstance(index, bool) and 0 <= index < num_classes
