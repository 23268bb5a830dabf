"""Photos as users hold them: equal ones give the same tensor, ambiguous ones are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from colorgan.errors import UsageError
from colorgan.models.photo_input import as_photo, as_photos

RGB_HW3 = np.random.default_rng(0).integers(
    2,
    256,
    (5, 7, 3),
    dtype=np.uint8,
)
GREY_HW = RGB_HW3[..., 0]
UNIT_HW3 = RGB_HW3.astype(np.float32) / 255


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(RGB_HW3),
        RGB_HW3,
        RGB_HW3[::-1][::-1],
        torch.from_numpy(RGB_HW3).permute(2, 0, 1),
    ],
)
def test_one_photo_of_bytes_however_it_is_held(image: Any) -> None:
    assert torch.equal(
        as_photo(image),
        torch.from_numpy(RGB_HW3).permute(2, 0, 1),
    )


@pytest.mark.parametrize(
    "image",
    [
        UNIT_HW3,
        UNIT_HW3.astype(np.float64),
        UNIT_HW3.astype(">f4"),
        torch.from_numpy(UNIT_HW3).permute(2, 0, 1),
    ],
)
def test_one_photo_of_floats_however_it_is_held(image: Any) -> None:
    photo = as_photo(image)
    assert photo.dtype == torch.float32
    assert torch.equal(
        photo,
        torch.from_numpy(UNIT_HW3).permute(2, 0, 1),
    )


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(GREY_HW),
        GREY_HW,
        GREY_HW[..., None],
        torch.from_numpy(GREY_HW),
        torch.from_numpy(GREY_HW)[None],
    ],
)
def test_grey_has_three_equal_channels(image: Any) -> None:
    assert torch.equal(
        as_photo(image),
        torch.from_numpy(GREY_HW).expand(3, 5, 7),
    )


def test_deep_grey_keeps_its_depth() -> None:
    deep = np.array([[0, 1000, 65535]], dtype=np.uint16)
    photo = as_photo(Image.fromarray(deep))
    assert torch.equal(
        photo[0],
        torch.tensor([[0.0, 1000 / 65535, 1.0]]),
    )


def test_pil_is_turned_upright_and_laid_on_white() -> None:
    turned = Image.fromarray(RGB_HW3)
    turned.getexif()[0x0112] = 6
    assert as_photo(turned).shape == (3, 7, 5)
    clear = Image.new("RGBA", (2, 2), (10, 20, 30, 0))
    assert as_photo(clear).unique().tolist() == [255]
    assert as_photo(Image.new("RGB", (2, 2), (1, 1, 1))).unique().tolist() == [1]  # dark, not cast


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (RGB_HW3.astype(np.float32), "from 2 to 248: .*divide by 255"),
        (UNIT_HW3 * 2 - 1, "values from -.*without a mean"),
        (np.full((4, 4), np.nan), "values from nan to nan"),
        (RGB_HW3.transpose(2, 0, 1), r"not 3 x 5 x 7.*transpose\(1, 2, 0\)"),
        (torch.from_numpy(RGB_HW3), r"not 5 x 7 x 3.*permute\(2, 0, 1\)"),
        (np.zeros((4, 4, 4), np.uint8), "transparency"),
        (RGB_HW3[None], "not 1 x 5 x 7 x 3"),
        (GREY_HW > 9, "bool does not say"),
        (GREY_HW.astype(np.uint16), "uint16 does not say"),
        (torch.zeros(3, 4, 4, dtype=torch.int64), "int64 does not say"),
        ((UNIT_HW3 + 0.5).astype(np.uint8), "zeros and ones only"),
        (np.zeros((0, 4), np.uint8), "no pixels"),
        (Image.new("F", (3, 3)), "mode F"),
        ("photo.jpg", "is a path"),
        (Path("photo.jpg"), "is a path"),
        (7, "not a int"),
    ],
)
def test_what_could_be_read_in_two_ways_is_refused(image: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        as_photo(image)


def test_one_and_several() -> None:
    assert as_photos(RGB_HW3)[1]
    assert as_photos(Image.fromarray(RGB_HW3))[1]
    assert not as_photos([RGB_HW3])[1]
    assert len(as_photos(RGB_HW3[None].repeat(3, 0))[0]) == 3
    assert len(as_photos(iter([RGB_HW3, GREY_HW]))[0]) == 2
