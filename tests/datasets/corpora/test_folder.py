"""ImageNet and any folder of pictures: the real sample, layouts made here, and folders that are wrong."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets.corpora.folder import open_folder
from datasets.corpora.imagenet import open_imagenet
from datasets.errors import CorpusError

DATA = Path(__file__).parents[3] / "../shared/data/imagenet"
real = pytest.mark.skipif(not DATA.is_dir(), reason="no ../shared/data/imagenet here")


def save_plane(path: Path, plane: list[list[int]], mode: str = "L") -> None:
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
    Image.fromarray(np.array([[0, value, 255]], np.uint8)).save(path)


@real
def test_the_real_imagenet() -> None:
    corpus = open_imagenet(DATA, "train")
    records = list(corpus.records())
    wnids = sorted(path.name for path in (DATA / "train").iterdir())
    assert corpus.classes == tuple(wnids) and corpus.num_records == len(records) == 60
    for record in records:
        assert record.label == {"classes": [wnids.index(record.image.parent.name)], "objects": []}
        assert record.mask is None and record.image.is_file()
    assert len({record.key for record in records}) == 60
    assert open_imagenet(DATA / "train", "train").classes == corpus.classes


def test_imagenet_keys_are_unique_and_indices_agree_between_splits(tmp_path: Path) -> None:
    a, b = "n00000001", "n00000002"
    touch(tmp_path / f"train/{a}/{a}_1.JPEG", tmp_path / f"train/{b}/{b}_1.JPEG")
    touch(
        tmp_path / f"val/{b}/ILSVRC2012_val_1.JPEG",
        tmp_path / f"val/{b}/x.png",
        tmp_path / f"val/{b}/x.JPEG",
    )
    touch(tmp_path / f"val/{b}/.hidden.JPEG", tmp_path / f"val/{b}/list.txt")
    train, val = open_imagenet(tmp_path, "train"), open_imagenet(tmp_path, "val")
    assert train.classes == val.classes == (a, b)
    assert [record.key for record in train.records()] == [f"{a}_1", f"{b}_1"]
    records = list(val.records())
    assert val.num_records == len({record.key for record in records}) == 3
    assert all(record.label["classes"] == [1] for record in records)


def test_imagenet_folders_may_be_links(tmp_path: Path) -> None:
    touch(tmp_path / "full/n00000001/n00000001_1.JPEG")
    (tmp_path / "subset").mkdir()
    (tmp_path / "subset/n00000001").symlink_to(tmp_path / "full/n00000001")
    assert open_imagenet(tmp_path / "subset", "train").num_records == 1


def test_imagenet_folders_that_are_wrong(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="no such folder"):
        open_imagenet(tmp_path / "none", "train")
    touch(tmp_path / "val/ILSVRC2012_val_00000001.JPEG")
    with pytest.raises(
        CorpusError, match="no folder of a wnid such as n02123597 for the split 'val'"
    ):
        open_imagenet(tmp_path, "val")
    (tmp_path / "train/n00000001").mkdir(parents=True)
    with pytest.raises(CorpusError, match="'train' is empty"):
        open_imagenet(tmp_path, "train")


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
    assert (corpus.classes, corpus.palette) == ((), ())
    assert list(corpus.records()) == records
    assert open_folder(tmp_path, "a").num_records == 2


@pytest.mark.parametrize("layout", ["{part}", "train/{part}", "{part}/train"])
def test_a_folder_with_masks(tmp_path: Path, layout: str) -> None:
    images, masks = (tmp_path / layout.format(part=part) for part in ("images", "masks"))
    touch(images / "a.jpg", images / "deep/b.png")
    save_mask(masks / "a.png", 2)
    save_mask(masks / "deep/b.png", 4)
    split = "train" if "train" in layout else "all"
    corpus = open_folder(tmp_path, split)
    assert corpus.classes == ("class1", "class2", "class3", "class4") and len(corpus.palette) == 5
    first, second = pickle.loads(pickle.dumps(list(corpus.records())))
    assert (first.image, second.image) == (images / "a.jpg", images / "deep/b.png")
    np.testing.assert_array_equal(first.mask.read(), [[0, 2, 255]])
    np.testing.assert_array_equal(second.mask.read(), [[0, 4, 255]])
    (tmp_path / "classes.txt").write_text("background\nroad\n\n car \ntree\n")
    named = open_folder(tmp_path, split)
    assert named.classes == ("road", "car", "tree")
    with pytest.raises(CorpusError, match=r"b\.png: index 4 .* 3 classes"):
        list(named.records())[1].mask.read()


# What two masks of a set hold, and what is made of it: the planes read, and the words that say so.
KINDS = (
    ([0, 255], [255, 0], [[0, 1], [1, 0]], "0 and 255: 255 is the class"),
    ([0, 255], [0, 0], [[0, 1], [0, 0]], "0 and 255: 255 is the class"),
    ([0, 1], [1, 0], [[0, 1], [1, 0]], "0 and 1: 1 is the class"),
    ([1, 255], [0, 255], [[1, 255], [0, 255]], "255 is void"),
    ([1, 255], [0, 1], [[1, 255], [0, 1]], "255 is void"),
    ([0, 2], [0, 255], [[0, 2], [0, 255]], "255 is void"),
)


@pytest.mark.parametrize(("first", "second", "expected", "said"), KINDS)
@pytest.mark.parametrize("mode", ["L", "P"])
def test_masks_of_0_and_255_are_told_from_indices(
    tmp_path: Path,
    first: list[int],
    second: list[int],
    expected: list[list[int]],
    said: str,
    mode: str,
) -> None:
    touch(tmp_path / "images/a.jpg", tmp_path / "images/b.tif")
    for name, row in (("a", first), ("b", second)):
        save_plane(tmp_path / f"masks/{name}.png", [row], mode)
    corpus = open_folder(tmp_path, "all")
    assert said in corpus.note and len(corpus.classes) == max(
        v for row in expected for v in row if v < 255
    )
    assert [
        record.mask.read()[0].tolist()
        for record in pickle.loads(pickle.dumps(list(corpus.records())))
    ] == expected
    (tmp_path / "classes.txt").write_text(
        "background\nlesion\n" if len(corpus.classes) == 1 else "lesion\nvessel\n"
    )
    named = open_folder(tmp_path, "all")
    assert "lesion" in named.classes and len(named.palette) == len(named.classes) + 1
    assert [record.mask.read()[0].tolist() for record in named.records()] == expected


def test_masks_of_one_bit_are_0_and_1(tmp_path: Path) -> None:
    touch(tmp_path / "images/a.jpg")
    save_plane(tmp_path / "masks/a.png", [[0, 255]], "1")
    (record,) = open_folder(tmp_path, "all").records()
    assert record.mask.read().tolist() == [[0, 1]]


def test_masks_that_mix_two_ways_are_refused(tmp_path: Path) -> None:
    touch(*(tmp_path / f"images/{name}.jpg" for name in "abc"))
    for name, row in (("a", [0, 0]), ("b", [0, 255]), ("c", [0, 1])):
        save_plane(tmp_path / f"masks/{name}.png", [row])
    with pytest.raises(CorpusError, match=r"c\.png holds 0 and 1 only, b\.png 0 and 255 only"):
        open_folder(tmp_path, "all")
    (tmp_path / "classes.txt").write_text("lesion\nvessel\n")
    assert [record.mask.read()[0, 1] for record in open_folder(tmp_path, "all").records()] == [
        0,
        255,
        1,
    ]
    save_plane(tmp_path / "masks/c.png", [[0, 255]])
    with pytest.raises(CorpusError, match=r"0 and 255 only, one class, but classes\.txt names 2"):
        open_folder(tmp_path, "all")
    (tmp_path / "classes.txt").unlink()
    corpus = open_folder(tmp_path, "all")
    save_plane(tmp_path / "masks/c.png", [[0, 7]])
    with pytest.raises(CorpusError, match=r"c\.png: 7 stands in the mask"):
        list(corpus.records())[2].mask.read()


def test_masks_that_cannot_be_read_are_left_to_the_packer(tmp_path: Path) -> None:
    touch(tmp_path / "images/a.jpg", tmp_path / "images/b.jpg", tmp_path / "masks/a.png")
    save_plane(tmp_path / "masks/b.png", [[0, 255]])
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
    train, val = open_folder(tmp_path, "train"), open_folder(tmp_path, "val")
    assert train.classes == val.classes == ("well", "ill") and train.palette == ()
    assert [record.label["classes"] for record in train.records()] == [[1], [0]]
    assert [record.label for record in val.records()] == [{"classes": [1], "objects": []}]
    touch(tmp_path / "val/d.jpg")
    with pytest.raises(CorpusError, match=r"d\.jpg: lies in no folder of a class"):
        open_folder(tmp_path, "val")
    assert open_folder(tmp_path, "all").classes == ()  # no folder of a class lies right here


def test_pictures_without_masks_beside_others_are_named(tmp_path: Path) -> None:
    touch(tmp_path / "images/a.jpg", tmp_path / "images/b.jpg")
    save_mask(tmp_path / "masks/a.png", 1)
    with pytest.raises(CorpusError, match=r"b\.jpg: no mask .*masks/b\.png"):
        open_folder(tmp_path, "all")


@pytest.mark.parametrize("text", ["", "background\n", "a\na\n", "\n".join(map(str, range(300)))])
def test_lists_of_classes_that_are_wrong(tmp_path: Path, text: str) -> None:
    touch(tmp_path / "images/a.jpg")
    save_mask(tmp_path / "masks/a.png", 1)
    (tmp_path / "classes.txt").write_text(text)
    with pytest.raises(CorpusError, match="needs 1 to 254 different names"):
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
    save_plane(tmp_path / "masks/a.png", [[0, 0]])
    with pytest.raises(CorpusError, match="holds masks/ but no images/"):
        open_folder(tmp_path, "all")
    touch(tmp_path / "images/a.jpg")
    with pytest.raises(CorpusError, match="only background and void"):
        open_folder(tmp_path, "all")


def test_only_links_that_lead_out_is_an_empty_folder(tmp_path: Path) -> None:
    touch(tmp_path / "outside/a.jpg")
    (tmp_path / "root").mkdir()
    (tmp_path / "root/a.jpg").symlink_to(tmp_path / "outside/a.jpg")
    (tmp_path / "root/more").symlink_to(tmp_path / "outside")
    with pytest.raises(CorpusError, match="links that lead out of it are skipped"):
        open_folder(tmp_path / "root", "all")
