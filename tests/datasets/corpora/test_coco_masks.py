"""COCO's outlines, drawn: overlaps, crowds, run lengths, and outlines that are wrong or hostile."""

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from datasets.corpora.coco_masks import CocoMask, unpack_counts
from datasets.errors import CorpusError


def square(x0: float, y0: float, x1: float, y1: float) -> list[float]:
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def coco(*annotations: tuple[int, dict], height: int = 20, width: int = 30) -> CocoMask:
    return CocoMask(annotations, height, width, "instances.json: 1.jpg")


def test_small_objects_stay_visible_in_any_order() -> None:
    large = (
        4,
        {"id": 1, "segmentation": [square(0, 0, 30, 20)]},
    )
    small = (
        7,
        {"id": 2, "segmentation": [square(10, 5, 14, 9)]},
    )

    for order in ((large, small), (small, large)):
        plane = coco(*order).read()
        assert plane.shape == (20, 30)
        assert (plane[5:9, 10:14] == 8).all()
        assert (plane == 8).sum() == 16
        assert (plane == 5).sum() == 600 - 16


def test_crowds_are_void_and_objects_lie_before_them() -> None:
    counts = [0, 600]
    crowd = (
        0,
        {"id": 1, "iscrowd": 1, "segmentation": {"size": [20, 30], "counts": counts}},
    )
    thing = (
        1,
        {"id": 2, "iscrowd": 0, "segmentation": [square(0, 0, 10, 10)]},
    )
    plane = pickle.loads(pickle.dumps(coco(thing, crowd))).read()

    assert (plane[:10, :10] == 2).all()
    assert (plane == 255).sum() == 500


def test_an_object_without_an_outline_makes_its_box_void() -> None:
    for outline in ({}, {"segmentation": []}, {"segmentation": [[1, 1, 2, 2]]}):
        plane = coco(
            (
                3,
                {"id": 1, "bbox": [2, 3, 4, 5], **outline},
            )
        ).read()
        assert (plane[3:8, 2:6] == 255).all()
        assert (plane == 0).sum() == 600 - 20


def test_no_object_is_all_background() -> None:
    assert coco().read().max() == 0


@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.randoms(use_true_random=False),
)
def test_run_lengths_packed_or_not_give_the_same_pixels(
    height: int, width: int, random: object
) -> None:
    plane = np.random.default_rng(random.getrandbits(32)).integers(
        0,
        2,
        (height, width),
        np.uint8,
    )
    packed = coco_mask.encode(np.asfortranarray(plane))["counts"].decode()
    counts = unpack_counts(packed)

    assert sum(counts) == height * width
    for form in (packed, counts):
        annotation = {"id": 1, "segmentation": {"size": [height, width], "counts": form}}
        np.testing.assert_array_equal(
            coco((0, annotation), height=height, width=width).read(), plane
        )


@pytest.mark.parametrize(
    "outline",
    [
        {"size": [20, 30], "counts": [0, 599]},
        {"size": [20, 30], "counts": [-1, 601]},
        {
            "size": [10**9, 10**9],
            "counts": [0, 10**18],
        },
        {"size": [20, 30], "counts": "00"},
        {"size": [20, 30], "counts": "oooo"},
        {"size": [20, 30], "counts": "é" * 50},
        [[0, 0, 1e12, 0, 1e12, 1e12]],
        [[0, 0, float("nan"), 0, 5, 5]],
        [[0, 0, 1, 0, 5, 5, 3]],
        [["a", "b", "c", "d", "e", "f"]],
        {"size": [20, 30], "counts": "o" * 1_000_000},
        [[0, 0, 60, 40] * 200_000],
    ],
)
def test_outlines_that_cannot_be_drawn(outline: object) -> None:
    with pytest.raises(CorpusError, match=r"1\.jpg: the outline of annotation 5 cannot be drawn"):
        coco(
            (
                0,
                {"id": 5, "bbox": [0, 0, 1, 1], "segmentation": outline},
            )
        ).read()


def test_a_size_that_no_picture_has() -> None:
    with pytest.raises(CorpusError, match="no size of a picture"):
        coco(height=10**6, width=10**6).read()


def test_one_polygon_without_a_list_around_it_is_drawn() -> None:
    plane = coco(
        (
            2,
            {"id": 1, "segmentation": square(10, 5, 14, 9)},
        )
    ).read()

    assert (plane[5:9, 10:14] == 3).all()
    assert (plane == 3).sum() == 16


@pytest.mark.parametrize(
    "outline",
    [{}, "", {"size": [20, 30]}, {"counts": [600]}, 7, "polygon", [7, "a"], [{"x": 1}]],
)
def test_an_outline_of_an_unknown_form_costs_itself(outline: object) -> None:
    mask = coco((0, {"id": 5, "bbox": [0, 0, 2, 3], "segmentation": outline}))
    plane = mask.read()

    assert (plane[:3, :2] == 255).all()
    assert (plane == 255).sum() == 6
    (reason,) = mask.dropped()
    assert reason.startswith("its outline ")
    assert reason.endswith("so that its box is void: annotation 5")


def test_outlines_that_are_none_or_can_be_drawn_are_not_counted() -> None:
    outlines = (
        None,
        [],
        [square(0, 0, 5, 5)],
        square(0, 0, 5, 5),
        {"size": [20, 30], "counts": []},
    )
    assert coco(*((0, {"id": 5, "segmentation": outline}) for outline in outlines)).dropped() == ()


def test_polygons_and_crowds_written_as_text_are_read() -> None:
    corners = [str(number) for number in square(0, 0, 5, 5)]
    plane = coco((0, {"id": 5, "iscrowd": "0", "segmentation": [corners]})).read()
    assert (plane[:5, :5] == 1).all()
