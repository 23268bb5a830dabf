"""Colour with a generator: normalised chroma for normalised luminance, and photos of any size.

Scores of what comes out stand in colorgan/evaluation/generator_scores.py.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from colorgan.color import (
    denormalise_lab_B3HW,
    lab_to_rgb_B3HW,
    normalise_lab_B3HW,
    rgb_to_lab_B3HW,
)
from colorgan.models.modes import dropout_keys, evaluating, set_dropout_keys


def color_normalised(
    generator: nn.Module, luminance_B1HW: Tensor, autocast: torch.autocast | None = None
) -> Tensor:
    """Return the generator's normalised chroma (B, 2, S, S) in float32, without gradients."""
    with torch.inference_mode():
        if autocast is None:
            out: Tensor = generator(luminance_B1HW)
        else:
            with autocast:
                out = generator(luminance_B1HW)
    return out.float()


def to_rgb(luminance_B1HW: Tensor, chroma_B2HW: Tensor, ab_scale: float) -> Tensor:
    """Return sRGB in [0, 1], float32, of normalised luminance and chroma."""
    lab_B3HW = torch.cat([luminance_B1HW.float(), chroma_B2HW.float()], dim=1)
    return lab_to_rgb_B3HW(denormalise_lab_B3HW(lab_B3HW, ab_scale))


def color_photo(
    generator: nn.Module, photo_3HW: Tensor, *, image_size: int, ab_scale: float, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Colour a photo of any size: chroma at the network's size, luminance at the photo's own.

    The photo's luminance is squashed to the network's square, the chroma that comes out is brought back to the photo's
    size (bicubic, antialiased) and joined with the full-resolution luminance.

    Args:
        photo_3HW: uint8 sRGB; its own colours are not used.

    Returns:
        grey and coloured photo, float32 sRGB in [0, 1], 3HW.
    """
    lab_13HW, chroma_12HW = lab_and_predicted(generator, photo_3HW, image_size, ab_scale, seed)
    grey = to_rgb(lab_13HW[:, :1], torch.zeros_like(chroma_12HW), ab_scale)
    return grey[0], to_rgb(lab_13HW[:, :1], chroma_12HW, ab_scale)[0]


def lab_and_predicted(
    generator: nn.Module, photo_3HW: Tensor, image_size: int, ab_scale: float, seed: int
) -> tuple[Tensor, Tensor]:
    """A photo's own normalised Lab and the chroma that the generator gives it, both at its own size, float32."""
    rgb_13HW = photo_3HW[None].float() / 255.0
    small_B3HW = resized(rgb_13HW, (image_size, image_size)).clamp(0.0, 1.0)
    small_luminance = normalise_lab_B3HW(rgb_to_lab_B3HW(small_B3HW), ab_scale)[:, :1].float()
    set_dropout_keys(generator, dropout_keys(seed, torch.zeros(1, dtype=torch.int64)))
    with evaluating(generator):
        chroma = color_normalised(generator, small_luminance)
    height, width = photo_3HW.shape[-2:]
    chroma_12HW = resized(chroma, (height, width)).clamp(-1.0, 1.0)
    return normalise_lab_B3HW(rgb_to_lab_B3HW(rgb_13HW), ab_scale).float(), chroma_12HW


def resized(picture_BCHW: Tensor, size: tuple[int, int]) -> Tensor:
    """Bicubic, antialiased where it shrinks; size is height and width. Values may leave their range a little."""
    return F.interpolate(picture_BCHW, size, mode="bicubic", antialias=True, align_corners=False)
