"""The loss over a whole batch against the same loss image by image, and what it costs to launch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from colorgan.evaluation.detection_loss import (
    CENTRE_RADIUS,
    detection_loss,
    focal_loss,
    giou,
    pad_boxes,
)
from colorgan.models.detector import box_areas, grid_points, predictions

NUM_CLASSES = 3


@dataclass
class SomeBoxes:
    boxes_N4: Tensor
    classes_N: Tensor
    difficult_N: Tensor
    crowd_N: Tensor


def some_boxes(seed: int, number: int) -> Any:
    random = torch.Generator().manual_seed(seed)
    corners = torch.rand(number, 2, generator=random) * 0.6
    sides = 0.05 + torch.rand(number, 2, generator=random) * 0.35

    return SomeBoxes(
        torch.cat(
            [corners, corners + sides],
            dim=1,
        ),
        torch.randint(
            NUM_CLASSES,
            (number,),
            generator=random,
        ),
        torch.rand(number, generator=random) < 0.2,
        torch.rand(number, generator=random) < 0.2,
    )


def loss_of_one(classes_PC: Tensor, centre_P: Tensor, boxes_P4: Tensor, objects: Any) -> Tensor:
    """Return one image's loss, written for one image: no padding, a loop over objects."""
    side = round(len(centre_P) ** 0.5)
    points_P2 = grid_points(
        side,
        side,
        centre_P.device,
    )
    smallest_P = torch.full(
        (len(points_P2),),
        torch.inf,
    )
    chosen_P = torch.full(
        (len(points_P2),),
        -1,
    )
    unknown_P = torch.zeros(
        len(points_P2),
        dtype=torch.bool,
    )
    for number, box_4 in enumerate(objects.boxes_N4):
        inside_P = ((points_P2 > box_4[:2]) & (points_P2 < box_4[2:])).all(dim=1)
        if objects.crowd_N[number] or objects.difficult_N[number]:
            unknown_P |= inside_P
            continue
        middle_2 = (box_4[:2] + box_4[2:]) / 2
        near_P = ((points_P2 - middle_2).abs() < CENTRE_RADIUS / side).all(dim=1)
        better_P = inside_P & near_P & (box_areas(box_4) < smallest_P)
        smallest_P = torch.where(
            better_P,
            box_areas(box_4),
            smallest_P,
        )
        chosen_P = torch.where(better_P, number, chosen_P)

    learned_P = chosen_P >= 0
    number_learned = max(
        1,
        int(learned_P.sum()),
    )
    target_PC = torch.zeros_like(classes_PC)
    centre_target_P = torch.zeros_like(centre_P)
    box = torch.zeros(())
    for point in learned_P.nonzero()[:, 0].tolist():
        index = int(chosen_P[point])
        target_PC[point, objects.classes_N[index]] = 1.0
        x, y = points_P2[point]
        x0, y0, x1, y1 = objects.boxes_N4[index]
        ratio_x = torch.minimum(x - x0, x1 - x) / torch.maximum(x - x0, x1 - x)
        ratio_y = torch.minimum(y - y0, y1 - y) / torch.maximum(y - y0, y1 - y)
        centre_target_P[point] = (ratio_x * ratio_y).sqrt()
        overlap = giou(boxes_P4[point : point + 1], objects.boxes_N4[index : index + 1])[0]
        box = box + (1.0 - overlap) * centre_target_P[point].clone()

    counts_P = learned_P | ~unknown_P
    focal = focal_loss(classes_PC, target_PC).sum(dim=1)[counts_P].sum() / number_learned
    entropy_P = F.binary_cross_entropy_with_logits(centre_P, centre_target_P, reduction="none")
    centre = entropy_P[learned_P].sum() / number_learned
    return focal + box / centre_target_P.sum().clamp(min=1e-6) + centre


@pytest.mark.parametrize(
    "numbers",
    [
        [4],
        [0, 3, 7, 1],
        [0, 0],
        [12, 2, 5],
    ],
)
def test_a_batch_is_the_mean_of_its_images_one_by_one(numbers: list[int]) -> None:
    """Also its gradient."""
    random = torch.Generator().manual_seed(sum(numbers))
    raw = torch.randn(
        len(numbers),
        NUM_CLASSES + 5,
        16,
        16,
        generator=random,
    )
    boxes = [some_boxes(seed, number) for seed, number in enumerate(numbers)]

    raw.requires_grad_()
    outputs = predictions(raw)
    losses = []
    for place, objects in enumerate(boxes):
        parts = outputs.classes_BPC[place], outputs.centre_BP[place], outputs.boxes_BP4[place]
        losses.append(loss_of_one(*parts, objects))
    expected = torch.stack(losses).mean()
    (expected_gradient,) = torch.autograd.grad(expected, raw)

    loss = detection_loss(raw, boxes)
    (gradient,) = torch.autograd.grad(loss, raw)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert torch.allclose(gradient, expected_gradient, rtol=1e-4, atol=1e-6)


def test_padding_keeps_every_object_and_adds_none() -> None:
    boxes = [
        some_boxes(0, 3),
        some_boxes(1, 0),
        some_boxes(2, 5),
    ]
    padded = pad_boxes(
        boxes,
        torch.device("cpu"),
    )

    assert padded.boxes_BN4.shape == (3, 5, 4)
    for place, each in enumerate(boxes):
        number = len(each.boxes_N4)
        assert torch.equal(
            padded.boxes_BN4[place, :number],
            each.boxes_N4,
        )
        assert torch.equal(
            padded.classes_BN[place, :number],
            each.classes_N,
        )
        assert torch.equal(
            padded.unknown_BN[place, :number],
            each.crowd_N | each.difficult_N,
        )
        assert not padded.boxes_BN4[place, number:].any()


class CountedOperators(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: Any = (),
        kwargs: Any = None,
    ) -> Any:
        self.number += 1
        return func(
            *args,
            **(kwargs or {}),
        )


def test_the_operators_do_not_grow_with_the_batch() -> None:
    """On a GPU each is a launch; image by image they were some 2,700 for 16 images."""
    counts = []
    for number in (2, 16):
        raw = torch.randn(
            number,
            NUM_CLASSES + 5,
            16,
            16,
        )
        padded_alone = CountedOperators()
        whole = CountedOperators()
        boxes = [some_boxes(seed, 3) for seed in range(number)]
        with padded_alone:
            pad_boxes(boxes, raw.device)
        with whole:
            detection_loss(raw, boxes)
        counts.append(whole.number - padded_alone.number)
        assert whole.number <= 600

    assert counts[0] == counts[1] <= 200


def test_the_gradient_of_an_overlap_asks_the_device_nothing() -> None:
    """`prod` looks for zeros in its gradient, and a GPU would be waited for."""
    boxes_X4 = torch.tensor([[0.0, 0.0, 2.0, 2.0], [1.0, 1.0, 5.0, 4.0]], requires_grad=True)
    others_X4 = torch.tensor([[1.0, 1.0, 3.0, 3.0], [6.0, 6.0, 7.0, 7.0]])
    loss = giou(boxes_X4, others_X4).sum()
    with torch.profiler.profile() as found:
        loss.backward()
    assert not {"aten::item", "aten::nonzero"} & {event.key for event in found.key_averages()}
