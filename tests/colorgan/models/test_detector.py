"""The detector: its network, targets, losses and decoding, against plain loops and by hand."""

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.networks import small_detector, small_unet
from helpers.toy import ToyLoader, on_ranks
from torch import Tensor

from colorgan.config.recipe import FinetuneRecipe, StageRecipe
from colorgan.distributed.ranks import Ranks
from colorgan.distributed.strategy import open_strategy
from colorgan.evaluation.detection_loss import (
    assign,
    centre_ness,
    detection_loss,
    focal_loss,
    giou,
    pad_boxes,
)
from colorgan.evaluation.downstream import TASKS
from colorgan.models.detector import (
    MAX_DETECTIONS,
    box_areas,
    detect,
    grid_points,
    overlaps,
    predictions,
    suppressed,
)
from colorgan.models.model_config import Architecture, ModelConfig
from colorgan.models.model_folder import build_model
from colorgan.models.modes import evaluating, initialise, set_dropout_keys
from colorgan.tasks.transfer import Stage, build_stage
from colorgan.training.loop import Hooks, Intervals, StopSignals, fit


@dataclass
class ToyBoxes:
    boxes_N4: Tensor
    classes_N: Tensor
    difficult_N: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))
    crowd_N: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))
    areas_N: Tensor = field(default_factory=lambda: torch.zeros(0))
    source_size: tuple[int, int] = (100, 50)

    def __post_init__(self) -> None:
        number = len(self.boxes_N4)
        if len(self.difficult_N) != number:
            self.difficult_N = torch.zeros(number, dtype=torch.bool)
        if len(self.crowd_N) != number:
            self.crowd_N = torch.zeros(number, dtype=torch.bool)
        if len(self.areas_N) != number:
            self.areas_N = box_areas(self.boxes_N4) * 5000


def some_boxes(seed: int, number: int, num_classes: int = 3) -> ToyBoxes:
    random = torch.Generator().manual_seed(seed)
    corners = torch.rand(number, 2, generator=random) * 0.6
    sides = 0.05 + torch.rand(number, 2, generator=random) * 0.35

    return ToyBoxes(
        torch.cat(
            [corners, corners + sides],
            1,
        ),
        torch.randint(
            num_classes,
            (number,),
            generator=random,
        ),
    )


@pytest.mark.parametrize("image_size", [32, 64, 128])
def test_the_features_are_the_generators_up_to_stride_4(image_size: int) -> None:
    detector = small_detector(image_size=image_size, width=4, num_classes=3)
    generator = small_unet(image_size=image_size, width=4)
    initialise(generator, 0)
    theirs = generator.state_dict()
    ours = detector.state_dict()
    shared = {
        name: theirs[name] for name in ours if not name.startswith(TASKS["detect"].new_layers)
    }
    detector.load_state_dict({**ours, **shared})
    luminance_B1HW = torch.randn(2, 1, image_size, image_size)
    seen: list[Tensor] = []
    detector.head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    block = generator.decoder.blocks[len(detector.decoder.get_submodule("blocks")) - 1]  # type: ignore[arg-type]
    block.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with evaluating(detector), evaluating(generator):
        raw_BOHW = detector(luminance_B1HW)
        generator(luminance_B1HW)

    assert raw_BOHW.shape == (
        2,
        3 + 5,
        image_size // 4,
        image_size // 4,
    )
    assert torch.equal(seen[0], seen[1])
    assert {name.split(".")[0] for name in set(ours) - set(shared)} == {"head"}


def test_before_training_every_class_is_held_for_one_percent() -> None:
    detector = small_detector(
        image_size=32,
        width=4,
        num_classes=3,
        dropout=0.0,
    )
    initialise(detector, 0)
    with torch.no_grad():
        set_dropout_keys(
            detector,
            torch.arange(4, dtype=torch.int32),
        )
        found = predictions(detector(torch.randn(4, 1, 32, 32)))

    assert float(found.classes_BPC.sigmoid().mean()) == pytest.approx(0.01, rel=0.3)
    sides = found.boxes_BP4[..., 2:] - found.boxes_BP4[..., :2]
    assert float(sides.mean()) == pytest.approx(0.4, rel=0.25)


