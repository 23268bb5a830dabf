"""Charts of the report: colors that follow the page, long logs, arms overlaid with their mean."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
from helpers.drawn_runs import tuned
from PIL import Image

from colorgan.report.blocks import Charts, Text
from colorgan.report.charts import ChartSpec, Files, Line, charts, draw, thinned
from colorgan.report.rendering import render
from colorgan.report.sections.finetuning import arm_curves, mean_curve
from colorgan.runs.reading import read_run


def test_charts_follow_the_pages_colors() -> None:
    files: Files = {}
    lines = [
        Line(
            "_a$b$",
            [(0, 1.0), (10, 100.0)],
        ),
        Line("b", [(5, 3.0)], 1, "--"),
    ]
    chart = draw(
        ChartSpec("A chart", lines, unit="dB", log=True),
        files,
    )

    assert "var(--line-0)" in chart.svg
    assert "var(--ink)" in chart.svg
    assert "#ffffff" not in chart.svg
    assert "mathdefault" not in chart.svg

    Image.open(io.BytesIO(files["a-chart.png"])).verify()
    data = json.loads(chart.data)
    assert [line["name"] for line in data["lines"]] == ["_a$b$", "b"]
    assert data["lines"][0]["points"] == [
        [0, 1.0],
        [10, 100.0],
    ]

    left, top, width, height = data["box"]
    assert 0 < left < left + width <= 1
    assert 0 <= top < top + height < 1


def test_one_point_is_no_chart() -> None:
    files: Files = {}
    single = ChartSpec(
        "PSNR",
        [Line("1. a", [(100, 21.25)])],
        unit="dB",
    )
    blocks = charts(
        files,
        [single, ChartSpec("SSIM", [])],
    )

    assert files == {}
    assert not any(isinstance(block, Charts) for block in blocks)
    assert blocks == [
        Text("One value each, so no curve. PSNR: 1. a 21.25 dB.", "soft"),
        Text("Not in the logs: SSIM.", "missing"),
    ]


def test_long_lines_are_means_of_stretches_and_keep_their_end() -> None:
    points = [(float(n), float(n % 2)) for n in range(10_001)]
    found = thinned(points, 101)

    assert len(found) <= 101
    assert found[-1] == points[-1]
    assert found[0] == (
        pytest.approx(49.5),
        pytest.approx(0.5),
    )
    assert thinned(points[:50], 101) == points[:50]


def test_the_mean_curve_stands_where_every_seed_has_a_point(tmp_path: Path) -> None:
    assert mean_curve(
        [
            [(1, 1.0), (2, 3.0)],
            [(2, 5.0), (3, 9.0)],
        ]
    ) == [(2, 4.0)]
    assert mean_curve([]) == []

    arms = {"scratch": [read_run(tuned(tmp_path / f"s{seed}", seed, 0.2)) for seed in (0, 1, 2)]}
    files: dict[str, bytes] = {}
    page = render(arm_curves(arms, "classify", files, "p"))

    assert "thin: a line per run; bold: their mean" in page
    assert len(re.findall(r"opacity: 0\.45", page)) == 3
    assert list(files) == ["p-training-loss.png"]
