"""VOC: the real sample against its XML and Pillow, splits of both years, files that are wrong."""

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets.corpora.voc import CLASSES, open_voc
from datasets.corpora.voc_xml import read_annotation
from datasets.errors import CorpusError

DATA = Path(__file__).parents[3] / "../shared/data/VOCdevkit"
real = pytest.mark.skipif(
    not DATA.is_dir(),
    reason="no ../shared/data/VOCdevkit here",
)

CLASS_OF = {name: index for index, name in enumerate(CLASSES)}
# With a fraction, as some tools write them.
BOX = "<bndbox><xmin>2</xmin><ymin>1</ymin><xmax>3.5</xmax><ymax>4</ymax></bndbox>"


def size_of(picture: Path) -> tuple[int, int]:
    with Image.open(picture) as opened:
        return opened.size


def make(
    year: Path,
    names: tuple[str, ...] = ("b", "a"),
    kinds: tuple[str, ...] = ("Main",),
) -> Path:
    """Write a tiny year with a `train` list of each kind."""
    for folder in ("JPEGImages", "Annotations", "SegmentationClass"):
        (year / folder).mkdir(parents=True)

    for name in names:
        # Empty: no adapter opens a picture to list it.
        (year / f"JPEGImages/{name}.jpg").touch()
        # Class 20 everywhere: what is read is then known.
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
        ("2012-train", 592), ("2012-val", 170), ("2012-trainval", 762), ("2012-all", 762),
        ("seg-train", 592),
        ("seg-val", 170), ("2012-seg-trainval", 762), ("2007-train", 700), ("2007-val", 169),
        ("2007-test", 830),
        ("2007-all", 1699), ("seg-all", 762),
    ],
)  # fmt: skip
def test_counts_of_the_real_splits(split: str, count: int) -> None:
    corpus = open_voc(DATA, split)
    records = list(corpus.records())

    assert corpus.num_records == len(records) == len({record.key for record in records}) == count
    assert corpus.classes == CLASSES
    assert corpus.split == split
    assert all(record.image.is_file() for record in records)
    # Sorted, so that the order of the disk never reaches a packed set.
    assert [record.key for record in records] == sorted(record.key for record in records)
    # Only the segmentation lists have masks, though files lie there for others.
    assert all((record.mask is not None) == ("seg" in split) for record in records)
    assert len(corpus.palette) == (21 if "seg" in split else 0)


@real
@pytest.mark.parametrize("year", ["2007", "2012"])
def test_objects_agree_with_the_xml(year: str) -> None:
    for record in open_voc(DATA / f"VOC{year}", "all").records():
        # Python's own reader: ours must not be compared with itself.
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
            # VOC counts pixels from 1, and its last pixel is within the box.
            assert ours["box"] == [
                x0 - 1,
                y0 - 1,
                x1,
                y1,
            ]
            assert 0 <= ours["box"][0] < ours["box"][2] <= size[0]
            assert 0 <= ours["box"][1] < ours["box"][3] <= size[1]


@real
def test_masks_are_the_index_plane_and_the_palette_is_the_files() -> None:
    corpus = open_voc(DATA, "seg-val")

    for record in corpus.records():
        with Image.open(DATA / f"VOC2012/SegmentationClass/{record.key}.png") as picture:
            # Pillow's plane of a palette picture holds the indices.
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
        # Without background and void, which no object has.
        for index in set(np.unique(record.mask.read()).tolist()) - {0, 255}:
            shown += 1
            listed += index - 1 in record.label["classes"]
    assert listed / shown > 0.9  # an index one off would give next to nothing


@real
def test_ambiguous_years_are_named() -> None:
    with pytest.raises(CorpusError, match="ambiguous here, say which: 2007-train or 2012-train"):
        open_voc(DATA, "train")
    # A year's own folder says which is meant, and so does the split's name.
    assert open_voc(DATA / "VOC2007", "train").num_records == 700
    assert open_voc(DATA.parent, "2007-train").num_records == 700


def test_missing_tags_are_tolerated_and_difficult_is_marked(tmp_path: Path) -> None:
    path = tmp_path / "a.xml"
    path.write_text(
        # A part has a box of its own, which is no object.
        f"<annotation><object><name>dog</name>{BOX}<part><name>head</name>{BOX}</part></object>"
        f"<object><name> tvmonitor "
        f"</name><pose/><difficult>1</difficult>{BOX}</object></annotation>"
    )
    annotation = read_annotation(path, CLASS_OF)

    assert annotation.objects == [
        {
            "class": 11,
            "box": [1, 0, 3.5, 4],
            "difficult": False,
            "crowd": False,
        },
        {
            "class": 19,
            "box": [1, 0, 3.5, 4],
            "difficult": True,
            "crowd": False,
        },
    ]
    assert annotation.size is None
    assert annotation.dropped == ()


