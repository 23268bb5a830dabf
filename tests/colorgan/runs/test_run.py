"""A run folder: what is refused, what may change, what is logged."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers.toy import ToyBatch, ToyLoader, toy_recipe

from colorgan.checkpoints.checkpoint import checkpoint_path, open_checkpoint
from colorgan.checkpoints.consolidation import consolidate
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
    # The loader does not matter here: what is tested happens before and after training.
    loader = ToyLoader(8, 8)

    return pretrain(
        recipe,
        ONE,
        total_images=total,
        data_digest=digest,
        train=loader,
        val=None,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Trained once: most tests start from a copy of it.
    folder = tmp_path_factory.mktemp("finished") / "run"
    train(folder)
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """Copy a finished run."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.mark.parametrize(
    ("file", "what"), [("manifest.json", "a packed set"), ("scores.json", "an ev")]
)
def test_a_run_is_not_mixed_into_something_else(tmp_path: Path, file: str, what: str) -> None:
    (tmp_path / file).write_text("{}")
    with pytest.raises(UsageError, match=f"holds {what}.*: choose another --run"):
        train(tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == [file]


def test_a_picture_that_cannot_be_written_does_not_end_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "pictures").write_text("a file in the folder's place")
    recipe, loader = toy_recipe(run, images=16), ToyLoader(8, 8)
    pretrain(recipe, ONE, total_images=16, data_digest="abc", train=loader, val=loader)
    assert "000016.png could not be written: File exists" in capsys.readouterr().out
    assert checkpoint_path(run / "checkpoints", 16).is_dir()


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
    result = train(
        run,
        output={"log_every_images": 4},
        launch={"timeout_s": 60},
        batch={"global_batch_size": 8, "channels_last": True},  # as a run in NHWC under ZeRO
    )
    assert result.images_seen == 16


def test_a_recipe_from_before_a_key_existed_is_the_same_recipe(run: Path) -> None:
    """Keys that are newer than the file have the value that the run had: the default."""
    for path in (run / RECIPE,):
        recipe = yaml.safe_load(path.read_text())
        # Two keys that came later than the first runs.
        del recipe["batch"]["compress_gradients"]
        del recipe["launch"]["deterministic"]
        path.write_text(yaml.safe_dump(recipe))

    assert train(run).images_seen == 16
    assert "compress_gradients" in (run / RECIPE).read_text()


@pytest.mark.parametrize(
    "content",
    ["", "- a", "a: [", "a: &x [1]\nb: *x", "\x00", "text"],
)
def test_a_damaged_recipe_is_named(run: Path, content: str) -> None:
    (run / RECIPE).write_text(content)
    with pytest.raises(UsageError, match=r"recipe\.yaml is not a recipe that a run wrote"):
        train(run)


