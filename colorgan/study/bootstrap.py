"""The arithmetic of a bootstrap over test images and seeds (colorgan/study/comparison.py).

Scores of many resamples at once, from the per-image evidence of evaluation folders
(colorgan/evaluation/record.py). A resample is given by how often it contains each image, so no
image is copied: average precision is computed with these multiplicities as weights, segmentation
from weighted sums of counts.

N images, R resamples, P pretraining seeds, S fine-tuning seeds, C classes, G groups of images of
equal score.
"""

# ruff: noqa: N802 (a function's name ends in the shape that it returns)

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Evidence = Mapping[str, NDArray[Any]]

_ANGLES = 20_001  # of the integral over Student's density
RESAMPLES_AT_ONCE = 250  # 1.5 MB of multiplicities for 5,823 images: they stay in a core's cache


@dataclass(frozen=True)
class Spread:
    """How far a difference may be from the truth, by what was resampled.

    Attributes:
        parts: Of each level the standard error, and one over its degrees of freedom; 0 for images.
    """

    parts: tuple[tuple[float, float], ...]

    def half_width(self, probability: float) -> float:
        """Return the half-width of the symmetric interval that ends at a quantile.

        The levels' own intervals are put together (Zou and Donner, Construction of confidence
        limits about effect measures, Statistics in Medicine 27, 2008): a level whose few seeds
        happen to agree does not lend its freedom to the others.
        """
        ends = (error * student_quantile(freedom, probability) for error, freedom in self.parts)
        return math.hypot(*ends)


def multiplicities_NR(
    num_images: int, num_resamples: int, generator: np.random.Generator
) -> NDArray[np.uint8]:
    """Return how often each of N images is in each of R resamples, drawn with replacement.

    A multiplicity over 255 has a chance below 1e-500 and is not provided for.
    """
    drawn = (generator.integers(num_images, size=num_images) for _ in range(num_resamples))
    return np.stack(
        [np.bincount(images, minlength=num_images).astype(np.uint8) for images in drawn], axis=1
    )


def resampled_average_precision_R(
    scores_N: NDArray[Any],
    positives_N: NDArray[np.bool_],
    multiplicity_NR: NDArray[np.uint8],
    ignore_N: NDArray[np.bool_] | None = None,
    *,
    eleven_points: bool = False,
) -> Floats:
    """Return the average precision of one class in each resample; NaN in one without positives.

    It is `colorgan.evaluation.metrics.average_precision`. Groups without a positive are skipped:
    precision falls over them, so none of them is on the envelope.

    Args:
        scores_N: any monotone score, no NaN.
        positives_N: where the class is present.
        multiplicity_NR: how often each image counts.
        ignore_N: images that do not count for this class.
        eleven_points: the mean over recalls 0, 0.1, ... 1 in place of the area.
    """
    # Images by falling score, and the ends of the groups of equal scores that hold a positive.
    kept = np.arange(len(scores_N)) if ignore_N is None else np.flatnonzero(~ignore_N)
    order = kept[np.argsort(-scores_N[kept], kind="stable")]
    scores, positives = scores_N[order], positives_N[order]
    last_of_group = np.flatnonzero(np.append(scores[1:] != scores[:-1], True))
    group_of_positive = np.unique(np.searchsorted(last_of_group, np.flatnonzero(positives)))
    if not len(group_of_positive):
        return np.full(multiplicity_NR.shape[1], np.nan)

    ends = last_of_group[group_of_positive] + 1
    starts = np.append(0, ends[:-1])
    images, found_images = order[: ends[-1]], order[positives]
    starts_of_found = np.searchsorted(np.flatnonzero(positives), starts)

    # Images seen and positives found down to each group, then precision's envelope from the right.
    seen_GR = np.add.reduceat(multiplicity_NR[images], starts, axis=0, dtype=np.int32).cumsum(
        axis=0
    )
    new_GR = np.add.reduceat(multiplicity_NR[found_images], starts_of_found, axis=0, dtype=np.int32)
    found_GR = new_GR.cumsum(axis=0)
    envelope_GR = np.maximum.accumulate((found_GR / np.maximum(seen_GR, 1))[::-1], axis=0)[::-1]

    total_R = found_GR[-1]
    if eleven_points:
        reached = [
            np.where(10 * found_GR >= tenth * total_R, envelope_GR, 0).max(axis=0)
            for tenth in range(11)
        ]
        precision_R = np.sum(reached, axis=0) / 11
    else:
        precision_R = (new_GR * envelope_GR).sum(axis=0) / np.maximum(total_R, 1)

    return np.where(total_R > 0, precision_R, np.nan)


