"""Reading a recipe: a YAML file whose settings `--config` puts over the defaults.

The YAML read here keeps what a user wrote: a key given twice is an error, `1e4` is a number, and
only `true` and `false` are booleans (YAML 1.1 also takes `no`, `off` and dates for something else
than text).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from colorgan.config.settings import show
from colorgan.errors import UsageError

MAX_RECIPE_BYTES = 1_000_000

# What plain scalars mean, by the characters that they may start with (YAML 1.2's core schema).
_SCALARS = (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(?:0|[1-9][0-9_]*)|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(?:(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+"
        r"|\.inf)|\.nan",
        "-+.0123456789",
    ),
    ("null", r"~|null|Null|NULL|", "~nN"),
    ("merge", r"<<", "<"),
)


class RecipeLoader(yaml.SafeLoader):
    """PyYAML's safe loader with the rules above."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return a mapping; a key that is given twice is an error."""
        seen = set()
        for key_node, _ in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            if key in seen:
                # PyYAML keeps the last one silently: half of a recipe would not be used.
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key} is given twice", key_node.start_mark
                )
            if key is not None:
                seen.add(key)

        return super().construct_mapping(node, deep)


for _kind, _pattern, _starts in _SCALARS:
    RecipeLoader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_kind}", re.compile(f"^(?:{_pattern})$"), list(_starts)
    )
RecipeLoader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile("^$"), [""])


def load_yaml(text: str | bytes) -> Any:
    """Return the plain data of a YAML text.

    Raises:
        ValueError: Not YAML, nested too deeply, or with a key given twice; in one line.
    """
    try:
        return yaml.load(text, RecipeLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        # PyYAML names its own buffer, which tells a user nothing.
        message = re.sub(r'in "<[a-z ]+>", ', "", " ".join(str(error).split()))
        raise ValueError(message[:300]) from None


def read_recipe(name: str, recipes: Path | None) -> tuple[dict[str, Any], str]:
    """Return a recipe's settings, and the path that messages call it by.

    Args:
        name: A file, or the name of a recipe in `recipes`.
        recipes: Folder of the recipes that come with the command, if it has any.

    Raises:
        UsageError: No such file, not YAML, or not a mapping of keys to values.
    """
    path = _find_recipe(name, recipes)
    try:
        with path.open("rb") as file:
            # Bounded before parsing: a wrong path may be an archive of gigabytes.
            text = file.read(MAX_RECIPE_BYTES + 1)
    except OSError as error:
        raise UsageError(f"--config {path}: {error.strerror}.") from None

    if len(text) > MAX_RECIPE_BYTES:
        raise UsageError(f"--config {path}: larger than {MAX_RECIPE_BYTES:,} bytes, not a recipe.")

    try:
        data = load_yaml(text)
    except ValueError as error:
        raise UsageError(f"--config {path}: not valid YAML: {error}.") from None

    if data is None:
        return {}, str(path)
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise UsageError(
            f"--config {path}: a recipe is a mapping of keys to values, this is {show(data)}."
        )
    return data, str(path)


def recipe_names(recipes: Path | None, schema: type[BaseModel]) -> list[str]:
    """Return the names of the recipes in a folder whose keys are all in the schema."""
    names = []
    for name, file in _recipe_files(recipes).items():
        keys = load_yaml(file.read_text()) or {}
        # One folder serves several commands; only recipes that fit this one are offered.
        if {key.partition(".")[0] for key in keys} <= set(schema.model_fields):
            names.append(name)
    return names


def _recipe_files(recipes: Path | None) -> dict[str, Path]:
    """Return the recipes by name; those of studies are `studies/NAME`."""
    if recipes is None:
        return {}

    files = [*sorted(recipes.glob("*.yaml")), *sorted(recipes.glob("studies/*.yaml"))]
    return {file.relative_to(recipes).with_suffix("").as_posix(): file for file in files}


def _find_recipe(name: str, recipes: Path | None) -> Path:
    path = Path(name).expanduser()
    # A file of the user's comes before a recipe of the same name.
    if recipes is None or path.exists():
        return path

    known = _recipe_files(recipes)
    plain = name.removesuffix(".yaml")
    if plain in known:
        return known[plain]
    # With a folder in it, it was meant as a path: "no such file" says more than a list of names.
    if path.name != name:
        return path

    names = ", ".join(known) or "none"
    raise UsageError(f"--config {name}: no such file or recipe; the recipes are: {names}.")
