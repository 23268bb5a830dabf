"""Recipes compared: what may grow, and what changes the learning rate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from colorgan.config.recipe import FinetuneRecipe, PretrainRecipe
from colorgan.errors import OtherRecipeError
from colorgan.runs.recipe import check_length, compare_recipes

FIRST = {"epochs": 3, "learning_rate": 1e-3, "schedule": "constant"}
LAST = {"epochs": 1, "learning_rate": 1e-4, "schedule": "linear"}


def recipe(*stages: dict[str, Any]) -> FinetuneRecipe:
    return FinetuneRecipe.model_validate({"run": "r", "stages": list(stages)})


@pytest.mark.parametrize(
    ("old", "new", "grows", "decays"),
    [
        ([FIRST], [FIRST, LAST], True, False),
        ([FIRST], [{**FIRST, "epochs": 5}], True, False),
        (
            [FIRST, LAST],
            [FIRST, {**LAST, "epochs": 2}],
            True,
            True,
        ),
        ([FIRST, LAST], [FIRST], False, False),
        ([FIRST, LAST], [{**FIRST, "epochs": 4}, LAST], False, False),
        ([FIRST], [{**FIRST, "learning_rate": 1e-2}], False, False),
        ([FIRST], [{**FIRST, "epochs": 2}], False, False),
    ],
)
def test_stages_may_be_added_and_the_last_may_get_longer(
    old: list[Any], new: list[Any], grows: bool, decays: bool
) -> None:
    change = compare_recipes(
        recipe(*old).model_dump(mode="json"),
        recipe(*new),
    )
    assert bool(change.length) == grows
    assert bool(change.keys) != grows
    assert not grows or change.decays == decays


def starting(init: str, kind: type[FinetuneRecipe] | type[PretrainRecipe]) -> Any:
    return kind.model_validate({"run": "r", "init": init})


@pytest.mark.parametrize("kind", [FinetuneRecipe, PretrainRecipe])
def test_one_folder_to_start_from_has_many_spellings(
    kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    old = starting("runs/a/generator", kind).model_dump(mode="json")
    for spelling in ("runs/a/generator/", "./runs/a/generator", f"{tmp_path}/runs/a/generator"):
        assert not compare_recipes(old, starting(spelling, kind)).keys
    assert compare_recipes(old, starting("scratch", kind)).keys


def test_weights_that_a_fine_tuning_began_with_may_be_moved() -> None:
    # Its checkpoint has their digest; one of pretraining does not.
    for kind, may in ((FinetuneRecipe, True), (PretrainRecipe, False)):
        old = starting("a", kind).model_dump(mode="json")
        assert bool(compare_recipes(old, starting("b", kind)).keys) != may


def test_a_run_of_another_kind_is_another_recipe() -> None:
    old = recipe(FIRST).model_dump(mode="json")
    assert compare_recipes(old, PretrainRecipe.model_validate({"run": "r"})).keys


def test_the_same_recipe_is_no_change() -> None:
    change = compare_recipes(
        recipe(FIRST).model_dump(mode="json"),
        recipe(FIRST),
    )
    assert not change.keys and not change.length
    assert check_length(change, 8, 8, 8) is None


@pytest.mark.parametrize(
    "old",
    [
        {},
        {"stages": []},
        {"stages": "x"},
        {"stages": [3]},
        {"a": None},
    ],
)
def test_any_old_recipe_is_compared(old: dict[str, Any]) -> None:
    change = compare_recipes(old, recipe(FIRST))
    assert change.keys or change.length


def test_a_decaying_stage_is_extended_only_when_it_is_finished() -> None:
    longer = recipe(FIRST, {**LAST, "epochs": 2})
    change = compare_recipes(
        recipe(FIRST, LAST).model_dump(mode="json"),
        longer,
    )

    with pytest.raises(OtherRecipeError, match="finish it with the old length"):
        check_length(change, 24, 32, 40)
    assert "follows the new length" in str(check_length(change, 32, 32, 40))
