"""Nearest neighbors among frozen features, for images with several classes; nothing is trained.

Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", CVPR 2018,
section 3.4: the k most similar training images vote, each with exp(cosine similarity / 0.07). A
class's score is its share of the votes.

Shape legend: N training and M test images, C classes, D numbers of a level.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from colorgan.probes.features import Features
from colorgan.probes.linear import Score, score_columns

# From one voter to what small sets allow; the paper takes 200 of ImageNet's million.
NEIGHBORS = (1, 5, 10, 20, 50)
TEMPERATURE = 0.07  # the paper's


@dataclass(frozen=True)
class Neighbors:
    """A level judged by `k` neighbors.

    Attributes:
        cross_validated: the training part's mAP, each image without itself.
    """

    k: int
    score: Score
    cross_validated: float


def probe_neighbors(
    level: int, train: Features, test: Features, neighbors: Sequence[int] = NEIGHBORS
) -> list[Neighbors]:
    """Score the test part by its neighbors, for each k below the number of training images.

    A class without a positive training image is left out.
    """
    # Unit length: a product is the cosine then.
    train_ND = F.normalize(train.levels[level], dim=1)
    test_MD = F.normalize(test.levels[level], dim=1)
    # A neighbor more than there are images has no meaning.
    possible = [k for k in neighbors if k < len(train_ND)]
    tested = votes(test_MD @ train_ND.T, train, possible)

    # Each training image is judged without itself: its own vote would be right.
    similarity_NN = (train_ND @ train_ND.T).fill_diagonal_(-torch.inf)
    left_out = votes(similarity_NN, train, possible)
    known_C = (train.positives_NC & ~train.difficult_NC).any(dim=0).tolist()

    results = []
    for k, tested_MC, left_out_NC in zip(
        possible,
        tested,
        left_out,
        strict=True,
    ):
        own = _score(left_out_NC, known_C, train)
        results.append(Neighbors(k, _score(tested_MC, known_C, test), own.mAP))
    return results


def _score(scores_MC: Tensor, known_C: Sequence[bool], part: Features) -> Score:
    columns = [
        column if known else None for column, known in zip(scores_MC.T, known_C, strict=True)
    ]
    return score_columns(columns, part)


def votes(similarity_MN: Tensor, train: Features, neighbors: Sequence[int]) -> list[Tensor]:
    """Return, for each k, each class's share of the k nearest images' votes, M x C in [0, 1].

    Float64. A neighbor with a class as difficult objects only has no vote on it; without votes the
    share is 0. Of equally similar images the first of the set counts as nearer.
    """
    similarity_MN, order_MN = similarity_MN.double().sort(dim=1, descending=True, stable=True)
    # Without any vote the share is 0 / tiny, which is 0.
    smallest = torch.finfo(torch.float64).tiny
    shares = []
    for k in neighbors:
        nearest_Mk = order_MN[:, :k]
        # Relative to the nearest one: exp stays in range, and shares do not change.
        distance_Mk = similarity_MN[:, :k] - similarity_MN[:, :1]
        weight_Mk1 = (distance_Mk / TEMPERATURE).exp()[:, :, None]
        votes_MkC = weight_Mk1 * ~train.difficult_NC[nearest_Mk]
        for_class_MC = (votes_MkC * train.positives_NC[nearest_Mk]).sum(dim=1)
        shares.append(for_class_MC / votes_MkC.sum(dim=1).clamp(min=smallest))
    return shares
