"""The study command on a small drawn VOC: from packing to the table, gone on with, and stopped."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from helpers.commands import LAUNCHER, Command, command_line
from helpers.drawn_sample import write_sample
from helpers.small_models import write_generator
from safetensors.torch import load_file, save_file

from colorgan.config.settings import leaves
from colorgan.errors import CheckpointError, ColorganError, UsageError
from colorgan.files import owned_folder
from colorgan.models.model_config import WEIGHTS
from colorgan.study.arms import Arm, Start, scratch_arm
from colorgan.study.comparison import compare, read_arm
from colorgan.study.plan import Plan
from colorgan.study.protocols import find_protocol
from colorgan.study.settings import StudySettings
from colorgan.study.trial import Trial, best_rates

SEEDS = (3,)
PROTOCOL = "voc2012-segmentation"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a study of one protocol with a drawn VOC and a generator of random weights."""
    folder = tmp_path_factory.mktemp("study")
    write_sample(
        folder / "raw",
        num_train=1,
        num_val=1,
        num_voc_train=40,
        num_voc_val=8,
        size=48,
    )
    settings = {
        "out": str(folder / "out"),
        "roots": {"voc": str(folder / "raw" / "VOCdevkit")},
        "generators": {"pretrained": str(write_generator(folder / "generator"))},
        "protocols": [PROTOCOL],
        "seeds": list(SEEDS),
        "search": [0.001, 0.002],
        "epochs_times": {PROTOCOL: 0.02},
        "finetune": {"launch.torch_threads": 1},
        "jobs": 2,
    }
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(settings))

    return path


def test_a_study_ends_with_its_table_and_runs_nothing_twice(recipe: Path) -> None:
    """Scores, search, comparison and report are there; a second start only reads them."""
    first = command_line(
        "python",
        LAUNCHER / "study.py",
        "--config",
        recipe,
    )
    assert first.returncode == 0, first.stdout + first.stderr
    out = recipe.parent / "out"
    (row,) = json.loads((out / "study.json").read_text())["protocols"]
    assert (
        row["name"],
        row["data"]["train"],
        row["data"]["test"],
    ) == (PROTOCOL, 40, 8)
    assert [arm["name"] for arm in row["arms"]] == ["scratch", "pretrained"]
    for arm in row["arms"]:
        tried = {float(rate): score for rate, score in arm["settings"]["search"].items()}
        assert list(tried) == [0.001, 0.002]
        assert arm["settings"]["stages"][0]["learning_rate"] == best_rates({"arm": tried})["arm"]
    # The table is that of the evaluation folders, and the search saw nothing of the test part.
    arms = [
        read_arm(
            name,
            {(0, seed): out / PROTOCOL / f"{name}-{seed}" / "evaluation" for seed in SEEDS},
            row["metric"],
        )
        for name in ("pretrained", "scratch")
    ]
    (compared,), found = row["comparisons"], compare(*arms, row["metric"])
    assert (
        compared["difference"],
        compared["low"],
        compared["high"],
    ) == (
        found.difference,
        found.low,
        found.high,
    )
    # So short a training finds nothing but background, and the study says so.
    assert compared["verdict"] == "no verdict: every run predicts one class alone (background)"
    assert compared["verdict"] in first.stdout
    assert tuple(each["metric"] for each in row["further"]) == find_protocol(PROTOCOL).further
    assert [arm["name"] for arm in row["further"][0]["arms"]] == ["scratch", "pretrained"]
    searched = load_file(
        out / PROTOCOL / "search" / "scratch-0.001" / "evaluation" / "per_image.safetensors"
    )
    (held_out,) = (out / "shards").glob("*80-20")
    judged, trained = ((held_out / f"{part}.txt").read_text().split() for part in ("val", "train"))
    assert len(searched["sample_ids_N"]) == len(judged)
    assert len({*judged, *trained}) == 40
    assert (out / "report" / "report.html").stat().st_size > 10_000

    # Every step has a measured cost, in study.json but for the steps after the table.
    costs = {path.name.removesuffix(".cost.json") for path in (out / "steps").glob("*.cost.json")}
    assert costs == {path.stem for path in (out / "steps").glob("*.log")}
    assert "core-minutes in all" in first.stdout
    record = json.loads((out / "study.json").read_text())
    assert f"{PROTOCOL}/scratch-{SEEDS[0]}" in record["core_minutes"]

    logs = {path: path.stat().st_mtime_ns for path in (out / "steps").glob("*.log")}
    second = command_line(
        "python",
        LAUNCHER / "study.py",
        "--config",
        recipe,
    )
    assert second.returncode == 0, second.stdout + second.stderr
    changed = {path.name for path in logs if path.stat().st_mtime_ns != logs[path]}
    assert changed == {"report.log"}


