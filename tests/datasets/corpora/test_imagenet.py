"""ImageNet: the real sample, flat folders with lists, Tiny ImageNet, folders that are wrong."""

import io
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from datasets.corpora.imagenet import open_imagenet
from datasets.errors import CorpusError
from shards.errors import PictureError
from shards.packing.pack import pack
from shards.packing.source_files import read_source
from shards.records import TarMember

DATA = Path(__file__).parents[3] / "../shared/data/imagenet"
real = pytest.mark.skipif(
    not DATA.is_dir(),
    reason="no ../shared/data/imagenet here",
)
A, B = "n00000001", "n00000002"


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


@real
def test_the_real_imagenet() -> None:
    corpus = open_imagenet(DATA, "train")
    records = list(corpus.records())
    wnids = sorted(path.name for path in (DATA / "train").iterdir())

    assert corpus.classes == tuple(wnids)
    assert corpus.num_records == len(records) == 60
    for record in records:
        assert record.label == {
            "classes": [wnids.index(record.image.parent.name)],
            "objects": [],
        }
        assert record.mask is None
        assert record.image.is_file()

    assert len({record.key for record in records}) == 60
    assert open_imagenet(DATA / "train", "train").classes == corpus.classes


def test_imagenet_keys_are_unique_and_indices_agree_between_splits(tmp_path: Path) -> None:
    a, b = "n00000001", "n00000002"
    touch(
        tmp_path / f"train/{a}/{a}_1.JPEG",
        tmp_path / f"train/{b}/{b}_1.JPEG",
    )
    touch(
        tmp_path / f"val/{b}/ILSVRC2012_val_1.JPEG",
        tmp_path / f"val/{b}/x.png",
        tmp_path / f"val/{b}/x.JPEG",
    )
    touch(
        tmp_path / f"val/{b}/.hidden.JPEG",
        tmp_path / f"val/{b}/list.txt",
    )
    train = open_imagenet(tmp_path, "train")
    val = open_imagenet(tmp_path, "val")

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


def test_pictures_beside_the_class_folders_are_counted(tmp_path: Path) -> None:
    touch(
        tmp_path / f"train/{A}/{A}_1.JPEG",
        tmp_path / "train/stray.jpg",
    )
    (left,) = open_imagenet(tmp_path, "train").left_out
    assert left.examples == ("stray.jpg",)
    assert "outside of the classes" in left.reason


def test_tiny_imagenets_layout(tmp_path: Path) -> None:
    touch(
        tmp_path / f"train/{A}/images/{A}_0.JPEG",
        tmp_path / f"train/{B}/images/{B}_0.JPEG",
    )
    touch(
        tmp_path / "val/images/val_0.JPEG",
        tmp_path / "val/images/val_1.JPEG",
    )
    (tmp_path / "val/val_annotations.txt").write_text(
        f"val_0.JPEG\t{B}\t0\t32\t44\t62\nval_1.JPEG\t{A}\t52\t55\t57\t59\n"
    )
    train = open_imagenet(tmp_path, "train")
    val = open_imagenet(tmp_path, "val")

    assert [record.label["classes"] for record in train.records()] == [[0], [1]]
    assert train.classes == val.classes == (A, B)
    assert val.num_records == 2
    assert [record.label["classes"] for record in val.records()] == [[1], [0]]
    assert all(record.image.is_file() for record in [*train.records(), *val.records()])


FLAT = [
    (
        "val/val.txt",
        f"ILSVRC2012_val_1.JPEG {B}\nILSVRC2012_val_2.JPEG {A}\n",
    ),
    ("val.txt", "ILSVRC2012_val_1.JPEG 1\nILSVRC2012_val_2.JPEG 0\n"),
    (
        "LOC_val_solution.csv",
        f"ImageId,PredictionString\nILSVRC2012_val_2,{A} 1 2 3 4 \nILSVRC2012_val_1,{B} 5 6 7 8\n",
    ),
    (
        "val/imagenet_2012_validation_synset_labels.txt",
        f"{B}\n{A}\n",
    ),
]


@pytest.mark.parametrize("path, text", FLAT)
def test_the_flat_validation_folder_with_its_list(tmp_path: Path, path: str, text: str) -> None:
    touch(
        tmp_path / f"train/{A}/x.JPEG",
        tmp_path / f"train/{B}/x.JPEG",
    )
    touch(*(tmp_path / f"val/ILSVRC2012_val_{number}.JPEG" for number in (1, 2)))
    (tmp_path / path).write_text(text)
    corpus = open_imagenet(tmp_path, "val")
    records = list(corpus.records())

    assert corpus.classes == (A, B)
    assert Path(path).name in corpus.note
    assert [record.key for record in records] == ["ILSVRC2012_val_1", "ILSVRC2012_val_2"]
    assert [record.label["classes"] for record in records] == [[1], [0]]


@pytest.mark.parametrize(
    "text, message",
    [
        ("1\n0\n", "numbers are those of ImageNet's development kit"),
        (f"{A}\n", "1 labels without names, but there are 2 pictures"),
        (f"other.JPEG {A}\n", "names none of the 2 pictures"),
        ("v1.JPEG 7\nv2.JPEG 0\n", "neither wnids nor numbers of the 2 classes"),
        ("v1.JPEG cat\nv2.JPEG 0\n", "neither wnids nor numbers"),
    ],
)
def test_lists_that_do_not_fit(tmp_path: Path, text: str, message: str) -> None:
    touch(
        tmp_path / f"train/{A}/x.JPEG",
        tmp_path / f"train/{B}/x.JPEG",
    )
    touch(
        tmp_path / "val/v1.JPEG",
        tmp_path / "val/v2.JPEG",
    )
    (tmp_path / "val.txt").write_text(text)

    with pytest.raises(CorpusError, match=message):
        open_imagenet(tmp_path, "val")


