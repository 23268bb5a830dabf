"""The chart of a protocol: every run's score by arm, and the differences with their intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing

from colorgan.report.blocks import Figure
from colorgan.report.charts import (
    GRID,
    INK,
    SETTINGS,
    Files,
    color_of,
    plain,
    png_of,
    svg_of,
)
from colorgan.study.record import ArmRecord, ComparisonRecord, ProtocolRecord

WIDTH_INCHES, ROW_INCHES = 4.3, 0.3
MARGIN_INCHES = 0.62  # of an axis with its numbers and name
MAX_LABEL = 20


def draw_study(protocol: ProtocolRecord, stem: str, label: str, files: Files) -> Figure | None:
    """Draw the arms' values and their differences; None without values.

    Args:
        protocol: of a study.
        stem: name of the PNG, without its ending.
        label: read aloud in place of the drawing.
        files: receives the PNG.
    """
    arms = [arm for arm in protocol.arms if arm.known]
    compared = [each for each in protocol.comparisons if each.difference is not None]
    if not arms:
        return None

    # As high as its rows: a study of ten arms must not squeeze their names.
    heights = [len(each) * ROW_INCHES for each in (arms, compared) if each]
    with mpl.rc_context({**SETTINGS, "svg.hashsalt": stem}):
        size = (WIDTH_INCHES, sum(heights) + len(heights) * MARGIN_INCHES)
        drawing = Drawing(figsize=size, layout="constrained")
        axes: Any = drawing.subplots(
            len(heights),
            1,
            height_ratios=heights,
            squeeze=False,
        )
        _draw_arms(axes[0][0], arms)
        if compared:
            _draw_differences(axes[1][0], compared)
        svg = svg_of(drawing, stem)
        files[f"{stem}.png"] = png_of(drawing)
    return Figure("Every run, and the differences", svg, label)


def _draw_arms(axes: Axes, arms: Sequence[ArmRecord]) -> None:
    for row, arm in enumerate(arms):
        values = [100 * value for value in arm.known]
        rows = [row] * len(values)
        # Half transparent, as runs of one arm often lie on each other.
        axes.plot(
            values,
            rows,
            "o",
            color=color_of(row),
            markersize=5.5,
            alpha=0.65,
            mew=0,
        )
        mean = sum(values) / len(values)
        axes.plot(
            [mean, mean],
            [row - 0.3, row + 0.3],
            color=INK,
            linewidth=1.6,
        )
    _name_rows(axes, [arm.name for arm in arms])
    axes.set_xlabel("%: a dot per run, a bar at the mean")


def _draw_differences(axes: Axes, compared: Sequence[ComparisonRecord]) -> None:
    # An interval across this line decides nothing.
    axes.axvline(0.0, color=INK, linewidth=1.0, linestyle=":")
    for row, each in enumerate(compared):
        if each.low is not None and each.high is not None:
            axes.plot(
                [100 * each.low, 100 * each.high],
                [row, row],
                color=INK,
                linewidth=1.6,
            )
        axes.plot(
            [100 * (each.difference or 0.0)],
            [row],
            "D",
            color=INK,
            markersize=5,
        )
    _name_rows(axes, [f"{each.arm} - {each.against}" for each in compared])
    axes.set_xlabel(f"difference in points, {100 * compared[0].level:g} % interval")


def _name_rows(axes: Axes, names: Sequence[str]) -> None:
    """Name the rows, the first on top."""
    labels = []
    for name in names:
        label = plain(name)
        # Cut here: matplotlib would make room by shrinking the chart.
        labels.append(label if len(label) <= MAX_LABEL else f"{label[: MAX_LABEL - 2]}..")

    axes.set_yticks(range(len(names)), labels)
    # Upside down, as rows of a table are read.
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(visible=True, axis="x", color=GRID)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.locator_params(axis="x", nbins=6)
