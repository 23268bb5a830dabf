"""Labels of shards made elsewhere: the text of a `cls` member, or a field of a `json` member.

Indexing (shards/packing/indexing.py) reads each label once to find the classes; loading reads the
same member again by the same rules.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shards.errors import PackError
from shards.files import printable

MAX_LABEL_BYTES = 1 << 20
MAX_NAMES_BYTES = 8 << 20
JSON_PREFIX = "json:"


def label_values(content: bytes, label_format: str) -> list[int | str]:
    """Return a label's classes as they are written: numbers, or names.

    Args:
        content: The bytes of the label member.
        label_format: `cls` or `json:FIELD`; a dot in FIELD enters a nested object.

    Raises:
        ValueError: The label does not hold a class in that place; the message is the reason.
    """
    # Before parsing: JSON in memory is many times its size.
    if len(content) > MAX_LABEL_BYTES:
        raise ValueError(f"is longer than a label can sensibly be: {len(content)} bytes")

    if label_format == "cls":
        # Some writers end the member with a newline.
        return [_number_or_name(_decoded(content).strip())]

    return _field_values(content, label_format.removeprefix(JSON_PREFIX))


def read_names(path: Path) -> tuple[str, ...]:
    """Return the class names of a text file, one per line; empty lines at the end are ignored.

    Raises:
        PackError: The file cannot be read, holds none, or one twice.
    """
    try:
        with path.open("rb") as stream:
            # Lists of names often come from Windows, with a byte order mark.
            text = stream.read(MAX_NAMES_BYTES).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise PackError(f"{path}: class names cannot be read ({error}).") from error

    names = tuple(line.strip() for line in text.rstrip().splitlines())
    if not names:
        raise PackError(f"{path}: holds no class names; give one per line.")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if not all(names) or twice:
        what = f"{twice[0]!r} comes twice" if twice else "a line is empty"
        raise PackError(f"{path}: {what}; give one class name per line.")
    return names


def class_indices(content: bytes, label_format: str, classes: Sequence[str]) -> list[int]:
    """Return a label's classes as sorted indices into `classes`.

    A number is an index; a text is a class name, or a number as text.

    Raises:
        ValueError: The label does not hold a class, or one that is not in `classes`.
    """
    indices = {_index_of(value, classes) for value in label_values(content, label_format)}
    return sorted(indices)


def _decoded(content: bytes) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8: {error}") from None


def _field_values(content: bytes, field: str) -> list[int | str]:
    try:
        value: Any = json.loads(_decoded(content))
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON: {error}") from None

    for name in field.split("."):
        if not isinstance(value, dict) or name not in value:
            raise ValueError(f"has no field {field!r}")
        value = value[name]

    entries = value if isinstance(value, list) else [value]
    return [_checked(entry, field) for entry in entries]


def _checked(value: Any, field: str) -> int | str:
    # True would be class 1.
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(f"has neither a number nor a name in field {field!r}")
    return _number_or_name(value) if isinstance(value, str) else value


def _number_or_name(text: str) -> int | str:
    if not text:
        raise ValueError("is empty")
    # JSON may state half a character, which no list of classes can hold.
    if printable(text) != text:
        raise ValueError(f"is not text: {printable(text)[:80]!r}")
    # Other digits than ASCII's may be a class's name; longer numbers are WordNet's and the like. A
    # number below zero is none of the classes, and no name of one either.
    digits = text.removeprefix("-")
    if digits.isascii() and digits.isdecimal() and len(digits) <= 9:
        return int(text)
    return text


def _index_of(value: int | str, classes: Sequence[str]) -> int:
    # A set that was indexed by an earlier release may have "-1" among its names.
    if isinstance(value, int) and value < 0:
        value = str(value)
    if isinstance(value, str):
        if value not in classes:
            raise ValueError(f"is none of the {len(classes)} classes: {value[:80]!r}")
        return classes.index(value)

    if value >= len(classes):
        raise ValueError(f"is none of the {len(classes)} classes: {value}")
    return value
