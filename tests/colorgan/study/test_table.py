"""The table of a study: one class everywhere is no verdict, several comparisons are named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from helpers.commands import LAUNCHER
from helpers.drawn_runs import scored
from torch import Tensor

from colorgan.evaluation.metrics import mean_average_precision
from colorgan.evaluation.record import Evaluation, SavedEvaluation, write_evaluation
from colorgan.study.comparison import ArmScores, read_arm
from colorgan.study.plan import Plan
from colorgan.study.settings import StudySettings
from colorgan.study.table import compared, only_class, protocol_record
from colorgan.study.trial import Folders


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


def test_frozen_features_have_an_interval_over_images_and_pretraining_seeds(
    tmp_path: Path,
) -> None:
    settings = StudySettings.model_validate(
        {
            "out": tmp_path,
            "roots": {"voc": tmp_path, "pretrain": tmp_path},
            "pretrain": {"l1": {"data.train": ["x"]}},
            "pretrain_seeds": [0, 1, 2],
            "protocols": ["voc2007-linear@all"],
            "seeds": [0],
        }
    )
    (trial,) = Plan(settings, LAUNCHER).trials
    generator = torch.Generator().manual_seed(0)
    labels_NC = torch.rand(60, 3, generator=generator) < 0.4
    for name, runs in trial.evaluations().items():
        for folder in runs.values():
            noise_NC = torch.randn(60, 3, generator=generator)
            signal = 2.0 if name == "l1" else 0.0
            write_linear(folder, labels_NC, signal * labels_NC + noise_NC)
    train = trial.folder_of(trial.split.train)
    train.mkdir(parents=True)
    (train / "manifest.json").write_text('{"shards": [{"samples": 40}, {"samples": 2}]}')

    record = protocol_record(trial, settings, 1)

    assert [arm.name for arm in record.arms] == ["random", "l1"]
    assert [len(arm.values) for arm in record.arms] == [3, 3]
    assert (record.data.train, record.data.test) == (42, 60)
    (found,) = record.comparisons
    assert (found.arm, found.against) == ("l1", "random")
    assert found.low is not None and found.low > 0
    assert "over images and pretraining seeds" in found.verdict
    assert [each.metric for each in record.further] == ["mAP_11_point"]


def write_linear(folder: Path, labels_NC: Tensor, scores_NC: Tensor) -> None:
    """Write what a linear classifier on frozen features leaves."""
    difficult_NC = torch.zeros_like(labels_NC)
    usual = mean_average_precision(scores_NC, labels_NC, difficult_NC)
    eleven = mean_average_precision(scores_NC, labels_NC, difficult_NC, "11-point")
    scores = {
        "mAP": usual.value,
        "mAP_11_point": eleven.value,
        "images": float(len(labels_NC)),
        "classes": float(usual.num_classes),
    }
    per_image = {
        "sample_ids_N": torch.arange(len(labels_NC)),
        "scores_NC": scores_NC,
        "positives_NC": labels_NC.to(torch.uint8),
        "difficult_NC": difficult_NC.to(torch.uint8),
    }
    write_evaluation(folder, Evaluation(SavedEvaluation(scores=scores), per_image), {})
