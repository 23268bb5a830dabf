"""What a run says that it was made with."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from colorgan.runs import provenance
from colorgan.runs.provenance import device_name, source_version, versions


def test_versions_are_those_that_are_imported() -> None:
    found = versions("c0ffee")
    assert found["Python"] == platform.python_version()
    assert found["torch"] == torch.__version__
    assert found["numpy"] == np.__version__
    assert found["DALI"].count(".") >= 1
    assert found["source"] == "c0ffee"


def test_the_device_is_named() -> None:
    assert device_name(torch.device("cpu")).startswith("CPU, ")


def test_the_commit_is_not_that_of_a_project_around_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*words: str) -> None:
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", *who, *words], cwd=tmp_path, check=True, capture_output=True)

    package = tmp_path / "venv" / "provenance.py"
    package.parent.mkdir()
    package.write_text("")
    (tmp_path / ".gitignore").write_text("venv\n")
    git("init")
    git("add", ".")
    git("commit", "-m", "a user's own project")
    monkeypatch.setattr(provenance, "__file__", str(package))
    assert "." in source_version()  # the installed version

    git("add", "-f", "venv")
    git("commit", "-m", "now it is part of it")
    assert len(source_version()) == 40

    # What was edited and not committed cannot be found again by the commit.
    package.write_text("edited = True")
    assert source_version()[40:] == "+changes"
