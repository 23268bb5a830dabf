"""Picture grids: the pixels that go in come out where they belong, whole files only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from colorgan.evaluation.picture_grids import (
    BOX_CELL_PX,
    GAP_PX,
    VOID_COLOUR,
    box_grid,
    color_grid,
    mask_colors,
    mask_grid,
    paint_mask,
    to_uint8_HWC,
)


def flat(value: float, side: int = 16, channels: int = 3) -> Tensor:
    return torch.full((channels, side, side), value)


def read(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert picture.mode == "RGB"
        return np.asarray(picture)


def test_to_uint8_rounds_clips_and_takes_every_shape() -> None:
    row = torch.tensor(
        [
            [
                0.0,
                1.0,
                0.5,
                -3.0,
                7.0,
                float("nan"),
                1 / 255,
            ]
        ]
    )

    assert to_uint8_HWC(row)[0, :, 0].tolist() == [0, 255, 128, 0, 255, 0, 1]
    assert to_uint8_HWC(row[None].bfloat16()).shape == (1, 7, 3)
    bytes_3HW = torch.arange(24, dtype=torch.uint8).view(
        3,
        2,
        4,
    )

    assert np.array_equal(
        to_uint8_HWC(bytes_3HW),
        bytes_3HW.permute(1, 2, 0).numpy(),
    )
    assert to_uint8_HWC(flat(0.5).requires_grad_()).flags["C_CONTIGUOUS"]
    with pytest.raises(ValueError, match=r"got the shape \(2, 4, 4\)"):
        to_uint8_HWC(torch.zeros(2, 4, 4))


def test_color_grid_places_each_picture(tmp_path: Path) -> None:
    rows = [
        (
            flat(0.1, channels=1),
            flat(0.2),
            flat(0.3),
        ),
        (
            flat(0.4, channels=1),
            flat(0.5),
            flat(0.6),
        ),
    ]
    path = tmp_path / "new" / "grid.png"
    color_grid(path, rows, ["first", "second"])
    sheet = read(path)

    assert sheet.shape[1] == 3 * (128 + GAP_PX) + GAP_PX  # 16 pixels enlarged eight times
    middles = [GAP_PX + 64 + column * (128 + GAP_PX) for column in range(3)]
    column = [sheet[:, x, 0].tolist() for x in middles]
    for row, values in enumerate([(0.1, 0.2, 0.3), (0.4, 0.5, 0.6)]):
        for index, value in enumerate(values):
            shade = round(value * 255)
            assert column[index].count(shade) >= 128, (row, index)
    header = sheet[: sheet.shape[0] // 16]

    assert (header < 128).any(axis=(0, 2))[: GAP_PX + 128].any()  # ink over each column
    assert (header < 128).any(axis=(0, 2))[-128:].any()
    assert [file.name for file in path.parent.iterdir()] == ["grid.png"]


def test_a_grid_of_large_pictures_keeps_their_pixels(tmp_path: Path) -> None:
    original = torch.rand(
        3,
        150,
        130,
        generator=torch.Generator().manual_seed(0),
    )
    color_grid(
        tmp_path / "g.png",
        [(original.mean(0), original, original)],
    )
    sheet = read(tmp_path / "g.png")
    bottom = sheet.shape[0] - GAP_PX

    assert np.array_equal(
        sheet[bottom - 150 : bottom, -130 - GAP_PX : -GAP_PX], to_uint8_HWC(original)
    )


def test_grids_refuse_what_they_cannot_draw(tmp_path: Path) -> None:
    row = (
        flat(0.1),
        flat(0.2),
        flat(0.3),
    )

    with pytest.raises(ValueError, match="at least one row"):
        color_grid(tmp_path / "g.png", [])
    with pytest.raises(ValueError, match="2 captions for 1 rows"):
        color_grid(
            tmp_path / "g.png",
            [row],
            ["a", "b"],
        )
    assert list(tmp_path.iterdir()) == []


def test_a_grid_that_cannot_be_written_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "g.png"
    color_grid(
        path,
        [
            (
                flat(0.1),
                flat(0.2),
                flat(0.3),
            )
        ],
    )
    before = path.read_bytes()

    def full(self: Image.Image, file: Path, format: str) -> None:
        Path(file).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match="No space left"):
        color_grid(
            path,
            [
                (
                    flat(0.9),
                    flat(0.8),
                    flat(0.7),
                )
            ],
        )
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_mask_colors_are_vocs_and_the_palettes() -> None:
    assert mask_colors()[:5].tolist() == [
        [0, 0, 0],
        [128, 0, 0],
        [0, 128, 0],
        [128, 128, 0],
        [0, 0, 128],
    ]
    assert mask_colors()[20].tolist() == [0, 64, 128]  # tvmonitor

    colors = mask_colors([(1, 2, 3), (4, 5, 6)])
    assert colors[:3].tolist() == [
        [1, 2, 3],
        [4, 5, 6],
        [0, 128, 0],
    ]
    assert colors[255].tolist() == list(VOID_COLOUR)


def test_paint_mask_tints_classes_and_leaves_the_background() -> None:
    photo = np.full(
        (1, 3, 3),
        100,
        dtype=np.uint8,
    )
    painted = paint_mask(
        photo,
        np.array(
            [[0, 1, 255]],
            dtype=np.uint8,
        ),
        mask_colors(),
    )

    assert painted[0, 0].tolist() == [100, 100, 100]
    assert painted[0, 1].tolist() == [118, 35, 35]  # 0.35 * 100 + 0.65 * (128, 0, 0)
    assert painted[0, 2].tolist() == [round(35 + 0.65 * part) for part in VOID_COLOUR]


def test_mask_grid_paints_both_masks_and_names_what_is_there(tmp_path: Path) -> None:
    truth = torch.zeros(16, 16, dtype=torch.int64)
    predicted = torch.full((16, 16), 3)
    truth[:8] = 255
    rows = [(flat(0.5), truth, predicted)]
    mask_grid(
        tmp_path / "named.png",
        rows,
        classes=("cat", "dog"),
        captions=["one"],
    )
    mask_grid(tmp_path / "bare.png", rows, captions=["one"])
    named = read(tmp_path / "named.png")
    bare = read(tmp_path / "bare.png")
    legend = named[bare.shape[0] - GAP_PX :]
    for color in (
        mask_colors()[3],
        VOID_COLOUR,
    ):  # class 3 is beyond the two names, and still drawn
        assert (legend == np.array(color)).all(axis=2).any()
    middle = bare[-GAP_PX - 64, [GAP_PX + 64, 2 * GAP_PX + 192, 3 * GAP_PX + 320]]

    assert middle[0].tolist() == [128, 128, 128] == middle[1].tolist()
    assert middle[2].tolist() == [128, 128, 45] or middle[2].tolist() == [128, 128, 44]


def test_box_grid_frames_what_the_boxes_bound(tmp_path: Path) -> None:
    colors = [
        (0, 0, 0),
        (200, 0, 0),
        (0, 0, 200),
    ]
    first = [
        (
            (0.25, 0.25, 0.75, 1.0),
            0,
            "cat",
        )
    ]
    second = [
        (
            (0.0, 0.5, 0.5, 1.0),
            1,
            "owl 52",
        )
    ]
    path = tmp_path / "boxes.png"
    box_grid(
        path,
        [
            (flat(0.5, side=64), first, second),
            (flat(0.5, side=64), [], []),
        ],
        colors,
        ["a", "b"],
    )
    cells = BOX_CELL_PX
    whole = read(path)

    assert whole.shape[1] == 3 * cells + 4 * GAP_PX
    top = next(y for y in range(whole.shape[0]) if (whole[y, GAP_PX + 2] == 128).all())
    photo, truth, predicted = (
        whole[top : top + cells, GAP_PX + i * (cells + GAP_PX) :][:, :cells] for i in range(3)
    )

    assert (photo == 128).all()
    for cell, color, (x0, y0, x1, y1) in (
        (truth, colors[1], (64, 64, 192, 256)),
        (predicted, colors[2], (0, 128, 128, 256)),
    ):
        rows, columns = np.nonzero((cell == color).all(-1))
        assert (
            columns.min(),
            rows.min(),
            columns.max() + 1,
            rows.max() + 1,
        ) == (x0, y0, x1, y1)
        assert (cell[y1 - 20 : y1 - 2, x0 + 20 : x1 - 20] == 128).all()


def test_a_box_under_a_pixel_is_a_dot(tmp_path: Path) -> None:
    """A far object of a large photo: its corner is still drawn."""
    tiny = [
        (
            (0.5, 0.5, 0.501, 0.502),
            0,
            "",
        )
    ]
    box_grid(
        tmp_path / "tiny.png",
        [(flat(0.5, side=64), tiny, [])],
        [(0, 0, 0), (200, 0, 0)],
    )

    assert (read(tmp_path / "tiny.png") == [200, 0, 0]).all(-1).any()
