"""What an error says about a package that is missing can be pasted into a shell."""

from __future__ import annotations

import shlex
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from shards.extras import install_command

PROJECT = Path(__file__).resolve().parents[2]
EXTRAS = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


@pytest.mark.parametrize("extra", ["onnx", "heic", "remote", "deepspeed", "encoders", "transfer"])
def test_an_extra_is_installed_by_its_packages(extra: str) -> None:
    command = shlex.split(install_command(extra))
    assert command[:2] == ["pip", "install"]
    # The order of a package's bounds is the installer's.
    named = {(each.split(">=")[0].split("<")[0]) for each in command[2:]}
    assert named == {each.split(">=")[0] for each in EXTRAS[extra]}


def test_without_an_installation_the_checkout_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> list[str]:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", missing)
    assert install_command("onnx") == "pip install '.[onnx]' in colorgan's checkout"
