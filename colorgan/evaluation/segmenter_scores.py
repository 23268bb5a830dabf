"""Scores of a segmenter: IoU and Dice per class, at the network's size and the images' own.

N images, B images of a batch, C classes with the background, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from colorgan.data import Batch
from colorgan.distributed.ranks import Ranks
from colorgan.evaluation.metrics import (
    confusion_matrix,
    mean_dice,
    mean_iou,
    pixel_accuracy,
)
from colorgan.evaluation.picture_grids import mask_grid
from colorgan.evaluation.predictions import Prediction, percent, rows_in_order
from colorgan.evaluation.record import Evaluation, SavedEvaluation
from colorgan.models.colorizing import to_rgb
from colorgan.models.model_config import ModelConfig

BACKGROUND = "background"

# sRGB image 3HW, true mask HW, predicted mask HW.
_Overlay = tuple[Tensor, Tensor, Tensor]


@dataclass
class _Counts:
    """What one rank has counted.

    Attributes:
        usual_CC: Confusion with void left out.
        paper_CC: Confusion with void as background, the paper's way.
        own_size: True where the masks came at the images' own size.
        rows: Per image its sample number and its pixels right, predicted and true per class, 3 x C.
        overlays: Images to show.
    """

    usual_CC: Tensor
    paper_CC: Tensor
    own_size: bool = False
    rows: list[tuple[int, Tensor]] = field(default_factory=list)
    overlays: list[_Overlay] = field(default_factory=list)


def score_segmenter(
    predictions: Iterable[Prediction], ranks: Ranks, config: ModelConfig, num_pictures: int = 0
) -> Evaluation:
    """Return mean IoU and Dice from logits B x C x H x W. Called on all ranks; the same on all.

    `mIoU` is at the network's size with void left out, `mIoU_void_as_background` the paper's way.
    Where the set holds its masks at the images' own size, `mIoU_own_size` is scored there (VOC's
    way: logits brought to that size, bilinear), and `per_class` and the per-image counts are of
    that size. `dice` is the mean over the classes without background, at the network's size.

    Args:
        predictions: Batches with targets "mask" and their logits.
        ranks: This process's place among the ranks.
        config: Names and colors of the classes.
        num_pictures: How many of this rank's first images to keep as pictures.
    """
    counts = _count(predictions, config, num_pictures)
    ids, ordered = rows_in_order(ranks, counts.rows)
    # Pixels per image: sums over images are what a bootstrap draws anew.
    counts_N3C = torch.stack(ordered)

    gathered = ranks.gather((counts.usual_CC, counts.paper_CC, counts.own_size))
    # Whole numbers add up in any order, so ranks do not enter.
    usual_CC = torch.stack([each[0] for each in gathered]).sum(0)
    paper_CC = torch.stack([each[1] for each in gathered]).sum(0)
    own_size = any(each[2] for each in gathered)  # a rank may have had no batch

    # Dice and IoU of the same pixels are functions of each other.
    counts_3C = counts_N3C.sum(0)
    iou_C = iou_of_counts(counts_3C)
    dice_C = 2.0 * iou_C / (1.0 + iou_C)
    scores = {
        "mIoU": mean_iou(usual_CC),
        "mIoU_void_as_background": mean_iou(paper_CC),
        "pixel_accuracy": pixel_accuracy(usual_CC),
        "dice": mean_dice(usual_CC),
    }
    if own_size:
        scores["mIoU_own_size"] = float(iou_C.nanmean())
        scores["dice_own_size"] = float(dice_C[1:].nanmean())

    scores["images"] = float(len(ids))
    # That are there: one that is only predicted is in the mean, with 0.
    scores["classes"] = float((counts_3C[2] > 0).sum())

    names = (BACKGROUND, *config.classes)
    record = SavedEvaluation(
        scores=scores,
        per_class=dict(zip(names, iou_C.tolist(), strict=False)),
        per_class_dice=dict(zip(names, dice_C.tolist(), strict=False)),
        confusion=usual_CC.tolist(),
    )
    save_pictures = partial(
        mask_grid, rows=counts.overlays, palette=config.palette, classes=config.classes
    )
    return Evaluation(
        record,
        {"sample_ids_N": torch.tensor(ids), "counts_N3C": counts_N3C},
        save_pictures if counts.overlays else None,
    )


def _count(predictions: Iterable[Prediction], config: ModelConfig, num_pictures: int) -> _Counts:
    num_classes = config.architecture.num_outputs
    none_CC = torch.zeros(num_classes, num_classes, dtype=torch.int64)
    counts = _Counts(none_CC, none_CC.clone())

    for batch, logits_BCHW in predictions:
        assert batch.mask_BHW is not None
        predicted_BHW, mask_BHW = logits_BCHW.argmax(dim=1).cpu(), batch.mask_BHW.cpu()
        counts.usual_CC += confusion_matrix(predicted_BHW, mask_BHW, num_classes)
        # Padding is not the void of a mask.
        shown = slice(None) if batch.inside_BHW is None else batch.inside_BHW
        counts.paper_CC += confusion_matrix(
            predicted_BHW[shown], mask_BHW[shown], num_classes, void_as_background=True
        )
        rows = _rows(batch, logits_BCHW, predicted_BHW, num_classes)
        counts.rows += zip(batch.sample_ids_B.tolist(), rows, strict=True)
        # Of the set, so of any batch of it.
        counts.own_size = batch.stored_masks is not None

        room = num_pictures - len(counts.overlays)
        if room > 0:
            counts.overlays += _overlays(batch, predicted_BHW, config.ab_scale, room)
    return counts


def iou_of_counts(counts_3C: Tensor) -> Tensor:
    """Return intersection over union per class from its pixels right, predicted and true.

    NaN for none of either.
    """
    right, predicted, true = counts_3C.double()
    iou_C: Tensor = right / (predicted + true - right)
    return iou_C


def _rows(
    batch: Batch, logits_BCHW: Tensor, predicted_BHW: Tensor, num_classes: int
) -> list[Tensor]:
    """Each image's pixels right, predicted and true per class, 3 x C int64, void left out."""
    assert batch.mask_BHW is not None
    rows = []
    for place, predicted_HW in enumerate(predicted_BHW):
        mask_HW = batch.mask_BHW[place].cpu()
        if batch.stored_masks is not None:
            mask_HW = batch.stored_masks[place]
            predicted_HW = _predicted_at_size(logits_BCHW[place], mask_HW)
        matrix = confusion_matrix(predicted_HW, mask_HW, num_classes)
        rows.append(torch.stack([matrix.diagonal(), matrix.sum(0), matrix.sum(1)]))
    return rows


