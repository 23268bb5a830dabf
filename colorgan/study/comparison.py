"""Compare two arms fairly: the same seeds, the same test images, an interval for the difference.

`read_arm` reads each run's score and the per-image evidence in its evaluation folder; `compare`
returns means, deviations, the paired difference, its 95 % interval and the verdict in words. Plain
numpy; the same seed gives the same result.

N images, P pretraining seeds, S fine-tuning seeds, R resamples.
"""

# ruff: noqa: N802 (a function's name ends in the shape that it returns)

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from colorgan.config.recipe import SCRATCH
from colorgan.errors import UsageError
from colorgan.study.bootstrap import (
    SCORED_BY,
    Evidence,
    Floats,
    Spread,
    multiplicities_NR,
    over_runs,
    resampled_score_R,
)
from colorgan.study.protocols import RANDOM
from colorgan.study.record import leaves_out_zero

RunKey = tuple[int, int]  # pretraining seed, fine-tuning seed
Level = Literal["pretraining", "seeds", "images"]

LEVEL = 0.95
NUM_RESAMPLES = 2000
# Equal for all models that are scored on the same images with the same labels.
_LABELS = ("sample_ids_N", "labels_N", "positives_NC", "difficult_NC")


@dataclass(frozen=True)
class ArmScores:
    """The scores of one arm.

    Attributes:
        name: of the arm, for the verdict.
        values: the score of each run, a share in [0, 1].
        evidence: the per-image tensors of each run; empty if the score has none.
    """

    name: str
    values: Mapping[RunKey, float]
    evidence: Mapping[RunKey, Evidence] = field(default_factory=dict)

    @property
    def pretraining_seeds(self) -> list[int]:
        """The seeds of its pretraining, sorted; scratch has one."""
        return sorted({pretraining for pretraining, _ in self.values})

    @property
    def seeds(self) -> list[int]:
        """The seeds of its fine-tuning, sorted."""
        return sorted({seed for _, seed in self.values})


@dataclass(frozen=True)
class Comparison:
    """The difference of two arms; shares in [0, 1], like the scores.

    Attributes:
        means: of the arm and of the one it is compared with.
        deviations: over runs, with n - 1 in the denominator; None for one run.
        difference: arm less against, the mean of the paired differences.
        low: lower end of the 95 % interval of the difference; None without an interval.
        high: its upper end.
        resampled: the levels that the interval accounts for.
        verdict: the difference and its interval in words, in points of a hundred.
        level: share of studies whose interval is to cover the truth.
        spread: of the difference; None without an interval.
    """

    arm: str
    against: str
    seeds: tuple[int, ...]
    pretraining_seeds: tuple[int, ...]
    means: tuple[float, float]
    deviations: tuple[float | None, float | None]
    difference: float
    low: float | None
    high: float | None
    resampled: tuple[Level, ...]
    verdict: str
    level: float = LEVEL
    spread: Spread | None = None

    @property
    def is_difference(self) -> bool:
        """Whether the interval leaves 0 out."""
        return leaves_out_zero(self.low, self.high)


def survives_many(comparison: Comparison, num_comparisons: int) -> bool:
    """Return whether 0 stays out of the interval at Bonferroni's level.

    With n comparisons the level is 1 - 0.05 / n. Asked of Student's distribution: so far out, the
    few ways to draw three seeds say nothing. Simulated, 5 % of studies or fewer then have one
    difference that stays where there is none.
    """
    assert comparison.spread is not None
    tail = (1 - comparison.level) / 2
    limit = comparison.spread.half_width(1 - tail / num_comparisons)
    return abs(comparison.difference) > limit


