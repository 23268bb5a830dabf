"""Strips: one PNG per image with its cells side by side, and a JSON file of their scores.

    images-000000000064/strips.json      what the cells show; each strip's file, sample and scores
    images-000000000064/sample-12.png    grey | coloured | original, without captions or gaps

A strip's cells are equally wide. The captioned grids of colorgan/evaluation/picture_grids.py show
the same images.
"""

from __future__ import annotations

import re
import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict

from colorgan.files import entries, mapping, numbers, read_json, short, whole

STRIPS = "strips.json"
MAX_STRIPS = 1000
MAX_CELLS = 8
MAX_PIXELS = 60_000_000
# A name that cannot lead out of the folder.
_FILE = re.compile(r"sample-[0-9]{1,18}\.png", re.ASCII)


class Strip(BaseModel):
    """One image's entry in strips.json.

    Attributes:
        file: Name of its PNG, beside strips.json.
        sample_id: Its number in the set.
        scores: By name, such as psnr and grey_psnr in dB.
    """

    model_config = ConfigDict(frozen=True)

    file: str
    sample_id: int
    scores: dict[str, float] = {}


class StripIndex(BaseModel):
    """The record in strips.json.

    Attributes:
        cells: What the cells of every strip show, from left to right.
        strips: In the order in which they are to be shown.
    """

    model_config = ConfigDict(frozen=True)

    cells: tuple[str, ...]
    strips: tuple[Strip, ...] = ()


@dataclass(frozen=True)
class OpenStrip:
    """One image's cells and scores, as read.

    Attributes:
        sample_id: Its number in the set.
        scores: By name.
        cells: RGB images by what they show, equally large, from left to right.
    """

    sample_id: int
    scores: dict[str, float]
    cells: dict[str, Image.Image]


def write_strips(
    folder: Path,
    cells: Sequence[str],
    images: Sequence[tuple[int, Mapping[str, float], Sequence[NDArray[np.uint8]]]],
) -> None:
    """Write a folder of strips in place of what it held. Rank 0 only.

    Args:
        folder: Appears whole; an older one is removed.
        cells: What the cells show.
        images: Per image its number in the set, its scores, and its cells: H x W x 3 bytes of one
            size.
    """
    # Beside the target and renamed: a page that is drawn meanwhile sees old strips or new ones.
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)

    strips = []
    for sample_id, scores, pixels in images:
        file = f"sample-{sample_id}.png"
        Image.fromarray(np.concatenate(list(pixels), axis=1)).save(partial / file)
        # Enough for a caption; the scores themselves are in scores.json.
        rounded = {name: round(score, 4) for name, score in scores.items()}
        strips.append(Strip(file=file, sample_id=sample_id, scores=rounded))

    index = StripIndex(cells=tuple(cells), strips=tuple(strips))
    (partial / STRIPS).write_text(index.model_dump_json(indent=1) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def read_index(folder: Path) -> StripIndex | None:
    """Return the record of a folder of strips; None where there is none, or it is damaged.

    Sizes are bounded.
    """
    fields = read_json(folder / STRIPS)
    cells = tuple(short(name) for name in entries(fields.get("cells"), MAX_CELLS))
    # Two cells of one name would be one entry of the result.
    if not cells or len(set(cells)) != len(cells):
        return None

    strips = []
    for entry in entries(fields.get("strips"), MAX_STRIPS):
        file, sample_id = mapping(entry).get("file"), whole(mapping(entry).get("sample_id"))
        # The name is joined to a path: it must not lead elsewhere.
        if isinstance(file, str) and _FILE.fullmatch(file) and sample_id is not None:
            scores = numbers(mapping(entry).get("scores"))
            strips.append(Strip(file=file, sample_id=sample_id, scores=scores))
    return StripIndex(cells=cells, strips=tuple(strips))


def read_strips(folder: Path, most: int = MAX_STRIPS) -> list[OpenStrip]:
    """Return up to `most` strips of a folder, in order; those that cannot be read are left out."""
    index = read_index(folder)
    if index is None:
        return []

    opened = []
    for strip in index.strips[:most]:
        picture = _open(folder / strip.file)
        if picture is None or picture.width % len(index.cells):
            continue

        width = picture.width // len(index.cells)
        cells = {}
        for place, name in enumerate(index.cells):
            cells[name] = picture.crop((place * width, 0, (place + 1) * width, picture.height))
        opened.append(OpenStrip(strip.sample_id, strip.scores, cells))
    return opened


def _open(path: Path) -> Image.Image | None:
    """Return an RGB image; None when it cannot be read or is enormous."""
    try:
        with warnings.catch_warnings():
            # Pillow only warns of images that may be decompression bombs.
            warnings.simplefilter("error")
            with Image.open(path, formats=("PNG",)) as picture:
                if picture.width * picture.height > MAX_PIXELS:
                    return None
                return picture.convert("RGB")
    except (OSError, ValueError, SyntaxError, Warning, Image.DecompressionBombError):
        return None