def _predicted_at_size(logits_CHW: Tensor, mask_HW: Tensor) -> Tensor:
    size = (mask_HW.shape[0], mask_HW.shape[1])
    # Logits, not classes: between two classes' edges there is a best one, between their numbers
    # none.
    resized = F.interpolate(logits_CHW[None], size, mode="bilinear", align_corners=False)
    return resized[0].argmax(dim=0).cpu()


def _overlays(batch: Batch, predicted_BHW: Tensor, ab_scale: float, room: int) -> list[_Overlay]:
    """Return the first images of a batch with their masks, at most `room`."""
    assert batch.mask_BHW is not None
    lab_B3HW = batch.lab_B3HW[:room]
    rgb_B3HW = to_rgb(lab_B3HW[:, :1], lab_B3HW[:, 1:], ab_scale).cpu()
    return list(
        zip(
            rgb_B3HW,
            batch.mask_BHW[:room].cpu(),
            predicted_BHW[:room],
            strict=True,
        )
    )


def segmenter_text(config: ModelConfig, scores: Mapping[str, float]) -> str:
    """Return the scores of a segmenter in one line.

    Dice first where there is one class beside the background.
    """
    parts = [f"mIoU {percent(scores['mIoU'])} (void left out)"]
    if len(config.classes) == 1:
        # With one class, as in medical sets, Dice is the number that readers look for.
        parts.insert(0, f"Dice {percent(scores['dice'])} ({config.classes[0]})")
    if "mIoU_own_size" in scores:
        parts.append(f"{percent(scores['mIoU_own_size'])} (at own size)")
    parts.append(f"{percent(scores['mIoU_void_as_background'])} (void as background, the paper's)")
    parts.append(f"pixel accuracy {percent(scores['pixel_accuracy'])}")
    return ", ".join(parts)