@pytest.mark.parametrize(
    "size, expected",
    [
        ("<width>500</width><height>375</height><depth>3</depth>", (500, 375)),
        ("<width> 500.0 </width><height>375</height>", (500, 375)),
        ("<width>0</width><height>0</height>", None),
        ("<width>wide</width><height>375</height>", None),
        ("<width>500</width>", None),
        ("<width>inf</width><height>1e999</height>", None),
    ],
)
def test_the_stated_size_goes_with_the_record(
    tmp_path: Path, size: str, expected: tuple[int, int] | None
) -> None:
    year = make(tmp_path / "VOC2012")
    (year / "Annotations/a.xml").write_text(f"<annotation><size>{size}</size></annotation>")
    first, second = open_voc(tmp_path, "train").records()
    assert first.label_size == expected
    assert second.label_size is None


def test_a_picture_without_objects_is_kept(tmp_path: Path) -> None:
    year = make(tmp_path / "VOC2012")
    (year / "Annotations/a.xml").write_text("<annotation/>")
    first, second = open_voc(tmp_path, "train").records()

    assert (
        first.key,
        first.label,
    ) == (
        "a",
        {"classes": [], "objects": []},
    )
    assert second.label["classes"] == [11]
    assert json.loads(json.dumps(second.label)) == second.label


def test_a_test_split_without_xml_has_no_classes(tmp_path: Path) -> None:
    year = make(tmp_path / "VOC2012")
    (year / "ImageSets/Main/test.txt").write_text("t\n")
    (year / "JPEGImages/t.jpg").touch()
    corpus = open_voc(tmp_path, "test")

    assert corpus.classes == ()
    assert [record.key for record in corpus.records()] == ["t"]
    # Half of it has labels: that is a damaged copy, no test set.
    (year / "ImageSets/Main/test.txt").write_text("t\na\n")

    with pytest.raises(CorpusError, match=r"first is t\.xml"):
        open_voc(tmp_path, "test")


def test_lists_with_a_second_column_and_blank_lines(tmp_path: Path) -> None:
    year = make(tmp_path / "VOC2012")
    # A byte order mark and Windows' line ends, as copied lists have them.
    (year / "ImageSets/Main/train.txt").write_bytes(b"\xef\xbb\xbfa  1\r\n\r\nb -1\r\n")
    assert [record.key for record in open_voc(tmp_path, "train").records()] == ["a", "b"]


@pytest.mark.parametrize("ending", ["", ".jpg", ".JPG", "  -1"])
def test_names_with_spaces_and_extensions(tmp_path: Path, ending: str) -> None:
    names = ("my photo 1", "my photo 2", "2012_000001")
    year = make(tmp_path / "VOC2012", names)
    text = "".join(f"{name}{ending}\n" for name in names)
    (year / "ImageSets/Main/train.txt").write_text(text)
    records = list(open_voc(tmp_path, "train").records())
    assert sorted(record.image.stem for record in records) == sorted(names)
    assert all(record.image.is_file() and record.label["objects"] for record in records)


def test_names_that_differ_in_case_unicode_form_or_extension_are_found(tmp_path: Path) -> None:
    year = make(
        tmp_path / "VOC2012",
        ("a", "Cafe\u0301", "c"),
        ("Main", "Segmentation"),
    )
    (year / "JPEGImages/a.jpg").rename(year / "JPEGImages/a.JPEG")
    (year / "JPEGImages/c.jpg").rename(year / "JPEGImages/c.png")
    (year / "SegmentationClass/a.png").rename(year / "SegmentationClass/A.PNG")
    (year / "ImageSets/Segmentation/train.txt").write_text("A\ncaf\u00e9\nc\n")
    records = list(open_voc(tmp_path, "seg-train").records())

    assert [record.image.name for record in records] == ["a.JPEG", "c.png", "Cafe\u0301.jpg"]
    assert all(record.mask.read().shape == (4, 3) for record in records)


