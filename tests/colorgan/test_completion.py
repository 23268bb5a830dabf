"""Completion in a real shell, and the JSON Schema of settings that it is made from."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.commands import LAUNCHER, PROJECT

from colorgan.completion import completion_script
from colorgan.config.json_schema import RECIPES, schema_leaves
from colorgan.config.settings import leaves
from colorgan.errors import UsageError

CONFIGS = LAUNCHER / "configs"
COMMANDS = ("pretrain", "finetune", "pack")


def schema_of(command: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, str(LAUNCHER / f"{command}.py"), "--schema"],
        capture_output=True,
        text=True,
        check=True,
        cwd=PROJECT,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def bash_script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("completion") / "colorgan"
    path.write_text(completion_script("bash", [LAUNCHER / f"{name}.py" for name in COMMANDS]))
    return path


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["pre"], {"pretrain"}),
        (["pretrain", "--batch.prec"], {"--batch.precision"}),
        (["pretrain", "--batch.precision", ""], {"auto", "fp32", "bf16"}),
        (["pretrain", "--config", "co"], {"coco_fast", "coco_paper"}),
        (["pretrain", "--data.flip", ""], {"true", "false"}),
        (["finetune", "--task", ""], {"classify", "segment", "detect"}),
    ],
)
def test_bash_completes_commands_keys_and_values(
    bash_script: Path, words: list[str], expected: set[str]
) -> None:
    typed = ["colorgan", *words]
    ask = f'source {bash_script}; COMP_CWORD={len(words)}; COMP_WORDS=("$@"); _shtab_colorgan; '
    done = subprocess.run(
        ["bash", "-c", ask + 'printf "%s\\n" "${COMPREPLY[@]}"', "bash", *typed],
        capture_output=True,
        text=True,
        check=True,
    )
    assert set(done.stdout.split()) == expected


def test_another_shell_is_refused() -> None:
    with pytest.raises(UsageError, match="completion 'tcsh': the shells are bash, zsh, fish"):
        completion_script("tcsh", [])


@pytest.mark.parametrize("command", ["pretrain", "finetune"])
def test_the_schema_takes_every_recipe_of_the_project(command: str) -> None:
    found = schema_of(command)
    known = dict(schema_leaves(found))
    assert found[RECIPES]
    for name in found[RECIPES]:
        recipe = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
        assert {key for key, _ in leaves(recipe)} <= set(known), name

    # An editor shows what `--help` says, and no recipe has to be complete.
    assert known["batch.global_batch_size"]["description"]
    assert "required" not in json.dumps(found)
