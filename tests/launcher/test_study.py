"""The study verb on a small drawn VOC: from packing to the table, gone on with, and stopped."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from helpers.commands import LAUNCHER, command_line
from safetensors.torch import load_file, save_file

from colorgan.config.settings import leaves
from colorgan.errors import CheckpointError, ColorganError
from colorgan.models.model_folder import Architecture, ModelConfig, build_model
from colorgan.models.modes import initialise
from colorgan.models.weights_file import CONFIG, WEIGHTS
from colorgan.study.comparison import compare, read_arm
from colorgan.study.protocols import find_protocol
from colorgan.study.runner import recipe_text
from colorgan.study.trials import Arm, Trial, best_rates
from datasets.sample.corpus import write_sample

SEEDS = (3,)
PROTOCOL = "voc2012-segmentation"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe of a study of one protocol with a drawn VOC and a generator of random weights."""
    folder = tmp_path_factory.mktemp("study")
    write_sample(folder / "raw", num_train=1, num_val=1, num_voc_train=40, num_voc_val=8, size=48)
    architecture = Architecture(
        image_size=32, width=4, norm="batch", bias_before_norm=False, dropout=0.0
    )
    config = ModelConfig(kind="generator", architecture=architecture, ab_scale=128.0)
    model = build_model(config)
    initialise(model, 7)
    (folder / "generator").mkdir()
    save_file(model.state_dict(), folder / "generator" / WEIGHTS)
    (folder / "generator" / CONFIG).write_text(config.model_dump_json())
    settings = {
        "out": str(folder / "out"),
        "roots": {"voc": str(folder / "raw" / "VOCdevkit")},
        "generators": {"pretrained": str(folder / "generator")},
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
    first = command_line("python", LAUNCHER / "study.py", "--config", recipe)
    assert first.returncode == 0, first.stdout + first.stderr
    out = recipe.parent / "out"
    (row,) = json.loads((out / "study.json").read_text())["protocols"]
    assert (row["name"], row["data"]["train"], row["data"]["test"]) == (PROTOCOL, 40, 8)
    assert [arm["name"] for arm in row["arms"]] == ["scratch", "pretrained"]
    for arm in row["arms"]:
        tried = {float(rate): score for rate, score in arm["settings"]["search"].items()}
        assert list(tried) == [0.001, 0.002]
        assert arm["settings"]["stages"][0]["learning_rate"] == best_rates({"arm": tried})["arm"]
    # The table is that of the evaluation folders, and the search saw nothing of the test part.
    arms = [
        read_arm(
            name,
            {seed: out / PROTOCOL / f"{name}-{seed}" / "evaluation" for seed in SEEDS},
            row["metric"],
        )
        for name in ("pretrained", "scratch")
    ]
    assert row["comparisons"][0]["verdict"] == compare(*arms, row["metric"]).verdict in first.stdout
    assert tuple(each["metric"] for each in row["further"]) == find_protocol(PROTOCOL).further
    assert [arm["name"] for arm in row["further"][0]["arms"]] == ["scratch", "pretrained"]
    searched = load_file(
        out / PROTOCOL / "search" / "scratch-0.001" / "evaluation" / "per_image.safetensors"
    )
    (held_out,) = (out / "shards").glob("*80-20")
    judged, trained = ((held_out / f"{part}.txt").read_text().split() for part in ("val", "train"))
    assert len(searched["sample_ids_N"]) == len(judged) and len({*judged, *trained}) == 40
    assert (out / "report" / "report.html").stat().st_size > 10_000

    logs = {path: path.stat().st_mtime_ns for path in (out / "steps").glob("*.log")}
    second = command_line("python", LAUNCHER / "study.py", "--config", recipe)
    assert second.returncode == 0, second.stdout + second.stderr
    changed = {path.name for path in logs if path.stat().st_mtime_ns != logs[path]}
    assert changed == {"report.log"}


def test_a_generator_replaced_in_its_place_is_noticed(
    recipe: Path, tmp_path: Path, packed: dict[str, Path], verb: Callable[..., str]
) -> None:
    """Its steps are not taken for done, and a run that began with the old weights says so."""
    folder, run = tmp_path / "generator", tmp_path / "run"
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
    told = []
    for factor in (1.0, 1.5):
        weights = load_file(folder / WEIGHTS)
        weights["encoder.blocks.0.conv.weight"] *= factor
        save_file(weights, folder / WEIGHTS)
        arms = (Arm("scratch", None), Arm("ours", folder))
        trial = Trial(
            protocol, protocol.data[0], tmp_path, tmp_path, arms, (0,), {"image_size": 32}, {}
        )
        told.append([recipe_text(step) for step in trial.runs({}).values()])
        if factor == 1.0:
            verb(*words, "--stages", "[{epochs: 0.1, learning_rate: 0.001}]")
    assert [first == second for first, second in zip(*told, strict=True)] == [True, False]
    with pytest.raises(
        CheckpointError, match=r"began with other weights than those at init now .* or remove .*run"
    ):
        verb(*words, "--stages", "[{epochs: 0.1, learning_rate: 0.001}]")


def test_a_stopped_study_says_so_and_goes_on(recipe: Path, tmp_path: Path) -> None:
    """SIGTERM reaches the run under way, which saves; status 75, and nothing is counted as done."""
    words = ["--config", recipe, "--out", tmp_path / "out", "--jobs", 1, "--search", "[]"]
    command = [sys.executable, str(LAUNCHER / "study.py"), *map(str, words)]
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
    assert "the same command goes on" in told
    steps = tmp_path / "out" / "steps"
    assert not list(steps.glob(f"{PROTOCOL}*.done"))
    assert list(steps.glob("pack*.done"))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--protocols", "[voc2012-segmentatoin]"), "do you mean voc2012-segmentation"),
        (("--protocols", "[coco-detection]"), "needs --roots.coco"),
        (("--generators", "{scratch: gen}"), "cannot name an arm"),
        (("--epochs_times", "{nothing: 2}"), "no protocol"),
        (("--generators", "{a: /nowhere}"), "is not a model folder"),
        (("--roots.voc", "/nowhere"), "is no folder"),
        (("--finetune", "{seed: 3}"), "the study itself sets it"),
        (("--launch", "no-such-launcher x"), "there is no such program"),
    ],
)
def test_bad_settings_are_told_in_one_sentence(
    recipe: Path, tmp_path: Path, verb: Callable[..., str], words: tuple[str, str], sentence: str
) -> None:
    """What is wrong is told before anything runs."""
    with pytest.raises(ColorganError, match=sentence):
        verb("study", "--config", recipe, "--out", tmp_path / "out", *words)
    assert not list(tmp_path.glob("out/*/*.log"))


