"""What a decoder has to do; known before DALI is imported (70 MB and a second)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class DecodeSpec:
    """What the graph does.

    Attributes:
        image_size: Side of the square output in pixels.
        crop: Crop each image to its window before resizing.
        pad: Windows may reach beyond the image: mid-grey there, and void in masks.
        resize: False if every image already has the output's size.
        flip: Mirror the images whose flip is 1.
        mask: Decode a mask beside each image.
        num_classes: Largest class index that a mask may hold beside 255 (void).
        ab_scale: Divisor of a and b.
        lab: `fused` (CPU only) or `operators`.
        hardware_decoder_share: GPU: share of the JPEGs for the hardware decoder, if the GPU has
            one.
    """

    image_size: int
    crop: bool = False
    pad: bool = False
    resize: bool = True
    flip: bool = False
    mask: bool = False
    num_classes: int = 254
    ab_scale: float = 128.0
    lab: Literal["fused", "operators"] = "fused"
    hardware_decoder_share: float = 0.65

    @property
    def resizes(self) -> bool:
        """Return whether images must be resized after cropping."""
        return self.resize or self.crop

    @property
    def flips_in_graph(self) -> bool:
        """Return whether DALI mirrors anything: masks, and images without the fused kernel."""
        return self.flip and (self.mask or self.lab == "operators")
