"""COCO's outlines of one image, rasterized by pycocotools into one plane of classes.

Read in the packer's workers.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from datasets.corpora.masks import MAX_MASK_PIXELS
from datasets.corpora.objects import is_crowd
from datasets.errors import CorpusError
from shards.records import VOID

MIN_POLYGON_NUMBERS = 6  # three points
# pycocotools keeps 5 steps of 8 bytes per pixel of an outline: 160 MB. Real outlines have some
# thousand pixels.
MAX_OUTLINE_PX = 4_000_000
MAX_RUN_BITS = 40  # of one run length


@dataclass(frozen=True, slots=True)
class _Region:
    """Pixels to paint, as run lengths: outside, inside, outside and so on."""

    value: int
    counts: NDArray[np.int64]

    def order(self) -> tuple[bool, int]:
        """Return the sort key: void first, then the larger regions."""
        area = int(self.counts[1::2].sum())
        return self.value != VOID, -area


@dataclass(frozen=True, slots=True)
class CocoMask:
    """Instances of one image.

    Crowd regions become void first, then the larger objects, then the smaller ones: those stay
    visible where they overlap. An object without an outline, or with one in an unknown form, makes
    its box void: what is there is not background. So does one whose class is unknown.

    Attributes:
        annotations: (0-based class index or None if unknown, COCO annotation), as the JSON has
            them.
        height: of the plane, pixels.
        width: of the plane, pixels.
        source: the JSON file and image, for messages.
    """

    annotations: tuple[tuple[int | None, dict[str, Any]], ...]
    height: int
    width: int
    source: str

    def read(self) -> NDArray[np.uint8]:
        """Return the plane, height x width.

        Raises:
            CorpusError: outlines that do not fit the image, or a size that no image has.
        """
        if not 0 < self.height * self.width <= MAX_MASK_PIXELS or self.height < 0:
            raise CorpusError(
                f"{self.source}: {self.width} x {self.height} is no size of a picture."
            )

        regions = [self._region(index, annotation) for index, annotation in self.annotations]
        # Painted one over the other: what comes last is seen.
        regions.sort(key=_Region.order)

        # Run lengths go down the columns.
        plane_WH = np.zeros((self.width, self.height), np.uint8)
        pixels = plane_WH.reshape(-1)
        for region in regions:
            is_inside = np.arange(len(region.counts)) % 2 == 1
            pixels[np.repeat(is_inside, region.counts)] = region.value
        return np.ascontiguousarray(plane_WH.T)

    def dropped(self) -> tuple[str, ...]:
        """Return why outlines are taken for none: their form is looked at, nothing is drawn."""
        faults = [
            (_outline_fault(annotation.get("segmentation")), annotation.get("id"))
            for _, annotation in self.annotations
        ]
        return tuple(f"{fault}: annotation {identity}" for fault, identity in faults if fault)

    def _region(self, index: int | None, annotation: dict[str, Any]) -> _Region:
        """Return where an object is, and the value to paint there."""
        value = VOID
        if index is not None and not is_crowd(annotation):
            value = index + 1

        try:
            outline = annotation.get("segmentation")
            if _outline_fault(outline):
                outline = None
            if isinstance(outline, dict):
                return _Region(value, self._run_lengths(outline))

            polygons = self._polygons(outline)
            if polygons:
                return _Region(value, self._merged(polygons))
            return _Region(VOID, self._merged(self._box(annotation)))
        except (KeyError, TypeError, ValueError, OverflowError, IndexError) as error:
            raise CorpusError(
                f"{self.source}: the outline of annotation {annotation.get('id')} cannot be drawn "
                f"({error})."
            ) from error

    def _polygons(self, outline: Any) -> list[list[float]]:
        """Return the polygons of three points and more."""
        if outline is None:
            return []

        # Some tools write the one polygon without the list around it.
        if outline and all(isinstance(number, int | float) for number in outline):
            outline = [outline]

        polygons = []
        for points in outline:
            if len(points) >= MIN_POLYGON_NUMBERS:
                polygons.append(self._checked(points))
        return polygons

    def _checked(self, points: list[float]) -> list[float]:
        """Refuse far points: pycocotools would walk, and allocate, the whole way there."""
        if len(points) % 2:
            raise ValueError(f"a polygon has {len(points)} numbers, which is odd")

        coordinates = np.asarray(points, np.float64).reshape(-1, 2)
        farthest = 2.0 * np.asarray([self.width, self.height])
        # Written so that NaN is refused too.
        if not (np.abs(coordinates) <= farthest).all():
            raise ValueError(f"a point lies far outside of {self.width} x {self.height} pixels")

        steps = np.abs(np.diff(coordinates, axis=0, append=coordinates[:1]))
        if steps.max(axis=1).sum() > MAX_OUTLINE_PX:
            raise ValueError(f"its outline is longer than {MAX_OUTLINE_PX:,} pixels")
        # As numbers: some tools write them as text.
        flat: list[float] = coordinates.ravel().tolist()
        return flat

    def _box(self, annotation: dict[str, Any]) -> NDArray[np.float64]:
        """Return the annotation's box (x, y, width, height) as 1 x 4, cut to the image.

        No box is an empty one.
        """
        if not annotation.get("bbox"):
            return np.zeros((1, 4))

        x, y, width, height = np.asarray(annotation["bbox"], np.float64)
        corners = np.clip([x, y, x + width, y + height], 0, [self.width, self.height] * 2)
        if not np.isfinite(corners).all():
            raise ValueError("its box is not finite")

        first, last = corners[:2], corners[2:]
        return np.concatenate([first, last - first])[None]

    def _merged(self, outlines: Any) -> NDArray[np.int64]:
        """Return the run lengths of polygons or boxes drawn together."""
        drawn = coco_mask.merge(coco_mask.frPyObjects(outlines, self.height, self.width))
        return self._run_lengths({**drawn, "counts": drawn["counts"].decode("ascii")})

    def _run_lengths(self, outline: dict[str, Any]) -> NDArray[np.int64]:
        """Check and unpack run lengths, packed (text) or not (list).

        Not by pycocotools' `decode`: where run lengths fall short it returns memory that it never
        wrote.
        """
        size = list(outline["size"])
        if size != [self.height, self.width]:
            raise ValueError(f"run lengths for {size}, picture is {[self.height, self.width]}")

        packed = outline["counts"]
        numbers = unpack_counts(packed) if isinstance(packed, str) else packed
        # Checked in 64 bits: hostile sums would wrap in 32.
        counts = np.asarray(numbers, np.int64)

        num_pixels = self.height * self.width
        if counts.ndim != 1 or (counts < 0).any() or counts.sum() != num_pixels:
            raise ValueError(f"run lengths do not add up to {num_pixels} pixels")
        return counts


def _outline_fault(outline: Any) -> str:
    """Return what is wrong with the form of an outline; empty if it can be drawn or is none."""
    if outline is None:
        return ""
    if isinstance(outline, dict):
        has_parts = isinstance(outline.get("size"), list) and "counts" in outline
        return "" if has_parts else "its outline has no run lengths, so that its box is void"
    if not isinstance(outline, list):
        return "its outline is no list of polygons, so that its box is void"

    is_polygon = all(isinstance(number, int | float) for number in outline)
    if not is_polygon and not all(isinstance(points, list) for points in outline):
        return "its outline is neither a list of polygons nor one polygon, so that its box is void"
    return ""


def unpack_counts(text: str) -> list[int]:
    """Unpack COCO's compressed run lengths.

    They have 5 bits per character, are signed, and are differences from the last but one.
    Source: `rleFrString` in cocoapi's `maskApi.c`.

    Raises:
        IndexError: the text breaks off.
        ValueError: a run length that no image has.
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
            if shift > MAX_RUN_BITS:
                raise ValueError("a run length is too large")

        if bits & 16:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
    return counts
