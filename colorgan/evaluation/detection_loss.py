"""The loss of detection: which points learn an object, and FCOS's three terms.

Source: arXiv:2006.09214, eq. 2.

Each image's terms are divided by its own number of points with an object, then averaged over images
(as torchvision's RetinaNet does): the loss then does not depend on how a batch is cut into
micro-batches and ranks, as it would with FCOS's count over the batch.

B images, C classes, P points, N objects of the image with the most; boxes are shares of the square
input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from colorgan.data import Batch, Boxes
from colorgan.devices import to_device
from colorgan.evaluation.losses import LossSettings
from colorgan.models.detector import areas_of_sides, box_areas, grid_points, predictions

# In strides: the part of a box around its middle whose points learn it (FCOS, section 3.2).
CENTRE_RADIUS = 1.5
# Lin et al. 2017, section 5.1.
FOCAL_ALPHA, FOCAL_GAMMA = 0.25, 2.0


def batch_detection_loss(raw_BOHW: Tensor, batch: Batch, settings: LossSettings) -> Tensor:
    """Return `detection_loss` of a micro-batch with targets "boxes".

    Its settings are not used: boxes have no void, and the focal loss weighs classes by itself.
    """
    assert batch.boxes is not None
    return detection_loss(raw_BOHW, batch.boxes)


def detection_loss(raw_BOHW: Tensor, boxes: Sequence[Boxes]) -> Tensor:
    """Return the sum of the three terms, a mean over the images of a micro-batch.

    Args:
        raw_BOHW: The detector's raw output.
        boxes: Each image's objects, on the CPU.
    """
    outputs = predictions(raw_BOHW)
    height, width = raw_BOHW.shape[2:]
    points_P2 = grid_points(height, width, raw_BOHW.device)
    targets = assign(points_P2, CENTRE_RADIUS / width, pad_boxes(boxes, raw_BOHW.device))
    losses_B = image_losses(outputs.classes_BPC, outputs.centre_BP, outputs.boxes_BP4, targets)
    return losses_B.mean()


@dataclass(frozen=True)
class PaddedBoxes:
    """The objects of several images as one tensor each.

    An image with fewer objects ends with boxes of no area.

    Attributes:
        boxes_BN4: float32.
        classes_BN: int64.
        unknown_BN: True for crowd regions and difficult objects.
    """

    boxes_BN4: Tensor
    classes_BN: Tensor
    unknown_BN: Tensor


def pad_boxes(boxes: Sequence[Boxes], device: torch.device) -> PaddedBoxes:
    """Return the objects of a batch on the device, in one copy that the host does not wait for."""
    # One tensor for all images first: operators per image would add up to most of the loss.
    boxes_M4 = torch.cat([each.boxes_N4 for each in boxes])
    # Classes are whole numbers far below 2^24, which float32 holds exactly.
    classes_M = torch.cat([each.classes_N for each in boxes]).float()
    crowd_M = torch.cat([each.crowd_N for each in boxes])
    unknown_M = (crowd_M | torch.cat([each.difficult_N for each in boxes])).float()

    rows_M6 = torch.cat([boxes_M4, classes_M[:, None], unknown_M[:, None]], dim=1)
    rows_by_image = list(torch.split(rows_M6, [len(each.boxes_N4) for each in boxes]))
    padded_BN6 = pad_sequence(rows_by_image, batch_first=True)
    if not padded_BN6.shape[1]:
        # No image has an object: one box without area each, so that there is something to choose.
        padded_BN6 = padded_BN6.new_zeros(len(boxes), 1, 6)

    padded_BN6 = to_device(padded_BN6, device)
    return PaddedBoxes(
        padded_BN6[..., :4],
        padded_BN6[..., 4].long(),
        padded_BN6[..., 5] > 0.0,
    )


@dataclass(frozen=True)
class PointTargets:
    """What the network is to give at each point of each image.

    Attributes:
        object_BP: True where an object is learnt.
        class_BP: int64, 0 where no object is learnt.
        box_BP4: float32, of any object where none is learnt.
        centre_BP: float32, 1 in the middle of the box, 0 at its edge and where no object is learnt.
        counts_BP: False where it is unknown what is there.
    """

    object_BP: Tensor
    class_BP: Tensor
    box_BP4: Tensor
    centre_BP: Tensor
    counts_BP: Tensor


def assign(points_P2: Tensor, radius: float, objects: PaddedBoxes) -> PointTargets:
    """Give each point the smallest object around it whose middle is within `radius` in x and y.

    Points in a crowd region or a difficult object, and in no other's middle, teach nothing: neither
    that an object is there (Fast R-CNN leaves difficult ones out of training) nor that none is
    (Detectron leaves crowds out of the negatives).
    """
    x_P1, y_P1 = points_P2[:, :1], points_P2[:, 1:]
    x0_B1N, y0_B1N, x1_B1N, y1_B1N = objects.boxes_BN4[:, None].unbind(-1)
    unknown_B1N = objects.unknown_BN[:, None]

    inside_BPN = (x_P1 > x0_B1N) & (x_P1 < x1_B1N) & (y_P1 > y0_B1N) & (y_P1 < y1_B1N)
    near_x_BPN = (x_P1 - (x0_B1N + x1_B1N) / 2).abs() < radius
    near_y_BPN = (y_P1 - (y0_B1N + y1_B1N) / 2).abs() < radius
    learnt_BPN = inside_BPN & near_x_BPN & near_y_BPN & ~unknown_B1N

    areas_B1N = box_areas(objects.boxes_BN4)[:, None]
    candidates_BPN = torch.where(learnt_BPN, areas_B1N, torch.inf)
    area_BP, chosen_BP = candidates_BPN.min(dim=2)
    object_BP = area_BP.isfinite()

    box_BP4 = objects.boxes_BN4.gather(1, chosen_BP[..., None].expand(-1, -1, 4))
    sides_BP4 = torch.cat([points_P2 - box_BP4[..., :2], box_BP4[..., 2:] - points_P2], dim=-1)
    return PointTargets(
        object_BP,
        objects.classes_BN.gather(1, chosen_BP) * object_BP,
        box_BP4,
        torch.where(object_BP, centre_ness(sides_BP4), 0.0),
        object_BP | ~(inside_BPN & unknown_B1N).any(dim=2),
    )


def centre_ness(sides_X4: Tensor) -> Tensor:
    """Return FCOS's centre-ness (eq. 3) from distances to the left, top, right and bottom."""
    # Start and end by axis.
    ends_X22 = sides_X4.clamp(min=0.0).view(*sides_X4.shape[:-1], 2, 2)
    share_X2 = ends_X22.amin(dim=-2) / ends_X22.amax(dim=-2).clamp(min=1e-9)
    return share_X2.prod(dim=-1).sqrt()


