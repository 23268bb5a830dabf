"""Final scores of runs by conditions and recipe, as mean and spread over seeds, beside the paper's.

Scores under different conditions never share a column: `Conditions` is everything that makes two
numbers comparable.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from colorgan.config.recipe import MODEL_KINDS, SCRATCH
from colorgan.evaluation.record import SavedEvaluation
from colorgan.report.published import (
    OWN_SIZE,
    PAPER_COLOR_IMAGES,
    PAPER_COLOR_SIZE,
    Metric,
    Published,
)
from colorgan.report.report_data import ReportData
from colorgan.runs.reading import FREE_KEYS, RunFolder, differences, short_names

# Labels of starts begin with one of them.
PRETRAINED = "generator"  # beside SCRATCH
RUN_KINDS = {"generator": "pretrain"} | {kind: name for name, kind in MODEL_KINDS.items()}
EACH_SIZE = -1  # images are scored at their own size


@dataclass(frozen=True)
class Conditions:
    """What makes scores comparable, as far as the files show.

    Attributes:
        size: in pixels; -1: each image's own.
    """

    task: str
    data: tuple[str, ...]
    images: int
    classes: int
    size: int
    inference: str


@dataclass(frozen=True)
class Result:
    """The final scores of one run under one set of conditions."""

    run: RunFolder
    conditions: Conditions
    scores: Mapping[str, float]
    source: str
    evaluation: SavedEvaluation | None = None


@dataclass(frozen=True)
class SeedGroup:
    """Runs that differ only in seed."""

    label: str
    results: list[Result]

    def values(self, key: str) -> dict[str, float]:
        """Return the score of each seed that has it."""
        found = {}
        for each in self.results:
            if key in each.scores:
                found[str(each.run.seed)] = each.scores[key]
        return found

    @property
    def seeds(self) -> str:
        """The seeds, in order."""
        return ", ".join(str(each.run.seed) for each in self.results)

    @property
    def numbers(self) -> str:
        """The runs' numbers on the page."""
        return ", ".join(str(each.run.number) for each in self.results)


def spread(values: Sequence[float], scale: float = 1.0, digits: int = 2) -> str:
    """Return the mean, and the sample standard deviation after ± if there are several values."""
    if not values:
        return "–"
    mean = f"{scale * statistics.fmean(values):.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {scale * statistics.stdev(values):.{digits}f}"


def final_results(report_data: ReportData) -> tuple[list[Result], list[str]]:
    """Return every run's final scores by conditions, and notes on what was left out.

    An evaluation replaces a validation under the same conditions; unfinished runs have no result.
    """
    results: list[Result] = []
    notes: list[str] = []
    for run in report_data.runs:
        found, own_notes = _results_of(run, report_data)
        results += found
        notes += own_notes
    return results, notes + _twins(results)


def _results_of(run: RunFolder, report_data: ReportData) -> tuple[list[Result], list[str]]:
    if not run.finished:
        seen = f"{run.images_seen:,} of {run.total_images or '?'} images"
        return [], [f"{run.title} is unfinished ({seen}): its scores are in no table."]

    # Later entries replace earlier ones: an evaluation is scored with all images and weights.
    found: dict[Conditions, Result] = {}
    notes = []
    if run.last_scores:
        data = run.setting("data.val", [])
        conditions = _conditions(
            run,
            data,
            _inference(run),
            run.last_scores,
        )
        found[conditions] = Result(
            run,
            conditions,
            run.last_scores,
            "last validation",
        )
    else:
        notes.append(f"{run.title} was not validated (no data.val).")

    given = [
        each for each in report_data.evaluations if run_of(each.model, report_data.runs) is run
    ]
    for each in [*run.evaluations, *given]:
        # Scores of a checkpoint in the middle are not those of the finished run.
        of_the_end = each.images_seen == run.images_seen
        if RUN_KINDS.get(each.kind) != run.kind or not of_the_end:
            notes.append(
                f"{each.path} scores another model than {run.title} ends with: it is in no table."
            )
            continue
        for result in _evaluated(run, each):
            found[result.conditions] = result
    return list(found.values()), notes


def _evaluated(run: RunFolder, each: SavedEvaluation) -> list[Result]:
    """Return an evaluation's scores; those at own size are under conditions of their own."""
    conditions = _conditions(
        run,
        each.data,
        each.inference,
        each.scores,
    )
    results = [
        Result(
            run,
            conditions,
            each.scores,
            "evaluation",
            each,
        )
    ]
    # Own-size scores have other conditions: a photo of 500 pixels is harder than one of 64.
    own = {}
    for key, value in each.scores.items():
        if key.endswith(OWN_SIZE):
            own[key.removesuffix(OWN_SIZE)] = value
    if run.kind == "pretrain" and own:
        conditions = _conditions(run, each.data, each.inference, own)
        results.append(
            Result(
                run,
                replace(conditions, size=EACH_SIZE),
                own,
                "evaluation",
            )
        )
    return results


def _twins(results: Sequence[Result]) -> list[str]:
    # A seed that was run twice would count twice in the mean.
    first: dict[tuple[str, str, Conditions], Result] = {}
    notes = []
    for result in results:
        key = (result.run.same_but_seed, str(result.run.seed), result.conditions)
        before = first.setdefault(key, result)
        if before is not result:
            notes.append(
                f"{before.run.title} and {result.run.title} have the same recipe and seed: only "
                "the later one is counted."
            )
    return notes