BAD_OBJECTS = [
    (
        "<object><name>unicorn</name></object>",
        "its class is unknown; classes.txt can list your own (unicorn)",
    ),
    ("<object/>", "its class is unknown; classes.txt can list your own (no name)"),
    ("<object><name>dog</name></object>", "it has no bndbox/xmin"),
    (
        f"<object><name>dog</name>{BOX.replace('3.5', 'x')}</object>",
        "xmax is no number ('x')",
    ),
    (
        f"<object><name>dog</name>{BOX.replace('3.5', '')}</object>",
        "it has no bndbox/xmax",
    ),
    (
        f"<object><name>dog</name>{BOX.replace('3.5', 'nan')}</object>",
        "box is not finite",
    ),
    (
        f"<object><name>dog</name>{BOX.replace('3.5', '1e9')}</object>",
        "box is not finite",
    ),
    (
        f"<object><name>dog</name>{BOX.replace('3.5', '1')}</object>",
        "box has no area (0 x 4)",
    ),
    (
        f"<object><name>dog</name><difficult>maybe</difficult>{BOX}</object>",
        "its difficult is no number ('maybe')",
    ),
]


@pytest.mark.parametrize("text, reason", BAD_OBJECTS)
def test_a_bad_object_is_dropped_and_named(tmp_path: Path, text: str, reason: str) -> None:
    year = make(tmp_path / "VOC2012")
    good = f"<object><name>cat</name>{BOX}</object>"
    (year / "Annotations/b.xml").write_text(f"<annotation>{good}{text}</annotation>")
    first, second = open_voc(tmp_path, "train").records()

    assert [item["class"] for item in second.label["objects"]] == [CLASSES.index("cat")]
    (dropped,) = second.dropped
    assert dropped.endswith(": object 2") and reason in dropped
    assert not first.dropped and not second.fault


def test_a_box_outside_of_the_stated_size_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "a.xml"
    far = BOX.replace("2", "20", 1).replace(
        "3.5",
        "30",
    )
    size = "<size><width>5</width><height>5</height></size>"
    path.write_text(f"<annotation>{size}<object><name>dog</name>{far}</object></annotation>")
    annotation = read_annotation(path, CLASS_OF)

    assert "lies outside the picture (5 x 5)" in annotation.dropped[0]


DTD = "its XML file has a <!DOCTYPE> declaration"


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "its XML file is no XML file"),
        ("<annotation><object>", "its XML file is no XML file"),
        ('<?xml version="1.0" encoding="martian"?><annotation/>', "its XML file is no XML file"),
        ("<!DOCTYPE annotation><annotation/>", DTD),
        ('<!DOCTYPE a [<!ENTITY e "ha">]><annotation>&e;</annotation>', DTD),
        ('<!DOCTYPE a [<!ENTITY e SYSTEM "file:///etc/passwd">]><annotation>&e;</annotation>', DTD),
        ('<!DOCTYPE a SYSTEM "http://localhost/x.dtd"><annotation/>', DTD),
        (
            "<annotation>" + " " * 5_000_000 + "</annotation>",
            "its XML file is larger than 4,000,000 bytes",
        ),
    ],
)
def test_xml_that_is_wrong_or_hostile_costs_its_picture(
    tmp_path: Path, text: str, message: str
) -> None:
    year = make(tmp_path / "VOC2012")
    (year / "Annotations/b.xml").write_text(text)
    first, second = open_voc(tmp_path, "train").records()

    assert not first.fault
    assert first.label["objects"]
    assert message in second.fault
    assert second.fault.endswith(": b.xml")
    assert "\n" not in second.fault


def test_a_split_with_masks_needs_no_xml_files(tmp_path: Path) -> None:
    year = make(
        tmp_path / "VOC2012",
        kinds=("Segmentation",),
    )
    (year / "Annotations/b.xml").unlink()
    corpus = open_voc(tmp_path, "seg-train")
    assert [len(record.label["objects"]) for record in corpus.records()] == [1, 0]
    (left,) = corpus.left_out
    assert left.reason == "pictures without an XML file, so without objects"
    assert left.examples == ("b.jpg",)

    (year / "Annotations/a.xml").unlink()
    (year / "labelmap.txt").write_text("background:0,0,0::\nroad:1,2,3::\n")
    corpus = open_voc(tmp_path, "seg-train")
    assert corpus.classes == ("road",)
    assert corpus.left_out == ()


