"""Settings as dotted keys: text, YAML, differences."""

from __future__ import annotations

import reprlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel


def dump_recipe(model: BaseModel) -> str:
    """The settings as YAML that `--config` reads back to an equal model."""
    return yaml.safe_dump(model.model_dump(mode="json"), sort_keys=False, width=110)


def recipe_difference(
    a: Mapping[str, Any], b: Mapping[str, Any], ignore: Collection[str] = ()
) -> list[str]:
    """Lines `key: old -> new`, sorted, for each key on which two recipes (nested plain data) differ.

    Args:
        ignore: Dotted keys, or whole groups, that may differ.
    """
    old, new = dict(leaves(a)), dict(leaves(b))
    absent = object()
    lines = []
    for key in sorted(old.keys() | new.keys()):
        left, right = old.get(key, absent), new.get(key, absent)
        skipped = any(key == name or key.startswith(f"{name}.") for name in ignore)
        if left != right and not skipped:
            sides = ["(absent)" if side is absent else show(side) for side in (left, right)]
            lines.append(f"{key}: {sides[0]} -> {sides[1]}")
    return lines


_SHORT = reprlib.Repr()


_SHORT.maxstring = _SHORT.maxother = 120


_SHORT.maxlevel = 3


def show(value: Any, depth: int = 2) -> str:
    """A value as a user would write it, shortened: never more than a few hundred characters."""
    if value is True or value is False or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, BaseModel):
        return "{" + ", ".join(f"{name}: {default_text(inner)}" for name, inner in value) + "}"
    if isinstance(value, list | tuple):
        inside = ", ".join(show(item, depth - 1) for item in value[:8]) if depth else ""
        return (
            f"[{inside}{', ...' if len(value) > 8 else ''}]"
            if depth and len(inside) < 400
            else "[...]"
        )
    return _SHORT.repr(str(value)) if isinstance(value, str | Path) else _SHORT.repr(value)


def default_text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " ".join(map(default_text, value)) or "none"
    return str(value) if isinstance(value, str | Path) and str(value) else show(value)


def leaves(
    settings: Mapping[str, Any], prefix: str = "", depth: int = 20
) -> Iterator[tuple[str, Any]]:
    """Yields dotted keys and values of nested settings; an empty group is a value.

    YAML's aliases can make a group hold itself, hence the depth.
    """
    for key, value in settings.items():
        if isinstance(value, Mapping) and value and depth:
            yield from leaves(value, f"{prefix}{key}.", depth - 1)
        else:
            yield f"{prefix}{key}", value
