"""Masks that records point to, PNG, TIFF or BMP: class indices, one class of 0 and 255, or colors.

They are read in the packer's workers. All give H x W uint8: 0 = background, i + 1 =
`Corpus.classes[i]`, 255 = void. COCO's outlines are in coco_masks.py.
"""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datasets.errors import CorpusError
from shards.records import MAX_CLASSES, VOID

MAX_MASK_PIXELS = (
    180_000_000  # more than an image may have; keeps a hostile size from filling the memory
)
HEADER_BYTES = 26
FORMATS = ("PNG", "TIFF", "BMP")
PNG_START = b"\x89PNG\r\n\x1a\n"
JPEG_START = b"\xff\xd8\xff"
OTHER_STARTS = (b"II*\0", b"MM\0*", b"BM")
GREY, PALETTE, GREY_ALPHA = 0, 3, 4  # color types of a PNG's header; 2 and 6 are RGB and RGBA
# Pillow stretches grey of 2 and 4 bits to 0..255. One bit comes as booleans, more bits come as they
# are.
STRETCH = {2: 85, 4: 17}
FULL = 255
MAX_INDEX = 65_535

Color = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class IndexMask:
    """A PNG whose values are the classes: palette indices, or grey of 1 to 16 bits.

    A palette's colors are ignored. RGB, RGBA and grey with alpha count as grey if red, green and
    blue are equal; alpha is ignored.

    Attributes:
        path: the PNG.
        num_classes: the largest index allowed beside 255.
    """

    path: Path
    num_classes: int = MAX_CLASSES

    def read(self) -> NDArray[np.uint8]:
        """Return the values, H x W.

        Raises:
            CorpusError: not such a PNG, or an index that is no class.
        """
        plane = read_plane(self.path)
        largest = int(plane[plane != VOID].max(initial=0))
        if largest > self.num_classes:
            raise CorpusError(
                f"{self.path}: the mask holds index {largest}, but there are {self.num_classes} "
                "classes."
            )
        return plane.astype(np.uint8)


@dataclass(frozen=True, slots=True)
class BinaryMask:
    """A PNG of one class: the values from `threshold` on.

    Attributes:
        path: the PNG.
        threshold: 1 to 255; None if the mask may hold nothing but 0 and 255.
    """

    path: Path
    threshold: int | None = None

    def read(self) -> NDArray[np.uint8]:
        """Return 0 and 1, H x W.

        Raises:
            CorpusError: not such a PNG, or other values without a threshold.
        """
        plane = read_plane(self.path)
        if self.threshold is not None:
            return np.asarray(plane >= self.threshold, np.uint8)

        # A soft edge that is rounded in silence would move the outline.
        strange = np.setdiff1d(plane, [0, FULL])
        if strange.size:
            raise CorpusError(
                f"{self.path}: the mask holds {strange[0]}; the others hold 0 and 255 only. Soft "
                "edges can be cut with --mask_threshold 128."
            )
        return np.asarray(plane == FULL, np.uint8)


@dataclass(frozen=True, slots=True)
class ColorMask:
    """A PNG whose colors stand for classes.

    Attributes:
        path: the PNG.
        values: the mask value of each color.
        source: the file that lists the colors, for messages.
    """

    path: Path
    values: tuple[tuple[Color, int], ...]
    source: Path

    def read(self) -> NDArray[np.uint8]:
        """Return the values, H x W.

        Raises:
            CorpusError: not a PNG, or a color that is not listed.
        """
        codes = _color_codes(self.path)
        # One number per color, sorted, so that all pixels are looked up at once.
        listed = sorted((_code(color), value) for color, value in self.values)
        known = np.array(
            [code for code, _ in listed],
            np.uint32,
        )
        values = np.array(
            [value for _, value in listed],
            np.uint8,
        )

        places = np.searchsorted(known, codes).clip(max=len(known) - 1)
        wrong = known[places] != codes
        if wrong.any():
            red, green, blue = _color_of(int(codes[wrong][0]))
            raise CorpusError(
                f"{self.path}: the color {red},{green},{blue} in the mask is not listed in "
                f"{self.source}."
            )
        return np.asarray(values[places])


