"""Curves of fine-tuning, one protocol overlaid: a color per arm, runs thin, their mean bold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean

from colorgan.config.recipe import SCRATCH
from colorgan.report.blocks import Block, Heading, Legend
from colorgan.report.charts import ChartSpec, Files, Line, charts, percent
from colorgan.report.final_scores import data_name
from colorgan.report.published import METRICS, TITLES
from colorgan.report.report_data import ReportData
from colorgan.runs.reading import RunFolder

Runs = Mapping[str, Sequence[RunFolder]]  # by arm


def finetuning_section(report_data: ReportData, files: Files) -> list[Block]:
    """Return loss and scores over fine-tuning, a group per task and validation set."""
    runs = [run for run in report_data.runs if run.kind in METRICS]
    # Scratch first, so that it has the first color in every chart.
    runs.sort(key=lambda run: start_of(run) != SCRATCH)
    groups: dict[tuple[str, str], dict[str, list[RunFolder]]] = {}
    for run in runs:
        group = groups.setdefault((run.kind, data_name(run.folders("data.val"))), {})
        group.setdefault(start_of(run), []).append(run)

    blocks: list[Block] = []
    for (kind, where), arms in groups.items():
        blocks.append(Heading(f"{TITLES[kind]}, {where}"))
        blocks += arm_curves(arms, kind, files, TITLES[kind])
    return blocks


def start_of(run: RunFolder) -> str:
    """Return what a run started from."""
    init = run.setting("init", SCRATCH)
    return SCRATCH if run.kind == "pretrain" or init == SCRATCH else f"generator {init}"


def arm_curves(arms: Runs, kind: str, files: Files, prefix: str) -> list[Block]:
    """Return the arms' training loss and scores over images seen.

    Args:
        arms: the runs of each arm.
        kind: of the runs, for the names of their scores.
        files: receives the PNGs.
        prefix: begins the names of the PNGs.
    """
    several = max((len(runs) for runs in arms.values()), default=0) > 1
    note = "thin: a line per run; bold: their mean" if several else ""
    specs = [
        ChartSpec(
            "Training loss",
            _arm_lines(arms, "train", "loss/model"),
            note,
        )
    ]
    for metric in METRICS.get(kind, ()):
        lines = []
        for line in _arm_lines(arms, "validate", metric.key):
            lines.append(replace(line, points=percent(line.points)))
        # Scores of a run that is validated at its end alone are in the tables.
        if any(len(line.points) > 1 for line in lines):
            specs.append(
                ChartSpec(
                    metric.name,
                    lines,
                    metric.meaning,
                    metric.unit,
                )
            )
    return [Legend(list(arms)), *charts(files, specs, prefix)]


def _arm_lines(arms: Runs, kind: str, name: str) -> list[Line]:
    lines = []
    for place, (arm, runs) in enumerate(arms.items()):
        curves = [points for run in runs if (points := run.curve(kind, name))]
        mean = mean_curve(curves)
        # A mean of one point would hide the curves.
        with_mean = len(curves) > 1 and len(mean) > 1
        for points in curves:
            lines.append(Line(arm, points, place, thin=with_mean))
        if with_mean:
            lines.append(Line(arm, mean, place))
    return lines


def mean_curve(curves: Sequence[Sequence[tuple[int, float]]]) -> list[tuple[float, float]]:
    """Return the mean at the images at which every curve has a point."""
    if not curves:
        return []

    values = [dict(points) for points in curves]
    # A run that ended early must not bend the mean.
    shared = sorted(set(values[0]).intersection(*values[1:]))
    return [(images, fmean(each[images] for each in values)) for images in shared]
