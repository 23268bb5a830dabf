"""Strips: the cells that go in come out.

What somebody else wrote in their folder is bounded or left out.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from colorgan.evaluation.strips import STRIPS, read_index, read_strips, write_strips


def written(folder: Path) -> Path:
    cells = [np.full((4, 5, 3), shade, np.uint8) for shade in (10, 20)]
    write_strips(
        folder,
        ("grey", "original"),
        [(7, {"psnr": 20.5}, cells)],
    )
    return folder


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    folder = written(tmp_path / "best")
    cells = [np.zeros((4, 5, 3), np.uint8)] * 2
    write_strips(
        folder,
        ("grey", "original"),
        [
            (9, {}, cells),
            (8, {}, cells),
        ],
    )

    assert sorted(path.name for path in folder.iterdir()) == [
        "sample-8.png",
        "sample-9.png",
        STRIPS,
    ]
    assert [strip.sample_id for strip in read_strips(folder)] == [9, 8]
    assert [strip.sample_id for strip in read_strips(folder, most=1)] == [9]
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


def test_cells_come_out_as_they_went_in(tmp_path: Path) -> None:
    (strip,) = read_strips(written(tmp_path / "s"))
    assert strip.scores == {"psnr": 20.5}
    colors = {name: cell.getcolors() for name, cell in strip.cells.items()}
    assert colors == {
        "grey": [(20, (10, 10, 10))],
        "original": [(20, (20, 20, 20))],
    }


@pytest.mark.parametrize(
    "file",
    ["../sample-7.png", "/etc/passwd", "sample-7.png/..", 5, None],
)
def test_a_name_cannot_lead_out_of_the_folder(tmp_path: Path, file: Any) -> None:
    folder = written(tmp_path / "s")
    (tmp_path / "sample-7.png").write_bytes((folder / "sample-7.png").read_bytes())
    index = json.loads((folder / STRIPS).read_text())
    index["strips"][0]["file"] = file
    (folder / STRIPS).write_text(json.dumps(index))
    assert read_strips(folder) == []


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", '{"cells": []}', '{"cells": ["a", "a"]}'],
)
def test_a_damaged_index_is_none(tmp_path: Path, text: str) -> None:
    folder = written(tmp_path / "s")
    (folder / STRIPS).write_text(text)
    assert read_index(folder) is None
    assert read_strips(folder) == []


def test_pictures_that_cannot_be_cut_are_left_out(tmp_path: Path) -> None:
    folder = written(tmp_path / "s")
    Image.new("RGB", (11, 4)).save(folder / "sample-7.png")
    assert read_strips(folder) == []
    (folder / "sample-7.png").write_bytes(b"no picture")
    assert read_strips(folder) == []
