"""Help and mistakes in the settings are answered before anything heavy is imported."""

from __future__ import annotations

import json
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


def test_a_value_out_of_range_too(tmp_path: Path) -> None:
    status, modules, error = run("pretrain", "--network.width", "-2", "--data.train", str(tmp_path))
    assert status == 2
    assert "--network.width -2: must be greater than 0" in error
    assert not modules & HEAVY
