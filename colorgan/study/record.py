"""study.json: written and read here, nowhere else. Scores are shares in [0, 1].

Reading trusts nothing: text and lists are cut to bounds, a value of another type counts as absent.
Runs are opened only inside the study's folder, also after it was moved.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict

from colorgan.config.settings import show
from colorgan.errors import UsageError
from colorgan.files import entries, mapping, number, numbers, read_text, short, whole, write_json
from colorgan.probes.record import PROBE, Probe, read_probe
from colorgan.runs.reading import RECIPE, RunFolder, flat, read_run

STUDY = "study.json"
# Bounds on what is read, and so on what a study may have (colorgan/study/checks.py).
MAX_PROTOCOLS, MAX_ARMS, MAX_VALUES, MAX_COMPARISONS, MAX_FURTHER = 40, 24, 200, 100, 8
MAX_NAME = 40

T = TypeVar("T")


def _list(value: Any, most: int) -> list[Any]:
    # Cut before it is validated: a million entries would take minutes.
    return list(value[:most]) if isinstance(value, list | tuple) else []


def _list_of(most: int) -> BeforeValidator:
    return BeforeValidator(lambda value: _list(value, most))


def _record(value: Any) -> Any:
    return value if isinstance(value, BaseModel) else mapping(value)


def _records(most: int) -> BeforeValidator:
    return BeforeValidator(lambda value: [_record(each) for each in _list(value, most)])


def _with_difference(value: Any) -> list[Any]:
    """Return the comparisons that have a difference."""
    records = [_record(each) for each in _list(value, MAX_COMPARISONS)]
    return [
        each
        for each in records
        if isinstance(each, BaseModel) or number(each.get("difference")) is not None
    ]


def _text(most: int) -> BeforeValidator:
    return BeforeValidator(lambda value: short(value, most))


def _flag(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


Name = Annotated[str, _text(MAX_NAME)]
Text = Annotated[str, _text(300)]
LongText = Annotated[str, _text(600)]
Folder = Annotated[str, _text(4096)]
Number = Annotated[float | None, BeforeValidator(number)]
Count = Annotated[int | None, BeforeValidator(whole)]
Values = Annotated[tuple[Number, ...], _list_of(MAX_VALUES)]
Seeds = Annotated[tuple[Name, ...], _list_of(MAX_VALUES)]


class Record(BaseModel):
    """A part of study.json; keys that it does not know are left out."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class ArmValues(Record):
    """One arm by one score.

    Attributes:
        values: one per run, by pretraining seed and then by fine-tuning seed; None: no score.
    """

    name: Name = ""
    values: Values = ()

    @property
    def known(self) -> list[float]:
        """The values that exist."""
        return [value for value in self.values if value is not None]

    @property
    def mean(self) -> float | None:
        """Over all runs."""
        # Without the runs that have no score; the table shows how many there are.
        return statistics.fmean(self.known) if self.known else None

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation over the runs; None for one run."""
        return statistics.stdev(self.known) if len(self.known) > 1 else None


class ArmRecord(ArmValues):
    """One way to start by the headline, and the folders of its runs."""

    settings: Annotated[dict[str, Any], BeforeValidator(mapping)] = {}
    pretraining_seeds: Seeds = ()
    runs: Annotated[tuple[Folder, ...], _list_of(MAX_VALUES)] = ()

    @property
    def settings_text(self) -> str:
        """The settings in a line: stages in words, the rest by key."""
        stages = [mapping(stage) for stage in entries(self.settings.get("stages"), 10)]
        # "4 epochs at 0.0003, then 2 epochs at 5e-05": schedules side by side are read as words.
        words = []
        for stage in stages:
            frozen = " with frozen features" if stage.get("features") == "frozen" else ""
            epochs, rate = _plain(stage.get("epochs")), _plain(stage.get("learning_rate"))
            words.append(f"{epochs} epochs at {rate}{frozen}")

        # What differs from the protocol; empty groups and nulls say nothing.
        rest = []
        for key, value in flat(self.settings).items():
            if key != "stages" and value not in ({}, None):
                rest.append(f"{key} {show(value)}")
        return short("; ".join([", then ".join(words), *rest] if words else rest), 800)


def leaves_out_zero(low: float | None, high: float | None) -> bool:
    """Return whether an interval, if there is one, leaves 0 out."""
    return low is not None and high is not None and not low <= 0 <= high


class ComparisonRecord(Record):
    """The difference of two arms, paired by seeds, with its interval.

    Attributes:
        survives: whether the difference stays with the correction for all comparisons of the study;
            None where nothing was corrected.
    """

    arm: Name = ""
    against: Name = ""
    difference: Number = None
    low: Number = None
    high: Number = None
    level: Annotated[float, BeforeValidator(lambda value: number(value) or 0.95)] = 0.95
    verdict: Text = ""
    survives: Annotated[bool | None, BeforeValidator(_flag)] = None

    @property
    def is_difference(self) -> bool:
        """Whether the interval leaves 0 out."""
        return leaves_out_zero(self.low, self.high)


Comparisons = Annotated[tuple[ComparisonRecord, ...], BeforeValidator(_with_difference)]


class FurtherScore(Record):
    """The same runs by a score that is not the protocol's headline."""

    metric: Name = ""
    metric_title: Text = ""
    arms: Annotated[tuple[ArmValues, ...], _records(MAX_ARMS)] = ()
    comparisons: Comparisons = ()


