"""Scores of detections: average precision as VOC and as COCO define it, in the source pictures' own pixels.

VOC (Everingham et al., IJCV 2010, and its development kit): a detection is right where it overlaps an object of its
class by 0.5 or more and no better-scored one has; of an object found twice the second counts as wrong; what hits a
difficult object counts neither way. COCO: pycocotools' own COCOeval, over overlaps of 0.5 to 0.95.

N detections, M objects, C classes; boxes are x0, y0, x1, y1.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from colorgan.data import Boxes
from colorgan.models.detector import Detections, overlaps

MIN_OVERLAP = 0.5
# COCOeval.stats, in order.
COCO_NAMES = (
    *("AP", "AP50_coco", "AP75", "AP_small", "AP_medium", "AP_large"),
    *("AR_1", "AR_10", "AR_100", "AR_small", "AR_medium", "AR_large"),
)


@dataclass(frozen=True)
class ScoredPicture:
    """One picture's detections, best first, and its objects; boxes in pixels of the source, float64."""

    boxes_N4: NDArray[np.float64]
    scores_N: NDArray[np.float64]
    classes_N: NDArray[np.int64]
    true_M4: NDArray[np.float64]
    true_classes_M: NDArray[np.int64]
    difficult_M: NDArray[np.bool_]
    crowd_M: NDArray[np.bool_]
    areas_M: NDArray[np.float64]


def scored_picture(found: Detections, truth: Boxes) -> ScoredPicture:
    """Bring detections and objects from shares of the picture to the source's pixels."""
    size_4 = np.array(truth.source_size * 2, np.float64)
    return ScoredPicture(
        found.boxes_N4.cpu().numpy() * size_4,
        found.scores_N.cpu().numpy().astype(np.float64),
        found.classes_N.cpu().numpy(),
        truth.boxes_N4.numpy() * size_4,
        truth.classes_N.numpy(),
        truth.difficult_N.numpy(),
        truth.crowd_N.numpy(),
        truth.areas_N.numpy().astype(np.float64),
    )


def detection_scores(
    pictures: Sequence[ScoredPicture], num_classes: int
) -> tuple[dict[str, float], list[float]]:
    """Return all scores by name, and VOC's average precision of each class (NaN where it has no object).

    `AP50` is VOC 2010+'s (the area under the curve), `AP50_11_point` VOC 2007's; a COCO score without any object to
    find (no small ones, say) is NaN.
    """
    curves = [voc_curve(pictures, index) for index in range(num_classes)]
    areas_C = [area_precision(*curve) for curve in curves]
    points_C = [eleven_point_precision(*curve) for curve in curves]
    scores = {
        "AP50": _mean(areas_C),
        "AP50_11_point": _mean(points_C),
        **coco_scores(pictures, num_classes),
        "images": float(len(pictures)),
        "classes": float(np.isfinite(areas_C).sum()),
    }
    return scores, areas_C


def voc_curve(
    pictures: Sequence[ScoredPicture], index: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], int]:
    """Return recall and precision after each detection of a class that counts, best first, and its number of objects.

    Difficult objects and crowd regions are neither to be found nor wrong to find.
    """
    scores: list[float] = []
    right: list[bool] = []
    number = 0
    for picture in pictures:
        mine_N, true_M = picture.classes_N == index, picture.true_classes_M == index
        ignored_M = (picture.difficult_M | picture.crowd_M)[true_M]
        number += int((~ignored_M).sum())
        for score, hit in _hits(
            picture.boxes_N4[mine_N], picture.scores_N[mine_N], picture.true_M4[true_M], ignored_M
        ):
            scores.append(score)
            right.append(hit)
    order = np.argsort(-np.array(scores), kind="stable")
    right_N = np.array(right, np.float64)[order]
    found_N = right_N.cumsum()
    recall_N = found_N / number if number else np.zeros_like(found_N)
    return recall_N, found_N / np.arange(1, len(found_N) + 1), number


def _hits(
    boxes_N4: NDArray[np.float64],
    scores_N: NDArray[np.float64],
    true_M4: NDArray[np.float64],
    ignored_M: NDArray[np.bool_],
) -> list[tuple[float, bool]]:
    """Each detection of one class in one picture, best first, with whether it is right; those ignored left out."""
    overlap_NM = overlaps(torch.from_numpy(boxes_N4), torch.from_numpy(true_M4)).numpy()
    taken: set[int] = set()
    hits = []
    for row_M, score in zip(overlap_NM, scores_N.tolist(), strict=True):
        best = int(row_M.argmax()) if len(row_M) else -1
        touches = best >= 0 and row_M[best] >= MIN_OVERLAP
        if touches and ignored_M[best]:
            continue
        hits.append((score, bool(touches and best not in taken)))
        if touches:
            taken.add(best)
    return hits


