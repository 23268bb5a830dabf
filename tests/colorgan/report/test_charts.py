"""Charts of the report: colours that follow the page, long logs, and arms overlaid with their mean."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from helpers.drawn_runs import tuned
from PIL import Image

from colorgan.report.drawing.charts import Line, draw, thinned
from colorgan.report.sections.finetuning import arm_curves, mean_curve
from colorgan.runs.reading import read_run


def test_charts_follow_the_pages_colors() -> None:
    chart = draw(
        "A chart",
        [Line("_a$b$", [(0, 1.0), (10, 100.0)]), Line("b", [(5, 3.0)], 1, "--")],
        log=True,
    )
    assert "var(--line-0)" in chart.svg
    assert "var(--ink)" in chart.svg
    assert "#ffffff" not in chart.svg
    assert "mathdefault" not in chart.svg
    Image.open(io.BytesIO(chart.png)).verify()


def test_long_lines_are_means_of_stretches_and_keep_their_end() -> None:
    points = [(float(n), float(n % 2)) for n in range(10_001)]
    found = thinned(points, 101)
    assert len(found) <= 101
    assert found[-1] == points[-1]
    assert found[0] == (pytest.approx(49.5), pytest.approx(0.5))
    assert thinned(points[:50], 101) == points[:50]


def test_the_mean_curve_stands_where_every_seed_has_a_point(tmp_path: Path) -> None:
    assert mean_curve([[(1, 1.0), (2, 3.0)], [(2, 5.0), (3, 9.0)]]) == [(2, 4.0)]
    assert mean_curve([]) == []
    arms = {"scratch": [read_run(tuned(tmp_path / f"s{seed}", seed, 0.2)) for seed in (0, 1, 2)]}
    files: dict[str, bytes] = {}
    page = arm_curves(arms, "classify", files, "p")
    assert "thin: a line a seed; bold: their mean" in page
    assert len(re.findall(r"opacity: 0\.45", page)) == 3
    assert list(files) == ["p-training-loss.png"]
