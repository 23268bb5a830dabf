"""The page of `--help`: usage, the keys in their groups, examples, and the command to run next."""

from __future__ import annotations

import inspect
import shutil
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from colorgan.config.keys import Key, aliases_of, schema_keys
from colorgan.config.recipe_file import recipe_names
from colorgan.config.settings import default_text

# Keeps "(default: 256)" on one line when the text is filled.
_HARD_SPACE = "\N{NO-BREAK SPACE}"
_MAX_UNBROKEN = 40


@dataclass(frozen=True)
class Command:
    """How a command introduces itself.

    Attributes:
        name: As the user types it: `accelerate launch launcher/pretrain.py`.
        description: Paragraphs; indented ones stay as they are.
        next_line: The command to run after this one; the last line of the page.
        positional: The list key that takes bare words (colorize's photos), if there is one.
        recipes: Folder of the recipes that `--config NAME` finds, if there is one.
        examples: Command lines.
    """

    name: str
    description: str
    next_line: str
    positional: str | None = None
    recipes: Path | None = None
    examples: Sequence[str] = ()


def help_page(schema: type[BaseModel], command: Command, *, every_key: bool) -> str:
    """Return the text of `--help`.

    Args:
        schema: The command's settings.
        command: How it introduces itself.
        every_key: Show all keys, also where the schema names its usual ones.
    """
    # Lines of a wide terminal are hard to follow beyond this.
    width = min(shutil.get_terminal_size((110, 24)).columns, 120)
    keys = list(schema_keys(schema))
    blocks = [
        _usage(keys, command.positional, command.name),
        _paragraphs(command.description, width),
        _options(schema, command, width),
        *_key_blocks(schema, keys, width, every_key=every_key),
    ]

    if command.examples:
        blocks.append("\n".join(["Examples:", *(f"  {line}" for line in command.examples)]))
    return "\n\n".join([*blocks, f"Next: {command.next_line}"])


def _usage(keys: list[Key], positional: str | None, name: str) -> str:
    parts = ["usage:", name, "[--config FILE.yaml]"]
    for key in keys:
        # Only what must be given: the other keys would fill the screen.
        if key.default is PydanticUndefined and key.name != positional:
            parts.append(f"--{key.name} VALUE")
    parts.append("[--key.sub VALUE ...]")
    if positional:
        parts.append(f"{positional.upper()} ...")
    return " ".join(parts)


def _options(schema: type[BaseModel], command: Command, width: int) -> str:
    names = recipe_names(command.recipes, schema)
    recipes = f"; NAME is one of: {', '.join(names)}" if names else ""
    lines = [
        "-h, --help [all]  print the usual keys, or all of them, and exit",
        "--version  print the version and exit",
        "--schema  print the settings as JSON Schema, for editors, and exit",
        "--config FILE.yaml|NAME  a recipe; its values override the defaults, and those on the "
        f"command line override the recipe's{recipes}",
    ]
    if command.positional:
        upper = command.positional.upper()
        lines.append(f"{upper} ...  bare words fill `{command.positional}`; all do after `--`")
    return "\n".join(_indent(line, width) for line in lines)


def _key_blocks(
    schema: type[BaseModel], keys: list[Key], width: int, *, every_key: bool
) -> list[str]:
    usual: Sequence[str] = getattr(schema, "usual", ())
    by_name = {key.name: key for key in keys}
    other_names: dict[str, list[str]] = {}
    for alias, name in aliases_of(schema).items():
        other_names.setdefault(name, []).append(f"--{alias}")

    def text(key: Key) -> str:
        return _key_text(key, other_names.get(key.name, []), width)

    # A newcomer needs a dozen of eighty keys.
    if usual and not every_key:
        lines = [text(by_name[name]) for name in usual]
        hidden = len(keys) - len(usual)
        return ["usual keys:\n" + "\n".join(lines), f"{hidden} more keys: --help all"]

    groups: dict[str, list[str]] = {"": []}
    for key in keys:
        groups.setdefault(key.name.rpartition(".")[0], []).append(text(key))
    return ["\n".join([f"{name or 'keys'}:", *lines]) for name, lines in groups.items() if lines]


def _key_text(key: Key, aliases: list[str], width: int) -> str:
    required = key.default is PydanticUndefined
    default = "(required)" if required else f"(default: {default_text(key.default)})"
    if len(default) < _MAX_UNBROKEN:
        # A short default stays whole; a long one must be allowed to break.
        default = default.replace(" ", _HARD_SPACE)

    parts = [f"--{key.name} <{key.type_text}> ", key.field.description or ""]
    if aliases:
        parts.append(f"(also {', '.join(aliases)})")
    parts.append(default)
    return _indent(" ".join(part for part in parts if part), width)


def _paragraphs(text: str, width: int) -> str:
    """Fill paragraphs; indented ones (commands, tables) stay as they are."""
    blocks = inspect.cleandoc(text).split("\n\n")
    filled = [block if "\n " in f"\n{block}" else textwrap.fill(block, width) for block in blocks]
    return "\n\n".join(filled)


def _indent(line: str, width: int) -> str:
    filled = textwrap.fill(
        line,
        width,
        initial_indent="  ",
        subsequent_indent=" " * 8,
        # Keys and paths are copied: a break within would spoil them.
        break_on_hyphens=False,
        break_long_words=False,
    )
    return filled.replace(_HARD_SPACE, " ")
