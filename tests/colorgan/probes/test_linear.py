"""Frozen features and their probes against scikit-learn, torch's norms and hand-written loops."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.toy import ToyBatch, on_ranks, toy_picture
from sklearn.metrics import average_precision_score
from sklearn.model_selection import GridSearchCV, PredefinedSplit
from sklearn.svm import LinearSVC
from torch import Tensor, nn
from torch.nn import functional as F

from colorgan.distributed.ranks import Ranks
from colorgan.errors import TrainingError, UsageError
from colorgan.evaluation.metrics import average_precision
from colorgan.evaluation.record import write_evaluation
from colorgan.models.layers import BatchNorm
from colorgan.models.modes import initialise
from colorgan.models.unet import Encoder
from colorgan.probes.features import (
    Features,
    LevelGrid,
    extract_features,
    grid_side,
    level_grids,
    random_encoder,
)
from colorgan.probes.knn import TEMPERATURE, probe_neighbors
from colorgan.probes.linear import SHOTS, probe_linear, probe_shots, score_columns, shot_order
from colorgan.probes.probe import evidence
from colorgan.probes.scikit_learn import check_sklearn
from colorgan.probes.svm import COSTS, choose_cost, fit_svm, unit_rows
from colorgan.probes.tables import Probed, best_linear_level, best_neighbors, plain, probe, tables
from colorgan.study.comparison import read_arm

ONE = Ranks.single()
NUM_PICTURES, NUM_CLASSES = 22, 3


@dataclass
class LabelledLoader:
    """One pass over 22 images, cut over the ranks as the loader does: the last is short."""

    micro_batch_size: int = 4
    rank: int = 0
    world_size: int = 1
    num_pictures: int = NUM_PICTURES

    def eval_batches(self) -> Iterator[Any]:
        size = self.micro_batch_size

        for begin in range(self.rank * size, self.num_pictures, self.world_size * size):
            positions_B = torch.arange(
                begin,
                min(begin + size, self.num_pictures),
            )
            # By the position: the test knows each image's classes without reading it.
            classes_BC = (positions_B[:, None] % torch.tensor([2, 3, 5]) == 0).float()
            difficult_BC = (classes_BC > 0) & (positions_B[:, None] % 7 == 0)
            lab_B3HW = torch.stack([toy_picture(slot) for slot in positions_B.tolist()])
            yield ToyBatch(
                lab_B3HW,
                positions_B,
                positions_B,
                classes_BC,
                difficult_BC,
            )


def toy_encoder(seed: int = 0, norm: Any = "batch") -> Encoder:
    encoder = Encoder(
        image_size=32,
        width=4,
        norm=norm,
        bias_before_norm=False,
    )
    # Evaluated, not trained: features must not change what they are taken from.
    initialise(encoder, seed)

    return encoder.eval()


def made(*levels: Tensor, positives: Tensor, difficult: Tensor | None = None) -> Features:
    none = torch.zeros_like(positives, dtype=torch.bool)
    return Features(
        levels,
        positives.bool(),
        none if difficult is None else difficult,
        torch.arange(len(positives)),
    )


def clusters(number: int, seed: int, spread: float = 0.05) -> Features:
    """Images of one to three of 3 classes; each adds its own direction: linearly separable."""
    random = torch.Generator().manual_seed(seed)
    positives = torch.rand(number, NUM_CLASSES, generator=random) < 0.4
    # No image without a class, and no class without an image.
    positives[torch.arange(number), torch.arange(number) % NUM_CLASSES] = True
    noise = torch.randn(number, 8, generator=random) * spread

    return made(
        noise + positives.float() @ torch.eye(NUM_CLASSES, 8),
        positives=positives,
    )


@pytest.mark.parametrize(
    "channels",
    [4, 24, 64, 128, 512, 4096, 10_000],
)
@pytest.mark.parametrize(
    "side",
    [1, 2, 5, 32, 128],
)
def test_no_other_grid_is_nearer_to_9000_numbers(channels: int, side: int) -> None:
    grid = grid_side(channels, side)
    assert 1 <= grid <= side
    assert all(
        abs(channels * grid**2 - 9000) <= abs(channels * other**2 - 9000)
        for other in range(1, side + 1)
    )


def test_the_grids_of_the_papers_network() -> None:
    grids = level_grids(
        Encoder(image_size=256, width=64, norm="batch", bias_before_norm=False), 256
    )
    sides = [
        (64, 128, 12),
        (128, 64, 8),
        (256, 32, 6),
        (512, 16, 4),
        (512, 8, 4),
        (512, 4, 4),
        (512, 2, 2),
    ]

    assert grids == [LevelGrid(*each) for each in [*sides, (512, 1, 1)]]


def test_features_equal_a_loop_over_single_pictures() -> None:
    encoder = toy_encoder()
    loader = LabelledLoader()
    for norm in (part for part in encoder.modules() if isinstance(part, BatchNorm)):
        # Means of zero would hide a norm that is left out.
        nn.init.uniform_(norm.running_mean)  # type: ignore[arg-type]
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    seen: list[int] = []
    features = extract_features(
        encoder,
        loader,
        ONE,
        seen.append,
    )

    assert seen == [4, 8, 12, 16, 20, 22]
    assert features.sample_ids_N.tolist() == list(range(NUM_PICTURES))
    assert features.positives_NC[:, 0].tolist() == [slot % 2 == 0 for slot in range(NUM_PICTURES)]
    assert features.difficult_NC.nonzero().tolist() == [
        [0, 0],
        [0, 1],
        [0, 2],
        [14, 0],
        [21, 1],
    ]

    for slot in range(NUM_PICTURES):
        with torch.no_grad():
            levels = encoder(toy_picture(slot)[None, :1])
        for level, size, rows in zip(
            levels, level_grids(encoder, 32), features.levels, strict=True
        ):
            torch.testing.assert_close(
                rows[slot], F.adaptive_avg_pool2d(level, size.grid).flatten(), rtol=1e-4, atol=1e-6
            )

    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())


def test_a_random_encoder_has_the_statistics_that_torch_would_accumulate() -> None:
    encoder, pictures = toy_encoder(seed=5), 20  # five equal micro-batches
    loader = LabelledLoader(num_pictures=pictures)
    with torch.no_grad():
        for parameter in encoder.parameters():  # whatever was learnt before
            parameter.fill_(3.0)
    random_encoder(encoder, 7, loader, ONE)
    # The same weights, made by the other way.
    expected = toy_encoder(seed=7)
    norms = [part for part in expected.modules() if isinstance(part, BatchNorm)]
    for norm in norms:
        norm.momentum = None  # torch's cumulative average over micro-batches
    expected.train()
    with torch.no_grad():
        for batch in loader.eval_batches():
            expected(batch.lab_B3HW[:, :1])
    for name, tensor in expected.state_dict().items():
        if "num_batches" not in name:
            torch.testing.assert_close(
                encoder.state_dict()[name],
                tensor,
                rtol=1e-5,
                atol=1e-7,
            )

    assert not encoder.training
    assert {part.momentum for part in encoder.modules() if isinstance(part, BatchNorm)} == {0.1}


def test_one_micro_batch_of_the_whole_set_gives_each_norm_its_inputs_statistics() -> None:
    encoder = toy_encoder()
    random_encoder(
        encoder,
        1,
        LabelledLoader(micro_batch_size=NUM_PICTURES),
        ONE,
    )
    met: list[tuple[Any, Tensor]] = []
    for norm in (part for part in encoder.modules() if isinstance(part, BatchNorm)):
        # What each norm meets, not what was put in front: levels depend on each other.
        norm.register_forward_hook(lambda module, inputs, output: met.append((module, inputs[0])))
    with torch.no_grad():
        encoder(next(LabelledLoader(micro_batch_size=NUM_PICTURES).eval_batches()).lab_B3HW[:, :1])

    assert len(met) == 3
    # But for what comes after a norm: in training it divides by the biased variance.
    for norm, input_BCHW in met:
        torch.testing.assert_close(
            norm.running_mean, input_BCHW.mean(dim=(0, 2, 3)), rtol=0.01, atol=1e-4
        )
        torch.testing.assert_close(
            norm.running_var, input_BCHW.var(dim=(0, 2, 3)), rtol=0.02, atol=1e-9
        )
    first, input_BCHW = met[0]
    torch.testing.assert_close(
        first.running_var, input_BCHW.var(dim=(0, 2, 3)), rtol=1e-5, atol=1e-9
    )


def test_a_random_encoder_with_instance_norm_needs_no_statistics() -> None:
    encoder = toy_encoder(norm="instance")
    expected = toy_encoder(seed=3, norm="instance")
    random_encoder(
        encoder,
        3,
        LabelledLoader(),
        ONE,
    )

    assert all(
        torch.equal(encoder.state_dict()[name], tensor)
        for name, tensor in expected.state_dict().items()
    )


def _everything(ranks: Ranks) -> tuple[Features, Probed]:
    torch.set_num_threads(1)
    loader = LabelledLoader(
        rank=ranks.rank,
        world_size=ranks.world_size,
    )
    encoder = toy_encoder()
    random_encoder(encoder, 2, loader, ranks)
    features = extract_features(encoder, loader, ranks)

    return features, probe(("linear", "lowshot", "knn"), features, features, ranks, seed=4)


def _save_everything(ranks: Ranks, folder: str) -> None:
    features, probed = _everything(ranks)
    parts = [
        *features.levels,
        features.positives_NC,
        features.difficult_NC,
        features.sample_ids_N,
    ]

    torch.save(
        (
            parts,
            plain(
                probed,
                [LevelGrid(4, 1, 1)],
            ),
        ),
        Path(folder) / f"{ranks.rank}.pt",
    )


def test_two_ranks_give_what_one_gives(tmp_path: Path) -> None:
    on_ranks(
        2,
        _save_everything,
        str(tmp_path),
    )
    threads = torch.get_num_threads()
    (tmp_path / "one").mkdir()
    _save_everything(
        ONE,
        str(tmp_path / "one"),
    )
    torch.set_num_threads(threads)
    one = torch.load(
        tmp_path / "one" / "0.pt",
        weights_only=True,
    )

    for rank in (0, 1):
        parts, probed = torch.load(
            tmp_path / f"{rank}.pt",
            weights_only=True,
        )
        assert all(
            torch.equal(part, expected) for part, expected in zip(parts, one[0], strict=True)
        )
        assert probed == one[1]


def test_all_protocols_are_perfect_on_separable_classes_and_say_so() -> None:
    train = clusters(60, 0, spread=0.01)
    test = clusters(30, 1, spread=0.01)
    probed = probe(
        ("linear", "lowshot", "knn"),
        train,
        test,
        ONE,
        seed=0,
    )
    (linear,), (shots,), (neighbors,) = probed.linear, probed.low_shot, probed.knn

    assert linear.score.mAP == linear.score.mAP_11_point == 1.0
    assert linear.score.per_class == (1.0,) * NUM_CLASSES
    assert linear.cross_validated == 1.0
    assert [shot.k for shot in shots] == list(SHOTS)
    assert shots[4].mAP_mean == pytest.approx(1.0, abs=1e-3)
    assert neighbors[0].score.mAP > 0.95
    assert (
        best_linear_level(probed),
        best_neighbors(probed),
    ) == (
        0,
        (
            0,
            max(neighbors, key=_left_out).k,
        ),
    )

    text = tables(
        probed,
        [LevelGrid(8, 1, 1)],
        len(train.sample_ids_N),
        len(test.sample_ids_N),
    )

    assert "1: 8 x 1 x 1  100.0     100.0" in text
    assert "60 training images, 30 test images" in text


def _left_out(found: Any) -> float:
    value: float = found.cross_validated
    return value


def test_chance_is_what_scikit_learn_says_of_equal_scores() -> None:
    test = clusters(30, 1)
    score = score_columns(
        [test.levels[0][:, index] for index in range(NUM_CLASSES)],
        test,
    )
    of_classes = [
        average_precision_score(positive, np.zeros(30)) for positive in test.positives_NC.T.numpy()
    ]

    assert score.chance == pytest.approx(np.mean(of_classes))
    perfect = [
        test.positives_NC[:, 0].double(),
        None,
        None,
    ]

    assert (
        score_columns(perfect, test).mAP
        == average_precision_score(
            test.positives_NC[:, 0],
            perfect[0],
        )
        == 1.0
    )
    assert score_columns(perfect, test).classes == 1


def test_rows_in_the_span_of_the_training_rows_give_the_same_classifier() -> None:
    random = torch.Generator().manual_seed(0)
    train = torch.randn(12, 40, generator=random)
    test = torch.randn(9, 40, generator=random)
    rows, test_rows = unit_rows(train, test)

    assert rows.shape == (12, 12)
    plain_rows = F.normalize(train.double()).numpy()
    plain_test = F.normalize(test.double()).numpy()
    np.testing.assert_allclose(
        rows @ rows.T,
        plain_rows @ plain_rows.T,
        atol=1e-12,
    )
    np.testing.assert_allclose(
        test_rows @ rows.T,
        plain_test @ plain_rows.T,
        atol=1e-12,
    )
    positive = np.arange(12) % 3 == 0
    expected = LinearSVC(
        C=0.5, class_weight={True: 2, False: 1}, random_state=0, max_iter=2000, dual=True
    )
    expected.fit(plain_rows, positive)
    scores = fit_svm(rows, positive, 0.5).decision_function(test_rows)
    np.testing.assert_allclose(
        scores,
        expected.decision_function(plain_test),
        atol=1e-8,
    )


def test_the_cost_is_the_one_that_scikit_learns_search_finds() -> None:
    train = clusters(45, 3, spread=0.6)
    rows = unit_rows(train.levels[0], train.levels[0])[0]
    positive = train.positives_NC[:, 1].numpy()
    folds = np.where(positive, positive.cumsum() - 1, (~positive).cumsum() - 1) % 3

    def precision(model: Any, held: Any, target: Any) -> float:
        return average_precision(
            torch.from_numpy(model.decision_function(held)), torch.from_numpy(target)
        )

    svm = LinearSVC(
        class_weight={True: 2, False: 1},
        random_state=0,
        max_iter=2000,
        dual=True,
    )
    search = GridSearchCV(
        svm,
        {"C": COSTS},
        scoring=precision,
        cv=PredefinedSplit(folds),
    ).fit(rows, positive)
    cost, value, unfinished = choose_cost(rows, positive)
    assert cost == search.best_params_["C"]
    assert value == pytest.approx(search.best_score_)
    assert unfinished == 0


def test_fits_that_do_not_converge_are_counted_not_warned_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("colorgan.probes.svm.MAX_ITERATIONS", 1)
    train = clusters(30, 3, spread=0.6)
    assert probe_linear(0, train, train, ONE).unfinished_fits > 0


def test_difficult_pictures_have_no_say_in_their_class() -> None:
    train = clusters(40, 0, spread=0.5)
    test = clusters(30, 1, spread=0.5)
    difficult = torch.zeros(40, NUM_CLASSES, dtype=torch.bool)
    difficult[:6, 0] = True
    outliers = train.levels[0].clone()
    outliers[:6] = 9.0
    flagged, moved = (
        replace(train, levels=(rows,), difficult_NC=difficult)
        for rows in (train.levels[0], outliers)
    )

    for protocol in (_linear_classes, _shot_classes):
        assert protocol(flagged, test)[0] == protocol(moved, test)[0]
        assert protocol(flagged, test)[1] != protocol(moved, test)[1]


def _linear_classes(train: Features, test: Features) -> Sequence[float]:
    return probe_linear(0, train, test, ONE).score.per_class


def _shot_classes(train: Features, test: Features) -> Sequence[float]:
    return probe_shots(0, train, test, ONE, seed=0, shots=(8,))[0].draws[0].per_class


@pytest.mark.parametrize("numbers", [6, 100])
def test_a_constant_level_scores_at_chance(numbers: int) -> None:
    train = clusters(40, 0)
    test = clusters(30, 1)

    for value in (0.0, 2.5):
        levels = [torch.full((len(part.levels[0]), numbers), value) for part in (train, test)]
        constant = [
            replace(part, levels=(level,))
            for part, level in zip((train, test), levels, strict=True)
        ]
        probed = probe(
            ("linear", "lowshot"),
            *constant,
            ONE,
            seed=0,
        )
        assert probed.linear[0].score.mAP == pytest.approx(probed.linear[0].score.chance)
        assert probed.low_shot[0][0].mAP_mean == pytest.approx(
            probed.low_shot[0][0].draws[0].chance
        )
        assert all(0 < found.score.mAP < 1 for found in probe_neighbors(0, *constant))


def test_classes_with_too_few_pictures_are_left_out_and_counted(tmp_path: Path) -> None:
    train = clusters(40, 0)
    test = clusters(30, 1)
    train.positives_NC[:, 2] = torch.arange(40) < 2
    linear = probe_linear(0, train, test, ONE)

    assert linear.score.classes == 2
    assert math.isnan(linear.score.per_class[2])
    assert math.isnan(linear.costs[2])

    two, four, many = probe_shots(
        0,
        train,
        test,
        ONE,
        seed=0,
        shots=(2, 4, 41),
    )

    assert [shot.draws[0].classes for shot in (two, four, many)] == [3, 2, 0]
    assert math.isnan(many.mAP_mean)
    probed = Probed(
        linear=(linear,),
        low_shot=((two, four, many),),
    )
    shots = plain(probed, [LevelGrid(8, 1, 1)])["lowshot"]["levels"][0]

    assert [shot["mAP_mean"] is None for shot in shots] == [False, False, True]
    assert tables(
        probed, [LevelGrid(8, 1, 1)], len(train.sample_ids_N), len(test.sample_ids_N)
    ).endswith("- ± -")

    # A study recomputes the score from what each classifier says of each image.
    names = ("cat", "dog", "fox")
    write_evaluation(tmp_path, evidence(linear, test, names), {"classes": names})
    arm = read_arm("l1", {(0, 0): tmp_path}, "mAP")
    assert arm.values[0, 0] == pytest.approx(linear.score.mAP)
    assert arm.evidence[0, 0]["scores_NC"].shape == (30, 2)
    assert np.isfinite(arm.evidence[0, 0]["scores_NC"]).all()

    train.positives_NC[:, 2] = False
    assert probe_neighbors(0, train, test)[0].score.classes == 2


def test_draws_are_nested_seeded_and_without_difficult_pictures() -> None:
    positive = np.arange(50) % 4 == 0
    usable = np.arange(50) % 5 > 0
    positives, negatives = shot_order(
        positive,
        usable,
        [0, 1, 2],
    )

    assert sorted(positives) == [i for i in range(50) if positive[i] and usable[i]]
    assert sorted(negatives) == [i for i in range(50) if not positive[i] and usable[i]]
    assert all(
        (a == b).all()
        for a, b in zip(
            shot_order(positive, usable, [0, 1, 2]), (positives, negatives), strict=True
        )
    )
    assert (shot_order(positive, usable, [0, 2, 2])[0] != positives).any()

    train = clusters(40, 0, spread=0.5)
    test = clusters(30, 1, spread=0.5)
    first, second, other = (
        probe_shots(0, train, test, ONE, seed=seed, shots=(4,))[0] for seed in (0, 0, 1)
    )

    assert first == second
    assert first.draws != other.draws
    values = [draw.mAP for draw in first.draws]

    assert len(set(values)) > 1
    assert (
        first.mAP_mean,
        first.mAP_std,
    ) == pytest.approx(
        (
            np.mean(values),
            np.std(values, ddof=1),
        )
    )


def test_neighbours_equal_a_loop_by_hand() -> None:
    train = clusters(20, 0, spread=0.5)
    test = clusters(6, 1, spread=0.5)
    train.difficult_NC[:5] = train.positives_NC[:5]
    for found in probe_neighbors(0, train, test, (1, 5, 19, 20)):
        for queries, left_out, value in (
            (test, False, found.score.mAP),
            (train, True, found.cross_validated),
        ):
            shares = torch.tensor([_shares(train, query, found.k, i if left_out else -1)
                                   for i, query in enumerate(queries.levels[0])])  # fmt: skip
            of_classes = [
                average_precision(
                    shares[:, c], queries.positives_NC[:, c], queries.difficult_NC[:, c]
                )
                for c in range(NUM_CLASSES)
            ]
            assert value == pytest.approx(np.mean(of_classes))

    assert [found.k for found in probe_neighbors(0, train, test, (1, 19, 20))] == [1, 19]


def _shares(train: Features, query_D: Tensor, k: int, itself: int) -> list[float]:
    cosines = [float(F.cosine_similarity(query_D, row, dim=0)) for row in train.levels[0]]
    nearest = sorted((i for i in range(len(cosines)) if i != itself), key=lambda i: -cosines[i])[:k]
    shares = []

    for c in range(NUM_CLASSES):
        voters = [i for i in nearest if not train.difficult_NC[i, c]]
        total = sum(math.exp(cosines[i] / TEMPERATURE) for i in voters)
        mine = sum(math.exp(cosines[i] / TEMPERATURE) for i in voters if train.positives_NC[i, c])
        shares.append(round(mine / total, 5) if total else 0.0)

    return shares


def test_what_cannot_be_probed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = toy_encoder()
    with torch.no_grad():
        encoder.blocks[1].conv.weight[0, 0, 0, 0] = torch.nan  # type: ignore[union-attr,index]

    with pytest.raises(TrainingError, match="features are NaN or infinite"):
        extract_features(encoder, LabelledLoader(), ONE)
    with pytest.raises(TrainingError, match="none of the images could be read"):
        extract_features(
            toy_encoder(),
            LabelledLoader(num_pictures=0),
            ONE,
        )
    with pytest.raises(TrainingError, match="none of the images could be read"):
        random_encoder(
            toy_encoder(),
            0,
            LabelledLoader(num_pictures=0),
            ONE,
        )

    monkeypatch.setitem(sys.modules, "sklearn.svm", None)
    with pytest.raises(UsageError, match=r"need scikit-learn: pip install 'scikit-learn"):
        check_sklearn()
