"""A study by linear classification of a folder of photos: each of its steps, to the table."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from helpers.commands import LAUNCHER, Command
from helpers.small_models import write_generator
from PIL import Image

from colorgan.errors import UsageError
from colorgan.study.checks import check
from colorgan.study.plan import Plan
from colorgan.study.settings import StudySettings

CLASSES = {"dark": 40, "light": 210, "middle": 120}


@pytest.fixture
def settings(tmp_path: Path) -> StudySettings:
    """Return a study of a generator of random weights, on classes that differ in lightness."""
    random = np.random.default_rng(0)
    for split, number in (("train", 8), ("val", 4)):
        for name, level in CLASSES.items():
            folder = tmp_path / "photos" / split / name
            folder.mkdir(parents=True)
            for place in range(number):
                pixels_HW3 = random.normal(level, 15, (48, 48, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels_HW3).save(folder / f"{place}.png")
    (tmp_path / "photos" / "classes.txt").write_text("\n".join(CLASSES))

    return StudySettings(
        out=tmp_path / "study",
        roots={"folder": tmp_path / "photos", "voc": tmp_path},
        generators={"mine": write_generator(tmp_path / "generator")},
        protocols=("folder-softmax",),
        seeds=(0, 1),
    )


def test_its_steps_lead_to_a_comparison(
    settings: StudySettings, tmp_path: Path, command: Command
) -> None:
    check(settings)
    plan = Plan(settings, LAUNCHER)
    assert plan.trials[0].split.title == "trained on the folder train, scored on val"
    for step in plan.steps:
        if step.action is not None:
            step.action()
            continue
        recipe = tmp_path / "step.yaml"
        recipe.write_text(yaml.safe_dump(dict(step.recipe())))
        command(step.command, "--config", recipe)
        assert step.done.is_file(), step.name

    (table,) = json.loads((settings.out / "study.json").read_text())["protocols"]
    assert (table["task"], table["metric"]) == ("softmax", "top1")
    assert table["data"] == {
        "title": "trained on the folder train, scored on val",
        "train": 24,
        "test": 12,
        "classes": 3,
    }
    assert {arm["name"]: len(arm["values"]) for arm in table["arms"]} == {"random": 2, "mine": 1}
    # Lightness is what any encoder of grey shows.
    assert all(value > 0.5 for arm in table["arms"] for value in arm["values"])
    (comparison,) = table["comparisons"]
    assert comparison["arm"] == "mine"
    assert "over images and random weights, of one pretraining run" in comparison["verdict"]
    # Of three classes five are never the best five.
    assert table["further"] == []


def test_without_a_folder_val_all_photos_are_split_by_class(
    settings: StudySettings, tmp_path: Path
) -> None:
    (tmp_path / "photos" / "val").rename(tmp_path / "elsewhere")
    split = Plan(settings, LAUNCHER).trials[0].split
    assert (split.train.split, split.train.stratify, split.test.fold) == ("all", "40,10,50", "test")


def test_the_folder_is_asked_for(settings: StudySettings) -> None:
    without = settings.model_copy(
        update={"roots": settings.roots.model_copy(update={"folder": None})}
    )
    with pytest.raises(UsageError, match=r"folder-softmax needs --roots\.folder, the folder of"):
        check(without)