def read_arm(name: str, folders: Mapping[RunKey, Path], metric: str) -> ArmScores:
    """Read an arm's evaluation folders, one per run.

    The per-image evidence is used only if the score follows from it: not for detection or void as
    background, and not if it was counted at the images' own size and the score was not.

    Raises:
        UsageError: A folder holds no evaluation, or not this score, or evidence that gives another
            score.
    """
    values = {run: _recorded(folder, metric) for run, folder in folders.items()}
    evidence = {}
    for run, folder in folders.items():
        tensors = _evidence(folder, metric)
        if not tensors:
            continue

        # Recomputed and compared: evidence of another evaluation would give an interval around
        # another score.
        points = _points(metric, tensors)
        if not abs(points - values[run]) < 1e-6:
            raise UsageError(
                f"{folder}: {metric} is {values[run]:.6f} in scores.json and {points:.6f} by "
                "per_image.safetensors: score the model again with launcher/evaluate.py --out"
            )
        evidence[run] = tensors
    return ArmScores(name, values, evidence)


def _scores(folder: Path) -> dict[str, Any]:
    try:
        scores = json.loads((folder / "scores.json").read_text())["scores"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{folder}: the evaluation cannot be read ({error}): run launcher/evaluate.py "
            f"--out {folder}"
        ) from error
    return dict(scores)


def _recorded(folder: Path, metric: str) -> float:
    scores = _scores(folder)
    if not isinstance(scores.get(metric), int | float):
        raise UsageError(f"{folder}: has no score {metric!r}; it has {', '.join(sorted(scores))}")
    return float(scores[metric])


def _evidence(folder: Path, metric: str) -> Evidence:
    path = folder / "per_image.safetensors"
    counted_at_own_size = "mIoU_own_size" in _scores(folder)
    of_counts = metric in ("mIoU", "dice", "pixel_accuracy")
    if metric not in SCORED_BY or not path.is_file() or (counted_at_own_size and of_counts):
        return {}
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UsageError(
            f"{path}: cannot be read ({error}): score the model again with "
            "launcher/evaluate.py --out"
        ) from error


def _points(metric: str, evidence: Evidence) -> float:
    """Return the score of the images themselves, each once."""
    return float(
        resampled_score_R(metric, evidence, np.ones((_num_images(evidence), 1), np.uint8))[0]
    )


def _num_images(evidence: Evidence) -> int:
    return len(evidence["sample_ids_N"])


