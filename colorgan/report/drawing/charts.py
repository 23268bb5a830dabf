"""Charts of the report, each written twice: SVG in the page, whose colours follow light and dark, and PNG beside it.

Colours in the SVG are CSS variables that colorgan/report/drawing/style.py sets; lines are named below each chart in HTML.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, NullFormatter

from colorgan.report.drawing.html import Html
from colorgan.study.record import Comparison, StudyArm, StudyProtocol

# Okabe and Ito's colours, told apart by colour-blind readers; yellow left out: too faint on white.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#7f6fc1", "#7a7a7a")
INK, GRID = "#1b1b1f", "#c9c9cf"
SIZE_INCHES = (4.3, 2.75)  # narrow, so that text stays legible at the width of a phone
PNG_DPI = 160
MAX_POINTS = 400  # of a line: a pixel each, and a page of many charts stays a page
SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "axes.formatter.useoffset": False,
    "font.size": 10,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.7,
}


@dataclass(frozen=True)
class Line:
    """One curve: its name, its points (images seen, value), its place among the colours, its dash."""

    name: str
    points: Sequence[tuple[float, float]]
    color: int = 0
    dash: str = "-"
    thin: bool = False  # one of several whose mean is drawn too


@dataclass(frozen=True)
class Chart:
    """A drawn chart."""

    title: str
    svg: Html
    png: bytes
    lines: tuple[Line, ...]


def draw(
    title: str,
    lines: Sequence[Line],
    *,
    key: str = "",
    unit: str = "",
    log: bool = False,
    bounds: tuple[float, float] | None = None,
) -> Chart:
    """Draw lines over images seen.

    Args:
        title: What is drawn; the y axis bears the unit.
        key: Tells the SVG's names from those of the page's other charts; the title where it is empty.
        log: Logarithmic where all values are positive.
        bounds: Fixed ends of the y axis.
    """
    with mpl.rc_context({**SETTINGS, "svg.hashsalt": key or title}):
        figure = Figure(figsize=SIZE_INCHES, layout="constrained")
        axes = figure.add_subplot()
        for line in lines:
            xs, ys = zip(*thinned(line.points), strict=True)
            axes.plot(
                xs, ys, color=color_of(line.color), linestyle=line.dash, **_stroke(line, len(xs))
            )
        if log and all(y > 0 for line in lines for _, y in line.points):
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
        if bounds:
            axes.set_ylim(*bounds)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.locator_params(axis="x", nbins=5)
        axes.set_xlabel("images seen")
        axes.set_ylabel(unit)
        told = [line for line in lines if not line.thin]
        return Chart(title, svg_of(figure, key or title), _png(figure, title, told), tuple(told))


def color_of(place: int) -> str:
    """Return the colour of a place, round and round."""
    return COLOURS[place % len(COLOURS)]


def _stroke(line: Line, num_points: int) -> dict[str, Any]:
    if line.thin:
        return {"linewidth": 0.8, "alpha": 0.45}
    return {"marker": "o" if num_points < 3 else None, "markersize": 4}


def thinned(
    points: Sequence[tuple[float, float]], most: int = MAX_POINTS
) -> list[tuple[float, float]]:
    """Return at most that many points: means of equal stretches, the last point kept as it is."""
    if len(points) <= most:
        return list(points)
    size = -(-(len(points) - 1) // (most - 1))
    stretches = [
        points[i : min(i + size, len(points) - 1)] for i in range(0, len(points) - 1, size)
    ]
    means = [
        (sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part))
        for part in stretches
    ]
    return [*means, points[-1]]


def svg_of(figure: Figure, key: str) -> Html:
    """Return a figure as SVG whose colours follow the page."""
    out = io.BytesIO()
    FigureCanvasSVG(figure).print_svg(
        out, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
    )  # type: ignore[no-untyped-call]
    text = out.getvalue().decode()
    text = text[text.index("<svg") :]
    key = re.sub(r"\W+", "-", key)
    text = re.sub(r'\bid="', f'id="{key}-', text)
    text = re.sub(r'(href="|url\()#', rf"\1#{key}-", text)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(
        r"<style.*?</style>", "", text, flags=re.DOTALL
    )  # it would hold for the whole page
    for index, color in enumerate(COLOURS):
        text = text.replace(color, f"var(--line-{index})")
    text = text.replace(INK, "var(--ink)").replace(GRID, "var(--grid)")
    text = re.sub(r"fill: #ffffff", "fill: none", text)  # the paper
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    return Html(text.replace("<svg", '<svg aria-hidden="true"', 1))


def plain(text: str) -> str:
    """Return text that the built-in font can draw."""
    return text.encode("ascii", "replace").decode()


def _png(figure: Figure, title: str, lines: Sequence[Line]) -> bytes:
    axes = figure.axes[0]
    axes.set_title(title, loc="left", fontsize=10)
    handles: list[Any] = [line for line in axes.lines if line.get_alpha() is None]
    names = [plain(line.name) for line in lines]
    figure.legend(
        handles,
        names,
        loc="outside lower center",
        fontsize=7,
        ncols=1 if len(lines) < 4 else 2,
        frameon=False,
    )
    figure.set_size_inches(SIZE_INCHES[0], SIZE_INCHES[1] + 0.2 * len(lines))
    return png_of(figure)


def png_of(figure: Figure) -> bytes:
    """Return a figure as PNG on white."""
    figure.set_dpi(PNG_DPI)
    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a name too long for the figure
        FigureCanvasAgg(figure).print_png(out, metadata={"Software": None})  # type: ignore[no-untyped-call]
    return out.getvalue()


WIDTH_INCHES, ROW_INCHES, MARGIN_INCHES = (
    4.3,
    0.3,
    0.62,
)  # a margin holds an axis with its numbers and name
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
        axes.plot(
            values, [row] * len(values), "o", color=color_of(row), markersize=5.5, alpha=0.65, mew=0
        )
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
    labels = [
        plain(name) if len(name) <= MAX_LABEL else plain(name[: MAX_LABEL - 2]) + ".."
        for name in names
    ]
    axes.set_yticks(range(len(names)), labels)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(visible=True, axis="x", color=GRID)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.locator_params(axis="x", nbins=6)
