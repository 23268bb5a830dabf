"""What is minimised and how fast: adversarial losses, learning-rate schedules, dropout keys. Pure functions.

Sources: binary cross-entropy and L1 as in Treneska et al. 2022 and pix2pix (Isola et al. 2017, eq. 3 and 4);
least squares: Mao et al. 2017, eq. 9 with a=0, b=c=1; hinge: Lim and Ye 2017.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

GanName = Literal["bce", "least_squares", "hinge"]
ScheduleName = Literal["constant", "linear", "cosine"]


@dataclass(frozen=True)
class GanLoss:
    """An adversarial loss over patch logits of any shape; each part returns a scalar mean.

    A logit over `threshold` says real.
    """

    real: Callable[[Tensor], Tensor]
    fake: Callable[[Tensor], Tensor]
    generator: Callable[[Tensor], Tensor]
    threshold: float = 0.0


def _bce(logits: Tensor, target: float) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target))


GAN_LOSSES: dict[GanName, GanLoss] = {
    "bce": GanLoss(lambda x: _bce(x, 1.0), lambda x: _bce(x, 0.0), lambda x: _bce(x, 1.0)),
    "least_squares": GanLoss(
        lambda x: ((x - 1) ** 2).mean(), lambda x: (x**2).mean(), lambda x: ((x - 1) ** 2).mean(), threshold=0.5
    ),
    "hinge": GanLoss(lambda x: F.relu(1 - x).mean(), lambda x: F.relu(1 + x).mean(), lambda x: -x.mean()),
}


def lab_colourfulness(ab_B2HW: Tensor) -> Tensor:
    """Return how colourful each picture is: sigma_ab + 0.37 mu_ab in CIELAB, in the unit of `ab` (B,).

    Hasler and Suesstrunk 2003, "Measuring colourfulness in natural images", M(1): sigma_ab is the length of the
    standard deviations of a and b, mu_ab the distance of their means from grey.
    """
    spread_B = ab_B2HW.var(dim=(2, 3), correction=0).sum(dim=1).sqrt()
    return spread_B + 0.37 * ab_B2HW.mean(dim=(2, 3)).square().sum(dim=1).sqrt()


def learning_rate_schedule(
    peak: float,
    *,
    schedule: ScheduleName,
    total_images: int,
    warmup_images: int = 0,
    decay_start: float = 0.0,
    first_image: int = 0,
) -> Callable[[int], float]:
    """Return the learning rate as a function of images seen.

    It rises linearly from 0 over `warmup_images`, holds `peak` until the share `decay_start` of the images, then
    decays to 0 at `first_image + total_images` (linear or half a cosine), or holds for good (constant).
    """

    def rate(images_seen: int) -> float:
        done = images_seen - first_image
        if done < warmup_images:
            return peak * done / warmup_images
        progress = min(1.0, max(0.0, (done / total_images - decay_start) / max(1e-12, 1.0 - decay_start)))
        if schedule == "linear":
            return peak * (1.0 - progress)
        if schedule == "cosine":
            return peak * 0.5 * (1.0 + math.cos(math.pi * progress))
        return peak

    return rate


def dropout_keys(seed: int, slots_B: Tensor) -> Tensor:
    """Return one int32 key a sample for `KeyedDropout`: a function of the seed and of the sample's place in the order.

    `slots_B` (int64) numbers every sample of a run once, so a key belongs to one image of one step, whichever rank
    or micro-batch it is in.
    """
    mixed = slots_B.numpy().astype(np.uint64) + np.uint64(seed * 0x9E3779B97F4A7C15 % 2**64)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return torch.from_numpy((mixed >> np.uint64(32)).astype(np.uint32).view(np.int32).copy())
