"""Softmax probes: the optimum by its gradient, known answers, chance, ranks and the evidence."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.toy import on_ranks
from torch import Tensor
from torch.nn import functional as F

from colorgan.distributed.ranks import Ranks
from colorgan.errors import UsageError
from colorgan.evaluation.record import write_evaluation
from colorgan.probes.features import Features, LevelGrid
from colorgan.probes.probe import softmax_evidence
from colorgan.probes.record import read_probe
from colorgan.probes.softmax import (
    Labels,
    centered_rows,
    choose_cost,
    class_ranks,
    fit_softmax,
    probe_softmax,
    single_labels,
)
from colorgan.probes.tables import Probed, best_softmax_level, plain, probe, tables
from colorgan.report.rendering import render
from colorgan.report.sections.probes import best_of, probe_tables
from colorgan.study.comparison import compare, read_arm

ONE = Ranks.single()
NUM_CLASSES = 7


def made(labels_N: Tensor, *levels: Tensor) -> Features:
    positives = F.one_hot(labels_N, NUM_CLASSES).bool()
    return Features(levels, positives, torch.zeros_like(positives), torch.arange(len(labels_N)))


def clusters(number: int, seed: int) -> Features:
    """One class per image; level 0 is noise, level 1 shows the class without overlap."""
    random = torch.Generator().manual_seed(seed)
    labels_N = torch.arange(number) % NUM_CLASSES
    noise = torch.randn(number, 10, generator=random)
    shown = torch.randn(number, 9, generator=random) * 0.05 + torch.eye(NUM_CLASSES, 9)[labels_N]
    return made(labels_N, noise, shown)


def labels_of(*parts: Features) -> tuple[Labels, Labels]:
    train, test = (single_labels(part, "shards/pets") for part in parts)
    return train, test


@pytest.mark.parametrize("num_classes", [2, 5])
def test_the_classifier_is_the_minimum_of_the_regularized_cross_entropy(num_classes: int) -> None:
    random = torch.Generator().manual_seed(0)
    labels = np.arange(40) % num_classes
    rows, _ = centered_rows(torch.randn(40, 12, generator=random), torch.randn(3, 12))
    cost = 2.0
    (fit,) = fit_softmax(rows, labels, [cost])

    if num_classes == 2:
        # A logistic classifier: its one vector of weights is the second class's.
        weights = torch.tensor(fit.weights_KD[1:], requires_grad=True)
        intercepts = torch.tensor(fit.intercepts_K[1:], requires_grad=True)
        values_N = torch.from_numpy(rows) @ weights[0] + intercepts[0]
        loss = F.binary_cross_entropy_with_logits(
            values_N, torch.from_numpy(labels).double(), reduction="sum"
        )
    else:
        weights = torch.tensor(fit.weights_KD, requires_grad=True)
        intercepts = torch.tensor(fit.intercepts_K, requires_grad=True)
        outputs_NK = torch.from_numpy(rows) @ weights.T + intercepts
        loss = F.cross_entropy(outputs_NK, torch.from_numpy(labels), reduction="sum")
    gradients = torch.autograd.grad(cost * loss + weights.square().sum() / 2, (weights, intercepts))

    # scikit-learn stops at 1e-4 of the mean over the images.
    assert all(gradient.abs().max() < 1e-4 * cost * 40 for gradient in gradients)
    assert weights.abs().max() > 0.1


def test_separable_classes_are_found_and_their_level_is_chosen_by_the_training_part() -> None:
    train, test = clusters(105, 0), clusters(70, 1)
    labels = labels_of(train, test)
    probed = probe(("softmax",), train, test, ONE, seed=0, labels=labels)
    noise, shown = probed.softmax

    assert (shown.top1, shown.top5, shown.cross_validated) == (1.0, 1.0, 1.0)
    assert shown.per_class == (1.0,) * NUM_CLASSES
    assert (shown.chance_top1, shown.chance_top5) == pytest.approx((1 / 7, 5 / 7))
    # Three deviations of 70 answers that know nothing.
    assert abs(noise.top1 - 1 / 7) < 3 * math.sqrt(1 / 7 * 6 / 7 / 70)
    assert best_softmax_level(probed) == 1
    assert (shown.unfinished_fits, noise.unfinished_fits) == (0, 0)

    text = tables(probed, [LevelGrid(10, 1, 1), LevelGrid(9, 1, 1)], 105, 70)
    assert "105 training images, 70 test images" in text
    assert "2: 9 x 1 x 1   100.0    14.3  100.0    71.4            100.0  <- best" in text


def test_chance_is_the_most_common_classes_of_the_training_part() -> None:
    train = made(torch.tensor([6] * 5 + [2] * 4 + [0, 1, 3, 4, 5] * 3), torch.randn(24, 4))
    test = made(torch.tensor([6, 2, 2, 5, 0]), torch.randn(5, 4))
    (level,) = probe_softmax(train, test, labels_of(train, test), ONE)

    assert level.chance_top1 == 1 / 5
    # 6, 2, then the first three of the equally common ones: 0, 1 and 3.
    assert level.chance_top5 == 4 / 5
    assert [math.isnan(share) for share in level.per_class] == [
        label not in (0, 2, 5, 6) for label in range(NUM_CLASSES)
    ]


def test_a_class_without_training_images_is_never_right() -> None:
    train, test = clusters(105, 0), clusters(70, 1)
    kept = (train.positives_NC[:, 3] == 0).nonzero().flatten()
    fewer = made(train.positives_NC[kept].int().argmax(dim=1), train.levels[1][kept])
    (level,) = probe_softmax(
        fewer, replace(test, levels=test.levels[1:]), labels_of(fewer, test), ONE
    )

    assert level.top1 == 6 / 7
    assert level.per_class[3] == 0.0
    assert level.ranks_M[test.positives_NC[:, 3].numpy()].tolist() == [6] * 10


def test_ranks_count_the_classes_before_the_right_one() -> None:
    outputs = np.array([[0.1, 0.9, 0.3], [0.5, 0.5, 0.5], [0.5, 0.5, 0.5], [-np.inf, 0.0, -np.inf]])
    assert class_ranks(outputs, np.array([0, 0, 2, 2])).tolist() == [2, 0, 2, 2]


def test_the_cost_is_chosen_by_a_loop_over_stratified_folds() -> None:
    random = torch.Generator().manual_seed(3)
    labels = np.sort(np.arange(90) % 5)
    rows, _ = centered_rows(
        torch.randn(90, 6, generator=random) + torch.eye(5, 6)[torch.from_numpy(labels)],
        torch.randn(3, 6),
    )
    costs = (0.01, 1.0, 100.0)
    fold = np.concatenate([np.arange(18) % 3] * 5)
    accuracies = []
    for cost in costs:
        right = 0
        for held in range(3):
            (fit,) = fit_softmax(rows[fold != held], labels[fold != held], [cost])
            answers = fit.outputs(rows[fold == held], 5).argmax(axis=1)
            right += (answers == labels[fold == held]).sum()
        accuracies.append(right / 90)

    cost, accuracy, _ = choose_cost(rows, labels, costs)
    assert len(set(accuracies)) > 1
    assert (cost, accuracy) == (costs[int(np.argmax(accuracies))], max(accuracies))


def _save_fields(ranks: Ranks, folder: str) -> None:
    torch.set_num_threads(1)
    train, test = clusters(105, 0), clusters(70, 1)
    probed = probe(("softmax",), train, test, ranks, seed=0, labels=labels_of(train, test))
    (Path(folder) / f"{ranks.rank}.json").write_text(json.dumps(plain(probed, [])))


def test_two_ranks_share_the_levels_and_give_what_one_gives(tmp_path: Path) -> None:
    on_ranks(2, _save_fields, str(tmp_path))
    threads = torch.get_num_threads()
    (tmp_path / "one").mkdir()
    _save_fields(ONE, str(tmp_path / "one"))
    torch.set_num_threads(threads)

    expected = json.loads((tmp_path / "one" / "0.json").read_text())
    assert len(expected["softmax"]["levels"]) == 2
    for rank in (0, 1):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == expected


def test_the_evidence_gives_the_scores_again_and_an_interval(tmp_path: Path) -> None:
    train, test = clusters(105, 0), clusters(70, 1)
    levels = probe_softmax(train, test, labels_of(train, test), ONE)
    names = tuple("abcdefg")
    arms = []
    for name, level in zip(("noise", "shown"), levels, strict=True):
        evaluation = softmax_evidence(level, test, names)
        write_evaluation(tmp_path / name, evaluation, {"classes": names})
        for metric, score in (("top5", level.top5), ("top1", level.top1)):
            arm = read_arm(name, {(0, 0): tmp_path / name}, metric)
            assert arm.values[0, 0] == score
        arms.append(arm)

    found = compare(arms[1], arms[0], "top1")
    assert found.resampled == ("images",)
    assert found.is_difference
    assert found.difference == pytest.approx(1.0 - levels[0].top1)


def test_the_report_reads_what_was_written(tmp_path: Path) -> None:
    train, test = clusters(105, 0), clusters(70, 1)
    probed = probe(("softmax",), train, test, ONE, seed=0, labels=labels_of(train, test))
    fields = plain(probed, [LevelGrid(10, 1, 1), LevelGrid(9, 1, 1)])
    (tmp_path / "probe.json").write_text(json.dumps({"model": "g", **fields}))
    found = read_probe(tmp_path)

    assert found.best_softmax == 1
    assert found.softmax[1] == (1.0, pytest.approx(1 / 7), 1.0, pytest.approx(5 / 7), 1.0)
    page = render(probe_tables({"arm": [found]}))
    assert "100.0\u00a0*" in page
    assert "14.3" in page
    assert best_of([found]) == ("top-1 accuracy of softmax classifiers", [1.0])


def test_images_without_exactly_one_class_and_too_few_images_are_refused() -> None:
    train, test = clusters(21, 0), clusters(14, 1)
    train.positives_NC[5, 0] = True
    with pytest.raises(UsageError, match="shards/pets: image 5 has 2 classes, and --protocol soft"):
        single_labels(train, "shards/pets")
    train.positives_NC[5] = False
    with pytest.raises(UsageError, match="image 5 has 0 classes"):
        single_labels(train, "shards/pets")

    few = clusters(8, 0)
    with pytest.raises(UsageError, match="fewer than two classes have 3 training images"):
        probe_softmax(few, test, labels_of(few, test), ONE)


def test_with_five_classes_or_fewer_there_is_no_top_five() -> None:
    train, test = clusters(105, 0), clusters(70, 1)
    parts = []
    for part in (train, test):
        labels_N = torch.from_numpy(single_labels(part, "")) % 5
        parts.append(replace(part, positives_NC=F.one_hot(labels_N, 5).bool()))
    levels = probe_softmax(*parts, labels_of(*parts), ONE)

    assert all(math.isnan(level.top5) and math.isnan(level.chance_top5) for level in levels)
    fields = plain(Probed(softmax=tuple(levels)), [])
    assert fields["softmax"]["levels"][0]["top5"] is None