def greedy(boxes: list[list[float]], limit: float) -> list[bool]:
    """Non-maximum suppression as it is usually written."""
    dropped = [False] * len(boxes)

    for i, first in enumerate(boxes):
        for j in range(i + 1, len(boxes)):
            second = boxes[j]
            width = min(first[2], second[2]) - max(first[0], second[0])
            height = min(first[3], second[3]) - max(first[1], second[1])
            common = max(width, 0) * max(height, 0)
            areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (first, second)]
            if not dropped[i] and common > limit * (sum(areas) - common):
                dropped[j] = True

    return dropped


@pytest.mark.parametrize("limit", [0.1, 0.3, 0.6])
def test_suppression_is_the_greedy_one(limit: float) -> None:
    for seed in range(20):
        boxes_N4 = some_boxes(seed, 40).boxes_N4.double()
        assert suppressed(boxes_N4, limit).tolist() == greedy(boxes_N4.tolist(), limit)

    assert (
        suppressed(
            torch.zeros(0, 4),
            limit,
        ).tolist()
        == []
    )
    chain = torch.tensor(
        [[0.1 * i, 0.0, 0.1 * i + 0.25, 1.0] for i in range(30)]
    )  # each saves the next but one

    assert suppressed(chain, 0.3).tolist() == greedy(chain.tolist(), 0.3)


def raw_output(
    size: int,
    num_classes: int,
    objects: list[tuple[int, int, int, float, float]],
) -> Tensor:
    """Return a raw output with boxes of half-sides 0.2 at (row, column, class, two logits)."""
    raw = torch.full(
        (1, num_classes + 5, size, size),
        -20.0,
    )
    raw[:, -4:] = 0.0  # exp(0) * 0.2
    for row, column, index, logit, centre in objects:
        raw[0, index, row, column], raw[0, num_classes, row, column] = logit, centre

    return raw


def test_decoding_by_hand() -> None:
    far = [
        (1, 1, 0, 4.0, 4.0),
        (12, 12, 2, 2.0, 2.0),
    ]
    double = [
        (1, 2, 0, 3.0, 3.0),
        (1, 2, 1, 1.0, 1.0),
    ]  # beside the first: one of its class, one of another
    found = detect(raw_output(16, 3, [*far, *double]))[0]

    assert found.classes_N.tolist() == [0, 2, 1]
    assert found.scores_N.tolist() == pytest.approx(
        [1 / (1 + math.exp(-x)) for x in (4.0, 2.0, 1.0)]
    )
    assert found.boxes_N4[0].tolist() == pytest.approx(
        [0.0, 0.0, 0.29375, 0.29375]
    )  # 0.09375 - 0.2 is clipped
    assert found.boxes_N4[1].tolist() == pytest.approx([0.58125, 0.58125, 0.98125, 0.98125])
    assert len(detect(raw_output(8, 3, []))[0].scores_N) == 0

    everywhere = [
        (row, column, index, 3.0, 3.0)
        for row in range(16)
        for column in range(16)
        for index in range(40)
    ]

    assert len(detect(raw_output(16, 40, everywhere))[0].scores_N) == MAX_DETECTIONS


def test_overlaps_by_hand() -> None:
    boxes = torch.tensor(
        [
            [0.0, 0.0, 2.0, 2.0],
            [1.0, 1.0, 3.0, 3.0],
            [5.0, 5.0, 6.0, 6.0],
            [1.0, 1.0, 1.0, 1.0],
        ]
    )

    assert torch.allclose(
        overlaps(boxes[:1], boxes),
        torch.tensor([[1.0, 1 / 7, 0.0, 0.0]]),
    )
    assert (
        float(
            overlaps(
                boxes[3:],
                boxes[3:],
            )
        )
        == 0.0
    )
    # GIoU: 1/7 less the share of the 3 x 3 around both that neither covers, 2/9; far apart it falls
    # towards -1.
    assert torch.allclose(
        giou(
            boxes[:2],
            boxes[[1, 1]],
        ),
        torch.tensor([1 / 7 - 2 / 9, 1.0]),
    )
    assert float(
        giou(
            boxes[:1],
            boxes[2:3],
        )
    ) == pytest.approx(0.0 - (36 - 5) / 36)


