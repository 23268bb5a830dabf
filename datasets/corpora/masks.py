"""The masks that records point to: PNGs of class indices, and COCO's outlines. Read in the packer's workers.

All give H x W uint8: 0 = background, i + 1 = `Corpus.classes[i]`, 255 = void.
"""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from datasets.errors import CorpusError
from shards.records import MAX_CLASSES, VOID

MAX_MASK_PIXELS = 500_000_000  # far above any camera; keeps a hostile size from eating the memory


@dataclass(frozen=True, slots=True)
class PaletteMask:
    """A palette PNG whose indices are the classes, as VOC has them; its colours are never looked at.

    Attributes:
        path: the PNG.
        num_classes: the largest index allowed beside 255.
    """

    path: Path
    num_classes: int = MAX_CLASSES

    def read(self) -> NDArray[np.uint8]:
        """Returns the index plane, H x W. Raises CorpusError where it is no such PNG."""
        return _checked(_png_plane(self.path, ("P",), "a palette PNG"), self.num_classes, self.path)


@dataclass(frozen=True, slots=True)
class GreyMask:
    """A grey PNG of 1 to 16 bits whose values are the classes.

    Attributes:
        path: the PNG.
        num_classes: the largest value allowed beside 255.
    """

    path: Path
    num_classes: int = MAX_CLASSES

    def read(self) -> NDArray[np.uint8]:
        """Returns the values, H x W. Raises CorpusError where it is no such PNG."""
        plane = _png_plane(self.path, ("1", "L", "I", "I;16", "I;16B"), "a grey PNG")
        # Pillow stretches 2- and 4-bit grey to 0..255 (1-bit comes as booleans, more bits as they are): undo
        # it.
        plane = plane // {2: 85, 4: 17}.get(_png_header(self.path)[0], 1)
        return _checked(plane, self.num_classes, self.path)


@dataclass(frozen=True, slots=True)
class BinaryMask:
    """A palette or grey PNG of nothing but 0, background, and 255, the one class.

    Attributes:
        path: the PNG.
    """

    path: Path

    def read(self) -> NDArray[np.uint8]:
        """Returns 0 and 1, H x W. Raises CorpusError where it is no such PNG."""
        plane = png_mask(self.path).read()
        if strange := np.setdiff1d(plane, [0, VOID]).tolist():
            raise CorpusError(
                f"{self.path}: {strange[0]} stands in the mask; the others hold 0 and 255 only."
            )
        return np.equal(plane, VOID).astype(np.uint8)


def png_mask(path: Path, num_classes: int = MAX_CLASSES) -> PaletteMask | GreyMask:
    """A mask of the kind that the PNG's header tells; 26 bytes of it are read. Raises CorpusError."""
    palette_color_type = 3
    kind = PaletteMask if _png_header(path)[1] == palette_color_type else GreyMask
    return kind(path, num_classes)


