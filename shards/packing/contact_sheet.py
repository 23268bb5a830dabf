"""sample.png: a few samples of a packed set with their labels drawn, to check before training.

Turned boxes, shifted masks and a wrong class list are seen at a glance here, and after a week
otherwise. The same set always gives the same sheet; it is part of no digest.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from shards.files import replacing
from shards.foreign_labels import class_indices
from shards.images.conversion import open_upright
from shards.images.policy import MAX_PIXELS_LIMIT
from shards.manifest import Manifest
from shards.packing.fetching import opened_shard
from shards.records import VOID

SHEET_FILE = "sample.png"
COLUMNS, ROWS = 6, 4
SIDE = 224  # pixels of a cell's longer side
CAPTION = 30  # two lines of 11 pixels
GAP = 6
FONT_SIZE = 11
MASK_SHARE = 0.55
PAPER = (255, 255, 255)
INK = (20, 20, 20)
DARK = 330  # the sum of a color's levels below which text on it is white
MAX_LABEL_BYTES = 1 << 22
MAX_MEMBER_BYTES = 1 << 28
MAX_DRAWN_BOXES = 40
# Easily told apart, also for the color-blind (Okabe and Ito, 2008).
COLORS = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
)


@dataclass(frozen=True)
class _Sample:
    image: Image.Image
    label: dict[str, Any]
    mask: Image.Image | None


def write_contact_sheet(manifest: Manifest) -> Path | None:
    """Draw the sheet into the set's folder and return its path; None if no sample can be drawn.

    Shards behind URLs are not fetched for it.

    Raises:
        PackError: The disk is full, read-only or gone.
    """
    # A sample that cannot be drawn leaves no gap: the sheet is a look, not a check.
    drawn = [_drawn_or_none(manifest, row) for row in _chosen(manifest)]
    cells = [cell for cell in drawn if cell is not None]
    if not cells:
        return None

    path = manifest.folder / SHEET_FILE
    with replacing(path) as temporary:
        # A third of the usual time for some more bytes: the sheet of a small set is a good part of
        # its packing.
        _sheet(cells).save(temporary, "PNG", compress_level=1)
    return path


def _chosen(manifest: Manifest) -> list[np.void]:
    """Return rows spread evenly over the set, from its first sample to its last."""
    table = manifest.samples()
    count = min(COLUMNS * ROWS, manifest.num_samples)
    indices = np.linspace(0, manifest.num_samples - 1, count).round().astype(np.int64)
    rows = [table[index] for index in indices]
    return [row for row in rows if _is_local(manifest, row)]


def _is_local(manifest: Manifest, row: np.void) -> bool:
    number = int(row["shard"])
    return number < len(manifest.shards) and not manifest.shards[number].is_remote


def _drawn_or_none(manifest: Manifest, row: np.void) -> Image.Image | None:
    try:
        return _drawn(manifest, row)
    # Whatever it is: --verify names bad samples, and hours of packing must not end here.
    except Exception:
        return None


def _drawn(manifest: Manifest, row: np.void) -> Image.Image:
    sample = _read(manifest, row)
    image = sample.image
    scale = SIDE / max(image.size)
    size = (
        max(1, round(image.width * scale)),
        max(1, round(image.height * scale)),
    )
    # Enlarged too: boxes on a 32-pixel image could not be seen.
    image = image.resize(size, Image.Resampling.BICUBIC)
    if sample.mask is not None:
        image = _with_mask(image, sample.mask, manifest)

    # On the image itself: nothing of a box may lie over the caption.
    _draw_boxes(image, sample.label, scale, manifest)
    cell = Image.new("RGB", (SIDE, SIDE + CAPTION), PAPER)
    cell.paste(image, (0, 0))
    _draw_caption(ImageDraw.Draw(cell), sample.label, image.height, manifest)
    return cell


def _read(manifest: Manifest, row: np.void) -> _Sample:
    info = manifest.shards[int(row["shard"])]
    location = str(manifest.shard_path(info))
    with opened_shard(location, manifest.folder / info.file) as stream:
        members = {}
        for name in ("image", "label", "mask"):
            stream.seek(int(row[f"{name}_offset"]))
            # Bounded: the table may promise more than the memory holds.
            members[name] = stream.read(min(int(row[f"{name}_size"]), MAX_MEMBER_BYTES))

    image = open_upright(members["image"], MAX_PIXELS_LIMIT)
    mask = Image.open(io.BytesIO(members["mask"]), formats=["PNG"]) if members["mask"] else None
    return _Sample(image, _label(manifest, members["label"]), mask)


def _label(manifest: Manifest, content: bytes) -> dict[str, Any]:
    if not content or len(content) > MAX_LABEL_BYTES:
        return {}
    if manifest.label_format:
        return {"classes": class_indices(content, manifest.label_format, manifest.classes)}
    label = json.loads(content)
    return label if isinstance(label, dict) else {}


def _with_mask(image: Image.Image, mask: Image.Image, manifest: Manifest) -> Image.Image:
    # Nearest: between two indices there is no class.
    indices = np.asarray(mask.resize(image.size, Image.Resampling.NEAREST))
    colors = np.zeros((256, 3), np.uint8)
    for index in range(1, VOID):
        colors[index] = _color(index - 1, manifest)
    colors[VOID] = PAPER

    pixels = np.asarray(image).astype(np.float64)
    painted = colors[indices].astype(np.float64)
    is_object = (indices > 0)[..., None]
    mixed = np.where(is_object, (1 - MASK_SHARE) * pixels + MASK_SHARE * painted, pixels)
    return Image.fromarray(mixed.round().astype(np.uint8))


def _draw_boxes(
    image: Image.Image, label: dict[str, Any], scale: float, manifest: Manifest
) -> None:
    draw = ImageDraw.Draw(image)
    objects = label.get("objects")
    for item in objects[:MAX_DRAWN_BOXES] if isinstance(objects, list) else []:
        box = item.get("box")
        if not box:
            continue
        number = int(item.get("class", 0))
        color = _color(number, manifest)
        x0, y0, x1, y1 = (float(value) * scale for value in box)
        corners = (
            x0,
            y0,
            max(x0 + 1, x1 - 1),
            max(y0 + 1, y1 - 1),
        )
        draw.rectangle(corners, outline=color, width=2)
        _draw_text(draw, (x0 + 2, y0 + 1), _name(number, manifest), color, image.size)


def _draw_caption(
    draw: ImageDraw.ImageDraw, label: dict[str, Any], below: int, manifest: Manifest
) -> None:
    classes = label.get("classes")
    names = (
        [_name(int(number), manifest) for number in classes] if isinstance(classes, list) else []
    )
    lines = [
        str(label.get("source", label.get("key", ""))),
        ", ".join(names),
    ]
    for number, line in enumerate(line for line in lines if line):
        draw.text(
            (1, below + 1 + number * (FONT_SIZE + 2)),
            _fitted(draw, line),
            INK,
            _font(),
        )


def _draw_text(
    draw: ImageDraw.ImageDraw,
    place: tuple[float, float],
    text: str,
    color: tuple[int, int, int],
    size: tuple[int, int],
) -> None:
    """Draw text on its color at a place, or as near to it as the whole text fits into `size`."""
    left, top, right, bottom = draw.textbbox(place, text, _font())
    beyond = max(0, right + 2 - size[0]), max(0, bottom + 1 - size[1])
    place = max(1, place[0] - beyond[0]), max(0, place[1] - beyond[1])

    left, top, right, bottom = draw.textbbox(place, text, _font())
    draw.rectangle((left - 1, top, right + 1, bottom), fill=color)
    is_dark = sum(color) < DARK
    draw.text(place, text, PAPER if is_dark else INK, _font())


def _fitted(draw: ImageDraw.ImageDraw, text: str) -> str:
    # The built-in font has no letters beyond Latin-1.
    text = _on_one_line(text)
    text = text.encode("latin-1", "replace").decode("latin-1")
    if draw.textlength(text, _font()) <= SIDE:
        return text
    while text and draw.textlength(f"{text}...", _font()) > SIDE:
        text = text[:-1]
    return f"{text}..."


def _on_one_line(text: str) -> str:
    # File names may hold line ends, and no text of several lines can be measured.
    return " ".join(text.split())


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(FONT_SIZE)


def _name(number: int, manifest: Manifest) -> str:
    if not 0 <= number < len(manifest.classes):
        return str(number)
    return _on_one_line(manifest.classes[number])


def _color(number: int, manifest: Manifest) -> tuple[int, int, int]:
    # The palette's first color is the background's.
    if 0 <= number + 1 < len(manifest.palette):
        return manifest.palette[number + 1]
    return COLORS[number % len(COLORS)]


def _sheet(cells: list[Image.Image]) -> Image.Image:
    columns = min(COLUMNS, len(cells))
    rows = -(-len(cells) // columns)
    width = columns * (SIDE + GAP) + GAP
    height = rows * (SIDE + CAPTION + GAP) + GAP

    sheet = Image.new("RGB", (width, height), PAPER)
    for number, cell in enumerate(cells):
        row, column = divmod(number, columns)
        sheet.paste(
            cell,
            (GAP + column * (SIDE + GAP), GAP + row * (SIDE + CAPTION + GAP)),
        )
    return sheet
