"""The chart of a study's protocol: a dot a seed, the arms below one another, and the paired differences under them."""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from colorgan.report.drawing.charts import GRID, INK, SETTINGS, Chart, colour_of, plain, png_of, svg_of
from colorgan.study.record import Comparison, StudyArm, StudyProtocol

WIDTH_INCHES, ROW_INCHES, MARGIN_INCHES = 4.3, 0.3, 0.62  # a margin holds an axis with its numbers and name
MAX_LABEL = 20
MAX_DIFFERENCES = 6


def draw_study(protocol: StudyProtocol, key: str) -> Chart | None:
    """Draw the arms' values and their differences; None without values.

    Args:
        key: Tells the SVG's names from those of the page's other charts.
    """
    arms = [arm for arm in protocol.arms if arm.known]
    compared = protocol.comparisons[:MAX_DIFFERENCES]
    if not arms:
        return None
    heights = [len(arms) * ROW_INCHES, *([len(compared) * ROW_INCHES] if compared else [])]
    with mpl.rc_context({**SETTINGS, "svg.hashsalt": key}):
        size = (WIDTH_INCHES, sum(heights) + len(heights) * MARGIN_INCHES)
        figure = Figure(figsize=size, layout="constrained")
        made: Any = figure.subplots(len(heights), 1, height_ratios=heights, squeeze=False)
        _draw_arms(made[0][0], arms)
        if compared:
            _draw_differences(made[1][0], compared)
        return Chart("Every seed, and what they differ by", svg_of(figure, key), png_of(figure), ())


def _draw_arms(axes: Axes, arms: list[StudyArm]) -> None:
    for row, arm in enumerate(arms):
        values = [100 * value for value in arm.known]
        axes.plot(values, [row] * len(values), "o", color=colour_of(row), markersize=5.5, alpha=0.65, mew=0)
        mean = sum(values) / len(values)
        axes.plot([mean, mean], [row - 0.3, row + 0.3], color=INK, linewidth=1.6)
    _rows(axes, [arm.name for arm in arms])
    axes.set_xlabel("%, a dot a seed, a bar the mean")


def _draw_differences(axes: Axes, compared: tuple[Comparison, ...]) -> None:
    axes.axvline(0.0, color=INK, linewidth=1.0, linestyle=":")
    for row, each in enumerate(compared):
        if each.low is not None and each.high is not None:
            axes.plot([100 * each.low, 100 * each.high], [row, row], color=INK, linewidth=1.6)
        axes.plot([100 * each.difference], [row], "D", color=INK, markersize=5)
    _rows(axes, [f"{each.arm} - {each.against}" for each in compared])
    axes.set_xlabel(f"difference in points, {100 * compared[0].level:g} % interval")


def _rows(axes: Axes, names: list[str]) -> None:
    """One row a name, the first on top."""
    labels = [plain(name) if len(name) <= MAX_LABEL else plain(name[: MAX_LABEL - 2]) + ".." for name in names]
    axes.set_yticks(range(len(names)), labels)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(visible=True, axis="x", color=GRID)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.locator_params(axis="x", nbins=6)
