"""Scores of fine-tuned models, with the evidence behind them: per class, per image, and pictures to look at.

`score_model` walks a set once and gives an `Evaluation`; `write_evaluation` leaves it in a folder:

    scores.json               scores, per class, confusion, and what they were computed with
    per_image.safetensors     what a bootstrap over images needs (colorgan/study/comparison.py)
    pictures.png              overlays

N images, B images of a batch, C classes, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from colorgan.data import Batch, Boxes
from colorgan.distributed.ranks import Ranks
from colorgan.errors import TrainingError
from colorgan.evaluation.detection_scores import ScoredPicture, detection_scores, scored_picture
from colorgan.evaluation.metrics import (
    confusion_matrix,
    first_positive_accuracy,
    iou_per_class,
    mean_average_precision,
    mean_dice,
    mean_iou,
    pixel_accuracy,
)
from colorgan.evaluation.picture_grids import NamedBoxes, box_grid, mask_grid
from colorgan.evaluation.record import Evaluation
from colorgan.models.colorizing import to_rgb
from colorgan.models.detector import Detections, detect
from colorgan.models.model_folder import ModelConfig
from colorgan.models.modes import dropout_keys, evaluating, set_dropout_keys, using_inference

BACKGROUND = "background"
MIN_SHOWN_SCORE, MAX_SHOWN = 0.3, 5  # of the boxes in pictures; scores count all


def score_model(
    model: nn.Module,
    config: ModelConfig,
    batches: Iterable[Batch],
    ranks: Ranks,
    *,
    seed: int,
    num_pictures: int = 0,
) -> Evaluation:
    """Score a fine-tuned model with its config's inference behaviour. Called on all ranks.

    Args:
        seed: of the dropout masks of "paper" inference.
        num_pictures: pictures of rank 0's first images to keep.
    """
    with using_inference(model, config.inference), evaluating(model), torch.inference_mode():
        if config.kind == "classifier":
            return score_classifier(_predictions(model, batches, seed), ranks, config.classes)
        num_pictures = num_pictures if ranks.main else 0
        if config.kind == "detector":
            return score_detector(_predictions(model, batches, seed), ranks, config, num_pictures)
        return score_segmenter(_predictions(model, batches, seed), ranks, config, num_pictures)


def _predictions(
    model: nn.Module, batches: Iterable[Batch], seed: int
) -> Iterator[tuple[Batch, Tensor]]:
    """Each batch with the model's output for its luminance, float32."""
    for batch in batches:
        set_dropout_keys(model, dropout_keys(seed, batch.positions_B))
        yield batch, model(batch.lab_B3HW[:, :1]).float()


def score_classifier(
    predictions: Iterable[tuple[Batch, Tensor]], ranks: Ranks, classes: Sequence[str] = ()
) -> Evaluation:
    """Return average precisions (VOC's, see colorgan/evaluation/metrics.py) and the paper's accuracy, from logits B x C.

    `mAP` and `mAP_11_point` leave out images where a class is there as difficult objects only, as VOC does;
    `mAP_all_objects` counts them, as the paper does. The confusion has, for every class in a picture (row), the class
    that scored best there (column). Called on all ranks; the same on all.
    """
    rows: list[tuple[int, list[float], list[float], list[bool]]] = []
    for batch, logits_BC in predictions:
        assert batch.classes_BC is not None and batch.difficult_BC is not None
        columns = (
            batch.sample_ids_B,
            logits_BC.cpu(),
            batch.classes_BC.cpu(),
            batch.difficult_BC.cpu(),
        )
        rows += list(zip(*(column.tolist() for column in columns), strict=True))
    ids, ordered = _in_order(ranks, rows)
    scores_NC, positives_NC, difficult_NC = (
        torch.tensor([row[i] for row in ordered]) for i in (1, 2, 3)
    )
    usual = mean_average_precision(scores_NC, positives_NC, difficult_NC)
    best_NC = F.one_hot(scores_NC.argmax(dim=1), scores_NC.shape[1])
    scores = {
        "mAP": usual.value,
        "mAP_11_point": mean_average_precision(
            scores_NC, positives_NC, difficult_NC, "11-point"
        ).value,
        "mAP_all_objects": mean_average_precision(scores_NC, positives_NC).value,
        "first_positive_accuracy": first_positive_accuracy(scores_NC, positives_NC),
        "images": float(usual.num_images),
        "classes": float(usual.num_classes),
    }
    return Evaluation(
        scores,
        dict(zip(classes, usual.per_class, strict=False)),
        positives_NC.long().T @ best_NC,
        {
            "sample_ids_N": torch.tensor(ids),
            "scores_NC": scores_NC,
            "positives_NC": positives_NC.to(torch.uint8),
            "difficult_NC": difficult_NC.to(torch.uint8),
        },
    )


