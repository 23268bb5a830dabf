"""Run folders read as plain data: what training wrote, and whatever else may be there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.toy import ToyLoader, toy_recipe
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from colorgan.distributed.ranks import Ranks
from colorgan.errors import UsageError
from colorgan.runs.reading import RECIPE, differences, read_run, short_names
from colorgan.tasks.pretraining import pretrain


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train two steps."""
    path = tmp_path_factory.mktemp("reading") / "run"
    recipe = toy_recipe(path, images=16)
    pretrain(
        recipe,
        Ranks.single(),
        total_images=16,
        data_digest="d1",
        train=ToyLoader(8, 8),
        val=ToyLoader(8, 8),
    )

    return path


def test_what_a_run_wrote_is_read(folder: Path) -> None:
    run = read_run(folder)

    assert run.kind == "pretrain"
    assert (
        run.images_seen,
        run.total_images,
        run.finished,
    ) == (16, 16, True)
    assert run.setting("network.width") == 4
    assert [images for images, _ in run.curve("train", "loss/generator")] == [8, 16]
    assert run.last_scores["images"] == 2.0
    assert run.last_scores_images == 16
    assert [images for images, _ in run.pictures] == [16]
    assert [each.complete for each in run.checkpoints] == [True]
    assert run.state["data_digest"] == "d1"
    assert run.model["kind"] == "generator"
    assert len(run.starts) == 1
    assert run.starts[0]["ranks"] == 1
    assert run.notes == []


def test_a_folder_without_checkpoints_or_log_has_notes(tmp_path: Path) -> None:
    (tmp_path / RECIPE).write_text(yaml.safe_dump({"seed": 3}))
    run = read_run(tmp_path)

    assert (
        run.seed,
        run.log,
        run.checkpoints,
        run.finished,
    ) == (3, [], [], False)
    assert [note.split(":")[0] for note in run.notes] == [
        "No complete checkpoint",
        "There is no log.jsonl",
    ]


def test_a_folder_that_is_not_a_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"recipe\.yaml is not a recipe that a run wrote"):
        read_run(tmp_path)


def test_runs_that_differ_in_seed_only_are_alike_but_for_it(tmp_path: Path) -> None:
    runs = []
    for name, recipe in {
        "a": {"seed": 0, "data": {"train": ["x"]}},
        "b": {"seed": 1, "data": {"train": ["x"]}, "output": {"keep_last": 5}},
        "c": {"seed": 1, "data": {"train": ["x"]}, "loss": {"gan": "none"}},
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / RECIPE).write_text(yaml.safe_dump(recipe))
        runs.append(read_run(tmp_path / name))

    assert runs[0].same_but_seed == runs[1].same_but_seed != runs[2].same_but_seed
    assert differences(runs) == {
        "seed": ["0", "1", "1"],
        "output.keep_last": ["(absent)", "5", "(absent)"],
        "loss.gan": ["(absent)", "(absent)", "'none'"],
    }


def test_names_are_as_short_as_tells_them_apart() -> None:
    paths = [
        Path("/a/x/run"),
        Path("/a/y/run"),
    ]
    assert short_names(paths) == ["x/run", "y/run"]
    assert short_names([Path("/a/run")]) == ["run"]


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=6,
)
KEYS = st.sampled_from(["kind", "images", "values", "text", "total_images", "ranks", "task"])


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    recipe=st.dictionaries(KEYS, PLAIN, min_size=1, max_size=3),
    lines=st.lists(
        st.dictionaries(KEYS, PLAIN, max_size=4),
        max_size=4,
    ),
    state=PLAIN,
)
def test_any_folder_is_read_or_refused_in_a_sentence(
    tmp_path: Path,
    recipe: dict[str, Any],
    lines: list[Any],
    state: Any,
) -> None:
    (tmp_path / RECIPE).write_text(yaml.safe_dump(recipe))
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, lines)))
    checkpoint = tmp_path / "checkpoints" / "images-000000000008"
    checkpoint.mkdir(parents=True, exist_ok=True)
    (checkpoint / "COMPLETE").write_text("{}")
    (checkpoint / "state.json").write_text(json.dumps(state))
    try:
        run = read_run(tmp_path)
    except UsageError:
        return

    assert run.images_seen >= 0
    assert run.total_images is None or run.total_images > 0
    assert isinstance(run.same_but_seed, str)

    for name in run.names("train"):
        run.curve("train", name)
    assert all(isinstance(value, float) for value in run.last_scores.values())