def test_grey_index_masks_are_read_as_palette_ones(tmp_path: Path) -> None:
    year = make(
        tmp_path / "VOC2012",
        kinds=("Segmentation",),
    )
    Image.new("L", (3, 4), 15).save(year / "SegmentationClass/a.png")
    first, second = open_voc(tmp_path, "seg-train").records()
    with Image.open(year / "SegmentationClass/b.png") as palette:
        expected = np.asarray(palette)

    assert (first.mask.read() == 15).all()
    np.testing.assert_array_equal(
        second.mask.read(),
        expected,
    )


def test_any_list_is_a_split_and_augmented_ones_have_their_own_masks(tmp_path: Path) -> None:
    year = make(
        tmp_path / "VOC2012",
        kinds=("Main", "Segmentation"),
    )
    for kind in ("Main", "Segmentation"):
        (year / f"ImageSets/{kind}/trainaug.txt").write_text("a\n")
        (year / f"ImageSets/{kind}/my-list.v2.txt").write_text("b\n")
    assert open_voc(tmp_path, "my-list.v2").num_records == 1
    assert open_voc(tmp_path, "2012-seg-my-list.v2").num_records == 1
    (record,) = open_voc(tmp_path, "seg-trainaug").records()
    assert record.mask.path.parent.name == "SegmentationClass"

    (year / "SegmentationClassAug").mkdir()
    Image.new("L", (3, 4), 7).save(year / "SegmentationClassAug/a.png")
    (record,) = open_voc(tmp_path, "seg-trainaug").records()
    assert (record.mask.read() == 7).all()
    with pytest.raises(CorpusError, match=r"VOC2012 with my-list\.v2 train trainaug seg-my"):
        open_voc(tmp_path, "nothing")


def with_class(year: Path, name: str, file: str) -> None:
    text = f"<annotation><object><name>{name}</name>{BOX}</object></annotation>"
    (year / f"Annotations/{file}.xml").write_text(text)


def test_own_classes_are_those_of_a_list(tmp_path: Path) -> None:
    year = make(
        tmp_path / "VOC2012",
        kinds=("Main", "Segmentation"),
    )
    with_class(year, "helmet", "a")
    (year / "classes.txt").write_text("background\nhelmet\ndog\n")
    corpus = open_voc(tmp_path, "seg-train")

    assert corpus.classes == ("helmet", "dog")
    assert len(corpus.palette) == 3
    assert [record.label["classes"] for record in corpus.records()] == [[0], [1]]


def test_own_classes_are_the_names_in_all_xml_files_if_none_is_vocs(tmp_path: Path) -> None:
    year = make(
        tmp_path / "VOC2012",
        ("a", "b", "c"),
    )
    for name, file in (("vest", "a"), ("helmet", "b"), ("glove", "c")):
        with_class(year, name, file)
    (year / "ImageSets/Main/val.txt").write_text("c\n")
    (year / "ImageSets/Main/train.txt").write_text("a\nb\n")
    train = open_voc(tmp_path, "train")
    val = open_voc(tmp_path, "val")

    assert train.classes == val.classes == ("glove", "helmet", "vest")
    assert "3 names in the XML files (glove, helmet, vest)" in train.note
    assert [record.label["classes"] for record in train.records()] == [[2], [1]]


def test_a_class_that_is_not_vocs_among_those_that_are_is_dropped(tmp_path: Path) -> None:
    year = make(tmp_path / "VOC2012")
    with_class(year, "helmet", "a")
    corpus = open_voc(tmp_path, "train")
    first, second = corpus.records()
    assert corpus.classes == CLASSES
    assert second.label["classes"] == [11]
    assert "(helmet): object 1" in first.dropped[0]


def test_color_coded_masks_need_a_label_map(tmp_path: Path) -> None:
    year = make(
        tmp_path / "VOC2012",
        kinds=("Segmentation",),
    )
    for name in "ab":
        Image.new(
            "RGB",
            (3, 4),
            (128, 64, 0),
        ).save(year / f"SegmentationClass/{name}.png")

    with pytest.raises(CorpusError, match=r"list them in labelmap\.txt"):
        next(open_voc(tmp_path, "seg-train").records()).mask.read()
    (year / "labelmap.txt").write_text(
        "# label:color_rgb:parts:actions\nbackground:0,0,0::\nhelmet:0,0,9::\ndog:128,64,0::\n"
    )
    corpus = open_voc(tmp_path, "seg-train")
    record = next(corpus.records())

    assert corpus.classes == ("helmet", "dog")
    assert (record.mask.read() == 2).all()


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
    year = make(
        tmp_path / "VOC2012",
        kinds=("Main", "Segmentation"),
    )
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

    for split in ("../train", "train/x", ""):
        with pytest.raises(CorpusError, match=f"'{split}' is no split of VOC"):
            open_voc(tmp_path, split)

    with pytest.raises(
        CorpusError, match=r"no split '2007-train' here; there are: VOC2012 with train all"
    ):
        open_voc(tmp_path, "2007-train")

    with pytest.raises(CorpusError, match="no split 'val' here"):
        open_voc(tmp_path / "VOC2012", "val")


