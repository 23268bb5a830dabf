"""VOC: the real sample against its XML and Pillow, splits of both years, and files that are wrong."""

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets.corpora.voc import CLASSES, open_voc, read_objects
from datasets.errors import CorpusError

DATA = Path(__file__).parents[3] / "../shared/data/VOCdevkit"
real = pytest.mark.skipif(not DATA.is_dir(), reason="no ../shared/data/VOCdevkit here")

BOX = "<bndbox><xmin>2</xmin><ymin>1</ymin><xmax>3.5</xmax><ymax>4</ymax></bndbox>"


def size_of(picture: Path) -> tuple[int, int]:
    with Image.open(picture) as opened:
        return opened.size


def make(
    year: Path, names: tuple[str, ...] = ("b", "a"), kinds: tuple[str, ...] = ("Main",)
) -> Path:
    """Writes a tiny year with a `train` list of each kind."""
    for folder in ("JPEGImages", "Annotations", "SegmentationClass"):
        (year / folder).mkdir(parents=True)
    for name in names:
        (year / f"JPEGImages/{name}.jpg").touch()
        Image.new("P", (3, 4), 20).save(year / f"SegmentationClass/{name}.png")
        text = f"<annotation><object><name>dog</name>{BOX}</object></annotation>"
        (year / f"Annotations/{name}.xml").write_text(text)
    for kind in kinds:
        (year / "ImageSets" / kind).mkdir(parents=True)
        (year / f"ImageSets/{kind}/train.txt").write_text("".join(f"{name}\n" for name in names))
    return year


@real
@pytest.mark.parametrize(
    "split, count",
    [
        ("2012-train", 592), ("2012-val", 170), ("2012-trainval", 762), ("2012-all", 762), ("seg-train", 592),
        ("seg-val", 170), ("2012-seg-trainval", 762), ("2007-train", 700), ("2007-val", 169), ("2007-all", 869),
    ],
)  # fmt: skip
def test_counts_of_the_real_splits(split: str, count: int) -> None:
    corpus = open_voc(DATA, split)
    records = list(corpus.records())
    assert corpus.num_records == len(records) == len({record.key for record in records}) == count
    assert corpus.classes == CLASSES and corpus.split == split
    assert all(record.image.is_file() for record in records)
    assert [record.key for record in records] == sorted(record.key for record in records)
    assert all((record.mask is not None) == ("seg" in split) for record in records)
    assert len(corpus.palette) == (21 if "seg" in split else 0)


@real
@pytest.mark.parametrize("year", ["2007", "2012"])
def test_objects_agree_with_the_xml(year: str) -> None:
    for record in open_voc(DATA / f"VOC{year}", "all").records():
        tree = ElementTree.parse(DATA / f"VOC{year}/Annotations/{record.key}.xml")
        size = [float(tree.findtext(f"size/{side}")) for side in ("width", "height")]
        items = tree.findall("object")
        assert [CLASSES[item["class"]] for item in record.label["objects"]] == [
            i.findtext("name") for i in items
        ]
        for ours, item in zip(record.label["objects"], items, strict=True):
            x0, y0, x1, y1 = (
                float(item.find("bndbox").findtext(c)) for c in ("xmin", "ymin", "xmax", "ymax")
            )
            assert ours["box"] == [x0 - 1, y0 - 1, x1, y1]
            assert 0 <= ours["box"][0] < ours["box"][2] <= size[0]
            assert 0 <= ours["box"][1] < ours["box"][3] <= size[1]


@real
def test_masks_are_the_index_plane_and_the_palette_is_the_files() -> None:
    corpus = open_voc(DATA, "seg-val")
    for record in corpus.records():
        with Image.open(DATA / f"VOC2012/SegmentationClass/{record.key}.png") as picture:
            expected = np.array(picture)
            assert picture.getpalette()[:63] == [
                channel for color in corpus.palette for channel in color
            ]
        plane = record.mask.read()
        np.testing.assert_array_equal(plane, expected)
        assert plane.shape == size_of(record.image)[::-1]


@real
def test_most_classes_in_the_mask_are_among_the_objects() -> None:
    shown = listed = 0
    for record in open_voc(DATA, "seg-val").records():
        for index in set(np.unique(record.mask.read()).tolist()) - {0, 255}:
            shown += 1
            listed += index - 1 in record.label["classes"]
    assert listed / shown > 0.9  # an index one off would give next to nothing


@real
def test_ambiguous_years_are_named() -> None:
    with pytest.raises(CorpusError, match="ambiguous here, say which: 2007-train or 2012-train"):
        open_voc(DATA, "train")
    assert open_voc(DATA / "VOC2007", "train").num_records == 700
    assert open_voc(DATA.parent, "2007-train").num_records == 700


def test_missing_tags_are_tolerated_and_difficult_is_marked(tmp_path: Path) -> None:
    path = tmp_path / "a.xml"
    path.write_text(
        f"<annotation><object><name>dog</name>{BOX}<part><name>head</name>{BOX}</part></object>"
        f"<object><name> tvmonitor </name><pose/><difficult>1</difficult>{BOX}</object></annotation>"
    )
    assert read_objects(path) == [
        {"class": 11, "box": [1, 0, 3.5, 4], "difficult": False, "crowd": False},
        {"class": 19, "box": [1, 0, 3.5, 4], "difficult": True, "crowd": False},
    ]


def test_a_picture_without_objects_is_kept(tmp_path: Path) -> None:
    year = make(tmp_path / "VOC2012")
    (year / "Annotations/a.xml").write_text("<annotation/>")
    first, second = open_voc(tmp_path, "train").records()
    assert (first.key, first.label) == ("a", {"classes": [], "objects": []})
    assert second.label["classes"] == [11]
    assert json.loads(json.dumps(second.label)) == second.label


