"""Scores of boxes: by hand, against the usual port of VOC's kit, and COCO's files read back."""

import contextlib
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from colorgan.evaluation.detection_metrics import (
    COCO_NAMES,
    ScoredImage,
    area_precision,
    coco_scores,
    detection_scores,
    eleven_point_precision,
    scored_image,
    voc_curve,
)
from colorgan.models.detector import Detections

Box = tuple[float, float, float, float]
LEFT: Box = (0, 0, 40, 40)
RIGHT: Box = (100, 0, 140, 40)
NOWHERE: Box = (300, 300, 340, 340)


def picture(
    found: list[tuple[Box, float, int]],
    true: list[tuple[Box, int]],
    difficult: tuple[int, ...] = (),
    crowd: tuple[int, ...] = (),
) -> ScoredImage:
    """Return detections (box, score, class), best first, and objects (box, class)."""
    true_M4 = np.array(
        [box for box, _ in true],
        np.float64,
    ).reshape(
        -1,
        4,
    )
    marks = [np.isin(np.arange(len(true)), each) for each in (difficult, crowd)]

    return ScoredImage(
        np.array(
            [box for box, _, _ in found],
            np.float64,
        ).reshape(
            -1,
            4,
        ),
        np.array(
            [score for _, score, _ in found],
            np.float64,
        ),
        np.array(
            [index for _, _, index in found],
            np.int64,
        ),
        true_M4,
        np.array([index for _, index in true], np.int64),
        *marks,
        (true_M4[:, 2:] - true_M4[:, :2]).prod(1),
    )


def random_pictures(seed: int, num_pictures: int = 12, num_classes: int = 3) -> list[ScoredImage]:
    """Objects, detections near them, and detections of nothing."""
    random = np.random.default_rng(seed)
    pictures = []

    for _ in range(num_pictures):
        number = int(random.integers(0, 6))
        corners = random.uniform(0, 300, (number, 2))
        true_M4 = np.concatenate(
            [
                corners,
                corners + random.uniform(10, 150, (number, 2)),
            ],
            axis=1,
        )
        near = np.repeat(true_M4, 2, axis=0)
        near += random.normal(0, 0.12, near.shape) * np.tile(near[:, 2:] - near[:, :2], 2)
        stray = random.uniform(0, 200, (3, 2))
        boxes = np.concatenate(
            [
                near,
                np.concatenate([stray, stray + 50], axis=1),
            ]
        )
        true_classes = random.integers(0, num_classes, number)
        classes = np.concatenate(
            [
                np.repeat(true_classes, 2),
                random.integers(0, num_classes, 3),
            ]
        )
        scores = np.sort(random.uniform(0, 1, len(boxes)))[::-1]
        order = random.permutation(len(boxes))
        flags = random.uniform(size=(2, number)) < 0.2
        areas = (true_M4[:, 2:] - true_M4[:, :2]).prod(1) * 0.7
        picture = ScoredImage(
            boxes[order],
            scores.copy(),
            classes[order],
            true_M4,
            true_classes,
            flags[0],
            flags[1],
            areas,
        )
        pictures.append(picture)

    return pictures


def test_perfect_detections_score_one() -> None:
    true = [
        (LEFT, 0),
        (RIGHT, 0),
        (NOWHERE, 2),
    ]
    perfect = picture(
        [(box, 0.9, index) for box, index in true],
        true,
    )
    scores, per_class = detection_scores(
        [perfect, picture([], [])],
        3,
    )

    assert {
        scores[name]
        for name in ("AP50", "AP50_11_point", "AP", "AP50_coco", "AP75", "AP_medium", "AR_100")
    } == {1}
    assert scores["AR_1"] == pytest.approx(
        0.75
    )  # one detection a class and picture: of two lefts and rights one
    assert np.isnan(
        [
            scores["AP_small"],
            scores["AP_large"],
            per_class[1],
        ]
    ).all()
    assert (
        scores["images"],
        scores["classes"],
    ) == (2, 2)


def test_nothing_found_scores_zero_and_nothing_there_is_no_number() -> None:
    scores, _ = detection_scores(
        [picture([], [(LEFT, 0)])],
        1,
    )

    assert (
        scores["AP50"],
        scores["AP50_11_point"],
        scores["AP"],
    ) == (0, 0, 0)

    scores, _ = detection_scores(
        [picture([(LEFT, 0.5, 0)], [])],
        1,
    )

    assert np.isnan(
        [
            scores["AP50"],
            scores["AP"],
        ]
    ).all()


def test_average_precision_by_hand() -> None:
    """Two objects; right, wrong, right: precision 1, 1/2, 2/3 at recall 1/2, 1/2, 1."""
    one = picture(
        [
            (LEFT, 0.9, 0),
            (NOWHERE, 0.8, 0),
            (RIGHT, 0.7, 0),
        ],
        [(LEFT, 0), (RIGHT, 0)],
    )
    recall, precision, number = voc_curve([one], 0)

    assert (recall.tolist(), precision.tolist(), number) == (
        [0.5, 0.5, 1.0],
        [1.0, 0.5, pytest.approx(2 / 3)],
        2,
    )
    assert area_precision(recall, precision, number) == pytest.approx(0.5 + 0.5 * 2 / 3)
    assert eleven_point_precision(recall, precision, number) == pytest.approx(
        (6 * 1 + 5 * 2 / 3) / 11
    )
    # COCO takes the precision at 101 recalls: 51 of them are at most 1/2.
    assert coco_scores([one], 1)["AP50_coco"] == pytest.approx((51 + 50 * 2 / 3) / 101)


