"""Scores of a multilabel classifier: average precisions and the paper's accuracy.

N images, B images of a batch, C classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from colorgan.data import Batch
from colorgan.distributed.ranks import Ranks
from colorgan.evaluation.metrics import first_positive_accuracy, mean_average_precision
from colorgan.evaluation.predictions import Prediction, percent, rows_in_order
from colorgan.evaluation.record import Evaluation, SavedEvaluation
from colorgan.models.model_config import ModelConfig


@dataclass(frozen=True)
class _Row:
    """One image's scores and labels, one entry per class."""

    scores: list[float]
    positives: list[float]
    difficult: list[bool]


def score_classifier(
    predictions: Iterable[Prediction], ranks: Ranks, config: ModelConfig, num_pictures: int = 0
) -> Evaluation:
    """Return average precisions and accuracy from logits B x C. Called on all ranks.

    The same on all.

    `mAP` and `mAP_11_point` leave out images where a class is present as difficult objects only, as
    VOC does; `mAP_all_objects` counts them, as the paper does. The confusion has, for every class
    in an image (row), the class that scored best there (column).

    Args:
        predictions: Batches with targets "classes" and their logits.
        ranks: This process's place among the ranks.
        config: Names the classes.
        num_pictures: Not used: a classifier has no pictures.
    """
    rows: list[tuple[int, _Row]] = []
    for batch, logits_BC in predictions:
        rows += zip(batch.sample_ids_B.tolist(), _rows(batch, logits_BC), strict=True)

    # Of all ranks in the set's order: no score depends on who saw which image.
    ids, ordered = rows_in_order(ranks, rows)
    scores_NC = torch.tensor([row.scores for row in ordered])
    positives_NC = torch.tensor([row.positives for row in ordered])
    difficult_NC = torch.tensor([row.difficult for row in ordered])

    usual = mean_average_precision(scores_NC, positives_NC, difficult_NC)
    eleven_point = mean_average_precision(scores_NC, positives_NC, difficult_NC, "11-point")
    all_objects = mean_average_precision(scores_NC, positives_NC)
    # An image counts in the row of each of its classes: the matrix shows what is mistaken for what.
    best_NC = F.one_hot(scores_NC.argmax(dim=1), scores_NC.shape[1])
    confusion_CC = positives_NC.long().T @ best_NC

    record = SavedEvaluation(
        scores={
            "mAP": usual.value,
            "mAP_11_point": eleven_point.value,
            "mAP_all_objects": all_objects.value,
            "first_positive_accuracy": first_positive_accuracy(scores_NC, positives_NC),
            "images": float(usual.num_images),
            "classes": float(usual.num_classes),
        },
        per_class=dict(zip(config.classes, usual.per_class, strict=False)),
        confusion=confusion_CC.tolist(),
    )
    # Kept, so that a comparison can draw images anew instead of trusting one mean.
    per_image: dict[str, Tensor] = {
        "sample_ids_N": torch.tensor(ids),
        "scores_NC": scores_NC,
        "positives_NC": positives_NC.to(torch.uint8),
        "difficult_NC": difficult_NC.to(torch.uint8),
    }
    return Evaluation(record, per_image)


def _rows(batch: Batch, logits_BC: Tensor) -> list[_Row]:
    assert batch.classes_BC is not None and batch.difficult_BC is not None
    positives = batch.classes_BC.cpu().tolist()
    difficult = batch.difficult_BC.cpu().tolist()
    columns = zip(logits_BC.cpu().tolist(), positives, difficult, strict=True)
    return [_Row(*each) for each in columns]


def classifier_text(config: ModelConfig, scores: Mapping[str, float]) -> str:
    """Return the scores of a classifier in one line."""
    return (
        f"mAP {percent(scores['mAP'])} (VOC 2010+), "
        f"{percent(scores['mAP_11_point'])} (11-point, VOC 2007), "
        f"first-positive accuracy {percent(scores['first_positive_accuracy'])} (the paper's)"
    )
