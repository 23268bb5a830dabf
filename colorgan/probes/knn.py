"""Nearest neighbours among frozen features, for pictures with several classes; nothing is trained.

Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", CVPR 2018, section 3.4: the k
most similar training pictures vote, each with exp(cosine similarity / 0.07). A class's score is its share of the votes.

Shape legend: N training and M test pictures, C classes, D numbers of a level.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from colorgan.probes.features import Features
from colorgan.probes.linear import Score, score_columns

NEIGHBOURS = (1, 5, 10, 20, 50)
TEMPERATURE = 0.07


@dataclass(frozen=True)
class Neighbours:
    """A level judged by `k` neighbours; `cross_validated` is the training part's mAP, each picture without itself."""

    k: int
    score: Score
    cross_validated: float


def probe_neighbours(
    level: int, train: Features, test: Features, neighbours: Sequence[int] = NEIGHBOURS
) -> list[Neighbours]:
    """Score the test part by its neighbours in the training part, for each k below the number of training pictures.

    A class without a positive training picture is left out.
    """
    train_ND, test_MD = (F.normalize(part.levels[level], dim=1) for part in (train, test))
    possible = [k for k in neighbours if k < len(train_ND)]
    tested = votes(test_MD @ train_ND.T, train, possible)
    without_itself = votes((train_ND @ train_ND.T).fill_diagonal_(-torch.inf), train, possible)
    known_C = (train.positives_NC & ~train.difficult_NC).any(dim=0).tolist()

    def score(scores_MC: Tensor, part: Features) -> Score:
        return score_columns(
            [column if known_C[i] else None for i, column in enumerate(scores_MC.T)], part
        )

    return [
        Neighbours(k, score(tested_MC, test), score(left_out_NC, train).mAP)
        for k, tested_MC, left_out_NC in zip(possible, tested, without_itself, strict=True)
    ]


def votes(similarity_MN: Tensor, train: Features, neighbours: Sequence[int]) -> list[Tensor]:
    """Return, for each k, each class's share of the k nearest pictures' votes, M x C float64 in [0, 1].

    A neighbour that shows a class as difficult objects only has no vote on it; without any vote the share is 0. Of
    equally similar pictures the first of the set counts as nearer.
    """
    similarity_MN, order_MN = similarity_MN.double().sort(dim=1, descending=True, stable=True)
    shares = []
    for k in neighbours:
        nearest_Mk = order_MN[:, :k]
        weight_Mk1 = ((similarity_MN[:, :k] - similarity_MN[:, :1]) / TEMPERATURE).exp()[:, :, None]
        votes_MkC = weight_Mk1 * ~train.difficult_NC[nearest_Mk]
        for_it_MC = (votes_MkC * train.positives_NC[nearest_Mk]).sum(dim=1)
        shares.append(for_it_MC / votes_MkC.sum(dim=1).clamp(min=torch.finfo(torch.float64).tiny))
    return shares