def test_an_object_found_twice_is_once_wrong() -> None:
    twice = picture(
        [
            (LEFT, 0.9, 0),
            (LEFT, 0.8, 0),
            (RIGHT, 0.7, 0),
        ],
        [(LEFT, 0), (RIGHT, 0)],
    )

    assert voc_curve([twice], 0)[1].tolist() == [
        1.0,
        0.5,
        pytest.approx(2 / 3),
    ]


def test_an_overlap_of_one_half_is_enough() -> None:
    """VOC's kit and COCO both take 0.5 itself."""
    exact = picture(
        [((0, 0, 40, 20), 0.9, 0)],
        [(LEFT, 0)],
    )
    less = picture(
        [((0, 0, 40, 19), 0.9, 0)],
        [(LEFT, 0)],
    )

    for one, value in ((exact, 1.0), (less, 0.0)):
        scores, _ = detection_scores([one], 1)
        assert (
            scores["AP50"],
            scores["AP50_coco"],
        ) == pytest.approx((value, value))


@pytest.mark.parametrize("mark", ["difficult", "crowd"])
def test_what_is_difficult_or_a_crowd_counts_neither_way(mark: str) -> None:
    true = [(LEFT, 0), (RIGHT, 0)]
    found = [
        (LEFT, 0.9, 0),
        (LEFT, 0.8, 0),
        (RIGHT, 0.7, 0),
    ]
    scores, _ = detection_scores(
        [picture(found, true, **{mark: (0,)})],
        1,
    )

    # What is left out can be hit often, but in COCO only where it is a crowd.
    assert (
        scores["AP50"],
        scores["AP"],
    ) == pytest.approx((1, 1 if mark == "crowd" else 0.5))
    scores, _ = detection_scores(
        [
            picture(
                found[1:],
                true,
                **{mark: (0,)},
            )
        ],
        1,
    )

    assert (
        scores["AP50"],
        scores["AP"],
    ) == pytest.approx((1, 1))
    scores, _ = detection_scores(
        [
            picture(
                found[:1],
                true,
                **{mark: (0,)},
            )
        ],
        1,
    )

    assert (
        scores["AP50"],
        scores["AP"],
    ) == (0, 0)


def test_a_small_detection_within_a_crowd_is_left_out_by_coco_alone() -> None:
    inside = [
        ((10, 10, 20, 20), 0.9, 0),
        (RIGHT, 0.8, 0),
    ]
    crowd = picture(
        inside,
        [(LEFT, 0), (RIGHT, 0)],
        crowd=(0,),
    )
    difficult = picture(
        inside,
        [(LEFT, 0), (RIGHT, 0)],
        difficult=(0,),
    )

    assert coco_scores([crowd], 1)["AP"] == pytest.approx(
        1
    )  # a crowd is hit by the detection's share within it
    assert coco_scores([difficult], 1)["AP"] == pytest.approx(0.5)
    assert detection_scores([crowd], 1)[0]["AP50"] == 0.5


def ported_voc_eval(pictures: list[ScoredImage], index: int, use_07_metric: bool) -> float:
    """`voc_eval` of Fast R-CNN (R.

    Girshick), the usual port of VOC's kit, for boxes in memory and half-open.

    Its 11 points are written with the rounding taken off: np.arange makes the fourth larger than 3
    / 10.
    """
    objects, npos = [], 0

    for p in pictures:
        mine = p.true_classes_M == index
        ignored = (p.difficult_M | p.crowd_M)[mine]
        objects.append(
            (
                p.true_M4[mine],
                ignored,
                [False] * len(ignored),
            )
        )
        npos += int(sum(~ignored))

    rows = [
        (s, i, b)
        for i, p in enumerate(pictures)
        for b, s, c in zip(p.boxes_N4, p.scores_N, p.classes_N, strict=True)
        if c == index
    ]
    rows.sort(key=lambda row: -row[0])
    tp = np.zeros(len(rows))
    fp = np.zeros(len(rows))

    for d, (_, image, bb) in enumerate(rows):
        true, ignored, det = objects[image]
        ovmax = -np.inf
        jmax = 0
        if true.size > 0:
            ixmin = np.maximum(true[:, 0], bb[0])
            iymin = np.maximum(true[:, 1], bb[1])
            ixmax = np.minimum(true[:, 2], bb[2])
            iymax = np.minimum(true[:, 3], bb[3])
            inters = np.maximum(ixmax - ixmin, 0.0) * np.maximum(iymax - iymin, 0.0)
            uni = (
                (bb[2] - bb[0]) * (bb[3] - bb[1])
                + (true[:, 2] - true[:, 0]) * (true[:, 3] - true[:, 1])
                - inters
            )
            ovmax = np.max(inters / uni)
            jmax = int(np.argmax(inters / uni))
        if ovmax > 0.5:
            if not ignored[jmax]:
                if not det[jmax]:
                    tp[d], det[jmax] = 1.0, True
                else:
                    fp[d] = 1.0
        else:
            fp[d] = 1.0

    fp, tp = np.cumsum(fp), np.cumsum(tp)
    return ported_voc_ap(
        tp / npos, tp / np.maximum(tp + fp, np.finfo(np.float64).eps), use_07_metric
    )


