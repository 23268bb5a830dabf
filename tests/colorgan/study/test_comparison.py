"""Comparisons: resamples against copied images, intervals against simulated truth, verdicts."""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.networks import small_config
from scipy.stats import t as student
from sklearn.metrics import f1_score, jaccard_score

from colorgan.distributed.ranks import Ranks
from colorgan.errors import UsageError
from colorgan.evaluation.classifier_scores import score_classifier
from colorgan.evaluation.metrics import first_positive_accuracy, mean_average_precision
from colorgan.evaluation.record import Evaluation, SavedEvaluation, write_evaluation
from colorgan.study.bootstrap import (
    SCORED_BY,
    Spread,
    multiplicities_NR,
    over_runs,
    resampled_score_R,
    student_quantile,
)
from colorgan.study.comparison import (
    ArmScores,
    Comparison,
    RunKey,
    compare,
    read_arm,
    survives_many,
    verdict,
)

Evidence = dict[str, np.ndarray[Any, Any]]
NUM_CLASSES = 4
NOTHING = Comparison("a", "b", (0,), (0, 1, 2), (0.0, 0.0), (0.0, 0.0), 0.0, 0.0, 0.0, (), "")
TOP = {"top1": 1, "top5": 5}
SEGMENTATION = ("mIoU", "mIoU_own_size", "dice", "dice_own_size", "pixel_accuracy")


def classified(num_images: int = 40, seed: int = 0, skill: float = 1.0) -> Evidence:
    """Return labels of one set, with a rare class, and scores of a model, with ties."""
    # Two generators: models of other seeds are scored on the same labels.
    labels = np.random.default_rng(7)
    model = np.random.default_rng(seed)
    positives_NC = labels.random((num_images, NUM_CLASSES)) < [0.5, 0.3, 0.2, 0.05]
    difficult_NC = positives_NC & (labels.random(positives_NC.shape) < 0.2)
    scores_NC = skill * positives_NC + model.normal(size=positives_NC.shape)

    return {
        "sample_ids_N": np.arange(num_images),
        # Rounded, so that scores tie, as those of real models do after bf16.
        "scores_NC": scores_NC.round(1).astype(np.float32),
        "positives_NC": positives_NC.astype(np.uint8),
        "difficult_NC": difficult_NC.astype(np.uint8),
    }


def ranked(num_images: int = 40) -> Evidence:
    """Return the place of each image's class among a model's answers, 0 for the first."""
    ranks_N = np.random.default_rng(5).integers(0, 8, size=num_images)
    return {"sample_ids_N": np.arange(num_images), "ranks_N": ranks_N}


