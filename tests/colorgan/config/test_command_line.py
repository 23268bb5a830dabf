"""Defaults <- recipe <- command line; all mistakes at once."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field, model_validator

from colorgan.config.command_line import MAX_RECIPE_BYTES, parse
from colorgan.config.recipe import Section
from colorgan.config.recipe_file import load_yaml
from colorgan.config.settings import dump_recipe, recipe_difference
from colorgan.errors import UsageError


class Data(Section):
    train: tuple[Path, ...] = Field((), description="packed folders")
    split: str = Field("train", description="name of the split")
    size_px: int = Field(256, ge=32, le=512, description="side in pixels")


class Optimizer(Section):
    learning_rate: float = Field(2e-4, gt=0, description="step size")
    betas: tuple[float, float] = Field((0.5, 0.999), description="decays")
    schedule: Literal["on", "off", "cosine"] = Field("cosine", description="decay")
    clip: Annotated[float, Field(gt=0)] | None = Field(None, description="norm")
    offset: int = Field(0, description="any integer")


class Stage(Section):
    epochs: float = Field(gt=0, description="passes")
    frozen: bool = Field(False, description="only the head learns")


class Recipe(Section):
    run: Path = Field(Path("runs/x"), description="run folder")
    data: Data = Data()
    optimizer: Optimizer = Optimizer(learning_rate=1e-3)
    stages: tuple[Stage, ...] = Field(
        (Stage(epochs=5),), min_length=1, description="one after the other"
    )
    dry_run: bool = Field(False, description="check and exit")
    photos: tuple[Path, ...] = Field((), description="photos to colour")

    @model_validator(mode="after")
    def _sizes_agree(self) -> Recipe:
        if self.optimizer.offset > self.data.size_px:
            raise ValueError("optimizer.offset is larger than data.size_px")
        return self


def read(*words: str, positional: str | None = None, recipes: Path | None = None) -> Recipe:
    return parse(
        Recipe,
        words,
        command="python launcher/x.py",
        description="Does x.",
        next_line="python launcher/y.py",
        positional=positional,
        recipes=recipes,
    )


def problems(*words: str, **more: Any) -> list[str]:
    """Return the lines of the error, without the first, which must count them."""
    with pytest.raises(UsageError) as caught:
        read(*words, **more)
    first, *lines = str(caught.value).split("\n  ")
    assert first.startswith(f"{len(lines)} problem")
    return lines


@pytest.fixture
def recipe_file(tmp_path: Path) -> Callable[[str], str]:
    def write(text: str) -> str:
        path = tmp_path / "r.yaml"
        path.write_text(textwrap.dedent(text))
        return str(path)

    return write


def test_defaults_recipe_and_command_line_in_that_order(recipe_file: Callable[[str], str]) -> None:
    assert read() == Recipe()

    file = recipe_file("data: {split: val, size_px: 64}\noptimizer:\n  betas: [0.1, 0.2]\n")
    recipe = read("--data.size_px", "128", "--config", file)
    assert (recipe.data.split, recipe.data.size_px) == ("val", 128)
    assert recipe.optimizer.betas == (0.1, 0.2)
    assert (
        recipe.optimizer.learning_rate == 1e-3
    )  # the schema's own setting outlives a recipe that sets another key


def test_words_become_values() -> None:
    recipe = read(
        "--data.train",
        "a",
        "b",
        "--data.split",
        "2012",
        "--optimizer.offset",
        "-1",
        "--dry_run",
        "--optimizer.learning_rate=3e-4",
        "--optimizer.betas",
        "0",
        ".9",
        "--optimizer.schedule",
        "off",
    )

    assert recipe.data == Data(train=(Path("a"), Path("b")), split="2012")
    assert recipe.optimizer == Optimizer(
        learning_rate=3e-4, betas=(0.0, 0.9), schedule="off", offset=-1
    )
    assert recipe.dry_run
    assert not read("--dry_run", "--dry_run", "false").dry_run  # a later key wins
    assert read("--data.train", "one").data.train == (Path("one"),)
    assert read("--data.train", "[a, b]").data.train == (Path("a"), Path("b"))
    assert read("--dry-run").dry_run
    assert read("--optimizer.clip", "2", "--optimizer.clip", "null").optimizer.clip is None
    assert read("--data.split", "a: b # no comment").data.split == "a: b # no comment"
    assert read("--data.split=").data.split == ""


def test_bare_words_fill_the_positional_key() -> None:
    recipe = read(
        "a.jpg", "--dry_run", "b.jpg", "--run", "out", "c.jpg", "--", "--d.jpg", positional="photos"
    )
    assert recipe.photos == tuple(map(Path, ("a.jpg", "b.jpg", "c.jpg", "--d.jpg")))
    assert recipe.dry_run and recipe.run == Path("out")
    assert read("b", "--photos", "a", positional="photos").photos == (Path("a"), Path("b"))
    assert problems("stray") == ["'stray': unexpected argument"]


def test_a_file_name_that_is_no_text_is_still_a_path() -> None:
    assert read("--run", "caf\udce9").run == Path("caf\udce9")


def test_all_mistakes_at_once_each_with_key_value_and_what_is_allowed() -> None:
    lines = problems(
        "--dta.train",
        "x",
        "--data.szie_px",
        "64",
        "--optimizer.learning_rate",
        "-1",
        "--dryrun",
        "--data.size_px",
        "1000",
        "--optimizer.schedule",
        "true",
        "--optimizer.offset",
        "many",
        "--zzz",
        "1",
        "--optimizer.betas",
        "1",
        "2",
        "3",
        "--optimizer.clip",
        "off",
    )
    expected = [
        "--dta.train 'x': unknown key; the nearest known key is data.train",
        "--data.szie_px 64: unknown key; the nearest known key is data.size_px",
        "--dryrun true: unknown key; the nearest known key is dry_run",
        "--zzz 1: unknown key",
        "--optimizer.learning_rate -1: must be greater than 0",
        "--data.size_px 1000: must be less than or equal to 512",
        "--optimizer.schedule 'true': must be 'on', 'off' or 'cosine'",
        "--optimizer.offset 'many': must be a valid integer, unable to parse string as an integer",
        "--optimizer.clip 'off': must be a valid number, unable to parse string as a number",
    ]

    assert set(expected) <= set(lines)
    assert any(line.startswith("--optimizer.betas [1, 2, 3]: ") for line in lines)
    assert len(lines) == len(expected) + 1


def test_the_last_part_of_a_key_is_enough_to_find_it() -> None:
    assert problems("--learning_rate", "1") == [
        "--learning_rate 1: unknown key; the nearest known key is optimizer.learning_rate"
    ]


def test_a_key_without_its_value() -> None:
    assert problems("--data.size_px", "--optimizer.betas") == [
        "--data.size_px: needs a value, integer >= 32 and <= 512",
        "--optimizer.betas: needs a value, 2 x number",
    ]
    assert problems("--data.size_px", "true")[0].startswith(
        "--data.size_px 'true': must be a valid integer"
    )


def test_mistakes_in_a_recipe_name_its_file(recipe_file: Callable[[str], str]) -> None:
    file = recipe_file("data: {trian: a, size_px: 3}\noptimizer: 5\ndata.splt: x\n")

    assert sorted(problems("--config", file)) == sorted(
        [
            f"{file}: data.trian 'a': unknown key; the nearest known key is data.train",
            f"{file}: data.size_px 3: must be greater than or equal to 32",
            f"{file}: data.splt 'x': unknown key; the nearest known key is data.split",
            f"{file}: optimizer 5: a group of keys, not a value; "
            "its keys: optimizer.learning_rate, optimizer.betas, "
            "optimizer.schedule, optimizer.clip, optimizer.offset",
        ]
    )
    assert problems(
        "--config", file, "--optimizer.offset", "1"
    )  # a key of a group that the recipe spoilt
    assert read("--config", recipe_file("data:\noptimizer.offset: 2\n")) == read(
        "--optimizer.offset", "2"
    )


def test_a_rule_between_keys_is_told_in_its_own_words() -> None:
    assert problems("--optimizer.offset", "300") == ["optimizer.offset is larger than data.size_px"]


def test_items_of_a_list_by_their_place(recipe_file: Callable[[str], str]) -> None:
    assert read("--stages.0.frozen").stages == (Stage(epochs=5, frozen=True),)

    file = recipe_file("stages: [{epochs: 1}, {epochs: 2}]")
    assert read("--config", file, "--stages.1.epochs", "9").stages == (
        Stage(epochs=1),
        Stage(epochs=9),
    )
    assert read("--stages", "[{epochs: 3}]").stages == (Stage(epochs=3),)
    assert problems("--stages.1.epochs", "2") == [
        "--stages.1.epochs 2: index 1 is out of range: stages has 1 item, and the first index is 0"
    ]
    assert problems("--stages", "[{epcohs: 3}, {epochs: -1}]") == [
        "--stages.0.epochs: required, not given",
        "--stages.0.epcohs 3: unknown key; the nearest known key is stages.0.epochs",
        "--stages.1.epochs -1: must be greater than 0",
    ]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: [1", "not valid YAML"),
        ("- 1\n", "a recipe is a mapping of keys to values"),
        ("1: 2\n", "a recipe is a mapping of keys to values"),
        ("a: 1\na: 2\n", "the key a is given twice"),
        ("data: {split: a, split: b}\n", "the key split is given twice"),
        ("!!python/object/apply:os.system [echo]", "not valid YAML"),
        ("a: " + "[" * 20_000, "not valid YAML"),
        ("x" * (MAX_RECIPE_BYTES + 1), "larger than 1,000,000 bytes"),
        ("\0", "not valid YAML"),
    ],
)
def test_a_file_that_is_no_recipe(
    recipe_file: Callable[[str], str], text: str, reason: str
) -> None:
    file = recipe_file("")
    Path(file).write_text(text)
    with pytest.raises(UsageError, match=reason) as caught:
        read("--config", file)
    assert str(caught.value).startswith(f"--config {file}: ") and len(str(caught.value)) < 1000


def test_a_huge_value_is_shown_short(recipe_file: Callable[[str], str]) -> None:
    bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{new}: &{new} [{','.join([f'*{old}'] * 9)}]\n"
        for old, new in zip("abcdefgh", "bcdefghi", strict=True)
    )
    assert all(len(line) < 1000 for line in problems("--config", recipe_file(bomb)))
    assert len(problems("--config", recipe_file("a: &a {b: *a, c: *a}"))) == 20
    assert len(problems("--data.size_px", "9" * 100_000)[0]) < 1000


def test_recipes_by_bare_name(tmp_path: Path) -> None:
    (tmp_path / "sample.yaml").write_text("run: here")

    assert read("--config", "sample", recipes=tmp_path).run == Path("here")
    with pytest.raises(
        UsageError, match=r"--config smaple: no such file or recipe; the recipes are: sample\."
    ):
        read("--config", "smaple", recipes=tmp_path)
    with pytest.raises(UsageError, match=r"--config none.yaml: No such file"):
        read("--config", "none.yaml")
    with pytest.raises(UsageError, match="takes one file, got 2"):
        read("--config", "a", "b")
    with pytest.raises(UsageError, match="--config: given twice"):
        read("--config", "sample", "--config", "sample", recipes=tmp_path)
    with pytest.raises(UsageError, match="Is a directory"):
        read("--config", str(tmp_path))


def test_help_lists_every_key_and_ends_with_the_next_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as caught:
        read("--dta.train", "--help", positional="photos")
    assert caught.value.code == 0

    text = " ".join(capsys.readouterr().out.split())
    assert text.startswith(
        "usage: python launcher/x.py [--config FILE.yaml] [--key.sub VALUE ...] PHOTOS ... Does x."
    )
    assert "--data.size_px <integer >= 32 and <= 512> side in pixels (default: 256)" in text
    assert "--optimizer.learning_rate <number > 0> step size (default: 0.001)" in text
    assert "--optimizer.clip <number > 0 or null> norm (default: null)" in text
    assert "--optimizer.schedule <on|off|cosine> decay (default: cosine)" in text
    assert "--stages <list of {epochs: number > 0, frozen: true|false}>" in text
    assert text.endswith("Next: python launcher/y.py")


def test_required_keys_stand_in_usage_and_are_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    class Needs(Section):
        data: Data = Field(default_factory=Data)
        model: Path = Field(description="a generator folder")
        inner: Stage

    def ask(*words: str) -> Needs:
        return parse(Needs, words, command="v", description="d", next_line="n")

    with pytest.raises(SystemExit):
        ask("-h")
    assert (
        "usage: v [--config FILE.yaml] --model VALUE --inner.epochs VALUE"
        in capsys.readouterr().out
    )
    with pytest.raises(UsageError) as caught:
        ask()
    assert "--model: required, not given (a generator folder)" in str(caught.value)
    assert "--inner.epochs: required, not given (passes)" in str(caught.value)
    assert ask("--model", "m", "--inner.epochs", "1").inner == Stage(epochs=1)


@settings(max_examples=50, deadline=None, database=None)
@given(
    st.text(st.characters(exclude_categories=["Cs"])),
    st.floats(min_value=1e-30, allow_nan=False),
    st.lists(st.text(min_size=1).filter(lambda name: "\0" not in name), max_size=3),
)
def test_a_dumped_recipe_loads_back_equal(split: str, rate: float, photos: list[str]) -> None:
    recipe = Recipe(
        data=Data(split=split),
        optimizer=Optimizer(learning_rate=rate),
        photos=tuple(map(Path, photos)),
        dry_run=True,
    )
    assert Recipe.model_validate(load_yaml(dump_recipe(recipe))) == recipe


def test_a_dumped_recipe_is_a_config(tmp_path: Path) -> None:
    recipe = read("--data.train", "a", "--data.split", "on", "--optimizer.learning_rate", "1e-8")
    (tmp_path / "saved.yaml").write_text(dump_recipe(recipe))
    assert read("--config", str(tmp_path / "saved.yaml")) == recipe


def test_recipe_difference() -> None:
    old = {"data": {"train": ["a"], "size": 3}, "run": "x", "seed": 1, "gone": None}
    new = {"data": {"train": ["b"], "size": 4}, "run": "y", "seed": 1, "extra": {"k": True}}

    assert recipe_difference(old, new, ignore=["run", "data.train"]) == [
        "data.size: 3 -> 4",
        "extra.k: (absent) -> true",
        "gone: null -> (absent)",
    ]
    assert recipe_difference(old, new, ignore=["data", "run", "extra", "gone"]) == []
    assert recipe_difference(old, old) == []
