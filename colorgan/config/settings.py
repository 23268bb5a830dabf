"""Settings as text: YAML that `--config` reads back, and differences between two recipes."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from colorgan.config.recipe import Section

# A value in a message is short, whatever a file from elsewhere holds.
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 120
_SHORT.maxlevel = 3
_MAX_ITEMS = 8
_MAX_LIST_CHARACTERS = 400


class _Dumper(yaml.SafeDumper):
    """Quotes text that `colorgan.config.recipe_file` would read as a number (`1e4`)."""


_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def dump_recipe(model: Section) -> str:
    """Return the settings as YAML that `--config` reads back to an equal model."""
    text: str = yaml.dump(
        # JSON's types only: paths and enumerations become text that YAML reads back.
        model.model_dump(mode="json", exclude=model.open_keys()),
        Dumper=_Dumper,
        sort_keys=False,
        width=110,
    )
    return text


def recipe_difference(
    old: Mapping[str, Any], new: Mapping[str, Any], ignore: Collection[str] = ()
) -> list[str]:
    """Return a line `key: old -> new` for each key on which two recipes differ, sorted by key.

    Args:
        old: Nested plain data.
        new: Nested plain data.
        ignore: Dotted keys, or whole groups, that may differ.
    """
    old_values, new_values = dict(leaves(old)), dict(leaves(new))
    # A value of its own: null is a setting, not an absence.
    absent = object()
    lines = []

    for key in sorted(old_values.keys() | new_values.keys()):
        before, after = old_values.get(key, absent), new_values.get(key, absent)
        ignored = any(key == name or key.startswith(f"{name}.") for name in ignore)
        if before != after and not ignored:
            sides = ["(absent)" if side is absent else show(side) for side in (before, after)]
            lines.append(f"{key}: {sides[0]} -> {sides[1]}")

    return lines


def show(value: Any, depth: int = 2) -> str:
    """Return a value as a user would write it, shortened to a few hundred characters."""
    # First: bool is an int, and Python's True is not how YAML writes it.
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]

    if isinstance(value, BaseModel):
        fields = [f"{name}: {default_text(inner)}" for name, inner in value]
        return "{" + ", ".join(fields) + "}"

    if isinstance(value, list | tuple):
        if not depth:
            return "[...]"
        items = [show(item, depth - 1) for item in value[:_MAX_ITEMS]]
        if len(value) > _MAX_ITEMS:
            items.append("...")
        text = ", ".join(items)
        return f"[{text}]" if len(text) < _MAX_LIST_CHARACTERS else "[...]"

    return _SHORT.repr(str(value)) if isinstance(value, str | Path) else _SHORT.repr(value)


def default_text(value: Any) -> str:
    """Return a default as `--help` shows it: a list without brackets, text without quotes."""
    if isinstance(value, list | tuple):
        return " ".join(map(default_text, value)) or "none"

    return str(value) if isinstance(value, str | Path) and str(value) else show(value)


def leaves(
    settings: Mapping[str, Any], prefix: str = "", depth: int = 20
) -> Iterator[tuple[str, Any]]:
    """Yield dotted keys and values of nested settings; an empty group is a value.

    The depth is bounded because YAML's aliases can make a group hold itself.
    """
    for key, value in settings.items():
        if isinstance(value, Mapping) and value and depth:
            yield from leaves(value, f"{prefix}{key}.", depth - 1)
        else:
            yield f"{prefix}{key}", value
