"""What the generator's output is compared with the photo's colors by, beside the GAN.

Distances: L1 as in Treneska et al. 2022 and pix2pix (Isola et al. 2017); L2, the mean square;
Huber's, with its bend at one Lab unit as in Zhang et al. 2017 ("Real-Time User-Guided Image
Colorization", its published code). Classes: Zhang, Isola and Efros 2016.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from colorgan.data import Loader
from colorgan.distributed.phase import Network
from colorgan.distributed.ranks import Ranks
from colorgan.models.color_classes import (
    NUM_CLASSES,
    ColorClasses,
    SoftTargets,
    rebalancing_weights,
)
from colorgan.models.unet import ClassUNet

DistanceName = Literal["l1", "l2", "huber"]
# Their order is the run's own, which is shuffled: a sample of the whole set.
PRIOR_IMAGES = 4096


class ColorLoss(Protocol):
    """Runs the generator and compares its output."""

    @property
    def name(self) -> str:
        """The loss's name in the log."""

    def __call__(
        self, generator: Network, luminance_B1HW: Tensor, target_BCHW: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the loss, a scalar, and the output (B, C, H, W), float32."""


@dataclass(frozen=True)
class DistanceLoss:
    """A distance between output and target, averaged over pixels and channels."""

    name: str
    distance: Callable[[Tensor, Tensor], Tensor]

    def __call__(
        self, generator: Network, luminance_B1HW: Tensor, target_BCHW: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the distance and the output."""
        output_BCHW = generator(luminance_B1HW).float()
        return self.distance(output_BCHW, target_BCHW), output_BCHW


def distance_loss(name: DistanceName, lab_scale: float) -> DistanceLoss:
    """Return the loss of that name.

    Args:
        name: "huber" is divided by the place of its bend, so that it is L1 but for half a Lab unit.
        lab_scale: Lab units of a normalised 1.
    """
    distances: dict[DistanceName, Callable[[Tensor, Tensor], Tensor]] = {
        "l1": F.l1_loss,
        "l2": F.mse_loss,
        "huber": partial(F.smooth_l1_loss, beta=1.0 / lab_scale),
    }
    return DistanceLoss(name, distances[name])


def class_cross_entropy(
    scores_BQhw: Tensor, classes_N5: Tensor, shares_N5: Tensor, weights_Q: Tensor
) -> Tensor:
    """Return the cross entropy between soft targets and scores, each pixel times its weight.

    Equations 2 and 3 of Zhang et al. 2016, as a mean over pixels. A pixel's weight is that of the
    class with its largest share.

    Args:
        scores_BQhw: Logits, float32.
        classes_N5: Each pixel's five classes, the nearest first; N = B h w, in that order.
        shares_N5: Their shares.
        weights_Q: Rebalancing weight of each class.
    """
    scores_NQ = scores_BQhw.permute(0, 2, 3, 1).reshape(-1, scores_BQhw.shape[1])
    # The targets' 308 zeros are never stored.
    expected_N = (shares_N5 * scores_NQ.gather(1, classes_N5)).sum(dim=1)
    entropy_N = scores_NQ.logsumexp(dim=1) - expected_N
    return (weights_Q[classes_N5[:, 0]] * entropy_N).mean()


class ClassLoss:
    """Cross entropy of color classes; the output is their annealed mean.

    Args:
        classes: The generator's; its `pixels_Q` is read at every call, as a resume fills it later.
        ab_scale: Divisor of a and b.
        device: Of the batches.
        adversarial: Whether a gradient is to reach the scores through the output.
    """

    name = "classes"

    def __init__(
        self, classes: ColorClasses, *, ab_scale: float, device: torch.device, adversarial: bool
    ) -> None:
        self._classes = classes
        self._ab_scale = ab_scale
        self._targets = SoftTargets(device)
        self._adversarial = adversarial

    def __call__(
        self, generator: Network, luminance_B1HW: Tensor, target_BCHW: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the cross entropy and the annealed mean as normalised chroma."""
        scores_BQhw = generator(luminance_B1HW, scores=True).float()
        height, width = scores_BQhw.shape[-2:]
        ab_N2 = _colors_at(target_BCHW * self._ab_scale, (height, width))
        weights_Q = rebalancing_weights(self._classes.pixels_Q, self._classes.centers_Q2)
        loss = class_cross_entropy(scores_BQhw, *self._targets.soft(ab_N2), weights_Q)

        size = (target_BCHW.shape[-2], target_BCHW.shape[-1])
        with torch.set_grad_enabled(self._adversarial and torch.is_grad_enabled()):
            return loss, self._classes(scores_BQhw, size)


def measure_prior(
    generator: ClassUNet, train: Loader, ranks: Ranks, *, global_batch_size: int, ab_scale: float
) -> int:
    """Count the pixels of each class in the first training images, into the generator.

    The images are those that the run begins with, cropped and mirrored as it sees them, at the side
    that the generator predicts. The counts are whole numbers: their sum is the same on any number
    of ranks. Called on all ranks.

    Returns:
        The number of images: `PRIOR_IMAGES` or the size of the set, rounded up to whole batches.
    """
    pixels_Q = torch.zeros_like(generator.classes.pixels_Q)
    targets = SoftTargets(pixels_Q.device)
    stride = generator.encoder.strides[0]
    wanted = min(PRIOR_IMAGES, train.shards.num_samples)
    num_batches = -(-wanted // global_batch_size)

    with closing(train.train_batches(0)) as batches:  # type: ignore[type-var]
        for _, micro_batches in zip(range(num_batches), batches, strict=False):
            for batch in micro_batches:
                chroma_B2HW = batch.lab_B3HW[:, 1:] * ab_scale
                size = (chroma_B2HW.shape[-2] // stride, chroma_B2HW.shape[-1] // stride)
                classes_N5, _ = targets.nearest(_colors_at(chroma_B2HW, size))
                pixels_Q += torch.bincount(classes_N5[:, 0], minlength=NUM_CLASSES)

    counts = ranks.gather(pixels_Q.tolist())
    total_Q = torch.tensor(counts).sum(dim=0)
    generator.classes.pixels_Q.copy_(total_Q)
    return num_batches * global_batch_size


def _colors_at(ab_B2HW: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the mean color of each square that a score stands for, N x 2."""
    return F.adaptive_avg_pool2d(ab_B2HW, size).permute(0, 2, 3, 1).reshape(-1, 2)
