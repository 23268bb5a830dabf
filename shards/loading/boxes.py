"""Boxes that go with their picture through crop, resize and flip: shares of the stored picture -> of the output.

Called by shards/loading/stream.py with the window and the flip that the picture itself is given. Resizing needs no work: a
box's edges are edges between pixels, and as shares of the square they stay where they are.

N objects of one picture.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shards.loading.labels import Objects

# A training crop keeps an object of which at least this share is left: with less, what is left shows no object.
MIN_KEPT_AREA = 0.25


@dataclass(slots=True)
class Boxes:
    """One picture's objects in the loader's output; all on the CPU.

    Attributes:
        boxes_N4: float32 x0, y0, x1, y1 as shares of the output's width and height: pixel column i of W reaches from
            i / W to (i + 1) / W. In training within [0, 1] and of some area; in evaluation as labelled.
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


def all_boxes(objects: Objects) -> Boxes:
    """Every object of a whole picture as labelled, for scoring."""
    return _chosen(objects, objects.boxes_N4, np.ones(len(objects.boxes_N4), np.bool_))


def boxes_in_window(objects: Objects, window: NDArray[np.float64] | None, flip: bool) -> Boxes:
    """The objects that a training picture shows, their boxes clipped to it.

    Args:
        objects: The picture's.
        window: What is cut out of the picture: top, left, height, width as shares of it; None: nothing is cut.
        flip: Whether the output is mirrored left to right.

    Returns:
        Those of some area that keep MIN_KEPT_AREA of it; a crowd region stays however little of it is seen, as it
        says where objects are unknown.
    """
    boxes_N4 = objects.boxes_N4
    if window is not None:
        top, left, height, width = window.tolist()
        boxes_N4 = (boxes_N4 - np.array([left, top, left, top])) / np.array(
            [width, height, width, height]
        )
    if flip:
        boxes_N4 = np.stack(
            [1.0 - boxes_N4[:, 2], boxes_N4[:, 1], 1.0 - boxes_N4[:, 0], boxes_N4[:, 3]], axis=1
        )
    clipped_N4 = boxes_N4.clip(0.0, 1.0)
    areas_N, left_N = _areas(boxes_N4), _areas(clipped_N4)
    keep_N = (left_N > 0.0) & (objects.crowd_N | (left_N >= MIN_KEPT_AREA * areas_N))
    return _chosen(objects, clipped_N4, keep_N)


def _areas(boxes_N4: NDArray[np.float64]) -> NDArray[np.float64]:
    areas_N: NDArray[np.float64] = (boxes_N4[:, 2:] - boxes_N4[:, :2]).prod(axis=1)
    return areas_N


def _chosen(objects: Objects, boxes_N4: NDArray[np.float64], keep_N: NDArray[np.bool_]) -> Boxes:
    return Boxes(
        torch.from_numpy(boxes_N4[keep_N].astype(np.float32)),
        torch.from_numpy(objects.classes_N[keep_N]),
        torch.from_numpy(objects.difficult_N[keep_N]),
        torch.from_numpy(objects.crowd_N[keep_N]),
        torch.from_numpy(objects.areas_N[keep_N].astype(np.float32)),
        objects.source_size,
    )
