"""The one way in of every verb: defaults <- `--config FILE.yaml` <- `--key.sub VALUE`, checked by pydantic.

`parse` turns the command line into a frozen model or raises one `UsageError` that lists every mistake;
`run_command` is the last line of each script in launcher/ and turns errors into one sentence and an exit status.
Only the reading of words stands here; what is allowed stands in the schema.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from colorgan.config.command import is_first_local_rank
from colorgan.config.keys import (
    Key,
    group_default,
    group_of,
    help_text,
    is_list,
    item_group,
    leaf_types,
    schema_keys,
    type_text,
)
from colorgan.config.problems import setting_problems
from colorgan.config.settings import show
from colorgan.errors import UsageError

M = TypeVar("M", bound=BaseModel)

MAX_RECIPE_BYTES = 1_000_000
_OPTION = re.compile(r"--[A-Za-z_]")
_NULL = ("null", "Null", "NULL", "~")


@dataclass
class _Words:
    """The command line taken apart: key -> its words; a later key has replaced an earlier one."""

    options: dict[str, list[str]] = field(default_factory=dict)
    bare: list[str] = field(default_factory=list)
    help: bool = False


def parse(
    schema: type[M],
    argv: Sequence[str],
    *,
    verb: str,
    description: str,
    next_line: str,
    positional: str | None = None,
    recipes: Path | None = None,
) -> M:
    """Reads a verb's settings: defaults, then the recipe, then the command line.

    Args:
        schema: A frozen model (tree) with `extra="forbid"`; descriptions of its fields carry the units.
        argv: The words after the script's name.
        verb: The command as the user types it, for the usage line: `accelerate launch launcher/pretrain.py`.
        next_line: The command to run after this one; the last line of `--help`.
        positional: A list field that takes the bare words (colorize's photos).
        recipes: A folder of recipes; `--config sample` is then also `recipes/sample.yaml`.

    Raises:
        UsageError: All mistakes at once, a line each.
        SystemExit: With status 0, after `--help`.
    """
    keys = {key.name: key for key in schema_keys(schema)}
    words = _split_words(argv, keys, positional)
    if words.help:
        if is_first_local_rank():
            print(
                help_text(
                    schema,
                    verb=verb,
                    description=description,
                    next_line=next_line,
                    positional=positional,
                )
            )
        raise SystemExit(0)
    config = words.options.pop("config", None) if "config" not in keys else None
    recipe, origin = _read_recipe(config, recipes)
    stray = (
        []
        if positional
        else [f"{show(word)}: a word that belongs to no key" for word in words.bare]
    )
    settings = _merge(
        _group_defaults(schema), {name: value for name, value in recipe.items() if "." not in name}
    )
    for name in (name for name in recipe if "." in name):  # `data.train: DIR` in a recipe
        stray += [problem] if (problem := _set(settings, name, recipe[name])) else []
    for name, values in words.options.items():
        key = keys.get(name)
        if not values and key and not leaf_types(key.field.annotation) & {bool, object}:
            stray.append(
                f"--{name}: needs a value, {type_text(key.field.annotation, key.field.metadata)}"
            )
        elif problem := _set(settings, name, _value(values, key)):
            stray.append(problem)
    if positional and words.bare:
        before = settings.get(positional) or []
        settings[positional] = [*before, *(_scalar(word, keys[positional]) for word in words.bare)]
    try:
        model = schema.model_validate(settings)
    except ValidationError as error:
        given = set(words.options) | ({positional} if positional else set())
        stray += list(setting_problems(error, keys, given, origin))
    if stray:
        count = f"{len(stray)} problem{'s' if len(stray) > 1 else ''}"
        raise UsageError(
            f"{count} with the settings (`{verb} --help` lists every key):\n  " + "\n  ".join(stray)
        )
    return model


def _split_words(argv: Sequence[str], keys: Mapping[str, Key], positional: str | None) -> _Words:
    words = _Words()
    name: str | None = None
    for index, word in enumerate(argv):
        if word == "--":
            words.bare += argv[index + 1 :]
            break
        if word in ("-h", "--help"):
            words.help = True
        elif _OPTION.match(word):
            name, equals, value = word[2:].partition("=")
            name = name.replace("-", "_")
            words.options[name] = [value] if equals else []
            name = None if equals else name
        elif name is None or (positional and not _takes(keys.get(name), words.options[name], word)):
            words.bare.append(word)
        else:
            words.options[name].append(word)
    return words


def _takes(key: Key | None, had: list[str], word: str) -> bool:
    """Whether a key takes one more word where words may also be bare ones: only a list takes a second."""
    if key is not None and is_list(key.field.annotation):
        return True
    if key is not None and leaf_types(key.field.annotation) == {bool}:
        return not had and word.lower() in ("true", "false", "yes", "no", "on", "off")
    return not had


def _value(words: list[str], key: Key | None) -> Any:
    values = [_scalar(word, key) for word in words]
    if not values:
        return True
    if len(values) > 1:
        return values
    if key is None or not is_list(key.field.annotation):
        return values[0]
    if words[0].startswith("[") and words[0].endswith("]"):  # --sizes "[1, 2]"
        return _yaml_scalar(words[0])
    return values if values[0] is not None else None


def _scalar(word: str, key: Key | None) -> Any:
    """A word as YAML would read it, unless its key holds only text: `--split 2012` stays text."""
    kinds = leaf_types(key.field.annotation) if key else {object}
    if type(None) in kinds and word in _NULL:
        return None
    if kinds <= {str, Path, type(None)}:
        return Path(word) if Path in kinds and str not in kinds else word
    value = _yaml_scalar(word)
    return (
        word if isinstance(value, bool) and not kinds & {bool, object} else value
    )  # pydantic takes true for 1


def _yaml_scalar(word: str) -> Any:
    try:
        return yaml.safe_load(word)
    except (
        yaml.YAMLError,
        ValueError,
        RecursionError,
    ):  # ValueError: 2024-13-45 is no date to PyYAML
        return word


def _read_recipe(config: list[str] | None, recipes: Path | None) -> tuple[dict[str, Any], str]:
    """The recipe's settings and the name it is called by in messages; ({}, "") without one."""
    if config is None:
        return {}, ""
    if len(config) != 1:
        raise UsageError(f"--config takes one file, got {len(config)}.")
    path = _find_recipe(config[0], recipes)
    try:
        with path.open("rb") as file:
            text = file.read(MAX_RECIPE_BYTES + 1)
        if len(text) > MAX_RECIPE_BYTES:
            raise UsageError(
                f"--config {path}: larger than {MAX_RECIPE_BYTES:,} bytes, so it is no recipe."
            )
        data = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UsageError(
            f"--config {path}: not valid YAML: {' '.join(str(error).split())[:300]}."
        ) from None
    except OSError as error:
        raise UsageError(f"--config {path}: {error.strerror}.") from None
    if data is not None and not (
        isinstance(data, dict) and all(isinstance(key, str) for key in data)
    ):
        raise UsageError(
            f"--config {path}: a recipe is a mapping of keys to values, this is {show(data)}."
        )
    return data or {}, str(path)


def _find_recipe(name: str, recipes: Path | None) -> Path:
    path = Path(name)
    if recipes is None or path.exists() or Path(name).name != name:
        return path
    for candidate in (recipes / name, recipes / f"{name}.yaml"):
        if candidate.is_file():
            return candidate
    known = ", ".join(sorted(file.stem for file in recipes.glob("*.yaml"))) or "none"
    raise UsageError(
        f"--config {name}: no such file, and no recipe of that name; recipes: {known}."
    )


def _group_defaults(schema: type[BaseModel], default: BaseModel | None = None) -> dict[str, Any]:
    """A dictionary for each group, holding what the schema sets: one given key must not undo the rest."""
    settings: dict[str, Any] = {}
    for name, info in schema.model_fields.items():
        given = getattr(default, name) if default is not None else None
        if item_group(info.annotation):  # so that `--stages.0.epochs 3` has something to change
            items = (
                given
                if default is not None
                else info.get_default(call_default_factory=True, validated_data={})
            )
            if isinstance(items, list | tuple):
                settings[name] = [item.model_dump(exclude_unset=True) for item in items]
        elif (
            default is not None
            and name in default.model_fields_set
            and not isinstance(given, BaseModel)
        ):
            settings[name] = given
        elif info.annotation is group_of(info) and (group := group_of(info)):
            settings[name] = _group_defaults(
                group, given if isinstance(given, BaseModel) else group_default(info)
            )
    return settings


def _merge(below: dict[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`above` over `below`, group by group; an empty group in YAML (`data:` alone) changes nothing."""
    merged = dict(below)
    for key, value in above.items():
        if isinstance(merged.get(key), dict) and (value is None or isinstance(value, dict)):
            merged[key] = _merge(merged[key], value or {})
        else:
            merged[key] = value
    return merged


def _set(settings: dict[str, Any], name: str, value: Any) -> str | None:
    """Puts a value at a dotted key, where a number (`stages.0.epochs`) is a place in a list; else says why not."""
    *groups, last = name.split(".")
    here: Any = settings
    for group in groups:
        if isinstance(here, list):
            if not group.isdigit() or int(group) >= len(here):
                return f"--{name} {show(value)}: {group!r} is no place in a list of {len(here)}; places count from 0"
            here = here[int(group)]
        elif isinstance(here, dict):
            here[group] = here.get(group) if here.get(group) is not None else {}
            here = here[group]
    if isinstance(here, dict):  # else a value stands where a group belongs, and pydantic names it
        here[last] = value
    return None
