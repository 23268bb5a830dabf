"""The settings of a command: defaults <- `--config FILE.yaml` <- `--key.sub VALUE`.

`parse` turns the command line into a frozen model, or raises one `UsageError` that lists every
mistake. The steps have files of their own: `words` (the form), `values` (numbers, paths),
`recipe_file`, `nested` (one over the other), `problems` and `help_page`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from colorgan.config.command import is_first_local_rank
from colorgan.config.help_page import Command, help_page
from colorgan.config.json_schema import json_schema
from colorgan.config.keys import Key, aliases_of, schema_keys
from colorgan.config.nested import group_defaults, merge, put, values_as_meant
from colorgan.config.problems import Given, setting_problems
from colorgan.config.recipe_file import MAX_RECIPE_BYTES, read_recipe
from colorgan.config.settings import show
from colorgan.config.values import words_to_value
from colorgan.config.words import Words, split_words
from colorgan.errors import UsageError

__all__ = ["MAX_RECIPE_BYTES", "parse"]

M = TypeVar("M", bound=BaseModel)


def parse(
    schema: type[M],
    argv: Sequence[str],
    *,
    command: str,
    description: str,
    next_line: str,
    positional: str | None = None,
    recipes: Path | None = None,
    examples: Sequence[str] = (),
) -> M:
    """Return a command's settings: the defaults, the recipe over them, the command line over both.

    Args:
        schema: A frozen model (tree) with `extra="forbid"`; the descriptions of its fields name
            the units.
        argv: The words after the script's name.
        command: As the user types it, for the usage line: `accelerate launch launcher/pretrain.py`.
        description: What the command does; paragraphs.
        next_line: The command to run after this one; the last line of `--help`.
        positional: A list key that takes the bare words (colorize's photos).
        recipes: A folder of recipes; `--config sample` is then also `recipes/sample.yaml`.
        examples: Command lines for `--help`.

    Raises:
        UsageError: All mistakes at once, one per line.
        SystemExit: With status 0, after `--help`, `--version` and `--schema`.
    """
    about = Command(command, description, next_line, positional, recipes, examples)
    keys = {key.name: key for key in schema_keys(schema)}
    aliases = aliases_of(schema)

    words = split_words(argv, keys, aliases, positional)
    if words.help or words.version or words.schema:
        _print_and_exit(schema, about, words)

    # A schema may have a key of that name.
    recipe_words = words.options.pop("config", None) if "config" not in keys else None
    recipe, origin = _read(recipe_words, recipes)
    on_command_line = set(words.options) | ({positional} if positional else set())
    given = Given(keys, aliases, on_command_line, origin)

    # Defaults first, one key at a time: a group given in part keeps the rest of its defaults.
    settings = _with_recipe(group_defaults(schema), recipe, given, words.problems)
    _add_words(settings, words, keys, positional)
    # After everything is in place, so that recipe and command line are judged alike.
    for name, value, reason in values_as_meant(settings, keys):
        words.problems.append(f"{given.label(name)} {show(value)}: {reason}")

    model: M | None = None
    try:
        model = schema.model_validate(settings)
    except ValidationError as error:
        words.problems += setting_problems(error, given)

    # All mistakes together: users fix what they are shown, and would start once per mistake.
    if words.problems or model is None:
        raise UsageError(_all_problems(words.problems, command))
    return model


def _print_and_exit(schema: type[BaseModel], about: Command, words: Words) -> None:
    # Help from every rank would be printed over itself.
    if is_first_local_rank():
        if words.help:
            print(help_page(schema, about, every_key=words.help == "all"))
        elif words.schema:
            print(json.dumps(json_schema(schema, about.recipes), indent=1))
        else:
            print(f"colorgan {_version()}")
    raise SystemExit(0)


def _version() -> str:
    try:
        return version("colorgan")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "(not installed)"


def _read(recipe_words: list[str] | None, recipes: Path | None) -> tuple[dict[str, Any], str]:
    if recipe_words is None:
        return {}, ""
    if len(recipe_words) != 1:
        raise UsageError(f"--config takes one file, got {len(recipe_words)}.")
    return read_recipe(recipe_words[0], recipes)


def _with_recipe(
    defaults: dict[str, Any], recipe: dict[str, Any], given: Given, problems: list[str]
) -> dict[str, Any]:
    """Return the recipe over the defaults; its keys may be nested or dotted (`data.train: DIR`)."""
    nested = {name: value for name, value in recipe.items() if "." not in name}
    settings = merge(defaults, nested)

    for name, value in recipe.items():
        if _is_below_a_value(name, given.keys):
            problems.append(f"{given.label(name)} {show(value)}: unknown key")
            continue
        # Nested keys are merged already; dotted ones come after them and win.
        problem = put(settings, name, value) if "." in name else None
        if problem:
            problems.append(problem)
    return settings


def _is_below_a_value(name: str, keys: Mapping[str, Key]) -> bool:
    """Return whether a dotted key goes on behind a key that takes a value (`seed.x`)."""
    parts = name.split(".")
    above = [keys.get(".".join(parts[:count])) for count in range(1, len(parts))]
    return any(key is not None and not key.is_list and object not in key.kinds for key in above)


def _add_words(
    settings: dict[str, Any], words: Words, keys: dict[str, Key], positional: str | None
) -> None:
    """Put the values of the command line over the settings; add mistakes to `words.problems`."""
    for name, values in words.options.items():
        key = keys.get(name)
        # A bare `--flip` means true; a bare `--seed` is a mistake.
        if not values and key is not None and not key.kinds & {bool, object}:
            words.problems.append(f"--{name}: needs a value, {key.type_text}")
            continue
        value = words_to_value(values, key)
        if _is_below_a_value(name, keys):
            words.problems.append(f"--{name} {show(value)}: unknown key")
            continue
        problem = put(settings, name, value)
        if problem:
            words.problems.append(problem)

    if positional and words.bare:
        # Behind those of the key: `--photos a b` and `b` alone both count.
        before = settings.get(positional) or []
        settings[positional] = [*before, *words.bare]
    elif words.bare:
        words.problems += [f"{show(word)}: unexpected argument" for word in words.bare]


def _all_problems(problems: list[str], command: str) -> str:
    count = f"{len(problems)} problem{'s' if len(problems) != 1 else ''}"
    lines = "\n  ".join(problems)
    return f"{count} with the settings (`{command} --help` lists the keys):\n  {lines}"
