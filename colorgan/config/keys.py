"""The dotted keys of a configuration schema, and how they are told to the user.

`colorgan.config.command_line` reads the command line with it and prints `--help` from it. A schema is a tree of pydantic
models; a key is the dotted way to a leaf (`optimizer.learning_rate`).
"""

from __future__ import annotations

import inspect
import shutil
import textwrap
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from colorgan.config.settings import default_text

_NAMES = {
    bool: "true|false",
    int: "integer",
    float: "number",
    str: "text",
    Path: "path",
    type(None): "null",
}
_BOUNDS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<=", "multiple_of": "a multiple of"}
_HARD_SPACE = "\N{NO-BREAK SPACE}"


@dataclass(frozen=True)
class Key:
    """One leaf of the schema; `default` is `PydanticUndefined` where the user must give a value."""

    name: str
    field: FieldInfo
    default: Any


def group_of(field: FieldInfo) -> type[BaseModel] | None:
    """The model behind a field that is a group of keys (`Model` or `Model | None`), or None for a leaf."""
    for part in _union_parts(field.annotation):
        if isinstance(part, type) and issubclass(part, BaseModel):
            return part
    return None


def item_group(annotation: Any) -> type[BaseModel] | None:
    """The model of which a list field holds several (`tuple[Stage, ...]`), or None."""
    if not is_list(annotation):
        return None
    models = (kind for kind in leaf_types(annotation) if issubclass(kind, BaseModel))
    return next(models, None)


def group_default(field: FieldInfo) -> BaseModel | None:
    """The instance that stands for a group when no key of it is given, if it has one."""
    try:
        value = field.get_default(call_default_factory=True, validated_data={})
    except ValidationError:  # default_factory=Model where Model has required keys
        return None
    return value if isinstance(value, BaseModel) else None


def schema_keys(
    schema: type[BaseModel], prefix: str = "", default: BaseModel | None = None
) -> Iterator[Key]:
    """Yields every leaf of the schema in the order of its definition."""
    for name, field in schema.model_fields.items():
        group = group_of(field)
        given = getattr(default, name) if default is not None else None
        if group is not None:
            inner = given if isinstance(given, BaseModel) else group_default(field)
            yield from schema_keys(group, f"{prefix}{name}.", inner)
        else:
            value = (
                given
                if default is not None
                else field.get_default(call_default_factory=True, validated_data={})
            )
            yield Key(prefix + name, field, value)


def leaf_types(annotation: Any) -> set[type]:
    """The plain types a value of this annotation may have: through unions, lists, Annotated and Literal."""
    origin = get_origin(annotation)
    if origin is Literal:
        return {type(value) for value in get_args(annotation)}
    if origin is Annotated:
        return leaf_types(get_args(annotation)[0])
    if origin in (Union, types.UnionType, list, tuple, set, frozenset):
        return set().union(
            *(leaf_types(part) for part in get_args(annotation) if part is not Ellipsis)
        )
    return {annotation} if isinstance(annotation, type) else {object}


def is_list(annotation: Any) -> bool:
    """Whether a value of this annotation is a list or a tuple."""
    return any(get_origin(part) in (list, tuple, set, frozenset) or part in (list, tuple)
               for part in _union_parts(annotation))  # fmt: skip


def type_text(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """What a key takes, in words: `integer > 0`, `list of path`, `constant|linear|cosine`."""
    bounds = " and ".join(
        f"{sign} {getattr(item, name):g}"
        for item in _flat(metadata)
        for name, sign in _BOUNDS.items()
        if isinstance(getattr(item, name, None), int | float)
    )
    parts = (
        get_args(annotation)
        if get_origin(annotation) in (Union, types.UnionType)
        else (annotation,)
    )
    kinds = [_bare_type_text(part) for part in parts if part is not type(None)]
    return " or ".join(
        [f"{' or '.join(kinds)} {bounds}".strip(), *(["null"] if type(None) in parts else [])]
    )


def help_text(
    schema: type[BaseModel], *, verb: str, description: str, next_line: str, positional: str | None
) -> str:
    """The whole text of `--help`: usage, every key in its group, and the line to run next."""
    required = [
        key.name
        for key in schema_keys(schema)
        if key.default is PydanticUndefined and key.name != positional
    ]
    usage = [
        "usage:",
        verb,
        "[--config FILE.yaml]",
        *(f"--{name} VALUE" for name in required),
        "[--key.sub VALUE ...]",
    ]
    usage += [f"{positional.upper()} ..."] if positional else []
    width = min(shutil.get_terminal_size((110, 24)).columns, 120)
    blocks = [" ".join(usage), _paragraphs(description, width), *_options(width, positional)]
    group = ""
    for key in sorted(schema_keys(schema), key=lambda key: key.name.rpartition(".")[0] != ""):
        head, _, _ = key.name.rpartition(".")
        if head != group:
            blocks.append(f"{head}:")
            group = head
        blocks[-1] += "\n" + _key_text(key, width)
    return "\n\n".join([*blocks, f"Next: {next_line}"])


def _paragraphs(text: str, width: int) -> str:
    """Fills paragraphs; indented ones (commands, tables) stay as they are."""
    blocks = inspect.cleandoc(text).split("\n\n")
    return "\n\n".join(
        block if "\n " in f"\n{block}" else textwrap.fill(block, width) for block in blocks
    )


def _options(width: int, positional: str | None) -> list[str]:
    lines = ["-h, --help  print this page and exit",
             "--config FILE.yaml  a recipe; values on the command line go before those of the recipe, "
             "the recipe's before the defaults"]  # fmt: skip
    if positional:
        lines.append(
            f"{positional.upper()} ...  bare words fill `{positional}`; after `--` every word does"
        )
    return ["\n".join(_indent(line, width) for line in lines) + "\n"]


def _key_text(key: Key, width: int) -> str:
    default = (
        "required" if key.default is PydanticUndefined else f"default: {default_text(key.default)}"
    )
    about = key.field.description or ""
    what = type_text(key.field.annotation, key.field.metadata)
    ending = f"({default})".replace(" ", _HARD_SPACE) if len(default) < 40 else f"({default})"
    return _indent(f"--{key.name} <{what}>  {about}{' ' if about else ''}{ending}", width)


def _indent(line: str, width: int) -> str:
    filled = textwrap.fill(line, width, initial_indent="  ", subsequent_indent=" " * 8, break_on_hyphens=False,
                           break_long_words=False)  # fmt: skip
    return filled.replace(_HARD_SPACE, " ")


def _union_parts(annotation: Any) -> tuple[Any, ...]:
    if get_origin(annotation) is Annotated:
        return _union_parts(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(inner for part in get_args(annotation) for inner in _union_parts(part))
    return (annotation,)


def _flat(metadata: Sequence[Any]) -> Iterator[Any]:
    for item in metadata:
        yield from _flat(item.metadata) if isinstance(item, FieldInfo) else (item,)


def _bare_type_text(annotation: Any) -> str:
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_text(parts[0], parts[1:])
    if origin is Literal:
        return "|".join(map(str, parts))
    if origin in (list, tuple, set, frozenset):
        kinds = list(dict.fromkeys(type_text(part) for part in parts if part is not Ellipsis))
        count = f"{len(parts)} x " if origin is tuple and Ellipsis not in parts else "list of "
        return count + "/".join(kinds)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        inner = (
            f"{name}: {type_text(field.annotation, field.metadata)}"
            for name, field in annotation.model_fields.items()
        )
        return "{" + ", ".join(inner) + "}"
    return _NAMES.get(annotation, getattr(annotation, "__name__", str(annotation)))
