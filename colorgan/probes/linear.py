"""Protocols on frozen features: one linear classifier per class, from all labels or from a few.

After Goyal, Mahajan, Gupta and Misra, "Scaling and Benchmarking Self-Supervised Visual
Representation Learning", ICCV 2019, sections 6.1 and 6.2, and their code (facebookresearch/
fair_self_supervision_benchmark, tools/svm): features of unit length, LIBLINEAR with squared hinge,
positives weighted 2:1; an image with a class as difficult objects only does not count for that
class. Their best level, and their low-shot cost, are the best on the test part; here the training
part alone chooses.

Shape legend: N training and M test images, C classes, D numbers of a level.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from colorgan.distributed.ranks import Ranks
from colorgan.evaluation.metrics import mean_average_precision
from colorgan.probes.features import Features
from colorgan.probes.svm import NUM_FOLDS, Floats, choose_cost, fit_svm, is_unfinished, unit_rows

# Those of the paper.
SHOTS = (1, 2, 4, 8, 16, 32, 64, 96)
NUM_DRAWS = 5
# Few labels leave none to choose a cost on: that of PCL (Li et al., ICLR 2021) for the same task.
SHOT_COST = 0.5

T = TypeVar("T")
Shown = Callable[[int, int], None]  # classes done, of how many on this rank


@dataclass(frozen=True)
class Score:
    """Average precisions on the test part, as shares.

    The means are over `classes` classes, NaN over none.

    Attributes:
        mAP: area under the curve (VOC 2010 and later).
        mAP_11_point: VOC 2007's.
        chance: the mAP of one score for all pictures.
        per_class: of `mAP`; NaN if the class was not trained, or is in no test image.
    """

    mAP: float
    mAP_11_point: float
    chance: float
    classes: int
    per_class: tuple[float, ...]


@dataclass(frozen=True)
class LinearLevel:
    """A level judged by linear classifiers from all labels.

    Attributes:
        cross_validated: mean over the classes of the best cost's AP on the training part.
        costs: of each class; NaN if it was not trained.
        unfinished_fits: fits that LIBLINEAR gave up (`svm.MAX_ITERATIONS`).
        decisions_MC: the classifiers' values on the test part, float64; NaN where a class was not
            trained.
    """

    score: Score
    cross_validated: float
    costs: tuple[float, ...]
    unfinished_fits: int
    decisions_MC: Floats


@dataclass(frozen=True)
class Shot:
    """A level judged from `k` positive images per class: a score per draw, mean and deviation."""

    k: int
    mAP_mean: float
    mAP_std: float
    draws: tuple[Score, ...]


@dataclass(frozen=True)
class _Fit:
    """The classifier of one class: its cost, its cross-validated AP, and its test scores."""

    cost: float
    precision: float
    unfinished: int
    scores: Floats


def probe_linear(
    level: int,
    train: Features,
    test: Features,
    ranks: Ranks,
    shown: Shown = lambda done, total: None,
) -> LinearLevel:
    """Train each class on all labels, its cost by cross-validation, and score on the test part.

    A class with fewer than three positive training images cannot be cross-validated and is left
    out. Called on all ranks, which share the classes; the same result on all.

    Raises:
        UsageError: scikit-learn is not installed.
    """
    rows, test_rows = unit_rows(train.levels[level], test.levels[level])

    def of_class(index: int) -> _Fit | None:
        positive, usable = _labels(train, index)
        # Each fold needs both kinds.
        num_positive = positive[usable].sum()
        if min(num_positive, usable.sum() - num_positive) < NUM_FOLDS:
            return None

        cost, precision, unfinished = choose_cost(rows[usable], positive[usable])
        model = fit_svm(rows[usable], positive[usable], cost)
        unfinished += is_unfinished(model)
        return _Fit(
            cost,
            precision,
            unfinished,
            model.decision_function(test_rows),
        )

    fits = over_ranks(
        ranks,
        test.positives_NC.shape[1],
        of_class,
        shown,
    )
    trained = [fit for fit in fits if fit is not None]
    # A class without a classifier keeps its column, so that columns stay those of the set.
    absent_M = np.full(len(test_rows), np.nan)
    return LinearLevel(
        score_columns([fit.scores if fit else None for fit in fits], test),
        mean(fit.precision for fit in trained) if trained else math.nan,
        tuple(fit.cost if fit else math.nan for fit in fits),
        sum(fit.unfinished for fit in trained),
        np.stack([fit.scores if fit else absent_M for fit in fits], axis=1),
    )


def probe_shots(
    level: int,
    train: Features,
    test: Features,
    ranks: Ranks,
    *,
    seed: int,
    shots: Sequence[int] = SHOTS,
    shown: Shown = lambda done, total: None,
) -> list[Shot]:
    """Train each class on k positives and up to (C - 1) * k negatives, at cost `SHOT_COST`.

    Draws are independent of each other and nested in k: the images of a smaller k are among those
    of a larger one, so the curve over k is smoother than with the paper's fresh images for each k.
    A class with fewer than k positive training images is left out at k. Called on all ranks, which
    share the classes; the same result on all.

    Raises:
        UsageError: scikit-learn is not installed.
    """
    rows, test_rows = unit_rows(train.levels[level], test.levels[level])
    num_classes = test.positives_NC.shape[1]

    def of_class(index: int) -> list[list[Floats | None]]:
        orders = []
        for draw in range(NUM_DRAWS):
            orders.append(shot_order(*_labels(train, index), [seed, draw, index]))

        columns = []
        for k in shots:
            columns.append([column(k, *order) for order in orders])
        return columns

    def column(k: int, positives: NDArray[np.int64], negatives: NDArray[np.int64]) -> Floats | None:
        # A class that cannot give k images is left out at k rather than judged by fewer.
        if len(positives) < k or not len(negatives):
            return None

        # Negatives in the paper's ratio; all there are where there are fewer.
        chosen = np.concatenate([positives[:k], negatives[: (num_classes - 1) * k]])
        model = fit_svm(rows[chosen], np.arange(len(chosen)) < k, SHOT_COST)
        scores: Floats = model.decision_function(test_rows)
        return scores

    columns = over_ranks(ranks, num_classes, of_class, shown)
    levels = []
    for place, k in enumerate(shots):
        draws = []
        for draw in range(NUM_DRAWS):
            draws.append(score_columns([each[place][draw] for each in columns], test))
        levels.append(_shot(k, draws))
    return levels


def _shot(k: int, draws: list[Score]) -> Shot:
    values = torch.tensor([score.mAP for score in draws], dtype=torch.float64)
    return Shot(
        k,
        float(values.mean()),
        float(values.std()),
        tuple(draws),
    )


def shot_order(
    positive_N: NDArray[np.bool_], usable_N: NDArray[np.bool_], seeds: Sequence[int]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return positive and negative images in the order of a draw; a function of `seeds`."""
    # Of its own seed, so that it does not depend on which rank draws, or what was drawn before.
    random = np.random.default_rng(seeds)
    positives, negatives = (np.flatnonzero(which & usable_N) for which in (positive_N, ~positive_N))
    return random.permutation(positives), random.permutation(negatives)


