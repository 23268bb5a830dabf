"""A study's folder as plain data: protocols, arms, a value a seed, and the runs behind them where they lie in it.

study.json is written by launcher/study.py; values are shares in [0, 1]. What is damaged is left out and told.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from colorgan.config.settings import show
from colorgan.errors import UsageError
from colorgan.files import entries, mapping, number, read_text, short, whole
from colorgan.probes.record import PROBE, Probe, read_probe
from colorgan.runs.reading import RECIPE, RunFolder, flat, read_run

STUDY = "study.json"
MAX_PROTOCOLS, MAX_ARMS, MAX_SEEDS, MAX_COMPARISONS, MAX_FURTHER = 40, 12, 50, 40, 8
MAX_SOURCE = 600

T = TypeVar("T")


@dataclass(frozen=True)
class ArmValues:
    """One arm by one score: a value a seed."""

    name: str
    values: tuple[float | None, ...]  # in the order of the protocol's seeds; None: not there

    @property
    def known(self) -> list[float]:
        """The values that are there."""
        return [value for value in self.values if value is not None]

    @property
    def mean(self) -> float | None:
        """Over the seeds."""
        return statistics.fmean(self.known) if self.known else None

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation over the seeds; None of one seed."""
        return statistics.stdev(self.known) if len(self.known) > 1 else None


@dataclass(frozen=True)
class StudyArm(ArmValues):
    """One way to start: a value a seed by the headline, and the runs that gave them."""

    settings: str
    runs: tuple[RunFolder, ...]
    probes: tuple[Probe, ...]


@dataclass(frozen=True)
class Comparison:
    """The difference of two arms, paired by seed, with its interval."""

    arm: str
    against: str
    difference: float
    low: float | None
    high: float | None
    level: float
    verdict: str


@dataclass(frozen=True)
class FurtherScore:
    """The same runs by a score that is not the protocol's headline."""

    title: str
    arms: tuple[ArmValues, ...]
    comparisons: tuple[Comparison, ...]


@dataclass(frozen=True)
class StudyProtocol:
    """One protocol of a study."""

    name: str
    title: str
    task: str
    metric: str
    metric_title: str
    source: str
    data_title: str
    train: int | None
    test: int | None
    classes: int | None
    seeds: tuple[str, ...]
    arms: tuple[StudyArm, ...]
    comparisons: tuple[Comparison, ...]
    further: tuple[FurtherScore, ...] = ()

    @property
    def of_the_paper(self) -> bool:
        """Whether it is one of Treneska et al.'s, by its name in colorgan/study/protocols.py."""
        return self.name.startswith("paper-")


@dataclass(frozen=True)
class Study:
    """Everything that a study's folder tells."""

    path: Path
    protocols: tuple[StudyProtocol, ...]
    notes: list[str] = field(default_factory=list)
    of_single_runs: bool = False  # no study.json: compared by colorgan/study/single_runs.py


def read_study(folder: Path) -> Study:
    """Read a study's folder.

    Raises:
        UsageError: study.json is damaged or holds no protocol.
    """
    path = folder / STUDY
    notes: list[str] = []
    try:
        told = entries(mapping(json.loads(read_text(path))).get("protocols"), MAX_PROTOCOLS)
    except (OSError, ValueError, RecursionError):
        told = []
    protocols = tuple(_protocol(folder, mapping(each), notes) for each in told if mapping(each))
    if not protocols:
        raise UsageError(
            f"{path} holds no protocols: write it again with launcher/study.py, or leave {folder} out"
        )
    return Study(folder, protocols, notes)


def _protocol(folder: Path, told: dict[str, Any], notes: list[str]) -> StudyProtocol:
    data = mapping(told.get("data"))
    seeds = tuple(short(seed, 20) for seed in entries(told.get("seeds"), MAX_SEEDS))
    arms = tuple(
        _arm(folder, mapping(each), len(seeds), notes)
        for each in entries(told.get("arms"), MAX_ARMS)
    )
    metric = short(told.get("metric"))
    return StudyProtocol(
        name=short(told.get("name")),
        title=short(told.get("title") or told.get("name")),
        task=short(told.get("task")),
        metric=metric,
        metric_title=short(told.get("metric_title") or metric),
        source=short(told.get("source"), MAX_SOURCE),
        data_title=short(data.get("title"), 300),
        train=whole(data.get("train")),
        test=whole(data.get("test")),
        classes=whole(data.get("classes")),
        seeds=seeds,
        arms=arms,
        comparisons=_comparisons(told),
        further=tuple(
            _further(mapping(each), len(seeds))
            for each in entries(told.get("further"), MAX_FURTHER)
        ),
    )


