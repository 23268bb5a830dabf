"""Adversarial losses, and how colorful an output is. Pure functions.

Sources: binary cross-entropy as in Treneska et al. 2022 and pix2pix (Isola et al. 2017, eq. 3 and
4); least squares: Mao et al. 2017, eq. 9 with a=0, b=c=1; hinge: Lim and Ye 2017.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

GanName = Literal["bce", "least_squares", "hinge"]


@dataclass(frozen=True)
class GanLoss:
    """An adversarial loss over patch logits of any shape; each part returns a scalar mean.

    Attributes:
        real: Loss of the discriminator on logits of real images.
        fake: Loss of the discriminator on logits of the generator's images.
        generator: Loss of the generator on logits of its images.
        threshold: Logits above it count as "real".
    """

    real: Callable[[Tensor], Tensor]
    fake: Callable[[Tensor], Tensor]
    generator: Callable[[Tensor], Tensor]
    threshold: float = 0.0


# With logits: a sigmoid first would round to 0 or 1 and lose the gradient.
def _bce(logits: Tensor, target: float) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target))


GAN_LOSSES: dict[GanName, GanLoss] = {
    "bce": GanLoss(lambda x: _bce(x, 1.0), lambda x: _bce(x, 0.0), lambda x: _bce(x, 1.0)),
    "least_squares": GanLoss(
        lambda x: ((x - 1) ** 2).mean(),
        lambda x: (x**2).mean(),
        lambda x: ((x - 1) ** 2).mean(),
        # Targets are 0 and 1, so the decision lies between them; the other losses decide at 0.
        threshold=0.5,
    ),
    # Lim and Ye: the generator's part is not clipped, or it would stop learning once it wins.
    "hinge": GanLoss(
        lambda x: F.relu(1 - x).mean(), lambda x: F.relu(1 + x).mean(), lambda x: -x.mean()
    ),
}


def lab_colorfulness(ab_B2HW: Tensor) -> Tensor:
    """Return how colorful each image is: sigma_ab + 0.37 mu_ab in CIELAB, in the unit of `ab`; B.

    Hasler and Suesstrunk 2003, "Measuring colourfulness in natural images", M(1): sigma_ab is the
    length of the standard deviations of a and b, mu_ab the distance of their means from grey.
    """
    # correction=0, the population's: the measure is of this image, not an estimate.
    spread_B = ab_B2HW.var(dim=(2, 3), correction=0).sum(dim=1).sqrt()
    distance_B = ab_B2HW.mean(dim=(2, 3)).square().sum(dim=1).sqrt()
    return spread_B + 0.37 * distance_B
