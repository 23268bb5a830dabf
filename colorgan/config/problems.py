"""Mistakes in settings told to the user: the key as given, its value, what is allowed, the nearest known key.

`colorgan.config.command_line.parse` calls `setting_problems` with pydantic's report; nothing is checked here.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping
from itertools import islice

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from colorgan.config.keys import Key, item_group
from colorgan.config.settings import leaves, show

MAX_UNKNOWN = 20  # told of one unknown group


def setting_problems(
    error: ValidationError, keys: Mapping[str, Key], given: Collection[str], origin: str
) -> Iterator[str]:
    """Yields a line for each key with a mistake.

    Args:
        error: What pydantic found.
        keys: The schema's leaves by name.
        given: Keys that stood on the command line.
        origin: The recipe's file, "" without one.
    """
    lines: dict[str, list[str]] = {}
    known = {*keys, *(f"{name}.{inner}" for name, key in keys.items() for inner in _item_keys(key))}
    details = error.errors(include_url=False, include_context=False)
    for detail in details:
        if detail["type"] == "too_short" and any(
            _is_within(other["loc"], detail["loc"]) for other in details
        ):
            continue  # only because its items are wrong
        if detail["type"] == "extra_forbidden":
            prefix = ".".join(map(str, detail["loc"]))
            group = detail["input"] if isinstance(detail["input"], dict) else {}
            unknown = (
                islice(leaves(group, f"{prefix}."), MAX_UNKNOWN)
                if group
                else [(prefix, detail["input"])]
            )
            for name, value in unknown:
                head = f"{_as_given(name, given, origin)} {show(value)}: "
                lines[head] = [f"unknown key; {_nearest(name, known)}"]
        else:
            head, reason = _wrong_value(detail, keys, known, given, origin)
            lines.setdefault(head, []).append(reason)
    for head, reasons in lines.items():
        yield head + " or ".join(dict.fromkeys(reasons))


def _is_within(inner: tuple[int | str, ...], outer: tuple[int | str, ...]) -> bool:
    return len(inner) > len(outer) and inner[: len(outer)] == outer


def _item_keys(key: Key) -> Collection[str]:
    group = item_group(key.field.annotation)
    return group.model_fields if group else ()


def _without_places(name: str) -> str:
    """`stages.0.epochs` -> `stages.epochs`, as such a key stands among the known ones."""
    return ".".join(part for part in name.split(".") if not part.isdigit())


def _wrong_value(
    detail: ErrorDetails,
    keys: Mapping[str, Key],
    known: Collection[str],
    given: Collection[str],
    origin: str,
) -> tuple[str, str]:
    """The key with its value, and what is wrong with it."""
    # The place ends with the kinds of a union ("int", "str") or a place in a list of values: cut it to the key.
    parts = [str(part) for part in detail["loc"]]
    prefixes = [".".join(parts[:count]) for count in range(len(parts), 0, -1)]
    name = next(
        (prefix for prefix in prefixes if _without_places(prefix) in known), ".".join(parts)
    )
    name = _without_places(name) if _without_places(name) in keys else name
    message = detail["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    message = message.replace("Input should be", "must be").replace(" input should be", " must be")
    message = message[:1].lower() + message[1:]
    if not name:  # a validator of the whole schema
        return "", message
    if detail["type"] == "missing":
        about = keys[name].field.description if name in keys else None
        return (
            f"{_as_given(name, given, '')}: ",
            f"required, not given{f' ({about})' if about else ''}",
        )
    if detail["type"] == "model_type" and name not in keys:
        inner = ", ".join(key for key in keys if key.startswith(f"{name}."))
        message = f"a group of keys, not a value; its keys: {inner}"
    shown = (
        ""
        if isinstance(detail["input"], BaseModel | dict) and name not in keys
        else f" {show(detail['input'])}"
    )
    return f"{_as_given(name, given, origin)}{shown}: ", message


def _as_given(name: str, given: Collection[str], origin: str) -> str:
    """`--key` for what the command line said, `recipe.yaml: key` for what the recipe said."""
    on_command_line = not origin or any(name == key or name.startswith(f"{key}.") for key in given)
    return f"--{name}" if on_command_line else f"{origin}: {name}"


def _nearest(name: str, known: Collection[str]) -> str:
    name, ordered = _without_places(name), sorted(known)
    close = difflib.get_close_matches(name, ordered, n=1, cutoff=0.6)
    ends = {key.rpartition(".")[2]: key for key in reversed(ordered)}
    close = close or [
        ends[end]
        for end in difflib.get_close_matches(name.rpartition(".")[2], ends, n=1, cutoff=0.6)
    ]
    close = close or difflib.get_close_matches(name, ordered, n=1, cutoff=0.0)
    return f"the nearest known key is {close[0]}" if close else "this verb has no keys"
