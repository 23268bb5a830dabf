"""COCO: the real sample against pycocotools, layouts, and files that are wrong."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw
from pycocotools.coco import COCO

from datasets.corpora.coco import open_coco
from datasets.errors import CorpusError

DATA = Path(__file__).parents[3] / "../shared/data/coco"
real = pytest.mark.skipif(not DATA.is_dir(), reason="no ../shared/data/coco here")


def size_of(picture: Path) -> tuple[int, int]:
    with Image.open(picture) as opened:
        return opened.size


def make(root: Path, split: str = "train2017", **parts: Any) -> Path:
    """Writes a tiny COCO folder; `parts` replace those of its JSON, None leaves one out."""
    (root / split).mkdir(parents=True)
    (root / "annotations").mkdir(exist_ok=True)
    for name in ("2.jpg", "1.jpg"):
        (root / split / name).touch()
    data = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "height": 4, "width": 5} for i in (2, 1)],
        "annotations": [
            {"id": 8, "image_id": 1, "category_id": 90, "bbox": [1, 2, 3, 1.5], "iscrowd": 0,
             "segmentation": [[1, 2, 4, 2, 4, 4, 1, 4]]},
            {"id": 9, "image_id": 1, "category_id": 3, "bbox": [0, 0, 1, 1], "iscrowd": 1,
             "segmentation": {"size": [4, 5], "counts": [0, 1, 19]}},
        ],
        "categories": [{"id": 90, "name": "toothbrush"}, {"id": 3, "name": "car"}],
    }  # fmt: skip
    data = {name: part for name, part in {**data, **parts}.items() if part is not None}
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(data))
    return root


@pytest.fixture(scope="module")
def oracle() -> COCO:
    return COCO(str(DATA / "annotations/instances_val2017.json"))


@real
@pytest.mark.parametrize("split, count", [("train", 80), ("val2017", 78), ("unlabeled", 531)])
def test_counts_and_files_of_the_real_splits(split: str, count: int) -> None:
    corpus = open_coco(DATA, split)
    records = list(corpus.records())
    assert corpus.num_records == len(records) == len({record.key for record in records}) == count
    assert all(record.image.is_file() and record.image.stem == record.key for record in records)
    assert [record.key for record in records] == sorted(record.key for record in records)
    assert len(corpus.classes) == (0 if split == "unlabeled" else 80)
    assert len(corpus.palette) == (0 if split == "unlabeled" else 81)


@real
def test_objects_agree_with_pycocotools(oracle: COCO, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = open_coco(DATA, "val")
    assert capsys.readouterr().out == ""
    ids = sorted(oracle.getCatIds())
    assert corpus.classes == tuple(category["name"] for category in oracle.loadCats(ids))
    for record in corpus.records():
        annotations = oracle.loadAnns(oracle.getAnnIds(imgIds=[int(record.key)]))
        objects = record.label["objects"]
        assert [ids[item["class"]] for item in objects] == [a["category_id"] for a in annotations]
        assert [item["crowd"] for item in objects] == [bool(a["iscrowd"]) for a in annotations]
        assert [item["area"] for item in objects] == [a["area"] for a in annotations]
        for item, annotation in zip(objects, annotations, strict=True):
            x, y, width, height = annotation["bbox"]
            assert item["box"] == [x, y, x + width, y + height]
        assert record.label["classes"] == sorted({item["class"] for item in objects})
        assert json.loads(json.dumps(record.label)) == record.label


@real
def test_masks_agree_with_pycocotools(oracle: COCO) -> None:
    ids = sorted(oracle.getCatIds())
    for record in open_coco(DATA, "val").records():
        annotations = oracle.loadAnns(oracle.getAnnIds(imgIds=[int(record.key)]))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # pycocotools' decode under NumPy 2
            planes = [oracle.annToMask(annotation).astype(bool) for annotation in annotations]
        things = [(p, a) for p, a in zip(planes, annotations, strict=True) if not a["iscrowd"]]
        expected = np.zeros(size_of(record.image)[::-1], np.uint8)
        for plane, annotation in zip(planes, annotations, strict=True):
            if annotation["iscrowd"]:
                expected[plane] = 255
        for plane, annotation in sorted(things, key=lambda thing: -thing[0].sum()):
            expected[plane] = ids.index(annotation["category_id"]) + 1
        np.testing.assert_array_equal(record.mask.read(), expected)


@real
def test_masks_agree_with_polygons_drawn_by_pillow(oracle: COCO) -> None:
    ids = sorted(oracle.getCatIds())
    same = total = 0
    for record in list(open_coco(DATA, "val").records())[:30]:
        annotations = oracle.loadAnns(oracle.getAnnIds(imgIds=[int(record.key)]))
        if any(annotation["iscrowd"] for annotation in annotations):
            continue
        picture = Image.new("L", size_of(record.image))
        for annotation in sorted(annotations, key=lambda item: -item["area"]):
            for points in annotation["segmentation"]:
                ImageDraw.Draw(picture).polygon(
                    points, fill=ids.index(annotation["category_id"]) + 1
                )
        plane = record.mask.read()
        same += int((plane == np.asarray(picture)).sum())
        total += plane.size
    assert same / total > 0.985  # the two differ along the outlines only


def test_a_small_folder_in_full(tmp_path: Path) -> None:
    corpus = open_coco(make(tmp_path), "train")
    first, second = corpus.records()
    assert (corpus.name, corpus.split, corpus.classes) == ("coco", "train", ("car", "toothbrush"))
    assert (first.key, second.key) == ("1", "2")
    assert first.label["classes"] == [0, 1]
    assert first.label["objects"][0] == {
        "class": 1, "box": [1, 2, 4, 3.5], "difficult": False, "crowd": False,
    }  # fmt: skip
    np.testing.assert_array_equal(
        first.mask.read(), [[255, 0, 0, 0, 0], [0] * 5, [0, 2, 2, 2, 0], [0, 2, 2, 2, 0]]
    )
    assert second.label == {"classes": [], "objects": []}
    assert second.mask.read().max() == 0
    assert list(corpus.records()) == [first, second]


def test_the_2014_layout_and_both_years(tmp_path: Path) -> None:
    make(tmp_path, "train2014")
    assert open_coco(tmp_path, "train").num_records == 2
    make(tmp_path, "train2017")
    assert open_coco(tmp_path, "train2014").split == "train2014"
    with pytest.raises(CorpusError, match="ambiguous here, say which: train2014 or train2017"):
        open_coco(tmp_path, "train")


def test_without_annotations_the_folder_is_listed(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "annotations/instances_train2017.json").unlink()
    (tmp_path / "train2017/.hidden.jpg").touch()
    (tmp_path / "train2017/notes.txt").touch()
    corpus = open_coco(tmp_path, "train")
    assert (corpus.classes, corpus.palette, corpus.num_records) == ((), (), 2)
    assert [record.image.name for record in corpus.records()] == ["1.jpg", "2.jpg"]
    assert all(record.mask is None for record in corpus.records())


def test_more_classes_than_a_mask_can_hold_go_without_masks(tmp_path: Path) -> None:
    categories = [{"id": i, "name": f"c{i}"} for i in range(300)]
    corpus = open_coco(make(tmp_path, categories=categories), "train")
    assert len(corpus.classes) == 300 and corpus.palette == ()
    assert next(corpus.records()).mask is None


IMAGE = {"id": 1, "file_name": "1.jpg", "height": 4, "width": 5}
ANNOTATION = {"id": 8, "image_id": 1, "category_id": 3, "bbox": [0, 0, 1, 1]}


@pytest.mark.parametrize(
    "parts, message",
    [
        ({"images": None}, "lacks one of the lists"),
        ({"annotations": 3}, "lacks one of the lists"),
        ({"categories": []}, "categories are missing"),
        ({"categories": [{"id": 3}]}, "categories are missing or have no names"),
        (
            {"categories": [{"id": 3, "name": "a"}, {"id": 4, "name": "a"}]},
            "a category stands in it twice",
        ),
        ({"images": []}, "is empty"),
        ({"images": [IMAGE, IMAGE]}, "a picture stands in it twice"),
        ({"images": [{**IMAGE, "id": 7}, IMAGE]}, "a picture stands in it twice"),
        ({"images": [{**IMAGE, "height": "4"}]}, "picture 1 has no proper height"),
        ({"images": [{"id": 1}]}, "picture 1 has no proper file_name"),
        ({"images": [3]}, "malformed"),
        ({"images": [{**IMAGE, "file_name": "../1.jpg"}]}, "no file inside"),
        ({"images": [{**IMAGE, "file_name": "/etc/passwd"}]}, "no file inside"),
        ({"images": [{**IMAGE, "file_name": "3.jpg"}]}, r"1 of the files .* first is 3\.jpg"),
        ({"annotations": [{"id": 1}]}, "lacks a part"),
        ({"annotations": [{**ANNOTATION, "category_id": 4}]}, "category 4, which is not listed"),
        ({"annotations": [{**ANNOTATION, "bbox": [1, 2, 3]}]}, "annotation 8 has no proper bbox"),
        (
            {"annotations": [{**ANNOTATION, "bbox": [1, 2, 3, float("inf")]}]},
            "annotation 8 has no proper bbox",
        ),
        ({"annotations": [{**ANNOTATION, "bbox": None}]}, "annotation 8 has no proper bbox"),
    ],
)
def test_annotations_that_are_wrong(tmp_path: Path, parts: dict[str, Any], message: str) -> None:
    make(tmp_path, **parts)
    with pytest.raises(CorpusError, match=message) as caught:
        list(open_coco(tmp_path, "train").records())
    assert "instances_train2017.json" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, '"x"', "\udcff", "[1]"])
def test_json_that_is_none(tmp_path: Path, text: str) -> None:
    make(tmp_path)
    path = tmp_path / "annotations/instances_train2017.json"
    path.write_text(text, errors="surrogateescape")
    with pytest.raises(
        CorpusError, match=r"instances_train2017\.json: (not a readable JSON|lacks one)"
    ):
        open_coco(tmp_path, "train")


def test_folders_that_are_wrong(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="no such folder"):
        open_coco(tmp_path / "none", "train")
    with pytest.raises(CorpusError, match="there are: none"):
        open_coco(tmp_path, "train")
    with pytest.raises(CorpusError, match="'tarin' is no split of COCO"):
        open_coco(tmp_path, "tarin")
    (tmp_path / "val2017").mkdir()
    with pytest.raises(CorpusError, match="'val' is empty"):
        open_coco(tmp_path, "val")
