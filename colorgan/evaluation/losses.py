"""Losses of classification and segmentation.

Detection's is in colorgan/evaluation/detection_loss.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from colorgan.data import Batch
from colorgan.evaluation.picture_grids import VOID


@dataclass(frozen=True)
class LossSettings:
    """How a downstream loss counts.

    Attributes:
        void: "ignore", or "background": void pixels count as class 0, as in the paper's code.
        class_weights_C: One weight per output; None for equal ones.
    """

    void: Literal["ignore", "background"] = "ignore"
    class_weights_C: Tensor | None = None


def classification_loss(logits_BC: Tensor, batch: Batch, settings: LossSettings) -> Tensor:
    """Return the mean binary cross-entropy over images and classes.

    Difficult objects count as present; a class's weight is that of its positives.

    Args:
        logits_BC: One logit per class.
        batch: With targets "classes".
        settings: Its void is not used: classes have none.
    """
    assert batch.classes_BC is not None
    # A sigmoid per class, not a softmax: an image has several classes.
    return F.binary_cross_entropy_with_logits(
        logits_BC, batch.classes_BC, pos_weight=settings.class_weights_C
    )


def segmentation_loss(logits_BCHW: Tensor, batch: Batch, settings: LossSettings) -> Tensor:
    """Return the mean cross-entropy over all pixels of the batch.

    Void pixels have no loss but count in the mean's denominator, and weights do not change it:
    otherwise the loss would depend on how a global batch is cut into micro-batches and ranks.

    Args:
        logits_BCHW: One logit per class and pixel.
        batch: With targets "mask".
        settings: How void pixels and classes count.
    """
    assert batch.mask_BHW is not None
    mask_BHW = batch.mask_BHW
    if settings.void == "background":
        # A copy: the batch's mask is scored later, with its void.
        mask_BHW = mask_BHW.masked_fill(mask_BHW == VOID, 0)

    losses_BHW = F.cross_entropy(
        logits_BCHW,
        mask_BHW,
        weight=settings.class_weights_C,
        ignore_index=VOID,
        # torch's own mean divides by the pixels that count, which differ from micro-batch to
        # micro-batch.
        reduction="none",
    )
    return losses_BHW.mean()
