"""PNG masks of every bit depth and kind, and palettes, on files made here."""

import pickle
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets.corpora.masks import IndexMask, read_plane
from datasets.corpora.palette import voc_palette
from datasets.errors import CorpusError

INDICES = np.array(
    [
        [0, 1, 2],
        [20, 255, 3],
    ],
    np.uint8,
)


def save_palette(path: Path, plane: np.ndarray, colors: list[int]) -> Path:
    """Write a palette PNG with these colours, whatever they are."""
    picture = Image.fromarray(plane)
    picture.putpalette(colors)
    picture.save(path)
    return path


def save_low_bits(path: Path, rows: list[list[int]], bits: int) -> Path:
    """Write a grey PNG of 1, 2 or 4 bits, which Pillow cannot."""

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


def test_palette_is_vocs() -> None:
    palette = voc_palette(255)

    assert palette[:5] == (
        (0, 0, 0),
        (128, 0, 0),
        (0, 128, 0),
        (128, 128, 0),
        (0, 0, 128),
    )
    assert palette[15] == (192, 128, 128)
    assert palette[255] == (224, 224, 192)
    assert len(set(palette)) == 256


def test_palette_masks_give_indices_whatever_the_colors(tmp_path: Path) -> None:
    grey = save_palette(
        tmp_path / "grey.png",
        INDICES,
        [7] * 768,
    )

    np.testing.assert_array_equal(
        IndexMask(grey, 20).read(),
        INDICES,
    )
    np.testing.assert_array_equal(
        pickle.loads(pickle.dumps(IndexMask(grey))).read(),
        INDICES,
    )


def test_a_palette_of_four_bits_gives_indices(tmp_path: Path) -> None:
    plane = np.array(
        [[0, 3], [2, 1]],
        np.uint8,
    )
    picture = Image.fromarray(plane)
    picture.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0, 1, 1, 1])
    picture.save(tmp_path / "m.png", bits=4)
    np.testing.assert_array_equal(
        IndexMask(tmp_path / "m.png").read(),
        plane,
    )


def test_grey_masks_of_eight_and_sixteen_bits(tmp_path: Path) -> None:
    Image.fromarray(INDICES).save(tmp_path / "8.png")
    Image.fromarray(INDICES.astype(np.uint16)).save(tmp_path / "16.png")
    for name in ("8.png", "16.png"):
        mask = IndexMask(tmp_path / name, 20)
        assert mask.read().dtype == np.uint8
        np.testing.assert_array_equal(mask.read(), INDICES)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_grey_masks_of_few_bits_are_not_stretched(tmp_path: Path, bits: int) -> None:
    rows = [
        [0, 1, 2**bits - 1],
        [1, 0, 0],
    ]
    path = save_low_bits(
        tmp_path / "m.png",
        rows,
        bits,
    )

    np.testing.assert_array_equal(
        IndexMask(path).read(),
        rows,
    )


def test_masks_that_are_none(tmp_path: Path) -> None:
    Image.new(
        "RGB",
        (2, 2),
        (1, 2, 3),
    ).save(tmp_path / "rgb.png")
    save_palette(
        tmp_path / "big.png",
        INDICES,
        [0] * 768,
    )
    (tmp_path / "short.png").write_bytes((tmp_path / "big.png").read_bytes()[:-30])
    (tmp_path / "text.png").write_text("hello")
    Image.new("L", (2, 2)).save(
        tmp_path / "jpeg.png",
        format="JPEG",
    )
    cases = {
        "rgb.png": "is a color picture",
        "big.png": "index 20, .* 19 classes",
        "short.png": "cannot be decoded",
        "text.png": "not a PNG, TIFF or BMP",
        "jpeg.png": "is a JPEG, which changes values",
        "none.png": "cannot be read",
    }

    for name, message in cases.items():
        with pytest.raises(CorpusError, match=message):
            IndexMask(tmp_path / name, 19).read()


@pytest.mark.parametrize("suffix", [".tif", ".bmp"])
@pytest.mark.parametrize("mode", ["L", "P", "1", "RGB"])
def test_masks_of_other_lossless_formats(tmp_path: Path, suffix: str, mode: str) -> None:
    plane = np.array(
        [[0, 255], [255, 0]],
        np.uint8,
    )
    picture = Image.fromarray(plane)
    if mode == "P":
        picture.putpalette([7] * 768)
    elif mode != "L":
        picture = picture.convert(mode)
    picture.save(tmp_path / f"m{suffix}")

    expected = plane // 255 if mode == "1" else plane
    np.testing.assert_array_equal(
        IndexMask(tmp_path / f"m{suffix}").read(),
        expected,
    )


@pytest.mark.parametrize(
    "dtype, value, shown",
    [
        (np.int32, -1, "-1"),
        (np.int32, 2_000_000_000, "2000000000"),
        (np.int32, 65_536, "65536"),
        (np.float32, -1, "-1"),
        (np.float32, float("nan"), "nan"),
        (np.float32, 0.5, "0.5"),
        (np.float32, 65_536, "65536"),
    ],
)
def test_values_that_are_no_indices_are_refused(
    tmp_path: Path, dtype: type, value: float, shown: str
) -> None:
    plane = np.zeros((2, 3), dtype)
    plane[1, 1] = value
    Image.fromarray(plane).save(tmp_path / "a.tif")
    with pytest.raises(CorpusError, match=rf"a\.tif: the mask holds {shown};.* from 0 to 65535"):
        read_plane(tmp_path / "a.tif")


@pytest.mark.parametrize("dtype", [np.int32, np.float32, np.uint16])
def test_whole_numbers_of_any_type_are_indices(tmp_path: Path, dtype: type) -> None:
    Image.fromarray(INDICES.astype(dtype)).save(tmp_path / "a.tif")
    np.testing.assert_array_equal(IndexMask(tmp_path / "a.tif").read(), INDICES)


def test_grey_with_alpha_in_a_tiff_is_its_grey(tmp_path: Path) -> None:
    grey = Image.fromarray(INDICES)
    Image.merge("LA", (grey, grey)).save(tmp_path / "a.tif")
    np.testing.assert_array_equal(IndexMask(tmp_path / "a.tif").read(), INDICES)