def area_precision(
    recall_N: NDArray[np.float64], precision_N: NDArray[np.float64], number: int
) -> float:
    """Return the area under the curve whose precision never rises with recall (VOC 2010+); NaN without objects."""
    if not number:
        return float("nan")
    steps_N = np.diff(recall_N, prepend=0.0)
    return float((steps_N * _falling(precision_N)).sum())


def eleven_point_precision(
    recall_N: NDArray[np.float64], precision_N: NDArray[np.float64], number: int
) -> float:
    """Return the mean of the best precision at a recall of 0, 0.1, ... 1 or more (VOC 2007); NaN without objects."""
    if not number:
        return float("nan")
    # A recall of 3 in 10 must reach 0.3 whatever rounding has made of either.
    best = [precision_N[recall_N >= point / 10 - 1e-9].max(initial=0.0) for point in range(11)]
    return float(np.mean(best))


def _falling(precision_N: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each precision raised to the best that comes at its recall or a higher one."""
    falling: NDArray[np.float64] = np.maximum.accumulate(precision_N[::-1])[::-1]
    return falling


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if value == value]
    return float(np.mean(known)) if known else float("nan")


class _Evaluation(COCOeval):  # type: ignore[misc]
    """COCOeval that leaves out difficult objects too, matched by the usual overlap; COCO itself has none."""

    def _prepare(self) -> None:
        super()._prepare()
        for objects in self._gts.values():
            for item in objects:
                item["ignore"] = int(item["ignore"] or item["difficult"])


def coco_scores(pictures: Sequence[ScoredPicture], num_classes: int) -> dict[str, float]:
    """Return COCO's twelve numbers by pycocotools; NaN where it has nothing to score.

    Small, medium and large are an object's area in the source picture: under 32 x 32, under 96 x 96, above.
    """
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress and its table
        evaluation = _Evaluation(
            _truth(pictures, num_classes), _found(pictures, num_classes), "bbox"
        )
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    values = evaluation.stats.tolist()
    return {
        name: value if value >= 0 else float("nan")
        for name, value in zip(COCO_NAMES, values, strict=True)
    }


def _truth(pictures: Sequence[ScoredPicture], num_classes: int) -> COCO:
    annotations = []
    for image, p in enumerate(pictures):
        columns = (p.true_M4, p.true_classes_M, p.crowd_M, p.difficult_M, p.areas_M)
        for box, index, crowd, difficult, area in zip(
            *(column.tolist() for column in columns), strict=True
        ):
            item = {"image_id": image, "category_id": index, "bbox": _xywh(box), "area": area}
            annotations.append({**item, "iscrowd": int(crowd), "difficult": int(difficult)})
    return _indexed(pictures, num_classes, annotations)


def _found(pictures: Sequence[ScoredPicture], num_classes: int) -> COCO:
    annotations = []
    for image, p in enumerate(pictures):
        columns = (p.boxes_N4, p.classes_N, p.scores_N)
        for box, index, score in zip(*(column.tolist() for column in columns), strict=True):
            x, y, width, height = _xywh(box)
            item = {
                "image_id": image,
                "category_id": index,
                "bbox": [x, y, width, height],
                "area": width * height,
            }
            annotations.append({**item, "iscrowd": 0, "score": score})
    return _indexed(pictures, num_classes, annotations)


def _xywh(box: Sequence[float]) -> list[float]:
    x0, y0, x1, y1 = box
    return [x0, y0, x1 - x0, y1 - y0]


def _indexed(
    pictures: Sequence[ScoredPicture], num_classes: int, annotations: list[dict[str, Any]]
) -> COCO:
    """Return annotations as pycocotools has them once it has read its files."""
    coco = COCO()
    coco.dataset = {
        "images": [{"id": image} for image in range(len(pictures))],
        "categories": [{"id": index} for index in range(num_classes)],
        "annotations": [{"id": number + 1, **item} for number, item in enumerate(annotations)],
    }
    coco.createIndex()
    return coco
