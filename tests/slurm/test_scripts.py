"""The batch scripts where no SLURM is: help, time limits, the list of a study's steps."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from colorgan.config.recipe import PretrainRecipe

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ("pack", "pretrain", "consolidate", "finetune", "evaluate", "report", "study")


def outside_variables() -> dict[str, str]:
    """Return the environment without a job's own variables, which would be taken for the site's."""
    return {
        name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SITE"))
    }


def run(script: str, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a script of slurm/ with the Python of the tests; sbatch is not found."""
    return subprocess.run(
        [
            str(ROOT / "slurm" / f"{script}.sh"),
            *words,
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={
            **outside_variables(),
            "PYTHONPATH": str(ROOT),
            "SITE_VENV": str(Path(sys.executable).parents[1]),
            **variables,
        },
    )


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_is_answered_and_nothing_submitted(script: str) -> None:
    done = run(script, "--help")
    assert done.returncode == 0, done.stderr
    assert f"slurm/{script}.sh" in done.stdout  # the script's own lines
    assert f"launcher/{script}.py [--config FILE.yaml]" in done.stdout  # and its command's
    assert "sbatch" not in done.stderr


@pytest.mark.parametrize("limit", ["00:04:00", "5", "4:59"])
def test_a_limit_without_time_to_save_is_refused(limit: str) -> None:
    done = run("pretrain", "--run", "x", SITE_TIME=limit)
    assert done.returncode == 2
    assert "is not longer than SITE_SAVE_SECONDS (300)" in done.stderr


@pytest.mark.parametrize("limit", ["24:00:00", "6", "1-0", "UNLIMITED"])
def test_other_limits_are_submitted(limit: str, tmp_path: Path) -> None:
    # A stand-in that answers as sbatch --parsable does.
    (tmp_path / "sbatch").write_text("#!/bin/sh\necho 17\n")
    (tmp_path / "sbatch").chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = run(
        "pretrain", "--run", "x", SITE_TIME=limit, PATH=path, SITE_LOGS=str(tmp_path / "logs")
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("job 17: pretrain; log ")


def job(
    folder: Path, *words: str, lines: str = "", **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run the first part of a pretraining job in a folder, then more lines of bash; no SLURM."""
    folder.mkdir(exist_ok=True)
    # The name that SLURM gives to its copy of a script: by it the scripts know that they are a job.
    script = folder / "slurm_script"
    script.write_text(
        f"set -euo pipefail\nroot='{ROOT}'\n. $root/slurm/common.sh\nscontrol() {{ :; }}\n"
        f'begin pretrain pretrain "$@"\n{lines}\n'
    )
    return subprocess.run(
        ["bash", str(script), *words],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=folder,
        env={
            **outside_variables(),
            "HOME": str(folder / "home"),
            "SITE_VENV": str(Path(sys.executable).parents[1]),
            "SITE_LOGS": str(folder / "logs"),
            "SLURM_JOB_ID": "7",
            "SLURM_JOB_NODELIST": "here",
            **variables,
        },
    )


def run_folder(folder: Path, *words: str) -> str:
    """Return the run folder that a job watches, relative to the folder it runs in."""
    done = job(folder, *words, lines='printf "watches %s" "$run"')
    assert done.returncode == 0, done.stderr
    return done.stdout.rpartition("watches ")[2]


RUN_NAMES = [
    "run",
    *(alias for alias, key in PretrainRecipe.aliases.items() if key == "run"),
]


@pytest.mark.parametrize("name", RUN_NAMES)
def test_the_run_folder_is_found_by_all_its_names(name: str, tmp_path: Path) -> None:
    dashed = name.replace("_", "-")
    assert run_folder(tmp_path, f"--{name}", "a b") == "a b"
    assert run_folder(tmp_path, f"--{dashed}=a=b") == "a=b"
    assert run_folder(tmp_path, "--run", "first", f"--{name}", "last") == "last"
    assert run_folder(tmp_path, f"--{name}=first", "--run", "last") == "last"
    assert run_folder(tmp_path, f"--{name}=~/x") == str(tmp_path / "home/x")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('"runs/x"', "runs/x"),
        ("'runs/x'  # mine", "runs/x"),
        ('"runs/a # b" # c', "runs/a # b"),
        ("runs/x # mine", "runs/x"),
        ("runs/a b#1\t# mine", "runs/a b#1"),
        ("runs/x  \r", "runs/x"),
        ("x", "x"),
        ("~/x", "{home}/x"),
        ("# none", "runs/pretrain"),
    ],
)
def test_the_run_folder_of_a_recipe(text: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(f"seed: 1\nrun: {text}\nimages: 5\n", newline="")
    expected = expected.format(home=tmp_path / "home")
    assert run_folder(tmp_path, "--config", "r.yaml") == expected
    assert run_folder(tmp_path, "--config=none", "--config=r.yaml") == expected
    assert run_folder(tmp_path, "--config", "r.yaml", "--run_dir", "y") == "y"


def test_a_run_by_an_alias_is_seen_to_go_on(tmp_path: Path) -> None:
    for attempt in range(5):
        saves = f"signal=USR2 signal_at=1; mkdir -p mine/checkpoints/images-{attempt}; saved_text"
        done = job(tmp_path, "--output_dir", "mine", lines=saves, SLURM_RESTART_COUNT=str(attempt))
        assert done.returncode == 0, done.stdout
        assert f"images-{attempt} saved" in done.stdout

    assert len((tmp_path / "mine/slurm/jobs.tsv").read_text().splitlines()) == 5
    assert not (tmp_path / "runs").exists()


def listed(steps: list[dict[str, Any]]) -> list[list[str]]:
    done = subprocess.run(
        [sys.executable, str(ROOT / "slurm/steps.py")],
        input=json.dumps(steps),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )

    return [line.split("\t") for line in done.stdout.splitlines()]


def step(
    name: str,
    command: str,
    done: Path,
    *parents: str,
    **more: Any,
) -> dict[str, Any]:
    return {
        "name": name,
        "command": command,
        "done": str(done),
        "parents": list(parents),
        "complete": False,
        "recipe": None,
        **more,
    }


def test_the_list_of_steps(tmp_path: Path) -> None:
    table = tmp_path / "study.json"
    page = tmp_path / "report.html"
    steps = [
        step("pack a", "pack", tmp_path / "a/manifest.json", complete=True, recipe="a.yaml"),
        # Complete by its scores, one folder below the run.
        step("p/x-0", "finetune", tmp_path / "run/evaluation/scores.json", "pack a", complete=True),
        step("table", "study", table, "p/x-0"),
        step("report", "report", page, "table", recipe="r.yaml"),
    ]
    first = listed(steps)
    assert [line[:4] for line in first] == [
        ["pack-a", "pack", "cpu", "done"],
        ["p-x-0", "finetune", "gpu", "done"],
        ["table", "study", "cpu", "open"],
        ["report", "report", "cpu", "open"],
    ]
    assert first[1][4:6] == [
        str(tmp_path / "run"),
        "pack-a",
    ]
    assert first[0][4:7] == ["-", "-", "a.yaml"]

    # In the order in which a study makes them: both are then up to date.
    table.write_text("")
    page.write_text("")
    assert [line[3] for line in listed(steps)] == ["done"] * 4

    os.utime(page, (1, 1))  # older than the table that it shows
    assert [line[3] for line in listed(steps)][-1] == "open"
    steps[1]["complete"] = False  # to be made again: so is what builds on it
    assert [line[3] for line in listed(steps)] == ["done", "open", "open", "open"]
