"""The console command: every command by its name, ranks by --nproc, the documented exit status."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMMANDS = sorted(path.stem for path in (ROOT / "launcher").glob("*.py"))


def colorgan(
    *words: object, cwd: Path | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run the console command of this checkout."""
    start = "from colorgan.console import main; main()"

    return subprocess.run(
        [
            sys.executable,
            "-c",
            start,
            *map(str, words),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=cwd,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "CUDA_VISIBLE_DEVICES": "-1",
            **variables,
        },
    )


def test_it_lists_every_command() -> None:
    done = colorgan("--help")
    listed = [line.split()[0] for line in done.stdout.splitlines() if line.startswith("  ")]
    assert listed == COMMANDS
    assert done.returncode == 0


def test_help_names_the_command_as_typed() -> None:
    done = colorgan("pretrain", "--help")
    assert done.stdout.startswith("usage: colorgan pretrain ")
    assert "Next: colorgan consolidate --run RUN" in done.stdout
    assert "launcher/" not in done.stdout


@pytest.mark.parametrize(
    ("words", "status", "sentence"),
    [
        (["pretrian"], 2, "'pretrian' is not a command; did you mean pretrain?"),
        (["xyz"], 2, "'xyz' is not a command; the commands are colorize,"),
        (["pack", "--nproc", "2"], 2, "--nproc: pack runs in one process"),
        (["pretrain", "--nproc", "none"], 2, "--nproc 'none': a number of ranks of at least 1"),
        (["pack", "--verify", "/nowhere"], 2, "pack a data set there with colorgan pack."),
        (["import-encoder", "--sede", "1"], 2, "--sede 1: unknown key"),
    ],
)
def test_mistakes(words: list[str], status: int, sentence: str) -> None:
    done = colorgan(*words)
    assert done.returncode == status
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


def test_ranks_fail_with_their_own_status_and_one_sentence(tmp_path: Path) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    words = ["evaluate", "--nproc=2", "--model", tmp_path, "--data", tmp_path]
    done = colorgan(*words, cwd=tmp_path, TMPDIR=str(temporary))
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if "Error" in line]
    assert len(lines) == 1
    assert lines[0].startswith("ModelFolderError: ")
    assert "Traceback" not in done.stderr
    assert [path.name for path in temporary.glob("*") if path.name.startswith("torch")] == []


def test_the_wheel_holds_commands_recipes_and_corpora(tmp_path: Path) -> None:
    try:
        setuptools = int(version("setuptools").split(".")[0])
    except PackageNotFoundError:
        setuptools = 0
    if setuptools < 77:
        pytest.skip("building needs setuptools 77")

    source = tmp_path / "source"
    source.mkdir()
    for name in ("colorgan", "shards", "datasets", "launcher"):
        shutil.copytree(
            ROOT / name,
            source / name,
        )
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet"]
    subprocess.run(
        [*build, "--wheel-dir", tmp_path, source],
        check=True,
        timeout=300,
    )

    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    tops = {name.split("/")[0] for name in names if "dist-info" not in name}
    assert tops == {"colorgan", "shards"}
    assert {f"colorgan/launcher/{command}.py" for command in COMMANDS} <= names
    recipes = (ROOT / "launcher/configs").rglob("*.yaml")
    assert {f"colorgan/{path.relative_to(ROOT)}" for path in recipes} <= names
    for package in ("report", "demo"):
        plain = [path for path in (ROOT / "colorgan" / package).rglob("*.*") if path.is_file()]
        kept = {str(path.relative_to(ROOT)) for path in plain if path.suffix != ".pyc"}
        assert kept <= names
    corpora = (ROOT / "datasets").rglob("*.py")
    assert {f"colorgan/corpora/{path.relative_to(ROOT)}" for path in corpora} <= names