def test_a_generator_replaced_in_its_place_is_noticed(
    recipe: Path,
    tmp_path: Path,
    packed: dict[str, Path],
    command: Command,
) -> None:
    """Its steps are not taken for done, and a run that began with the old weights says so."""
    folder = tmp_path / "generator"
    run = tmp_path / "run"
    shutil.copytree(recipe.parent / "generator", folder)
    protocol = find_protocol(PROTOCOL)
    words = (
        "finetune",
        "--init",
        folder,
        "--run",
        run,
        "--data.train",
        packed["voc-train"],
        "--head_width",
        8,
    )
    texts = []
    for factor in (1.0, 1.5):
        weights = load_file(folder / WEIGHTS)
        weights["encoder.blocks.0.conv.weight"] *= factor
        save_file(weights, folder / WEIGHTS)
        arms = (
            scratch_arm(),
            Arm("ours", (Start("ours", folder),)),
        )
        network = {"image_size": 32}
        trial = Trial(protocol, protocol.data[0], tmp_path, tmp_path, arms, (0,), network, {})
        texts.append([step.text(tmp_path) for step in trial.runs().values()])
        if factor == 1.0:
            command(*words, "--stages", "[{epochs: 0.1, learning_rate: 0.001}]")

    assert [first == second for first, second in zip(*texts, strict=True)] == [True, False]
    with pytest.raises(
        CheckpointError,
        match=r"started from other weights than those at init now .* or remove .*run",
    ):
        command(*words, "--stages", "[{epochs: 0.1, learning_rate: 0.001}]")


def test_a_stopped_study_says_so_and_goes_on(recipe: Path, tmp_path: Path) -> None:
    """SIGTERM reaches the run under way, which saves; status 75, and nothing is counted as done."""
    words = ["--config", recipe, "--out", tmp_path / "out", "--jobs", 1, "--search", "[]"]
    command = [
        sys.executable,
        str(LAUNCHER / "study.py"),
        *map(str, words),
    ]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as study:
        started = tmp_path / "out" / PROTOCOL / f"scratch-{SEEDS[0]}" / "recipe.yaml"
        deadline = time.monotonic() + 120
        while not started.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        os.kill(study.pid, signal.SIGTERM)
        _, told = study.communicate(timeout=120)

    assert study.returncode == 75, told
    assert "rerunning the command resumes it" in told
    steps = tmp_path / "out" / "steps"

    assert not list(steps.glob(f"{PROTOCOL}*.done"))
    assert list(steps.glob("pack*.done"))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--protocols", "[voc2012-segmentatoin]"), "do you mean voc2012-segmentation"),
        (("--protocols", "[coco-detection]"), "needs --roots.coco"),
        (("--generators", "{scratch: gen}"), "cannot name an arm"),
        (("--epochs_times", "{nothing: 2}"), "unknown protocol"),
        (("--generators", "{a: /nowhere}"), "is not a model folder"),
        (("--roots.voc", "/nowhere"), "is not a folder"),
        (("--finetune", "{seed: 3}"), "the study itself sets it"),
        (("--launch", "no-such-launcher x"), "program not found"),
        (("--protocols", "[voc2012-segmentation@0]"), "whole percentage, 1 to 99"),
        (("--protocols", "[paper-classification@10]"), "a stratified split already"),
        (("--pretrain", "{gan: {imagse: 3}}"), "imagse"),
        (("--comparisons", "[[gan, l1]]"), "is not a pair of arms"),
        (("--step", "nothing"), "the study has no step .nothing."),
    ],
)
def test_bad_settings_are_reported_in_one_sentence(
    recipe: Path,
    tmp_path: Path,
    command: Command,
    words: tuple[str, str],
    sentence: str,
) -> None:
    """Before anything runs."""
    with pytest.raises(ColorganError, match=sentence):
        command(
            "study",
            "--config",
            recipe,
            "--out",
            tmp_path / "out",
            *words,
        )

    assert not list(tmp_path.glob("out/*/*.log"))


