"""One softmax classifier per level, for sets with one label per image: ImageNet's protocol.

Linear classification on each frozen level, pooled to about 9,000 numbers, scored by top-1 and top-5
accuracy: Zhang, Isola and Efros, "Colorful Image Colorization", ECCV 2016, section 3.2, and Goyal
et al., ICCV 2019, section 6.1. They train by SGD on random crops and flips and report every level
on the validation set. Here the images are seen once, whole; features have unit length as for the
SVMs; and the classifier is the optimum that L-BFGS finds, its L2 regularization chosen within the
training part (Kornblith, Shlens and Le, "Do Better ImageNet Models Transfer Better?", CVPR 2019).
The training part also chooses the level.

Shape legend: N training and M test images, C classes, D numbers of a level.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from colorgan.distributed.ranks import Ranks
from colorgan.errors import UsageError
from colorgan.probes.features import Features
from colorgan.probes.linear import over_ranks
from colorgan.probes.scikit_learn import sklearn
from colorgan.probes.svm import NUM_FOLDS, Floats, unit_rows

# Inverse regularization, of the summed cross-entropy.
SOFTMAX_COSTS = tuple(4.0**power for power in range(-2, 4))
MAX_ITERATIONS = 1000
TOP = 5
NEEDS_ONE = (
    "--protocol softmax needs one per image: take --protocol linear, which judges each class by "
    "itself"
)

Labels = NDArray[np.int64]
Shown = Callable[[int, int], None]  # levels done, of how many on this rank


@dataclass(frozen=True)
class SoftmaxLevel:
    """A level judged by one softmax classifier; accuracies are shares of the test images.

    Attributes:
        top1: share of images whose class has the largest output.
        top5: share of images whose class is among the five largest; NaN with five classes or fewer.
        chance_top1: `top1` of an answer that is the same for all images: the most common class of
            the training part.
        chance_top5: `top5` of its five most common ones.
        per_class: top-1 accuracy of each class; NaN if it has no test image.
        cross_validated: the best cost's top-1 accuracy on the training part.
        cost: the chosen inverse regularization.
        unfinished_fits: fits that stopped after `MAX_ITERATIONS`.
        ranks_M: of each test image, how many classes have a larger output than its own.
    """

    top1: float
    top5: float
    chance_top1: float
    chance_top5: float
    per_class: tuple[float, ...]
    cross_validated: float
    cost: float
    unfinished_fits: int
    ranks_M: Labels


def single_labels(part: Features, what: str) -> Labels:
    """Return each image's class.

    Args:
        part: features of a set.
        what: its folder, for the error.

    Raises:
        UsageError: an image has no class, or several.
    """
    counts_N = part.positives_NC.sum(dim=1)
    wrong = (counts_N != 1).nonzero().flatten()
    if len(wrong):
        first = int(wrong[0])
        raise UsageError(
            f"{what}: image {int(part.sample_ids_N[first])} has {int(counts_N[first])} classes, "
            f"and {NEEDS_ONE}"
        )
    labels_N: Labels = part.positives_NC.int().argmax(dim=1).numpy()
    return labels_N


def probe_softmax(
    train: Features,
    test: Features,
    labels: tuple[Labels, Labels],
    ranks: Ranks,
    shown: Shown = lambda done, total: None,
) -> list[SoftmaxLevel]:
    """Train a classifier per level on all training images and score it on the test part.

    Called on all ranks, which share the levels; the same result on all.

    Args:
        train: features of the training part.
        test: features of the test part.
        labels: each training and each test image's class (`single_labels`).
        ranks: that share the levels.
        shown: called with the levels done, and levels in all, on this rank.

    Raises:
        UsageError: scikit-learn is missing, or fewer than two classes have `NUM_FOLDS` images.
    """
    train_labels_N, test_labels_M = labels
    num_classes = train.positives_NC.shape[1]
    counts_C = np.bincount(train_labels_N, minlength=num_classes)
    if (counts_C >= NUM_FOLDS).sum() < 2:
        raise UsageError(
            f"fewer than two classes have {NUM_FOLDS} training images, so nothing can be chosen by "
            "cross-validation: pack more images"
        )

    # Of equally common classes the first one: the order is the set's.
    by_frequency_C = np.argsort(-counts_C, kind="stable")

    def of_level(level: int) -> SoftmaxLevel:
        rows, test_rows = centered_rows(train.levels[level], test.levels[level])
        cost, accuracy, unfinished = choose_cost(rows, train_labels_N)
        fit = fit_softmax(rows, train_labels_N, [cost])[0]
        ranks_M = class_ranks(fit.outputs(test_rows, num_classes), test_labels_M)
        return SoftmaxLevel(
            top1=_top(ranks_M, 1, num_classes),
            top5=_top(ranks_M, TOP, num_classes),
            chance_top1=_constant(test_labels_M, by_frequency_C, 1),
            chance_top5=_constant(test_labels_M, by_frequency_C, TOP),
            per_class=_by_class(ranks_M, test_labels_M, num_classes),
            cross_validated=accuracy,
            cost=cost,
            unfinished_fits=unfinished + fit.unfinished,
            ranks_M=ranks_M,
        )

    return over_ranks(ranks, len(train.levels), of_level, shown)


def centered_rows(train_ND: Tensor, test_MD: Tensor) -> tuple[Floats, Floats]:
    """Return both parts' rows at unit length, less the training part's mean row.

    The intercept is not regularized and takes the mean up: the optimum is the same, and found in
    fewer iterations.
    """
    rows, test_rows = unit_rows(train_ND, test_MD)
    mean_D = rows.mean(axis=0)
    return rows - mean_D, test_rows - mean_D


@dataclass(frozen=True)
class Fit:
    """A softmax classifier: weights K x D and intercepts K of the K classes that it knows."""

    weights_KD: Floats
    intercepts_K: Floats
    classes_K: Labels
    unfinished: int

    def outputs(self, rows: Floats, num_classes: int) -> Floats:
        """Return the output for each row and class; -inf for a class without a training image."""
        outputs = np.full((len(rows), num_classes), -np.inf)
        outputs[:, self.classes_K] = rows @ self.weights_KD.T + self.intercepts_K
        return outputs


def fit_softmax(rows_ND: Floats, labels_N: Labels, costs: Sequence[float]) -> list[Fit]:
    """Return the classifier of each cost, each one's search starting at the one before.

    Minimizes cost * sum of cross-entropies + half the squared length of all weights.

    Raises:
        UsageError: scikit-learn is not installed.
    """
    model = sklearn("linear_model").LogisticRegression(
        solver="lbfgs", max_iter=MAX_ITERATIONS, warm_start=True
    )
    fits = []
    for cost in costs:
        with warnings.catch_warnings():
            # Counted by the callers.
            warnings.simplefilter("ignore", sklearn("exceptions").ConvergenceWarning)
            model.set_params(C=cost).fit(rows_ND, labels_N)
        weights_KD, intercepts_K = model.coef_.copy(), model.intercept_.copy()
        # Of two classes scikit-learn keeps the second one's alone.
        if len(model.classes_) == 2:
            weights_KD = np.concatenate([-weights_KD, weights_KD])
            intercepts_K = np.concatenate([-intercepts_K, intercepts_K])
        unfinished = int(model.n_iter_.max() >= MAX_ITERATIONS)
        fits.append(Fit(weights_KD, intercepts_K, model.classes_, unfinished))
    return fits


def choose_cost(
    rows_ND: Floats, labels_N: Labels, costs: Sequence[float] = SOFTMAX_COSTS
) -> tuple[float, float, int]:
    """Return the cost of the best top-1 accuracy over the folds, that accuracy, unfinished fits.

    The i-th image of each class belongs to fold i modulo `NUM_FOLDS`. Of equally good costs the
    lowest is taken.
    """
    # By place within the class: every fold has a like share of each class, without a draw.
    fold_N = _place_in_class(labels_N) % NUM_FOLDS
    num_classes = int(labels_N.max()) + 1
    right, unfinished = np.zeros(len(costs), np.int64), 0
    for fold in range(NUM_FOLDS):
        held_N = fold_N == fold
        fits = fit_softmax(rows_ND[~held_N], labels_N[~held_N], costs)
        for place, fit in enumerate(fits):
            outputs = fit.outputs(rows_ND[held_N], num_classes)
            right[place] += (class_ranks(outputs, labels_N[held_N]) == 0).sum()
            unfinished += fit.unfinished
    # The first of equals, and costs ascend: the stronger regularization.
    best = int(right.argmax())
    return costs[best], right[best] / len(labels_N), unfinished


def class_ranks(outputs_MC: Floats, labels_M: Labels) -> Labels:
    """Return how many classes come before each image's own; of equals the first class does."""
    own_M1 = np.take_along_axis(outputs_MC, labels_M[:, None], axis=1)
    before_MC = np.arange(outputs_MC.shape[1]) < labels_M[:, None]
    ranks_M: Labels = ((outputs_MC > own_M1) | ((outputs_MC == own_M1) & before_MC)).sum(axis=1)
    return ranks_M


def _place_in_class(labels_N: Labels) -> Labels:
    """Return how many earlier images have each image's class."""
    places_N = np.empty_like(labels_N)
    for label in np.unique(labels_N):
        members = np.flatnonzero(labels_N == label)
        places_N[members] = np.arange(len(members))
    return places_N


def _top(ranks_M: Labels, top: int, num_classes: int) -> float:
    # Among as many answers as there are classes the right one always is.
    return float((ranks_M < top).mean()) if top < num_classes else math.nan


def _constant(labels_M: Labels, by_frequency_C: Labels, top: int) -> float:
    if top >= len(by_frequency_C):
        return math.nan
    return float(np.isin(labels_M, by_frequency_C[:top]).mean())


def _by_class(ranks_M: Labels, labels_M: Labels, num_classes: int) -> tuple[float, ...]:
    totals_C = np.bincount(labels_M, minlength=num_classes)
    right_C = np.bincount(labels_M[ranks_M == 0], minlength=num_classes)
    shares = np.divide(right_C, totals_C, out=np.full(num_classes, np.nan), where=totals_C > 0)
    return tuple(shares.tolist())
