"""Scores of colored images, of multilabel classification and of segmentation.

Pure functions on tensors.

Scores of colored images come per image, so that ranks add them up without taking means of means;
segmentation scores come from a confusion matrix that adds up over batches and ranks. Where the
paper differs, the score has its own name.

B images, N images, C classes, H x W pixels.
"""

# ruff: noqa: N802 (a function's name ends in the shape that it returns)

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from colorgan.errors import TrainingError

SSIM_WINDOW_PX = 11

Interpolation = Literal["area", "11-point"]


# 10 / ln(10), in float32 as torchmetrics rounds it: scores of earlier runs stay equal to the digit.
_DECIBELS_PER_NEPER = (10.0 / torch.tensor(10.0).log()).item()


def psnr_B(rgb_B3HW: Tensor, target_B3HW: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio per image in dB, data range 1.

    Infinite for equal images.

    Args:
        rgb_B3HW: sRGB in [0, 1].
        target_B3HW: sRGB in [0, 1], the same shape.

    Returns:
        float64, B.
    """
    _check_pictures(rgb_B3HW, target_B3HW)
    # float64: near 40 dB the squares are at the end of float32's digits.
    difference_B3HW = rgb_B3HW.double() - target_B3HW.double()
    mean_square_B = difference_B3HW.square().flatten(1).mean(dim=1)
    return -mean_square_B.log() * _DECIBELS_PER_NEPER


def ssim_B(rgb_B3HW: Tensor, target_B3HW: Tensor) -> Tensor:
    """Return the structural similarity per image.

    11x11 Gaussian, sigma 1.5, K1 0.01, K2 0.03, range 1, mean over RGB.

    Windows wholly inside the image count, as in Wang et al. 2004, TensorFlow and skimage
    (torchmetrics counts mirrored ones at the borders too). In float64, as variances of flat areas
    cancel in float32; by shifted sums, 20 to 40 times faster there than torchmetrics' convolution,
    and never in TF32.

    Args:
        rgb_B3HW: sRGB in [0, 1].
        target_B3HW: sRGB in [0, 1], the same shape.

    Returns:
        float64, B.

    Raises:
        ValueError: A side is under 11 pixels, the window's.
    """
    _check_pictures(rgb_B3HW, target_B3HW)
    height, width = rgb_B3HW.shape[-2:]
    if min(height, width) < SSIM_WINDOW_PX:
        raise ValueError(
            f"SSIM needs images of at least {SSIM_WINDOW_PX}x{SSIM_WINDOW_PX} pixels (its window), "
            f"got {height}x{width}"
        )

    first, second = rgb_B3HW.double(), target_B3HW.double()
    moments = torch.stack([first, second, first * first, second * second, first * second])
    mean_1, mean_2, square_1, square_2, product = _gaussian_windows(moments).unbind(0)

    # Rounding can leave the variance of a flat window just under 0.
    variance_1 = (square_1 - mean_1**2).clamp(min=0.0)
    variance_2 = (square_2 - mean_2**2).clamp(min=0.0)
    covariance = product - mean_1 * mean_2
    luminance = (2 * mean_1 * mean_2 + 0.01**2) / (mean_1**2 + mean_2**2 + 0.01**2)
    structure = (2 * covariance + 0.03**2) / (variance_1 + variance_2 + 0.03**2)
    return (luminance * structure).flatten(1).mean(dim=1)


def colorfulness_B(rgb_B3HW: Tensor) -> Tensor:
    """Return M3 of Hasler and Suesstrunk, "Measuring colourfulness in natural images", 2003.

    0 is grey; in their study 33 was judged "moderately", 59 "quite" and 109 "extremely" colourful.

    Args:
        rgb_B3HW: sRGB in [0, 1]; the measure is on the 0..255 scale, as in their paper.

    Returns:
        float64, B: the spread of R - G and (R + G) / 2 - B, plus 0.3 times the distance of their
            mean from 0.
    """
    red, green, blue = (rgb_B3HW.double() * 255.0).flatten(2).unbind(1)
    opponents = torch.stack([red - green, 0.5 * (red + green) - blue])
    spread_B = opponents.var(dim=2, correction=0).sum(0).sqrt()
    distance_B = opponents.mean(dim=2).square().sum(0).sqrt()
    return spread_B + 0.3 * distance_B


def chroma_l1_B(ab_B2HW: Tensor, target_B2HW: Tensor) -> Tensor:
    """Return the mean of |a - a*| and |b - b*| over both channels and all pixels, in Lab units.

    Float64, B.
    """
    if ab_B2HW.shape != target_B2HW.shape:
        raise ValueError(
            f"chroma of unequal shapes: {tuple(ab_B2HW.shape)} and {tuple(target_B2HW.shape)}"
        )
    return (ab_B2HW.double() - target_B2HW.double()).abs().flatten(1).mean(dim=1)


def average_precision(
    scores_N: Tensor,
    positives_N: Tensor,
    ignore_N: Tensor | None = None,
    interpolation: Interpolation = "area",
) -> float:
    """Return the average precision of one class, VOC's way; NaN without positives.

    Images of equal score count as one step, so the result does not depend on the order of the
    images (that of VOC's own code, which takes them one by one, does).

    Args:
        scores_N: Any monotone score: logits or probabilities.
        positives_N: Nonzero where the class is present.
        ignore_N: Nonzero where the image does not count (VOC: the class is present as difficult
            objects only).
        interpolation: "area", under the monotone envelope of precision over recall (VOC 2010 and
            later), or "11-point", the mean of its values at recalls 0, 0.1, ... 1 (VOC 2007).

    Raises:
        TrainingError: A score is NaN.
    """
    scores, positives = scores_N.double().cpu(), positives_N.bool().cpu()
    if ignore_N is not None:
        keep_N = ~ignore_N.bool().cpu()
        scores, positives = scores[keep_N], positives[keep_N]

    if bool(scores.isnan().any()):
        raise TrainingError(
            f"{int(scores.isnan().sum())} of {len(scores)} scores are NaN and cannot be ranked: "
            "the model's weights are damaged, or training diverged"
        )
    num_positives = int(positives.sum())
    if num_positives == 0:
        return float("nan")

    # Precision after each distinct score, raised to the best at its recall or a higher one.
    scores, order = scores.sort(descending=True, stable=True)
    last_of_its_score = torch.cat([scores[1:] != scores[:-1], torch.tensor([True])])
    found = positives[order].cumsum(0)[last_of_its_score]
    seen = torch.arange(1, len(scores) + 1)[last_of_its_score]
    envelope = (found.double() / seen).flip(0).cummax(0).values.flip(0)

    if interpolation == "11-point":
        # In whole numbers: 0.1 * 3 is above 3 / 10 in floating point, and the step would be missed.
        reached = [envelope[10 * found >= tenth * num_positives] for tenth in range(11)]
        return sum(float(precisions.max()) for precisions in reached) / 11

    newly_found = torch.diff(found, prepend=torch.zeros(1, dtype=found.dtype))
    return float((newly_found * envelope).sum() / num_positives)


@dataclass(frozen=True)
class MeanAveragePrecision:
    """`value` is the mean over the `num_classes` classes with a positive.

    Others are NaN in `per_class`.
    """

    value: float
    per_class: tuple[float, ...]
    num_classes: int
    num_images: int


def mean_average_precision(
    scores_NC: Tensor,
    positives_NC: Tensor,
    ignore_NC: Tensor | None = None,
    interpolation: Interpolation = "area",
) -> MeanAveragePrecision:
    """Return `average_precision` per class, and its mean over the classes with a positive image."""
    if scores_NC.shape != positives_NC.shape:
        raise ValueError(
            f"scores {tuple(scores_NC.shape)} do not match targets {tuple(positives_NC.shape)}"
        )

    per_class = []
    for index in range(scores_NC.shape[1]):
        ignore_N = None if ignore_NC is None else ignore_NC[:, index]
        per_class.append(
            average_precision(scores_NC[:, index], positives_NC[:, index], ignore_N, interpolation)
        )

    scored = [value for value in per_class if value == value]
    mean = sum(scored) / len(scored) if scored else float("nan")
    return MeanAveragePrecision(mean, tuple(per_class), len(scored), len(scores_NC))


def first_positive_accuracy(scores_NC: Tensor, positives_NC: Tensor) -> float:
    """Return the paper's "accuracy": how often the best class is the first positive one.

    Keras gives this for `metrics=["accuracy"]` on multi-hot targets: categorical accuracy, the
    arg-max of the scores equals the arg-max of the target. An image without positives counts as
    Keras counts it: the arg-max of zeros is 0, so it is right if class 0 scores best. Ties go to
    the lowest class. NaN if N is 0.
    """
    best_N = scores_NC.argmax(dim=1)
    # As bytes: torch has no argmax of booleans; the first of equal values is taken.
    first_N = positives_NC.bool().to(torch.uint8).argmax(dim=1)
    return float((best_N == first_N).double().mean())


def confusion_matrix(
    predicted: Tensor,
    target: Tensor,
    num_classes: int,
    ignore: int = 255,
    void_as_background: bool = False,
) -> Tensor:
    """Return counts of pixels, int64 C x C: row = true class, column = predicted class.

    Matrices add up.

    Args:
        predicted: Class indices, any shape.
        target: Class indices of the same shape.
        num_classes: C.
        ignore: The index in `target` that marks void.
        void_as_background: Count void as class 0, as the paper's code does; otherwise void pixels
            are left out, as in the VOC protocol.

    Raises:
        ValueError: Shapes differ, or an index is neither a class nor void.
    """
    if predicted.shape != target.shape:
        raise ValueError(
            f"predicted {tuple(predicted.shape)} does not match target {tuple(target.shape)}"
        )

    predicted, target = predicted.flatten().long(), target.flatten().long()
    void = target == ignore
    if void_as_background:
        target = target.masked_fill(void, 0)
    else:
        predicted, target = predicted[~void], target[~void]

    for name, indices in (("predicted", predicted), ("target", target)):
        if len(indices) and (int(indices.min()) < 0 or int(indices.max()) >= num_classes):
            raise ValueError(
                f"{name} class indices run from {int(indices.min())} to {int(indices.max())}, "
                f"there are {num_classes} classes"
            )

    # One number per pair: a loop over pixels or classes would take seconds per batch.
    counts = torch.bincount(target * num_classes + predicted, minlength=num_classes**2)
    return counts.view(num_classes, num_classes)


def iou_per_class(matrix_CC: Tensor) -> Tensor:
    """Return intersection over union per class, float64.

    NaN for a class neither present nor predicted.
    """
    matrix = matrix_CC.double()
    correct = matrix.diagonal()
    return correct / (matrix.sum(0) + matrix.sum(1) - correct)


def mean_iou(matrix_CC: Tensor) -> float:
    """Return the mean of `iou_per_class` over the classes present or predicted.

    NaN for no pixels.
    """
    # 0 / 0 is NaN and left out: a class that is neither there nor predicted was not judged.
    return float(iou_per_class(matrix_CC).nanmean())


def dice_per_class(matrix_CC: Tensor) -> Tensor:
    """Return Dice per class, 2 |A and B| / (|A| + |B|), which is its F1 over pixels; float64.

    NaN for a class neither present nor predicted.
    """
    matrix = matrix_CC.double()
    return 2.0 * matrix.diagonal() / (matrix.sum(0) + matrix.sum(1))


def mean_dice(matrix_CC: Tensor) -> float:
    """Return the mean of `dice_per_class` over the classes present or predicted, without class 0.

    NaN for none.

    Medical convention: class 0, the background, is easy and most of the image, and would hide how
    well the rest is found.
    """
    return float(dice_per_class(matrix_CC)[1:].nanmean())


def pixel_accuracy(matrix_CC: Tensor) -> float:
    """Return the share of pixels of the right class; NaN for no pixels."""
    matrix = matrix_CC.double()
    return float(matrix.diagonal().sum() / matrix.sum())


def _gaussian_windows(maps: Tensor) -> Tensor:
    """Return the Gaussian mean of each window inside the image: the last two sides shrink by 10."""
    distance = torch.arange(SSIM_WINDOW_PX, dtype=torch.float64) - SSIM_WINDOW_PX // 2
    weights = torch.softmax(-(distance**2) / (2 * 1.5**2), dim=0).tolist()

    # The Gaussian is separable: 22 additions per pixel instead of 121.
    for side in (-2, -1):
        length = maps.shape[side] - SSIM_WINDOW_PX + 1
        summed = maps.narrow(side, 0, length) * weights[0]
        for shift, weight in enumerate(weights[1:], start=1):
            summed.add_(maps.narrow(side, shift, length), alpha=weight)
        maps = summed
    return maps


def _check_pictures(rgb_B3HW: Tensor, target_B3HW: Tensor) -> None:
    if rgb_B3HW.shape != target_B3HW.shape or rgb_B3HW.ndim != 4:
        raise ValueError(
            f"images of shapes {tuple(rgb_B3HW.shape)} and {tuple(target_B3HW.shape)}, not B3HW "
            "twice"
        )