def test_nested_settings_override_the_protocols_own(recipe: Path) -> None:
    """`{data: {flip: false}}` is `{data.flip: false}`; arms differ in start and rate alone."""
    out = recipe.parent / "nested"
    settings = StudySettings(
        out=out,
        finetune={"data": {"flip": False}, "head_width": 8},
    )
    protocol = find_protocol(PROTOCOL)
    arms = (
        scratch_arm(),
        Arm(
            "g",
            (Start("g", recipe.parent / "generator"),),
        ),
    )
    trial = Trial(
        protocol,
        protocol.data[0],
        recipe.parent,
        out,
        arms,
        (0,),
        {"image_size": 32},
        dict(leaves(settings.finetune)),
        rates=(0.25, 0.5),
    )
    runs = list(trial.runs().values())
    with pytest.raises(UsageError, match="the search of learning rates is not complete"):
        runs[0].recipe()

    trial.search_folder.mkdir(parents=True)
    scores = {
        "scratch": {"0.25": 0.1, "0.5": 0.2},
        "g": {"0.25": 0.2, "0.5": None},
    }
    (trial.search_folder / "rates.json").write_text(json.dumps(scores))
    recipes = [step.recipe() for step in runs]
    assert [(each["data.flip"], each["head_width"]) for each in recipes] == [(False, 8)] * 2
    assert [each["stages"][0]["learning_rate"] for each in recipes] == [0.5, 0.25]
    differing = {key for key in recipes[0] if recipes[0][key] != recipes[1].get(key)}
    assert differing == {"init", "run", "stages", "network.image_size"}

    single = dataclasses.replace(trial, rates=(0.5,))
    assert single.search_scores() == {"scratch": {0.5: None}, "g": {0.5: None}}
    assert not single.is_searched


def test_the_best_rate_is_the_lowest_of_equals() -> None:
    assert best_rates({"a": {0.1: 0.3, 0.01: 0.3, 1.0: None}}) == {"a": 0.01}
    assert best_rates({"a": {0.5: None}}) == {"a": 0.5}
    with pytest.raises(UsageError, match="diverged at every rate"):
        best_rates({"a": {1.0: None, 2.0: None}})


def test_the_steps_are_listed_for_a_scheduler(recipe: Path, tmp_path: Path) -> None:
    """JSON, parents first; recipes that depend on the search come later; one step runs by name."""
    out = tmp_path / "listed"
    words = [
        "--config",
        recipe,
        "--out",
        out,
        "--protocols",
        f"[{PROTOCOL}, {PROTOCOL}@50]",
    ]
    listed = command_line(
        "python",
        LAUNCHER / "study.py",
        *words,
        "--list_steps",
        "true",
    )
    assert listed.returncode == 0, listed.stderr
    steps = json.loads(listed.stdout)
    names = [step["name"] for step in steps]
    assert len(set(names)) == len(names)
    for place, step in enumerate(steps):
        assert set(step["parents"]) <= set(names[:place]), step["name"]
        assert not step["complete"]
    by_name = {step["name"]: step for step in steps}
    run = by_name[f"{PROTOCOL}/scratch-{SEEDS[0]}"]
    assert run["recipe"] is None
    assert f"{PROTOCOL}/rates" in run["parents"]
    assert Path(by_name[names[0]]["recipe"]).is_file()
    assert by_name["report"]["parents"] == ["table"]
    fewer = [name for name in names if name.startswith("pack") and "50-50" in name]
    assert len(fewer) == 1

    early = command_line(
        "python",
        LAUNCHER / "study.py",
        *words,
        "--step",
        run["name"],
    )
    assert early.returncode == 2
    assert "must be complete first" in early.stderr
    one = command_line(
        "python",
        LAUNCHER / "study.py",
        *words,
        "--step",
        names[0],
    )
    assert one.returncode == 0, one.stderr
    again = command_line(
        "python",
        LAUNCHER / "study.py",
        *words,
        "--list_steps",
        "true",
    )
    assert [step["complete"] for step in json.loads(again.stdout)[:2]] == [True, False]