@dataclass(frozen=True, slots=True)
class CocoMask:
    """Instances of one picture, rasterised by pycocotools into one plane of classes.

    Crowd regions become void first, then the larger objects, then the smaller ones: those stay visible where
    they overlap. An object without an outline makes its box void: what is there is not background.

    Attributes:
        annotations: (class index 0-based, COCO annotation), as the JSON has them.
        height: of the plane, pixels.
        width: of the plane, pixels.
        source: the JSON file and picture, for messages.
    """

    annotations: tuple[tuple[int, dict[str, Any]], ...]
    height: int
    width: int
    source: str

    def read(self) -> NDArray[np.uint8]:
        """Returns the plane, height x width. Raises CorpusError on outlines that do not fit the picture."""
        if not 0 < self.height * self.width <= MAX_MASK_PIXELS or self.height < 0:
            raise CorpusError(
                f"{self.source}: {self.width} x {self.height} is no size of a picture."
            )
        regions = [self._region(index, annotation) for index, annotation in self.annotations]
        plane_WH = np.zeros((self.width, self.height), np.uint8)  # run lengths go down the columns
        for value, counts in sorted(
            regions, key=lambda region: (region[0] != VOID, -region[1][1::2].sum())
        ):
            inside = np.arange(len(counts)) % 2 == 1
            plane_WH.reshape(-1)[np.repeat(inside, counts)] = value
        return np.ascontiguousarray(plane_WH.T)

    def _region(self, index: int, annotation: dict[str, Any]) -> tuple[int, NDArray[np.int64]]:
        """Returns the value to paint, and where as run lengths: outside, inside, outside and so on."""
        outline = annotation.get("segmentation")
        value = VOID if annotation.get("iscrowd") else index + 1
        try:
            if isinstance(outline, dict):
                return value, self._run_lengths(outline)
            polygons = [self._polygon(points) for points in outline or [] if len(points) >= 6]
            if polygons:
                rle = coco_mask.merge(coco_mask.frPyObjects(polygons, self.height, self.width))
            else:
                value, rle = (
                    VOID,
                    coco_mask.frPyObjects(self._box(annotation), self.height, self.width)[0],
                )
            return value, self._run_lengths({**rle, "counts": rle["counts"].decode("ascii")})
        except (KeyError, TypeError, ValueError, OverflowError, IndexError) as error:
            raise CorpusError(
                f"{self.source}: the outline of annotation {annotation.get('id')} cannot be drawn ({error})."
            ) from error

    def _polygon(self, points: list[float]) -> list[float]:
        """Checks one polygon; far points would make pycocotools walk, and allocate, the whole way there."""
        coordinates = np.asarray(points, np.float64).reshape(-1, 2)
        if not (np.abs(coordinates) <= 2.0 * np.asarray([self.width, self.height])).all():
            raise ValueError("a point lies far outside the picture")
        return points

    def _box(self, annotation: dict[str, Any]) -> NDArray[np.float64]:
        """The annotation's box (x, y, width, height) as 1 x 4, cut to the picture."""
        x, y, width, height = np.asarray(annotation["bbox"], np.float64)
        corners = np.clip([x, y, x + width, y + height], 0, [self.width, self.height] * 2)
        if not np.isfinite(corners).all():
            raise ValueError("its box is not finite")
        return np.concatenate([corners[:2], corners[2:] - corners[:2]])[None]

    def _run_lengths(self, outline: dict[str, Any]) -> NDArray[np.int64]:
        """Checks and unpacks run lengths, packed (text) or not (list).

        Not by pycocotools' `decode`: where run lengths fall short it returns memory that it never wrote.
        """
        if list(outline["size"]) != [self.height, self.width]:
            raise ValueError(
                f"run lengths for {outline['size']}, picture is {[self.height, self.width]}"
            )
        packed = outline["counts"]
        counts = np.asarray(unpack_counts(packed) if isinstance(packed, str) else packed, np.int64)
        if counts.ndim != 1 or (counts < 0).any() or counts.sum() != self.height * self.width:
            raise ValueError(f"run lengths do not add up to {self.height * self.width} pixels")
        return counts


def unpack_counts(text: str) -> list[int]:
    """Unpacks COCO's compressed run lengths: 5 bits a character, signed, differences from the last but one.

    Source: `rleFrString` in cocoapi's `maskApi.c`. Raises IndexError where the text breaks off.
    """
    counts: list[int] = []
    position = 0
    while position < len(text):
        value, shift, more = 0, 0, True
        while more:
            bits = ord(text[position]) - 48
            value |= (bits & 31) << shift
            more = bool(bits & 32)
            position, shift = position + 1, shift + 5
        if bits & 16:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
    return counts


def _png_header(path: Path) -> tuple[int, int]:
    """Returns a PNG's bit depth and colour type."""
    try:
        with path.open("rb") as file:
            head = file.read(26)
    except OSError as error:
        raise CorpusError(f"{path}: the mask cannot be read ({error.strerror}).") from error
    if len(head) < 26 or not head.startswith(b"\x89PNG\r\n\x1a\n"):
        raise CorpusError(f"{path}: the mask is not a PNG.")
    return head[24], head[25]


def _png_plane(path: Path, modes: tuple[str, ...], kind: str) -> NDArray[Any]:
    """Decodes a PNG of one of these Pillow modes without converting it."""
    _png_header(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=["PNG"]) as picture:
                if picture.mode not in modes:
                    raise CorpusError(
                        f"{path}: the mask is a picture of mode {picture.mode}, not {kind} of class indices."
                    )
                return np.asarray(picture)
    except (
        OSError,
        SyntaxError,
        ValueError,
        Image.DecompressionBombWarning,
        Image.DecompressionBombError,
    ) as error:
        raise CorpusError(f"{path}: the mask cannot be decoded ({error}).") from error


def _checked(plane: NDArray[Any], num_classes: int, path: Path) -> NDArray[np.uint8]:
    """Refuses indices that are no class; returns the plane as bytes."""
    largest = int(plane[plane != VOID].max(initial=0))
    if largest > num_classes:
        raise CorpusError(
            f"{path}: index {largest} stands in the mask, but there are {num_classes} classes."
        )
    return plane.astype(np.uint8)
