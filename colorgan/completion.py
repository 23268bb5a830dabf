"""`colorgan completion SHELL`: a script that completes commands, their keys and recipes' names."""

from __future__ import annotations

import json
import subprocess
import sys
from argparse import ArgumentParser
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import shtab

from colorgan.config.json_schema import RECIPES, schema_leaves
from colorgan.errors import UsageError

SHELLS = ("bash", "zsh", "fish")
# Beside each command's own keys.
_FLAGS = ("--help", "--version", "--schema")


def completion_script(shell: str, scripts: Iterable[Path]) -> str:
    """Return what a shell sources to complete `colorgan`; commands are asked for their keys.

    Args:
        shell: One of `SHELLS`.
        scripts: The commands' scripts.

    Raises:
        UsageError: The shell is another one.
    """
    if shell not in SHELLS:
        raise UsageError(f"completion {shell!r}: the shells are {', '.join(SHELLS)}")

    parser = ArgumentParser("colorgan")
    commands = parser.add_subparsers()
    for script in sorted(scripts):
        schema = _schema_of(script)
        # Without help shtab leaves a command out.
        about = str(schema.get("description", ""))
        command = commands.add_parser(script.stem, add_help=False, help=about.partition("\n")[0])
        for flag in _FLAGS:
            command.add_argument(flag, action="store_true")
        command.add_argument("--config", choices=schema[RECIPES] or None)
        for name, part in schema_leaves(schema):
            _add_key(command, name, part)
    script_text: str = shtab.complete(parser, shell=shell)
    return script_text


def _schema_of(script: Path) -> dict[str, Any]:
    """Return the JSON Schema of a command's settings."""
    # In a process of its own: a script ends its process, and imports libraries of its own.
    done = subprocess.run(
        [sys.executable, str(script), "--schema"], capture_output=True, text=True, check=True
    )
    schema: dict[str, Any] = json.loads(done.stdout)
    return schema


def _add_key(command: ArgumentParser, name: str, part: dict[str, Any]) -> None:
    """Add a key with its words, or files where it takes a path."""
    forms = [part, *part.get("anyOf", ())]
    forms += [form["items"] for form in forms if isinstance(form.get("items"), dict)]
    choices: list[str] = []
    for form in forms:
        choices += map(str, form.get("enum", [form["const"]] if "const" in form else []))
        choices += ["true", "false"] if form.get("type") == "boolean" else []

    # argparse formats help with %.
    about = str(part.get("description", "")).replace("%", "%%")
    option = command.add_argument(f"--{name}", choices=choices or None, help=about)
    if any(form.get("format") == "path" for form in forms):
        option.complete = shtab.FILE  # type: ignore[attr-defined]