def _further(told: dict[str, Any], num_seeds: int) -> FurtherScore:
    arms = [mapping(each) for each in entries(told.get("arms"), MAX_ARMS)]
    return FurtherScore(
        title=short(told.get("metric_title") or told.get("metric")),
        arms=tuple(ArmValues(short(arm.get("name"), 40), _values(arm, num_seeds)) for arm in arms),
        comparisons=_comparisons(told),
    )


def _values(arm: dict[str, Any], num_seeds: int) -> tuple[float | None, ...]:
    return tuple(number(value) for value in entries(arm.get("values"), num_seeds))


def _comparisons(told: dict[str, Any]) -> tuple[Comparison, ...]:
    found = (
        _comparison(mapping(each)) for each in entries(told.get("comparisons"), MAX_COMPARISONS)
    )
    return tuple(each for each in found if each is not None)


def _arm(folder: Path, told: dict[str, Any], num_seeds: int, notes: list[str]) -> StudyArm:
    name = short(told.get("name"), 40)
    paths = [str(path) for path in entries(told.get("runs"), num_seeds)]
    inside = [found for path in paths if (found := _inside(folder, path)) is not None]
    if len(inside) < len(paths):
        gone = len(paths) - len(inside)
        notes.append(
            f"{gone} of {len(paths)} runs of {name} are not in {folder}: no curves and classes of theirs."
        )
    return StudyArm(
        name=name,
        settings=short(_settings(mapping(told.get("settings"))), 800),
        values=_values(told, num_seeds),
        runs=tuple(
            _readable([path for path in inside if (path / RECIPE).is_file()], read_run, notes)
        ),
        probes=tuple(
            _readable([path for path in inside if (path / PROBE).is_file()], read_probe, notes)
        ),
    )


def _settings(told: dict[str, Any]) -> str:
    """An arm's settings in a line: stages in words, the rest by key."""
    stages = [mapping(stage) for stage in entries(told.get("stages"), 10)]
    words = [
        f"{_plain(stage.get('epochs'))} epochs at {_plain(stage.get('learning_rate'))}"
        + (" with frozen features" if stage.get("features") == "frozen" else "")
        for stage in stages
    ]
    rest = [
        f"{key} {show(value)}"
        for key, value in flat(told).items()
        if key != "stages" and value not in ({}, None)
    ]
    return "; ".join([", then ".join(words), *rest] if words else rest)


def _plain(value: Any) -> str:
    known = number(value)
    return show(value) if known is None else f"{known:g}"


def _readable(folders: Sequence[Path], read: Callable[[Path], T], notes: list[str]) -> list[T]:
    found = []
    for folder in folders:
        try:
            found.append(read(folder))
        except UsageError as error:
            notes.append(f"{error}.")
    return found


def _inside(folder: Path, path: str) -> Path | None:
    """A run's folder inside the study's, also after the study was moved; nothing outside of it is opened."""
    parts = [part for part in Path(path).parts[-12:] if part not in ("/", "..", ".")]
    for start in range(len(parts)):
        found = folder.joinpath(*parts[start:])
        if found.is_dir() and found.resolve().is_relative_to(folder.resolve()):
            return found
    return None


def _comparison(told: dict[str, Any]) -> Comparison | None:
    difference = number(told.get("difference"))
    if difference is None:
        return None
    return Comparison(
        arm=short(told.get("arm"), 40),
        against=short(told.get("against"), 40),
        difference=difference,
        low=number(told.get("low")),
        high=number(told.get("high")),
        level=number(told.get("level")) or 0.95,
        verdict=short(told.get("verdict"), 300),
    )