def test_nested_settings_go_before_the_protocols_own(recipe: Path) -> None:
    """`{data: {flip: false}}` says the same as `{data.flip: false}`; a search that diverged everywhere says so."""
    script = runpy.run_path(str(LAUNCHER / "study.py"), run_name="launcher_study")
    settings = script["StudySettings"](
        out=recipe.parent, finetune={"data": {"flip": False}, "head_width": 8}
    )
    flat = dict(leaves(settings.finetune))
    protocol = find_protocol(PROTOCOL)
    arms = (Arm("scratch", None), Arm("g", recipe.parent / "generator"))
    trial = Trial(
        protocol,
        protocol.data[0],
        recipe.parent,
        recipe.parent,
        arms,
        (0,),
        {"image_size": 32},
        flat,
    )
    told = [step.recipe for step in trial.runs({"scratch": 0.5, "g": 0.25}).values()]
    assert [(each["data.flip"], each["head_width"]) for each in told] == [(False, 8)] * 2
    assert [each["stages"][0]["learning_rate"] for each in told] == [0.5, 0.25]
    # Nothing that could favour an arm differs but what it starts from and what its search has found.
    assert {key for key in told[0] if told[0][key] != told[1].get(key)} == {
        "init",
        "run",
        "stages",
        "network.image_size",
    }
    assert best_rates({"a": {0.1: 0.3, 0.01: 0.3, 1.0: None}}) == {"a": 0.01}
    with pytest.raises(ColorganError, match="diverged at every rate"):
        best_rates({"a": {1.0: None, 2.0: None}})
    assert script["search"](trial, (0.5,), None) == {
        "scratch": {0.5: None},
        "g": {0.5: None},
    }  # nothing to try
    assert best_rates({"a": {0.5: None}}) == {"a": 0.5}