def _in_order(
    ranks: Ranks, rows: Sequence[tuple[Any, ...]]
) -> tuple[list[int], list[tuple[Any, ...]]]:
    """Return all ranks' rows by sample number, their first entry. Called on all ranks; the same on all."""
    by_sample = {row[0]: row for each in ranks.gather(list(rows)) for row in each}
    if not by_sample:
        raise TrainingError(
            "none of the pictures to score could be read: check them with launcher/pack.py --verify DIR"
        )
    ids = sorted(by_sample)
    return ids, [by_sample[i] for i in ids]


def score_segmenter(
    predictions: Iterable[tuple[Batch, Tensor]],
    ranks: Ranks,
    config: ModelConfig,
    num_pictures: int = 0,
) -> Evaluation:
    """Return mean IoU from logits B x C x H x W; called on all ranks, the same on all.

    `mIoU` is at the network's size with void left out, `mIoU_void_as_background` the paper's way. Where the set holds
    its masks at the pictures' own size, `mIoU_own_size` is scored there (VOC's way: logits brought to that size,
    bilinear), and `per_class` and the per-image counts are of that size. `dice` is the mean over the classes without
    background, at the network's size.
    """
    num_classes = config.architecture.num_outputs
    usual_CC = torch.zeros(num_classes, num_classes, dtype=torch.int64)
    paper_CC = usual_CC.clone()
    rows: list[tuple[int, Tensor]] = []
    pictures: list[tuple[Tensor, Tensor, Tensor]] = []
    own_size = False
    for batch, logits_BCHW in predictions:
        assert batch.mask_BHW is not None
        predicted_BHW, mask_BHW = logits_BCHW.argmax(dim=1).cpu(), batch.mask_BHW.cpu()
        usual_CC += confusion_matrix(predicted_BHW, mask_BHW, num_classes)
        paper_CC += confusion_matrix(predicted_BHW, mask_BHW, num_classes, void_as_background=True)
        rows += zip(
            batch.sample_ids_B.tolist(),
            _counts(batch, logits_BCHW, predicted_BHW, num_classes),
            strict=True,
        )
        pictures += _overlays(batch, predicted_BHW, config.ab_scale, num_pictures - len(pictures))
        own_size = batch.stored_masks is not None
    ids, ordered = _in_order(ranks, rows)
    counts_N3C = torch.stack([row[1] for row in ordered])
    gathered = ranks.gather((usual_CC, paper_CC, own_size))
    usual_CC, paper_CC = (torch.stack([each[i] for each in gathered]).sum(0) for i in (0, 1))  # type: ignore[misc]
    own_size = any(each[2] for each in gathered)  # a rank may have had no batch
    iou_C = iou_of_counts(counts_N3C.sum(0))
    dice_C = 2.0 * iou_C / (1.0 + iou_C)
    scores = {
        "mIoU": mean_iou(usual_CC),
        "mIoU_void_as_background": mean_iou(paper_CC),
        "pixel_accuracy": pixel_accuracy(usual_CC),
        "dice": mean_dice(usual_CC),
        **(
            {"mIoU_own_size": float(iou_C.nanmean()), "dice_own_size": float(dice_C[1:].nanmean())}
            if own_size
            else {}
        ),
        "images": float(len(ids)),
        "classes": float((~(iou_C if own_size else iou_per_class(usual_CC)).isnan()).sum()),
    }
    names = (BACKGROUND, *config.classes)
    return Evaluation(
        scores,
        dict(zip(names, iou_C.tolist(), strict=False)),
        usual_CC,
        {"sample_ids_N": torch.tensor(ids), "counts_N3C": counts_N3C},
        partial(_save_overlays, config=config, pictures=pictures) if pictures else None,
        dict(zip(names, dice_C.tolist(), strict=False)),
    )


def iou_of_counts(counts_3C: Tensor) -> Tensor:
    """Intersection over union of each class from its pixels right, predicted and true; NaN where there are none."""
    right, predicted, true = counts_3C.double()
    iou_C: Tensor = right / (predicted + true - right)
    return iou_C


def _counts(
    batch: Batch, logits_BCHW: Tensor, predicted_BHW: Tensor, num_classes: int
) -> list[Tensor]:
    """Each image's pixels right, predicted and true a class, 3 x C int64, void left out."""
    pairs: Iterable[tuple[Tensor, Tensor]]
    if batch.stored_masks is None:
        assert batch.mask_BHW is not None
        pairs = zip(predicted_BHW, batch.mask_BHW.cpu(), strict=True)
    else:
        pairs = (
            (_at_size(logits, mask), mask)
            for logits, mask in zip(logits_BCHW, batch.stored_masks, strict=True)
        )
    matrices = [
        confusion_matrix(predicted_HW, mask_HW, num_classes) for predicted_HW, mask_HW in pairs
    ]
    return [torch.stack([matrix.diagonal(), matrix.sum(0), matrix.sum(1)]) for matrix in matrices]


def _at_size(logits_CHW: Tensor, mask_HW: Tensor) -> Tensor:
    size = (mask_HW.shape[0], mask_HW.shape[1])
    resized = F.interpolate(logits_CHW[None], size, mode="bilinear", align_corners=False)
    return resized[0].argmax(dim=0).cpu()