def _mean_average_precision(
    eleven_points: bool, difficult_count: bool
) -> Callable[[Evidence, Any], Floats]:
    def mean_R(evidence: Evidence, multiplicity_NR: NDArray[np.uint8]) -> Floats:
        scores_NC, positives_NC = evidence["scores_NC"], evidence["positives_NC"] > 0
        ignore_NC = (evidence["difficult_NC"] > 0) & (not difficult_count)
        columns = zip(scores_NC.T, positives_NC.T, ignore_NC.T, strict=True)
        per_class_CR = [
            resampled_average_precision_R(
                scores_N, positives_N, multiplicity_NR, ignore_N, eleven_points=eleven_points
            )
            for scores_N, positives_N, ignore_N in columns
        ]
        return _mean_of_numbers(np.stack(per_class_CR))

    return mean_R


def _first_positive_accuracy(evidence: Evidence, multiplicity_NR: NDArray[np.uint8]) -> Floats:
    right_N = evidence["scores_NC"].argmax(axis=1) == (evidence["positives_NC"] > 0).argmax(axis=1)
    return _share_of_images(right_N, multiplicity_NR)


def _top(top: int) -> Callable[[Evidence, Any], Floats]:
    def accuracy_R(evidence: Evidence, multiplicity_NR: NDArray[np.uint8]) -> Floats:
        return _share_of_images(evidence["ranks_N"] < top, multiplicity_NR)

    return accuracy_R


def _share_of_images(right_N: NDArray[np.bool_], multiplicity_NR: NDArray[np.uint8]) -> Floats:
    # One product of matrices: counts times multiplicities, summed over images.
    share_R: Floats = (
        right_N.astype(np.float64) @ multiplicity_NR / multiplicity_NR.sum(axis=0, dtype=np.int64)
    )
    return share_R


def _counts_3CR(evidence: Evidence, multiplicity_NR: NDArray[np.uint8]) -> Floats:
    """Return right, predicted and true pixels per class, below 2^53: exact in float64."""
    counts_N3C = evidence["counts_N3C"].astype(np.float64)
    counts_3CR: Floats = np.tensordot(counts_N3C, multiplicity_NR.astype(np.float64), axes=(0, 0))
    return counts_3CR


def _mean_iou(evidence: Evidence, multiplicity_NR: NDArray[np.uint8]) -> Floats:
    right_CR, predicted_CR, true_CR = _counts_3CR(evidence, multiplicity_NR)
    return _mean_of_numbers(_share(right_CR, predicted_CR + true_CR - right_CR))


def _dice(evidence: Evidence, multiplicity_NR: NDArray[np.uint8]) -> Floats:
    right_CR, predicted_CR, true_CR = _counts_3CR(evidence, multiplicity_NR)[:, 1:]  # no background
    return _mean_of_numbers(_share(2 * right_CR, predicted_CR + true_CR))


def _pixel_accuracy(evidence: Evidence, multiplicity_NR: NDArray[np.uint8]) -> Floats:
    right_CR, _, true_CR = _counts_3CR(evidence, multiplicity_NR)
    return _share(right_CR.sum(axis=0), true_CR.sum(axis=0))


def _share(part: Floats, whole: Floats) -> Floats:
    # `where` keeps NumPy from warning of the divisions that are not wanted.
    return np.divide(part, whole, out=np.full_like(whole, np.nan), where=whole > 0)


def _mean_of_numbers(values_CR: Floats) -> Floats:
    """Return the mean over the classes that have a value in a resample; NaN where none has."""
    # Rare classes are missing from some resamples; the mean is over those that are there.
    known_CR = ~np.isnan(values_CR)
    return _share(
        np.where(known_CR, values_CR, 0.0).sum(axis=0), known_CR.sum(axis=0).astype(np.float64)
    )


