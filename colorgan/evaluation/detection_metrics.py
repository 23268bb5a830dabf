"""Average precision of detections as VOC and as COCO define it, in the source images' own pixels.

VOC (Everingham et al., IJCV 2010, and its development kit): a detection is right where it overlaps
an object of its class by 0.5 or more and no better-scored one does; of an object found twice the
second counts as wrong; a detection of a difficult object counts neither way. COCO: pycocotools' own
COCOeval, over overlaps of 0.5 to 0.95.

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
    "AP",
    "AP50_coco",
    "AP75",
    "AP_small",
    "AP_medium",
    "AP_large",
    "AR_1",
    "AR_10",
    "AR_100",
    "AR_small",
    "AR_medium",
    "AR_large",
)


Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ScoredImage:
    """One image's detections, best first, and its objects.

    Boxes in pixels of the source, float64.
    """

    boxes_N4: Floats
    scores_N: Floats
    classes_N: NDArray[np.int64]
    true_M4: Floats
    true_classes_M: NDArray[np.int64]
    difficult_M: NDArray[np.bool_]
    crowd_M: NDArray[np.bool_]
    areas_M: Floats


def scored_image(found: Detections, truth: Boxes) -> ScoredImage:
    """Bring detections and objects from shares of the image to the source's pixels."""
    width, height = truth.source_size
    size_4 = np.array([width, height, width, height], np.float64)
    return ScoredImage(
        boxes_N4=found.boxes_N4.cpu().numpy() * size_4,
        scores_N=found.scores_N.cpu().numpy().astype(np.float64),
        classes_N=found.classes_N.cpu().numpy(),
        true_M4=truth.boxes_N4.numpy() * size_4,
        true_classes_M=truth.classes_N.numpy(),
        difficult_M=truth.difficult_N.numpy(),
        crowd_M=truth.crowd_N.numpy(),
        areas_M=truth.areas_N.numpy().astype(np.float64),
    )


def detection_scores(
    images: Sequence[ScoredImage], num_classes: int
) -> tuple[dict[str, float], list[float]]:
    """Return all scores by name, and VOC's average precision per class (NaN without objects).

    `AP50` is VOC 2010+'s (the area under the curve), `AP50_11_point` VOC 2007's; a COCO score
    without any object to find (no small ones, say) is NaN.
    """
    curves = [voc_curve(images, index) for index in range(num_classes)]
    areas_C = [area_precision(*curve) for curve in curves]
    points_C = [eleven_point_precision(*curve) for curve in curves]

    scores = {
        "AP50": _mean(areas_C),
        "AP50_11_point": _mean(points_C),
        **coco_scores(images, num_classes),
        "images": float(len(images)),
        "classes": float(np.isfinite(areas_C).sum()),
    }
    return scores, areas_C


def voc_curve(images: Sequence[ScoredImage], index: int) -> tuple[Floats, Floats, int]:
    """Return recall and precision after each detection of a class, and its number of objects.

    Detections that count come best first.

    Difficult objects and crowd regions are neither to be found nor wrong to find.
    """
    scores: list[float] = []
    right: list[bool] = []
    number = 0
    for image in images:
        mine_N, true_M = image.classes_N == index, image.true_classes_M == index
        ignored_M = (image.difficult_M | image.crowd_M)[true_M]
        number += int((~ignored_M).sum())

        mine = image.boxes_N4[mine_N], image.scores_N[mine_N]
        for score, hit in _hits(*mine, image.true_M4[true_M], ignored_M):
            scores.append(score)
            right.append(hit)

    # Stable: of equal scores the earlier image's comes first, on every machine.
    order = np.argsort(-np.array(scores), kind="stable")
    right_N = np.array(right, np.float64)[order]
    found_N = right_N.cumsum()
    recall_N = found_N / number if number else np.zeros_like(found_N)
    return recall_N, found_N / np.arange(1, len(found_N) + 1), number


def _hits(
    boxes_N4: Floats, scores_N: Floats, true_M4: Floats, ignored_M: NDArray[np.bool_]
) -> list[tuple[float, bool]]:
    """Score and rightness of each detection of one class in one image, best first.

    Those ignored are left out.
    """
    overlap_NM = overlaps(torch.from_numpy(boxes_N4), torch.from_numpy(true_M4)).numpy()
    taken: set[int] = set()
    hits = []
    for row_M, score in zip(overlap_NM, scores_N.tolist(), strict=True):
        best = int(row_M.argmax()) if len(row_M) else -1
        touches = best >= 0 and row_M[best] >= MIN_OVERLAP
        # Neither right nor wrong, however often it is found.
        if touches and ignored_M[best]:
            continue

        hits.append((score, bool(touches and best not in taken)))
        if touches:
            taken.add(best)
    return hits


