"""COCO: the real sample against pycocotools, layouts, and files that are wrong."""

import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw
from pycocotools.coco import COCO

from datasets.corpora.coco import open_coco
from datasets.errors import CorpusError

DATA = Path(__file__).parents[3] / "../shared/data/coco"
real = pytest.mark.skipif(
    not DATA.is_dir(),
    reason="no ../shared/data/coco here",
)


def size_of(picture: Path) -> tuple[int, int]:
    with Image.open(picture) as opened:
        return opened.size


def make(root: Path, split: str = "train2017", **parts: Any) -> Path:
    """Write a tiny COCO folder; `parts` replace those of its JSON, None leaves one out."""
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
@pytest.mark.parametrize(
    "split, count",
    [
        ("train", 80),
        ("val2017", 78),
        ("unlabeled", 531),
    ],
)
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
            assert item["box"] == [
                x,
                y,
                x + width,
                y + height,
            ]
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
        expected = np.zeros(
            size_of(record.image)[::-1],
            np.uint8,
        )
        for plane, annotation in zip(planes, annotations, strict=True):
            if annotation["iscrowd"]:
                expected[plane] = 255
        for plane, annotation in sorted(things, key=lambda thing: -thing[0].sum()):
            expected[plane] = ids.index(annotation["category_id"]) + 1
        np.testing.assert_array_equal(
            record.mask.read(),
            expected,
        )


