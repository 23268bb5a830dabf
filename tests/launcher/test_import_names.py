"""pack.py imports our `datasets` even beside Hugging Face's library of the same name."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from helpers.commands import LAUNCHER, PROJECT, TINY, command_line

STUB = "raise RuntimeError('the installed library was imported')\n"


@pytest.fixture
def installed_library(tmp_path: Path) -> dict[str, str]:
    """Return an environment whose path has a distribution named `datasets` before the project."""
    site = tmp_path / "site"
    (site / "datasets").mkdir(parents=True)
    (site / "datasets" / "__init__.py").write_text(
        "class IterableDataset: ...\nclass Dataset: ...\n"
    )
    metadata = site / "datasets-9.9.9.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: datasets\nVersion: 9.9.9\n")

    return {"PYTHONPATH": str(site)}


def test_scripts_modules_and_two_processes_run_beside_it(
    tmp_path: Path, packed: dict[str, Path], installed_library: dict[str, str]
) -> None:
    out = tmp_path / "packed"
    root = packed["train"].parents[1] / "raw" / "coco"
    words = [
        "--corpus",
        "coco",
        "--root",
        root,
        "--split",
        "val",
        "--out",
        out,
        "--image",
        "squash:32",
        "--workers",
        1,
    ]
    done = command_line("python", LAUNCHER / "pack.py", *words, env=installed_library, cwd=tmp_path)

    assert done.returncode == 0, done.stderr
    done = command_line(
        "python", "-m", "launcher.pack", "--verify", out, env=installed_library, cwd=PROJECT
    )

    assert done.returncode == 0, done.stderr
    words = ["--data.train", packed["train"], "--run", tmp_path / "run", "--images", 16, *TINY]
    profile = ["--config_file", LAUNCHER / "configs" / "accelerate" / "ddp_cpu.yaml"]
    done = command_line(
        "accelerate",
        "launch",
        *profile,
        LAUNCHER / "pretrain.py",
        *words,
        env=installed_library,
        cwd=PROJECT,
    )

    assert done.returncode == 0, done.stderr


def test_no_script_bears_the_name_of_a_standard_module() -> None:
    """A script's folder comes first on the path of a process that it starts."""
    scripts = {path.stem for path in LAUNCHER.glob("*.py")}
    assert not scripts & set(sys.stdlib_module_names)
