"""pack.py imports our `datasets` even beside Hugging Face's library of the same name."""

from __future__ import annotations

import ast
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


def imports_of(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize(
    ("package", "others"),
    [
        ("datasets", {"colorgan", "shards", "launcher"}),
        ("shards", {"colorgan", "datasets", "launcher"}),
        ("colorgan", {"datasets", "shards", "launcher"}),
    ],
)
def test_the_packages_do_not_import_each_other(package: str, others: set[str]) -> None:
    files = sorted((PROJECT / package).rglob("*.py"))
    assert files
    for file in files:
        assert not imports_of(file) & others, file


def test_scripts_import_only_what_is_installed_and_bear_no_taken_name() -> None:
    scripts = {path.stem: path for path in LAUNCHER.glob("*.py")}
    assert not scripts.keys() & set(sys.stdlib_module_names)
    for path in scripts.values():
        assert not imports_of(path) & (scripts.keys() | {"launcher"}), path
        if path.stem != "pack":
            assert "datasets" not in imports_of(path), path


def test_only_one_file_imports_each_heavy_library() -> None:
    for library in ("nvidia", "deepspeed"):
        users = [
            path.name
            for package in ("colorgan", "shards")
            for path in (PROJECT / package).rglob("*.py")
            if library in imports_of(path)
        ]
        assert len(users) <= 1, users
