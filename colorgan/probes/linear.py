"""Protocols on frozen features: one linear classifier a class, from all labels or from a few of them.

After Goyal, Mahajan, Gupta and Misra, "Scaling and Benchmarking Self-Supervised Visual Representation Learning", ICCV
2019, sections 6.1 and 6.2, and their code (facebookresearch/fair_self_supervision_benchmark, tools/svm): features of
unit length, LIBLINEAR with squared hinge, positives weighted 2:1, a picture whose class is there as difficult objects
only left out of that class. Their best level, and their low-shot cost, are the best on the test part; here the training
part alone chooses.
colorgan/probes/features.py extracts, colorgan/probes/knn.py needs no classifier, launcher/probe.py runs them.

Shape legend: N training and M test pictures, C classes, D numbers of a level.
"""

from __future__ import annotations

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

SHOTS = (1, 2, 4, 8, 16, 32, 64, 96)
NUM_DRAWS = 5
SHOT_COST = (
    0.5  # few labels leave none to choose a cost on; PCL's (Li et al., ICLR 2021) for the same task
)

T = TypeVar("T")
Shown = Callable[[int, int], None]  # classes done, of how many on this rank


@dataclass(frozen=True)
class Score:
    """Average precisions on the test part, as shares; the means are over `classes` classes, NaN over none.

    Attributes:
        mAP: area under the curve (VOC 2010 and later).
        mAP_11_point: VOC 2007's.
        chance: the mAP of one score for all pictures.
        per_class: of `mAP`; NaN where the class was not trained, or is in no test picture.
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
        cross_validated: mean over the classes of the best cost's AP, cross-validated on the training part.
        costs: of each class; NaN where it was not trained.
        unfinished_fits: fits that LIBLINEAR gave up (`linear_svm.MAX_ITERATIONS`).
    """

    score: Score
    cross_validated: float
    costs: tuple[float, ...]
    unfinished_fits: int


@dataclass(frozen=True)
class Shot:
    """A level judged from `k` positive pictures a class: one score a draw; mean and standard deviation (n - 1)."""

    k: int
    mAP_mean: float
    mAP_std: float
    draws: tuple[Score, ...]


def probe_linear(
    level: int,
    train: Features,
    test: Features,
    ranks: Ranks,
    shown: Shown = lambda done, total: None,
) -> LinearLevel:
    """Train each class on all labels, its cost chosen by cross-validation, and score on the test part.

    A class with fewer than three positive training pictures cannot be cross-validated and is left out. Called on all
    ranks, which share the classes; the same on all.

    Raises:
        UsageError: scikit-learn is not installed.
    """
    rows, test_rows = unit_rows(train.levels[level], test.levels[level])

    def of_class(index: int) -> tuple[float, float, int, Floats] | None:
        positive, usable = _labels(train, index)
        if min(positive[usable].sum(), (~positive[usable]).sum()) < NUM_FOLDS:
            return None
        cost, precision, unfinished = choose_cost(rows[usable], positive[usable])
        model = fit_svm(rows[usable], positive[usable], cost)
        return (
            cost,
            precision,
            unfinished + is_unfinished(model),
            model.decision_function(test_rows),
        )

    fits = _over_classes(ranks, test.positives_NC.shape[1], of_class, shown)
    trained = [fit for fit in fits if fit is not None]
    return LinearLevel(
        score_columns([None if fit is None else fit[3] for fit in fits], test),
        mean(fit[1] for fit in trained) if trained else float("nan"),
        tuple(float("nan") if fit is None else fit[0] for fit in fits),
        sum(fit[2] for fit in trained),
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
    """Train each class on k positives and (C - 1) * k negatives, or all there are of these, at cost `SHOT_COST`.

    Draws are independent of each other and nested in k: the pictures of a smaller k are among those of a larger one,
    so the curve over k is smoother than with fresh pictures for each k, which the paper takes. A class with fewer
    than k positive training pictures is left out at k. Called on all ranks, which share the classes; the same on all.

    Raises:
        UsageError: scikit-learn is not installed.
    """
    rows, test_rows = unit_rows(train.levels[level], test.levels[level])
    num_classes = test.positives_NC.shape[1]

    def of_class(index: int) -> list[list[Floats | None]]:
        orders = [
            shot_order(*_labels(train, index), [seed, draw, index]) for draw in range(NUM_DRAWS)
        ]
        return [[column(k, *order) for order in orders] for k in shots]

    def column(k: int, positives: NDArray[np.int64], negatives: NDArray[np.int64]) -> Floats | None:
        if len(positives) < k or not len(negatives):
            return None
        chosen = np.concatenate([positives[:k], negatives[: (num_classes - 1) * k]])
        model = fit_svm(rows[chosen], np.arange(len(chosen)) < k, SHOT_COST)
        scores: Floats = model.decision_function(test_rows)
        return scores

    columns = _over_classes(ranks, num_classes, of_class, shown)
    return [
        _shot(
            k,
            [
                score_columns([each[place][draw] for each in columns], test)
                for draw in range(NUM_DRAWS)
            ],
        )
        for place, k in enumerate(shots)
    ]


def _shot(k: int, draws: list[Score]) -> Shot:
    values = torch.tensor([score.mAP for score in draws], dtype=torch.float64)
    return Shot(k, float(values.mean()), float(values.std()), tuple(draws))


def shot_order(
    positive_N: NDArray[np.bool_], usable_N: NDArray[np.bool_], seeds: Sequence[int]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return positive and negative pictures in the order in which a draw takes them; a function of `seeds`."""
    random = np.random.default_rng(seeds)
    positives, negatives = (np.flatnonzero(which & usable_N) for which in (positive_N, ~positive_N))
    return random.permutation(positives), random.permutation(negatives)


def _labels(features: Features, index: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Whether each picture shows the class, and whether it counts for it (not if all its objects are difficult)."""
    return features.positives_NC[:, index].numpy(), ~features.difficult_NC[:, index].numpy()


def score_columns(columns: Sequence[Floats | Tensor | None], test: Features) -> Score:
    """Return the score of each class's column of M test scores; None: the class was not trained."""
    trained = [index for index, column in enumerate(columns) if column is not None]
    if not trained:
        nothing = float("nan")
        return Score(nothing, nothing, nothing, 0, (nothing,) * len(columns))
    scores_MC = torch.stack([torch.as_tensor(columns[index]) for index in trained], dim=1)
    positives_MC, difficult_MC = test.positives_NC[:, trained], test.difficult_NC[:, trained]
    usual = mean_average_precision(scores_MC, positives_MC, difficult_MC)
    of_trained = dict(zip(trained, usual.per_class, strict=True))
    return Score(
        usual.value,
        mean_average_precision(scores_MC, positives_MC, difficult_MC, "11-point").value,
        mean_average_precision(torch.zeros_like(scores_MC), positives_MC, difficult_MC).value,
        usual.num_classes,
        tuple(of_trained.get(index, float("nan")) for index in range(len(columns))),
    )


def _over_classes(
    ranks: Ranks, num_classes: int, work: Callable[[int], T], shown: Shown
) -> list[T]:
    """Do `work` for each class, every rank a part of them. Called on all ranks; the same on all."""
    share = range(ranks.rank, num_classes, ranks.world_size)

    def mine() -> dict[int, T]:
        done: dict[int, T] = {}
        for index in share:
            done[index] = work(index)
            shown(len(done), len(share))
        return done

    results = {
        index: result
        for part in ranks.gather(ranks.on_all_ranks(mine))
        for index, result in part.items()
    }
    return [results[index] for index in range(num_classes)]