class SplitRecord(Record):
    """The images of a protocol."""

    title: Text = ""
    train: Count = None
    test: Count = None
    classes: Count = None


class ProtocolRecord(Record):
    """One protocol of a study."""

    name: Name = ""
    title: Text = ""
    task: Name = ""
    metric: Name = ""
    metric_title: Text = ""
    source: LongText = ""
    input: Text = ""
    head: Text = ""
    prediction: LongText = ""
    data: Annotated[SplitRecord, BeforeValidator(_record)] = SplitRecord()
    seeds: Seeds = ()
    arms: Annotated[tuple[ArmRecord, ...], _records(MAX_ARMS)] = ()
    comparisons: Comparisons = ()
    further: Annotated[tuple[FurtherScore, ...], _records(MAX_FURTHER)] = ()

    @property
    def of_the_paper(self) -> bool:
        """Whether it is one of Treneska et al.'s."""
        return self.name.startswith("paper-")

    @property
    def pretraining_seeds(self) -> tuple[str, ...]:
        """Those of the arm that has most."""
        return max((arm.pretraining_seeds for arm in self.arms), key=len, default=())


class StudyRecord(Record):
    """The whole of study.json.

    Attributes:
        core_minutes: measured cost by step; empty in studies of older versions.
    """

    protocols: Annotated[tuple[ProtocolRecord, ...], _records(MAX_PROTOCOLS)] = ()
    core_minutes: Annotated[dict[str, float], BeforeValidator(numbers)] = {}


def write_study(out: Path, record: StudyRecord) -> None:
    """Write study.json, whole or not at all."""
    write_json(out / STUDY, record.model_dump(mode="json"))


@dataclass(frozen=True)
class ArmFolders:
    """The runs and probes of an arm that can be read."""

    runs: tuple[RunFolder, ...] = ()
    probes: tuple[Probe, ...] = ()


@dataclass(frozen=True)
class Study:
    """A study's folder.

    Attributes:
        folders: the runs behind each arm, by protocol and arm.
        of_single_runs: put together from runs without a study.json.
    """

    path: Path
    protocols: tuple[ProtocolRecord, ...]
    folders: dict[tuple[str, str], ArmFolders]
    notes: list[str] = field(default_factory=list)
    core_minutes: dict[str, float] = field(default_factory=dict)
    of_single_runs: bool = False

    def behind(self, protocol: ProtocolRecord) -> dict[str, ArmFolders]:
        """Return the runs behind a protocol, by arm."""
        nothing = ArmFolders()
        names = [arm.name for arm in protocol.arms]
        return {name: self.folders.get((protocol.name, name), nothing) for name in names}


def read_study(folder: Path) -> Study:
    """Read a study's folder.

    Raises:
        UsageError: study.json is damaged or holds no protocol.
    """
    path = folder / STUDY
    try:
        text = mapping(json.loads(read_text(path)))
        # Entries of another type are dropped here: pydantic would refuse the whole file for one.
        text["protocols"] = [
            each for each in entries(text.get("protocols"), MAX_PROTOCOLS) if mapping(each)
        ]
        record = StudyRecord.model_validate(text)
    except (OSError, ValueError, RecursionError):
        record = StudyRecord()

    if not record.protocols:
        raise UsageError(
            f"{path} holds no protocols: write it again with launcher/study.py, or leave "
            f"{folder} out"
        )

    # Runs may be gone: the table stays, and the page names what is missing.
    notes: list[str] = []
    folders = {
        (protocol.name, arm.name): _folders(folder, arm, notes)
        for protocol in record.protocols
        for arm in protocol.arms
    }
    return Study(folder, record.protocols, folders, notes, record.core_minutes)


def _folders(study: Path, arm: ArmRecord, notes: list[str]) -> ArmFolders:
    inside = [found for path in arm.runs if (found := _inside(study, path)) is not None]
    missing = len(arm.runs) - len(inside)
    if missing:
        notes.append(
            f"{missing} of {len(arm.runs)} runs of {arm.name} are not in {study}: their curves and "
            "classes are left out."
        )

    runs = [path for path in inside if (path / RECIPE).is_file()]
    probes = [path for path in inside if (path / PROBE).is_file()]
    return ArmFolders(
        tuple(_readable(runs, read_run, notes)),
        tuple(_readable(probes, read_probe, notes)),
    )


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
    """Return a run's folder inside the study's, also after the study was moved; nothing outside."""
    # The recorded path is of the machine that made it: its ends are tried from the longest.
    parts = [part for part in Path(path).parts[-12:] if part not in ("/", "..", ".")]
    for start in range(len(parts)):
        found = folder.joinpath(*parts[start:])
        # Resolved: a link inside may lead out.
        if found.is_dir() and found.resolve().is_relative_to(folder.resolve()):
            return found
    return None
