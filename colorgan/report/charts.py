"""Charts of the report, drawn twice: SVG in the page, for light and dark, and PNG beside it.

Colors in the SVG are CSS variables of style.css. The page's script shows values under the pointer
from `Figure.data`.
"""

from __future__ import annotations

import io
import json
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure as Drawing
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, NullFormatter

from colorgan.report.blocks import Block, Charts, Figure, Text

# Okabe and Ito's colors, distinct for color-blind readers; without yellow, too faint on white.
COLORS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#56b4e9",
    "#e69f00",
    "#7f6fc1",
    "#7a7a7a",
)
INK, GRID = "#1b1b1f", "#c9c9cf"
SIZE_INCHES = (4.3, 2.75)  # narrow, so that text stays legible at the width of a phone
PNG_DPI = 160
MAX_POINTS = 400  # of a line: one per pixel, and a page of many charts stays a page
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

# Images seen can be 10 million: kept as numbers, formatted by the axis.
Points = Sequence[tuple[float, float]]
Files = dict[str, bytes]  # the files beside the page: name -> bytes


@dataclass(frozen=True)
class Line:
    """One curve.

    Attributes:
        points: (images seen, value).
        color: its place among the colors.
        thin: one of several whose mean is drawn too.
    """

    name: str
    points: Points
    color: int = 0
    dash: str = "-"
    thin: bool = False


@dataclass(frozen=True)
class ChartSpec:
    """A chart of lines over images seen.

    Attributes:
        unit: of the y axis.
        log: logarithmic, if all values are positive.
        bounds: fixed ends of the y axis.
    """

    title: str
    lines: Sequence[Line]
    note: str = ""
    unit: str = ""
    log: bool = False
    bounds: tuple[float, float] | None = None


def charts(files: Files, specs: Sequence[ChartSpec], prefix: str = "") -> list[Block]:
    """Return the charts of specs with curves; single values as text, absent ones by name.

    Args:
        files: receives the PNGs.
        specs: in order.
        prefix: begins the names of the PNGs.
    """
    # A curve needs two points: one point is a number, and no point is a gap in the log.
    figures, single, absent = [], [], []
    for spec in specs:
        if any(len(line.points) > 1 for line in spec.lines):
            figures.append(draw(spec, files, prefix))
        elif spec.lines:
            values = [f"{line.name} {line.points[0][1]:.4g}" for line in spec.lines]
            single.append(f"{spec.title}: {', '.join(values)} {spec.unit}".strip() + ".")
        else:
            absent.append(spec.title)

    blocks: list[Block] = []
    if figures:
        blocks.append(Charts(figures))
    if single:
        blocks.append(Text(f"One value each, so no curve. {' '.join(single)}", "soft"))
    if absent:
        blocks.append(Text(f"Not in the logs: {', '.join(absent)}.", "missing"))
    return blocks


def draw(spec: ChartSpec, files: Files, prefix: str = "") -> Figure:
    """Draw a chart; its PNG is put into `files`."""
    stem = free_name(files, f"{prefix} {spec.title}")
    with mpl.rc_context({**SETTINGS, "svg.hashsalt": stem}):
        drawing = Drawing(figsize=SIZE_INCHES, layout="constrained")
        axes = drawing.add_subplot()
        for line in spec.lines:
            _plot(axes, line)
        _scale(axes, spec)

        # The SVG first: the PNG adds a title and a legend to the same drawing.
        svg = svg_of(drawing, stem)
        named = [line for line in spec.lines if not line.thin]
        data = _data(axes, named, spec.unit)
        files[f"{stem}.png"] = _png(drawing, spec.title, named)
    return Figure(
        spec.title,
        svg,
        _ends(spec.title, named),
        spec.note,
        data,
    )


def _plot(axes: Axes, line: Line) -> None:
    points = thinned(line.points)
    stroke: dict[str, Any] = {"marker": "o" if len(points) < 3 else None, "markersize": 4}
    # Faint, so that the mean stands out of ten runs.
    if line.thin:
        stroke = {"linewidth": 0.8, "alpha": 0.45}
    xs, ys = zip(*points, strict=True)
    axes.plot(
        xs,
        ys,
        color=color_of(line.color),
        linestyle=line.dash,
        **stroke,
    )


def _scale(axes: Axes, spec: ChartSpec) -> None:
    """Set the axes: images seen from 0, values by the spec."""
    if spec.log and all(y > 0 for line in spec.lines for _, y in line.points):
        # Only where all values are positive: a log axis drops zeros without a word.
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    if spec.bounds:
        axes.set_ylim(*spec.bounds)

    # Runs of one recipe are compared from the start, also where logging began late.
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.locator_params(axis="x", nbins=5)
    axes.set_xlabel("images seen")
    axes.set_ylabel(spec.unit)