def ported_voc_ap(
    rec: NDArray[np.float64], prec: NDArray[np.float64], use_07_metric: bool
) -> float:
    if use_07_metric:
        ap = 0.0
        for t in np.arange(0.0, 1.1, 0.1) - 1e-9:
            ap += (0 if np.sum(rec >= t) == 0 else np.max(prec[rec >= t])) / 11.0
        return float(ap)
    mrec = np.concatenate(([0.0], rec, [1.0]))
    mpre = np.concatenate(([0.0], prec, [0.0]))
    for i in range(mpre.size - 1, 0, -1):
        mpre[i - 1] = np.maximum(mpre[i - 1], mpre[i])
    i = np.where(mrec[1:] != mrec[:-1])[0]

    return float(np.sum((mrec[i + 1] - mrec[i]) * mpre[i + 1]))


@pytest.mark.parametrize("seed", range(6))
def test_voc_scores_are_those_of_the_usual_port(seed: int) -> None:
    pictures = random_pictures(seed)

    for index in range(3):
        curve = voc_curve(pictures, index)
        assert 0 < area_precision(*curve) <= 1
        assert area_precision(*curve) == pytest.approx(
            ported_voc_eval(pictures, index, False), abs=1e-12
        )
        assert eleven_point_precision(*curve) == pytest.approx(
            ported_voc_eval(pictures, index, True), abs=1e-12
        )


@pytest.mark.parametrize("seed", range(3))
def test_coco_scores_are_those_of_coco_files(tmp_path: Path, seed: int) -> None:
    """As a user of pycocotools does it: an instances file and a results file on the disk."""
    pictures = [replace(p, difficult_M=np.zeros_like(p.difficult_M)) for p in random_pictures(seed)]
    truth, found = [], []
    for image, p in enumerate(pictures):
        for box, index, crowd, area in zip(
            p.true_M4, p.true_classes_M, p.crowd_M, p.areas_M, strict=True
        ):
            item = {
                "id": len(truth) + 1,
                "image_id": image,
                "category_id": int(index) + 1,
                "iscrowd": int(crowd),
            }
            truth.append(
                {
                    **item,
                    "bbox": [
                        *box[:2],
                        *(box[2:] - box[:2]),
                    ],
                    "area": area,
                }
            )
        for box, index, score in zip(p.boxes_N4, p.classes_N, p.scores_N, strict=True):
            bbox = [
                *box[:2],
                *(box[2:] - box[:2]),
            ]
            found.append(
                {
                    "image_id": image,
                    "category_id": int(index) + 1,
                    "bbox": bbox,
                    "score": score,
                }
            )
    images = [{"id": image, "width": 500, "height": 500} for image in range(len(pictures))]
    categories = [{"id": index + 1, "name": str(index)} for index in range(3)]
    (tmp_path / "truth.json").write_text(
        json.dumps(
            {
                "info": {},
                "images": images,
                "annotations": truth,
                "categories": categories,
            }
        )
    )
    (tmp_path / "found.json").write_text(json.dumps(found))
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(tmp_path / "truth.json"))
        evaluation = COCOeval(
            coco,
            coco.loadRes(str(tmp_path / "found.json")),
            "bbox",
        )
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    wanted = dict(
        zip(
            COCO_NAMES,
            evaluation.stats.tolist(),
            strict=True,
        )
    )
    got = coco_scores(pictures, 3)

    assert 0 < got["AP"] < got["AP50_coco"] < 1
    assert got == pytest.approx(wanted, abs=1e-12)


def test_scoring_is_silent_and_in_the_sources_pixels(capsys: pytest.CaptureFixture[str]) -> None:
    class Truth:
        boxes_N4 = torch.tensor([[0.1, 0.2, 0.3, 0.6]])
        classes_N = torch.tensor([1])
        difficult_N = crowd_N = torch.tensor([False])
        areas_N = torch.tensor([10000.0])
        source_size = (500, 250)

    found = Detections(
        Truth.boxes_N4,
        torch.tensor([0.9]),
        Truth.classes_N,
    )
    one = scored_image(found, Truth())
    assert one.boxes_N4.tolist() == [pytest.approx([50, 50, 150, 150])]
    scores, _ = detection_scores([one], 2)
    assert scores["AP_large"] == pytest.approx(1)
    assert np.isnan(scores["AP_medium"])
    assert capsys.readouterr().out == ""