def compare(
    arm: ArmScores,
    against: ArmScores,
    metric: str = "",
    *,
    frozen: bool = False,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> Comparison:
    """Compare two arms over the seeds that both were trained with.

    The interval is a paired percentile bootstrap over up to three levels: a resample draws P of the
    pretraining seeds, S of the fine-tuning seeds and N of the test images, with replacement and
    independently of each other (Owen, The pigeonhole bootstrap, Annals of Applied Statistics 1,
    2007), the same for both arms (Efron and Tibshirani, An Introduction to the Bootstrap, 1993,
    chapter 13, for percentiles). An arm with one pretraining, like scratch, is paired with every
    pretraining seed of the other.

    Resampling three seeds understates what a fourth could do: the interval would cover the truth in
    77 % of studies. Hence two corrections of Hesterberg, What Teachers Should Know About the
    Bootstrap, The American Statistician 69, 2015: the deviations of n seeds are widened by sqrt(n /
    (n - 1)), and all by t / z with Student's t of the degrees of freedom that Satterthwaite
    (Biometrics Bulletin 2, 1946) gives the sum of the variances. Simulated, 86 to 88 % of intervals
    then cover the truth for 2 seeds, 92 to 99 % for 3 to 10, of either kind; counting pretraining
    seeds as fine-tuning seeds gives 83 to 90 %. The lowest shares are those of studies in which
    seeds matter far more than images.

    A level of one seed is not resampled, and without evidence the images are not; the verdict names
    the levels.

    Args:
        arm: its scores.
        against: those of the arm that it is compared with.
        metric: the score's name; needed with evidence alone.
        frozen: the features are; there is no fine-tuning whose seed could matter.
        num_resamples: R.
        seed: of the resamples.

    Raises:
        UsageError: the arms have other seeds, or were scored on other images.
    """
    # Paired: luck that both arms share, such as an easy test set, cancels out.
    differences_PS = _paired_differences_PS(arm, against)
    arms = (arm, against)
    difference = float(differences_PS.mean())
    generator = np.random.default_rng(seed)
    # Without images every resample has the images' own difference.
    resampled_R = np.full(num_resamples, difference)
    levels: list[Level] = []
    if differences_PS.shape[0] > 1:
        levels.append("pretraining")
    if differences_PS.shape[1] > 1:
        levels.append("seeds")

    if all(len(each.evidence) == len(each.values) for each in (arm, against)):
        # Before anything is drawn: images are paired by their place.
        _check_images(arm, against)
        drawn_R = _resampled_difference_R(arm, against, metric, num_resamples, generator)
        drawn_R = drawn_R[~np.isnan(drawn_R)]  # a resample without any positive has no score
        if len(drawn_R) > 1:
            levels.append("images")
            resampled_R = drawn_R

    low, high, spread = None, None, None
    if levels:
        tail = (1 - LEVEL) / 2
        over_all_R, spread = over_runs(differences_PS, resampled_R, generator)
        low, high = (float(limit) for limit in np.nanquantile(over_all_R, [tail, 1 - tail]))
    return Comparison(
        arm=arm.name,
        against=against.name,
        seeds=tuple(arm.seeds),
        pretraining_seeds=tuple(sorted({*arm.pretraining_seeds, *against.pretraining_seeds})),
        means=(_mean(arm), _mean(against)),
        deviations=(_deviation(arm), _deviation(against)),
        difference=difference,
        low=low,
        high=high,
        resampled=tuple(levels),
        verdict=verdict(
            arm.name, difference, low, high, _resampled(arms, levels), _single(arms, frozen)
        ),
        spread=spread,
    )


def _resampled(arms: Sequence[ArmScores], levels: Sequence[Level]) -> list[str]:
    """Return what the interval is over, in words."""
    words = {"images": "images", "seeds": "fine-tuning seeds", "pretraining": "pretraining seeds"}
    # Random weights may be drawn more than once where one network was pretrained.
    if all(each.name == RANDOM for each in arms if len(each.pretraining_seeds) > 1):
        words["pretraining"] = "random weights"
    return [words[level] for level in words if level in levels]


def _single(arms: Sequence[ArmScores], frozen: bool) -> list[str]:
    """Return what there is only one of, so that the interval says nothing of another one."""
    single = []
    pretrained = [each for each in arms if each.name not in (SCRATCH, RANDOM)]
    if any(len(each.pretraining_seeds) == 1 for each in pretrained):
        single.append("one pretraining run")
    if len(arms[0].seeds) == 1 and not frozen:
        single.append("one fine-tuning seed")
    return single


def _mean(arm: ArmScores) -> float:
    return statistics.fmean(arm.values.values())


def _deviation(arm: ArmScores) -> float | None:
    # n - 1: the runs are a sample of all seeds.
    return statistics.stdev(arm.values.values()) if len(arm.values) > 1 else None


def _paired_differences_PS(arm: ArmScores, against: ArmScores) -> Floats:
    """Return arm less against for each pretraining seed (rows) and fine-tuning seed (columns)."""
    if not arm.values or arm.seeds != against.seeds:
        raise UsageError(
            f"{arm.name} was trained with seeds {_listed(arm.seeds)}, {against.name} with "
            f"{_listed(against.seeds)}: a fair comparison needs the same seeds on both sides, and "
            "at least one"
        )

    # Scratch has one row, which numpy repeats for every pretraining seed.
    rows, other_rows = arm.pretraining_seeds, against.pretraining_seeds
    if len(rows) > 1 and len(other_rows) > 1 and rows != other_rows:
        raise UsageError(
            f"{arm.name} was pretrained with seeds {_listed(rows)}, {against.name} with "
            f"{_listed(other_rows)}: a fair comparison needs the same seeds on both sides"
        )
    # Every seed with every other: gaps would make the means of rows incomparable.
    values_PS, others_PS = _matrix_PS(arm), _matrix_PS(against)
    differences_PS: Floats = values_PS - others_PS
    return differences_PS


def _matrix_PS(arm: ArmScores) -> Floats:
    missing = [
        (pretraining, seed)
        for pretraining in arm.pretraining_seeds
        for seed in arm.seeds
        if (pretraining, seed) not in arm.values
    ]
    if missing:
        raise UsageError(
            f"{arm.name} has no run with pretraining seed {missing[0][0]} and seed "
            f"{missing[0][1]}: every pretraining seed needs every fine-tuning seed"
        )
    rows = [[arm.values[row, seed] for seed in arm.seeds] for row in arm.pretraining_seeds]
    return np.array(rows, dtype=np.float64)


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds)) or "none"