# By the name of the score in scores.json: the function that scores resamples from the evidence.
SCORED_BY = {
    "mAP": _mean_average_precision(eleven_points=False, difficult_count=False),
    "mAP_11_point": _mean_average_precision(eleven_points=True, difficult_count=False),
    "mAP_all_objects": _mean_average_precision(eleven_points=False, difficult_count=True),
    "first_positive_accuracy": _first_positive_accuracy,
    "top1": _top(1),
    "top5": _top(5),
    "mIoU": _mean_iou,
    "mIoU_own_size": _mean_iou,
    "dice": _dice,
    "dice_own_size": _dice,
    "pixel_accuracy": _pixel_accuracy,
}


def resampled_score_R(
    metric: str, evidence: Evidence, multiplicity_NR: NDArray[np.uint8]
) -> Floats:
    """Return the score of this name (a key of `SCORED_BY`) in each resample.

    Args:
        metric: as in scores.json.
        evidence: the tensors of per_image.safetensors, one row per image.
        multiplicity_NR: how often each image counts.
    """
    blocks = range(0, multiplicity_NR.shape[1], RESAMPLES_AT_ONCE)
    parts = (
        np.ascontiguousarray(multiplicity_NR[:, first : first + RESAMPLES_AT_ONCE])
        for first in blocks
    )
    return np.concatenate([SCORED_BY[metric](evidence, part) for part in parts])


def over_runs(
    differences_PS: Floats, resampled_R: Floats, generator: np.random.Generator
) -> tuple[Floats, Spread]:
    """Draw the seeds of each resample too, with replacement.

    The two levels are crossed: a resample draws P of the rows and S of the columns, independently
    of each other and of the images (Owen's pigeonhole bootstrap). A level of one seed is not
    resampled.

    The mean of the resamples is moved to the difference on the images themselves: with few
    positives of a class, average precision rises when some of them are drawn twice, more so for the
    better arm, and an interval of plain percentiles would be off to its side.

    Args:
        differences_PS: of P pretraining seeds (rows) and S fine-tuning seeds, on the images
            themselves.
        resampled_R: the mean over all runs on each resample of the images.
        generator: of the draws.

    Returns:
        Each resample's difference, and the spread of the difference.
    """
    over_all_R = resampled_R
    parts = [(float(resampled_R.std()), 0.0)]

    # Fine-tuning seeds first: with one pretraining run the draws are those of older studies.
    for level_X in (differences_PS.mean(axis=0), differences_PS.mean(axis=1)):
        num_seeds = len(level_X)
        if num_seeds == 1:
            continue

        drawn_XR = generator.integers(num_seeds, size=(num_seeds, len(resampled_R)))
        deviation_R = level_X[drawn_XR].mean(axis=0) - level_X.mean()
        over_all_R = over_all_R + deviation_R * math.sqrt(num_seeds / (num_seeds - 1))
        error = float(level_X.std(ddof=1)) / math.sqrt(num_seeds)
        parts.append((error, 1 / (num_seeds - 1)))

    # Satterthwaite's degrees of freedom of the sum of the variances; images have as good as
    # infinitely many.
    total = sum(error**2 for error, _ in parts)
    freedoms = sum(error**4 * freedom for error, freedom in parts)
    inverse_freedom = freedoms / total**2 if total else 0.0
    widening = student_quantile(inverse_freedom) / student_quantile(0.0)
    widened_R: Floats = differences_PS.mean() + (over_all_R - over_all_R.mean()) * widening
    return widened_R, Spread(tuple(parts))


def student_quantile(inverse_freedom: float, probability: float = 0.975) -> float:
    """Return a quantile of Student's t with 1 / `inverse_freedom` degrees (0 to 1, inverted)."""
    if inverse_freedom < 1e-4:  # the normal distribution, to four digits
        return NormalDist().inv_cdf(probability)

    # With t = sqrt(degrees) * tan(angle) the density is a power of the cosine, on a bounded range.
    freedom = 1 / inverse_freedom
    angles = np.linspace(-math.pi / 2, math.pi / 2, _ANGLES)
    density = np.maximum(np.cos(angles), 0.0) ** (freedom - 1)
    below = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    angle = np.interp(probability * below[-1], below, angles)
    return math.sqrt(freedom) * math.tan(angle)