def pixels(num_images: int = 12) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return true and predicted classes, N x 30 each; the last class is in one image only."""
    generator = np.random.default_rng(3)
    true_NP = generator.integers(
        NUM_CLASSES - 1,
        size=(num_images, 30),
    )
    # A class that most resamples leave out: its score has no value there.
    true_NP[0, :5] = NUM_CLASSES - 1
    wrong = generator.random(true_NP.shape) < 0.4

    return true_NP, np.where(wrong, generator.integers(NUM_CLASSES, size=true_NP.shape), true_NP)


def segmented() -> Evidence:
    true_NP, predicted_NP = pixels()
    per_image = []

    for true_P, predicted_P in zip(true_NP, predicted_NP, strict=True):
        parts = (true_P[true_P == predicted_P], predicted_P, true_P)
        per_image.append([np.bincount(part, minlength=NUM_CLASSES) for part in parts])

    return {
        "sample_ids_N": np.arange(len(true_NP)),
        "counts_N3C": np.array(per_image, np.int64),
    }


def slow_score(metric: str, images: np.ndarray[Any, Any]) -> float:
    """Return the score of these images, copied as often as they are named."""
    # By scikit-learn where it has the score.
    if metric in SEGMENTATION:
        true_P, predicted_P = (plane_NP[images].ravel() for plane_NP in pixels())
        if metric == "pixel_accuracy":
            return float((true_P == predicted_P).mean())
        classes = np.union1d(true_P, predicted_P)
        if metric.startswith("dice"):
            return float(
                f1_score(
                    true_P,
                    predicted_P,
                    labels=classes[classes > 0],
                    average="macro",
                )
            )
        return float(jaccard_score(true_P, predicted_P, labels=classes, average="macro"))
    if metric in TOP:
        return float((ranked()["ranks_N"][images] < TOP[metric]).mean())
    evidence = {name: torch.from_numpy(tensor[images]) for name, tensor in classified().items()}
    scores, positives, difficult = (
        evidence[name] for name in ("scores_NC", "positives_NC", "difficult_NC")
    )
    if metric == "first_positive_accuracy":
        return first_positive_accuracy(scores, positives)
    ignored = None if metric == "mAP_all_objects" else difficult
    interpolation: Any = "11-point" if metric == "mAP_11_point" else "area"

    return mean_average_precision(scores, positives, ignored, interpolation).value


def evidence_of(metric: str) -> Evidence:
    if metric in TOP:
        return ranked()
    return segmented() if metric in SEGMENTATION else classified()


@pytest.mark.parametrize("metric", SCORED_BY)
def test_a_resample_scores_as_its_images_copied(metric: str) -> None:
    evidence = evidence_of(metric)
    multiplicity_NR = multiplicities_NR(
        len(evidence["sample_ids_N"]),
        60,
        np.random.default_rng(1),
    )
    # The first is the set itself: its score is what the evaluation gave.
    multiplicity_NR[:, 0] = 1
    ours_R = resampled_score_R(metric, evidence, multiplicity_NR)
    images = np.arange(len(multiplicity_NR))
    slow_R = [slow_score(metric, np.repeat(images, column_N)) for column_N in multiplicity_NR.T]

    assert ours_R == pytest.approx(slow_R, abs=1e-12)


def test_multiplicities_are_draws_with_replacement() -> None:
    multiplicity_NR = multiplicities_NR(
        50,
        400,
        np.random.default_rng(0),
    ).astype(int)

    # Every resample is as large as the set.
    assert (multiplicity_NR.sum(axis=0) == 50).all()
    assert multiplicity_NR.var() == pytest.approx(1 - 1 / 50, abs=0.03)  # of a multinomial


def test_one_seeds_interval_is_the_percentiles_of_the_slow_loop() -> None:
    arm, against = (
        ArmScores(name, {(0, 0): 0.0}, {(0, 0): classified(seed=s)})
        for name, s in (("a", 1), ("b", 2))
    )
    ours = compare(arm, against, "mAP", num_resamples=200, seed=5)
    # Drawn as `compare` draws, so that both see the same resamples.
    multiplicity_NR = multiplicities_NR(40, 200, np.random.default_rng(5))
    differences = []
    for column_N in multiplicity_NR.T:
        images = np.repeat(np.arange(40), column_N)
        each = []
        for one in (arm, against):
            evidence = {
                name: torch.from_numpy(tensor[images])
                for name, tensor in one.evidence[0, 0].items()
            }
            each.append(
                mean_average_precision(
                    *(evidence[n] for n in ("scores_NC", "positives_NC", "difficult_NC"))
                )
            )
        differences.append(each[0].value - each[1].value)

    # Around the difference on the images themselves: drawn twice, rare positives raise both.
    around = np.array(differences) - np.mean(differences) + ours.difference
    assert [ours.low, ours.high] == pytest.approx(np.quantile(around, [0.025, 0.975]), abs=1e-12)
    assert ours.resampled == ("images",)
    assert "over images, of one pretraining run and one fine-tuning seed)" in ours.verdict


def study(
    generator: np.random.Generator,
    num_seeds: int,
    seed_spread: float,
    gap: float,
    *,
    num_pretrainings: int = 1,
    pretraining_spread: float = 0.0,
) -> list[ArmScores]:
    """Return two arms whose chance depends on image, arm, pretraining and seed."""
    num_images = 60
    # One difficulty per image for both arms: that is what pairing takes out.
    easy_N = generator.normal(0, 0.1, num_images)
    positives_NC = np.tile(
        np.array([1, 0], np.uint8),
        (num_images, 1),
    )
    arms = []

    for name, skill, count in (("pretrained", 0.5 + gap, num_pretrainings), ("scratch", 0.5, 1)):
        arm = ArmScores(name, values := {}, evidence := {})
        # From scratch there is one pretraining, none at all, and no luck in it.
        luck_P = generator.normal(0, pretraining_spread, count) if count > 1 else np.zeros(1)
        for pretraining, seed in itertools.product(range(count), range(num_seeds)):
            luck = luck_P[pretraining] + generator.normal(0, seed_spread)
            right_N = generator.random(num_images) < skill + easy_N + luck
            evidence[pretraining, seed] = {
                "sample_ids_N": np.arange(num_images),
                "scores_NC": np.stack(
                    [right_N, np.full(num_images, 0.5)],
                    axis=1,
                ),
                "positives_NC": positives_NC,
                "difficult_NC": np.zeros_like(positives_NC),
            }
            values[pretraining, seed] = float(right_N.mean())
        arms.append(arm)

    return arms


@pytest.mark.parametrize(
    ("num_seeds", "seed_spread"),
    [
        (1, 0.0),
        (2, 0.15),
        (3, 0.0),
        (3, 0.15),
        (6, 0.05),
    ],
)
def test_intervals_cover_the_truth(num_seeds: int, seed_spread: float) -> None:
    """About 95 % of 200 studies, 88 % with 2 seeds; a plain bootstrap of 3 seeds has 77 %."""
    generator = np.random.default_rng(num_seeds)
    covered = 0
    for number in range(200):
        pretrained, scratch = study(generator, num_seeds, seed_spread, gap=0.1)
        found = compare(
            pretrained, scratch, "first_positive_accuracy", num_resamples=200, seed=number
        )
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= 0.1 <= found.high

    assert (0.84 if num_seeds == 2 else 0.90) <= covered / 200 <= 0.995


@pytest.mark.parametrize(
    ("num_pretrainings", "pretraining_spread", "seed_spread"),
    [
        (2, 0.1, 0.0),
        (3, 0.1, 0.05),
        (3, 0.0, 0.1),
        (4, 0.05, 0.05),
    ],
)
def test_intervals_cover_the_truth_over_pretraining_seeds_too(
    num_pretrainings: int, pretraining_spread: float, seed_spread: float
) -> None:
    """Known variance components; counted as fine-tuning seeds, 83 to 90 % would be covered."""
    generator = np.random.default_rng(num_pretrainings)
    covered = 0
    for number in range(200):
        pretrained, scratch = study(
            generator,
            3,
            seed_spread,
            gap=0.1,
            num_pretrainings=num_pretrainings,
            pretraining_spread=pretraining_spread,
        )
        found = compare(
            pretrained, scratch, "first_positive_accuracy", num_resamples=200, seed=number
        )
        assert found.resampled == ("pretraining", "seeds", "images")
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= 0.1 <= found.high

    assert covered / 200 >= 0.90


def test_pretraining_seeds_are_paired_and_complete() -> None:
    values: dict[RunKey, float] = {(p, s): 0.5 + p / 10 + s / 100 for p in (0, 1) for s in (0, 1)}
    arm = ArmScores("gan", values)
    shifted = {key: value - 0.1 for key, value in values.items()}
    found = compare(arm, ArmScores("l1", shifted))

    assert found.difference == pytest.approx(0.1)
    assert (found.low, found.high) == (
        pytest.approx(0.1),
        pytest.approx(0.1),
    )
    assert "over fine-tuning seeds and pretraining seeds)" in found.verdict

    against_scratch = compare(
        arm,
        ArmScores(
            "scratch",
            {(0, 0): 0.4, (0, 1): 0.41},
        ),
    )

    assert against_scratch.difference == pytest.approx(0.15)
    with pytest.raises(UsageError, match=r"pretrained with seeds 0, 1, l1 with 0, 2"):
        compare(
            arm,
            ArmScores(
                "l1",
                {(p, s): 0.5 for p in (0, 2) for s in (0, 1)},
            ),
        )
    with pytest.raises(UsageError, match="no run with pretraining seed 1 and seed 1"):
        compare(
            arm,
            ArmScores(
                "l1",
                {(0, 0): 0.5, (0, 1): 0.5, (1, 0): 0.5},
            ),
        )


def test_a_narrow_difference_does_not_survive_many_comparisons() -> None:
    clear = dataclasses.replace(NOTHING, difference=0.3, spread=Spread(((0.01, 0.0), (0.01, 0.5))))
    narrow = dataclasses.replace(clear, difference=0.02, spread=Spread(((0.0099, 0.0),)))

    assert survives_many(clear, 10) and survives_many(narrow, 1)
    assert not survives_many(narrow, 2)
    worse = dataclasses.replace(narrow, difference=-0.02)

    assert not survives_many(worse, 2)


@pytest.mark.parametrize("freedom", [1, 1.5, 2, 3.7, 9, 40, 1000])
@pytest.mark.parametrize("probability", [0.8, 0.975, 1 - 0.025 / 9, 1 - 0.025 / 100])
def test_students_quantile_is_scipys(freedom: float, probability: float) -> None:
    exact = float(student.ppf(probability, freedom))
    assert student_quantile(1 / freedom, probability) == pytest.approx(exact, rel=2e-3)


@pytest.mark.parametrize("num_pretrainings", [3, 10])
def test_few_studies_of_nothing_have_a_difference_that_stays(num_pretrainings: int) -> None:
    """Nine comparisons of equal arms: 5 % of studies; by normal quantiles 21 % with three runs."""
    generator = np.random.default_rng(0)
    studies = np.zeros(300, bool)
    for number in range(300):
        for _ in range(9):
            of_images = generator.normal(0, 0.2)
            differences_PS = of_images + generator.normal(0, 0.6, (num_pretrainings, 1))
            mean = float(differences_PS.mean())
            resampled_R = generator.normal(mean, 0.2, 300)
            over_all_R, spread = over_runs(differences_PS, resampled_R, generator)
            low, high = np.quantile(over_all_R, [0.025, 0.975])
            found = dataclasses.replace(NOTHING, difference=mean, low=low, high=high, spread=spread)
            studies[number] |= found.is_difference and survives_many(found, 9)

    assert studies.mean() <= 0.09


def test_a_clear_difference_is_shown_and_the_same_again() -> None:
    pretrained, scratch = study(
        np.random.default_rng(0),
        3,
        0.01,
        gap=0.3,
    )
    found, again, other = (
        compare(pretrained, scratch, "first_positive_accuracy", num_resamples=300, seed=seed)
        for seed in (0, 0, 1)
    )

    assert found == again != other
    assert found.verdict.startswith("pretrained is better by ")
    assert found.resampled == (
        "seeds",
        "images",
    )
    assert found.difference == pytest.approx(found.means[0] - found.means[1])
    assert found.deviations[0] == pytest.approx(
        np.std(
            list(pretrained.values.values()),
            ddof=1,
        )
    )

    reverse = compare(scratch, pretrained, "first_positive_accuracy", num_resamples=300)
    assert reverse.verdict.startswith("scratch is worse by ")


@pytest.mark.parametrize("num_seeds", [1, 3])
def test_identical_arms_show_no_difference(num_seeds: int) -> None:
    arm, _ = study(
        np.random.default_rng(1),
        num_seeds,
        0.1,
        gap=0.0,
    )
    found = compare(arm, arm, "first_positive_accuracy", num_resamples=100)

    assert (found.difference, found.low, found.high) == (0, 0, 0)
    assert found.verdict.startswith("no difference shown (0.0 points, 95 % interval 0.0 to 0.0")


def test_plain_values_vary_over_seeds_alone() -> None:
    values: dict[RunKey, float] = {(0, 0): 0.52, (0, 1): 0.54, (0, 2): 0.53}
    better = compare(
        ArmScores("pretrained", values),
        ArmScores(
            "scratch",
            {s: v - 0.03 for s, v in values.items()},
        ),
    )

    assert better.verdict == (
        "pretrained is better by 3.0 points (95 % interval 3.0 to 3.0 over fine-tuning seeds, "
        "of one pretraining run)"
    )

    noisy = compare(
        ArmScores("pretrained", values),
        ArmScores(
            "scratch",
            {(0, 0): 0.53, (0, 1): 0.50, (0, 2): 0.54},
        ),
    )
    half_width = 4.303 * np.std([-0.01, 0.04, -0.01], ddof=1) / math.sqrt(3)  # Student's

    assert noisy.low is not None
    assert noisy.high is not None
    assert noisy.verdict.startswith("no difference shown (0.7 ")
    assert 0.7 < (noisy.high - noisy.low) / (2 * half_width) < 1.3

    single = compare(
        ArmScores("pretrained", {(0, 4): 0.6}),
        ArmScores("scratch", {(0, 4): 0.5}),
    )

    assert (
        single.low,
        single.deviations,
        single.resampled,
    ) == (None, (None, None), ())
    assert single.verdict == "no difference shown (10.0 points with one seed, no interval)"


@pytest.mark.parametrize(
    ("interval", "words"),
    [
        ((0.012, 0.004, 0.021), "pretrained is better by 1.2 points (95 % interval 0.4 to 2.1"),
        ((-0.012, -0.021, -0.004), "pretrained is worse by 1.2 points (95 % interval -2.1 to -0.4"),
        ((-0.0001, -0.009, 0.004), "no difference shown (0.0 points, 95 % interval -0.9 to 0.4"),
    ],
)
def test_verdicts_in_words(interval: tuple[float, float, float], words: str) -> None:
    said = verdict("pretrained", *interval, ["images", "fine-tuning seeds"])
    assert said == f"{words} over images and fine-tuning seeds)"


@pytest.mark.parametrize(
    ("pretrainings", "seeds", "frozen", "words"),
    [
        (1, 3, False, "over images and fine-tuning seeds, of one pretraining run)"),
        (3, 1, False, "over images and pretraining seeds, of one fine-tuning seed)"),
        (3, 1, True, "over images and pretraining seeds)"),
        (3, 3, False, "over images, fine-tuning seeds and pretraining seeds)"),
    ],
)
def test_a_verdict_says_what_it_is_over_and_what_there_is_one_of(
    pretrainings: int, seeds: int, frozen: bool, words: str
) -> None:
    arms = study(np.random.default_rng(0), seeds, 0.05, 0.1, num_pretrainings=pretrainings)
    found = compare(*arms, "first_positive_accuracy", frozen=frozen, num_resamples=50)
    assert found.verdict.endswith(words)


def test_unequal_arms_are_refused() -> None:
    one = ArmScores(
        "pretrained",
        {(0, 0): 0.5, (0, 1): 0.6},
    )
    two = ArmScores(
        "scratch",
        {(0, 0): 0.5, (0, 2): 0.6},
    )

    with pytest.raises(
        UsageError, match=r"pretrained was trained with seeds 0, 1, scratch with 0, 2: a fair"
    ):
        compare(one, two)
    with pytest.raises(UsageError, match=r"seeds none"):
        compare(ArmScores("pretrained", {}), ArmScores("scratch", {}))

    other = classified(seed=2)
    other["positives_NC"] = 1 - other["positives_NC"]
    for evidence in (classified(39, seed=2), other):
        arms = [
            ArmScores(name, {(0, 0): 0.5}, {(0, 0): each})
            for name, each in (("a", classified(seed=1)), ("b", evidence))
        ]
        with pytest.raises(
            UsageError, match=r"b with seed 0 was scored on other images than a with seed 0 \("
        ):
            compare(*arms, "mAP")


def test_evaluation_folders_are_read_as_they_are_written(tmp_path: Path) -> None:
    arms: dict[str, dict[RunKey, Path]] = {"pretrained": {}, "scratch": {}}
    for name, folders in arms.items():
        for seed in (0, 1):
            data = {
                k: torch.from_numpy(v)
                for k, v in classified(seed=10 * seed, skill=0.1 * len(name)).items()
            }
            batch: Any = SimpleNamespace(
                sample_ids_B=data["sample_ids_N"],
                classes_BC=data["positives_NC"].float(),
                difficult_BC=data["difficult_NC"].bool(),
            )
            folders[0, seed] = tmp_path / f"{name}-{seed}"
            evaluation = score_classifier(
                [(batch, data["scores_NC"])], Ranks.single(), small_config("classifier")
            )
            write_evaluation(
                folders[0, seed],
                evaluation,
                {"kind": "classifier"},
            )
    for metric in ("mAP", "mAP_11_point", "mAP_all_objects", "first_positive_accuracy"):
        found = compare(
            *(read_arm(name, folders, metric) for name, folders in arms.items()),
            metric,
            num_resamples=50,
        )
        assert found.resampled == ("seeds", "images")
        assert found.seeds == (0, 1)
        assert found.low is not None
        assert found.high is not None
        assert found.low <= found.difference <= found.high

    with pytest.raises(UsageError, match=r"scratch-0: has no score 'mIoU'; it has "):
        read_arm("scratch", arms["scratch"], "mIoU")
    with pytest.raises(UsageError, match=r"nowhere: the evaluation cannot be read"):
        read_arm(
            "scratch",
            {(0, 0): tmp_path / "nowhere"},
            "mAP",
        )

    foreign = arms["scratch"][0, 0] / "per_image.safetensors"
    foreign.write_bytes((arms["pretrained"][0, 0] / "per_image.safetensors").read_bytes())
    with pytest.raises(
        UsageError, match=r"scratch-0: mAP is .* in scores.json and .* by per_image.safetensors"
    ):
        read_arm("scratch", arms["scratch"], "mAP")

    foreign.write_bytes(b"damaged")
    with pytest.raises(UsageError, match=r"per_image.safetensors: cannot be read"):
        read_arm("scratch", arms["scratch"], "mAP")


def test_scores_that_the_evidence_does_not_give_are_compared_by_seed(tmp_path: Path) -> None:
    """Own-size counts give that size's IoU, never the paper's, which has void as background."""
    counts = {name: torch.from_numpy(tensor) for name, tensor in segmented().items()}
    own_size = slow_score("mIoU", np.arange(12))
    scores = {"mIoU_own_size": own_size, "mIoU": 0.4, "mIoU_void_as_background": 0.3}
    write_evaluation(
        tmp_path / "own",
        Evaluation(
            SavedEvaluation(scores=scores),
            per_image=counts,
        ),
        {},
    )
    write_evaluation(
        tmp_path / "squashed",
        Evaluation(SavedEvaluation(scores={"mIoU": own_size}), per_image=counts),
        {},
    )
    write_evaluation(
        tmp_path / "boxes",
        Evaluation(SavedEvaluation(scores={"AP50": 0.2})),
        {},
    )

    for folder, metric, has_evidence in (
        ("own", "mIoU_own_size", True),
        ("own", "mIoU", False),
        ("own", "mIoU_void_as_background", False),
        ("squashed", "mIoU", True),
        ("boxes", "AP50", False),
    ):
        arm = read_arm(
            "pretrained",
            {(0, 0): tmp_path / folder},
            metric,
        )
        assert bool(arm.evidence) == has_evidence, (folder, metric)


@pytest.mark.parametrize("num_positives", [1, 0])
def test_resamples_without_a_positive_leave_the_interval_whole(num_positives: int) -> None:
    """A class with one positive misses from a third of the resamples; with none, seeds remain."""
    draws = np.random.default_rng(0)
    positives_NC = (np.arange(20) < num_positives)[:, None].astype(np.uint8)
    arms = []
    for name, skill in (("pretrained", 1.0), ("scratch", 0.0)):
        evidence = {
            (0, seed): {
                "sample_ids_N": np.arange(20),
                "scores_NC": (skill * positives_NC + draws.normal(size=(20, 1))).astype(np.float32),
                "positives_NC": positives_NC,
                "difficult_NC": np.zeros_like(positives_NC),
            }
            for seed in range(3)
        }
        arms.append(
            ArmScores(
                name,
                {key: 0.5 + skill / 10 + key[1] / 100 for key in evidence},
                evidence,
            )
        )
    found = compare(*arms, "mAP", num_resamples=200)

    assert found.low is not None
    assert found.high is not None
    assert found.low <= found.high
    assert found.resampled == (("seeds", "images") if num_positives else ("seeds",))
