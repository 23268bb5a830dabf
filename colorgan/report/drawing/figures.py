"""Groups of charts in the page: figures with captions and legends, each drawn as a PNG beside the page too."""

from __future__ import annotations

from collections.abc import Sequence

from colorgan.report.drawing.charts import COLOURS, Chart, Line, draw
from colorgan.report.drawing.html import Html, element, join, missing

Files = dict[str, bytes]  # what lies beside the page: name -> bytes
Spec = tuple[str, list[Line], str, dict[str, object]]  # title, lines, note, options of charts.draw


def charts(files: Files, specs: Sequence[Spec], prefix: str = "") -> Html:
    """Draw what has data; name what has none.

    Args:
        prefix: begins the names of the PNGs.
    """
    figures, absent = [], []
    for title, lines, note, options in specs:
        if not lines:
            absent.append(title)
            continue
        stem = free_name(files, f"{prefix} {title}")
        chart = draw(title, lines, key=stem, **options)  # type: ignore[arg-type]
        files[f"{stem}.png"] = chart.png
        figures.append(chart_figure(chart, note))
    gone = missing(f"Not in the logs: {', '.join(absent)}.") if absent else None
    return join([element("div", *figures, class_="charts") if figures else None, gone])


def chart_figure(chart: Chart, note: str = "", told: str = "") -> Html:
    """Return a chart with its caption; `told` is read aloud in place of the lines' ends."""
    caption = element(
        "figcaption", chart.title, element("span", note, class_="note") if note else None
    )
    return element(
        "figure", caption, element("div", chart.svg, role="img", aria_label=told or _ends(chart))
    )


def free_name(files: Files, title: str) -> str:
    """Return a name for a PNG, without its ending, that no other file has."""
    words = "".join(c if c.isascii() and c.isalnum() else " " for c in title.lower()).split()
    stem = name = "-".join(words)[:80] or "chart"
    number = 1
    while f"{name}.png" in files:
        number += 1
        name = f"{stem}-{number}"
    return name


def legend(entries: Sequence[tuple[str, int]]) -> Html:
    """Return names beside the colours of their places."""

    def swatch(place: int) -> Html:
        return element(
            "span", class_="swatch", style=f"border-color: var(--line-{place % len(COLOURS)})"
        )

    return element(
        "ul", *(element("li", swatch(place), name) for name, place in entries), class_="legend"
    )


def percent(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return shares as per cents."""
    return [(images, 100 * value) for images, value in points]


def _ends(chart: Chart) -> str:
    ends = [
        f"{line.name} from {line.points[0][1]:.3g} to {line.points[-1][1]:.3g}"
        for line in chart.lines[:8]
    ]
    return f"{chart.title}: {'; '.join(ends)}"
