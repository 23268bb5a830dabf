"""PNG masks that records point to: class indices, one class of 0 and 255, or colors.

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
GREY, PALETTE, GREY_ALPHA = 0, 3, 4  # color types of a PNG's header; 2 and 6 are RGB and RGBA
# Pillow stretches grey of 2 and 4 bits to 0..255. One bit comes as booleans, more bits come as they
# are.
STRETCH = {2: 85, 4: 17}
FULL = 255

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

        strange = np.setdiff1d(plane, [0, FULL])
        if strange.size:
            raise CorpusError(
                f"{self.path}: the mask holds {strange[0]}; the others hold 0 and 255 only. Soft "
                "edges can be cut "
                "with --mask_threshold 128."
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
        known = np.array([code for code, _ in listed], np.uint32)
        values = np.array([value for _, value in listed], np.uint8)

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
    """Decode a PNG to its indices or grey values, H x W.

    Raises:
        CorpusError: not a PNG, damaged, too large, or with colors.
    """
    bits, color_type = png_header(path)
    pixels = _decoded(path)

    if color_type in (PALETTE, GREY):
        if pixels.ndim != 2:
            raise CorpusError(f"{path}: the mask is no plane of class indices.")
        return pixels // STRETCH.get(bits, 1) if color_type == GREY else pixels

    if color_type == GREY_ALPHA:
        return pixels[..., 0]

    # Many tools save a grey mask as a color picture.
    red, green, blue = (pixels[..., channel] for channel in range(3))
    if not (np.array_equal(red, green) and np.array_equal(green, blue)):
        raise CorpusError(
            f"{path}: the mask is a color picture. If its colors stand for classes, list them in "
            "labelmap.txt, one "
            "line per class such as road:128,64,128."
        )
    return red


def _color_codes(path: Path) -> NDArray[np.uint32]:
    """Return a mask's colors as one number each, H x W."""
    png_header(path)
    red, green, blue = np.moveaxis(_decoded(path, as_rgb=True).astype(np.uint32), -1, 0)
    return np.asarray(red << 16 | green << 8 | blue)


def _code(color: Color) -> int:
    return color[0] << 16 | color[1] << 8 | color[2]


def _color_of(code: int) -> Color:
    return code >> 16, code >> 8 & 255, code & 255


def png_header(path: Path) -> tuple[int, int]:
    """Return a PNG's bit depth and color type; 26 bytes of it are read.

    Raises:
        CorpusError: the file cannot be read or is not a PNG.
    """
    try:
        with path.open("rb") as file:
            head = file.read(HEADER_BYTES)
    except OSError as error:
        raise CorpusError(f"{path}: the mask cannot be read ({error.strerror}).") from error
    if len(head) < HEADER_BYTES or not head.startswith(b"\x89PNG\r\n\x1a\n"):
        raise CorpusError(f"{path}: the mask is not a PNG.")
    return head[24], head[25]


def _decoded(path: Path, *, as_rgb: bool = False) -> NDArray[Any]:
    """Decode a PNG, by default without converting it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=["PNG"]) as picture:
                if picture.width * picture.height > MAX_MASK_PIXELS:
                    raise CorpusError(
                        f"{path}: {picture.width} x {picture.height} is too large for a mask."
                    )
                return np.asarray(picture.convert("RGB") if as_rgb else picture)
    except (
        OSError,
        SyntaxError,
        ValueError,
        Image.DecompressionBombWarning,
        Image.DecompressionBombError,
    ) as error:
        raise CorpusError(f"{path}: the mask cannot be decoded ({error}).") from error
