"""A command's settings as JSON Schema, for editors that complete and check recipes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from colorgan.config.recipe_file import recipe_names

# Beside the standard's words: the recipes that `--config` takes by name.
RECIPES = "x-recipes"


def json_schema(schema: type[BaseModel], recipes: Path | None) -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a command's recipes.

    Args:
        schema: The command's settings.
        recipes: Folder of the recipes that `--config NAME` finds, if there is one.
    """
    found = schema.model_json_schema()
    # A recipe may leave any key to the command line, and may write `data.train` for a nested one.
    for group in (found, *found.get("$defs", {}).values()):
        group.pop("required", None)
    found["patternProperties"] = {"\\.": {}}
    found["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    found[RECIPES] = recipe_names(recipes, schema)
    return found


def schema_leaves(found: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield dotted keys with their part of a JSON Schema that `json_schema` returned."""
    groups = found.get("$defs", {})

    def below(properties: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, dict[str, Any]]]:
        for name, part in properties.items():
            group = groups.get(str(part.get("$ref", "")).rpartition("/")[2], {})
            if "properties" in group:
                yield from below(group["properties"], f"{prefix}{name}.")
            else:
                yield f"{prefix}{name}", part

    yield from below(found["properties"], "")
