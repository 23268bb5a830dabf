"""The contents of a report: the folders that a user names, read by what they hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from colorgan.errors import UsageError
from colorgan.evaluation.record import SCORES, SavedEvaluation, read_evaluation
from colorgan.probes.record import PROBE, Probe, read_probe
from colorgan.runs.reading import KINDS, RECIPE, RunFolder, read_run, short_names
from colorgan.study.record import STUDY, Study, read_study
from colorgan.study.single_runs import compared_runs

MAX_PRETRAINED = 20  # of one study


@dataclass(frozen=True)
class ReportData:
    """The contents of a report.

    Attributes:
        evaluations: of folders that were given by themselves; runs have their own.
    """

    runs: list[RunFolder]
    evaluations: list[SavedEvaluation]
    notes: list[str] = field(default_factory=list)
    studies: list[Study] = field(default_factory=list)
    probes: list[Probe] = field(default_factory=list)

    def of(self, *kinds: str) -> list[RunFolder]:
        """Return the runs of some kinds, in order."""
        return [run for run in self.runs if run.kind in kinds]


def read_folders(folders: Sequence[Path]) -> ReportData:
    """Read studies, runs, evaluations and probes; one given twice counts once.

    Raises:
        UsageError: a folder is none of them, or its file cannot be read; one sentence.
    """
    report_data = ReportData([], [])
    for folder in _with_pretraining(folders):
        _read(folder, report_data)

    # Pretraining first: fine-tuning refers to it. The sort is stable within a kind.
    report_data.runs.sort(key=lambda run: KINDS.index(run.kind))
    names = short_names([run.path for run in report_data.runs])
    for number, (run, name) in enumerate(
        zip(report_data.runs, names, strict=True),
        1,
    ):
        run.number, run.name = number, name

    # Runs that were given by themselves are compared like those of a study.
    single_runs, notes = compared_runs(report_data.runs)
    if single_runs is not None:
        report_data.studies.append(single_runs)
    for study in report_data.studies:
        report_data.notes.extend(study.notes)
    report_data.notes.extend(notes)
    return report_data


def _read(folder: Path, report_data: ReportData) -> None:
    """Read one folder into the report's data."""
    # The order matters: a study and a run both may have evaluations inside.
    if (folder / STUDY).is_file():
        report_data.studies.append(read_study(folder))
    elif (folder / RECIPE).is_file():
        report_data.runs.append(read_run(folder))
    elif (folder / PROBE).is_file():
        report_data.probes.append(read_probe(folder))
    elif (folder / SCORES).is_file():
        report_data.evaluations.append(read_evaluation(folder))
    else:
        what = "is not a folder"
        if folder.is_dir():
            what = "has no recipe.yaml, study.json, scores.json or probe.json"
        raise UsageError(
            f"{folder} {what}: give run folders of launcher/pretrain.py or finetune.py, --out "
            "folders of launcher/evaluate.py or probe.py, or the folder of a study"
        )


def _with_pretraining(folders: Sequence[Path]) -> list[Path]:
    """Return each folder once, and after a study its pretraining runs."""
    # Resolved, so that one folder by two names counts once.
    found: list[Path] = []
    for folder in (path.resolve() for path in folders):
        found.append(folder)
        if (folder / STUDY).is_file():
            runs = sorted(path.parent.resolve() for path in folder.glob(f"pretrain/*/{RECIPE}"))
            found += runs[:MAX_PRETRAINED]
    return list(dict.fromkeys(found))
