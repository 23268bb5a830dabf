"""The table of a study: one class everywhere is no verdict, several comparisons are named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.drawn_runs import scored

from colorgan.study.comparison import ArmScores, read_arm
from colorgan.study.table import Folders, compared


def evaluated(folder: Path, columns: list[int]) -> Path:
    """Write an evaluation whose predictions are shared over three classes as in `columns`."""
    names = ["background", "cat", "dog"]
    scored(folder, "segmenter", names[1:], 0, {"mIoU": 0.2 + columns[0] / 1e6})
    text = json.loads((folder / "scores.json").read_text())
    text["confusion"] = [columns, columns, columns]
    (folder / "scores.json").write_text(json.dumps(text))
    return folder


@pytest.mark.parametrize(
    ("pretrained", "expected"),
    [
        ([10_000, 0, 1], "no verdict: every run predicts one class (background)"),
        ([10_000, 900, 20], "pretrained is"),
    ],
)
def test_runs_that_predict_one_class_have_no_verdict(
    tmp_path: Path, pretrained: list[int], expected: str
) -> None:
    folders: Folders = {
        name: {(0, seed): evaluated(tmp_path / f"{name}-{seed}", columns) for seed in (0, 1)}
        for name, columns in (("scratch", [9_000, 0, 0]), ("pretrained", pretrained))
    }
    scores = {name: read_arm(name, runs, "mIoU") for name, runs in folders.items()}
    (found,) = compared(scores, [("pretrained", "scratch")], "mIoU", 1, folders)
    assert found.verdict.startswith(expected)


@pytest.mark.parametrize(("noise", "word"), [(0.0, "stays"), (0.0055, "does not stay")])
def test_many_comparisons_are_named(noise: float, word: str) -> None:
    scratch = ArmScores("scratch", {(0, seed): 0.5 for seed in range(3)})
    values = {(0, seed): 0.52 + noise * (seed - 1) for seed in range(3)}
    (found,) = compared(
        {"gan": ArmScores("gan", values), "scratch": scratch}, [("gan", "scratch")], "mAP", 40
    )
    assert found.verdict.endswith(f"; {word} with Bonferroni for 40 comparisons")
