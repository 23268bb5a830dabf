"""Color as classes: the cells of the ab plane, soft targets, rebalancing, the annealed mean.

Zhang, Isola and Efros 2016, "Colorful Image Colorization" (arXiv:1603.08511), sections 2.1 to 2.3.
All functions are pure; ab is in Lab units here, not divided by a generator's `ab_scale`.

Shape legend: Q = 313 classes, N pixels, `h` and `w` the sides of a map of scores.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CELL = 10
NUM_NEIGHBORS = 5
TARGET_SIGMA = 5.0
PRIOR_SIGMA = 5.0
# lambda of the paper's equation 4: the share of the uniform distribution.
UNIFORM_SHARE = 0.5
# T of the paper's equation 5: 1 is the mean, 0 the mode.
TEMPERATURE = 0.38

# a, smallest b, largest b. The gamut of sRGB is a solid in Lab; its shadow on the ab plane has a
# convex hull; the classes are the corners of all squares of a grid of side 10 that this hull
# touches. They are the 313 points that the paper's authors published.
_ROWS = (
    (-90, 50, 90),
    (-80, 20, 90),
    (-70, 0, 90),
    (-60, -20, 90),
    (-50, -30, 100),
    (-40, -40, 100),
    (-30, -50, 100),
    (-20, -50, 100),
    (-10, -60, 100),
    (0, -70, 100),
    (10, -80, 90),
    (20, -80, 90),
    (30, -90, 90),
    (40, -100, 90),
    (50, -100, 80),
    (60, -110, 80),
    (70, -110, 80),
    (80, -110, 70),
    (90, -110, 70),
    (100, -90, 0),
)
# Squares around the multiples of 10 from -110 to 110, in which pixels are looked up.
_REACH = 11
_SIDE = 2 * _REACH + 1


def class_centers() -> Tensor:
    """Return a and b of every class in Lab units: Q x 2, int64, ordered by a, then b."""
    pairs = [(a, b) for a, low, high in _ROWS for b in range(low, high + 1, CELL)]
    return torch.tensor(pairs)


NUM_CLASSES = sum((high - low) // CELL + 1 for _, low, high in _ROWS)


class SoftTargets:
    """Finds the nearest classes of colors without comparing each pixel with all of them.

    A color's five nearest classes are among the few that can be nearest to any color of its square;
    those are listed once for each of the 529 squares.

    Args:
        device: Where the colors will be.
    """

    def __init__(self, device: torch.device) -> None:
        centers_Q2 = class_centers().double()
        axis = torch.arange(-_REACH, _REACH + 1, dtype=torch.float64) * CELL
        squares = torch.cartesian_prod(axis, axis)
        offsets = (squares[:, None] - centers_Q2[None]).abs()
        nearest = (offsets - CELL / 2).clamp_min(0).norm(dim=-1)
        farthest = (offsets + CELL / 2).norm(dim=-1)

        # No class outside this radius can be among the five nearest of any color of the square.
        radius = farthest.kthvalue(NUM_NEIGHBORS, dim=1, keepdim=True).values
        possible = nearest <= radius
        most = int(possible.sum(dim=1).max())
        listed = torch.where(possible, nearest, torch.inf).argsort(dim=1, stable=True)[:, :most]
        # Where a square has fewer candidates, classes that are too far to be chosen fill its row.
        self._candidates = listed.to(device)
        self._centers_Q2 = centers_Q2.float().to(device)

    def nearest(self, ab_N2: Tensor) -> tuple[Tensor, Tensor]:
        """Return the five nearest classes of every color, and their squared distances.

        Args:
            ab_N2: float32, within [-115, 115].

        Returns:
            Classes (N, 5), int64, the nearest first, and squared distances (N, 5) in Lab units.
        """
        square_N2 = (ab_N2 / CELL).round().clamp(-_REACH, _REACH).long() + _REACH
        candidates = self._candidates[square_N2[:, 0] * _SIDE + square_N2[:, 1]]
        squared = (self._centers_Q2[candidates] - ab_N2[:, None]).square().sum(dim=-1)
        distances, chosen = squared.topk(NUM_NEIGHBORS, dim=1, largest=False)
        return candidates.gather(1, chosen), distances

    def soft(self, ab_N2: Tensor) -> tuple[Tensor, Tensor]:
        """Return the five classes of every color and their shares, (N, 5) each; shares add up to 1.

        The shares fall with distance as a Gaussian of sigma 5 (the paper's section 2.1). The other
        308 shares are 0 and are never stored.
        """
        classes, squared = self.nearest(ab_N2)
        shares = torch.softmax(-squared / (2 * TARGET_SIGMA**2), dim=1)
        return classes, shares


def smoothed_prior(pixels_Q: Tensor, centers_Q2: Tensor) -> Tensor:
    """Return the distribution over classes, smoothed on the ab plane: float64, adds up to 1.

    Each class's share is spread over the classes as a Gaussian of sigma 5; what would leave the
    gamut stays in it.

    Args:
        pixels_Q: Number of pixels of each class, at least one of them above 0.
        centers_Q2: a and b of each class, on the same device: a copy of them would wait for all
            that the device has queued.
    """
    centers_Q2 = centers_Q2.double()
    squared_QQ = (centers_Q2[:, None] - centers_Q2[None]).square().sum(dim=-1)
    spread_QQ = torch.exp(-squared_QQ / (2 * PRIOR_SIGMA**2))
    spread_QQ = spread_QQ / spread_QQ.sum(dim=0)
    shares_Q = pixels_Q.double() / pixels_Q.sum()
    return spread_QQ @ shares_Q


def rebalancing_weights(pixels_Q: Tensor, centers_Q2: Tensor) -> Tensor:
    """Return the weight of each class in the loss, float32: rare colors weigh more.

    The inverse of a mixture of the smoothed prior and the uniform distribution, scaled to an
    expected weight of 1 (the paper's equation 4).

    Args:
        pixels_Q: Number of pixels of each class in the training set, at least one above 0.
        centers_Q2: a and b of each class, on the same device.
    """
    prior_Q = smoothed_prior(pixels_Q, centers_Q2)
    weights_Q = 1.0 / ((1.0 - UNIFORM_SHARE) * prior_Q + UNIFORM_SHARE / NUM_CLASSES)
    return (weights_Q / (prior_Q * weights_Q).sum()).float()


class ColorClasses(nn.Module):
    """The classes of a generator: their centers, their pixels in its training set, the decoding.

    Both are whole numbers: averaging them over ranks or saving them in any precision leaves them as
    they are.

    Attributes:
        centers_Q2: a and b of each class, in Lab units.
        pixels_Q: Pixels of each class among the training images that the prior was measured on;
            until then 1, so that all classes weigh alike.
    """

    centers_Q2: Tensor
    pixels_Q: Tensor

    def __init__(self, ab_scale: float) -> None:
        super().__init__()
        self._ab_scale = ab_scale
        self.register_buffer("centers_Q2", class_centers())
        self.register_buffer("pixels_Q", torch.ones(NUM_CLASSES, dtype=torch.int64))

    def forward(self, scores_BQhw: Tensor, size: tuple[int, int]) -> Tensor:
        """Return the annealed mean as normalised chroma (B, 2, *size), float32.

        The mean over the classes after their distribution was made sharper (the paper's equation
        5), enlarged bilinearly. Differentiable.
        """
        # Under autocast the product would be bfloat16: steps of half a Lab unit at a = 100.
        with torch.autocast(scores_BQhw.device.type, enabled=False):
            # Classes last, as training has them in memory: a softmax over them copies otherwise.
            scores_BhwQ = scores_BQhw.float().permute(0, 2, 3, 1)
            shares_BhwQ = torch.softmax(scores_BhwQ / TEMPERATURE, dim=3)
            ab_B2hw = (shares_BhwQ @ self.centers_Q2.float()).permute(0, 3, 1, 2)
            return _enlarged(ab_B2hw / self._ab_scale, size)


def _enlarged(picture_BChw: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the picture at a larger size, bilinear.

    As two products with small matrices, because the gradient of torch's own bilinear resize adds up
    in any order on a GPU.
    """
    rows, columns = (
        F.interpolate(
            torch.eye(small, device=picture_BChw.device)[None],
            size=large,
            mode="linear",
            align_corners=False,
        )[0]
        for small, large in zip(picture_BChw.shape[-2:], size, strict=True)
    )
    return rows.T @ picture_BChw @ columns
