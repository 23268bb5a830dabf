"""Values as users write them: `1e4` and `24k` images, `None`, `~/runs`, one item for a list.

A value is taken as it is meant, or refused with what to write instead. Types and ranges are
checked by pydantic afterwards.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from colorgan.config.keys import Key, item_group
from colorgan.config.recipe_file import load_yaml

_NULLS = ("null", "none", "~")
_TEXT = {str, Path}
_WHOLE = re.compile(r"([-+]?(?:\d{1,3}(?:,\d{3})+|[\d_]+)(?:\.\d+)?(?:e\+?\d+)?)([km]?)", re.I)
_FACTORS = {"": 1, "k": 1_000, "m": 1_000_000}


def words_to_value(words: list[str], key: Key | None) -> Any:
    """Return the value that the words after a key give.

    Args:
        words: As the shell passes them; none means true.
        key: None for a key that the schema does not have.
    """
    if not words:
        return True

    values: list[Any] = []
    for word in words:
        value = _word_to_value(word, key)
        # A list of paths is text to `_word_to_value`, which would keep the brackets.
        in_brackets = word.startswith("[") and word.endswith("]")
        if key is not None and key.is_list and in_brackets:
            value = load_or_text(word)  # --data.train "[a, b]"
        if isinstance(value, list):
            values += value
        else:
            values.append(value)

    takes_list = key is not None and key.is_list
    return values if takes_list or len(values) > 1 else values[0]


def _word_to_value(word: str, key: Key | None) -> Any:
    kinds = key.kinds if key else {object}
    # A folder called 2007 stays text.
    return word if kinds <= {*_TEXT, type(None)} else load_or_text(word)


def load_or_text(word: str) -> Any:
    """Return a word as YAML reads it; the word itself where it is not YAML."""
    try:
        return load_yaml(word)
    except ValueError:
        return word


def as_meant(value: Any, key: Key) -> Any:
    """Return a value in the form that the schema takes.

    Raises:
        ValueError: The value would be taken for something else; the message says what to write.
    """
    if not key.is_list:
        return _one_as_meant(value, key)

    items = list(value) if isinstance(value, list | tuple) else [value]
    if len(items) == 1 and _is_null(items[0]):  # `--data.val none`
        nullable = type(None) in key.kinds and item_group(key.annotation) is None
        return None if nullable else []

    return [_one_as_meant(item, key) for item in items]


def _one_as_meant(value: Any, key: Key) -> Any:
    kinds = key.kinds
    allowed = _choices(key)

    # Before all else: `none` is a choice of loss.gan, not null.
    if isinstance(value, str) and value in allowed:
        return value
    if _is_null(value) and type(None) in kinds and not (value == "~" and Path in kinds):
        return None
    if Path in kinds:
        return _path(value)
    if isinstance(value, bool) and not kinds & {bool, object, dict}:
        return "true" if value else "false"  # pydantic takes true for 1

    if isinstance(value, str) and int in kinds and not kinds & {str, object, dict}:
        whole = whole_number(value)
        return value if whole is None else whole
    if isinstance(value, int | float) and kinds <= {str, type(None)}:
        return _number_as_text(value)
    return value


def whole_number(text: str) -> int | None:
    """Return the whole number that a text means (`1e4`, `24k`, `1.5M`, `24,000`), or None."""
    match = _WHOLE.fullmatch(text.strip())
    if match is None:
        return None

    digits, suffix = match.groups()
    # Turning a million digits into a number takes minutes.
    if len(digits) > 30:
        return None
    try:
        number = float(digits.replace(",", "")) * _FACTORS[suffix.lower()]
        # Beyond 2^53 a float skips whole numbers.
        return round(number) if number.is_integer() and abs(number) < 2**53 else None
    except ValueError:  # "_" alone
        return None


def _path(value: Any) -> Any:
    """Return a path with `~` replaced; the text of a URL stays as it is."""
    if not isinstance(value, str | Path):
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value

    text = str(value)
    # An unset shell variable: an empty path would mean the current folder.
    if not text.strip():
        raise ValueError("an empty path; write . for the current folder")
    if not text.startswith("~"):
        return value
    try:
        return str(Path(text).expanduser())
    except RuntimeError:
        raise ValueError(f"{text.split('/')[0]} is not a user of this machine") from None


def _number_as_text(value: int | float) -> str:
    if isinstance(value, float):
        raise ValueError("text is needed; write it in quotes")
    return str(value)


def _is_null(value: Any) -> bool:
    return value is None or (isinstance(value, str) and value.lower() in _NULLS)


def _choices(key: Key) -> set[str]:
    """Return the words that the key allows, if it allows only some."""
    return set(key.type_text.split(" or ")[0].split("|")) if str in key.kinds else set()
