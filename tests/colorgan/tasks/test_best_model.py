"""The best model of a run: kept, not lost over a resume, and when training stops improving."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from helpers.networks import small_config

from colorgan.distributed.ranks import Ranks
from colorgan.models.model_folder import build_model, load_model
from colorgan.tasks.best_model import BestModel

CONFIG = small_config("classifier")


def validated(
    best: BestModel,
    scores: list[float],
    first: int = 1,
) -> list[int]:
    """Score one model after the other, its bias naming it; return images seen of the best ones."""
    model = build_model(CONFIG)
    for images_seen, score in enumerate(scores, start=first):
        with torch.no_grad():
            model.get_parameter("head.7.bias").fill_(images_seen)
        best.consider(
            {"mAP": score},
            images_seen,
            model,
            lambda seen=images_seen: CONFIG.model_copy(update={"images_seen": seen}),  # type: ignore[misc]
        )

    assert best.record is not None
    return [best.record.images_seen, best.record.validations_since]


def best_of(folder: Path) -> BestModel:
    return BestModel(
        folder,
        Ranks.single(),
        ("mIoU_own_size", "mAP"),
    )


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([0.1, 0.3, 0.2], [2, 1]),
        ([0.3, 0.3, 0.2], [1, 2]),
        ([0.1, 0.2, 0.3], [3, 0]),
        ([0.1, math.nan, 0.05], [1, 2]),
    ],
)
def test_the_best_model_is_in_the_folder(
    tmp_path: Path, scores: list[float], expected: list[int]
) -> None:
    best = best_of(tmp_path / "best")

    assert validated(best, scores) == expected
    model, config = load_model(tmp_path / "best", "classifier")
    assert config.images_seen == expected[0]
    assert model.get_parameter("head.7.bias").tolist() == [expected[0]] * 2
    assert best.text() == (
        f"best mAP {100 * scores[expected[0] - 1]:.2f} % at {expected[0]} images: "
        f"{tmp_path / 'best'}"
    )


def test_a_resume_judges_nothing_twice(tmp_path: Path) -> None:
    whole = best_of(tmp_path / "whole")
    validated(whole, [0.1, 0.4, 0.2, 0.3, 0.35])
    cut = best_of(tmp_path / "cut")
    validated(cut, [0.1, 0.4, 0.2])
    again = best_of(tmp_path / "cut")
    again.restore()
    validated(
        again,
        [0.4, 0.2, 0.3, 0.35],
        first=2,
    )  # resumed before the second validation

    assert again.record == whole.record


def test_patience_counts_validations_without_a_better_one(tmp_path: Path) -> None:
    best = best_of(tmp_path / "best")
    validated(best, [0.4, 0.2, 0.3])
    assert not best.is_stale(3, 3)
    assert best.is_stale(2, 3)
    assert not best.is_stale(0, 3)
    assert not best.is_stale(2, 2)  # a record from beyond where the run stands now
    assert best.may_end(3) and best.may_end(2)
    assert not best.may_end(4)
    assert not best.may_end(0)


def test_a_damaged_record_is_none_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    best = best_of(tmp_path / "best")
    validated(best, [0.4])
    (tmp_path / "best" / "best.json").write_text('{"score": 5')
    best.restore()
    assert best.record is None
    assert best.text() == ""
    assert "best.json cannot be read" in capsys.readouterr().out