def test_a_test_split_without_xml_has_no_classes(tmp_path: Path) -> None:
    year = make(tmp_path / "VOC2012")
    (year / "ImageSets/Main/test.txt").write_text("t\n")
    (year / "JPEGImages/t.jpg").touch()
    corpus = open_voc(tmp_path, "test")
    assert corpus.classes == () and [record.key for record in corpus.records()] == ["t"]
    (year / "ImageSets/Main/test.txt").write_text("t\na\n")
    with pytest.raises(CorpusError, match=r"first is t\.xml"):
        open_voc(tmp_path, "test")


def test_lists_with_a_second_column_and_blank_lines(tmp_path: Path) -> None:
    year = make(tmp_path / "VOC2012")
    (year / "ImageSets/Main/train.txt").write_bytes(b"\xef\xbb\xbfa  1\r\n\r\nb -1\r\n")
    assert [record.key for record in open_voc(tmp_path, "train").records()] == ["a", "b"]


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "not an XML file"),
        ("<annotation><object>", "not an XML file"),
        (
            "<annotation><object><name>unicorn</name></object></annotation>",
            "unknown class 'unicorn'",
        ),
        ("<annotation><object/></annotation>", "unknown class ''"),
        ("<annotation><object><name>dog</name></object></annotation>", "no bndbox/xmin"),
        (
            f"<annotation><object><name>dog</name>{BOX.replace('3.5', 'x')}</object></annotation>",
            "malformed part",
        ),
        (
            f"<annotation><object><name>dog</name>{BOX.replace('3.5', 'nan')}</object></annotation>",
            "xmax is nan",
        ),
        ('<!DOCTYPE a [<!ENTITY e "ha">]><annotation>&e;</annotation>', "read safely"),
        (
            '<!DOCTYPE a [<!ENTITY e SYSTEM "file:///etc/passwd">]><annotation>&e;</annotation>',
            "read safely",
        ),
        ('<!DOCTYPE a SYSTEM "http://localhost/x.dtd"><annotation/>', "read safely"),
        ('<?xml version="1.0" encoding="martian"?><annotation/>', "not an XML file"),
    ],
)
def test_xml_that_is_wrong_or_hostile(tmp_path: Path, text: str, message: str) -> None:
    year = make(tmp_path / "VOC2012")
    (year / "Annotations/b.xml").write_text(text)
    records = open_voc(tmp_path, "train").records()
    assert next(records).key == "a"
    with pytest.raises(CorpusError, match=message) as caught:
        next(records)
    assert "b.xml" in str(caught.value) and "\n" not in str(caught.value)


def test_xml_that_is_huge(tmp_path: Path) -> None:
    (tmp_path / "a.xml").write_text("<annotation>" + " " * 5_000_000 + "</annotation>")
    with pytest.raises(CorpusError, match="larger than 4,000,000 bytes"):
        read_objects(tmp_path / "a.xml")


@pytest.mark.parametrize(
    "listed, message",
    [
        ("a\nc\n", r"train\.txt: 1 of the files .* first is c\.jpg"),
        ("../../x\n", r"names '\.\./\.\./x'"),
        ("/etc/passwd\n", "no file inside"),
        ("a\na\n", "names a twice"),
        ("\n", "is empty"),
        ("\udcff\n", "the list cannot be read"),
    ],
)
def test_lists_that_are_wrong(tmp_path: Path, listed: str, message: str) -> None:
    year = make(tmp_path / "VOC2012")
    (year / "ImageSets/Main/train.txt").write_text(listed, errors="surrogateescape")
    with pytest.raises(CorpusError, match=message):
        open_voc(tmp_path, "train")


def test_pictures_in_folders_keep_keys_of_their_own(tmp_path: Path) -> None:
    year = make(tmp_path / "VOC2012")
    for folder in ("JPEGImages", "Annotations"):
        (year / folder / "deep").mkdir()
    (year / "JPEGImages/deep/a.jpg").touch()
    (year / "Annotations/deep/a.xml").write_text("<annotation/>")
    (year / "ImageSets/Main/train.txt").write_text("a\ndeep/a\n")
    assert len({record.key for record in open_voc(tmp_path, "train").records()}) == 2


def test_missing_masks_and_xml_are_found_on_opening(tmp_path: Path) -> None:
    year = make(tmp_path / "VOC2012", kinds=("Main", "Segmentation"))
    (year / "SegmentationClass/a.png").unlink()
    assert open_voc(tmp_path, "train").num_records == 2
    with pytest.raises(CorpusError, match=r"first is a\.png"):
        open_voc(tmp_path, "seg-train")
    (year / "Annotations/b.xml").unlink()
    with pytest.raises(CorpusError, match=r"first is b\.xml"):
        open_voc(tmp_path, "train")


def test_folders_and_splits_that_are_wrong(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="no such folder"):
        open_voc(tmp_path / "none", "train")
    with pytest.raises(CorpusError, match="no VOC here"):
        open_voc(tmp_path, "train")
    make(tmp_path / "VOC2012")
    with pytest.raises(CorpusError, match="'seg_train' is no split of VOC"):
        open_voc(tmp_path, "seg_train")
    with pytest.raises(
        CorpusError, match=r"no split '2007-train' here; there are: VOC2012 with train all"
    ):
        open_voc(tmp_path, "2007-train")
    with pytest.raises(CorpusError, match="no split 'val' here"):
        open_voc(tmp_path / "VOC2012", "val")
