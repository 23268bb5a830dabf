"""Boxes that follow their image through crop, resize and flip.

Called by shards/loading/micro_batches.py with the crop window and the flip of the image itself.
Boxes come in as shares of the stored image and go out as shares of the output. Resizing needs no
work: a box's edges are edges between pixels, and as shares of the square they do not move.

N: objects of one image.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shards.loading.labels import Objects

# A training crop keeps an object if at least this share of it is left; less shows no object.
MIN_KEPT_AREA = 0.25


@dataclass(slots=True)
class Boxes:
    """One image's objects in the loader's output; all on the CPU.

    Attributes:
        boxes_N4: float32 x0, y0, x1, y1 as shares of the output's width and height: pixel column i
            of W reaches from i / W to (i + 1) / W. In training within [0, 1] and with a positive
            area; in evaluation as labelled.
        classes_N: int64, from 0.
        difficult_N: bool.
        crowd_N: bool.
        areas_N: float32, see `shards.loading.labels.Objects`.
        source_size: Width and height of the upright source in pixels.
    """

    boxes_N4: Tensor
    classes_N: Tensor
    difficult_N: Tensor
    crowd_N: Tensor
    areas_N: Tensor
    source_size: tuple[int, int]


def all_boxes(objects: Objects, window: NDArray[np.float64] | None = None) -> Boxes:
    """Return every object of an image as labelled, for scoring.

    Args:
        objects: The image's objects.
        window: What the output shows (top, left, height, width) as shares of the image; None: all.
    """
    everything_N = np.ones(len(objects.boxes_N4), np.bool_)
    return _selected(objects, _seen_through(objects.boxes_N4, window), everything_N)


def boxes_in_window(objects: Objects, window: NDArray[np.float64] | None, flip: bool) -> Boxes:
    """Return the objects that a training image shows, their boxes clipped to it.

    Args:
        objects: The image's objects.
        window: The crop (top, left, height, width) as shares of the image; None: no crop.
        flip: Whether the output is mirrored left to right.

    Returns:
        Objects with a positive area of which at least MIN_KEPT_AREA is left. A crowd region stays
        however little of it is left, because it marks where objects are unknown.
    """
    boxes_N4 = _seen_through(objects.boxes_N4, window)
    if flip:
        x0, y0, x1, y1 = boxes_N4.T
        # Sides change places, or x0 would be right of x1.
        boxes_N4 = np.stack([1.0 - x1, y0, 1.0 - x0, y1], axis=1)

    clipped_N4 = boxes_N4.clip(0.0, 1.0)
    # In shares of the crop both: the ratio is the same as in pixels.
    areas_N, left_N = _areas(boxes_N4), _areas(clipped_N4)
    enough_N = objects.crowd_N | (left_N >= MIN_KEPT_AREA * areas_N)
    return _selected(objects, clipped_N4, (left_N > 0.0) & enough_N)


def _seen_through(
    boxes_N4: NDArray[np.float64], window: NDArray[np.float64] | None
) -> NDArray[np.float64]:
    """Return boxes as shares of a window (top, left, height, width); None: of the image."""
    if window is None:
        return boxes_N4

    top, left, height, width = window.tolist()
    origin = np.array([left, top, left, top])
    sides = np.array([width, height, width, height])
    seen_N4: NDArray[np.float64] = (boxes_N4 - origin) / sides
    return seen_N4


def _areas(boxes_N4: NDArray[np.float64]) -> NDArray[np.float64]:
    sides_N2 = boxes_N4[:, 2:] - boxes_N4[:, :2]
    areas_N: NDArray[np.float64] = sides_N2.prod(axis=1)
    return areas_N


def _selected(objects: Objects, boxes_N4: NDArray[np.float64], keep_N: NDArray[np.bool_]) -> Boxes:
    return Boxes(
        # Indexing copies, so no tensor keeps the label's larger arrays alive.
        boxes_N4=torch.from_numpy(boxes_N4[keep_N].astype(np.float32)),
        classes_N=torch.from_numpy(objects.classes_N[keep_N]),
        difficult_N=torch.from_numpy(objects.difficult_N[keep_N]),
        crowd_N=torch.from_numpy(objects.crowd_N[keep_N]),
        areas_N=torch.from_numpy(objects.areas_N[keep_N].astype(np.float32)),
        source_size=objects.source_size,
    )
