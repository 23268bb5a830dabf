"""Photos of the report: the strips that a run saved, by scores and over the course of training.

Runs of older versions have captioned grids instead of strips; these are shown whole.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from colorgan.evaluation.strips import OpenStrip, read_strips
from colorgan.report.blocks import Photo, Photos, Picture, data_uri

# A PNG of a few kilobytes can unfold to gigabytes.
MAX_PIXELS = 60_000_000
MAX_PHOTOS = 8
MAX_MOMENTS = 5
JPEG_QUALITY = 92
MAX_WIDTH_PX = 1000  # of a picture that is shown whole
GAP_PX, LINE_PX, FONT_PX = 6, 22, 14
GREY, COLORED, ORIGINAL = "grey", "coloured", "original"  # as the strips call their cells

Row = list[tuple[str, Image.Image]]  # captions and images


def triples(path: Path) -> list[Row]:
    """Return grey, colored, original of the strips beside a PNG, the largest gain first."""
    strips = [strip for strip in read_strips(path.with_suffix("")) if _is_whole(strip)]
    # Gain over grey and not PSNR: a dull photo has a high PSNR without any color.
    strips.sort(key=_gain, reverse=True)
    rows = []
    for strip in strips:
        psnr, grey = strip.scores.get("psnr"), strip.scores.get("grey_psnr")
        colored = _decibels("colored", psnr)
        if psnr is not None and grey is not None:
            colored += f" ({psnr - grey:+.1f})".replace("-", "−")
        captions = (_decibels("grey", grey), colored, "original")
        names = (GREY, COLORED, ORIGINAL)
        rows.append([(text, strip.cells[name]) for text, name in zip(captions, names, strict=True)])
    return rows


def _is_whole(strip: OpenStrip) -> bool:
    # A killed run may have left a part of a strip.
    return {GREY, COLORED, ORIGINAL} <= set(strip.cells)


def _gain(strip: OpenStrip) -> float:
    return strip.scores.get("psnr", 0.0) - strip.scores.get("grey_psnr", 0.0)


def _decibels(name: str, psnr: float | None) -> str:
    return name if psnr is None else f"{name}, {psnr:.1f} dB"


def progress(pictures: Sequence[tuple[int, Path]], total_images: int | None) -> list[Row]:
    """Return photos over a run, at up to five validations spread over it; [] without strips.

    Args:
        pictures: images seen and path of each validation's picture.
        total_images: the run's length, for captions in percent.
    """
    # The validation set has the same samples at every validation; a damaged strip drops out.
    moments: list[tuple[str, dict[int, OpenStrip]]] = []
    for images, path in _spread(pictures):
        strips = [
            strip for strip in read_strips(path.with_suffix(""), MAX_PHOTOS) if _is_whole(strip)
        ]
        caption = f"{images:,}"
        if total_images:
            caption = f"{100 * min(1.0, images / total_images):.0f} %"
        if strips:
            moments.append((caption, {strip.sample_id: strip for strip in strips}))
    if not moments:
        return []

    rows = []
    last = moments[-1][1]
    for sample_id, strip in last.items():
        # A run that was resumed at another size would not fit the row.
        size = strip.cells[GREY].size
        row = [("grey", strip.cells[GREY])]
        for caption, strips_of in moments:
            known = strips_of.get(sample_id)
            if known is not None and known.cells[COLORED].size == size:
                row.append((caption, known.cells[COLORED]))
        rows.append([*row, ("original", strip.cells[ORIGINAL])])
    return rows


def _spread(pictures: Sequence[tuple[int, Path]]) -> list[tuple[int, Path]]:
    """Return up to five pictures, the first and the last among them."""
    if len(pictures) <= MAX_MOMENTS:
        return list(pictures)
    # A set: with few pictures two places may round to one.
    places = {round(i * (len(pictures) - 1) / (MAX_MOMENTS - 1)) for i in range(MAX_MOMENTS)}
    return [pictures[place] for place in sorted(places)]


def open_picture(path: Path | None) -> Image.Image | None:
    """Return a picture that a run saved, in RGB; None if it cannot be read or is enormous."""
    if path is None:
        return None
    try:
        with warnings.catch_warnings():
            # Pillow warns of decompression bombs before it refuses them.
            warnings.simplefilter("error")
            with Image.open(path, formats=("PNG",)) as picture:
                if picture.width * picture.height > MAX_PIXELS:
                    return None
                return picture.convert("RGB")
    except (
        OSError,
        ValueError,
        SyntaxError,
        Warning,
        Image.DecompressionBombError,
    ):
        return None


def sheet(rows: Sequence[Row]) -> Image.Image:
    """Return rows of captioned images on one sheet, for the PNG beside the page."""
    width, height = rows[0][0][1].size
    # Rows differ where a validation lacks a strip.
    columns = max(len(row) for row in rows)
    size = (GAP_PX + columns * (width + GAP_PX), LINE_PX + len(rows) * (height + GAP_PX))
    whole = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(whole)
    font = ImageFont.load_default(size=FONT_PX)
    for index, row in enumerate(rows):
        for column, (caption, picture) in enumerate(row):
            left = GAP_PX + column * (width + GAP_PX)
            if index == 0:
                draw.text(
                    (left, 2),
                    caption,
                    fill=(20, 20, 20),
                    font=font,
                )
            whole.paste(picture, (left, LINE_PX + index * (height + GAP_PX)))
    return whole


def photos_block(rows: Sequence[Row], *, compare: bool = False) -> Photos:
    """Return rows of images as a block."""
    return Photos([[_photo(text, image) for text, image in row] for row in rows], compare)


def picture_block(picture: Image.Image, caption: str, title: str = "") -> Picture:
    """Return a picture as it was saved, at most 1000 pixels wide."""
    if picture.width > MAX_WIDTH_PX:
        height = max(1, round(picture.height * MAX_WIDTH_PX / picture.width))
        picture = picture.resize((MAX_WIDTH_PX, height), Image.Resampling.LANCZOS)
    return Picture(_photo(caption, picture), title)


def _photo(caption: str, picture: Image.Image) -> Photo:
    # JPEG with full chroma: color is what is shown.
    out = io.BytesIO()
    picture.save(
        out,
        format="JPEG",
        quality=JPEG_QUALITY,
        subsampling=0,
    )
    source = data_uri(out.getvalue(), "image/jpeg")
    return Photo(caption, source, picture.width, picture.height)


def png_bytes(picture: Image.Image) -> bytes:
    """Return a picture as PNG."""
    out = io.BytesIO()
    picture.save(out, format="PNG", optimize=True)
    return out.getvalue()