def test_pictures_that_the_list_lacks_are_counted(tmp_path: Path) -> None:
    touch(
        tmp_path / "val/v1.JPEG",
        tmp_path / "val/v2.JPEG",
    )
    (tmp_path / "val.txt").write_text(f"v1.JPEG {A}\n")
    corpus = open_imagenet(tmp_path, "val")

    assert corpus.num_records == 1
    assert corpus.left_out[0].examples == ("v2.JPEG",)


def tar_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()

    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(
                info,
                io.BytesIO(content),
            )

    return buffer.getvalue()


def jpeg(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new(
        "RGB",
        (16, 16),
        (value, 90, 30),
    ).save(
        buffer,
        "JPEG",
    )

    return buffer.getvalue()


@pytest.fixture
def classes() -> dict[str, dict[str, bytes]]:
    """Return the images of two classes, in no order."""
    return {
        A: {
            f"{A}_2.JPEG": jpeg(2),
            f"{A}_1.JPEG": jpeg(1),
        },
        B: {f"{B}_7.JPEG": jpeg(7), "notes.txt": b"no picture"},
    }


@pytest.mark.parametrize("place", ["class tars", "set in root", "set in split"])
def test_class_tars_are_packed_in_place_like_the_unpacked_set(
    tmp_path: Path,
    classes: dict[str, dict[str, bytes]],
    place: str,
) -> None:
    plain = tmp_path / "plain"
    root = tmp_path / "root"
    (root / "train").mkdir(parents=True)
    tars = {f"{wnid}.tar": tar_of(files) for wnid, files in classes.items()}
    if place == "class tars":
        for name, content in tars.items():
            (root / "train" / name).write_bytes(content)
    else:
        folder = root if place == "set in root" else root / "train"
        (folder / "ILSVRC2012_img_train.tar").write_bytes(tar_of(tars))
    for wnid, files in classes.items():
        (plain / "train" / wnid).mkdir(parents=True)
        for name, content in files.items():
            (plain / "train" / wnid / name).write_bytes(content)

    packed = {}
    for name, folder in (("plain", plain), ("tars", root)):
        corpus = open_imagenet(folder, "train")
        report = pack(
            corpus,
            tmp_path / f"packed-{name}",
            root=folder,
            workers=0,
        )
        assert report.manifest is not None
        assert report.packed == 3
        with tarfile.open(tmp_path / f"packed-{name}" / report.manifest.shards[0].file) as shard:
            members = {info.name: shard.extractfile(info).read() for info in shard}
        packed[name] = {key: value for key, value in members.items() if key.endswith(".jpg")}
        assert corpus.classes == (A, B)
        assert [record.label["classes"] for record in corpus.records()] == [[0], [0], [1]]
    assert packed["plain"] == packed["tars"]
    assert next(iter(packed["tars"])) == f"{A}_1.jpg"


@pytest.mark.parametrize(
    "content",
    [b"", b"<html>" * 200, b"cut"],
)
def test_class_tars_that_are_damaged(
    tmp_path: Path,
    classes: dict[str, dict[str, bytes]],
    content: bytes,
) -> None:
    (tmp_path / "train").mkdir()
    if content == b"cut":
        content = tar_of(classes[A])[:700]
    (tmp_path / f"train/{A}.tar").write_bytes(content)
    with pytest.raises(CorpusError, match=r"n00000001\.tar: the tar cannot be read"):
        list(open_imagenet(tmp_path, "train").records())


def test_a_member_behind_the_end_of_its_tar_is_a_fault_of_the_picture(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"short")

    with pytest.raises(PictureError, match=r"a\.tar ends before it does"):
        read_source(
            TarMember(
                tmp_path / "a.tar",
                "1.jpg",
                3,
                10,
            )
        )


def test_pictures_in_folders_that_are_not_read_are_counted(tmp_path: Path) -> None:
    names = (f"{A}/a.JPEG", f"{A}/more/b.JPEG", f"{B}/images/c.JPEG", f"{B}/d.JPEG", "other/e.JPEG")
    touch(*(tmp_path / "train" / name for name in names))
    corpus = open_imagenet(tmp_path, "train")

    assert [record.image.name for record in corpus.records()] == ["a.JPEG", "c.JPEG"]
    assert {left.reason: left.examples for left in corpus.left_out} == {
        "pictures in deeper folders, which are not read": (f"{A}/more/b.JPEG",),
        "pictures beside images/, which alone is read": (f"{B}/d.JPEG",),
        "pictures in folders that are no wnid such as n02123597": ("train/other/e.JPEG",),
    }


def test_pictures_beside_a_flat_folder_are_counted(tmp_path: Path) -> None:
    touch(*(tmp_path / "val" / name for name in ("images/a.JPEG", "images/deep/b.JPEG", "c.JPEG")))
    (tmp_path / "val/val_annotations.txt").write_text(f"a.JPEG\t{A}\t0\t0\t62\t57\n")
    left = open_imagenet(tmp_path, "val").left_out

    assert sorted(each.examples for each in left) == [("images/deep/b.JPEG",), ("val/c.JPEG",)]