def test_another_version_is_named_at_the_start(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from colorgan.runs import run as module

    real = module.versions
    monkeypatch.setattr(
        module,
        "versions",
        lambda source: {**real(source), "numpy": "9.9"},
    )
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


LINEAR = {"schedule": "linear"}


def weights(folder: Path, images: int) -> dict[str, Any]:
    path = checkpoint_path(folder / "checkpoints", images)
    return open_checkpoint(path).tensors("generator")


def same(
    a: dict[str, Any],
    b: dict[str, Any],
) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_run_at_a_constant_rate_is_extended_as_if_it_had_been_longer(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(run, total=32)
    train(tmp_path / "long", total=32)
    assert same(
        weights(run, 32),
        weights(tmp_path / "long", 32),
    )
    assert "extended to 32 images (images: 16 -> 32)\n" in capsys.readouterr().out


def test_a_finished_run_whose_rate_decays_is_extended_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path, optimizer=LINEAR)
    assert train(tmp_path, total=32, optimizer=LINEAR).images_seen == 32
    text = "extended to 32 images (images: 16 -> 32); its learning rate follows the new length"
    assert text in capsys.readouterr().out.replace("\n", " ")


def train_and_fail(folder: Path, at_images: int, **changes: Any) -> None:
    """Train as `train` does until the loader fails."""
    read = ToyLoader.batch

    def fail(self: ToyLoader, positions: range) -> Any:
        if positions.start >= at_images:
            raise ZeroDivisionError
        return read(self, positions)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(ToyLoader, "batch", fail)
        train(folder, **changes)


def test_an_unfinished_run_whose_rate_decays_is_not_extended(tmp_path: Path) -> None:
    train_and_fail(tmp_path, 24, total=32, optimizer=LINEAR)
    with pytest.raises(OtherRecipeError, match="has seen 16 of 32 images: finish it with the old"):
        train(tmp_path, total=64, optimizer=LINEAR)


def test_an_extended_run_that_failed_before_its_next_checkpoint_goes_on(tmp_path: Path) -> None:
    """Its newest checkpoint is still the finished run's, whatever length was logged since."""
    train(tmp_path, optimizer=LINEAR)
    train_and_fail(tmp_path, 24, total=48, optimizer=LINEAR)
    train_and_fail(tmp_path, 40, total=48, optimizer=LINEAR)

    # From its own first checkpoint on it is an unfinished run like any other.
    with pytest.raises(OtherRecipeError, match="has seen 32 of 48 images: finish it with the old"):
        train(tmp_path, total=64, optimizer=LINEAR)
    assert train(tmp_path, total=48, optimizer=LINEAR).images_seen == 48


def test_an_unfinished_run_that_lost_its_log_is_not_extended(tmp_path: Path) -> None:
    """Only a start from the newest checkpoint is known: its length is the best there is."""
    train_and_fail(tmp_path, 24, total=32, optimizer=LINEAR)
    (tmp_path / "log.jsonl").unlink()
    train_and_fail(tmp_path, 24, total=32, optimizer=LINEAR)
    with pytest.raises(OtherRecipeError, match="has seen 16 of 32 images: finish it with the old"):
        train(tmp_path, total=64, optimizer=LINEAR)


def test_a_length_that_was_passed_is_refused(run: Path) -> None:
    with pytest.raises(OtherRecipeError, match="has already seen 16 images, more than 8"):
        train(run, total=8)


def test_a_new_run_goes_on_from_another_with_its_optimizers(run: Path, tmp_path: Path) -> None:
    """As one run would: only the order of the data begins anew."""
    resumed = tmp_path / "resumed"
    reset = tmp_path / "reset"
    train(resumed, resume_from=run)
    train(reset, resume_from=run, reset_optimizer=True)

    assert not same(weights(resumed, 16), weights(reset, 16))
    steps = {}
    for folder in (resumed, reset):
        path = checkpoint_path(folder / "checkpoints", 16)
        tensors = open_checkpoint(path).tensors("generator_optimizer")
        steps[folder] = {float(t) for name, t in tensors.items() if name.endswith("/step")}

    assert steps == {resumed: {4.0}, reset: {2.0}}


def test_a_run_without_a_discriminator_is_not_gone_on_with_by_a_gan(tmp_path: Path) -> None:
    train(tmp_path / "l1", loss={"gan": "none"})
    with pytest.raises(UsageError, match=r"has trained no discriminator .* give --init"):
        train(tmp_path / "new", resume_from=tmp_path / "l1")
    # Nothing is claimed for a recipe that cannot start.
    assert not (tmp_path / "new").exists()
    train(tmp_path / "new", init=str(tmp_path / "l1"))


@pytest.mark.parametrize("source", ["run", "generator"])
def test_pretraining_starts_from_a_runs_or_a_generators_weights(
    run: Path, tmp_path: Path, source: str
) -> None:
    path = checkpoint_path(run / "checkpoints", 16)
    folder = run
    if source == "generator":
        folder = tmp_path / "generator"
        consolidate(open_checkpoint(path), folder)
    # At this rate nothing moves: what was loaded is what is saved.
    still = {"learning_rate": 1e-30}
    train(
        tmp_path / "new",
        init=str(folder),
        optimizer=still,
    )
    before = weights(run, 16)
    after = weights(tmp_path / "new", 16)

    for name, parameter in before.items():
        if name.endswith(("weight", "bias")):
            assert torch.equal(parameter, after[name]), name


def test_a_run_stopped_before_its_first_checkpoint_starts_from_init_again(
    run: Path, tmp_path: Path
) -> None:
    """Its recipe is there already, its weights are not."""
    new = tmp_path / "new"
    still = {"learning_rate": 1e-30}

    def fail(self: ToyLoader, positions: range) -> ToyBatch:
        raise ZeroDivisionError

    with pytest.MonkeyPatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(ToyLoader, "batch", fail)
        train(new, init=str(run), optimizer=still)
    assert (new / "recipe.yaml").is_file()

    train(new, init=str(run), optimizer=still)
    before = weights(run, 16)
    after = weights(new, 16)
    for name, parameter in before.items():
        if name.endswith(("weight", "bias")):
            assert torch.equal(parameter, after[name]), name


def test_a_start_that_does_not_fit_is_refused(run: Path, tmp_path: Path) -> None:
    wide = {"image_size": 32, "width": 8}

    with pytest.raises(UsageError, match="has another generator than this recipe"):
        train(
            tmp_path / "new",
            init=str(run),
            network=wide,
        )

    generator = tmp_path / "generator"
    consolidate(
        open_checkpoint(checkpoint_path(run / "checkpoints", 16)),
        generator,
    )

    for start in ({"init": str(generator)}, {"init": str(run)}, {"resume_from": str(run)}):
        with pytest.raises(UsageError, match=r"ab_scale is 110.0, but .* was trained with 128.0"):
            train(tmp_path / "new", network={"ab_scale": 110.0}, **start)
    with pytest.raises(UsageError, match="give init or resume_from, not both"):
        train(
            tmp_path / "new",
            init=str(run),
            resume_from=run,
        )
    with pytest.raises(UsageError, match="holds no run with a checkpoint"):
        train(tmp_path / "new", resume_from=tmp_path / "nothing")
