"""Picture grids to look at, as PNG: grey, colored, original.

Photo with true and predicted mask, or boxes.

Text is drawn with Pillow's built-in font; files appear whole or not at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from colorgan.files import replacing

VOID = 255
VOID_COLOUR = (224, 224, 192)  # VOC's
MASK_OPACITY = 0.65
# Narrower cells would have no room for their captions.
MIN_CELL_PX = 128
MIN_TEXT_PX = 13
BOX_CELL_PX = 256
BOX_TEXT_PX = 14
GAP_PX = 6
INK, PAPER = (20, 20, 20), (255, 255, 255)

Bytes = NDArray[np.uint8]
Cells = Sequence[Bytes]
# x0, y0, x1, y1 as shares of the image, class from 0, and the text beside the box.
NamedBoxes = Sequence[tuple[Sequence[float], int, str]]
# A name and its color.
_Entry = tuple[str, tuple[int, ...]]


def to_uint8_HWC(picture: Tensor) -> Bytes:  # noqa: N802
    """Return an image as H x W x 3 bytes.

    Args:
        picture: Float in [0, 1] (clipped; NaN becomes black) or uint8; 3HW, 1HW or HW.

    Raises:
        ValueError: It has another shape.
    """
    picture = picture.detach().cpu()
    if picture.ndim == 2:
        picture = picture[None]
    if picture.ndim != 3 or picture.shape[0] not in (1, 3):
        raise ValueError(f"an image is 3HW, 1HW or HW, got the shape {tuple(picture.shape)}")

    if picture.dtype != torch.uint8:
        picture = (picture.float().nan_to_num(0.0).clamp(0.0, 1.0) * 255.0).round().to(torch.uint8)

    bytes_HW3: Bytes = picture.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy()
    return bytes_HW3


def color_grid(
    path: Path, rows: Sequence[tuple[Tensor, Tensor, Tensor]], captions: Sequence[str] = ()
) -> None:
    """Save a grid with one row per image: grey, colored, original.

    Args:
        path: The PNG to write; its folder is made if absent.
        rows: Images as `to_uint8_HWC` takes them.
        captions: One per row, above it, or none at all.
    """
    cells = [[to_uint8_HWC(picture) for picture in row] for row in rows]
    _save_png(path, _grid(cells, ("grey", "coloured", "original"), captions))


def mask_grid(
    path: Path,
    rows: Sequence[tuple[Tensor, Tensor, Tensor]],
    palette: Sequence[tuple[int, int, int]] = (),
    classes: Sequence[str] = (),
    captions: Sequence[str] = (),
) -> None:
    """Save a grid with one row per image: photo, true mask over it, predicted mask over it.

    Below, the classes seen.

    Args:
        path: The PNG to write; its folder is made if absent.
        rows: Photo as `to_uint8_HWC` takes it, then two masks HW of class indices: 0 = background,
            not painted; i + 1 = classes[i]; 255 = void.
        palette: Colors of the indices from 0 on; VOC's beyond its end.
        classes: Names of the classes without background, for the legend.
        captions: One per row, above it, or none at all.
    """
    colors = mask_colors(palette)
    cells = []
    for photo, *masks in rows:
        photo_HW3 = to_uint8_HWC(photo)
        row = [photo_HW3]
        for mask in masks:
            mask_HW = mask.detach().cpu().numpy().astype(np.uint8)
            row.append(paint_mask(photo_HW3, mask_HW, colors))
        cells.append(row)

    legend = _legend([mask for row in rows for mask in row[1:]], colors, classes)
    _save_png(path, _grid(cells, ("photo", "truth", "predicted"), captions, legend))


def box_grid(
    path: Path,
    rows: Sequence[tuple[Tensor, NamedBoxes, NamedBoxes]],
    palette: Sequence[tuple[int, int, int]] = (),
    captions: Sequence[str] = (),
) -> None:
    """Save a grid with one row per image: photo, true boxes on it, predicted boxes on it.

    Args:
        path: The PNG to write; its folder is made if absent.
        rows: Photo as `to_uint8_HWC` takes it, then two lists of boxes.
        palette: As for `mask_grid`; boxes of one class have its color.
        captions: One per row, above it, or none at all.
    """
    colors = mask_colors(palette)
    cells = []
    for photo, *lists in rows:
        picture = Image.fromarray(to_uint8_HWC(photo))
        scale = max(1, -(-BOX_CELL_PX // picture.width))
        size = picture.width * scale, picture.height * scale
        picture = picture.resize(size, Image.Resampling.BICUBIC)
        drawn = [draw_boxes(picture, boxes, colors) for boxes in lists]
        cells.append([np.asarray(picture), *drawn])

    _save_png(path, _grid(cells, ("photo", "truth", "predicted"), captions))


def draw_boxes(
    picture: Image.Image, boxes: NamedBoxes, colors: Bytes, text_px: int = BOX_TEXT_PX
) -> Bytes:
    """Return a copy of a photo of mode RGB with frames and their names, the first on top.

    Args:
        picture: The photo.
        boxes: Best first.
        colors: 256 x 3, by class index + 1.
        text_px: Height of the text; frames grow with it.
    """
    picture = picture.copy()
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size=text_px)
    for (x0, y0, x1, y1), index, name in reversed(boxes):
        left, top = x0 * picture.width, y0 * picture.height
        # A box of less than a pixel is drawn as one pixel.
        right = max(left, x1 * picture.width - 1)
        bottom = max(top, y1 * picture.height - 1)

        color = _rgb(colors[index + 1])
        draw.rectangle((left, top, right, bottom), outline=color, width=max(2, text_px // 7))
        draw.rectangle(draw.textbbox((left, top), name, font=font), fill=color)
        draw.text(
            (left, top),
            name,
            fill=PAPER if sum(color) < 384 else INK,
            font=font,
        )
    return np.asarray(picture)


def _rgb(color_3: Bytes) -> tuple[int, ...]:
    return tuple(color_3.tolist())


def paint_mask(photo_HW3: Bytes, mask_HW: Bytes, colors_256x3: Bytes) -> Bytes:
    """Return the photo with each pixel of a class tinted in its color.

    The background (0) stays as it is.
    """
    # The background stays bare, or it would hide what was not found.
    opacity_HW1 = np.where(mask_HW == 0, 0.0, MASK_OPACITY)[..., None]
    mixed_HW3 = photo_HW3 * (1.0 - opacity_HW1) + colors_256x3[mask_HW] * opacity_HW1
    painted: Bytes = np.rint(mixed_HW3).astype(np.uint8)
    return painted


def mask_colors(palette: Sequence[tuple[int, int, int]] = ()) -> Bytes:
    """Return a color for every index, 256 x 3.

    The palette's, VOC's color map beyond its end, 255 = void.
    """
    colors = np.zeros((256, 3), dtype=np.uint8)
    for index in range(256):
        # VOC's map deals out the index's bits to the channels, three at a time, to the highest
        # places first.
        rest = index
        for place in range(7, -1, -1):
            for channel in range(3):
                colors[index, channel] |= (rest >> channel & 1) << place
            rest >>= 3

    if palette:
        colors[: len(palette)] = palette
    colors[VOID] = VOID_COLOUR
    return colors


def _legend(masks: Sequence[Tensor], colors: Bytes, classes: Sequence[str]) -> list[_Entry]:
    if not classes:
        return []

    seen: set[int] = set()
    for mask in masks:
        seen.update(np.unique(mask.detach().cpu().numpy()).tolist())

    entries = []
    for index in sorted(seen - {0}):
        name = classes[index - 1] if index <= len(classes) else f"class {index}"
        entries.append(("void" if index == VOID else name, _rgb(colors[index])))
    return entries


@dataclass(frozen=True)
class _Layout:
    """Where things are on a sheet, in pixels.

    Attributes:
        scale: Factor by which cells are enlarged.
        text_px: Height of the text.
        line_px: Height of a line of text.
        above_px: Room above a row, for its caption.
        column_px: Width of a column with its gap.
        lefts: Left edge of each column.
        row_heights: Of each row with the room above it.
    """

    scale: int
    text_px: int
    line_px: int
    above_px: int
    column_px: int
    lefts: list[int]
    row_heights: list[int]


def _layout(rows: Sequence[Cells], num_columns: int, *, captioned: bool) -> _Layout:
    widest = max(cell.shape[1] for row in rows for cell in row)
    # Whole steps keep the pixels of small pictures square and countable.
    scale = max(1, -(-MIN_CELL_PX // widest))
    text_px = max(MIN_TEXT_PX, scale * widest // 14)
    line_px = text_px * 3 // 2
    above_px = line_px if captioned else GAP_PX
    column_px = scale * widest + GAP_PX

    row_heights = []
    for row in rows:
        tallest = max(cell.shape[0] for cell in row)
        row_heights.append(above_px + scale * tallest)

    lefts = [GAP_PX + column * column_px for column in range(num_columns)]
    return _Layout(scale, text_px, line_px, above_px, column_px, lefts, row_heights)


def _grid(
    rows: Sequence[Cells],
    headers: Sequence[str],
    captions: Sequence[str],
    legend: Sequence[_Entry] = (),
) -> Image.Image:
    """Draw cells side by side under headers; small pictures are enlarged so that text fits.

    Args:
        rows: Cells of each row, one per header.
        headers: One per column.
        captions: One per row, or none at all.
        legend: Names and their colors, below the rows.

    Raises:
        ValueError: There are no rows, or another number of captions.
    """
    if not rows:
        raise ValueError("a picture grid needs at least one row")
    if captions and len(captions) != len(rows):
        raise ValueError(f"{len(captions)} captions for {len(rows)} rows")

    layout = _layout(rows, len(headers), captioned=bool(captions))
    num_legend_lines = -(-len(legend) // len(headers))
    width = GAP_PX + layout.column_px * len(headers)
    height = layout.line_px * (1 + num_legend_lines) + sum(layout.row_heights) + GAP_PX
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=layout.text_px)

    for left, header in zip(layout.lefts, headers, strict=True):
        draw.text((left, layout.line_px // 6), header, fill=INK, font=font)

    top = layout.line_px
    for number, row in enumerate(rows):
        if captions:
            corner = (layout.lefts[0], top + layout.line_px // 6)
            draw.text(corner, captions[number], fill=INK, font=font)
        for left, cell in zip(layout.lefts, row, strict=True):
            sheet.paste(_enlarged(cell, layout.scale), (left, top + layout.above_px))
        top += layout.row_heights[number]

    _draw_legend(draw, legend, layout, top + GAP_PX)
    return sheet


def _draw_legend(
    draw: ImageDraw.ImageDraw, legend: Sequence[_Entry], layout: _Layout, top: int
) -> None:
    """Draw a colored square and its name per entry, as many abreast as there are columns."""
    font = ImageFont.load_default(size=layout.text_px)
    side = layout.text_px
    for index, (name, color) in enumerate(legend):
        line, column = divmod(index, len(layout.lefts))
        left, upper = layout.lefts[column], top + line * layout.line_px
        draw.rectangle((left, upper, left + side, upper + side), fill=color, outline=INK)
        draw.text((left + layout.line_px, upper), name, fill=INK, font=font)


def _enlarged(cell: Bytes, scale: int) -> Image.Image:
    picture = Image.fromarray(cell)
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


def _save_png(path: Path, picture: Image.Image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        picture.save(partial, format="PNG")