def _data(axes: Axes, lines_shown: Sequence[Line], unit: str) -> str:
    """Return, for the page's script, the points and the place of the axes in the drawing."""
    # The layout is fixed by now: the SVG was drawn.
    box = axes.get_position()
    lines = []
    for line in lines_shown:
        # Five digits: more than the pointer's label has room for, in a smaller page.
        points = [[round(x), float(f"{y:.5g}")] for x, y in thinned(line.points)]
        lines.append(
            {
                "name": line.name,
                "color": line.color % len(COLORS),
                "points": points,
            }
        )
    return json.dumps(
        {
            "box": [
                round(each, 4)
                for each in (
                    box.x0,
                    1 - box.y1,
                    box.width,
                    box.height,
                )
            ],
            "x": axes.get_xlim(),
            "unit": unit,
            "lines": lines,
        },
        separators=(",", ":"),
    )


def color_of(place: int) -> str:
    """Return the color of a place; they repeat."""
    return COLORS[place % len(COLORS)]


def percent(points: Points) -> list[tuple[float, float]]:
    """Return shares as percentages."""
    return [(images, 100 * value) for images, value in points]


def thinned(points: Points, most: int = MAX_POINTS) -> list[tuple[float, float]]:
    """Return at most that many points: means of equal stretches, the last point as it is."""
    if len(points) <= most:
        return list(points)

    # Rounded up, so that the means and the last point stay below the limit.
    size = -(-(len(points) - 1) // (most - 1))
    means = []
    for first in range(0, len(points) - 1, size):
        part = points[first : min(first + size, len(points) - 1)]
        xs, ys = zip(*part, strict=True)
        means.append((sum(xs) / len(part), sum(ys) / len(part)))
    return [*means, points[-1]]


def svg_of(drawing: Drawing, key: str) -> Markup:
    """Return a drawing as SVG whose colors follow the page.

    Args:
        drawing: of matplotlib.
        key: makes its ids distinct from those of the page's other charts.
    """
    out = io.BytesIO()
    plain_file = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    FigureCanvasSVG(drawing).print_svg(out, metadata=plain_file)  # type: ignore[no-untyped-call]
    text = out.getvalue().decode()
    text = text[text.index("<svg") :]
    # An id counts for the whole page: charts must not share markers and clip paths.
    key = re.sub(r"\W+", "-", key)
    text = re.sub(r'\bid="', f'id="{key}-', text)
    text = re.sub(r'(href="|url\()#', rf"\1#{key}-", text)

    # Its style sheet would hold for the whole page; the width comes from the page.
    text = re.sub(
        r"<(metadata|style).*?</\1>",
        "",
        text,
        flags=re.DOTALL,
    )
    for side in ("width", "height"):
        text = re.sub(
            rf'(<svg[^>]*?) {side}="[^"]*"',
            r"\1",
            text,
            count=1,
        )

    # From colors to variables: dark mode and print change them without a second drawing.
    for index, color in enumerate(COLORS):
        text = text.replace(color, f"var(--line-{index})")
    text = text.replace(INK, "var(--ink)").replace(GRID, "var(--grid)")
    text = text.replace("fill: #ffffff", "fill: none")  # the paper
    return Markup(text.replace("<svg", '<svg aria-hidden="true"', 1))


def plain(text: str) -> str:
    """Return text that the built-in font can draw."""
    return text.encode("ascii", "replace").decode()


def _png(drawing: Drawing, title: str, lines: Sequence[Line]) -> bytes:
    axes = drawing.axes[0]
    axes.set_title(title, loc="left", fontsize=10)
    drawing.legend(
        [line for line in axes.lines if line.get_alpha() is None],
        [plain(line.name) for line in lines],
        loc="outside lower center",
        fontsize=7,
        ncols=1 if len(lines) < 4 else 2,
        frameon=False,
    )
    # The legend has its own room, so that charts of ten lines stay as high as others.
    drawing.set_size_inches(SIZE_INCHES[0], SIZE_INCHES[1] + 0.2 * len(lines))
    return png_of(drawing)


def png_of(drawing: Drawing) -> bytes:
    """Return a drawing as PNG on white."""
    drawing.set_dpi(PNG_DPI)
    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a name too long for the figure
        FigureCanvasAgg(drawing).print_png(out, metadata={"Software": None})  # type: ignore[no-untyped-call]
    return out.getvalue()


def free_name(files: Files, title: str) -> str:
    """Return a name for a PNG, without its ending, that no other file has."""
    # Names of logged values come from files: letters and digits alone reach the disk.
    words = "".join(c if c.isascii() and c.isalnum() else " " for c in title.lower()).split()
    stem = name = "-".join(words)[:80] or "chart"
    # Two runs may log under one name.
    number = 1
    while f"{name}.png" in files:
        number += 1
        name = f"{stem}-{number}"
    return name


def _ends(title: str, lines: Sequence[Line]) -> str:
    ends = [
        f"{line.name} from {line.points[0][1]:.3g} to {line.points[-1][1]:.3g}"
        for line in lines[:8]
    ]
    return f"{title}: {'; '.join(ends)}"
