"""shards/images/label_frame.py: every EXIF turn; labels of stored, upright, resized images."""

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from shards.errors import PictureError
from shards.images.label_frame import label_frame, mask_frame
from shards.images.policy import Geometry

WIDTH, HEIGHT = 64, 48  # as stored
BOX = (40, 8, 60, 24)  # of the stored picture


def geometry_of(orientation: int, width: int = WIDTH, height: int = HEIGHT) -> Geometry:
    """Return the policy that stores an image at its own upright size."""
    upright = (height, width) if orientation >= 5 else (width, height)
    return Geometry(width, height, orientation, *upright)


def upright_box(orientation: int) -> list[int]:
    """Where Pillow shows the stored BOX."""
    plane = np.zeros((HEIGHT, WIDTH), np.uint8)
    plane[BOX[1] : BOX[3], BOX[0] : BOX[2]] = 1
    tags = Image.Exif()
    tags[0x0112] = orientation
    buffer = io.BytesIO()
    Image.fromarray(plane).save(buffer, "PNG", exif=tags)

    rows, columns = np.nonzero(np.asarray(ImageOps.exif_transpose(Image.open(buffer))))
    return [
        columns.min(),
        rows.min(),
        columns.max() + 1,
        rows.max() + 1,
    ]


@pytest.mark.parametrize(
    "orientation",
    [1, 5, 6, 7, 8],
)
@pytest.mark.parametrize("factor", [1, 2, 0.5])
def test_a_label_of_the_stored_picture_is_turned_and_scaled(
    orientation: int, factor: float
) -> None:
    geometry = geometry_of(orientation)
    frame = label_frame(
        (
            int(WIDTH * factor),
            int(HEIGHT * factor),
        ),
        geometry,
    )
    x0, y0, x1, y1 = (value * factor for value in BOX)

    assert frame.move_box(
        (x0, y0, x1, y1),
        geometry,
    ) == upright_box(orientation)
    assert (
        frame.move_area(
            100 * factor**2,
            geometry,
        )
        == 100
    )


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("factor", [1, 2, 0.5])
def test_a_label_of_the_upright_picture_is_scaled_only(orientation: int, factor: float) -> None:
    geometry = geometry_of(orientation)
    width, height = geometry.upright
    frame = label_frame(
        (
            int(width * factor),
            int(height * factor),
        ),
        geometry,
    )
    x0, y0, x1, y1 = (value * factor for value in upright_box(orientation))

    assert not frame.is_stored
    assert frame.move_box(
        (x0, y0, x1, y1),
        geometry,
    ) == upright_box(orientation)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_without_a_size_the_label_is_of_the_upright_picture(orientation: int) -> None:
    geometry = geometry_of(orientation)
    x0, y0, x1, y1 = upright_box(orientation)
    assert label_frame(None, geometry).move_box(
        (x0, y0, x1, y1),
        geometry,
    ) == [x0, y0, x1, y1]


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_square_pictures_are_labelled_upright(orientation: int) -> None:
    geometry = geometry_of(orientation, 50, 50)
    assert not label_frame((50, 50), geometry).is_stored
    assert not mask_frame((50, 50), geometry).is_stored


def test_nearly_square_pictures_go_by_the_exact_size() -> None:
    geometry = geometry_of(6, 101, 100)
    assert label_frame((101, 100), geometry).is_stored
    assert not label_frame((100, 101), geometry).is_stored
    assert label_frame((202, 200), geometry).is_stored
    assert not label_frame((200, 202), geometry).is_stored


@pytest.mark.parametrize(
    "stated",
    [
        (640, 427),
        (320, 213),
        (320, 214),
        (1281, 854),
        (100, 67),
    ],
)
def test_sizes_rounded_in_a_resize_are_scaled(stated: tuple[int, int]) -> None:
    geometry = geometry_of(1, 640, 427)
    frame = label_frame(stated, geometry)
    full = (0, 0, *stated)
    assert frame.move_box(full, geometry) == pytest.approx([0, 0, 640, 427])


@pytest.mark.parametrize(
    "stated",
    [(641, 427), (639, 426)],
)
def test_a_pixel_more_or_less_is_no_other_scale_for_a_label_and_refused_for_a_mask(
    stated: tuple[int, int],
) -> None:
    geometry = geometry_of(1, 640, 427)
    assert label_frame(stated, geometry).move_box(
        (3, 4, 5, 6),
        geometry,
    ) == [3, 4, 5, 6]
    with pytest.raises(PictureError, match="its picture 427 x 640"):
        mask_frame(stated, geometry)


@pytest.mark.parametrize(
    "stated",
    [
        (427, 640),
        (640, 400),
        (640, 640),
        (0, 0),
        (-640, -427),
        (1, 500),
    ],
)
def test_other_sizes_are_refused_with_both(stated: tuple[int, int]) -> None:
    with pytest.raises(PictureError, match=rf"{stated[0]} x {stated[1]} .* 640 x 427"):
        label_frame(stated, geometry_of(1, 640, 427))
    with pytest.raises(PictureError, match=rf"mask is {stated[1]} x {stated[0]}"):
        mask_frame(stated, geometry_of(1, 640, 427))


def test_the_orientation_is_named_where_it_matters() -> None:
    with pytest.raises(PictureError, match="before EXIF orientation 6"):
        label_frame((640, 400), geometry_of(6, 640, 427))


def test_boxes_that_contradict_the_stated_size_are_refused() -> None:
    geometry = geometry_of(1, 640, 480)
    frame = label_frame((320, 240), geometry)
    frame.check_boxes(
        [
            (0, 0, 320, 240),
            (10, 10, 325, 244),
        ]
    )

    with pytest.raises(PictureError, match=r"beyond it: 320 x 240 .* reaches to 600, 200"):
        frame.check_boxes(
            [
                (0, 0, 10, 10),
                (500, 100, 600, 200),
            ]
        )

    label_frame((640, 480), geometry).check_boxes([(0, 0, 900, 900)])
