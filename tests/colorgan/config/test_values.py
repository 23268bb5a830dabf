"""What users write is taken as meant, or refused with what to write instead: nothing is lost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field

from colorgan.config.command_line import parse
from colorgan.config.values import whole_number
from colorgan.errors import UsageError


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Settings(Section):
    run: Path = Field(Path("runs/x"), description="run folder")
    cache: Path | None = Field(Path("/cache"), description="cache folder")
    train: tuple[Path, ...] = Field((), description="packed folders")
    rates: tuple[float, ...] = Field((), description="rates")
    images: int | None = Field(5, description="images")
    rate: float = Field(0.5, description="rate")
    name: str = Field("a", description="name")
    flip: bool = Field(False, description="mirror")
    schedule: Literal["none", "on"] = Field("on", description="decay")
    photos: tuple[Path, ...] = Field((), description="photos")


def read(*words: str, positional: str | None = None) -> Settings:
    return parse(
        Settings, words, command="x", description="d", next_line="n", positional=positional
    )


def problems(*words: str, positional: str | None = None) -> list[str]:
    with pytest.raises(UsageError) as caught:
        read(*words, positional=positional)
    return str(caught.value).split("\n  ")[1:]


@pytest.fixture
def recipe(tmp_path: Path) -> Callable[[str], str]:
    def write(text: str) -> str:
        path = tmp_path / "recipe.yaml"
        path.write_text(text)
        return str(path)

    return write


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1e4", 10_000),
        ("2.5e5", 250_000),
        ("24k", 24_000),
        ("1.5M", 1_500_000),
        ("24,000", 24_000),
        ("1_000", 1000),
        ("010", 10),
        ("+7", 7),
        ("-3", -3),
        ("1.5", None),
        ("k", None),
        ("1,2", None),
        ("_", None),
        ("1e999", None),
        ("24kB", None),
    ],
)
def test_whole_numbers(text: str, number: int | None) -> None:
    assert whole_number(text) == number


@pytest.mark.parametrize(
    ("word", "images"),
    [
        ("1e4", 10_000),
        ("24k", 24_000),
        ("None", None),
        ("null", None),
    ],
)
def test_numbers_on_the_command_line_and_in_a_recipe(
    word: str, images: int | None, recipe: Callable[[str], str]
) -> None:
    assert read("--images", word).images == images
    assert read("--config", recipe(f"images: {word}")).images == images
    assert read("--rate", "1e-4").rate == read("--config", recipe("rate: 1e-4")).rate == 1e-4


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        ("train: a", "train", (Path("a"),)),
        ("train: none", "train", ()),
        ("train:", "train", ()),
        ("rates: 0.1", "rates", (0.1,)),
        ("name: 2012", "name", "2012"),
        ("name: 012", "name", "012"),
        ("name: no", "name", "no"),
        ("flip: yes", "flip", True),
        ("schedule: none", "schedule", "none"),
        ("schedule: on", "schedule", "on"),
        ("cache: ~", "cache", None),
        ("cache: None", "cache", None),
    ],
)
def test_a_recipe_is_taken_as_meant(
    text: str, field: str, value: Any, recipe: Callable[[str], str]
) -> None:
    assert getattr(read("--config", recipe(text)), field) == value


def test_home_is_replaced_and_urls_stay(
    monkeypatch: pytest.MonkeyPatch, recipe: Callable[[str], str]
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert read("--run=~/x").run == Path("/home/me/x")
    assert read("--config", recipe("run: ~/x")).run == Path("/home/me/x")
    assert read("--train", "~/a", "b~").train == (Path("/home/me/a"), Path("b~"))
    assert problems("--run", "~nobody-here/x") == [
        "--run '~nobody-here/x': ~nobody-here is not a user of this machine"
    ]


def test_a_list_key_given_twice_has_both() -> None:
    assert read("--train", "a", "--train", "b", "c").train == tuple(map(Path, "abc"))
    assert read("--rates", "[1, 2]", "3").rates == (1.0, 2.0, 3.0)
    assert read("--images", "1", "--images", "2").images == 2  # the last one counts


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--run", ""], "--run '': an empty path; write . for the current folder"),
        (["--train", "a", ""], "--train ['a', '']: an empty path; write . for the current folder"),
        (["-images", "3"], "'-images': keys start with two dashes; write --images"),
        (["--train", "a", "-images", "3"], "'-images': keys start with two dashes; write --images"),
        (["images=3"], "'images=3': write --images 3"),
        (["+images=3"], "'+images=3': write --images 3"),
        (["--train", "a", "images=3"], "'images=3': write --images 3"),
        (["--images", "true"], "--images 'true': must be a valid integer"),
        (["3"], "'3': unexpected argument"),
    ],
)
def test_what_would_be_lost_is_refused(words: list[str], line: str) -> None:
    lines = problems(*words)
    assert len(lines) == 1
    assert lines[0].startswith(line)


def test_a_float_for_text_would_lose_digits(recipe: Callable[[str], str]) -> None:
    file = recipe("name: 1.10")
    assert problems("--config", file) == [f"{file}: name 1.1: text is needed; write it in quotes"]


@pytest.mark.parametrize(
    "option", ["num_processes", "nproc_per_node", "mixed_precision", "config_file"]
)
def test_options_of_launchers_belong_before_the_script(option: str) -> None:
    dashed = option.replace("_", "-")
    assert problems(f"--{dashed}", "2", "--images", "3") == [
        f"--{option}: an option of the launcher; write it before the script: "
        f"`accelerate launch --{option} ... launcher/SCRIPT.py ...`"
    ]


def test_deepspeeds_launcher_adds_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert read("--local_rank=1", "--images", "3").images == 3
    assert problems("--local_rank=7")


def test_photos_that_look_like_keys_go_behind_two_dashes() -> None:
    assert read("a=1.png", positional="photos").photos == (Path("a=1.png"),)
    assert read("--", "-a.png", "images=3", positional="photos").photos == (
        Path("-a.png"),
        Path("images=3"),
    )
    assert problems("-a.png", positional="photos") == [
        "'-a.png': keys start with two dashes; names that start with a dash go after `--`"
    ]


def test_the_version_and_all_keys(capsys: pytest.CaptureFixture[str]) -> None:
    for words, start in ((["--version"], "colorgan "), (["--help", "all"], "usage: x ")):
        with pytest.raises(SystemExit) as caught:
            read(*words)
        assert caught.value.code == 0
        assert capsys.readouterr().out.startswith(start)