def image_losses(
    classes_BPC: Tensor, centre_BP: Tensor, boxes_BP4: Tensor, targets: PointTargets
) -> Tensor:
    """Return each image's loss, B: the classes' focal, the boxes' GIoU and the centre-ness term.

    Args:
        classes_BPC: Logits.
        centre_BP: Logits.
        boxes_BP4: Predicted boxes.
        targets: Of the same points.
    """
    object_BP = targets.object_BP
    # An image without an object still teaches that none is there; its sum is over one.
    number_B = object_BP.sum(dim=1).clamp(min=1)

    numbers_C = torch.arange(classes_BPC.shape[2], device=classes_BPC.device)
    is_class_BPC = (targets.class_BP[..., None] == numbers_C) & object_BP[..., None]
    focal_BP = focal_loss(classes_BPC, is_class_BPC.float()).sum(dim=2)
    focal_B = (focal_BP * targets.counts_BP).sum(dim=1) / number_B

    missing_BP = 1.0 - giou(boxes_BP4, targets.box_BP4)
    weight_B = targets.centre_BP.sum(dim=1).clamp(min=1e-6)
    box_B = (missing_BP * targets.centre_BP).sum(dim=1) / weight_B

    entropy_BP = F.binary_cross_entropy_with_logits(centre_BP, targets.centre_BP, reduction="none")
    centre_B = (entropy_BP * object_BP).sum(dim=1) / number_B
    return focal_B + box_B + centre_B


def focal_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Return Lin et al. 2017's focal loss (arXiv:1708.02002, eq. 5) of each element.

    `target` is 0 or 1.
    """
    probability = logits.sigmoid()
    right = torch.where(target > 0, probability, 1.0 - probability)
    weight = torch.where(target > 0, FOCAL_ALPHA, 1.0 - FOCAL_ALPHA)
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return weight * (1.0 - right) ** FOCAL_GAMMA * entropy


def giou(first_X4: Tensor, second_X4: Tensor) -> Tensor:
    """Return the generalised IoU of boxes pair by pair, in (-1, 1] (Rezatofighi et al. 2019)."""
    inner_low_X2 = torch.maximum(first_X4[..., :2], second_X4[..., :2])
    inner_high_X2 = torch.minimum(first_X4[..., 2:], second_X4[..., 2:])
    common_X = areas_of_sides((inner_high_X2 - inner_low_X2).clamp(min=0.0))
    union_X = box_areas(first_X4) + box_areas(second_X4) - common_X

    outer_low_X2 = torch.minimum(first_X4[..., :2], second_X4[..., :2])
    outer_high_X2 = torch.maximum(first_X4[..., 2:], second_X4[..., 2:])
    around_X = areas_of_sides(outer_high_X2 - outer_low_X2).clamp(min=1e-9)
    return common_X / union_X.clamp(min=1e-9) - (around_X - union_X) / around_X
