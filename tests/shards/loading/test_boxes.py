"""Boxes against pixels: a box bounds the drawn rectangle after crop, resize and flip."""

import json
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.tiny_set import TinySample, jpeg, tiny_sample, write_set

from shards.errors import ManifestError
from shards.loading.boxes import MIN_KEPT_AREA, Boxes, boxes_in_window
from shards.loading.labels import Objects
from shards.loading.loader import Batch, Loader
from shards.loading.shard_set import open_shards

NUM_PICTURES = 24
RED = (200, 30, 30)


def rectangle_sample(index: int, height: int, width: int) -> TinySample:
    """Return a grey image with one red rectangle, whose box is the label's only object."""
    random = np.random.default_rng(index)
    x0 = int(random.integers(0, width // 2))
    y0 = int(random.integers(0, height // 2))
    x1 = x0 + int(random.integers(width // 4, width // 2))
    y1 = y0 + int(random.integers(height // 4, height // 2))

    picture = np.full(
        (height, width, 3),
        128,
        np.uint8,
    )
    picture[y0:y1, x0:x1] = RED
    item = {
        "class": index % 3,
        "box": [x0, y0, x1, y1],
        "difficult": index % 2 == 0,
        "crowd": False,
    }

    label = {
        "classes": [index % 3],
        "objects": [item],
        "key": f"k{index}",
        "width": 2 * width,
        "height": 2 * height,
    }

    return TinySample(
        jpeg(picture, 100),
        json.dumps(label).encode(),
        b"",
        width,
        height,
    )


def loaded(
    folder: Path,
    *,
    epochs: int = 1,
    train: bool = True,
    **settings: Any,
) -> list[Batch]:
    arguments = {
        "image_size": 32,
        "global_batch_size": 8,
        "micro_batch_size": 8,
        "targets": "boxes",
        **settings,
    }

    loader = Loader(
        open_shards([folder]),
        **arguments,
    )
    steps = loader.train_batches(0) if train else ([batch] for batch in loader.eval_batches())
    batches = [step[0] for step in islice(steps, epochs * NUM_PICTURES // 8)]
    loader.close()

    return batches


def red_box(red_HW: torch.Tensor) -> torch.Tensor:
    """Return the bounds of the red pixels: left, top, right and bottom, in pixels."""
    rows = (red_HW > 0.5).any(1).nonzero().flatten()
    columns = (red_HW > 0.5).any(0).nonzero().flatten()
    return torch.stack([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])


def redness(batch: Batch) -> torch.Tensor:
    """How much of each pixel is the rectangle, B x H x W, by its a*: grey has none."""
    red_BHW = batch.lab_B3HW[:, 1]
    full = 0.455  # a* of RED over 128
    return (red_BHW / full).clamp(0.0, 1.0)


@pytest.mark.parametrize("crop", [1.0, 0.3])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(
    ("height", "width"),
    [
        (32, 32),
        (48, 80),
        (90, 40),
    ],
)
def test_the_box_bounds_the_drawn_rectangle(
    tmp_path: Path, crop: float, flip: bool, height: int, width: int
) -> None:
    samples = [rectangle_sample(index, height, width) for index in range(NUM_PICTURES)]
    policy = "squash:32" if (height, width) == (32, 32) else "original"
    folder = write_set(
        tmp_path / "set",
        samples,
        policy=policy,
        with_masks=False,
    )
    exact = policy == "squash:32" and crop == 1.0
    num_seen = num_clipped = 0
    for batch in loaded(folder, epochs=3, random_crop_min_area=crop, flip=flip):
        assert batch.boxes is not None
        assert batch.classes_BC is None
        for red_HW, boxes, sample in zip(
            redness(batch), batch.boxes, batch.sample_ids_B.tolist(), strict=True
        ):
            if not len(boxes.boxes_N4):  # hardly anything left of it
                assert float((red_HW > 0.5).float().mean()) < 0.5
                continue
            seen = red_box(red_HW)
            box = boxes.boxes_N4[0] * 32
            assert torch.allclose(
                box,
                seen.float(),
                atol=1e-4 if exact else 1.0,
            ), (
                sample,
                box,
                seen,
            )
            assert float(red_HW.sum()) == pytest.approx(
                float((box[2:] - box[:2]).prod()), rel=0.1, abs=12
            )
            assert boxes.classes_N.tolist() == [sample % 3]
            assert boxes.difficult_N.tolist() == [sample % 2 == 0]
            num_seen, num_clipped = (
                num_seen + 1,
                num_clipped + int(box.min() == 0 or box.max() == 32),
            )

    assert num_seen > 2 * NUM_PICTURES
    assert num_clipped > 0 or crop == 1.0


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize(
    ("fit", "crop"),
    [("crop", 1.0), ("pad", 1.0), ("pad", 0.3)],
)
@pytest.mark.parametrize(
    ("height", "width"),
    [(48, 80), (90, 40)],
)
def test_boxes_follow_into_a_square(
    tmp_path: Path, train: bool, fit: str, crop: float, height: int, width: int
) -> None:
    """Neither way changes a shape, and each box bounds its rectangle."""
    samples = [rectangle_sample(index, height, width) for index in range(NUM_PICTURES)]
    folder = write_set(
        tmp_path / "set",
        samples,
        policy="original",
        with_masks=False,
    )
    shown = 0
    for batch in loaded(folder, train=train, fit=fit, random_crop_min_area=crop, flip=True):
        assert batch.boxes is not None
        for red_HW, boxes in zip(redness(batch), batch.boxes, strict=True):
            if not len(boxes.boxes_N4):
                continue
            seen = red_box(red_HW)
            box = boxes.boxes_N4[0] * 32
            assert torch.allclose(
                box,
                seen.float(),
                atol=1.0,
            ), (box, seen)
            shown += 1

            # A padded picture fills the square in one direction and is centered in the other.
            if fit == "pad" and crop == 1.0:
                share = min(height, width) / max(height, width)
                middle = box[1::2] if width > height else box[::2]
                assert bool(((middle - 16).abs() <= 16 * share + 1).all())
    assert shown > NUM_PICTURES // 2


def test_an_evaluation_has_every_object_as_labelled(tmp_path: Path) -> None:
    samples = [rectangle_sample(index, 48, 80) for index in range(NUM_PICTURES)]
    folder = write_set(
        tmp_path / "set",
        samples,
        policy="original",
        with_masks=False,
    )
    batches = loaded(folder, train=False, random_crop_min_area=0.3, flip=True)
    found = [boxes for batch in batches for boxes in batch.boxes or []]

    for sample, boxes in zip(samples, found, strict=True):
        label = json.loads(sample.label)
        assert boxes.source_size == (160, 96)
        wanted = torch.tensor(label["objects"][0]["box"]) / torch.tensor([80, 48, 80, 48])
        assert torch.allclose(boxes.boxes_N4[0], wanted)
        sides = (wanted[2:] - wanted[:2]) * torch.tensor([160, 96])
        assert float(boxes.areas_N[0]) == pytest.approx(float(sides.prod()))


def test_two_ranks_see_the_boxes_of_one(tmp_path: Path) -> None:
    samples = [rectangle_sample(index, 48, 80) for index in range(NUM_PICTURES)]
    folder = write_set(
        tmp_path / "set",
        samples,
        policy="original",
        with_masks=False,
    )
    common: dict[str, Any] = {"random_crop_min_area": 0.3, "flip": True, "micro_batch_size": 4}
    runs = [
        loaded(folder, rank=rank, world_size=world, **common)
        for rank, world in ((0, 1), (0, 2), (1, 2))
    ]

    by_position = [
        {
            position: boxes.boxes_N4.tolist()
            for batch in batches
            for position, boxes in zip(batch.positions_B.tolist(), batch.boxes or [], strict=True)
        }
        for batches in runs
    ]

    assert by_position[1].keys().isdisjoint(by_position[2])

    both = by_position[1] | by_position[2]

    assert (
        len(by_position[0]) == NUM_PICTURES // 2
    )  # of each step of the one rank, the first of two micro-batches
    assert all(both[position] == boxes for position, boxes in by_position[0].items())


def objects(
    *boxes: tuple[float, float, float, float],
    crowd: bool = False,
) -> Objects:
    number = len(boxes)
    flags = np.zeros(number, np.bool_)

    return Objects(
        np.array(boxes, np.float64).reshape(-1, 4),
        np.arange(number),
        flags,
        flags | crowd,
        np.ones(number),
        (10, 20),
    )


def kept(boxes: Boxes) -> list[int]:
    return [int(index) for index in boxes.classes_N]


def test_objects_that_are_nearly_cut_off_are_left_out_but_crowds_stay() -> None:
    right_half = np.array([0.0, 0.5, 1.0, 0.5])
    whole = (0.6, 0, 0.9, 1)
    enough = (0.2, 0, 0.61, 1)
    less = (0.2, 0, 0.59, 1)
    outside = (0.0, 0, 0.4, 1)

    four = objects(whole, enough, less, outside)

    assert MIN_KEPT_AREA == 0.25
    assert kept(boxes_in_window(four, right_half, False)) == [0, 1]
    assert kept(
        boxes_in_window(
            objects(whole, enough, less, outside, crowd=True),
            right_half,
            False,
        )
    ) == [0, 1, 2]

    moved = boxes_in_window(four, right_half, True).boxes_N4

    assert torch.allclose(
        moved,
        torch.tensor(
            [
                [0.2, 0.0, 0.8, 1.0],
                [0.78, 0.0, 1.0, 1.0],
            ]
        ),
    )
    assert kept(
        boxes_in_window(
            objects(
                (0.5, 0.5, 0.5, 0.9),
                (-0.1, 0.0, 1.1, 1.0),
            ),
            None,
            False,
        )
    ) == [1]
    assert boxes_in_window(objects(), right_half, True).boxes_N4.shape == (0, 4)


def test_a_sample_whose_label_has_no_box_is_replaced_and_named(tmp_path: Path) -> None:
    samples = [tiny_sample(index) for index in range(NUM_PICTURES)]
    samples[5] = replace(samples[5], label=b'{"classes": [1]}')
    loader = Loader(
        open_shards([write_set(tmp_path, samples)]),
        image_size=32, global_batch_size=8, micro_batch_size=8, targets="boxes",
    )  # fmt: skip

    for step in islice(loader.train_batches(0), NUM_PICTURES // 8):
        assert 5 not in step[0].sample_ids_B.tolist()

    loader.close()

    assert {(each.sample_id, each.reason) for each in loader.replaced} == {
        (5, "tiny-train-000000.tar: label: no list of objects")
    }


def test_a_set_without_classes_has_no_boxes(tmp_path: Path) -> None:
    folder = write_set(
        tmp_path,
        [tiny_sample(index) for index in range(8)],
        classes=(),
    )
    with pytest.raises(ManifestError, match="the task needs boxes"):
        loaded(folder)