def test_focal_loss_is_the_papers_formula() -> None:
    for logit in (-3.0, 0.0, 0.7, 4.0):
        p = torch.tensor(logit).double().sigmoid()
        wanted = [
            -0.25 * (1 - p) ** 2 * p.log(),
            -0.75 * p**2 * (1 - p).log(),
        ]
        got = focal_loss(
            torch.tensor([logit, logit]),
            torch.tensor([1.0, 0.0]),
        )

        assert got.tolist() == pytest.approx(
            [float(value) for value in wanted],
            rel=1e-5,
        )


def slow_assign(
    points: list[list[float]], radius: float, boxes: ToyBoxes
) -> list[tuple[int | None, bool]]:
    """Point by point: the number of the object that is learnt, and whether the point counts."""
    told = []

    for x, y in points:
        best, unknown = None, False
        for number, (x0, y0, x1, y1) in enumerate(boxes.boxes_N4.tolist()):
            inside = x0 < x < x1 and y0 < y < y1
            near = abs(x - (x0 + x1) / 2) < radius and abs(y - (y0 + y1) / 2) < radius
            if boxes.crowd_N[number] or boxes.difficult_N[number]:
                unknown = unknown or inside
            elif inside and near:
                area = float(box_areas(boxes.boxes_N4[number]))
                best = (
                    number
                    if best is None or area < float(box_areas(boxes.boxes_N4[best]))
                    else best
                )
        told.append(
            (
                best,
                best is not None or not unknown,
            )
        )

    return told


@pytest.mark.parametrize("size", [8, 16])
def test_points_learn_the_smallest_object_and_nothing_of_crowds_and_difficult_ones(
    size: int,
) -> None:
    points_P2 = grid_points(
        size,
        size,
        torch.device("cpu"),
    )
    num_learnt = num_unknown = 0
    for seed in range(12):
        boxes = some_boxes(seed, 6)
        boxes.crowd_N[0] = boxes.difficult_N[1] = True
        targets = assign(
            points_P2,
            1.5 / size,
            pad_boxes(
                [boxes],
                torch.device("cpu"),
            ),
        )
        slow = slow_assign(
            points_P2.tolist(),
            1.5 / size,
            boxes,
        )
        assert targets.object_BP[0].tolist() == [best is not None for best, _ in slow]
        assert targets.counts_BP[0].tolist() == [counts for _, counts in slow]
        for place, (best, _) in enumerate(slow):
            if best is not None:
                assert targets.class_BP[0, place] == boxes.classes_N[best]
                assert torch.equal(
                    targets.box_BP4[0, place],
                    boxes.boxes_N4[best],
                )
        num_learnt += int(targets.object_BP.sum())
        num_unknown += int((~targets.counts_BP).sum())

    assert min(num_learnt, num_unknown) > 50


def test_centre_ness_by_hand() -> None:
    sides = torch.tensor(
        [
            [1.0, 1.0, 1.0, 1.0],
            [1.0, 2.0, 4.0, 8.0],
            [-1.0, 1.0, 3.0, 1.0],
        ]
    )

    assert centre_ness(sides).tolist() == pytest.approx(
        [
            1.0,
            (0.25 * 0.25) ** 0.5,
            0.0,
        ]
    )


def test_a_crowd_costs_nothing_and_an_empty_picture_only_false_alarms() -> None:
    crowd = ToyBoxes(
        torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([0]), crowd_N=torch.tensor([True])
    )
    empty = ToyBoxes(
        torch.zeros(0, 4),
        torch.zeros(0, dtype=torch.long),
    )
    silent = raw_output(8, 3, [])
    alarmed = raw_output(
        8,
        3,
        [(4, 4, 1, 3.0, 0.0)],
    )

    assert float(detection_loss(alarmed, [crowd])) == 0.0
    assert float(detection_loss(silent, [empty])) < 1e-6
    p = torch.tensor(3.0).sigmoid()

    assert float(detection_loss(alarmed, [empty])) == pytest.approx(
        float(-0.75 * p**2 * (1 - p).log()), rel=1e-4
    )


