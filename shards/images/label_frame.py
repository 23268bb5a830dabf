"""Decide in whose pixels a label or mask was made: the upright, stored or a resized image's.

Annotation tools show a phone photo upright, other programs read its pixels as stored, and photos
are resized after they were labelled. The size that a label states, or that a mask has, is compared
with the image's:

    the image's upright size                       made on the upright view
    its stored size, where EXIF turns the image    made on the stored pixels, and turned with them
    either one times a factor                      the same, on a copy of another size, and scaled
    anything else                                  PictureError, which names both sizes

Where both views have one size (EXIF mirrors, turns by 180 degrees, square images), and where no
size is stated, the label is taken to be made on the upright view, as annotation tools show it.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from shards.errors import PictureError
from shards.images.policy import Geometry

Size = tuple[int, int]  # width, height, pixels
Box = tuple[float, float, float, float]

# A label may be a pixel off on each side: tools round and count differently. A mask may not.
LABEL_SLIP_PX = 1
# A copy's sides are the factor times the image's, rounded or cut to whole pixels. A factor this
# near to 1 is not taken for a resize: a mask that is a few pixels off was cut or padded, or is
# another image's.
ROUNDING_PX = 1.0
LEAST_RESIZE = 0.05
# Boxes may stick out of their image: by a pixel, and by 2 % of its side.
BOX_SLACK = 1.02


@dataclass(frozen=True, slots=True)
class LabelFrame:
    """The pixels that a label counts in.

    Attributes:
        width: of the frame, pixels.
        height: of the frame, pixels.
        is_stored: the frame is the image as stored, before its EXIF orientation; else the upright
            view.
        is_resized: the frame has another size than the image.
    """

    width: int
    height: int
    is_stored: bool
    is_resized: bool

    def move_box(self, box: Box, geometry: Geometry) -> list[float]:
        """Return a box of the frame as `[x0, y0, x1, y1]` in pixels of the shard's image."""
        x0, y0, x1, y1 = box

        if self.is_stored:
            across = geometry.stored_width / self.width
            down = geometry.stored_height / self.height
            return geometry.move_box((x0 * across, y0 * down, x1 * across, y1 * down))

        x0, x1 = sorted((x0 * geometry.width / self.width, x1 * geometry.width / self.width))
        y0, y1 = sorted((y0 * geometry.height / self.height, y1 * geometry.height / self.height))
        return [x0, y0, x1, y1]

    def move_area(self, area: float, geometry: Geometry) -> float:
        """Return an area in pixels of the frame as pixels of the upright source."""
        if not self.is_resized:
            return area
        return area * geometry.stored_width * geometry.stored_height / (self.width * self.height)

    def check_boxes(self, boxes: Iterable[Box]) -> None:
        """Refuse boxes that contradict a frame of another size than the image.

        Raises:
            PictureError: a box reaches beyond the stated size, so that was not the size of the
                labelled image.
        """
        if not self.is_resized:
            return

        right = self.width * BOX_SLACK + ROUNDING_PX
        bottom = self.height * BOX_SLACK + ROUNDING_PX
        for _, _, x1, y1 in boxes:
            if x1 > right or y1 > bottom:
                raise PictureError(
                    "its label states another size than the picture's and has a box beyond it: "
                    f"{self.width} x {self.height} pixels, a box that reaches to {x1:g}, {y1:g}"
                )


def label_frame(stated: Size | None, geometry: Geometry) -> LabelFrame:
    """Return the frame of a label.

    Args:
        stated: width and height that the label states; None if it states none.
        geometry: of the image.

    Raises:
        PictureError: the stated size fits neither view of the image.
    """
    if stated is None:
        return LabelFrame(*geometry.upright, is_stored=False, is_resized=False)

    frame = _frame(stated, geometry, LABEL_SLIP_PX)
    if frame is None:
        raise PictureError(
            "its label is for a picture of another size, which no turn and no resize explains: "
            f"{stated[0]} x {stated[1]} pixels, this one has {_views_in_words(geometry)}"
        )
    return frame


def mask_frame(size: Size, geometry: Geometry) -> LabelFrame:
    """Return the frame of a mask of this width and height.

    Raises:
        PictureError: the size fits neither view of the image.
    """
    frame = _frame(size, geometry, slip_px=0)
    if frame is None:
        height, width = geometry.stored_height, geometry.stored_width
        turned = f", turned by EXIF orientation {geometry.orientation}"
        turned = turned if geometry.orientation >= 5 else ""
        raise PictureError(
            f"its mask has another size than the picture: the mask is {size[1]} x {size[0]} "
            f"(height x width), its picture {height} x {width}{turned}"
        )
    return frame


def _frame(size: Size, geometry: Geometry, slip_px: int) -> LabelFrame | None:
    """Return the frame of the view that fits best; of two that fit equally well the upright one."""
    stored = (geometry.stored_width, geometry.stored_height)
    # Upright first, as `min` takes the first of equals.
    views = [(geometry.upright, False), (stored, True)]
    fitting = [(view, is_stored) for view, is_stored in views if _fits(size, view, slip_px)]
    if not fitting:
        return None

    view, is_stored = min(
        fitting,
        key=lambda candidate: _misfit(size, candidate[0]),
    )
    if _is_close(size, view, slip_px):
        return LabelFrame(*view, is_stored=is_stored, is_resized=False)
    return LabelFrame(*size, is_stored=is_stored, is_resized=True)


def _fits(size: Size, view: Size, slip_px: int) -> bool:
    return min(size) > 0 and (_is_close(size, view, slip_px) or _is_resize(size, view))


def _is_close(size: Size, view: Size, slip_px: int) -> bool:
    return max(abs(size[0] - view[0]), abs(size[1] - view[1])) <= slip_px


def _is_resize(size: Size, view: Size) -> bool:
    """Return whether one factor, not near 1, scales one size to the other, up to rounding."""
    small, large = sorted((size, view))
    lowest = max((a - ROUNDING_PX) / b for a, b in zip(small, large, strict=True))
    highest = min((a + ROUNDING_PX) / b for a, b in zip(small, large, strict=True))
    return lowest <= highest and highest < 1 - LEAST_RESIZE


def _misfit(size: Size, view: Size) -> float:
    """Return how far the two aspect ratios are apart; 0 if they are equal."""
    return abs(math.log(size[0] * view[1] / (size[1] * view[0])))


def _views_in_words(geometry: Geometry) -> str:
    width, height = geometry.upright
    words = f"{width} x {height}"
    if geometry.orientation >= 5:
        words += f" upright ({height} x {width} before EXIF orientation {geometry.orientation})"
    return words
