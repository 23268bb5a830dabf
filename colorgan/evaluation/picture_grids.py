"""Picture grids to look at: grey, coloured, original; photo with true and predicted mask, or boxes. PNG files.

Text is drawn with Pillow's built-in font; files appear whole or not at all.
"""

from __future__ import annotations

from collections.abc import Sequence
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
MIN_CELL_PX = 128
BOX_CELL_PX = 256
GAP_PX = 6
INK, PAPER = (20, 20, 20), (255, 255, 255)

Cells = Sequence[NDArray[np.uint8]]
NamedBoxes = Sequence[
    tuple[Sequence[float], int, str]
]  # x0, y0, x1, y1 as shares, class from 0, what to write
_Entry = tuple[str, tuple[int, ...]]  # a name and its colour


def to_uint8_HWC(picture: Tensor) -> NDArray[np.uint8]:  # noqa: N802
    """H x W x 3 bytes of a picture: float in [0, 1] (clipped; NaN is black) or uint8; 3HW, 1HW or HW."""
    picture = picture.detach().cpu()
    if picture.ndim == 2:
        picture = picture[None]
    if picture.ndim != 3 or picture.shape[0] not in (1, 3):
        raise ValueError(f"a picture is 3HW, 1HW or HW, got the shape {tuple(picture.shape)}")
    if picture.dtype != torch.uint8:
        picture = (picture.float().nan_to_num(0.0).clamp(0.0, 1.0) * 255.0).round().to(torch.uint8)
    bytes_HW3: NDArray[np.uint8] = picture.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy()
    return bytes_HW3


