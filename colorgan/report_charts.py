"""Charts of the report, each written twice: SVG in the page, whose colours follow light and dark, and PNG beside it.

Colours in the SVG are CSS variables that colorgan/report_style.py sets; lines are named below each chart in HTML.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, NullFormatter

from colorgan.report_html import Html

# Okabe and Ito's colours, told apart by colour-blind readers; yellow left out: too faint on white.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#7f6fc1", "#7a7a7a")
INK, GRID = "#1b1b1f", "#c9c9cf"
SIZE_INCHES = (4.3, 2.75)  # narrow, so that text stays legible at the width of a phone
PNG_DPI = 160
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
    colour: int = 0
    dash: str = "-"


@dataclass(frozen=True)
class Chart:
    """A drawn chart."""

    title: str
    svg: Html
    png: bytes
    lines: tuple[Line, ...]


def draw(
    title: str, lines: Sequence[Line], *, unit: str = "", log: bool = False, bounds: tuple[float, float] | None = None
) -> Chart:
    """Draw lines over images seen.

    Args:
        title: What is drawn; the y axis bears the unit.
        log: Logarithmic where all values are positive.
        bounds: Fixed ends of the y axis.
    """
    with mpl.rc_context({**SETTINGS, "svg.hashsalt": title}):
        figure = Figure(figsize=SIZE_INCHES, layout="constrained")
        axes = figure.add_subplot()
        for line in lines:
            xs, ys = zip(*line.points, strict=True)
            colour = COLOURS[line.colour % len(COLOURS)]
            axes.plot(xs, ys, color=colour, linestyle=line.dash, marker="o" if len(xs) < 3 else None, markersize=4)
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
        svg = _svg(figure, title)
        return Chart(title, svg, _png(figure, title, lines), tuple(lines))


def _svg(figure: Figure, title: str) -> Html:
    out = io.BytesIO()
    FigureCanvasSVG(figure).print_svg(out, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))  # type: ignore[no-untyped-call]
    text = out.getvalue().decode()
    text = text[text.index("<svg") :]
    key = re.sub(r"\W+", "-", title)
    text = re.sub(r'\bid="', f'id="{key}-', text)
    text = re.sub(r'(href="|url\()#', rf"\1#{key}-", text)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    for index, colour in enumerate(COLOURS):
        text = text.replace(colour, f"var(--line-{index})")
    text = text.replace(INK, "var(--ink)").replace(GRID, "var(--grid)")
    text = re.sub(r"fill: #ffffff", "fill: none", text)  # the paper
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    return Html(text.replace("<svg", '<svg aria-hidden="true"', 1))


def _png(figure: Figure, title: str, lines: Sequence[Line]) -> bytes:
    axes = figure.axes[0]
    axes.set_title(title, loc="left", fontsize=10)
    handles: list[Any] = list(axes.lines)
    names = [line.name.encode("ascii", "replace").decode() for line in lines]  # the built-in font
    figure.legend(
        handles, names, loc="outside lower center", fontsize=7, ncols=1 if len(lines) < 4 else 2, frameon=False
    )
    figure.set_size_inches(SIZE_INCHES[0], SIZE_INCHES[1] + 0.2 * len(lines))
    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a name too long for the figure
        FigureCanvasAgg(figure).print_png(out, metadata={"Software": None})  # type: ignore[no-untyped-call]
    return out.getvalue()
