"""Fine-tuning runs without a study, compared like those of one: scratch against each generator."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from colorgan.config.recipe import SCRATCH
from colorgan.errors import UsageError
from colorgan.evaluation.downstream import TASKS
from colorgan.evaluation.record import EVALUATION, SavedEvaluation
from colorgan.runs.reading import FREE_KEYS, RunFolder, flat, short_names
from colorgan.study.comparison import read_arm
from colorgan.study.protocols import METRIC_TITLES
from colorgan.study.record import ArmFolders, ArmRecord, ProtocolRecord, SplitRecord, Study
from colorgan.study.table import compared

OWN_KEYS = (
    "seed",
    "init",
    "stages",
    "network",
)  # they may differ between arms and seeds

Arms = Mapping[str, Mapping[int, RunFolder]]


def compared_runs(runs: Sequence[RunFolder]) -> tuple[Study | None, list[str]]:
    """Return a table per set on which scratch and a generator were scored, and notes.

    Runs belong together if their recipes differ only in seed, stages, network (a generator brings
    its own) and in what they start from, which is their arm.
    """
    tables: list[ProtocolRecord] = []
    folders: dict[tuple[str, str], ArmFolders] = {}
    groups, notes = _grouped(runs)
    for arms in groups:
        first = next(iter(arms[SCRATCH].values()))
        task = str(first.setting("task"))
        try:
            name = f"{task}-{len(tables)}" if tables else task
            # One that cannot be made is a note: the page still shows the runs.
            tables.append(_table(name, task, first.folders("data.val"), arms))
            for arm, by_seed in arms.items():
                folders[name, arm] = ArmFolders(tuple(by_seed.values()))
        except UsageError as error:
            notes.append(f"{TASKS[task].title} is not compared: {error}.")

    study = (
        Study(
            Path("runs"),
            tuple(tables),
            folders,
            of_single_runs=True,
        )
        if tables
        else None
    )
    return study, notes


def _grouped(runs: Sequence[RunFolder]) -> tuple[list[Arms], list[str]]:
    """Return the runs that can be compared, by arm and seed, scratch first."""
    groups: dict[str, dict[str, dict[int, RunFolder]]] = {}
    notes = []
    for run in runs:
        scored = run.setting("task") in TASKS and _evaluation(run) is not None
        if not scored or not isinstance(run.seed, int):
            continue

        arms = groups.setdefault(_shared(run), {})
        # The start names the arm: one generator is one arm.
        by_seed = arms.setdefault(str(run.setting("init", SCRATCH)), {})
        if run.seed in by_seed:
            notes.append(
                f"{run.path} is not compared: {by_seed[run.seed].path} is the same arm and seed."
            )
        by_seed.setdefault(run.seed, run)
    return [_named(arms) for arms in groups.values() if SCRATCH in arms and len(arms) > 1], notes


def _evaluation(run: RunFolder) -> SavedEvaluation | None:
    """Return the evaluation in the run's own folder."""
    return next((each for each in run.evaluations if each.path == run.path / EVALUATION), None)


def _shared(run: RunFolder) -> str:
    """Return a text that is equal for runs that are to be compared."""
    # Whatever else differs makes two experiments of two runs.
    free = (*FREE_KEYS, *OWN_KEYS)
    kept = {}
    for key, value in flat(run.recipe).items():
        if not any(f"{key}.".startswith(f"{name}.") for name in free):
            kept[key] = value
    data = [run.folders("data.train"), run.folders("data.val")]
    return json.dumps([kept, *data], sort_keys=True, default=str)


def _named(arms: Arms) -> Arms:
    """Return the arms by short names, scratch first."""
    inits = [init for init in arms if init != SCRATCH]
    names = short_names([Path(init) for init in inits])
    others = {name[-40:]: arms[init] for init, name in zip(inits, names, strict=True)}
    return {SCRATCH: arms[SCRATCH], **others}


def _table(name: str, task: str, data: Sequence[str], arms: Arms) -> ProtocolRecord:
    metric = _headline(task, arms)
    folders = {
        arm: {(0, seed): by_seed[seed].path / EVALUATION for seed in sorted(by_seed)}
        for arm, by_seed in arms.items()
    }
    scores = {arm: read_arm(arm, runs, metric) for arm, runs in folders.items()}

    pairs = [(arm, SCRATCH) for arm in arms if arm != SCRATCH]
    seeds = sorted(arms[SCRATCH])
    first = _evaluation(arms[SCRATCH][seeds[0]])
    counts = first.scores if first else {}
    where = ", ".join(Path(each).name for each in data)
    return ProtocolRecord(
        name=name,
        title=TASKS[task].title,
        task=task,
        metric=metric,
        metric_title=METRIC_TITLES[metric],
        source="the runs' own recipes",
        data=SplitRecord(
            title=f"scored on {where}",
            test=int(counts["images"]) if "images" in counts else None,
            classes=int(counts["classes"]) if "classes" in counts else None,
        ),
        seeds=tuple(map(str, seeds)),
        arms=tuple(
            ArmRecord(name=arm, values=tuple(each.values.values())) for arm, each in scores.items()
        ),
        comparisons=compared(scores, pairs, metric, len(pairs), folders),
    )


def _headline(task: str, arms: Arms) -> str:
    evaluations = [_evaluation(run) for by_seed in arms.values() for run in by_seed.values()]
    for metric in TASKS[task].headline:
        # A score that all runs have: older versions lack some.
        if all(each is not None and metric in each.scores for each in evaluations):
            return metric
    raise UsageError(f"its runs have no score in common of {', '.join(TASKS[task].headline)}")