def run_of(folder: str, runs: Sequence[RunFolder]) -> RunFolder | None:
    """Return the run of a model or generator folder, also for a relative path; None if unclear."""
    # Evaluations name the model as it was typed, often relative to another folder.
    owner = Path(os.path.normpath(folder)).parent
    parts = owner.parts if owner.parts != (".",) else ()
    fits = [run for run in runs if parts and run.path.parts[-len(parts) :] == parts]
    exact = [run for run in fits if run.path == owner]
    if exact:
        return exact[0]
    return fits[0] if len(fits) == 1 else None


def by_conditions(results: Sequence[Result], task: str) -> dict[Conditions, list[SeedGroup]]:
    """Return the runs of a task under each set of conditions, grouped by recipe; scratch first."""
    grouped: dict[Conditions, list[Result]] = {}
    for result in results:
        if result.run.kind == task:
            grouped.setdefault(result.conditions, []).append(result)
    return {conditions: _seed_groups(each) for conditions, each in grouped.items()}


def _seed_groups(results: Sequence[Result]) -> list[SeedGroup]:
    # The recipe without its seed is the group.
    same: dict[str, dict[str, Result]] = {}
    for result in results:  # of a seed that was run twice the later counts
        same.setdefault(result.run.same_but_seed, {})[str(result.run.seed)] = result

    by_start: dict[str, list[SeedGroup]] = {}
    for by_seed in same.values():
        init = next(iter(by_seed.values())).run.setting("init", SCRATCH)
        start = SCRATCH if init == SCRATCH else PRETRAINED
        by_start.setdefault(start, []).append(SeedGroup(start, list(by_seed.values())))

    groups = []
    for twins in by_start.values():
        groups += _told_apart(twins)
    return sorted(groups, key=lambda group: not group.label.startswith(SCRATCH))


def _told_apart(twins: list[SeedGroup]) -> list[SeedGroup]:
    """Return groups of one start under labels that name the settings on which they differ."""
    if len(twins) == 1:
        return twins

    runs = [group.results[0].run for group in twins]
    # Only what differs is in the label: whole recipes would fill the table.
    differing = differences(runs, ignore=(*FREE_KEYS, "seed"))
    labelled = []
    for place, group in enumerate(twins):
        words = ", ".join(f"{key} {values[place]}" for key, values in differing.items())
        label = f"{group.label} ({words or 'other training data'})"
        labelled.append(replace(group, label=label))
    return labelled


def paired_difference(scratch: SeedGroup, pretrained: SeedGroup, metric: Metric) -> tuple[str, str]:
    """Return pretrained - scratch over the seeds that both have, and its meaning in words."""
    low, high = scratch.values(metric.key), pretrained.values(metric.key)
    gaps = [high[seed] - low[seed] for seed in low if seed in high]
    if not gaps:
        return "–", "no seed in common"

    # With few seeds the count says more than a standard deviation.
    better = sum(gap > 0 for gap in gaps)
    text = spread(gaps, metric.scale)
    text = text.replace("-", "−", 1) if text.startswith("-") else f"+{text}"
    if len(gaps) == 1:
        return text, "one seed: its spread is unknown"
    words = f"better with {better} of {len(gaps)} seeds"
    return text, words if better in (0, len(gaps)) else f"{words}: no clear difference"


def departures(conditions: Conditions, paper: Published) -> str:
    """Return the known differences of our conditions from the paper's."""
    # The packed set is never the paper's own: its split was drawn at random.
    ways = ["data and split"]
    for name, ours, theirs in (
        ("images", conditions.images, paper.images),
        ("classes", conditions.classes, paper.classes),
        ("size", conditions.size, paper.size),
    ):
        if ours != theirs:
            ways.append(name)
    if conditions.inference != "paper":
        ways.append("inference")
    return ", ".join(ways)


def color_departures(conditions: Conditions) -> str:
    """Return the known differences of our conditions from the paper's coloring."""
    ways = ["data"]
    if conditions.images != PAPER_COLOR_IMAGES:
        ways.append("images")
    if conditions.size != PAPER_COLOR_SIZE:
        ways.append("size")
    if conditions.inference != "paper":
        ways.append("inference")
    return ", ".join(ways)


def data_name(data: Sequence[str]) -> str:
    """Return the folders' own names."""
    return " + ".join(short_names([Path(folder) for folder in data])) or "unknown"


def size_text(pixels: int) -> str:
    """Return a size in words."""
    if pixels < 0:
        return "each photo's own"
    return f"{pixels}×{pixels}" if pixels else "unknown"


def _inference(run: RunFolder) -> str:
    return str(run.model.get("inference") or run.setting("inference", "unknown"))


def _conditions(
    run: RunFolder, data: Sequence[str], inference: str, scores: Mapping[str, float]
) -> Conditions:
    # Recipes of users may name one folder without a list.
    folders = [data] if isinstance(data, str) else data
    size = run.model.get("input_size") or run.model.get("architecture", {}).get(
        "image_size", run.setting("network.image_size", 0)
    )
    return Conditions(
        run.kind,
        tuple(os.path.normpath(str(folder)) for folder in folders),
        int(scores.get("images", 0)),
        int(scores.get("classes", 0)),
        size if isinstance(size, int) else 0,
        inference,
    )
