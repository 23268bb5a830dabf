"""Two arms of a study compared fairly: the same seeds, the same test images, and an interval that says how sure it is.

`compare` takes what each arm scored by seed, with the per-image evidence of its evaluation folders where there is some
(`read_arm`), and gives means, deviations, the paired difference, its 95 % interval and the verdict in words. Called by
launcher/study.py; plain numpy, the same result for the same seed.

N images, S seeds, R resamples.
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

from colorgan.errors import UsageError
from colorgan.study.bootstrap import (
    SCORED_BY,
    Evidence,
    Floats,
    multiplicities_NR,
    over_seeds_R,
    resampled_score_R,
)

LEVEL = 0.95
NUM_RESAMPLES = 2000
# What is the same for every model that is scored on the same images with the same labels.
_LABELS = ("sample_ids_N", "positives_NC", "difficult_NC")


@dataclass(frozen=True)
class ArmScores:
    """What one arm scored.

    Attributes:
        name: as the verdict calls it.
        values: the score of each seed, a share in [0, 1].
        evidence: the per-image tensors of each seed; empty where there are none for this score.
    """

    name: str
    values: Mapping[int, float]
    evidence: Mapping[int, Evidence] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """Shares in [0, 1], like the scores; a deviation or an interval that cannot be told is None.

    Attributes:
        means: of the arm and of the one it is held against.
        deviations: over seeds, with S - 1 in the denominator; None for one seed.
        difference: arm less against, the mean over seeds of the paired differences.
        low: lower end of the 95 % interval of the difference.
        high: its upper end.
        resampled: what the interval accounts for.
        verdict: the difference and its interval in words, in points of a hundred.
    """

    arm: str
    against: str
    seeds: tuple[int, ...]
    means: tuple[float, float]
    deviations: tuple[float | None, float | None]
    difference: float
    low: float | None
    high: float | None
    resampled: Literal["seeds and images", "seeds", "images", "nothing"]
    verdict: str
    level: float = LEVEL


def read_arm(name: str, folders: Mapping[int, Path], metric: str) -> ArmScores:
    """Read an arm's evaluation folders, one a seed.

    The per-image evidence is taken where it is the score's own: not for scores that it does not give (detection,
    void as background), and not where it was counted at the pictures' own size and the score was not.

    Raises:
        UsageError: A folder holds no evaluation, or not this score, or evidence that gives another score.
    """
    values = {seed: _recorded(folder, metric) for seed, folder in folders.items()}
    evidence = {seed: _evidence(folder, metric) for seed, folder in folders.items()}
    for seed, tensors in evidence.items():
        if tensors and not abs(_points(metric, tensors) - values[seed]) < 1e-6:
            raise UsageError(
                f"{folders[seed]}: scores.json says {metric} {values[seed]:.6f}, per_image.safetensors gives "
                f"{_points(metric, tensors):.6f}: score the model again with launcher/evaluate.py --out"
            )
    return ArmScores(name, values, {seed: tensors for seed, tensors in evidence.items() if tensors})


def _scores(folder: Path) -> dict[str, Any]:
    try:
        scores = json.loads((folder / "scores.json").read_text())["scores"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{folder}: no evaluation that can be read here ({error}): run launcher/evaluate.py --out {folder}"
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
            f"{path}: cannot be read ({error}): score the model again with launcher/evaluate.py --out"
        ) from error


def _points(metric: str, evidence: Evidence) -> float:
    """The score of the images themselves, each once."""
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
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> Comparison:
    """Compare two arms over the seeds that both were trained with.

    The interval is a paired two-way percentile bootstrap: a resample draws S of the seeds and N of the test images,
    both with replacement and independently (Owen, The pigeonhole bootstrap, Annals of Applied Statistics 1, 2007), and
    takes the same seeds and images for both arms (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter
    13, for percentiles). Resampling three seeds understates what a fourth could do: the interval would cover the truth
    in 77 % of studies. Hence two corrections of Hesterberg, What Teachers Should Know About the Bootstrap, The American
    Statistician 69, 2015: the seeds' deviations are widened by sqrt(S / (S - 1)), and all by t / z with Student's t
    of as many degrees of freedom as Satterthwaite (Biometrics Bulletin 2, 1946) gives the sum of both variances, S - 1
    where the seeds make all of it. Simulated, 92 to 99 % of intervals then cover the truth, for 2 to 10 seeds.

    With one seed the interval is over images alone, without evidence over seeds alone, and the verdict says so.

    Args:
        metric: the score's name; needed with evidence alone.
        num_resamples: R.
        seed: of the resamples.

    Raises:
        UsageError: The arms have other seeds, or were scored on other images.
    """
    seeds = _common_seeds(arm, against)
    differences_S = np.array([arm.values[each] - against.values[each] for each in seeds])
    with_images = len(arm.evidence) == len(against.evidence) == len(seeds)
    generator = np.random.default_rng(seed)
    resampled_R = np.full(num_resamples, differences_S.mean())
    if with_images:
        _check_images(arm, against)
        drawn_R = _resampled_difference_R(arm, against, metric, num_resamples, generator)
        drawn_R = drawn_R[~np.isnan(drawn_R)]  # a resample without any positive has no score
        with_images = len(drawn_R) > 1
        resampled_R = drawn_R if with_images else resampled_R
    low, high = None, None
    if with_images or len(seeds) > 1:
        tail = (1 - LEVEL) / 2
        over_both_R = over_seeds_R(differences_S, resampled_R, generator)
        low, high = (float(limit) for limit in np.nanquantile(over_both_R, [tail, 1 - tail]))
    difference = float(differences_S.mean())
    resampled = _resampled(len(seeds), with_images)
    return Comparison(
        arm=arm.name,
        against=against.name,
        seeds=tuple(seeds),
        means=(_mean(arm), _mean(against)),
        deviations=(_deviation(arm), _deviation(against)),
        difference=difference,
        low=low,
        high=high,
        resampled=resampled,
        verdict=verdict(arm.name, difference, low, high, resampled),
    )


def _mean(arm: ArmScores) -> float:
    return statistics.fmean(arm.values.values())


def _deviation(arm: ArmScores) -> float | None:
    return statistics.stdev(arm.values.values()) if len(arm.values) > 1 else None


def _common_seeds(arm: ArmScores, against: ArmScores) -> list[int]:
    if not arm.values or set(arm.values) != set(against.values):
        raise UsageError(
            f"{arm.name} was trained with seeds {_listed(arm.values)}, {against.name} with {_listed(against.values)}: "
            "a fair comparison needs the same seeds on both sides, and at least one"
        )
    return sorted(arm.values)


def _listed(seeds: Mapping[int, float]) -> str:
    return ", ".join(map(str, sorted(seeds))) or "none"


def _check_images(arm: ArmScores, against: ArmScores) -> None:
    """Every evaluation has the same images with the same labels: sample numbers alone are alike in any two sets."""
    (first_seed, first), *_ = arm.evidence.items()
    for one in (arm, against):
        for seed, evidence in one.evidence.items():
            if not all(
                np.array_equal(a, b) for a, b in zip(_labels(first), _labels(evidence), strict=True)
            ):
                raise UsageError(
                    f"{one.name} with seed {seed} was scored on other images than {arm.name} with seed {first_seed} "
                    f"({_num_images(evidence):,} and {_num_images(first):,}, or other labels): score both on one set"
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
    """The mean over all seeds of the difference on each resample of the images."""
    num_images = _num_images(next(iter(arm.evidence.values())))
    multiplicity_NR = multiplicities_NR(num_images, num_resamples, generator)
    mean_of = [
        np.mean(
            [
                resampled_score_R(metric, tensors, multiplicity_NR)
                for tensors in one.evidence.values()
            ],
            axis=0,
        )
        for one in (arm, against)
    ]
    difference_R: Floats = mean_of[0] - mean_of[1]
    return difference_R


def _resampled(
    num_seeds: int, with_images: bool
) -> Literal["seeds and images", "seeds", "images", "nothing"]:
    if num_seeds > 1:
        return "seeds and images" if with_images else "seeds"
    return "images" if with_images else "nothing"


def verdict(
    name: str, difference: float, low: float | None, high: float | None, resampled: str
) -> str:
    """The difference in words, in points of a hundred: `pretrained is better by 1.2 points (95 % interval ...)`."""
    if low is None or high is None:
        return f"no difference shown ({_points_text(difference)} points with one seed, no interval)"
    limits = {"seeds": ", over seeds alone", "images": ", over images alone, one seed"}.get(
        resampled, ""
    )
    interval = f"95 % interval {_points_text(low)} to {_points_text(high)}{limits}"
    if low > 0 or high < 0:
        word = "better" if low > 0 else "worse"
        return f"{name} is {word} by {_points_text(abs(difference))} points ({interval})"
    return f"no difference shown ({_points_text(difference)} points, {interval})"


def _points_text(share: float) -> str:
    """One decimal, and never -0.0."""
    return f"{round(100 * share, 1) + 0.0:.1f}"
