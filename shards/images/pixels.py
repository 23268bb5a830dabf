"""Decoded pixels of any mode -> 8-bit RGB, grey or CMYK: depth, transparency, palettes."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image, TiffImagePlugin

from shards.errors import PictureError
from shards.images.strips import mapped

ALPHA_MODES = ("LA", "La", "PA", "RGBA", "RGBa")
DEEP_GREY_MODES = ("I;16", "I;16B", "I;16L", "I;16N")
PHOTOMETRIC = 262
BITS_PER_SAMPLE = 258
WHITE_IS_ZERO = 0
PNG_DEPTH_AT = 24  # the byte of IHDR that holds the bits per sample
WHITE = 255

# Pillow lacks the big-endian twin of a kind that it knows: 16-bit grey TIFF whose zero is white.
TiffImagePlugin.OPEN_INFO.setdefault(
    (TiffImagePlugin.MM, 0, (1,), 1, (16,), ()), ("I;16B", "I;16B")
)


def is_deep_grey(image: Image.Image) -> bool:
    """Return whether the samples are 16-bit grey; Pillow reads PGM's as 32-bit integers."""
    return image.mode in DEEP_GREY_MODES or (image.format == "PPM" and image.mode == "I")


def has_transparency(image: Image.Image) -> bool:
    """Return whether some pixels may be transparent."""
    return image.mode in ALPHA_MODES or "transparency" in image.info


def to_8_bit(image: Image.Image, content: bytes) -> Image.Image:
    """Return RGB, grey ("L") or CMYK pixels of 8 bits; transparent ones are laid on white.

    Args:
        image: Decoded.
        content: The bytes of its file.

    Raises:
        PictureError: Pixels of a mode that has no one meaning in 8 bits.
    """
    if is_deep_grey(image):
        return _deep_grey(image)
    if _is_plain_cmyk_jpeg(image):
        inverted = [channel.point(lambda value: WHITE - value) for channel in image.split()]
        return Image.merge("CMYK", inverted)
    if has_transparency(image):
        return _on_white(image, content)
    if image.mode in ("RGB", "L", "CMYK"):
        return image
    if image.mode == "1":
        return image.convert("L")
    if image.mode in ("P", "YCbCr", "RGBX", "HSV"):
        return image.convert("RGB")

    raise PictureError(f"pixels of mode {image.mode} have no one meaning as 8-bit RGB")


def _deep_grey(image: Image.Image) -> Image.Image:
    # Pillow inverts TIFF's "white is zero" for 8 bits and fewer, but not for 16.
    tags: Any = getattr(image, "tag_v2", {})
    inverted = image.format == "TIFF" and tags.get(PHOTOMETRIC) == WHITE_IS_ZERO
    clear = image.info.get("transparency")
    # Pillow gives the 12 bits of such a TIFF as they are.
    bits = tags.get(BITS_PER_SAMPLE, 16) if image.format == "TIFF" else 16
    largest = (1 << (bits[0] if isinstance(bits, tuple) else bits)) - 1

    def levels_of(strip: Image.Image) -> Image.Image:
        values = np.asarray(strip).astype(np.uint32)
        # Rounded to nearest: cutting bits off would darken by half a level.
        levels = ((values * 255 + largest // 2) // largest).astype(np.uint8)
        if inverted:
            levels = WHITE - levels
        if isinstance(clear, int):
            levels[values == clear] = WHITE
        return Image.fromarray(levels)

    return mapped(image, "L", levels_of)


def _is_plain_cmyk_jpeg(image: Image.Image) -> bool:
    # Pillow takes every CMYK JPEG for Adobe's inverted kind; without Adobe's marker it is the plain
    # one.
    return image.mode == "CMYK" and image.format == "JPEG" and "adobe" not in image.info


def _on_white(image: Image.Image, content: bytes) -> Image.Image:
    clear = clear_color(image, content)
    if clear is not None:
        image.info["transparency"] = clear

    # Pillow has no direct way for grey that was multiplied by its alpha.
    image = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    white = Image.new("RGBA", image.size, (WHITE, WHITE, WHITE, WHITE))
    return Image.alpha_composite(white, image).convert("RGB")


def clear_color(image: Image.Image, content: bytes) -> Any:
    """Return the transparent color in the 8-bit levels that Pillow decodes a PNG to; None: none.

    Args:
        image: As Pillow opened it; what its file states is in `info`.
        content: The file's beginning.
    """
    clear = image.info.get("transparency")
    if image.format != "PNG" or image.mode not in ("L", "RGB"):
        return clear

    depth = content[PNG_DEPTH_AT]
    if isinstance(clear, int) and depth < 8:
        return clear * 255 // ((1 << depth) - 1)
    if isinstance(clear, tuple) and depth == 16:
        return tuple(value >> 8 for value in clear)
    return clear
