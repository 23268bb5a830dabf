"""The table of a study: one class everywhere is no verdict, several comparisons are named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.drawn_runs import scored

from colorgan.evaluation.record import SavedEvaluation
from colorgan.study.comparison import ArmScores, read_arm
from colorgan.study.table import Folders, compared, only_class


def evaluated(folder: Path, columns: list[int]) -> Path:
    """Write an evaluation whose predictions are shared over three classes as in `columns`."""
    names = ["background", "cat", "dog"]
    scored(
        folder,
        "segmenter",
        names[1:],
        0,
        {"mIoU": 0.2 + columns[0] / 1e6},
    )
    text = json.loads((folder / "scores.json").read_text())
    text["confusion"] = [columns, columns, columns]
    (folder / "scores.json").write_text(json.dumps(text))

    return folder


@pytest.mark.parametrize(
    ("pretrained", "expected"),
    [
        ([10_000, 0, 1], "no verdict: every run predicts one class alone (background)"),
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


def test_a_segmenter_of_stray_pixels_knows_one_class() -> None:
    """Its predictions are spread a little, and nothing but the background is found."""
    confusion = [[900, 30, 20], [90, 1, 1], [90, 1, 1]]
    per_class = {"background": 0.8, "cat": 0.01, "dog": None}
    model = SavedEvaluation(
        kind="segmenter", scores={"mIoU": 0.3}, per_class=per_class, confusion=confusion
    )

    assert only_class(model) == "background"
    better = model.model_copy(update={"per_class": {**per_class, "cat": 0.1}})
    assert only_class(better) == ""
    # Average precision is never 0: for classifiers the predictions alone count.
    assert only_class(model.model_copy(update={"kind": "classifier"})) == ""
    assert only_class(model.model_copy(update={"confusion": []})) == ""


@pytest.mark.parametrize(
    ("noise", "word"),
    [(0.0, "stays"), (0.0055, "does not stay")],
)
def test_many_comparisons_are_named(noise: float, word: str) -> None:
    scratch = ArmScores(
        "scratch",
        {(0, seed): 0.5 for seed in range(3)},
    )
    values = {(0, seed): 0.52 + noise * (seed - 1) for seed in range(3)}
    (found,) = compared(
        {
            "gan": ArmScores("gan", values),
            "scratch": scratch,
        },
        [("gan", "scratch")],
        "mAP",
        40,
    )

    assert found.verdict.endswith(f"; {word} with Bonferroni for 40 comparisons")