def _overlays(
    batch: Batch, predicted_BHW: Tensor, ab_scale: float, room: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    if room <= 0 or batch.mask_BHW is None:
        return iter(())
    rgb_B3HW = to_rgb(batch.lab_B3HW[:room, :1], batch.lab_B3HW[:room, 1:], ab_scale).cpu()
    return zip(rgb_B3HW, batch.mask_BHW[:room].cpu(), predicted_BHW[:room], strict=True)


def _save_overlays(
    path: Path, config: ModelConfig, pictures: Sequence[tuple[Tensor, Tensor, Tensor]]
) -> None:
    mask_grid(path, pictures, config.palette, config.classes)


def score_detector(
    predictions: Iterable[tuple[Batch, Tensor]],
    ranks: Ranks,
    config: ModelConfig,
    num_pictures: int = 0,
) -> Evaluation:
    """Return VOC's and COCO's average precisions (colorgan/evaluation/detection_scores.py) from raw outputs.

    `per_class` is VOC 2010+'s average precision at an overlap of 0.5. Called on all ranks, the same on all.
    """
    rows: list[tuple[int, ScoredPicture]] = []
    pictures: list[tuple[Tensor, NamedBoxes, NamedBoxes]] = []
    for batch, raw_BOHW in predictions:
        assert batch.boxes is not None
        found = detect(raw_BOHW)
        scored = [
            scored_picture(each, truth) for each, truth in zip(found, batch.boxes, strict=True)
        ]
        rows += zip(batch.sample_ids_B.tolist(), scored, strict=True)
        if (room := num_pictures - len(pictures)) > 0:
            rgb_B3HW = to_rgb(
                batch.lab_B3HW[:room, :1], batch.lab_B3HW[:room, 1:], config.ab_scale
            ).cpu()
            named = [
                _named(*each, config.classes)
                for each in zip(found[:room], batch.boxes, strict=False)
            ]
            pictures += [(rgb_3HW, *lists) for rgb_3HW, lists in zip(rgb_B3HW, named, strict=True)]
    _, ordered = _in_order(ranks, rows)
    scores, per_class = detection_scores(
        [row[1] for row in ordered], config.architecture.num_outputs
    )
    save = partial(box_grid, rows=pictures, palette=config.palette) if pictures else None
    return Evaluation(scores, dict(zip(config.classes, per_class, strict=True)), save_pictures=save)


def _named(
    found: Detections, truth: Boxes, classes: Sequence[str]
) -> tuple[NamedBoxes, NamedBoxes]:
    """The true boxes, and the few best detections that are fairly sure; the best one in any case."""
    columns = (found.boxes_N4, found.classes_N, found.scores_N)
    best = zip(*(column.tolist() for column in columns), strict=True)
    shown = [each for place, each in enumerate(best) if place == 0 or each[2] >= MIN_SHOWN_SCORE][
        :MAX_SHOWN
    ]
    unscored = (truth.difficult_N | truth.crowd_N).tolist()
    objects = zip(truth.boxes_N4.tolist(), truth.classes_N.tolist(), unscored, strict=True)
    return (
        [
            (box, index, f"({classes[index]})" if skipped else classes[index])
            for box, index, skipped in objects
        ],
        [(box, index, f"{classes[index]} {100 * score:.0f}") for box, index, score in shown],
    )


def scores_text(config: ModelConfig, scores: Mapping[str, float]) -> str:
    """Return one line with each score, its number of images and classes, and the inference behaviour."""
    counted = f"on {scores['images']:.0f} images, {scores['classes']:.0f} classes, {config.inference} inference"
    if config.kind == "classifier":
        return (
            f"mAP {100 * scores['mAP']:.2f} % (VOC 2010+), {100 * scores['mAP_11_point']:.2f} % (11-point, VOC 2007), "
            f"first-positive accuracy {100 * scores['first_positive_accuracy']:.2f} % (the paper's) {counted}"
        )
    if config.kind == "detector":
        return (
            f"AP50 {100 * scores['AP50']:.2f} % (VOC 2010+), {100 * scores['AP50_11_point']:.2f} % (11-point), "
            f"AP {100 * scores['AP']:.2f} % (COCO, overlap 0.5 to 0.95), AP75 {100 * scores['AP75']:.2f} % {counted}"
        )
    own = (
        f"{100 * scores['mIoU_own_size']:.2f} % (at own size), "
        if "mIoU_own_size" in scores
        else ""
    )
    dice = (
        f"Dice {100 * scores['dice']:.2f} % ({config.classes[0]}), "
        if len(config.classes) == 1
        else ""
    )
    return (
        f"{dice}mIoU {100 * scores['mIoU']:.2f} % (void left out), {own}"
        f"{100 * scores['mIoU_void_as_background']:.2f} % (void as background, the paper's), "
        f"pixel accuracy {100 * scores['pixel_accuracy']:.2f} % {counted}"
    )
