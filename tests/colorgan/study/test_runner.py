"""The runner on small scripts: order, failure, divergence, cost, and no process left behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from helpers.commands import PROJECT

from colorgan.errors import UsageError
from colorgan.study.costs import cost_text, estimates, read_costs, write_cost
from colorgan.study.runner import Runner, StepError
from colorgan.study.steps import Step, list_steps

# Reads its recipe, notes its name and does what the recipe says.
SCRIPT = """
import os, pathlib, sys, time
import yaml
recipe = yaml.safe_load(open(sys.argv[2]))
with open(recipe["log"], "a") as log:
    log.write(recipe["name"] + "\\n")
if "status" in recipe:
    pathlib.Path(os.environ["COLORGAN_STATUS_DIR"], "rank-1").write_text(str(recipe["status"]))
    sys.exit(1)
if "sleep" in recipe:
    pathlib.Path(recipe["pid"]).write_text(str(os.getpid()))
    time.sleep(recipe["sleep"])
pathlib.Path(recipe["done"]).write_text("")
"""


@pytest.fixture
def launcher(tmp_path: Path) -> Path:
    folder = tmp_path / "launcher"
    folder.mkdir()
    (folder / "work.py").write_text(SCRIPT)
    return folder


def step(tmp_path: Path, name: str, *parents: str, may_diverge: bool = False, **keys: Any) -> Step:
    done = tmp_path / f"{name}.out"
    recipe = {
        "name": name,
        "log": str(tmp_path / "log"),
        "done": str(done),
        **keys,
    }

    return Step(name, "work", done, parents, lambda: recipe, may_diverge=may_diverge)


def run(
    tmp_path: Path,
    launcher: Path,
    steps: list[Step],
    jobs: int = 2,
) -> list[str]:
    """Run the steps; return the names of those that ran, in order."""
    (tmp_path / "log").write_text("")
    Runner(tmp_path / "steps", launcher, jobs, ()).run(steps)
    return (tmp_path / "log").read_text().split()


def test_children_run_after_their_parents_and_nothing_twice(tmp_path: Path, launcher: Path) -> None:
    steps = [
        step(tmp_path, "a"),
        step(tmp_path, "b", "a"),
        step(tmp_path, "c", "a"),
        step(tmp_path, "d", "b", "c"),
    ]
    order = run(tmp_path, launcher, steps)
    assert order[0] == "a"
    assert order[-1] == "d"
    assert sorted(order) == ["a", "b", "c", "d"]
    assert run(tmp_path, launcher, steps) == []

    # A step with another recipe runs again; its children keep their output.
    steps[1] = step(tmp_path, "b", "a", extra=1)
    assert run(tmp_path, launcher, steps) == ["b"]


def test_a_study_that_was_moved_is_complete(tmp_path: Path, launcher: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    run(old, launcher, [step(old, "a"), step(old, "b", "a", note=f"{old}/a.out")])
    old.rename(new)
    steps = [step(new, "a"), step(new, "b", "a", note=f"{new}/a.out")]
    assert run(new, launcher, steps) == []
    assert run(new, launcher, [step(new, "a", note=f"{new}/b.out")]) == ["a"]

    # As earlier versions wrote their marks.
    mark = new / "steps" / "b.done"
    mark.write_text(steps[1].text(new / "steps").partition("\n")[2])
    assert run(new, launcher, steps[1:]) == []


def test_each_step_leaves_its_cost(tmp_path: Path, launcher: Path) -> None:
    steps = [
        step(tmp_path, "x/a"),
        step(tmp_path, "x/b", "x/a"),
        step(tmp_path, "y/c"),
    ]
    (tmp_path / "x").mkdir()
    run(tmp_path, launcher, steps[:1])
    folder = tmp_path / "steps"
    minutes = read_costs(folder)

    assert list(minutes) == ["x/a"]
    assert 0 < minutes["x/a"] < 1
    # Steps of the same protocol are estimated by those that have run, others by the recipe.
    found = estimates(steps, folder, {"x/a"}, {"work": 7.0})

    assert found == {"x/a": minutes["x/a"], "x/b": minutes["x/a"], "y/c": 7.0}
    text = cost_text(steps, folder, {})
    assert "and 1 steps of unknown cost" in text
    assert text.splitlines()[1].split()[:2] == ["x/a", "complete"]


def test_a_cost_is_estimated_by_the_arm_and_by_complete_steps_alone(
    tmp_path: Path, launcher: Path
) -> None:
    steps = [step(tmp_path, name) for name in ("short@0", "long@0", "long@1", "other@0")]
    folder = tmp_path / "steps"
    folder.mkdir()
    for one, minutes in zip(steps[:3], (2.0, 8.0, 0.1), strict=True):
        write_cost(folder, one, seconds=1.0, core_seconds=60 * minutes)

    # long@1 was stopped after a tenth of a minute.
    found = estimates(steps, folder, {"short@0", "long@0"}, {"work": 7.0})

    assert found == {"short@0": 2.0, "long@0": 8.0, "long@1": 8.0, "other@0": 5.0}


def test_a_failure_holds_what_depends_on_it_and_begins_nothing_new(
    tmp_path: Path, launcher: Path
) -> None:
    steps = [
        step(tmp_path, "bad", status=69),
        step(tmp_path, "child", "bad"),
        step(tmp_path, "other"),
    ]

    with pytest.raises(StepError, match="bad ended with status 69") as error:
        run(tmp_path, launcher, steps, jobs=1)
    assert error.value.exit_status == 69
    assert (tmp_path / "log").read_text().split() == ["bad"]


@pytest.mark.parametrize(
    ("status", "hint"),
    [(78, "the study had other settings before"), (66, "a generator was replaced")],
)
def test_the_status_of_a_rank_says_what_to_do(
    tmp_path: Path, launcher: Path, status: int, hint: str
) -> None:
    """The launcher of a step ends with 1 whatever its ranks end with."""
    with pytest.raises(StepError, match=hint):
        run(tmp_path, launcher, [step(tmp_path, "a", status=status, run="RUN")])


def test_divergence_is_remembered_where_it_is_allowed(tmp_path: Path, launcher: Path) -> None:
    steps = [
        step(tmp_path, "high", may_diverge=True, status=65),
        step(tmp_path, "rates", "high"),
    ]

    assert run(tmp_path, launcher, steps) == ["high", "rates"]
    assert run(tmp_path, launcher, steps) == []
    with pytest.raises(StepError, match="status 65"):
        run(tmp_path, launcher, [step(tmp_path, "low", status=65)])

    # A scheduler that asks for the steps is not told to run it, nor what follows from it, again.
    listed = json.loads(list_steps(steps, tmp_path / "steps"))
    assert all(each["complete"] for each in listed)


def test_one_step_needs_its_parents(tmp_path: Path, launcher: Path) -> None:
    steps = [step(tmp_path, "a"), step(tmp_path, "b", "a")]
    runner = Runner(tmp_path / "steps", launcher, 1, ())
    with pytest.raises(UsageError, match="--step b: a must be complete first"):
        runner.run_one(steps[1], steps)
    runner.run_one(steps[0], steps)
    runner.run_one(steps[1], steps)
    assert (tmp_path / "b.out").exists()


STUDY = """
import json, sys
from pathlib import Path
from colorgan.study.runner import Runner
from colorgan.study.steps import Step
folder, recipe = Path(sys.argv[1]), json.loads(sys.argv[2])
with Runner(folder / "steps", folder / "launcher", 1, ()) as runner:
    runner.run([Step("long", "work", Path(recipe["done"]), (), lambda: recipe)])
"""


def lives(process: int) -> bool:
    """Return whether a process exists and is not a zombie."""
    status = Path(f"/proc/{process}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs util-linux' setpriv")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_no_step_outlives_its_study(tmp_path: Path, launcher: Path, number: signal.Signals) -> None:
    pid = tmp_path / "pid"
    recipe = {
        "name": "long",
        "log": str(tmp_path / "log"),
        "done": str(tmp_path / "out"),
        "sleep": 300,
        "pid": str(pid),
    }
    command = [sys.executable, "-c", STUDY, str(tmp_path), json.dumps(recipe)]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as study:
        deadline = time.monotonic() + 120
        while not (pid.exists() and pid.read_text()) and time.monotonic() < deadline:
            time.sleep(0.05)
        step_process = int(pid.read_text())
        assert lives(step_process)
        study.send_signal(number)
        study.wait(timeout=60)

    deadline = time.monotonic() + 60
    while lives(step_process) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not lives(step_process)