def _labels(features: Features, index: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which images show the class, and which count: not if all objects are difficult."""
    positive_N = features.positives_NC[:, index].numpy()
    usable_N = ~features.difficult_NC[:, index].numpy()
    return positive_N, usable_N


def score_columns(columns: Sequence[Floats | Tensor | None], test: Features) -> Score:
    """Return the score of each class's column of M test scores; None: it was not trained."""
    trained = [index for index, column in enumerate(columns) if column is not None]
    if not trained:
        return Score(
            math.nan,
            math.nan,
            math.nan,
            0,
            (math.nan,) * len(columns),
        )

    scores_MC = torch.stack([torch.as_tensor(columns[index]) for index in trained], dim=1)
    positives_MC, difficult_MC = test.positives_NC[:, trained], test.difficult_NC[:, trained]
    usual = mean_average_precision(scores_MC, positives_MC, difficult_MC)
    eleven = mean_average_precision(
        scores_MC,
        positives_MC,
        difficult_MC,
        "11-point",
    )
    # What a constant score gets on these images: AP depends on how common a class is.
    chance = mean_average_precision(torch.zeros_like(scores_MC), positives_MC, difficult_MC)
    of_trained = dict(zip(trained, usual.per_class, strict=True))
    per_class = tuple(of_trained.get(index, math.nan) for index in range(len(columns)))
    return Score(
        usual.value,
        eleven.value,
        chance.value,
        usual.num_classes,
        per_class,
    )


def over_ranks(ranks: Ranks, number: int, work: Callable[[int], T], shown: Shown) -> list[T]:
    """Do `work` for 0 to `number` - 1, shared over the ranks.

    Called on all ranks; the same on all.
    """
    # Classes and levels differ in cost: dealt out in turn they even out.
    own = range(ranks.rank, number, ranks.world_size)

    def mine() -> dict[int, T]:
        done: dict[int, T] = {}
        for index in own:
            done[index] = work(index)
            shown(len(done), len(own))
        return done

    results: dict[int, T] = {}
    for part in ranks.gather(ranks.on_all_ranks(mine)):
        results |= part
    return [results[index] for index in range(number)]