def test_the_loss_of_a_batch_is_the_mean_over_its_pictures() -> None:
    raw = torch.randn(
        3,
        8,
        8,
        8,
        generator=torch.Generator().manual_seed(0),
    )
    boxes = [some_boxes(seed, seed) for seed in (0, 2, 5)]
    each = [float(detection_loss(raw[i : i + 1], boxes[i : i + 1])) for i in range(3)]

    assert float(detection_loss(raw, boxes)) == pytest.approx(
        sum(each) / 3,
        rel=1e-6,
    )
    assert max(each) > min(each) > 0


def test_gradients_reach_every_weight_and_stay_finite() -> None:
    detector = small_detector(image_size=32, width=4, num_classes=3)
    initialise(detector, 0)
    set_dropout_keys(
        detector,
        torch.arange(2, dtype=torch.int32),
    )
    loss = detection_loss(
        detector(torch.randn(2, 1, 32, 32)),
        [
            some_boxes(1, 4),
            some_boxes(2, 3),
        ],
    )
    loss.backward()

    for name, parameter in detector.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0 or "norm" in name, name


class BoxLoader(ToyLoader):
    """Toy pictures with boxes that follow from their slots."""

    def batch(self, slots: range) -> Any:
        batch = super().batch(slots)
        batch.boxes = [some_boxes(slot, slot % 4) for slot in slots]  # type: ignore[attr-defined]
        return batch


def tuned(ranks: Ranks, micro_batch_size: int) -> dict[str, Tensor]:
    """Return the weights after three steps of plain gradient descent.

    Norms that do not look at the batch.
    """
    recipe = FinetuneRecipe.model_validate(
        {"run": "run", "task": "detect", "batch": {"global_batch_size": 8}}
    )
    a = Architecture(
        image_size=32, width=4, norm="instance", bias_before_norm=False, dropout=0.5, num_outputs=3
    )
    model = build_model(
        ModelConfig(
            kind="detector",
            architecture=a,
            ab_scale=128.0,
            classes=("a", "b", "c"),
        )
    )
    initialise(model, 0)
    task = build_stage(
        model,
        recipe,
        Stage(
            StageRecipe(epochs=1, learning_rate=1e-3),
            0,
            24,
        ),
    )
    strategy = open_strategy(ranks, task.phases)

    for phase in strategy.phases.values():
        phase.optimizer = torch.optim.SGD(
            phase.module.parameters(),
            lr=0.01,
        )

    hooks = Hooks(
        lambda report: None,
        lambda images: None,
        lambda images: None,
    )
    loader = BoxLoader(
        8,
        micro_batch_size,
        ranks.rank,
        ranks.world_size,
    )
    fit(
        task,
        strategy,
        loader,
        Intervals(24, 8, 8),
        hooks,
        StopSignals(),
    )
    return {name: tensor.clone() for name, tensor in strategy.state()["model"].items()}


def tune_and_save(ranks: Ranks, path: str) -> None:
    weights = tuned(ranks, 2)
    if ranks.main:
        torch.save(weights, path)


def test_two_ranks_and_accumulation_train_as_one(tmp_path: Path) -> None:
    on_ranks(
        2,
        tune_and_save,
        str(tmp_path / "weights.pt"),
    )
    two = torch.load(tmp_path / "weights.pt", weights_only=True)
    whole = tuned(Ranks.single(), 8)
    start = small_detector(
        image_size=32,
        width=4,
        num_classes=3,
        norm="instance",
    )

    initialise(start, 0)
    moved = max(
        float((whole[name] - tensor).abs().max()) for name, tensor in start.state_dict().items()
    )
    for other in (two, tuned(Ranks.single(), 2)):
        assert max(float((whole[name] - other[name]).abs().max()) for name in whole) < 1e-4 * moved


def test_frozen_features_leave_the_head_to_learn() -> None:
    model = small_detector(image_size=32, width=4, num_classes=3)
    recipe = FinetuneRecipe.model_validate({"run": "run", "task": "detect", "init": "somewhere"})
    stage = replace(
        Stage(
            StageRecipe(epochs=1, learning_rate=1e-3, features="frozen"),
            0,
            8,
        )
    )
    build_stage(model, recipe, stage)
    learnt = {name for name, parameter in model.named_parameters() if parameter.requires_grad}

    assert learnt == {name for name, _ in model.named_parameters() if name.startswith("head.")}
