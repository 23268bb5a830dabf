"""Pictures of the report: the grids that a run saved are cut into their cells and put together over time.

The grids are those of colorgan/evaluation/picture_grids.py: a row a photo with a caption above, columns grey, coloured, original.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from colorgan.evaluation.picture_grids import GAP_PX

MAX_PIXELS = 60_000_000
MAX_PHOTOS = 8
MAX_STAGES = 5
JPEG_QUALITY = 92
MAX_WIDTH_PX = 1000  # of a picture that is shown whole


@dataclass(frozen=True)
class Stage:
    """The coloured cells of one validation."""

    images: int
    share: float | None  # of the run's length
    cells: list[Image.Image]

    @property
    def caption(self) -> str:
        """After how much training."""
        return f"{100 * self.share:.0f} %" if self.share is not None else f"{self.images:,}"


@dataclass(frozen=True)
class Progress:
    """Photos over the course of a run."""

    grey: list[Image.Image]
    stages: list[Stage]
    original: list[Image.Image]

    def rows(self) -> list[list[tuple[str, Image.Image]]]:
        """A row a photo of (caption, picture), from grey to original."""
        count = min(
            len(self.grey), len(self.original), *(len(stage.cells) for stage in self.stages)
        )
        return [
            [
                ("grey", self.grey[i]),
                *((stage.caption, stage.cells[i]) for stage in self.stages),
                ("original", self.original[i]),
            ]
            for i in range(count)
        ]


def cut_grid(picture: Image.Image) -> list[list[Image.Image]]:
    """Return rows of three cells of a grid of colour_grid; [] when the picture is no such grid."""
    cell_px, rest = divmod(picture.width - 4 * GAP_PX, 3)
    if rest or cell_px < 1:
        return []
    text_px = max(13, cell_px // 14)
    line_px = text_px * 3 // 2
    count, rest = divmod(picture.height - GAP_PX - line_px, line_px + cell_px)
    if rest or count < 1:
        return []
    lefts = [GAP_PX + column * (cell_px + GAP_PX) for column in range(3)]
    tops = [line_px + row * (line_px + cell_px) + line_px for row in range(count)]
    return [
        [picture.crop((left, top, left + cell_px, top + cell_px)) for left in lefts] for top in tops
    ]


def open_picture(path: Path) -> Image.Image | None:
    """Return a picture that a run saved, in RGB; None when it cannot be read or is enormous."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with Image.open(path, formats=("PNG",)) as picture:
                return (
                    picture.convert("RGB") if picture.width * picture.height <= MAX_PIXELS else None
                )
    except (OSError, ValueError, SyntaxError, Warning, Image.DecompressionBombError):
        return None


def progress(pictures: Sequence[tuple[int, Path]], total_images: int | None) -> Progress | None:
    """Return photos over the course of a run, at up to five validations spread over it; None without grids."""
    cut = [
        (images, cut_grid(grid))
        for images, path in _spread(pictures)
        if (grid := open_picture(path)) is not None
    ]
    cut = [(images, rows[:MAX_PHOTOS]) for images, rows in cut if rows]
    if not cut:
        return None
    last = cut[-1][1]
    same_size = [(images, rows) for images, rows in cut if rows[0][0].size == last[0][0].size]
    stages = [
        Stage(
            images,
            min(1.0, images / total_images) if total_images else None,
            [row[1] for row in rows],
        )
        for images, rows in same_size
    ]
    return Progress([row[0] for row in last], stages, [row[2] for row in last])


def _spread(pictures: Sequence[tuple[int, Path]]) -> list[tuple[int, Path]]:
    if len(pictures) <= MAX_STAGES:
        return list(pictures)
    places = {round(i * (len(pictures) - 1) / (MAX_STAGES - 1)) for i in range(MAX_STAGES)}
    return [pictures[i] for i in sorted(places)]


def sheet(rows: Sequence[Sequence[tuple[str, Image.Image]]]) -> Image.Image:
    """Put rows of captioned pictures on one sheet, for the PNG beside the page."""
    from PIL import ImageDraw, ImageFont

    width, height = rows[0][0][1].size
    line_px = 22
    whole = Image.new(
        "RGB",
        (GAP_PX + len(rows[0]) * (width + GAP_PX), line_px + len(rows) * (height + GAP_PX)),
        "white",
    )
    write = ImageDraw.Draw(whole)
    font = ImageFont.load_default(size=14)
    for column, (caption, _) in enumerate(rows[0]):
        write.text((GAP_PX + column * (width + GAP_PX), 2), caption, fill=(20, 20, 20), font=font)
    for index, row in enumerate(rows):
        for column, (_, picture) in enumerate(row):
            whole.paste(
                picture, (GAP_PX + column * (width + GAP_PX), line_px + index * (height + GAP_PX))
            )
    return whole


def narrowed(picture: Image.Image) -> Image.Image:
    """Return a picture of at most 1000 pixels' width."""
    if picture.width <= MAX_WIDTH_PX:
        return picture
    height = max(1, round(picture.height * MAX_WIDTH_PX / picture.width))
    return picture.resize((MAX_WIDTH_PX, height), Image.Resampling.LANCZOS)


def png_bytes(picture: Image.Image) -> bytes:
    """Return a picture as PNG."""
    out = io.BytesIO()
    picture.save(out, format="PNG", optimize=True)
    return out.getvalue()


def jpeg_bytes(picture: Image.Image) -> bytes:
    """Return a picture as JPEG with full chroma: colour is what is shown."""
    out = io.BytesIO()
    picture.save(out, format="JPEG", quality=JPEG_QUALITY, subsampling=0)
    return out.getvalue()
