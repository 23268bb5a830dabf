"""Scores of a detector from its raw outputs.

VOC's and COCO's average precisions, with pictures of the boxes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial

from torch import Tensor

from colorgan.data import Batch, Boxes
from colorgan.distributed.ranks import Ranks
from colorgan.evaluation.detection_metrics import ScoredImage, detection_scores, scored_image
from colorgan.evaluation.picture_grids import NamedBoxes, box_grid
from colorgan.evaluation.predictions import Prediction, percent, rows_in_order
from colorgan.evaluation.record import Evaluation, SavedEvaluation
from colorgan.models.colorizing import to_rgb
from colorgan.models.detector import Detections, detect
from colorgan.models.model_config import ModelConfig

# Of the detections in pictures; scores count all.
MIN_SHOWN_SCORE = 0.3
MAX_SHOWN = 5

# sRGB image 3HW, true boxes, predicted boxes.
_Overlay = tuple[Tensor, NamedBoxes, NamedBoxes]


def score_detector(
    predictions: Iterable[Prediction], ranks: Ranks, config: ModelConfig, num_pictures: int = 0
) -> Evaluation:
    """Return VOC's and COCO's average precisions from raw outputs.

    `per_class` is VOC 2010+'s average precision at an overlap of 0.5. Called on all ranks; the same
    on all.

    Args:
        predictions: Batches with targets "boxes" and their raw outputs.
        ranks: This process's place among the ranks.
        config: Names and colors of the classes.
        num_pictures: How many of this rank's first images to keep as pictures.
    """
    rows: list[tuple[int, ScoredImage]] = []
    overlays: list[_Overlay] = []
    for batch, raw_BOHW in predictions:
        assert batch.boxes is not None
        detections = detect(raw_BOHW)
        scored = [scored_image(*each) for each in zip(detections, batch.boxes, strict=True)]
        rows += zip(batch.sample_ids_B.tolist(), scored, strict=True)

        room = num_pictures - len(overlays)
        if room > 0:
            overlays += _overlays(batch, detections, config, room)

    # In the set's order, as equal scores are ranked by it.
    _, ordered = rows_in_order(ranks, rows)
    scores, per_class = detection_scores(ordered, config.architecture.num_outputs)
    record = SavedEvaluation(
        scores=scores, per_class=dict(zip(config.classes, per_class, strict=True))
    )
    save_pictures = partial(box_grid, rows=overlays, palette=config.palette)
    return Evaluation(record, save_pictures=save_pictures if overlays else None)


def _overlays(
    batch: Batch, detections: Sequence[Detections], config: ModelConfig, room: int
) -> list[_Overlay]:
    """Return the first images of a batch with their boxes, at most `room`."""
    assert batch.boxes is not None
    lab_B3HW = batch.lab_B3HW[:room]
    rgb_B3HW = to_rgb(lab_B3HW[:, :1], lab_B3HW[:, 1:], config.ab_scale).cpu()
    return [
        (rgb_3HW, _true_boxes(truth, config.classes), _found_boxes(found, config.classes))
        for rgb_3HW, found, truth in zip(rgb_B3HW, detections, batch.boxes, strict=False)
    ]


def _true_boxes(truth: Boxes, classes: Sequence[str]) -> NamedBoxes:
    """Return the true boxes with their classes; in brackets where they are not scored."""
    unscored = (truth.difficult_N | truth.crowd_N).tolist()
    named = []
    for place, index in enumerate(truth.classes_N.tolist()):
        name = f"({classes[index]})" if unscored[place] else classes[index]
        named.append((truth.boxes_N4[place].tolist(), index, name))
    return named


def _found_boxes(found: Detections, classes: Sequence[str]) -> NamedBoxes:
    """Return the few best detections that are fairly sure; the best one in any case."""
    named = []
    for place, score in enumerate(found.scores_N[:MAX_SHOWN].tolist()):
        # The best one even where it is poor: an empty picture would not show what went wrong.
        if place == 0 or score >= MIN_SHOWN_SCORE:
            index = int(found.classes_N[place])
            name = f"{classes[index]} {100 * score:.0f}"
            named.append((found.boxes_N4[place].tolist(), index, name))
    return named


def detector_text(config: ModelConfig, scores: Mapping[str, float]) -> str:
    """Return the scores of a detector in one line."""
    return (
        f"AP50 {percent(scores['AP50'])} (VOC 2010+), "
        f"{percent(scores['AP50_11_point'])} (11-point), "
        f"AP {percent(scores['AP'])} (COCO, overlap 0.5 to 0.95), AP75 {percent(scores['AP75'])}"
    )
