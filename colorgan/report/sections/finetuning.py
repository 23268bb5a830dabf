"""Curves of fine-tuning, one protocol overlaid: a colour an arm, seeds thin, their mean bold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean

from colorgan.report.drawing.charts import Line
from colorgan.report.drawing.figures import Files, Spec, charts, legend, percent
from colorgan.report.drawing.html import Html, element, join
from colorgan.report.final_scores import SCRATCH, data_name
from colorgan.report.published import METRICS, TITLES
from colorgan.report.report_data import ReportData
from colorgan.runs.reading import RunFolder

Arms = Mapping[str, Sequence[RunFolder]]
Points = list[tuple[float, float]]


def finetuning_section(report_data: ReportData, files: Files) -> Html:
    """Return loss and scores over fine-tuning, scratch against pretrained, a group for each task and validation set."""
    groups: dict[tuple[str, str], dict[str, list[RunFolder]]] = {}
    runs = [run for run in report_data.runs if run.kind in METRICS]
    for run in sorted(runs, key=lambda run: start_of(run) != SCRATCH):
        where = data_name(run.folders("data.val"))
        groups.setdefault((run.kind, where), {}).setdefault(start_of(run), []).append(run)
    parts = []
    for (kind, where), arms in groups.items():
        parts += [
            element("h3", f"{TITLES[kind]}, {where}"),
            arm_curves(arms, kind, files, TITLES[kind]),
        ]
    return join(parts)


def start_of(run: RunFolder) -> str:
    """Return what a run started from."""
    init = run.setting("init", SCRATCH)
    return SCRATCH if run.kind == "pretrain" or init == SCRATCH else f"generator {init}"


def arm_curves(arms: Arms, kind: str, files: Files, prefix: str) -> Html:
    """Return the arms' training loss and scores over images seen.

    Args:
        kind: the runs' kind, for the scores' names.
        prefix: begins the names of the PNGs.
    """
    losses = _arm_lines(arms, "train", "loss/model")
    seeds = max((len(runs) for runs in arms.values()), default=0)
    told = "thin: a line a seed; bold: their mean" if seeds > 1 else ""
    drawn: list[Spec] = [("Training loss", losses, told, {})]
    at_end = all(
        len(run.curve("validate", metric.key)) < 2
        for runs in arms.values()
        for run in runs
        for metric in METRICS.get(kind, ())
    )
    for metric in () if at_end else METRICS.get(kind, ()):
        lines = [
            replace(line, points=percent(line.points))
            for line in _arm_lines(arms, "validate", metric.key)
        ]
        if lines:
            drawn.append((metric.name, lines, metric.meaning, {"unit": metric.unit}))
    named = legend([(name, place) for place, name in enumerate(arms)])
    return join([named, charts(files, drawn, prefix)])


def _arm_lines(arms: Arms, kind: str, name: str) -> list[Line]:
    lines = []
    for place, (arm, runs) in enumerate(arms.items()):
        curves = [points for run in runs if (points := run.curve(kind, name))]
        mean = mean_curve(curves)
        if len(curves) > 1 and len(mean) > 1:
            lines += [Line(arm, points, place, thin=True) for points in curves]
            lines.append(Line(arm, mean, place))
        else:
            lines += [Line(arm, points, place) for points in curves]
    return lines


def mean_curve(curves: Sequence[Sequence[tuple[int, float]]]) -> Points:
    """Return the mean at the images at which every curve has a point."""
    if not curves:
        return []
    values = [dict(points) for points in curves]
    shared = sorted(set(values[0]).intersection(*values[1:]))
    return [(images, fmean(each[images] for each in values)) for images in shared]
