"""Losses of classification and segmentation.

Detection's is in colorgan/evaluation/detection_loss.py.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from colorgan.data import Batch
from colorgan.evaluation.picture_grids import VOID


def classification_loss(logits_BC: Tensor, batch: Batch, void: str = "ignore") -> Tensor:
    """Return the mean binary cross-entropy over images and classes.

    Difficult objects count as present.

    Args:
        logits_BC: One logit per class.
        batch: With targets "classes".
        void: Not used: classes have none.
    """
    assert batch.classes_BC is not None
    return F.binary_cross_entropy_with_logits(logits_BC, batch.classes_BC)


def segmentation_loss(logits_BCHW: Tensor, batch: Batch, void: str = "ignore") -> Tensor:
    """Return the mean cross-entropy over all pixels of the batch.

    Void pixels have no loss but count in the mean's denominator: otherwise the loss would depend on
    how a global batch is cut into micro-batches and ranks.

    Args:
        logits_BCHW: One logit per class and pixel.
        batch: With targets "mask".
        void: "ignore", or "background": void pixels count as class 0, as in the paper's code.
    """
    assert batch.mask_BHW is not None
    mask_BHW = batch.mask_BHW
    if void == "background":
        mask_BHW = mask_BHW.masked_fill(mask_BHW == VOID, 0)

    return F.cross_entropy(logits_BCHW, mask_BHW, ignore_index=VOID, reduction="none").mean()