def _check_images(arm: ArmScores, against: ArmScores) -> None:
    """Check images and labels of all evaluations: sample numbers are alike in any two sets."""
    (first_run, first), *_ = arm.evidence.items()
    for one in (arm, against):
        for run, evidence in one.evidence.items():
            # Labels too: two sets may number different images alike.
            pairs = zip(_labels(first), _labels(evidence), strict=True)
            if not all(np.array_equal(a, b) for a, b in pairs):
                raise UsageError(
                    f"{one.name} with seed {run[1]} was scored on other images than {arm.name} "
                    f"with seed {first_run[1]} ({_num_images(evidence):,} and "
                    f"{_num_images(first):,}, or other labels): score both on one set"
                )


def _labels(evidence: Evidence) -> Sequence[NDArray[Any]]:
    known = [evidence.get(name, np.empty(0)) for name in _LABELS]
    return [*known, evidence["counts_N3C"][:, 2] if "counts_N3C" in evidence else np.empty(0)]


def _resampled_difference_R(
    arm: ArmScores,
    against: ArmScores,
    metric: str,
    num_resamples: int,
    generator: np.random.Generator,
) -> Floats:
    """Return the mean over all runs of the difference on each resample of the images."""
    num_images = _num_images(next(iter(arm.evidence.values())))
    # Drawn once for both arms: that is what pairs them.
    multiplicity_NR = multiplicities_NR(num_images, num_resamples, generator)
    means = []
    for one in (arm, against):
        scores = [
            resampled_score_R(metric, each, multiplicity_NR) for each in one.evidence.values()
        ]
        means.append(np.mean(scores, axis=0))
    difference_R: Floats = means[0] - means[1]
    return difference_R


def verdict(
    name: str,
    difference: float,
    low: float | None,
    high: float | None,
    over: Sequence[str],
    single: Sequence[str] = (),
) -> str:
    """Return the difference in words: `pretrained is better by 1.2 points (95 % ...)`.

    Args:
        name: of the arm.
        difference: a share in [0, 1], like the interval.
        low: of the interval; None without one.
        high: of the interval.
        over: what was resampled, in words.
        single: what there is only one of.
    """
    if low is None or high is None:
        return f"no difference shown ({_points_text(difference)} points with one seed, no interval)"

    # What is not resampled is said: the interval is narrower than it looks.
    # What is not resampled is said: the interval is narrower than it looks.
    limits = f", of {' and '.join(single)}" if single else ""
    interval = (
        f"95 % interval {_points_text(low)} to {_points_text(high)} over {_in_words(over)}{limits}"
    )
    if low > 0 or high < 0:
        word = "better" if low > 0 else "worse"
        return f"{name} is {word} by {_points_text(abs(difference))} points ({interval})"
    return f"no difference shown ({_points_text(difference)} points, {interval})"


def _in_words(names: Sequence[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def _points_text(share: float) -> str:
    """Return one decimal, never -0.0."""
    return f"{round(100 * share, 1) + 0.0:.1f}"
