"""A run folder: what is refused, what may change, what is logged."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.toy import ToyLoader, toy_recipe

from colorgan.distributed.ranks import Ranks
from colorgan.errors import CheckpointError, OtherRecipeError, UsageError
from colorgan.files import owned_folder
from colorgan.runs.log import read_log
from colorgan.runs.recipe import RECIPE
from colorgan.tasks.pretraining import pretrain

ONE = Ranks.single()


def train(folder: Path, total: int = 16, digest: str = "abc", **changes: Any) -> Any:
    """Train two steps, or resume."""
    recipe = toy_recipe(folder, images=total, **changes)
    loader = ToyLoader(8, 8)
    return pretrain(recipe, ONE, total_images=total, data_digest=digest, train=loader, val=None)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    train(folder)
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of a finished run."""
    import shutil

    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.mark.parametrize("kept", ["everything", "checkpoints"])
def test_another_recipe_is_refused_with_every_difference(run: Path, kept: str) -> None:
    """Also when only the checkpoints were copied: they hold the recipe."""
    if kept == "checkpoints":
        (run / RECIPE).unlink()
    changes = {"seed": 1, "optimizer": {"learning_rate": 1e-3}}
    with pytest.raises(OtherRecipeError) as caught:
        train(run, **changes)
    lines = str(caught.value).splitlines()
    assert lines[0].endswith("holds a run with another recipe: choose another --run, or undo")
    assert lines[1:] == ["  optimizer.learning_rate: 0.0002 -> 0.001", "  seed: 0 -> 1"]


def test_another_width_is_no_traceback_without_the_recipe(run: Path) -> None:
    (run / RECIPE).unlink()
    with pytest.raises(OtherRecipeError, match=r"network\.width: 4 -> 8"):
        train(run, network={"image_size": 32, "width": 8})


def test_other_data_is_refused_by_digest(run: Path) -> None:
    with pytest.raises(CheckpointError, match=r"other data \(manifest digest abc, now xyz\)"):
        train(run, digest="xyz")


def test_what_does_not_enter_the_weights_may_change(run: Path) -> None:
    result = train(run, output={"log_every_images": 4}, launch={"timeout_s": 60})
    assert result.images_seen == 16


def test_a_recipe_from_before_a_key_existed_is_the_same_recipe(run: Path) -> None:
    """Keys that are newer than the file have the value that the run had: the default."""
    for path in (run / RECIPE,):
        recipe = yaml.safe_load(path.read_text())
        del recipe["batch"]["compress_gradients"]
        del recipe["launch"]["deterministic"]
        path.write_text(yaml.safe_dump(recipe))
    assert train(run).images_seen == 16
    assert "compress_gradients" in (run / RECIPE).read_text()


@pytest.mark.parametrize("content", ["", "- a", "a: [", "a: &x [1]\nb: *x", "\x00", "text"])
def test_a_damaged_recipe_is_named(run: Path, content: str) -> None:
    (run / RECIPE).write_text(content)
    with pytest.raises(UsageError, match=r"recipe\.yaml is not a recipe that a run wrote"):
        train(run)


def test_another_version_is_named_at_the_start(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from colorgan.runs import run as module

    real = module.versions
    monkeypatch.setattr(module, "versions", lambda source: {**real(source), "numpy": "9.9"})
    train(run)
    assert "was written with other versions (numpy " in capsys.readouterr().out


def test_a_folder_in_use_names_process_and_host(run: Path) -> None:
    with (
        owned_folder(run),
        pytest.raises(UsageError, match=f"in use .*process .* on host {socket.gethostname()}"),
    ):
        train(run)


def test_the_log_has_start_saves_and_the_error_that_ended_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: ToyLoader, positions: range) -> None:
        raise ZeroDivisionError("of a test")

    train(tmp_path, total=16)
    monkeypatch.setattr(ToyLoader, "batch", fail)
    with pytest.raises(ZeroDivisionError):
        pretrain(
            toy_recipe(tmp_path, images=16),
            ONE,
            total_images=24,
            data_digest="abc",
            train=ToyLoader(8, 8),
            val=None,
        )
    log = read_log(tmp_path)
    assert [line["text"] for line in log if line["kind"] == "event"] == [
        "started",
        "started",
        "ZeroDivisionError: of a test",
    ]
    assert [line["path"] for line in log if line["kind"] == "save"] == [
        "checkpoints/images-000000000016"
    ]


def test_a_checkpoint_that_no_run_wrote_is_refused(run: Path) -> None:
    from colorgan.checkpoints.checkpoint import COMPLETE, file_digest

    folder = next((run / "checkpoints").iterdir())
    state = json.loads((folder / "state.json").read_text())
    del state["data_digest"]
    (folder / "state.json").write_text(json.dumps(state))
    listed = json.loads((folder / COMPLETE).read_text())
    listed["files"]["state.json"] = file_digest(folder / "state.json")
    (folder / COMPLETE).write_text(json.dumps(listed))
    with pytest.raises(CheckpointError, match="was not written by a run of colorgan"):
        train(run)
