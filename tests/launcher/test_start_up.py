"""Help and mistakes in the settings are answered before anything heavy is imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.commands import LAUNCHER, PROJECT

HEAVY = {"torch", "nvidia", "matplotlib", "deepspeed", "accelerate", "tensorboard", "timm"}
COMMANDS = sorted({path.stem for path in LAUNCHER.glob("*.py")})
# Runs a script as `python SCRIPT WORDS` does, and prints its status and what it has imported.
RUN = """
import json, runpy, sys
script, *words = sys.argv[1:]
sys.argv = [script, *words]
try:
    runpy.run_path(script, run_name="__main__")
except SystemExit as ending:
    status = ending.code
print("\\n" + json.dumps([status, sorted({name.split(".")[0] for name in sys.modules})]))
"""
# Runs a program until it prints, and writes that line and what had been imported to the last word.
UNTIL_A_LINE = """
import json, os, runpy, sys
program, *words, record = sys.argv[1:]
sys.argv = [program, *words]

class Screen:
    encoding = "utf-8"
    def write(self, text):
        with open(record, "w") as file:
            json.dump([text, sorted(sys.modules)], file)
        os._exit(0)
    def flush(self): ...

sys.stdout = Screen()
runpy.run_path(program, run_name="__main__")
"""
CONSOLE = "from colorgan.console import main; main()"


def run(command: str, *words: str) -> tuple[int, set[str], str]:
    """Return the exit status, the top-level modules imported, and standard error."""
    script = str(LAUNCHER / f"{command}.py")
    done = subprocess.run(
        [sys.executable, "-c", RUN, script, *words],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        cwd=PROJECT,
    )
    status, modules = json.loads(done.stdout.splitlines()[-1])

    return status, set(modules), done.stderr


def test_every_command_is_here() -> None:
    assert {"pack", "pretrain", "consolidate", "finetune", "evaluate", "colorize"} <= set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("words", [["--help"], ["--no_such_key", "1"]], ids=["help", "mistake"])
def test_settings_are_checked_before_heavy_imports(command: str, words: list[str]) -> None:
    status, modules, error = run(command, *words)
    assert status == (0 if words == ["--help"] else 2)
    assert not modules & HEAVY
    assert "no_such_key" in error or status == 0


@pytest.mark.parametrize("before", [[], ["--config", "coco_paper"], ["--images", "64"]])
def test_all_keys_are_shown_wherever_help_stands(before: list[str]) -> None:
    words = [sys.executable, str(LAUNCHER / "pretrain.py"), *before, "--help", "all"]
    page = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True).stdout
    assert "--optimizer.warmup_images" in page
    assert "more keys" not in page


def test_a_value_out_of_range_too(tmp_path: Path) -> None:
    status, modules, error = run("pretrain", "--network.width", "-2", "--data.train", str(tmp_path))
    assert status == 2
    assert "--network.width -2: must be greater than 0" in error
    assert not modules & HEAVY


@pytest.mark.parametrize("words", [["--dry_run", "true"], ["--list_steps", "true"]])
def test_a_study_is_planned_without_heavy_imports(words: list[str], tmp_path: Path) -> None:
    status, modules, error = run("study", *words, "--out", str(tmp_path / "study"))
    assert status == 0, error
    assert not modules & HEAVY


@pytest.mark.parametrize("way", ["script", "console", "console and ranks"])
@pytest.mark.parametrize("command", ["pretrain", "finetune"])
def test_a_run_names_itself_before_heavy_imports(way: str, command: str, tmp_path: Path) -> None:
    words = ["--data.train", "shards/photos"]
    if command == "finetune":
        words += ["--data.val", "shards/photos", "--task", "classify"]
    program = LAUNCHER / f"{command}.py"
    if way != "script":
        program = tmp_path / "console.py"
        program.write_text(CONSOLE)
        words = [command, *words, *(["--nproc", "2"] if "ranks" in way else [])]
    record = tmp_path / "record.json"
    subprocess.run(
        [sys.executable, "-c", UNTIL_A_LINE, str(program), *words, str(record)],
        timeout=60,
        check=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
    )

    line, modules = json.loads(record.read_text())
    ranks = "2 ranks" if "ranks" in way else "1 rank,"
    assert line.startswith(f"{command}: ")
    assert ranks in line
    assert "shards/photos" in line
    assert not {name.split(".")[0] for name in modules} & {*HEAVY, "numpy"}
    # The standard library's and pydantic's: 275. With torch they would be over 1,100.
    assert len(modules) < 400, len(modules)
