"""Runs given by themselves, as the SLURM chain leaves them: compared like those of a study."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.drawn_runs import scored, tuned

from colorgan.report.page import write_report
from colorgan.report.report_data import read_folders
from colorgan.study.comparison import ArmScores, RunKey, compare
from datasets.corpora.voc import CLASSES

SCRATCH = {0: 0.20, 1: 0.22, 2: 0.21}
GENERATOR = {0: 0.30, 1: 0.31, 2: 0.29}


def by_run(values: dict[int, float]) -> dict[RunKey, float]:
    return {(0, seed): value for seed, value in values.items()}


def runs_of(
    folder: Path,
    arm: str,
    values: dict[int, float],
) -> list[Path]:
    init = "scratch" if arm == "scratch" else "study/pretrain/generator"
    runs = []

    for seed, value in values.items():
        run = tuned(
            folder / "classify" / arm / f"seed-{seed}",
            seed,
            2 * value,
            init,
        )
        scored(
            run / "evaluation",
            "classifier",
            CLASSES,
            seed,
            {"mAP": value},
        )
        runs.append(run)

    return runs


def test_the_table_is_that_of_a_study(tmp_path: Path) -> None:
    """Arms by what they start from, paired by seed; the page says the verdict."""
    runs = [
        *runs_of(tmp_path, "generator", GENERATOR),
        *runs_of(tmp_path, "scratch", SCRATCH),
    ]
    (study,) = read_folders(runs).studies
    (table,) = study.protocols

    assert (
        table.metric,
        table.seeds,
        table.data.test,
    ) == ("mAP", ("0", "1", "2"), 8)
    assert [(arm.name, arm.values) for arm in table.arms] == [
        ("scratch", tuple(SCRATCH.values())),
        ("generator", tuple(GENERATOR.values())),
    ]

    expected = compare(
        ArmScores("generator", by_run(GENERATOR)), ArmScores("scratch", by_run(SCRATCH)), "mAP"
    )
    (found,) = table.comparisons

    assert (found.difference, found.low, found.high) == (
        expected.difference,
        expected.low,
        expected.high,
    )
    assert found.verdict == expected.verdict

    page = write_report(runs, tmp_path / "report").read_text()
    assert "Runs by their own recipes" in page
    assert expected.verdict in page


@pytest.mark.parametrize("arm", ["scratch", "generator"])
def test_one_arm_alone_has_nothing_to_be_compared_with(tmp_path: Path, arm: str) -> None:
    assert read_folders(runs_of(tmp_path, arm, SCRATCH)).studies == []


def test_arms_of_other_seeds_are_not_compared_and_the_page_says_why(tmp_path: Path) -> None:
    runs = [
        *runs_of(tmp_path, "generator", {3: 0.3}),
        *runs_of(tmp_path, "scratch", SCRATCH),
    ]
    story = read_folders(runs)
    assert story.studies == []
    assert any("the same seeds" in note for note in story.notes)


def test_runs_of_other_recipes_are_not_put_in_one_table(tmp_path: Path) -> None:
    """Another batch is another experiment; a second run of an arm and seed is named."""
    scratch = runs_of(tmp_path, "scratch", SCRATCH)
    generator = runs_of(tmp_path, "generator", GENERATOR)
    again = tuned(
        tmp_path / "again",
        0,
        0.9,
        stages=[{"epochs": 9}],
    )
    scored(
        again / "evaluation",
        "classifier",
        CLASSES,
        0,
        {"mAP": 0.45},
    )
    story = read_folders([*scratch, *generator, again])

    assert story.studies[0].protocols[0].arms[0].values == tuple(SCRATCH.values())
    assert any("again" in note and "same arm and seed" in note for note in story.notes)
    recipe = generator[0] / "recipe.yaml"
    recipe.write_text(recipe.read_text() + "batch: {global_batch_size: 4}\n")

    assert read_folders([*scratch, *generator]).studies == []
