"""The loss of detection: which points an object is learnt at, and FCOS's three terms (arXiv:2006.09214, eq. 2).

Each picture's terms are divided by its own number of points with an object, then averaged over pictures (as
torchvision's RetinaNet does): the loss then does not depend on how a batch is cut into micro-batches and ranks, as
it would with FCOS's count over the batch.

B pictures, C classes, P points, N objects; boxes are shares of the square input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from colorgan.data import Boxes
from colorgan.models.detector import box_areas, grid_points, predictions

CENTRE_RADIUS = (
    1.5  # in strides: the part of a box around its middle whose points learn it (FCOS, section 3.2)
)
FOCAL_ALPHA, FOCAL_GAMMA = 0.25, 2.0  # Lin et al. 2017, section 5.1


def detection_loss(raw_BOHW: Tensor, boxes: Sequence[Boxes]) -> Tensor:
    """Return the sum of the three terms, a mean over the pictures of a micro-batch."""
    found = predictions(raw_BOHW)
    height, width = raw_BOHW.shape[2:]
    points_P2 = grid_points(height, width, raw_BOHW.device)
    losses = [
        picture_loss(classes_PC, centre_P, boxes_P4, assign(points_P2, CENTRE_RADIUS / width, each))
        for classes_PC, centre_P, boxes_P4, each in zip(
            found.classes_BPC, found.centre_BP, found.boxes_BP4, boxes, strict=True
        )
    ]
    return torch.stack(losses).mean()


@dataclass(frozen=True)
class Targets:
    """What each point of one picture should say."""

    object_P: Tensor  # bool: an object is learnt here
    class_P: Tensor  # int64, 0 where there is none
    box_P4: Tensor
    centre_P: Tensor  # float32: 1 in the middle of the box, 0 at its edge and where there is none
    counts_P: Tensor  # bool: False where it is unknown what is there


def assign(points_P2: Tensor, radius: float, boxes: Boxes) -> Targets:
    """Give each point the smallest object around it whose middle is within `radius`, along x and along y.

    Points in a crowd region or a difficult object, and in no other's middle, teach nothing: neither that an object is
    there (Fast R-CNN leaves difficult ones out of training) nor that none is (Detectron leaves crowds out of the
    negatives).
    """
    device, number = points_P2.device, len(points_P2)
    boxes_N4, classes_N = boxes.boxes_N4.to(device), boxes.classes_N.to(device)
    unknown_N = (boxes.crowd_N | boxes.difficult_N).to(device)
    if not len(boxes_N4):
        none_P = torch.zeros(number, dtype=torch.bool, device=device)
        return Targets(none_P, none_P.long(), points_P2.repeat(1, 2), none_P.float(), ~none_P)
    sides_PN4 = torch.cat(
        [points_P2[:, None] - boxes_N4[:, :2], boxes_N4[:, 2:] - points_P2[:, None]], dim=2
    )
    inside_PN = sides_PN4.amin(dim=2) > 0
    middles_N2 = (boxes_N4[:, :2] + boxes_N4[:, 2:]) / 2
    near_PN = (points_P2[:, None] - middles_N2).abs().amax(dim=2) < radius
    learnt_PN = inside_PN & near_PN & ~unknown_N
    area_P, chosen_P = (
        box_areas(boxes_N4).expand(number, -1).masked_fill(~learnt_PN, torch.inf).min(dim=1)
    )
    object_P = area_P.isfinite()
    sides_P4 = sides_PN4[torch.arange(number, device=device), chosen_P]
    return Targets(
        object_P,
        classes_N[chosen_P] * object_P,
        boxes_N4[chosen_P],
        torch.where(object_P, centre_ness(sides_P4), 0.0),
        object_P | ~(inside_PN & unknown_N).any(dim=1),
    )


def centre_ness(sides_P4: Tensor) -> Tensor:
    """Return FCOS's centre-ness of points from their distances to the left, top, right and bottom (eq. 3)."""
    ends_P22 = sides_P4.clamp(min=0.0).view(-1, 2, 2)  # start and end by axis
    share_P2 = ends_P22.amin(dim=1) / ends_P22.amax(dim=1).clamp(min=1e-9)
    return share_P2.prod(dim=1).sqrt()


def picture_loss(
    classes_PC: Tensor, centre_P: Tensor, boxes_P4: Tensor, targets: Targets
) -> Tensor:
    """Return one picture's focal loss of classes, GIoU loss of boxes (weighted by centre-ness) and centre-ness loss."""
    object_P = targets.object_P
    number = object_P.sum().clamp(min=1)
    wanted_PC = F.one_hot(targets.class_P, classes_PC.shape[1]).float() * object_P[:, None]
    focal = (focal_loss(classes_PC, wanted_PC).sum(dim=1) * targets.counts_P).sum() / number
    overlap_P = giou(boxes_P4, targets.box_P4)
    box = ((1.0 - overlap_P) * targets.centre_P).sum() / targets.centre_P.sum().clamp(min=1e-6)
    centre_P = F.binary_cross_entropy_with_logits(centre_P, targets.centre_P, reduction="none")
    return focal + box + (centre_P * object_P).sum() / number


def focal_loss(logits: Tensor, wanted: Tensor) -> Tensor:
    """Return Lin et al. 2017's focal loss (arXiv:1708.02002, eq. 5) of each element; `wanted` is 0 or 1."""
    right = torch.where(wanted > 0, logits.sigmoid(), 1.0 - logits.sigmoid())
    weight = torch.where(wanted > 0, FOCAL_ALPHA, 1.0 - FOCAL_ALPHA)
    entropy = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    return weight * (1.0 - right) ** FOCAL_GAMMA * entropy


def giou(first_P4: Tensor, second_P4: Tensor) -> Tensor:
    """Return the generalised intersection over union of boxes pair by pair, in (-1, 1] (Rezatofighi et al. 2019)."""
    low_P2, high_P2 = (
        torch.maximum(first_P4[:, :2], second_P4[:, :2]),
        torch.minimum(first_P4[:, 2:], second_P4[:, 2:]),
    )
    common_P = (high_P2 - low_P2).clamp(min=0.0).prod(dim=1)
    union_P = box_areas(first_P4) + box_areas(second_P4) - common_P
    low_P2, high_P2 = (
        torch.minimum(first_P4[:, :2], second_P4[:, :2]),
        torch.maximum(first_P4[:, 2:], second_P4[:, 2:]),
    )
    around_P = (high_P2 - low_P2).prod(dim=1).clamp(min=1e-9)
    return common_P / union_P.clamp(min=1e-9) - (around_P - union_P) / around_P
