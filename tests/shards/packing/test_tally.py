"""shards/packing/tally.py: counts by reason, added up and saved as JSON."""

import json

import pytest

from shards.packing.tally import MAX_REASONS, OTHER_REASONS, Reasons, Tally, left_out_by_reason
from shards.rejections import Rejection
from shards.summary import LeftOut


def test_reasons_are_counted_without_what_differs_and_three_are_named() -> None:
    reasons = Reasons()
    for number in range(5):
        reasons.add(
            f"its box has no area (0 x {number}): annotation {number}",
            f"{number}.jpg",
        )
    reasons.add("it has no bbox: annotation 9", "9.jpg")

    assert reasons.by_reason() == {
        "its box has no area": LeftOut(count=5, examples=("0.jpg", "1.jpg", "2.jpg")),
        "it has no bbox": LeftOut(count=1, examples=("9.jpg",)),
    }


def test_a_tally_with_dropped_labels_survives_json_and_adds_up() -> None:
    tally = Tally()
    tally.labels_dropped.add("it has no bbox: annotation 1", "a.jpg")
    saved = Tally.from_json(json.loads(json.dumps(tally.to_json())))

    saved.add(tally)
    dropped = saved.summary(2, {}).labels_dropped
    assert dropped == {"it has no bbox": LeftOut(count=2, examples=("a.jpg",))}


def test_rejections_are_counted_alike() -> None:
    rejections = [Rejection(0, "a", f"{name}.jpg", f"cannot be read: {name}") for name in "ab"]
    assert left_out_by_reason(rejections) == {
        "cannot be read": LeftOut(count=2, examples=("a.jpg", "b.jpg"))
    }


def test_reasons_that_are_all_different_are_bounded() -> None:
    reasons = Reasons()
    for number in range(MAX_REASONS + 50):
        reasons.add(f"fault {number}", f"{number}.jpg")

    counts = {reason: each.count for reason, each in reasons.by_reason().items()}
    assert len(counts) == MAX_REASONS + 1
    assert counts[OTHER_REASONS] == 50


@pytest.mark.parametrize(
    ("name", "shown"),
    [("é.jpg", "é.jpg"), ("\udce9.jpg", r"\xe9.jpg"), ("\ud800\udce9", r"\ud800\udce9")],
)
def test_names_become_text(name: str, shown: str) -> None:
    reasons = Reasons()
    reasons.add(f"like {name}", name)
    assert reasons.by_reason() == {f"like {shown}": LeftOut(count=1, examples=(shown,))}
