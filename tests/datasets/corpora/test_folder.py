"""Any folder of pictures: layouts made here, kinds of masks, and folders that are wrong."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets.corpora.folder import open_folder
from datasets.errors import CorpusError


def save_plane(
    path: Path,
    plane: list[list[int]],
    mode: str = "L",
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(np.array(plane, np.uint8))
    if mode == "P":
        picture.putpalette(list(range(256)) * 3)
    (picture.convert("1") if mode == "1" else picture).save(path)


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def save_mask(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(
        np.array(
            [[0, value, 255]],
            np.uint8,
        )
    ).save(path)


def test_a_folder_of_pictures(tmp_path: Path) -> None:
    touch(
        *(
            tmp_path / name
            for name in ("b.jpg", "a/x y.PNG", "a/x_y.png", "a/.h.jpg", "notes.txt", "b.png")
        )
    )
    corpus = open_folder(tmp_path, "all")
    records = list(corpus.records())

    assert [record.image.relative_to(tmp_path).as_posix() for record in records] == [
        "a/x y.PNG", "a/x_y.png", "b.jpg", "b.png",
    ]  # fmt: skip
    assert len({record.key for record in records}) == corpus.num_records == 4
    assert (
        corpus.classes,
        corpus.palette,
    ) == ((), ())
    assert list(corpus.records()) == records
    assert open_folder(tmp_path, "a").num_records == 2


@pytest.mark.parametrize("layout", ["{part}", "train/{part}", "{part}/train"])
def test_a_folder_with_masks(tmp_path: Path, layout: str) -> None:
    images, masks = (tmp_path / layout.format(part=part) for part in ("images", "masks"))
    touch(
        images / "a.jpg",
        images / "deep/b.png",
    )
    save_mask(masks / "a.png", 2)
    save_mask(masks / "deep/b.png", 4)
    split = "train" if "train" in layout else "all"
    corpus = open_folder(tmp_path, split)

    assert corpus.classes == ("class1", "class2", "class3", "class4")
    assert len(corpus.palette) == 5

    first, second = pickle.loads(pickle.dumps(list(corpus.records())))

    assert (first.image, second.image) == (
        images / "a.jpg",
        images / "deep/b.png",
    )

    np.testing.assert_array_equal(
        first.mask.read(),
        [[0, 2, 255]],
    )
    np.testing.assert_array_equal(
        second.mask.read(),
        [[0, 4, 255]],
    )
    (tmp_path / "classes.txt").write_text("background\nroad\n\n car \ntree\n")
    named = open_folder(tmp_path, split)

    assert named.classes == ("road", "car", "tree")
    with pytest.raises(CorpusError, match=r"b\.png: the mask holds index 4, .* 3 classes"):
        list(named.records())[1].mask.read()


# What two masks of a set hold, and what is made of it: the planes read, and the words that say so.
KINDS = (
    (
        [0, 255],
        [255, 0],
        [[0, 1], [1, 0]],
        "0 and 255: 255 is the class",
    ),
    (
        [0, 255],
        [0, 0],
        [[0, 1], [0, 0]],
        "0 and 255: 255 is the class",
    ),
    (
        [0, 1],
        [1, 0],
        [[0, 1], [1, 0]],
        "0 and 1: 1 is the class",
    ),
    (
        [1, 255],
        [0, 255],
        [[1, 255], [0, 255]],
        "255 is void",
    ),
    (
        [1, 255],
        [0, 1],
        [[1, 255], [0, 1]],
        "255 is void",
    ),
    (
        [0, 2],
        [0, 255],
        [[0, 2], [0, 255]],
        "255 is void",
    ),
)


@pytest.mark.parametrize(
    ("first", "second", "expected", "said"),
    KINDS,
)
@pytest.mark.parametrize("mode", ["L", "P"])
def test_masks_of_0_and_255_are_told_from_indices(
    tmp_path: Path,
    first: list[int],
    second: list[int],
    expected: list[list[int]],
    said: str,
    mode: str,
) -> None:
    touch(
        tmp_path / "images/a.jpg",
        tmp_path / "images/b.tif",
    )
    for name, row in (("a", first), ("b", second)):
        save_plane(
            tmp_path / f"masks/{name}.png",
            [row],
            mode,
        )
    corpus = open_folder(tmp_path, "all")

    assert said in corpus.note
    assert len(corpus.classes) == max(v for row in expected for v in row if v < 255)
    assert [
        record.mask.read()[0].tolist()
        for record in pickle.loads(pickle.dumps(list(corpus.records())))
    ] == expected

    (tmp_path / "classes.txt").write_text(
        "background\nlesion\n" if len(corpus.classes) == 1 else "lesion\nvessel\n"
    )
    named = open_folder(tmp_path, "all")

    assert "lesion" in named.classes
    assert len(named.palette) == len(named.classes) + 1
    assert [record.mask.read()[0].tolist() for record in named.records()] == expected


def test_masks_of_one_bit_are_0_and_1(tmp_path: Path) -> None:
    touch(tmp_path / "images/a.jpg")
    save_plane(
        tmp_path / "masks/a.png",
        [[0, 255]],
        "1",
    )
    (record,) = open_folder(tmp_path, "all").records()

    assert record.mask.read().tolist() == [[0, 1]]


def test_masks_that_mix_two_ways_are_refused(tmp_path: Path) -> None:
    touch(*(tmp_path / f"images/{name}.jpg" for name in "abc"))
    for name, row in (("a", [0, 0]), ("b", [0, 255]), ("c", [0, 1])):
        save_plane(
            tmp_path / f"masks/{name}.png",
            [row],
        )

    with pytest.raises(CorpusError, match=r"c\.png holds 0 and 1 only, b\.png 0 and 255 only"):
        open_folder(tmp_path, "all")

    (tmp_path / "classes.txt").write_text("lesion\nvessel\n")

    assert [record.mask.read()[0, 1] for record in open_folder(tmp_path, "all").records()] == [
        0,
        255,
        1,
    ]

    save_plane(
        tmp_path / "masks/c.png",
        [[0, 255]],
    )

    with pytest.raises(CorpusError, match=r"0 and 255 only, one class, but classes\.txt names 2"):
        open_folder(tmp_path, "all")

    (tmp_path / "classes.txt").unlink()
    corpus = open_folder(tmp_path, "all")
    save_plane(
        tmp_path / "masks/c.png",
        [[0, 7]],
    )

    with pytest.raises(CorpusError, match=r"c\.png: the mask holds 7"):
        list(corpus.records())[2].mask.read()


def test_masks_that_cannot_be_read_are_left_to_the_packer(tmp_path: Path) -> None:
    touch(
        tmp_path / "images/a.jpg",
        tmp_path / "images/b.jpg",
        tmp_path / "masks/a.png",
    )
    save_plane(
        tmp_path / "masks/b.png",
        [[0, 255]],
    )
    broken, whole = open_folder(tmp_path, "all").records()

    assert whole.mask.read().tolist() == [[0, 1]]
    with pytest.raises(CorpusError, match=r"a\.png: the mask is not a PNG"):
        broken.mask.read()


def test_folders_that_classes_txt_names_are_classes(tmp_path: Path) -> None:
    touch(
        tmp_path / "train/well/a.jpg", tmp_path / "train/ill/deep/b.png", tmp_path / "val/ill/c.jpg"
    )

    assert open_folder(tmp_path, "train").classes == ()

    (tmp_path / "classes.txt").write_text("well\nill\n")
    train = open_folder(tmp_path, "train")
    val = open_folder(tmp_path, "val")

    assert train.classes == val.classes == ("well", "ill")
    assert train.palette == ()
    assert [record.label["classes"] for record in train.records()] == [[1], [0]]
    assert [record.label for record in val.records()] == [{"classes": [1], "objects": []}]

    touch(tmp_path / "val/d.jpg")

    with pytest.raises(CorpusError, match=r"d\.jpg: is in no folder of a class"):
        open_folder(tmp_path, "val")
    with pytest.raises(
        CorpusError, match=r"names well, ill; the folders with pictures are train, val"
    ):
        open_folder(tmp_path, "all")


@pytest.mark.parametrize("names", ["cat\ncafe\u0301\n", "CAT\nCAF\u00c9\n", "Cat\ncaf\u00e9\n"])
def test_class_folders_may_differ_in_case_and_accents(tmp_path: Path, names: str) -> None:
    touch(tmp_path / "Cat/a.jpg", tmp_path / "caf\u00e9/b.jpg")
    (tmp_path / "classes.txt").write_text(names)
    corpus = open_folder(tmp_path, "all")

    assert corpus.classes == tuple(names.split())
    assert [record.label["classes"] for record in corpus.records()] == [[0], [1]]


def test_two_classes_for_one_folder_are_refused(tmp_path: Path) -> None:
    touch(tmp_path / "cat/a.jpg")
    (tmp_path / "classes.txt").write_text("Cat\nCAT\n")
    with pytest.raises(CorpusError, match="may be the folder of the class 'Cat' or of 'CAT'"):
        open_folder(tmp_path, "all")

    # One of the very name is no guess.
    (tmp_path / "classes.txt").write_text("Cat\ncat\n")
    (record,) = open_folder(tmp_path, "all").records()
    assert record.label["classes"] == [1]


@pytest.mark.parametrize("pictures", ["a.jpg", "images/a.jpg"])
def test_a_list_of_classes_without_folders_is_mentioned(tmp_path: Path, pictures: str) -> None:
    touch(tmp_path / pictures)
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    corpus = open_folder(tmp_path, "all")

    assert corpus.classes == ()
    assert corpus.note == "no labels: classes.txt names cat, dog, but no folder here is called so"


def test_class_folders_need_no_room_in_a_mask(tmp_path: Path) -> None:
    names = [f"c{index}" for index in range(300)]
    touch(tmp_path / "c299/a.jpg")
    (tmp_path / "classes.txt").write_text("\n".join(names))
    corpus = open_folder(tmp_path, "all")

    assert corpus.classes == tuple(names)
    assert [record.label["classes"] for record in corpus.records()] == [[299]]


def test_background_is_a_class_if_a_folder_is_called_so(tmp_path: Path) -> None:
    touch(tmp_path / "cat/a.jpg")
    (tmp_path / "classes.txt").write_text("background\ncat\n")
    assert open_folder(tmp_path, "all").classes == ("cat",)

    touch(tmp_path / "background/a.jpg")
    corpus = open_folder(tmp_path, "all")
    assert corpus.classes == ("background", "cat")
    assert [record.label["classes"] for record in corpus.records()] == [[0], [1]]


def test_tabs_in_a_class_name_are_spaces(tmp_path: Path) -> None:
    touch(tmp_path / "traffic light/a.jpg")
    (tmp_path / "classes.txt").write_text("traffic\tlight\n")
    assert open_folder(tmp_path, "all").classes == ("traffic light",)


def test_pictures_without_masks_beside_others_are_named(tmp_path: Path) -> None:
    touch(
        tmp_path / "images/a.jpg",
        tmp_path / "images/b.jpg",
    )
    save_mask(tmp_path / "masks/a.png", 1)
    with pytest.raises(CorpusError, match=r"b\.jpg: no mask .*masks/b\.png"):
        open_folder(tmp_path, "all")


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "names no class"),
        ("background\n", "names no class"),
        ("a\na\n", "names the class 'a' 2 times"),
        ("\n".join(map(str, range(300))), "names 300 classes, but a mask has room for 254"),
    ],
)
def test_lists_of_classes_that_are_wrong(tmp_path: Path, text: str, message: str) -> None:
    touch(tmp_path / "images/a.jpg")
    save_mask(tmp_path / "masks/a.png", 1)
    (tmp_path / "classes.txt").write_text(text)
    with pytest.raises(CorpusError, match=message):
        open_folder(tmp_path, "all")


def test_folders_that_are_wrong(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="no such folder"):
        open_folder(tmp_path / "none", "all")
    with pytest.raises(CorpusError, match="'all' is empty"):
        open_folder(tmp_path, "all")
    with pytest.raises(CorpusError, match="use --split all"):
        open_folder(tmp_path, "train")

    for split in ("../x", "..", "/etc", "."):
        with pytest.raises(CorpusError, match="is no split of a folder"):
            open_folder(tmp_path, split)
    save_plane(
        tmp_path / "masks/a.png",
        [[0, 0]],
    )

    with pytest.raises(CorpusError, match="holds masks/ but no images/"):
        open_folder(tmp_path, "all")

    touch(tmp_path / "images/a.jpg")

    with pytest.raises(CorpusError, match="only background and void"):
        open_folder(tmp_path, "all")


@pytest.mark.parametrize("folder", ["masks", "labels", "annotations"])
@pytest.mark.parametrize(
    "ending",
    ["", "_mask", "-mask", "_label", "_gt", "_seg"],
)
def test_masks_go_by_several_names(tmp_path: Path, folder: str, ending: str) -> None:
    touch(
        tmp_path / "images/train/a.jpg",
        tmp_path / "images/train/deep/B.JPG",
    )
    save_mask(
        tmp_path / f"{folder}/train/a{ending}.png",
        2,
    )
    save_mask(
        tmp_path / f"{folder}/train/deep/b{ending}.PNG",
        3,
    )
    corpus = open_folder(tmp_path, "train")

    assert [record.mask.read()[0, 1] for record in corpus.records()] == [2, 3]


def test_masks_may_be_beside_their_pictures(tmp_path: Path) -> None:
    touch(
        tmp_path / "train/a.jpg",
        tmp_path / "train/b.jpg",
        tmp_path / "plain/x_mask.jpg",
    )
    save_mask(tmp_path / "train/a_mask.png", 1)

    with pytest.raises(CorpusError, match=r"b\.jpg: no mask"):
        open_folder(tmp_path, "train")
    save_mask(tmp_path / "train/b_mask.png", 2)
    corpus = open_folder(tmp_path, "train")

    assert [record.image.name for record in corpus.records()] == ["a.jpg", "b.jpg"]
    assert [record.mask.read()[0, 1] for record in corpus.records()] == [1, 2]
    assert open_folder(tmp_path, "plain").palette == ()


def test_text_labels_are_no_masks_and_are_counted(tmp_path: Path) -> None:
    touch(*(tmp_path / f"images/train/{name}.jpg" for name in "ab"))
    touch(*(tmp_path / f"labels/train/{name}.txt" for name in "ab"))
    for root, split in ((tmp_path, "all"), (tmp_path, "train")):
        corpus = open_folder(root, split)
        assert corpus.num_records == 2
        assert corpus.classes == ()
        (left,) = corpus.left_out
        assert left.count == 2
        assert "label files in labels/" in left.reason

    # What is beside the root is no part of it.
    assert open_folder(tmp_path / "images/train", "all").left_out == ()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
@pytest.mark.parametrize(
    "high, expected",
    [(255, 1), (1, 1)],
)
def test_masks_saved_as_color_pictures_are_read_by_their_grey(
    tmp_path: Path, mode: str, high: int, expected: int
) -> None:
    touch(tmp_path / "images/a.jpg")
    (tmp_path / "masks").mkdir()
    plane = Image.fromarray(
        np.array(
            [[0, high], [high, 0]],
            np.uint8,
        )
    )

    plane.convert(mode).save(tmp_path / "masks/a.png")
    (record,) = open_folder(tmp_path, "all").records()
    np.testing.assert_array_equal(
        record.mask.read(),
        [[0, expected], [expected, 0]],
    )


def test_color_coded_masks_are_read_with_a_label_map(tmp_path: Path) -> None:
    touch(tmp_path / "images/a.jpg")
    (tmp_path / "masks").mkdir()
    colors = np.array(
        [
            [
                [0, 0, 0],
                [128, 64, 128],
            ],
            [
                [7, 8, 9],
                [255, 255, 255],
            ],
        ],
        np.uint8,
    )
    Image.fromarray(colors).save(tmp_path / "masks/a.png")
    with pytest.raises(CorpusError, match=r"a\.png: the mask is a color picture.* labelmap\.txt"):
        open_folder(tmp_path, "all")

    lines = ["background:0,0,0", "road:128,64,128", "void:255,255,255"]
    (tmp_path / "labelmap.txt").write_text("\n".join(lines))
    (record,) = open_folder(tmp_path, "all").records()
    with pytest.raises(
        CorpusError, match=r"the color 7,8,9 in the mask is not listed in .*labelmap"
    ):
        record.mask.read()

    (tmp_path / "labelmap.txt").write_text("\n".join([*lines, "tree:7,8,9"]))
    corpus = open_folder(tmp_path, "all")
    (record,) = pickle.loads(pickle.dumps(list(corpus.records())))
    assert corpus.classes == ("road", "tree")
    assert "labelmap.txt" in corpus.note
    np.testing.assert_array_equal(
        record.mask.read(),
        [[0, 1], [2, 255]],
    )


@pytest.mark.parametrize(
    "line", ["road", "road:1,2", "road:1,2,300", "road:128,64,128", "tree:1,2,3", ":1,2,3"]
)
def test_label_maps_that_are_wrong(tmp_path: Path, line: str) -> None:
    touch(tmp_path / "images/a.jpg")
    save_mask(tmp_path / "masks/a.png", 1)
    (tmp_path / "labelmap.txt").write_text(f"road:1,2,3\n{line}\n")
    with pytest.raises(CorpusError, match=r"labelmap\.txt: "):
        open_folder(tmp_path, "all")


SOFT = [
    list(range(256)),
    [0, 64, 128, 191, 255],
    [0, 85, 170, 255],
    [0, 60, 255],
    [0, 40, 40, 0],
]


@pytest.mark.parametrize("row", SOFT)
@pytest.mark.parametrize("named", [False, True])
def test_soft_edges_are_never_taken_for_indices(
    tmp_path: Path, row: list[int], named: bool
) -> None:
    touch(tmp_path / "images/a.jpg")
    save_plane(
        tmp_path / "masks/a.png",
        [row],
    )
    if named:
        (tmp_path / "classes.txt").write_text("lesion\n")
    with pytest.raises(CorpusError, match=r"soft edges .* --mask_threshold 128; .* classes\.txt"):
        open_folder(tmp_path, "all")

    corpus = open_folder(tmp_path, "all", mask_threshold=128)
    (record,) = corpus.records()
    assert corpus.classes == (("lesion",) if named else ("class1",))
    assert "from 128 on" in corpus.note
    np.testing.assert_array_equal(
        record.mask.read()[0],
        np.array(row) >= 128,
    )


def test_a_threshold_needs_masks_of_one_class(tmp_path: Path) -> None:
    touch(
        tmp_path / "plain/a.jpg",
        tmp_path / "images/a.jpg",
    )
    save_plane(
        tmp_path / "masks/a.png",
        [[0, 255]],
    )

    with pytest.raises(CorpusError, match="has no masks for a mask_threshold"):
        open_folder(tmp_path, "plain", mask_threshold=128)
    (tmp_path / "classes.txt").write_text("lesion\nvessel\n")

    with pytest.raises(CorpusError, match=r"makes one class, but classes\.txt names 2"):
        open_folder(tmp_path, "all", mask_threshold=128)


def test_linked_class_folders_are_followed(tmp_path: Path) -> None:
    touch(
        tmp_path / "elsewhere/dog/a.jpg",
        tmp_path / "root/train/cat/b.jpg",
    )
    (tmp_path / "root/train/dog").symlink_to("../../elsewhere/dog")
    (tmp_path / "root/classes.txt").write_text("dog\ncat\n")
    corpus = open_folder(tmp_path / "root", "train")

    assert [record.label["classes"] for record in corpus.records()] == [[1], [0]]


def test_folders_that_may_be_classes_are_mentioned(tmp_path: Path) -> None:
    touch(
        tmp_path / "cat/a.jpg",
        tmp_path / "dog/b.jpg",
    )
    assert "its 2 folders are classes (cat, dog), list them" in open_folder(tmp_path, "all").note
    touch(tmp_path / "c.jpg")
    assert open_folder(tmp_path, "all").note == ""


def test_what_is_not_taken_is_counted(tmp_path: Path) -> None:
    touch(tmp_path / "a.jpg")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/b").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nothing.jpg")
    left = open_folder(tmp_path, "all").left_out

    assert sorted(item.examples for item in left) == [("deep/b",), ("gone.jpg",)]
    (tmp_path / "a.jpg").unlink()
    with pytest.raises(CorpusError, match=r"is empty.* Left out: 1 links to nothing \(gone\.jpg\)"):
        open_folder(tmp_path, "all")


@pytest.mark.parametrize(
    "start",
    [
        b"RIFF\x24\0\0\0WEBP",
        b"BM\x36\0\0\0" + bytes(6),
        b"\0\0\0\x0cjP  \r\n\x87\n",
        b"\xff\x4f\xff\x51" + bytes(8),
    ],
)
def test_pictures_of_every_format_are_counted_without_an_extension(
    tmp_path: Path, start: bytes
) -> None:
    touch(tmp_path / "a.jpg")
    (tmp_path / "b").write_bytes(start)
    (tmp_path / "sound").write_bytes(b"RIFF\x24\0\0\0WAVE")
    (tmp_path / "text").write_bytes(b"BMW is a make of cars")
    (left,) = open_folder(tmp_path, "all").left_out

    assert left.examples == ("b",)


@pytest.mark.parametrize("suffix", [".tif", ".BMP"])
def test_masks_of_other_lossless_formats_are_found(tmp_path: Path, suffix: str) -> None:
    touch(
        tmp_path / "images/a.jpg",
        tmp_path / "beside/b.tif",
    )
    save_mask(
        tmp_path / f"masks/a{suffix}",
        3,
    )
    save_mask(
        tmp_path / f"beside/b_mask{suffix}",
        2,
    )

    for split, value in (("all", 3), ("beside", 2)):
        (record,) = open_folder(tmp_path, split).records()
        assert record.mask.read()[0, 1] == value


def test_masks_saved_as_jpegs_are_refused_in_words(tmp_path: Path) -> None:
    touch(tmp_path / "images/a.jpg")
    save_mask(tmp_path / "masks/a.jpg", 255)
    with pytest.raises(CorpusError, match=r"a\.jpg: the mask is a JPEG, which changes values"):
        open_folder(tmp_path, "all")