def area_precision(recall_N: Floats, precision_N: Floats, number: int) -> float:
    """Return the area under the curve whose precision never rises with recall (VOC 2010+).

    NaN without objects.
    """
    if not number:
        return float("nan")

    steps_N = np.diff(recall_N, prepend=0.0)
    return float((steps_N * _falling(precision_N)).sum())


def eleven_point_precision(recall_N: Floats, precision_N: Floats, number: int) -> float:
    """Return the mean of the best precision at a recall of 0, 0.1, ... 1 or more (VOC 2007).

    NaN without objects.
    """
    if not number:
        return float("nan")

    # A recall of 3 in 10 must reach 0.3 whatever rounding did to either.
    best = [precision_N[recall_N >= point / 10 - 1e-9].max(initial=0.0) for point in range(11)]
    return float(np.mean(best))


def _falling(precision_N: Floats) -> Floats:
    """Each precision raised to the best that comes at its recall or a higher one."""
    falling: Floats = np.maximum.accumulate(precision_N[::-1])[::-1]
    return falling


def _mean(values: Sequence[float]) -> float:
    # Not NaN: classes without an object in the set have no precision to average.
    known = [value for value in values if value == value]
    return float(np.mean(known)) if known else float("nan")


class _CocoEvaluation(COCOeval):  # type: ignore[misc]
    """COCOeval that leaves out difficult objects too, matched by the usual overlap.

    COCO itself has none.
    """

    def _prepare(self) -> None:
        super()._prepare()
        for objects in self._gts.values():
            for item in objects:
                # After COCOeval has set it for crowds, which it must stay.
                item["ignore"] = int(item["ignore"] or item["difficult"])


def coco_scores(images: Sequence[ScoredImage], num_classes: int) -> dict[str, float]:
    """Return COCO's twelve numbers by pycocotools; NaN where it has nothing to score.

    Small, medium and large are an object's area in the source image: under 32 x 32, under 96 x 96,
    above.
    """
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress and its table
        truth, found = _truth(images, num_classes), _found(images, num_classes)
        evaluation = _CocoEvaluation(truth, found, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()

    scores = {}
    for name, value in zip(COCO_NAMES, evaluation.stats.tolist(), strict=True):
        # pycocotools says -1 for "nothing to score", which a mean would take for a score.
        scores[name] = value if value >= 0 else float("nan")
    return scores


def _truth(images: Sequence[ScoredImage], num_classes: int) -> COCO:
    annotations = []
    for number, image in enumerate(images):
        for place, box in enumerate(image.true_M4.tolist()):
            annotation = {
                "image_id": number,
                "category_id": int(image.true_classes_M[place]),
                "bbox": _xywh(box),
                "area": float(image.areas_M[place]),
                "iscrowd": int(image.crowd_M[place]),
                "difficult": int(image.difficult_M[place]),
            }
            annotations.append(annotation)
    return _indexed(images, num_classes, annotations)


def _found(images: Sequence[ScoredImage], num_classes: int) -> COCO:
    annotations = []
    for number, image in enumerate(images):
        for place, box in enumerate(image.boxes_N4.tolist()):
            x, y, width, height = _xywh(box)
            annotation = {
                "image_id": number,
                "category_id": int(image.classes_N[place]),
                "bbox": [x, y, width, height],
                "area": width * height,
                "iscrowd": 0,
                "score": float(image.scores_N[place]),
            }
            annotations.append(annotation)
    return _indexed(images, num_classes, annotations)


def _xywh(box: Sequence[float]) -> list[float]:
    x0, y0, x1, y1 = box
    return [x0, y0, x1 - x0, y1 - y0]


def _indexed(
    images: Sequence[ScoredImage], num_classes: int, annotations: list[dict[str, Any]]
) -> COCO:
    """Return annotations as pycocotools has them after reading its files."""
    for number, annotation in enumerate(annotations, start=1):
        # From 1: COCOeval takes the id 0 of a matched object for no match.
        annotation["id"] = number

    coco = COCO()
    coco.dataset = {
        "images": [{"id": number} for number in range(len(images))],
        "categories": [{"id": index} for index in range(num_classes)],
        "annotations": annotations,
    }
    coco.createIndex()
    return coco
