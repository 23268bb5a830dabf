"""Final scores of runs by protocol and recipe, as mean and spread over seeds, beside the paper's.

Scores under different protocols never share a column: a `Protocol` is everything that makes two numbers comparable.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from colorgan.evaluation.record import SavedEvaluation
from colorgan.report.published import OWN_SIZE, Metric, Published
from colorgan.report.report_data import ReportData
from colorgan.runs.reading import FREE_KEYS, RunFolder, differences, short_names

SCRATCH, PRETRAINED = "scratch", "generator"


MODEL_KINDS = {
    "generator": "pretrain",
    "classifier": "classify",
    "segmenter": "segment",
    "detector": "detect",
}


@dataclass(frozen=True)
class Protocol:
    """What makes scores comparable, as far as the files tell."""

    task: str
    data: tuple[str, ...]
    images: int
    classes: int
    size: int  # pixels; -1: each picture's own
    inference: str


@dataclass(frozen=True)
class Result:
    """The final scores of one run under one protocol."""

    run: RunFolder
    protocol: Protocol
    scores: dict[str, float]
    source: str
    evaluation: SavedEvaluation | None = None


@dataclass(frozen=True)
class Arm:
    """Runs that differ only in seed."""

    label: str
    results: list[Result]

    def values(self, key: str) -> dict[str, float]:
        """The score of each seed that has it."""
        return {str(each.run.seed): each.scores[key] for each in self.results if key in each.scores}

    @property
    def seeds(self) -> str:
        """The seeds, in order."""
        return ", ".join(str(each.run.seed) for each in self.results)


def spread(values: Sequence[float], scale: float = 1.0, digits: int = 2) -> str:
    """Mean, and the sample standard deviation after ± where there are several values."""
    if not values:
        return "–"
    mean = f"{scale * statistics.fmean(values):.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {scale * statistics.stdev(values):.{digits}f}"


def final_results(report_data: ReportData) -> tuple[list[Result], list[str]]:
    """Return every run's final scores by protocol, and notes on what was left out.

    An evaluation stands for a validation with the same protocol; runs that are not at their end have none.
    """
    results: list[Result] = []
    notes: list[str] = []
    for run in report_data.runs:
        found: dict[Protocol, Result] = {}
        if not run.finished:
            notes.append(
                f"{run.title} is not at its end ({run.images_seen:,} of {run.total_images or '?'} images): "
                "its scores are in no table."
            )
        elif run.last_scores:
            protocol = _protocol(run, run.setting("data.val", []), _inference(run), run.last_scores)
            found[protocol] = Result(run, protocol, run.last_scores, "last validation")
        else:
            notes.append(f"{run.title} was not validated (no data.val).")
        for each in run.evaluations + [
            e for e in report_data.evaluations if run_of(e.model, report_data.runs) is run
        ]:
            if (
                run.finished
                and MODEL_KINDS.get(each.kind) == run.kind
                and each.images_seen == run.images_seen
            ):
                protocol = _protocol(run, each.data, each.inference, each.scores)
                found[protocol] = Result(run, protocol, each.scores, "evaluation", each)
                own = {
                    key.removesuffix(OWN_SIZE): v
                    for key, v in each.scores.items()
                    if key.endswith(OWN_SIZE)
                }
                if run.kind == "pretrain" and own:
                    protocol = replace(_protocol(run, each.data, each.inference, own), size=-1)
                    found[protocol] = Result(run, protocol, own, "evaluation")
            elif run.finished:
                notes.append(
                    f"{each.path} scores another model than {run.title} ends with: it is in no table."
                )
        results += found.values()
    return results, notes + _twins(results)


def _twins(results: Sequence[Result]) -> list[str]:
    first: dict[tuple[str, str, Protocol], Result] = {}
    notes = []
    for result in results:
        before = first.setdefault(
            (result.run.same_but_seed, str(result.run.seed), result.protocol), result
        )
        if before is not result:
            told = f"{before.run.title} and {result.run.title} have the same recipe and seed: the later one is counted."
            notes.append(told)
    return notes


def run_of(folder: str, runs: Sequence[RunFolder]) -> RunFolder | None:
    """Return the run whose model or generator folder is meant, also where the path was relative; None if unclear."""
    owner = Path(os.path.normpath(folder)).parent
    parts = owner.parts if owner.parts != (".",) else ()
    fits = [run for run in runs if parts and run.path.parts[-len(parts) :] == parts]
    exact = [run for run in fits if run.path == owner]
    return exact[0] if exact else fits[0] if len(fits) == 1 else None


def by_protocol(results: Sequence[Result], task: str) -> dict[Protocol, list[Arm]]:
    """Return the arms under each protocol of a task; scratch first."""
    grouped: dict[Protocol, list[Result]] = {}
    for result in results:
        if result.run.kind == task:
            grouped.setdefault(result.protocol, []).append(result)
    return {protocol: _arms(each) for protocol, each in grouped.items()}


def _arms(results: Sequence[Result]) -> list[Arm]:
    same: dict[str, dict[str, Result]] = {}
    for result in results:  # a seed that was run twice counts once
        same.setdefault(result.run.same_but_seed, {})[str(result.run.seed)] = result
    arms = [Arm(_start(each), list(each.values())) for each in same.values()]
    for start in {arm.label for arm in arms}:
        twins = [arm for arm in arms if arm.label == start]
        differing = differences([arm.results[0].run for arm in twins], ignore=(*FREE_KEYS, "seed"))
        for place, arm in enumerate(twins):
            if len(twins) > 1:
                words = (
                    ", ".join(f"{key} {values[place]}" for key, values in differing.items())
                    or "other training data"
                )
                arms[arms.index(arm)] = replace(arm, label=f"{start} ({words})")
    return sorted(arms, key=lambda arm: not arm.label.startswith(SCRATCH))


def _start(results: dict[str, Result]) -> str:
    init = next(iter(results.values())).run.setting("init", SCRATCH)
    return SCRATCH if init == SCRATCH else PRETRAINED


def paired_difference(scratch: Arm, pretrained: Arm, metric: Metric) -> tuple[str, str]:
    """Return pretrained - scratch over the seeds that both have, and what it shows in words."""
    low, high = scratch.values(metric.key), pretrained.values(metric.key)
    gaps = [high[seed] - low[seed] for seed in low if seed in high]
    if not gaps:
        return "–", "no seed in common"
    better = sum(gap > 0 for gap in gaps)
    text = spread(gaps, metric.scale)
    text = text.replace("-", "−", 1) if text.startswith("-") else f"+{text}"
    if len(gaps) == 1:
        return text, "one seed: its spread is not known"
    sure = better in (0, len(gaps))
    words = f"better with {better} of {len(gaps)} seeds"
    return text, words if sure else f"{words}: no clear difference"


def departures(protocol: Protocol, paper: Published) -> str:
    """Return in what a protocol is known to differ from the paper's."""
    ways = ["data and split"]
    for name, ours, theirs in (
        ("images", protocol.images, paper.images),
        ("classes", protocol.classes, paper.classes),
        ("size", protocol.size, paper.size),
    ):
        if ours != theirs:
            ways.append(name)
    return ", ".join([*ways, *(["inference"] if protocol.inference != "paper" else [])])


def data_name(data: Sequence[str]) -> str:
    """Return the folders' own names."""
    return " + ".join(short_names([Path(folder) for folder in data])) or "not known"


def _inference(run: RunFolder) -> str:
    return str(run.model.get("inference") or run.setting("inference", "not known"))


def _protocol(
    run: RunFolder, data: Sequence[str], inference: str, scores: dict[str, float]
) -> Protocol:
    folders = [data] if isinstance(data, str) else data
    size = run.model.get("architecture", {}).get("image_size", run.setting("network.image_size", 0))
    return Protocol(
        run.kind,
        tuple(os.path.normpath(str(folder)) for folder in folders),
        int(scores.get("images", 0)),
        int(scores.get("classes", 0)),
        size if isinstance(size, int) else 0,
        inference,
    )
