"""Labels: what is parsed, and what is refused with a reason and nothing else."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.loading.labels import class_vectors, labelled_objects

GOOD = {
    "objects": [{"class": 1, "box": [1, 2, 3, 4], "area": 1.5}],
    "width": 8,
    "height": 16,
}


def encoded(label: Any) -> bytes:
    return json.dumps(label).encode()


def with_object(item: Any) -> dict[str, Any]:
    return {**GOOD, "objects": [item]}


def test_class_vectors() -> None:
    objects = [
        {"class": 0, "difficult": True},
        {"class": 0, "difficult": False},
        {"class": 2, "difficult": True},
    ]
    vectors = class_vectors(
        encoded({"classes": [0, 2], "objects": objects}),
        4,
    )

    assert vectors.present.tolist() == [1, 0, 1, 0]
    assert vectors.difficult.tolist() == [False, False, True, False]


@pytest.mark.parametrize(
    "label",
    [
        [],
        {},
        {"classes": "0"},
        {"classes": [4]},
        {"classes": [-1]},
        {"classes": [True]},
        {"classes": [0.0]},
        {"classes": [0], "objects": [{"class": 9}]},
        {"classes": [0], "objects": [3]},
        {"classes": [0], "objects": 5},
        {"classes": [0], "objects": None},
    ],
)
def test_broken_classes_are_refused(label: Any) -> None:
    with pytest.raises(ValueError, match=r"class|objects"):
        class_vectors(encoded(label), 4)


def test_labelled_objects() -> None:
    parsed = labelled_objects(encoded(GOOD), 2, (4, 8))
    assert parsed.boxes_N4.tolist() == [[0.25, 0.25, 0.75, 0.5]]
    assert parsed.areas_N.tolist() == [1.5]
    assert parsed.source_size == (8, 16)

    empty = labelled_objects(
        encoded({**GOOD, "objects": []}),
        2,
        (4, 8),
    )
    assert empty.boxes_N4.shape == (0, 4)
    assert empty.areas_N.shape == (0,)


@pytest.mark.parametrize(
    "label",
    [
        {"classes": []},
        {**GOOD, "width": 0},
        {**GOOD, "height": True},
        {**GOOD, "height": "16"},
        {**GOOD, "width": 2**40},
        with_object({"class": 2, "box": [0, 0, 1, 1]}),
        with_object({"class": 0}),
        with_object(3),
        with_object({"class": 0, "box": [1, 1, 0, 0]}),
        with_object({"class": 0, "box": [0, 0, 1]}),
        with_object({"class": 0, "box": [0, 0, "1", 1]}),
        with_object({"class": 0, "box": [0, 0, 1e300, 1]}),
        with_object({"class": 0, "box": [0, 0, 10**400, 1]}),
        with_object({"class": 0, "box": [0, 0, 1, 1], "area": "large"}),
        with_object({"class": 0, "box": [0, 0, 1, 1], "area": [1]}),
        with_object({"class": 0, "box": [0, 0, 1, 1], "area": None}),
    ],
)
def test_broken_objects_are_refused(label: Any) -> None:
    with pytest.raises(ValueError, match=r"object|size"):
        labelled_objects(encoded(label), 2, (4, 8))


def test_a_message_stays_short() -> None:
    with pytest.raises(ValueError, match="class") as refused:
        class_vectors(encoded({"classes": ["x" * 1_000_000]}), 2)
    assert len(str(refused.value)) < 200


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(ValueError, match="nested"):
        class_vectors(b"[" * 100_000, 2)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(
        st.sampled_from(["class", "box", "area", "difficult", "crowd"]), inner, max_size=5
    ),
    max_leaves=12,
)  # fmt: skip
labels = st.fixed_dictionaries(
    {},
    optional={
        "classes": st.lists(st.integers(-1, 3), max_size=4) | values,
        "objects": st.lists(values, max_size=3) | values,
        "width": values,
        "height": values,
    },
)


@settings(max_examples=300)
@given(labels | values)
def test_any_json_is_parsed_or_refused(label: Any) -> None:
    data = encoded(label)
    try:
        vectors = class_vectors(data, 3)
    except ValueError:
        pass
    else:
        assert vectors.present.shape == vectors.difficult.shape == (3,)

    try:
        objects = labelled_objects(data, 3, (4, 8))
    except ValueError:
        return
    number = len(objects.classes_N)
    assert objects.boxes_N4.shape == (number, 4)
    assert np.isfinite(objects.boxes_N4).all()
    assert np.isfinite(objects.areas_N).all()


@settings(max_examples=200)
@given(st.binary(max_size=200))
def test_any_bytes_are_parsed_or_refused(data: bytes) -> None:
    for parse in (lambda: class_vectors(data, 3), lambda: labelled_objects(data, 3, (4, 8))):
        with pytest.raises(ValueError, match=r"."):
            parse()
