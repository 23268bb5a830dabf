"""The part of a photo that a fine-tuned network sees as a square, and the way back from it.

The same windows as in training (`shards.order.fitted_windows`, which has them for whole batches).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from colorgan.models.colorizing import PhotoRows, luminance_square
from colorgan.models.model_config import ModelConfig
from colorgan.models.photo_input import as_photo

Fit = Literal["squash", "crop", "pad"]
# As in training: what is beyond the photo, in 8 bits, and the longest shape that is padded.
PADDING_GREY, MAX_PADDED = 119, 4
# Of a mask where the network saw nothing.
VOID = 255


@dataclass(frozen=True)
class Frame:
    """A window on a photo, in pixels; a padded one reaches beyond it, so corners may be negative.

    Attributes:
        top: First row.
        left: First column.
        height: Rows of the window.
        width: Columns of the window.
        photo_size: Height and width of the photo.
    """

    top: int
    left: int
    height: int
    width: int
    photo_size: tuple[int, int]

    def cut(self, photo_3HW: Tensor) -> Tensor:
        """Return the window's pixels, grey beyond the photo."""
        rows, columns = self._inside()
        inside = photo_3HW[:, rows, columns]
        if inside.shape[1:] == (self.height, self.width):
            return inside

        grey = PADDING_GREY if photo_3HW.dtype == torch.uint8 else PADDING_GREY / 255
        window = torch.full(
            (3, self.height, self.width), grey, dtype=photo_3HW.dtype, device=photo_3HW.device
        )
        window[:, self._shifted(rows, self.top), self._shifted(columns, self.left)] = inside
        return window

    def mask_on_photo(self, window_HW: Tensor) -> Tensor:
        """Return a mask of the window at its place on the photo, void where that saw nothing."""
        rows, columns = self._inside()
        mask_HW = torch.full(self.photo_size, VOID, dtype=torch.uint8)
        mask_HW[rows, columns] = window_HW[
            self._shifted(rows, self.top), self._shifted(columns, self.left)
        ]
        return mask_HW

    def boxes_on_photo(self, boxes_N4: Tensor) -> Tensor:
        """Return boxes in shares of the window as boxes in pixels of the photo, clipped to it."""
        sides_4 = torch.tensor([self.width, self.height] * 2, dtype=torch.float32)
        corner_4 = torch.tensor([self.left, self.top] * 2, dtype=torch.float32)
        height, width = self.photo_size
        ends_4 = torch.tensor([width, height] * 2, dtype=torch.float32)
        pixels_N4 = boxes_N4.cpu().float() * sides_4 + corner_4
        return torch.minimum(pixels_N4.clamp(min=0.0), ends_4)

    def _inside(self) -> tuple[slice, slice]:
        """Return the photo's rows and columns that the window shows."""
        height, width = self.photo_size
        rows = slice(max(self.top, 0), min(self.top + self.height, height))
        return rows, slice(max(self.left, 0), min(self.left + self.width, width))

    @staticmethod
    def _shifted(span: slice, start: int) -> slice:
        return slice(span.start - start, span.stop - start)


def framed_luminance(image: Any, config: ModelConfig) -> tuple[Tensor, Frame]:
    """Return a photo as a network sees it, and the part of the photo that this is.

    Args:
        image: As `colorgan.models.photo_input.as_photo` takes it.
        config: Of the model: its `fit` and the side of its pictures.

    Returns:
        Normalised luminance, 1 x 1 x S x S float32 on the CPU, and its window.

    Raises:
        UsageError: The photo could be read in two ways.
    """
    photo_3HW = as_photo(image)
    seen = frame(photo_3HW.shape[1], photo_3HW.shape[2], config.fit)
    return luminance_square(PhotoRows.of(seen.cut(photo_3HW)), config.picture_size), seen


def frame(height: int, width: int, fit: Fit) -> Frame:
    """Return the window of a photo that a network with this `fit` sees."""
    new_height, new_width = height, width
    shorter = min(height, width)
    if fit == "crop":
        new_height = new_width = shorter
    elif fit == "pad":
        side = min(max(height, width), MAX_PADDED * shorter)
        new_height, new_width = max(height, side), max(width, side)

    # Rounded down, also where the window reaches beyond the photo.
    top, left = (height - new_height) // 2, (width - new_width) // 2
    return Frame(top, left, new_height, new_width, (height, width))
