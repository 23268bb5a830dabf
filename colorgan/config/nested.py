"""Settings as nested dictionaries: defaults, a recipe over them, dotted keys over both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from colorgan.config.keys import Key, group_default, group_of, item_group
from colorgan.config.settings import show
from colorgan.config.values import as_meant


def group_defaults(schema: type[BaseModel], default: BaseModel | None = None) -> dict[str, Any]:
    """Return the schema's defaults, so that one given key of a group does not undo the rest."""
    settings: dict[str, Any] = {}

    for name, field in schema.model_fields.items():
        group = group_of(field)
        given = getattr(default, name) if default is not None else None

        if item_group(field.annotation):
            # So that `--stages.0.epochs 3` has something to change.
            items = given if default is not None else _default(field)
            if isinstance(items, list | tuple):
                # Only what was set, so that a changed item is validated like a written one.
                settings[name] = [item.model_dump(exclude_unset=True) for item in items]
        elif group is not None:
            is_optional = field.annotation != group
            if not is_optional:  # else it stays absent until one of its keys is given
                inner = given if isinstance(given, BaseModel) else group_default(field)
                settings[name] = group_defaults(group, inner)
        elif default is not None and name in default.model_fields_set:
            settings[name] = given

    return settings


def _default(field: FieldInfo) -> Any:
    return field.get_default(call_default_factory=True, validated_data={})


def merge(below: dict[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return `above` over `below`, group by group; an empty group changes nothing."""
    # A copy: defaults are shared between calls.
    merged = dict(below)
    for key, value in above.items():
        if isinstance(merged.get(key), dict) and (value is None or isinstance(value, dict)):
            # An empty group in YAML is null.
            merged[key] = merge(merged[key], value or {})
        else:
            merged[key] = value
    return merged


def put(settings: dict[str, Any], name: str, value: Any) -> str | None:
    """Put a value at a dotted key, where a number is an index in a list (`stages.0.epochs`).

    Returns:
        Why the key cannot be set, or None.
    """
    *groups, last = name.split(".")
    here: Any = settings

    for depth, part in enumerate([*groups, last]):
        is_last = depth == len(groups)
        path = ".".join(groups[:depth])

        if isinstance(here, list):
            problem = _index_problem(here, path, part, name)
            if problem:
                return f"--{name} {show(value)}: {problem}"
            if is_last:
                here[int(part)] = value
            else:
                here = here[int(part)]
        elif isinstance(here, dict):
            if is_last:
                here[part] = value
            else:
                if here.get(part) is None:
                    # An optional group exists from its first key on.
                    here[part] = {}
                here = here[part]
        else:
            return f"--{name} {show(value)}: {path} is {show(here)}, not a group of keys"

    return None


def _index_problem(items: list[Any], path: str, part: str, name: str) -> str | None:
    count = f"{path} has {len(items)} item{'s' if len(items) != 1 else ''}"
    if not part.isdigit():
        ending = name.removeprefix(path)
        keys = [f"--{path}.{index}{ending}" for index in range(len(items))]
        return f"{count}; write {' or '.join(keys)}"
    # Refused, not appended: an index in the middle of nowhere is a typing error.
    if int(part) >= len(items):
        return f"index {part} is out of range: {count}, and the first index is 0"

    return None


def values_as_meant(
    settings: dict[str, Any], keys: Mapping[str, Key]
) -> list[tuple[str, Any, str]]:
    """Put every value into the form that the schema takes.

    Returns:
        Key, value and reason for each value that is refused.
    """
    refused = []

    for name, key in keys.items():
        *groups, last = name.split(".")
        here: Any = settings
        for group in groups:
            # A recipe may hold anything: a number where a group belongs is reported by pydantic.
            here = here.get(group) if isinstance(here, dict) else None

        if isinstance(here, dict) and last in here:
            try:
                here[last] = as_meant(here[last], key)
            except ValueError as error:
                refused.append((name, here[last], str(error)))
                if key.default is not PydanticUndefined:
                    del here[last]  # else pydantic reports it too

    return refused
