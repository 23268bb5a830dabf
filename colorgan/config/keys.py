"""The dotted keys of a settings schema, and the types of their values in words.

A schema is a tree of pydantic models; a key is the dotted path to a leaf
(`optimizer.learning_rate`). A schema may name, as class variables, its `usual` keys (those that
`--help` lists first) and the `aliases` that users type for its keys.
"""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

_NAMES = {
    bool: "true|false",
    int: "integer",
    float: "number",
    str: "text",
    Path: "path",
    type(None): "null",
}
_BOUNDS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<=", "multiple_of": "a multiple of"}
_LISTS = (list, tuple, set, frozenset)
_UNIONS = (Union, types.UnionType)


@dataclass(frozen=True)
class Key:
    """One leaf of the schema; `default` is `PydanticUndefined` where the user must give a value."""

    name: str
    field: FieldInfo
    default: Any

    @property
    def annotation(self) -> Any:
        """The declared type of the value."""
        return self.field.annotation

    @property
    def kinds(self) -> set[type]:
        """The plain types that the value, or an item of it, may have."""
        return leaf_types(self.annotation)

    @property
    def is_list(self) -> bool:
        """True if the key takes several values."""
        return is_list(self.annotation)

    @property
    def type_text(self) -> str:
        """What the key takes, in words."""
        return type_text(self.annotation, self.field.metadata)


def schema_keys(
    schema: type[BaseModel], prefix: str = "", default: BaseModel | None = None
) -> Iterator[Key]:
    """Yield every leaf of the schema in the order of its definition."""
    for name, field in schema.model_fields.items():
        group = group_of(field)
        given = getattr(default, name) if default is not None else None

        if group is not None:
            # A group's default instance may differ from its class's defaults, and is what the user
            # gets.
            inner = given if isinstance(given, BaseModel) else group_default(field)
            yield from schema_keys(group, f"{prefix}{name}.", inner)
        elif default is not None:
            yield Key(prefix + name, field, given)
        else:
            value = field.get_default(call_default_factory=True, validated_data={})
            yield Key(prefix + name, field, value)


def item_keys(key: Key) -> Iterator[Key]:
    """Yield the keys of a list's items by index 0 (`stages.0.epochs`); nothing for other keys."""
    group = item_group(key.annotation)
    if group is not None:
        # Index 0 stands for all: how many items there are is known only with the recipe.
        yield from schema_keys(group, f"{key.name}.0.")


def aliases_of(schema: type[BaseModel]) -> Mapping[str, str]:
    """Return the schema's keys by the other names that users type."""
    aliases: Mapping[str, str] = getattr(schema, "aliases", {})
    return aliases


def group_of(field: FieldInfo) -> type[BaseModel] | None:
    """Return the model of a group of keys (`Model`, `Model | None`); None for a leaf."""
    # Through `Model | None`, as optional groups have keys too.
    for part in _union_parts(field.annotation):
        if isinstance(part, type) and issubclass(part, BaseModel):
            return part
    return None


def item_group(annotation: Any) -> type[BaseModel] | None:
    """Return the model of the items of a list field (`tuple[Stage, ...]`), or None."""
    if not is_list(annotation):
        return None

    models = [kind for kind in leaf_types(annotation) if issubclass(kind, BaseModel)]
    return models[0] if models else None


def group_default(field: FieldInfo) -> BaseModel | None:
    """Return the instance that a group has when none of its keys is given, if it has one."""
    try:
        value = field.get_default(call_default_factory=True, validated_data={})
    except ValidationError:  # default_factory=Model where Model has required keys
        return None

    return value if isinstance(value, BaseModel) else None


def leaf_types(annotation: Any) -> set[type]:
    """Return the plain types of a value: through unions, lists, Annotated and Literal."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return {type(value) for value in arguments}
    if origin is Annotated:
        return leaf_types(arguments[0])
    if origin in (*_UNIONS, *_LISTS):
        kinds: set[type] = set()
        for part in arguments:
            if part is not Ellipsis:
                kinds |= leaf_types(part)
        return kinds

    # What is not a plain type takes anything; pydantic judges it later.
    return {annotation} if isinstance(annotation, type) else {object}


def is_list(annotation: Any) -> bool:
    """Return whether a value of this type is a list or a tuple."""
    return any(
        get_origin(part) in _LISTS or part in (list, tuple) for part in _union_parts(annotation)
    )


def type_text(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """Return a type in words: `integer > 0`, `list of path`, `constant|linear|cosine`."""
    parts = get_args(annotation) if get_origin(annotation) in _UNIONS else (annotation,)
    kinds = [_bare_type_text(part) for part in parts if part is not type(None)]
    text = " or ".join(kinds)

    bounds = " and ".join(_bounds(metadata))
    if bounds:
        text = f"{text} {bounds}".strip()

    return f"{text} or null" if type(None) in parts else text


def _bounds(metadata: Sequence[Any]) -> Iterator[str]:
    for item in _flat(metadata):
        for name, sign in _BOUNDS.items():
            bound = getattr(item, name, None)
            if isinstance(bound, int | float):
                yield f"{sign} {bound:g}"


def _flat(metadata: Sequence[Any]) -> Iterator[Any]:
    for item in metadata:
        if isinstance(item, FieldInfo):
            yield from _flat(item.metadata)
        else:
            yield item


def _bare_type_text(annotation: Any) -> str:
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_text(parts[0], parts[1:])
    if origin is Literal:
        return "|".join(map(str, parts))
    if origin in _LISTS:
        return _list_text(origin, parts)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return _group_text(annotation)

    return _NAMES.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _list_text(origin: Any, parts: tuple[Any, ...]) -> str:
    kinds = [type_text(part) for part in parts if part is not Ellipsis]
    # In order and once each: a set would shuffle the help page.
    text = "/".join(dict.fromkeys(kinds))
    # tuple[int, ...] is a list in all but name; tuple[int, int] is not.
    fixed_length = origin is tuple and Ellipsis not in parts
    return f"{len(parts)} x {text}" if fixed_length else f"list of {text}"


def _group_text(group: type[BaseModel]) -> str:
    fields = [
        f"{name}: {type_text(field.annotation, field.metadata)}"
        for name, field in group.model_fields.items()
    ]
    return "{" + ", ".join(fields) + "}"


def _union_parts(annotation: Any) -> tuple[Any, ...]:
    if get_origin(annotation) is Annotated:
        return _union_parts(get_args(annotation)[0])
    if get_origin(annotation) not in _UNIONS:
        return (annotation,)

    parts: tuple[Any, ...] = ()
    for part in get_args(annotation):
        parts += _union_parts(part)
    return parts
