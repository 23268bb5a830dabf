"""Mistakes in settings as lines: the key as given, its value, what is allowed, a near key.

`colorgan.config.command_line.parse` calls `setting_problems` with pydantic's report; nothing is
checked here.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from colorgan.config.keys import Key, item_keys
from colorgan.config.settings import leaves, show

MAX_UNKNOWN = 20  # lines about one unknown group
_NEAR = 0.7  # of difflib's ratio: a letter or two are wrong


@dataclass(frozen=True)
class Given:
    """What the user gave, and where.

    Attributes:
        keys: The schema's leaves by name.
        aliases: Keys by the other names that users type.
        on_command_line: Keys that were given on the command line.
        recipe: The recipe's file, "" without one.
    """

    keys: Mapping[str, Key]
    aliases: Mapping[str, str]
    on_command_line: Collection[str]
    recipe: str

    @property
    def known(self) -> set[str]:
        """The keys of the schema, and those of the items of its lists with index 0."""
        names = set(self.keys)
        for key in self.keys.values():
            names |= {item.name for item in item_keys(key)}
        return names

    def label(self, name: str) -> str:
        """Return `--key`, or `recipe.yaml: key` where the recipe has given it."""
        parts = name.split(".")
        prefixes = {".".join(parts[:count]) for count in range(1, len(parts) + 1)}
        given_here = not self.recipe or bool(prefixes & set(self.on_command_line))
        return f"--{name}" if given_here else f"{self.recipe}: {name}"


def setting_problems(error: ValidationError, given: Given) -> Iterator[str]:
    """Yield a line for each key with a mistake."""
    lines: dict[str, list[str]] = {}
    details = error.errors(include_url=False, include_context=False)

    for detail in details:
        # A list whose items are wrong counts as too short as well; one line is enough.
        if detail["type"] == "too_short" and _has_wrong_items(detail, details):
            continue
        if detail["type"] == "extra_forbidden":
            lines |= {head: [reason] for head, reason in _unknown_keys(detail, given)}
        else:
            head, reason = _wrong_value(detail, given)
            # A union reports every member: their reasons go into one line.
            lines.setdefault(head, []).append(reason)

    for head, reasons in lines.items():
        yield head + " or ".join(dict.fromkeys(reasons))


def _has_wrong_items(detail: ErrorDetails, details: list[ErrorDetails]) -> bool:
    place = detail["loc"]
    return any(
        other["loc"][: len(place)] == place and len(other["loc"]) > len(place) for other in details
    )


def _unknown_keys(detail: ErrorDetails, given: Given) -> Iterator[tuple[str, str]]:
    prefix, value = (
        ".".join(map(str, detail["loc"])),
        detail["input"],
    )
    unknown = [(prefix, value)]
    if isinstance(value, dict) and value:
        unknown = list(islice(leaves(value, f"{prefix}."), MAX_UNKNOWN))

    for name, inner in unknown:
        yield f"{given.label(name)} {show(inner)}: ", _advice(name, given)


def _advice(name: str, given: Given) -> str:
    if name in given.aliases:
        return f"unknown key; write {given.aliases[name]}"

    near = nearest_key(name, given.known)
    return f"unknown key; the nearest known key is {near}" if near else "unknown key"


def nearest_key(name: str, known: Collection[str]) -> str | None:
    """Return the known key that a misspelt one probably means; None where none is near."""
    # Sorted, so that of two equally near keys always the same is named.
    ordered = sorted(known)
    with_index = {_without_indices(key): key for key in reversed(ordered)}

    # Without indices: `stages.epochs` is near to `stages.0.epochs`.
    close = difflib.get_close_matches(_without_indices(name), with_index, n=1, cutoff=_NEAR)
    if close:
        return with_index[close[0]]

    # `--learning_rate` for `--optimizer.learning_rate`; keys of a list's items come last.
    last_parts = {
        key.rpartition(".")[2]: key for key in sorted(ordered, key=_has_index, reverse=True)
    }
    close = difflib.get_close_matches(name.rpartition(".")[2], last_parts, n=1, cutoff=_NEAR)
    return last_parts[close[0]] if close else None


def _has_index(name: str) -> bool:
    return name != _without_indices(name)


def _without_indices(name: str) -> str:
    """`stages.0.epochs` -> `stages.epochs`."""
    return ".".join(part for part in name.split(".") if not part.isdigit())


def _wrong_value(detail: ErrorDetails, given: Given) -> tuple[str, str]:
    """Return the key with its value, and what is wrong with it."""
    name = _key_at(detail, given)
    value, reason = detail["input"], _reason(detail)
    if not name:  # a rule of the whole schema
        return "", reason

    if detail["type"] == "missing":
        # What a key is for, as the user who left it out does not know it.
        about = given.keys[name].field.description if name in given.keys else None
        meaning = f" ({about})" if about else ""
        return f"--{name}: ", f"required, not given{meaning}"

    if detail["type"] == "model_type" and name not in given.keys:
        inner = [key for key in given.keys if key.startswith(f"{name}.")]
        reason = f"a group of keys, not a value; its keys: {', '.join(inner)}"

    is_group = isinstance(value, BaseModel | dict) and name not in given.keys
    shown = "" if is_group else f" {show(value)}"
    return f"{given.label(name)}{shown}: ", reason


def _key_at(detail: ErrorDetails, given: Given) -> str:
    """Return the key of a mistake: its location without a union's kinds or a value's index."""
    parts = [str(part) for part in detail["loc"]]
    known = {_without_indices(key) for key in given.known}
    name = ".".join(parts)

    for count in range(len(parts), 0, -1):
        prefix = ".".join(parts[:count])
        if _without_indices(prefix) in known:
            name = prefix
            break

    # A tuple's index is part of pydantic's location, but no key of ours.
    plain = _without_indices(name)
    return plain if plain in given.keys else name


def _reason(detail: ErrorDetails) -> str:
    message: str = detail["msg"]
    for prefix in ("Value error, ", "Assertion failed, "):
        message = message.removeprefix(prefix)
    # pydantic's wording is about inputs; ours follows a key and its value.
    message = message.replace("Input should be", "must be").replace(" input should be", " must be")
    return message[:1].lower() + message[1:]