@real
def test_masks_agree_with_polygons_drawn_by_pillow(oracle: COCO) -> None:
    ids = sorted(oracle.getCatIds())
    same = total = 0

    for record in list(open_coco(DATA, "val").records())[:30]:
        annotations = oracle.loadAnns(oracle.getAnnIds(imgIds=[int(record.key)]))
        if any(annotation["iscrowd"] for annotation in annotations):
            continue
        picture = Image.new(
            "L",
            size_of(record.image),
        )
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

    assert (
        corpus.name,
        corpus.split,
        corpus.classes,
    ) == ("coco", "train", ("car", "toothbrush"))
    assert (
        first.key,
        second.key,
    ) == ("1", "2")
    assert first.label["classes"] == [0, 1]
    assert first.label["objects"][0] == {
        "class": 1, "box": [1, 2, 4, 3.5], "difficult": False, "crowd": False,
    }  # fmt: skip

    np.testing.assert_array_equal(
        first.mask.read(),
        [
            [255, 0, 0, 0, 0],
            [0] * 5,
            [0, 2, 2, 2, 0],
            [0, 2, 2, 2, 0],
        ],
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

    assert (
        corpus.classes,
        corpus.palette,
        corpus.num_records,
    ) == ((), (), 2)
    assert corpus.note == "no instances file for train2017, so its pictures have no labels"
    assert [record.image.name for record in corpus.records()] == ["1.jpg", "2.jpg"]
    assert all(record.mask is None for record in corpus.records())


def test_more_classes_than_a_mask_can_hold_go_without_masks(tmp_path: Path) -> None:
    categories = [{"id": i, "name": f"c{i}"} for i in range(300)]
    corpus = open_coco(
        make(tmp_path, categories=categories),
        "train",
    )

    assert len(corpus.classes) == 300
    assert corpus.palette == ()
    # Not without a word: outlines that the file has are left out.
    assert corpus.note == "no masks: 300 classes, and a mask holds 254"
    assert next(corpus.records()).mask is None


IMAGE = {"id": 1, "file_name": "1.jpg", "height": 4, "width": 5}
ANNOTATION = {
    "id": 8,
    "image_id": 1,
    "category_id": 3,
    "bbox": [0, 0, 1, 1],
}


@pytest.mark.parametrize(
    "parts, message",
    [
        ({"images": None}, "lacks one of the lists"),
        ({"annotations": 3}, "lacks one of the lists"),
        ({"categories": []}, "lists no categories"),
        ({"categories": [{"id": 3}]}, "the category 3 has no name"),
        ({"categories": [{"id": 3, "name": 7}]}, "the category 3 has the name 7; write a name in"),
        (
            {"categories": [{"id": 3, "name": "car\ud83d"}]},
            r"the category 3, 'car\\ud83d', holds half of a character",
        ),
        (
            {"categories": [{"id": [3], "name": "a"}]},
            "categories are missing or have no ids",
        ),
        (
            {
                "categories": [
                    {"id": 3, "name": "a"},
                    {"id": 4, "name": "a"},
                ]
            },
            r"lists the category 'a' \(id 4\) twice",
        ),
        ({"images": []}, "is empty"),
        ({"images": [IMAGE, IMAGE]}, r"gives the id 1 to 1\.jpg and to 1\.jpg"),
        (
            {"images": [{**IMAGE, "id": 7}, IMAGE]},
            r"lists the file 1\.jpg twice, as pictures 7 and 1",
        ),
        (
            {"images": [{**IMAGE, "height": "4"}]},
            "no proper height in instances_train2017.json: picture 1",
        ),
        (
            {"images": [{**IMAGE, "width": -4}]},
            "no proper width in instances_train2017.json: picture 1",
        ),
        ({"images": [{"id": 1}]}, "picture 1 has no proper file_name"),
        (
            {"images": [{**IMAGE, "id": None}]},
            "picture None has no proper id",
        ),
        ({"images": [3]}, "malformed"),
        (
            {"images": [{**IMAGE, "file_name": "../1.jpg"}]},
            "no file inside",
        ),
        (
            {"images": [{**IMAGE, "file_name": "..\\1.jpg"}]},
            "no file inside",
        ),
        (
            {"images": [{**IMAGE, "file_name": "/etc/passwd"}]},
            "no file inside the folder of its pictures",
        ),
        (
            {"images": [{**IMAGE, "file_name": "3.jpg"}]},
            r"1 of the files .* first is 3\.jpg",
        ),
    ],
)
def test_files_that_contradict_themselves_are_refused(
    tmp_path: Path, parts: dict[str, Any], message: str
) -> None:
    make(tmp_path, **parts)
    with pytest.raises(CorpusError, match=message) as caught:
        open_coco(tmp_path, "train")
    assert "instances_train2017.json" in str(caught.value)
    assert "\n" not in str(caught.value)


BAD_OBJECTS = [
    ({"category_id": 4}, "its category is not listed (4)"),
    ({"category_id": None}, "its category is not listed (None)"),
    (
        {"bbox": [1, 2, 3]},
        "is not four numbers",
    ),
    ({"bbox": "everywhere"}, "is not four numbers"),
    (
        {"bbox": [1, 2, 3, float("inf")]},
        "its box is not finite",
    ),
    (
        {"bbox": [1, 2, float("nan"), 1]},
        "its box is not finite",
    ),
    (
        {"bbox": [1, 2, 10**400, 1]},
        "is not four numbers",
    ),
    ({"bbox": None}, "it has no bbox"),
    ({"bbox": []}, "it has no bbox"),
    (
        {"bbox": [1, 2, 0, 1]},
        "its box has no area",
    ),
    (
        {"bbox": [1, 2, 2, -1]},
        "its box has no area",
    ),
    (
        {"bbox": [7, 2, 2, 1]},
        "lies outside the picture (5 x 4)",
    ),
]


@pytest.mark.parametrize("change, reason", BAD_OBJECTS)
def test_a_bad_annotation_costs_its_object_and_is_named(
    tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    good = {**ANNOTATION, "id": 9}
    make(
        tmp_path,
        annotations=[{**ANNOTATION, **change}, good],
    )
    first, second = open_coco(tmp_path, "train").records()

    assert len(first.label["objects"]) == 1
    assert not second.label["objects"]
    (dropped,) = first.dropped
    assert dropped.endswith(": annotation 8") and reason in dropped
    assert not first.fault and not second.dropped


@pytest.mark.parametrize("change, reason", BAD_OBJECTS)
def test_a_file_of_bad_annotations_only_is_refused(
    tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    make(
        tmp_path,
        annotations=[{**ANNOTATION, **change}],
    )

    with pytest.raises(
        CorpusError, match=f"none of its annotations can be used: .*{re.escape(reason)}"
    ):
        open_coco(tmp_path, "train")


def test_an_object_without_a_box_is_drawn_in_the_mask_all_the_same(tmp_path: Path) -> None:
    outline = [[0, 0, 2, 0, 2, 2, 0, 2]]
    known = {"id": 1, "image_id": 1, "category_id": 3, "segmentation": outline}
    unknown = {
        **ANNOTATION,
        "category_id": 77,
        "segmentation": [[3, 2, 5, 2, 5, 4, 3, 4]],
    }
    make(
        tmp_path,
        annotations=[known, unknown, {**ANNOTATION, "image_id": 2}],
    )

    plane = next(open_coco(tmp_path, "train").records()).mask.read()
    np.testing.assert_array_equal(
        plane[:2, :2],
        1,
    )
    np.testing.assert_array_equal(
        plane[2:, 3:],
        255,
    )


def test_a_picture_without_a_size_costs_its_record(tmp_path: Path) -> None:
    make(
        tmp_path,
        images=[
            IMAGE,
            {"id": 2, "file_name": "2.jpg", "height": 4},
        ],
    )
    first, second = open_coco(tmp_path, "train").records()

    assert not first.fault
    # What differs from picture to picture comes last: they are counted by what comes first.
    assert second.fault == "it has no proper width in instances_train2017.json: picture 2"


@pytest.mark.parametrize(
    "as_text",
    [str, "{:012d}".format, float],
)
def test_ids_as_text_and_as_numbers_are_one(tmp_path: Path, as_text: Callable[[int], Any]) -> None:
    images = [
        {**IMAGE, "id": as_text(1)},
        {**IMAGE, "id": as_text(2), "file_name": "2.jpg"},
    ]
    categories = [{"id": as_text(3), "name": "car"}]
    make(
        tmp_path,
        images=images,
        annotations=[ANNOTATION],
        categories=categories,
    )
    first, second = open_coco(tmp_path, "train").records()

    assert len(first.label["objects"]) == 1
    assert not second.label["objects"]


def test_annotations_that_match_no_picture_are_counted(tmp_path: Path) -> None:
    strangers = [{**ANNOTATION, "id": number, "image_id": "x"} for number in range(20, 25)]
    make(
        tmp_path,
        annotations=[
            ANNOTATION,
            *strangers,
            3,
            {"id": 1},
        ],
    )
    (left,) = open_coco(tmp_path, "train").left_out

    assert left.count == 7
    assert left.examples[0] == "annotation 20"
    assert len(left.examples) == 3
    assert (
        left.reason == "annotations of instances_train2017.json that belong to no picture it lists"
    )


def test_annotations_none_of_which_matches_a_picture_are_refused(tmp_path: Path) -> None:
    make(
        tmp_path,
        annotations=[{**ANNOTATION, "image_id": "a.jpg"}] * 3,
    )

    with pytest.raises(
        CorpusError, match=r"none of its 3 annotations belongs .* image_id 'a\.jpg'"
    ):
        open_coco(tmp_path, "train")


def test_an_annotation_file_without_annotations_is_taken(tmp_path: Path) -> None:
    make(tmp_path, annotations=[])
    assert [record.label["objects"] for record in open_coco(tmp_path, "train").records()] == [
        [],
        [],
    ]


def test_the_stated_size_goes_with_the_record(tmp_path: Path) -> None:
    first, _ = open_coco(make(tmp_path), "train").records()
    assert first.label_size == (5, 4)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encodings_of_windows_are_read(tmp_path: Path, encoding: str) -> None:
    path = make(tmp_path) / "annotations/instances_train2017.json"
    path.write_text(path.read_text(), encoding=encoding)
    assert open_coco(tmp_path, "train").num_records == 2


def renamed(tmp_path: Path, *names: str, key: str = "file_name") -> list[str]:
    """Open a set whose two images the JSON names like this; return the files that were found."""
    images = [{"id": i, key: name, "height": 4, "width": 5} for i, name in enumerate(names, 1)]
    corpus = open_coco(
        make(tmp_path, images=images),
        "train",
    )
    records = list(corpus.records())

    assert len({record.key for record in records}) == 2
    return [record.image.relative_to(tmp_path).as_posix() for record in records]


@pytest.mark.parametrize(
    "prefix", ["train2017/", "./train2017/", "images/train2017/", "data\\", "C:\\sets\\train\\"]
)
def test_names_with_folders_are_found(tmp_path: Path, prefix: str) -> None:
    names = renamed(
        tmp_path,
        f"{prefix}1.jpg",
        f"{prefix}2.jpg",
    )
    assert names == ["train2017/1.jpg", "train2017/2.jpg"]


def test_lviss_urls_stand_for_names(tmp_path: Path) -> None:
    host = "http://images.cocodataset.org/train2017"
    names = renamed(
        tmp_path,
        f"{host}/1.jpg",
        f"{host}/2.jpg",
        key="coco_url",
    )

    assert names == ["train2017/1.jpg", "train2017/2.jpg"]


def test_names_that_differ_in_case_or_unicode_form_are_found(tmp_path: Path) -> None:
    make(tmp_path)
    folder = tmp_path / "train2017"
    (folder / "1.jpg").rename(folder / "1.JPG")
    (folder / "2.jpg").rename(folder / "Cafe\u0301.jpg")
    path = tmp_path / "annotations/instances_train2017.json"
    path.write_text(path.read_text().replace("2.jpg", "caf\u00e9.JPG"))

    records = list(open_coco(tmp_path, "train").records())
    assert sorted(record.image.name for record in records) == ["1.JPG", "Cafe\u0301.jpg"]
    assert all(record.image.is_file() for record in records)


# The folder of the images and the instances file, as other tools lay them out; and the split to ask
# for.
LAYOUTS = [
    ("train", "train/_annotations.coco.json", "train"),
    ("valid", "valid/_annotations.coco.json", "val"),
    ("images", "annotations/instances_default.json", "default"),
    ("images/default", "annotations/instances_default.json", "default"),
    ("train", "annotations/instances_train.json", "train"),
    ("train", "annotations/instances_train2017.json", "train"),
    ("images/train", "annotations/train.json", "train"),
    ("images/train2017", "annotations/instances_train2017.json", "train"),
    ("images", "annotations/instances_train.json", "train"),
    ("train2017", "annotations/lvis_v1_train2017.json", "train"),
    (".", "train.json", "train"),
    ("my photos", "annotations/my photos.json", "my photos"),
]


@pytest.mark.parametrize("folder, file, split", LAYOUTS)
def test_layouts_of_other_tools(tmp_path: Path, folder: str, file: str, split: str) -> None:
    source = make(tmp_path / "made")
    root = tmp_path / "root"
    for path in (root / folder, (root / file).parent):
        path.mkdir(parents=True, exist_ok=True)
    for name in ("1.jpg", "2.jpg"):
        (source / "train2017" / name).rename(root / folder / name)
    (source / "annotations/instances_train2017.json").rename(root / file)

    corpus = open_coco(root, split)
    first, second = corpus.records()
    assert (
        first.key,
        second.key,
        corpus.classes,
    ) == ("1", "2", ("car", "toothbrush"))
    assert len(first.label["objects"]) == 2
    assert first.image.is_file()


def test_pictures_without_a_known_extension_are_counted(tmp_path: Path) -> None:
    for name in ("1.jpg", "noext", "odd.foo", "raw.CR2", "notes.txt", "x.bin"):
        (tmp_path / "test2017").mkdir(exist_ok=True)
        (tmp_path / "test2017" / name).write_bytes(b"\xff\xd8\xff\xe0 a JPEG")
    (tmp_path / "test2017/x.bin").write_bytes(b"no picture")
    left = {
        item.reason.split(":")[0].split(",")[0]: item
        for item in open_coco(tmp_path, "test").left_out
    }

    assert left["pictures without a known extension"].examples == ("noext", "odd.foo")
    assert left["CR2 files"].count == 1
    assert len(left) == 2


@pytest.mark.parametrize(
    "text",
    ["", "{", "[" * 100_000, '"x"', "\udcff", "[1]"],
)
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

    for split in ("tarin", "../train2017", ""):
        with pytest.raises(CorpusError, match=f"'{split}' is no split of COCO"):
            open_coco(tmp_path, split)
    (tmp_path / "set.tar").touch()

    with pytest.raises(CorpusError, match=r"set\.tar: is a file, not a folder; unpack it"):
        open_coco(tmp_path / "set.tar", "train")

    (tmp_path / "val2017").mkdir()

    with pytest.raises(CorpusError, match="'val' is empty"):
        open_coco(tmp_path, "val")


@pytest.mark.parametrize(
    "iscrowd, crowd",
    [
        ("0", False),
        ("1", True),
        ("0.0", False),
        (True, True),
        ("false", False),
        ("True", True),
        ("", False),
    ],
)
def test_crowds_and_areas_may_be_text(tmp_path: Path, iscrowd: Any, crowd: bool) -> None:
    make(tmp_path, annotations=[{**ANNOTATION, "iscrowd": iscrowd, "area": "3.5"}])
    (item,) = next(iter(open_coco(tmp_path, "train").records())).label["objects"]

    assert item["crowd"] is crowd
    assert item["area"] == 3.5


def test_line_breaks_in_a_category_are_spaces(tmp_path: Path) -> None:
    make(tmp_path, categories=[{"id": 3, "name": "traffic\n light"}, {"id": 90, "name": "a  b"}])
    assert open_coco(tmp_path, "train").classes == ("traffic light", "a  b")


def test_an_outline_of_an_unknown_form_is_counted_and_its_object_kept(tmp_path: Path) -> None:
    make(tmp_path, annotations=[{**ANNOTATION, "segmentation": ""}])
    first, _ = open_coco(tmp_path, "train").records()

    assert len(first.label["objects"]) == 1
    assert first.dropped == (
        "its outline is no list of polygons, so that its box is void: annotation 8",
    )
    assert first.mask is not None
    assert first.mask.read().tolist()[0] == [255, 0, 0, 0, 0]


def test_pictures_in_deeper_folders_are_counted_without_a_json_file(tmp_path: Path) -> None:
    for name in ("train2017/a.jpg", "train2017/sub/deep/b.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    corpus = open_coco(tmp_path, "train")

    assert corpus.num_records == 1
    assert [(left.count, left.examples) for left in corpus.left_out] == [
        (1, ("train2017/sub/deep/b.jpg",))
    ]
