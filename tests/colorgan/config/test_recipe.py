"""The keys of training: each key that a message can suggest changes the recipe."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from colorgan.config.command_line import parse
from colorgan.config.keys import Key, aliases_of, item_keys, schema_keys
from colorgan.config.problems import nearest_key
from colorgan.config.recipe import FinetuneRecipe, PretrainRecipe, StageRecipe
from colorgan.config.recipe_file import load_yaml
from colorgan.config.settings import dump_recipe
from colorgan.errors import UsageError

SCHEMAS: list[type[BaseModel]] = [PretrainRecipe, FinetuneRecipe]


def read(schema: type[BaseModel], *words: str) -> Any:
    return parse(schema, words, command="x", description="d", next_line="n")


def problems(schema: type[BaseModel], *words: str) -> list[str]:
    with pytest.raises(UsageError) as caught:
        read(schema, *words)
    return str(caught.value).split("\n  ")[1:]


def keys_that_messages_suggest(schema: type[BaseModel]) -> dict[str, Key]:
    keys = {key.name: key for key in schema_keys(schema)}
    for key in list(keys.values()):
        keys |= {item.name: item for item in item_keys(key)}
    return keys


def another_value(key: Key) -> str:
    """Return a value that the key takes and that is not its default."""
    if key.name == "stages":
        return "[{epochs: 7, learning_rate: 0.5}]"
    if key.name == "stages.0.schedule":
        return "cosine"  # the default stage has another default than its schema
    if "|" in key.type_text and "true" not in key.type_text:
        choices = key.type_text.split(" or ")[0].split("|")
        return next(choice for choice in choices if choice != key.default)
    if key.kinds & {bool}:
        return "false" if key.default is True else "true"
    if key.name in ("data.cache_dir", "run", "init", "data.train", "data.val"):
        return "/elsewhere"
    share = re.search(r"< ?=? 1$", key.type_text)

    return "0.25" if share else "3"


CASES = [
    pytest.param(schema, key, id=f"{schema.__name__}-{name}")
    for schema in SCHEMAS
    for name, key in keys_that_messages_suggest(schema).items()
]


@pytest.mark.parametrize(("schema", "key"), CASES)
def test_a_key_that_a_message_can_suggest_changes_the_recipe(
    schema: type[BaseModel], key: Key
) -> None:
    freezing = key.name in ("stages.0.features", "stages.0.frozen_levels")
    more = ["--init", "/generator"] if freezing else []
    # Luminance has no colors that a GAN could judge.
    if key.name == "loss.target":
        more = ["--loss.gan", "none"]
    before = read(schema, *more)
    after = read(
        schema,
        *more,
        f"--{key.name}",
        another_value(key),
    )

    assert dump_recipe(after) != dump_recipe(before)


@pytest.mark.parametrize("schema", SCHEMAS)
def test_a_misspelt_key_is_never_ignored(schema: type[BaseModel]) -> None:
    keys = keys_that_messages_suggest(schema)
    words = [word for name in keys for word in (f"--{name}x", "3")]
    lines = problems(schema, *words)
    assert len(lines) == len(keys)
    assert all("unknown key" in line for line in lines)


@pytest.mark.parametrize("schema", SCHEMAS)
def test_aliases_and_usual_keys_are_keys(schema: type[BaseModel]) -> None:
    keys = {key.name for key in schema_keys(schema)}
    assert set(aliases_of(schema).values()) <= keys
    assert set(schema.usual) <= keys  # type: ignore[attr-defined]
    assert not set(aliases_of(schema)) & keys


@pytest.mark.parametrize(
    ("schema", "alias"),
    [(s, a) for s in SCHEMAS for a in aliases_of(s)],
)
def test_an_alias_sets_its_key(schema: type[BaseModel], alias: str) -> None:
    value = "bf16" if alias == "precision" else "64"

    assert read(
        schema,
        f"--{alias}",
        value,
    ) == read(
        schema,
        f"--{aliases_of(schema)[alias]}",
        value,
    )


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        (["--stages.epochs", "5"], "--stages.epochs 5: stages has 1 item; write --stages.0.epochs"),
        (["--stages.1.epochs", "5"], "index 1 is out of range: stages has 1 item"),
        (["--run.name", "x"], "--run.name 'x': unknown key"),
        (["--seed.x", "1"], "--seed.x 1: unknown key"),
        (["--stages.0.epochs.x", "1"], "stages.0.epochs is 20"),
    ],
)
def test_a_word_changes_the_recipe_or_is_an_error(words: list[str], advice: str) -> None:
    assert advice in "\n".join(problems(FinetuneRecipe, *words))


def test_a_dumped_recipe_leaves_out_what_others_decide() -> None:
    started = read(FinetuneRecipe, "--init", "generator", "--network.width", "8")
    plain = load_yaml(dump_recipe(started))
    assert plain["network"] == {"width": 8}
    assert "validate_every_images" not in plain["output"]
    again = FinetuneRecipe.model_validate(plain)
    assert again == started
    assert again.network.model_fields_set == {"width"}

    from_scratch = read(FinetuneRecipe, "--output.validate_every_images", "7")
    plain = load_yaml(dump_recipe(from_scratch))
    assert plain["network"]["image_size"] == from_scratch.network.image_size
    assert plain["output"]["validate_every_images"] == 7


def test_one_stage_has_plain_keys() -> None:
    recipe = read(FinetuneRecipe, "--epochs", "5", "--lr", "1e-2")
    assert recipe.stages == (StageRecipe(epochs=5, learning_rate=1e-2, schedule="linear"),)
    assert not {"epochs", "learning_rate"} & set(load_yaml(dump_recipe(recipe)))
    assert read(FinetuneRecipe, "--epochs", "5") == FinetuneRecipe(epochs=5)  # type: ignore[call-arg]

    two = "[{epochs: 1, learning_rate: 0.1}, {epochs: 2, learning_rate: 0.1}]"
    assert problems(FinetuneRecipe, "--stages", two, "--epochs", "5") == [
        "epochs can be given for a run of one stage; this one has 2: write --stages.0.epochs for "
        "the first"
    ]
    assert problems(FinetuneRecipe, "--epochs", "-1") == ["--epochs -1: must be greater than 0"]
    assert "valid number" in problems(FinetuneRecipe, "--learning_rate", "fast")[0]


def test_a_recipe_that_trains_nothing_is_refused() -> None:
    for words in (["--loss.gan", "none"], ["--loss.gan_weight", "0"]):
        lines = problems(
            PretrainRecipe,
            *words,
            "--loss.l1_weight",
            "0",
        )
        assert lines[0].startswith("the generator has no loss to learn from")
        assert read(PretrainRecipe, *words).loss.l1_weight == 100


def test_suggestions_only_when_near() -> None:
    known = {key.name for key in schema_keys(PretrainRecipe)}
    assert nearest_key("optimizer.lerning_rate", known) == "optimizer.learning_rate"
    assert nearest_key("gradient_clip", known) == "optimizer.gradient_clip_norm"
    assert nearest_key("zzz", known) is None
    assert nearest_key("wandb_project", known) is None


@pytest.mark.parametrize("name", ["coco_paper", "sample"])
def test_the_recipes_of_the_project_load(name: str) -> None:
    folder = Path(__file__).parents[3] / "launcher" / "configs"
    recipe = parse(
        PretrainRecipe,
        ["--config", name],
        command="x",
        description="d",
        next_line="n",
        recipes=folder,
    )

    assert recipe.batch.global_batch_size > 0
