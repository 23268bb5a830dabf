"""Fine-tuning runs that were given by themselves, compared like those of a study: scratch against each generator.

The chain of slurm/study.sh ends here: its runs are those of launcher/study.py, without a study.json.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from colorgan.errors import UsageError
from colorgan.evaluation.record import EVALUATION, SavedEvaluation
from colorgan.runs.reading import FREE_KEYS, RunFolder, flat, short_names
from colorgan.study.comparison import Comparison as Compared
from colorgan.study.comparison import compare, read_arm
from colorgan.study.protocols import METRIC_TITLES
from colorgan.study.record import Comparison, StudyArm, StudyProtocol

SCRATCH = "scratch"
# The headline of each task: the first score that all its runs have.
HEADLINES = {"classify": ("mAP",), "segment": ("mIoU_own_size", "mIoU"), "detect": ("AP50", "AP")}
TITLES = {
    "classify": "Multilabel classification",
    "segment": "Semantic segmentation",
    "detect": "Object detection",
}

OWN = ("seed", "init", "stages", "network")  # what may differ between arms and seeds

Arms = Mapping[str, Mapping[int, RunFolder]]


def compared_runs(runs: Sequence[RunFolder]) -> tuple[list[StudyProtocol], list[str]]:
    """Return a table for each set that runs from scratch and from a generator were scored on, and notes.

    Runs belong together when their recipes differ in seed, stages, network (a generator brings its own) and in what
    they start from, which is their arm.
    """
    groups: dict[str, dict[str, dict[int, RunFolder]]] = {}
    tables, notes = [], []
    for run in runs:
        if (
            run.setting("task") not in HEADLINES
            or not isinstance(run.seed, int)
            or _evaluation(run) is None
        ):
            continue
        arm = groups.setdefault(_shared(run), {}).setdefault(str(run.setting("init", SCRATCH)), {})
        if run.seed in arm:
            notes.append(
                f"{run.path} is not compared: {arm[run.seed].path} is the same arm and seed."
            )
        arm.setdefault(run.seed, run)
    for arms in groups.values():
        if SCRATCH not in arms or len(arms) == 1:
            continue
        first = next(iter(arms[SCRATCH].values()))
        task = str(first.setting("task"))
        try:
            tables.append(_table(task, first.folders("data.val"), _named(arms)))
        except UsageError as error:
            notes.append(f"{TITLES[task]} is not compared: {error}.")
    return tables, notes


def _evaluation(run: RunFolder) -> SavedEvaluation | None:
    """The evaluation that the run itself, or evaluate.py into its folder, has left."""
    return next((each for each in run.evaluations if each.path == run.path / EVALUATION), None)


def _shared(run: RunFolder) -> str:
    """Equal for runs that are to be compared."""
    free = (*FREE_KEYS, *OWN)
    kept = {
        key: value
        for key, value in flat(run.recipe).items()
        if not any(f"{key}.".startswith(f"{own}.") for own in free)
    }
    return json.dumps(
        [kept, run.folders("data.train"), run.folders("data.val")], sort_keys=True, default=str
    )


def _named(arms: Arms) -> Arms:
    """The arms by short names."""
    inits = [init for init in arms if init != SCRATCH]
    names = dict(zip(inits, short_names([Path(init) for init in inits]), strict=True))
    return {names.get(init, init)[-40:]: by_seed for init, by_seed in arms.items()}


def _table(task: str, data: Sequence[str], arms: Arms) -> StudyProtocol:
    metric = _headline(task, arms)
    scores = {
        name: read_arm(name, {seed: run.path / EVALUATION for seed, run in by_seed.items()}, metric)
        for name, by_seed in arms.items()
    }
    found = [compare(scores[name], scores[SCRATCH], metric) for name in arms if name != SCRATCH]
    seeds = sorted(arms[SCRATCH])
    first = _evaluation(arms[SCRATCH][seeds[0]])
    counts = first.scores if first else {}
    return StudyProtocol(
        name=task,
        title=TITLES[task],
        task=task,
        metric=metric,
        metric_title=METRIC_TITLES[metric],
        source="the runs' own recipes",
        data_title=f"scored on {', '.join(Path(each).name for each in data)}"[:300],
        train=None,
        test=int(counts["images"]) if "images" in counts else None,
        classes=int(counts["classes"]) if "classes" in counts else None,
        seeds=tuple(map(str, seeds)),
        arms=tuple(
            StudyArm(
                name,
                tuple(scores[name].values[seed] for seed in seeds),
                "",
                tuple(arms[name].values()),
                (),
            )
            for name in (SCRATCH, *(name for name in arms if name != SCRATCH))
        ),
        comparisons=tuple(map(_comparison, found)),
    )


def _headline(task: str, arms: Arms) -> str:
    runs = [run for by_seed in arms.values() for run in by_seed.values()]
    known = [set(each.scores) for run in runs if (each := _evaluation(run)) is not None]
    for metric in HEADLINES[task]:
        if all(metric in scores for scores in known):
            return metric
    raise UsageError(f"its runs have no score in common of {', '.join(HEADLINES[task])}")


def _comparison(found: Compared) -> Comparison:
    return Comparison(
        arm=found.arm,
        against=found.against,
        difference=found.difference,
        low=found.low,
        high=found.high,
        level=found.level,
        verdict=found.verdict,
    )