def test_objects_none_of_which_has_a_listed_class_are_refused(tmp_path: Path) -> None:
    year = make(tmp_path / "VOC2012", kinds=("Main", "Segmentation"))
    (year / "classes.txt").write_text("Dog\n")
    with pytest.raises(
        CorpusError, match=r"train\.txt: none .* its class is unknown; .* \(dog\).* in a\.xml"
    ):
        open_voc(tmp_path, "train")

    # Masks have the classes of their indices, whatever the objects are called.
    assert open_voc(tmp_path, "seg-train").classes == ("Dog",)


def test_a_namespace_is_no_part_of_the_tags(tmp_path: Path) -> None:
    year = make(tmp_path / "VOC2012")
    with_class(year, "dog", "a")
    path = year / "Annotations/a.xml"
    path.write_text(path.read_text().replace("<annotation>", '<annotation xmlns="http://x">'))
    first, _ = open_voc(tmp_path, "train").records()

    assert [item["class"] for item in first.label["objects"]] == [CLASS_OF["dog"]]


def test_line_breaks_in_a_class_name_are_spaces(tmp_path: Path) -> None:
    year = make(tmp_path / "VOC2012", names=("a",))
    with_class(year, "traffic\n  light", "a")
    corpus = open_voc(tmp_path, "train")

    assert corpus.classes == ("traffic light",)
    assert [record.label["classes"] for record in corpus.records()] == [[0]]


def test_boxes_need_no_room_in_a_mask(tmp_path: Path) -> None:
    year = make(tmp_path / "VOC2012", names=("a",), kinds=("Main", "Segmentation"))
    objects = "".join(f"<object><name>c{index}</name>{BOX}</object>" for index in range(300))
    (year / "Annotations/a.xml").write_text(f"<annotation>{objects}</annotation>")

    assert len(open_voc(tmp_path, "train").classes) == 300
    with pytest.raises(CorpusError, match="at most 254"):
        open_voc(tmp_path, "seg-train")

    (year / "classes.txt").write_text("\n".join(f"c{index}" for index in range(300)))
    assert len(open_voc(tmp_path, "train").classes) == 300
    with pytest.raises(CorpusError, match="a mask has room for 254"):
        open_voc(tmp_path, "seg-train")


@pytest.mark.parametrize("target", ["data/voc12", "data/VOC2007"])
def test_the_year_of_a_link_is_in_its_own_name(tmp_path: Path, target: str) -> None:
    make(tmp_path / target)
    (tmp_path / "VOCdevkit").mkdir()
    (tmp_path / "VOCdevkit/VOC2012").symlink_to(tmp_path / target)

    assert open_voc(tmp_path / "VOCdevkit", "2012-train").num_records == 2
    with pytest.raises(CorpusError, match="there are: VOC2012 with train"):
        open_voc(tmp_path / "VOCdevkit", "2012-val")


@pytest.mark.parametrize("suffix", [".tif", ".TIFF", ".bmp"])
@pytest.mark.parametrize("split", ["seg-train", "seg-all"])
def test_masks_may_be_of_other_lossless_formats(tmp_path: Path, suffix: str, split: str) -> None:
    year = make(tmp_path / "VOC2012", names=("a",), kinds=("Segmentation",))
    (year / "SegmentationClass/a.png").unlink()
    Image.new("L", (3, 4), 20).save(year / f"SegmentationClass/a{suffix}")
    (record,) = open_voc(tmp_path, split).records()

    assert record.mask is not None
    assert (record.mask.read() == 20).all()


def test_all_without_labels_right_there_is_told(tmp_path: Path) -> None:
    year = make(tmp_path / "VOC2012", names=("a",))
    (year / "Annotations/deep").mkdir()
    (year / "Annotations/a.xml").rename(year / "Annotations/deep/a.xml")
    with pytest.raises(CorpusError, match="is empty, no XML file is directly in this folder"):
        open_voc(tmp_path, "all")
