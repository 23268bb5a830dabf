"""Keys, names of files, palettes and masks, on files made here."""

import pickle
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask

from datasets.corpora.files import MAX_KEY_LENGTH, inside, record_key, require_files, walk_pictures
from datasets.corpora.masks import CocoMask, GreyMask, PaletteMask, png_mask, unpack_counts
from datasets.corpora.palette import voc_palette
from datasets.errors import CorpusError

INDICES = np.array([[0, 1, 2], [20, 255, 3]], np.uint8)


def save_palette(path: Path, plane: np.ndarray, colors: list[int]) -> Path:
    """Writes a palette PNG with these colours, whatever they are."""
    picture = Image.fromarray(plane)
    picture.putpalette(colors)
    picture.save(path)
    return path


def save_low_bits(path: Path, rows: list[list[int]], bits: int) -> Path:
    """Writes a grey PNG of 1, 2 or 4 bits, which Pillow cannot."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    raw = b""
    for row in rows:
        text = "".join(f"{value:0{bits}b}" for value in row)
        text += "0" * (-len(text) % 8)
        raw += b"\0" + bytes(int(text[i : i + 8], 2) for i in range(0, len(text), 8))
    head = struct.pack(">IIBBBBB", len(rows[0]), len(rows), bits, 0, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


names = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1)
paths = st.lists(
    names.filter(lambda name: name not in (".", "..")), min_size=1
)  # no file bears these names


@given(
    st.sets(paths.map("/".join).map(lambda path: path + ".jpg") | paths.map("/".join), max_size=30)
)
def test_keys_are_plain_short_and_unique(relatives: set[str]) -> None:
    keys = [record_key(relative) for relative in relatives]
    assert all(key and len(key) <= MAX_KEY_LENGTH for key in keys)
    assert all(
        set(key) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")
        for key in keys
    )
    assert len(set(keys)) == len(relatives)


@pytest.mark.parametrize(
    "first, second", [("a b.jpg", "a_b.jpg"), ("a.png", "a.jpg"), ("a/b.jpg", "a_b.jpg")]
)
def test_keys_of_paths_that_look_alike_differ(first: str, second: str) -> None:
    assert record_key(first) != record_key(second)
    assert record_key(second) == second.removesuffix(".jpg")


def test_a_file_cannot_take_the_key_made_for_another() -> None:
    made = record_key("a b.jpg")
    assert record_key(f"{made}.jpg") != made


@pytest.mark.parametrize(
    "name", ["../x.jpg", "/etc/passwd", "a/../../x.jpg", "..\\x.jpg", "", "a\0.jpg"]
)
def test_names_that_lead_out_are_refused(name: str) -> None:
    with pytest.raises(CorpusError, match=r"list\.txt: names .* no file inside"):
        inside(Path("pictures"), name, Path("list.txt"))


def test_missing_files_are_counted_and_the_first_named(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    with pytest.raises(CorpusError, match=r"2 of the files .* the first is b\.jpg"):
        require_files(tmp_path, ["a.jpg", "b.jpg", "c.jpg"], Path("list.txt"))


def test_walk_is_sorted_recursive_and_stays_inside(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    root = tmp_path / "root"
    for folder in (outside, root / "b", root / ".hidden"):
        folder.mkdir(parents=True)
    for path in (
        outside / "x.jpg",
        root / "c.JPG",
        root / "b/2.png",
        root / "b/1.jpg",
        root / ".h.jpg",
        root / "t.txt",
    ):
        path.touch()
    (root / ".hidden/x.jpg").touch()
    (root / "link_out.jpg").symlink_to(outside / "x.jpg")
    (root / "link_in.jpg").symlink_to(root / "c.JPG")
    (root / "folder_out").symlink_to(outside)
    (root / "circle").symlink_to(root)
    (root / "dangling.jpg").symlink_to(root / "nothing.jpg")
    assert list(walk_pictures(root)) == ["b/1.jpg", "b/2.png", "c.JPG", "link_in.jpg"]


def test_palette_is_vocs() -> None:
    palette = voc_palette(255)
    assert palette[:5] == ((0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128))
    assert palette[15] == (192, 128, 128)
    assert palette[255] == (224, 224, 192)
    assert len(set(palette)) == 256


def test_palette_masks_give_indices_whatever_the_colors(tmp_path: Path) -> None:
    grey = save_palette(tmp_path / "grey.png", INDICES, [7] * 768)
    np.testing.assert_array_equal(PaletteMask(grey, 20).read(), INDICES)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(png_mask(grey))).read(), INDICES)


def test_a_palette_of_four_bits_gives_indices(tmp_path: Path) -> None:
    plane = np.array([[0, 3], [2, 1]], np.uint8)
    picture = Image.fromarray(plane)
    picture.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0, 1, 1, 1])
    picture.save(tmp_path / "m.png", bits=4)
    np.testing.assert_array_equal(PaletteMask(tmp_path / "m.png").read(), plane)


def test_grey_masks_of_eight_and_sixteen_bits(tmp_path: Path) -> None:
    Image.fromarray(INDICES).save(tmp_path / "8.png")
    Image.fromarray(INDICES.astype(np.uint16)).save(tmp_path / "16.png")
    for name in ("8.png", "16.png"):
        mask = png_mask(tmp_path / name, 20)
        assert isinstance(mask, GreyMask)
        assert mask.read().dtype == np.uint8
        np.testing.assert_array_equal(mask.read(), INDICES)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_grey_masks_of_few_bits_are_not_stretched(tmp_path: Path, bits: int) -> None:
    rows = [[0, 1, 2**bits - 1], [1, 0, 0]]
    path = save_low_bits(tmp_path / "m.png", rows, bits)
    np.testing.assert_array_equal(png_mask(path).read(), rows)


def test_masks_that_are_none(tmp_path: Path) -> None:
    Image.new("RGB", (2, 2)).save(tmp_path / "rgb.png")
    save_palette(tmp_path / "big.png", INDICES, [0] * 768)
    (tmp_path / "short.png").write_bytes((tmp_path / "big.png").read_bytes()[:-30])
    (tmp_path / "text.png").write_text("hello")
    Image.new("L", (2, 2)).save(tmp_path / "jpeg.png", format="JPEG")
    cases = {
        "rgb.png": "mode RGB",
        "big.png": "index 20 .* 19 classes",
        "short.png": "cannot be decoded",
        "text.png": "not a PNG",
        "jpeg.png": "not a PNG",
        "none.png": "cannot be read",
    }
    for name, message in cases.items():
        with pytest.raises(CorpusError, match=message):
            png_mask(tmp_path / name, 19).read()
    with pytest.raises(CorpusError, match="not a palette PNG"):
        Image.fromarray(INDICES).save(tmp_path / "grey.png")
        PaletteMask(tmp_path / "grey.png").read()


def square(x0: float, y0: float, x1: float, y1: float) -> list[float]:
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def coco(*annotations: tuple[int, dict], height: int = 20, width: int = 30) -> CocoMask:
    return CocoMask(annotations, height, width, "instances.json: 1.jpg")


def test_small_objects_stay_visible_in_any_order() -> None:
    large = (4, {"id": 1, "segmentation": [square(0, 0, 30, 20)]})
    small = (7, {"id": 2, "segmentation": [square(10, 5, 14, 9)]})
    for order in ((large, small), (small, large)):
        plane = coco(*order).read()
        assert plane.shape == (20, 30)
        assert (plane[5:9, 10:14] == 8).all()
        assert (plane == 8).sum() == 16 and (plane == 5).sum() == 600 - 16


def test_crowds_are_void_and_objects_lie_before_them() -> None:
    counts = [0, 600]
    crowd = (0, {"id": 1, "iscrowd": 1, "segmentation": {"size": [20, 30], "counts": counts}})
    thing = (1, {"id": 2, "iscrowd": 0, "segmentation": [square(0, 0, 10, 10)]})
    plane = pickle.loads(pickle.dumps(coco(thing, crowd))).read()
    assert (plane[:10, :10] == 2).all()
    assert (plane == 255).sum() == 500


def test_an_object_without_an_outline_makes_its_box_void() -> None:
    for outline in ({}, {"segmentation": []}, {"segmentation": [[1, 1, 2, 2]]}):
        plane = coco((3, {"id": 1, "bbox": [2, 3, 4, 5], **outline})).read()
        assert (plane[3:8, 2:6] == 255).all()
        assert (plane == 0).sum() == 600 - 20


def test_no_object_is_all_background() -> None:
    assert coco().read().max() == 0


@given(st.integers(1, 40), st.integers(1, 40), st.randoms(use_true_random=False))
def test_run_lengths_packed_or_not_give_the_same_pixels(
    height: int, width: int, random: object
) -> None:
    plane = np.random.default_rng(random.getrandbits(32)).integers(0, 2, (height, width), np.uint8)
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
        {"size": [10**9, 10**9], "counts": [0, 10**18]},
        {"size": [20, 30], "counts": "00"},
        {"size": [20, 30], "counts": "oooo"},
        {"size": [20, 30], "counts": "é" * 50},
        {"size": [20, 30]},
        {"counts": [600]},
        [[0, 0, 1e12, 0, 1e12, 1e12]],
        [[0, 0, float("nan"), 0, 5, 5]],
        [[0, 0, 1, 0, 5, 5, 3]],
        [["a", "b", "c", "d", "e", "f"]],
        7,
    ],
)
def test_outlines_that_cannot_be_drawn(outline: object) -> None:
    with pytest.raises(CorpusError, match=r"1\.jpg: the outline of annotation 5 cannot be drawn"):
        coco((0, {"id": 5, "bbox": [0, 0, 1, 1], "segmentation": outline})).read()


def test_a_size_that_no_picture_has() -> None:
    with pytest.raises(CorpusError, match="no size of a picture"):
        coco(height=10**6, width=10**6).read()
