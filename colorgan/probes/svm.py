"""LIBLINEAR for frozen features: rows of unit length, cost by cross-validation; deterministic.

Goyal et al., ICCV 2019, section 6.1, and their code (tools/svm/train_svm_kfold.py): L2-regularized
squared hinge, positives weighted 2:1. scikit-learn contains LIBLINEAR.

Shape legend: N training and M test images, D numbers of a level.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from statistics import mean
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from colorgan.evaluation.metrics import average_precision
from colorgan.probes.scikit_learn import sklearn

# The paper's are 2^-19 to 2^-4 and 10^-7 to 10^-2: 22, for 5,011 images. Every second power of two
# is half the work; with 700 images the best on the test part was 2^-3 to 2^-1, above the paper's,
# and below 2^-13 little changed.
COSTS = tuple(2.0**power for power in range(-15, 4, 2))
NUM_FOLDS = 3
MAX_ITERATIONS = 2000  # the paper's code

Floats = NDArray[np.float64]


def unit_rows(train_ND: Tensor, test_MD: Tensor) -> tuple[Floats, Floats]:
    """Return both parts' rows at unit length, float64; rows of zeros stay zero.

    For D > N they are given in coordinates of the span of the training rows: a linear classifier's
    weights are in that span, so all scores are the same, at N / D of the work.
    """
    train_ND, test_MD = (F.normalize(rows.double(), dim=1) for rows in (train_ND, test_MD))
    if train_ND.shape[1] > len(train_ND):
        values, vectors = torch.linalg.eigh(train_ND @ train_ND.T)
        # Directions of rounding noise would be blown up by the division.
        keep = values > 1e-12 * values[-1].clamp(min=1e-12)
        keep[-1] = True  # a level of zeros keeps one column of them
        scale = values[keep].clamp(min=1e-24).sqrt()
        # Rounded, so that equal images stay equal.
        test_MD = (test_MD @ train_ND.T @ vectors[:, keep] / scale).round(decimals=12)
        train_ND = (vectors[:, keep] * scale).round(decimals=12)
    return train_ND.numpy(), test_MD.numpy()


def choose_cost(
    rows_ND: Floats, positive_N: NDArray[np.bool_], costs: Sequence[float] = COSTS
) -> tuple[float, float, int]:
    """Return the cost of the best AP over the folds, that AP, and the number of unfinished fits.

    The i-th positive and the i-th negative image belong to fold i modulo `NUM_FOLDS`. Of equally
    good costs the lowest is taken.
    """
    # Positives and negatives apart: each fold has the same share of both.
    fold_N = np.where(positive_N, positive_N.cumsum() - 1, (~positive_N).cumsum() - 1) % NUM_FOLDS
    precisions, unfinished = [], 0
    for cost in costs:
        of_folds = []
        for fold in range(NUM_FOLDS):
            held = fold_N == fold
            model = fit_svm(rows_ND[~held], positive_N[~held], cost)
            unfinished += is_unfinished(model)
            scores_N = torch.from_numpy(model.decision_function(rows_ND[held]))
            of_folds.append(average_precision(scores_N, torch.from_numpy(positive_N[held])))
        precisions.append(mean(of_folds))
    # The first of equals, and costs ascend: the stronger regularization.
    best = max(range(len(costs)), key=precisions.__getitem__)
    return costs[best], precisions[best], unfinished


def fit_svm(rows_ND: Floats, positive_N: NDArray[np.bool_], cost: float) -> Any:
    """Return LIBLINEAR's classifier of the paper: squared hinge, positives count twice.

    Raises:
        UsageError: scikit-learn is not installed.
    """
    model = sklearn("svm").LinearSVC(
        C=cost,
        class_weight={True: 2, False: 1},
        loss="squared_hinge",
        # The dual has as many unknowns as images, far fewer than numbers per image.
        dual=True,
        tol=1e-4,
        max_iter=MAX_ITERATIONS,
        random_state=0,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sklearn("exceptions").ConvergenceWarning)  # callers count
        return model.fit(rows_ND, positive_N)


def is_unfinished(model: Any) -> int:
    """Return 1 if LIBLINEAR stopped after `MAX_ITERATIONS`, else 0."""
    return int(model.n_iter_ >= MAX_ITERATIONS)
