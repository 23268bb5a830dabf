"""Plain data from files that somebody else may have written: bounded, and of the type that is asked for or absent."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

MAX_TEXT_BYTES = 8 << 20
MAX_NAME = 120  # characters of a name on the page


def read_text(path: Path) -> str:
    """Return a text file.

    Raises:
        OSError: It cannot be read.
        ValueError: It is over 8 MiB, or no UTF-8.
    """
    with path.open("rb") as file:
        data = file.read(MAX_TEXT_BYTES + 1)
    if len(data) > MAX_TEXT_BYTES:
        raise ValueError("too large")
    return data.decode("utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; {} where it cannot be read or is none."""
    try:
        return mapping(json.loads(read_text(path)))
    except (OSError, ValueError, RecursionError):
        return {}


def mapping(value: Any) -> dict[str, Any]:
    """Return a mapping, or {}."""
    return value if isinstance(value, dict) else {}


def entries(value: Any, most: int) -> list[Any]:
    """Return a list's first entries, or []."""
    return value[:most] if isinstance(value, list) else []


def number(value: Any) -> float | None:
    """Return a finite number, or None; True is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) else None


def numbers(values: Any) -> dict[str, float]:
    """Return what is a finite number of a mapping."""
    pairs = ((str(name), number(value)) for name, value in mapping(values).items())
    return {name: value for name, value in pairs if value is not None}


def whole(value: Any) -> int | None:
    """Return a whole number of at least 0, or None."""
    return (
        value
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62
        else None
    )


def short(value: Any, most: int = MAX_NAME) -> str:
    """Return text of bounded length; "" for None."""
    text = "" if value is None else str(value)
    return text if len(text) <= most else f"{text[: most - 1]}…"
