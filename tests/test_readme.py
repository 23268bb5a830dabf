"""The pages: no gaps left to fill, links that lead somewhere, commands with keys that exist."""

from __future__ import annotations

import re
import runpy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from colorgan.config import command_line
from colorgan.config.keys import aliases_of, group_of, item_group, schema_keys
from colorgan.models.model_config import Architecture, ModelConfig
from colorgan.models.model_folder import build_model, write_model

PROJECT = Path(__file__).resolve().parents[1]
LAUNCHER = PROJECT / "launcher"
PAGES = sorted(
    [
        *PROJECT.glob("*.md"),
        *PROJECT.glob("slurm/*.md"),
        *PROJECT.glob("docs/*.md"),
    ]
)
COMMAND = re.compile(
    r"(?:launcher/(?P<script>\w+)\.py|\bcolorgan (?P<console>[a-z_]+)|slurm/(?P<batch>\w+)\.sh)"
    r"(?P<words>[^`|\n]*)"
)
ANYWHERE = {"schema", "config", "help", "version", "nproc"}


class SchemaFoundError(Exception):
    """Carries a command's schema out of its `main`."""


@cache
def keys_of(command: str) -> tuple[set[str], set[str]]:
    """Return a command's keys and aliases, and the keys that take any keys below them."""
    found: list[Any] = []

    def parse(schema: Any, words: list[str], **more: Any) -> None:
        found.append(schema)
        raise SchemaFoundError

    patch = pytest.MonkeyPatch()
    with patch.context() as patched:
        patched.setattr(command_line, "parse", parse)
        main = runpy.run_path(str(LAUNCHER / f"{command}.py"))["main"]
        with pytest.raises(SchemaFoundError):
            main([])

    (schema,) = found
    keys = list(schema_keys(schema))
    names = {key.name for key in keys} | set(aliases_of(schema)) | set(schema.model_fields)
    open_keys = {key.name for key in keys if object in key.kinds or item_group(key.annotation)}
    assert all(group_of(key.field) is None for key in keys)
    return names | ANYWHERE, open_keys


def commands_in(text: str) -> list[tuple[str, list[str]]]:
    """Return the commands that a page shows, each with the keys that it is given."""
    joined = re.sub(r"\\\n\s*", " ", text)
    commands = []

    for match in COMMAND.finditer(joined):
        command = match["script"] or match["console"] or match["batch"]
        if (LAUNCHER / f"{command}.py").exists():
            given = re.findall(
                r"(?:^|\s)--([A-Za-z_][\w.-]*)",
                match["words"].split(" #")[0],
            )
            commands.append(
                (
                    command,
                    [name.replace("-", "_") for name in given],
                )
            )

    return commands


@pytest.mark.parametrize(
    "page",
    PAGES,
    ids=lambda page: str(page.relative_to(PROJECT)),
)
def test_pages_are_whole(page: Path) -> None:
    text = page.read_text()
    assert not re.findall(r"@[A-Z_]+@|TODO|TBD", text)
    for link in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", text):
        assert link.startswith(("http://", "https://")) or (page.parent / link).exists(), link
    for script in re.findall(r"\b(?:launcher|slurm|benchmarks)/[\w/]+\.(?:py|sh|yaml)", text):
        assert (PROJECT / script).exists(), script


@pytest.mark.parametrize(
    "page",
    PAGES,
    ids=lambda page: str(page.relative_to(PROJECT)),
)
def test_commands_are_given_keys_that_exist(page: Path) -> None:
    for command, given in commands_in(page.read_text()):
        names, open_keys = keys_of(command)
        for name in given:
            is_below = any(name.startswith(f"{key}.") for key in open_keys)
            assert name in names or is_below, f"{command} has no --{name}"


def test_the_pages_show_commands() -> None:
    shown = [command for page in PAGES for command, _ in commands_in(page.read_text())]
    assert {"pack", "pretrain", "consolidate", "finetune", "study"} <= set(shown)


@pytest.mark.parametrize("page", ["README.md"])
def test_the_lines_of_python_run(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a folder with a generator and a photo, as after the commands of the page."""
    architecture = Architecture(
        image_size=32, width=4, norm="batch", bias_before_norm=False, dropout=0.5
    )
    config = ModelConfig(kind="generator", architecture=architecture, ab_scale=110.0, images_seen=7)
    folder = tmp_path / "runs/photos/generator"
    folder.mkdir(parents=True)
    write_model(
        folder,
        build_model(config),
        config,
    )
    Image.new(
        "RGB",
        (61, 45),
        (90, 120, 150),
    ).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)

    (code,) = re.findall(
        r"```python\n(.*?)```",
        (PROJECT / page).read_text(),
        re.DOTALL,
    )
    names: dict[str, Any] = {}
    exec(code, names)

    assert names["colored"].size == (61, 45)
    assert [level.dtype for level in names["features"]] == [torch.float32] * 5