def read_plane(path: Path) -> NDArray[Any]:
    """Decode a mask to its indices or grey values, H x W.

    Raises:
        CorpusError: neither PNG, TIFF nor BMP, damaged, too large, with colors, or with values that
            are no whole numbers from 0 to 65535.
    """
    head = _head(path)
    pixels = _decoded(path)
    if not head.startswith(PNG_START):
        return _grey_of(pixels, path)
    bits, color_type = head[24], head[25]

    if color_type in (PALETTE, GREY):
        if pixels.ndim != 2:
            raise CorpusError(f"{path}: the mask is no plane of class indices.")
        plane = _whole(pixels, path)
        return plane // STRETCH.get(bits, 1) if color_type == GREY else plane

    if color_type == GREY_ALPHA:
        return pixels[..., 0]

    return _grey_of(pixels, path)


def _grey_of(pixels: NDArray[Any], path: Path) -> NDArray[Any]:
    """Return the plane of a mask; many tools save a grey one as a color picture.

    Raises:
        CorpusError: it has colors, or values that are no indices.
    """
    if pixels.ndim == 2:
        return _whole(pixels, path)
    if pixels.shape[-1] == 2:  # grey with alpha
        return pixels[..., 0]
    red, green, blue = (pixels[..., channel] for channel in range(3))
    if not (np.array_equal(red, green) and np.array_equal(green, blue)):
        raise CorpusError(
            f"{path}: the mask is a color picture. If its colors stand for classes, list them in "
            "labelmap.txt, one line per class such as road:128,64,128."
        )
    return red


def _whole(plane: NDArray[Any], path: Path) -> NDArray[Any]:
    """Return a plane as unsigned integers; TIFF also holds signs, fractions and 32 bits.

    Raises:
        CorpusError: a value that is no whole number from 0 to 65535.
    """
    if plane.dtype == np.bool_:
        return plane.astype(np.uint8)
    if plane.dtype in (np.uint8, np.uint16):
        return plane

    # Written so that NaN is refused too.
    is_index = (plane >= 0) & (plane <= MAX_INDEX) & (plane == np.floor(plane))
    if not is_index.all():
        raise CorpusError(
            f"{path}: the mask holds {plane[~is_index][0]:.10g}; its values have to be whole "
            f"numbers from 0 to {MAX_INDEX}, such as class indices with 255 for what is void."
        )
    return plane.astype(np.uint16)


def _color_codes(path: Path) -> NDArray[np.uint32]:
    """Return a mask's colors as one number each, H x W."""
    _head(path)
    red, green, blue = np.moveaxis(_decoded(path, as_rgb=True).astype(np.uint32), -1, 0)
    return np.asarray(red << 16 | green << 8 | blue)


def _code(color: Color) -> int:
    return color[0] << 16 | color[1] << 8 | color[2]


def _color_of(code: int) -> Color:
    return code >> 16, code >> 8 & 255, code & 255


def _head(path: Path) -> bytes:
    """Return the first bytes of a mask, up to a PNG's bit depth and color type.

    Raises:
        CorpusError: the file cannot be read, or has another format.
    """
    try:
        with path.open("rb") as file:
            head = file.read(HEADER_BYTES)
    except OSError as error:
        raise CorpusError(f"{path}: the mask cannot be read ({error.strerror}).") from error

    if head.startswith(JPEG_START):
        raise CorpusError(f"{path}: the mask is a JPEG, which changes values; save masks as PNG.")
    is_png = head.startswith(PNG_START) and len(head) == HEADER_BYTES
    if not is_png and not head.startswith(OTHER_STARTS):
        raise CorpusError(f"{path}: the mask is not a PNG, TIFF or BMP.")
    return head


def _decoded(path: Path, *, as_rgb: bool = False) -> NDArray[Any]:
    """Decode a PNG, by default without converting it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Pillow warns first and refuses only at twice the size.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as picture:
                if picture.width * picture.height > MAX_MASK_PIXELS:
                    raise CorpusError(
                        f"{path}: {picture.width} x {picture.height} is too large for a mask."
                    )
                return np.asarray(picture.convert("RGB") if as_rgb else picture)
    except (CorpusError, MemoryError):
        raise
    except Exception as error:  # Pillow's decoders raise nearly every type on damaged files
        raise CorpusError(f"{path}: the mask cannot be decoded ({error}).") from error
