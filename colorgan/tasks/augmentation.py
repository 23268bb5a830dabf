"""Augmentation of luminance: random contrast and brightness, which have no color to change.

Crops and flips are the loader's, as labels follow them (`data.random_crop_min_area`, `data.flip`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from colorgan.devices import to_device
from colorgan.models.modes import dropout_keys

# Separates these draws from those of dropout, which come from the same seed and positions.
_SALT = 0x6C756D61


def jittered(luminance_B1HW: Tensor, amount: float, *, seed: int, positions_B: Tensor) -> Tensor:
    """Return luminance with another contrast and brightness per image.

    Contrast is scaled by 1 - amount to 1 + amount around the image's mean, brightness moved by
    -amount to amount of half the range; the result stays in [-1, 1]. The draw is a function of the
    seed and of the sample's position alone, so it is the same on any number of ranks and after any
    resume.

    Args:
        luminance_B1HW: L / 50 - 1.
        amount: 0 leaves the images as they are.
        seed: Of the run.
        positions_B: int64, positions in the stream, on the CPU.
    """
    if amount == 0.0:
        return luminance_B1HW

    # Hashed from positions, not drawn from a generator: a rank needs no other rank's draws.
    keys_B = dropout_keys(seed ^ _SALT, positions_B).long()
    # The lower and the upper 16 bits of a key as numbers from -1 to 1.
    draws_B2 = torch.stack([keys_B & 0xFFFF, (keys_B >> 16) & 0xFFFF], dim=1) / 32767.5 - 1.0
    draws_B2 = to_device(draws_B2 * amount, luminance_B1HW.device)

    contrast_B111 = 1.0 + draws_B2[:, 0].view(-1, 1, 1, 1)
    brightness_B111 = draws_B2[:, 1].view(-1, 1, 1, 1)
    # Around the mean, so that contrast does not move brightness as well.
    mean_B111 = luminance_B1HW.mean(dim=(1, 2, 3), keepdim=True)
    moved = (luminance_B1HW - mean_B111) * contrast_B111 + mean_B111 + brightness_B111
    # L beyond [0, 100] does not exist, and the encoder never sees it in validation.
    return moved.clamp(-1.0, 1.0)