def color_grid(
    path: Path, rows: Sequence[tuple[Tensor, Tensor, Tensor]], captions: Sequence[str] = ()
) -> None:
    """Saves a row a picture: grey, coloured, original.

    Args:
        path: The PNG to write; its folder is made if absent.
        rows: Pictures as `to_uint8_HWC` takes them.
        captions: One a row, above it; none at all is fine.
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
    """Saves a row a picture: photo, true mask over it, predicted mask over it; below, the classes seen.

    Args:
        path: The PNG to write; its folder is made if absent.
        rows: Photo as `to_uint8_HWC` takes it, then two masks HW of class indices: 0 = background, not
            painted; i + 1 = classes[i]; 255 = void.
        palette: Colours of the indices from 0 on; VOC's where it ends.
        classes: Names of the classes without background, for the legend.
        captions: One a row, above it; none at all is fine.
    """
    colors = mask_colors(palette)
    cells = []
    for photo, *masks in rows:
        photo_HW3 = to_uint8_HWC(photo)
        indices = [mask.detach().cpu().numpy().astype(np.uint8) for mask in masks]
        cells.append([photo_HW3, *(paint_mask(photo_HW3, mask_HW, colors) for mask_HW in indices)])
    legend = _legend([mask for _, *masks in rows for mask in masks], colors, classes)
    _save_png(path, _grid(cells, ("photo", "truth", "predicted"), captions, legend))


def box_grid(
    path: Path,
    rows: Sequence[tuple[Tensor, NamedBoxes, NamedBoxes]],
    palette: Sequence[tuple[int, int, int]] = (),
    captions: Sequence[str] = (),
) -> None:
    """Saves a row a picture: photo, true boxes on it, predicted boxes on it.

    Args:
        path: The PNG to write; its folder is made if absent.
        rows: Photo as `to_uint8_HWC` takes it, then two lists of boxes.
        palette: As for `mask_grid`; boxes of one class have its colour.
        captions: One a row, above it; none at all is fine.
    """
    colors = mask_colors(palette)
    cells = []
    for photo, *lists in rows:
        picture = Image.fromarray(to_uint8_HWC(photo))
        scale = max(1, -(-BOX_CELL_PX // picture.width))
        picture = picture.resize(
            (picture.width * scale, picture.height * scale), Image.Resampling.BICUBIC
        )
        cells.append(
            [np.asarray(picture), *(_draw_boxes(picture, boxes, colors) for boxes in lists)]
        )
    _save_png(path, _grid(cells, ("photo", "truth", "predicted"), captions))


def _draw_boxes(
    picture: Image.Image, boxes: NamedBoxes, colors: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    """A copy of the photo with frames and their names, the first on top."""
    picture = picture.copy()
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size=14)
    for (x0, y0, x1, y1), index, name in reversed(boxes):
        color = (*map(int, colors[index + 1]),)
        corner = (x0 * picture.width, y0 * picture.height)
        far = (
            max(corner[0], x1 * picture.width - 1),
            max(corner[1], y1 * picture.height - 1),
        )  # under a pixel: one
        draw.rectangle((*corner, *far), outline=color, width=2)
        draw.rectangle(draw.textbbox(corner, name, font=font), fill=color)
        draw.text(corner, name, fill=PAPER if sum(color) < 384 else INK, font=font)
    return np.asarray(picture)


def paint_mask(
    photo_HW3: NDArray[np.uint8], mask_HW: NDArray[np.uint8], colors_256x3: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    """The photo with each pixel of a class tinted in its colour; the background (0) is left as it is."""
    opacity_HW1 = np.where(mask_HW == 0, 0.0, MASK_OPACITY)[..., None]
    painted: NDArray[np.uint8] = np.rint(
        photo_HW3 * (1.0 - opacity_HW1) + colors_256x3[mask_HW] * opacity_HW1
    ).astype(np.uint8)
    return painted


def mask_colors(palette: Sequence[tuple[int, int, int]] = ()) -> NDArray[np.uint8]:
    """A colour for every index, 256 x 3: the palette's, VOC's colour map where it ends, 255 = void."""
    colors = np.zeros((256, 3), dtype=np.uint8)
    for index in range(256):
        rest = index
        for bit in range(
            7, -1, -1
        ):  # VOC's map deals out the index's bits to the channels, highest first
            colors[index] |= np.array(
                [(rest >> channel & 1) << bit for channel in range(3)], dtype=np.uint8
            )
            rest >>= 3
    if palette:
        colors[: len(palette)] = palette
    colors[VOID] = VOID_COLOUR
    return colors


def _legend(
    masks: Sequence[Tensor], colors: NDArray[np.uint8], classes: Sequence[str]
) -> list[_Entry]:
    if not classes:
        return []
    seen = sorted(
        {int(index) for mask in masks for index in np.unique(mask.detach().cpu().numpy())} - {0}
    )
    names = [
        "void" if i == VOID else classes[i - 1] if i <= len(classes) else f"class {i}" for i in seen
    ]
    return [(name, (*map(int, colors[index]),)) for name, index in zip(names, seen, strict=True)]


def _grid(
    rows: Sequence[Cells],
    headers: Sequence[str],
    captions: Sequence[str],
    legend: Sequence[_Entry] = (),
) -> Image.Image:
    """Cells side by side under headers; small pictures are enlarged by whole steps, so that text fits."""
    if not rows:
        raise ValueError("a picture grid needs at least one row")
    if captions and len(captions) != len(rows):
        raise ValueError(f"{len(captions)} captions for {len(rows)} rows")
    widest = max(cell.shape[1] for row in rows for cell in row)
    scale = max(1, -(-MIN_CELL_PX // widest))
    text_px = max(13, scale * widest // 14)
    line_px = text_px * 3 // 2
    above_px = line_px if captions else GAP_PX
    heights = [above_px + scale * max(cell.shape[0] for cell in row) for row in rows]
    lefts = [GAP_PX + column * (scale * widest + GAP_PX) for column in range(len(headers) + 1)]
    legend_px = line_px * -(-len(legend) // len(headers))
    sheet = Image.new("RGB", (lefts.pop(), line_px + sum(heights) + GAP_PX + legend_px), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=text_px)
    for left, header in zip(lefts, headers, strict=True):
        draw.text((left, line_px // 6), header, fill=INK, font=font)
    top = line_px
    for row, height, caption in zip(rows, heights, captions or [""] * len(rows), strict=True):
        draw.text((lefts[0], top + line_px // 6), caption, fill=INK, font=font)
        for left, cell in zip(lefts, row, strict=True):
            sheet.paste(_enlarged(cell, scale), (left, top + above_px))
        top += height
    for index, (name, color) in enumerate(legend):
        left, upper = lefts[index % len(lefts)], top + GAP_PX + index // len(lefts) * line_px
        draw.rectangle((left, upper, left + text_px, upper + text_px), fill=color, outline=INK)
        draw.text((left + line_px, upper), name, fill=INK, font=font)
    return sheet


def _enlarged(cell: NDArray[np.uint8], scale: int) -> Image.Image:
    picture = Image.fromarray(cell)
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


def _save_png(path: Path, picture: Image.Image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        picture.save(partial, format="PNG")