def test_a_dry_run_prices_the_steps_and_names_what_can_be_shown(
    recipe: Path, tmp_path: Path
) -> None:
    words = ["--config", recipe, "--out", tmp_path / "dry", "--dry_run", "true"]
    words += ["--expected_core_minutes", "{finetune: 2.5}"]
    dry = command_line(
        "python",
        LAUNCHER / "study.py",
        *words,
    )

    assert dry.returncode == 0, dry.stderr
    # Four runs of the search and two that count, at 2.5 each; packing is not priced.
    assert re.search(r"left: 15\.0 core-minutes, and \d+ steps of unknown cost", dry.stdout)
    assert re.search(rf"{PROTOCOL}: [\d.]+ points \(8 test images, 1 fine-tuning seeds", dry.stdout)
    assert not (tmp_path / "dry").exists()


def test_a_study_holds_its_folder_and_refuses_another_kind(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text("seed: 1")
    words = ["--config", recipe, "--out", tmp_path / "run"]
    refused = command_line("python", LAUNCHER / "study.py", *words)
    assert refused.returncode == 2
    assert "something other than a study" in refused.stderr

    (tmp_path / "held" / "steps").mkdir(parents=True)
    with owned_folder(tmp_path / "held" / "steps"):
        words = ["--config", recipe, "--out", tmp_path / "held"]
        second = command_line("python", LAUNCHER / "study.py", *words)
    assert second.returncode == 2
    assert f"in use by another process (process {os.getpid()} on host " in second.stderr


def test_pretraining_seeds_are_runs_of_their_own(recipe: Path, tmp_path: Path) -> None:
    settings = StudySettings.model_validate(
        {
            "out": tmp_path / "out",
            "pretrain": {
                "l1": {
                    "network": {"image_size": 32, "width": 8},
                    "images": 64,
                }
            },
            "pretrain_seeds": [0, 7],
            "protocols": [PROTOCOL, "knn"],
            "seeds": [0, 1],
            "scale": 2,
            "roots": {"voc": recipe.parent / "raw" / "VOCdevkit"},
        }
    )
    plan = Plan(settings, LAUNCHER)
    steps = {step.name: step for step in plan.steps}

    assert [steps[f"pretrain l1@{seed}"].recipe()["seed"] for seed in (0, 7)] == [0, 7]
    assert plan.network["image_size"] == 64
    runs = [name for name in steps if name.startswith(f"{PROTOCOL}/")]

    assert runs == [
        f"{PROTOCOL}/{start}-{seed}" for seed in (0, 1) for start in ("scratch", "l1@0", "l1@7")
    ]
    assert "consolidate l1@7" in steps[f"{PROTOCOL}/l1@7-0"].parents
    # As many random weights as pretrained ones, whatever the seeds of fine-tuning are.
    assert {name for name in steps if name.startswith("knn/random")} == {
        "knn/random-0",
        "knn/random-7",
    }
    assert "consolidate l1@0" in steps["knn/random-7"].parents
    assert {"evaluate l1@0", "evaluate l1@7"} <= set(steps)
