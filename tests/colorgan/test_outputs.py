"""Outputs replace older ones of their kind, at once, and nothing else."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers.networks import small_config
from helpers.tiny_set import tiny_sample, write_set

from colorgan.checkpoints.writer import CheckpointWriter
from colorgan.distributed.ranks import Ranks
from colorgan.errors import ModelFolderError, UsageError
from colorgan.evaluation.evaluate import evaluate
from colorgan.evaluation.record import read_evaluation
from colorgan.evaluation.settings import EvaluateSettings
from colorgan.files import OUTPUTS, check_output, replacing_folder, what_is
from colorgan.models.model_folder import build_model, save_model
from colorgan.models.modes import initialise
from colorgan.report.page import write_report
from colorgan.tasks.photo_coloring import PhotoColoring, color_photos


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Write a generator and a classifier, with weights as drawn."""
    folder = tmp_path_factory.mktemp("models")
    made = {}
    for kind in ("generator", "classifier"):
        classes = ("cat", "dog", "owl") if kind == "classifier" else ()
        config = small_config(kind, num_outputs=len(classes) or 2, classes=classes)
        model = build_model(config)
        initialise(model, 0)
        made[kind] = folder / kind
        save_model(made[kind], model, config)
    return made


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a set."""
    return write_set(tmp_path_factory.mktemp("data") / "set", [tiny_sample(i) for i in range(8)])


def score(model: Path, data: Path, out: Path) -> None:
    settings = EvaluateSettings.model_validate({"model": model, "data": (data,), "out": out})
    evaluate(settings, Ranks.single())


@pytest.mark.parametrize("marker", OUTPUTS)
def test_each_kind_of_folder_gives_way_to_its_own_kind_alone(tmp_path: Path, marker: str) -> None:
    check_output(tmp_path / "new", marker)
    check_output(tmp_path, marker)
    (tmp_path / marker).touch()
    assert what_is(tmp_path) == OUTPUTS[marker]
    for other, kind in OUTPUTS.items():
        if kind == OUTPUTS[marker]:
            check_output(tmp_path, other)
        else:
            with pytest.raises(UsageError, match=f"holds {OUTPUTS[marker]} .* replaced by {kind}"):
                check_output(tmp_path, other)


def test_other_files_and_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UsageError, match="holds other files"):
        check_output(tmp_path, "scores.json")
    with pytest.raises(UsageError, match="is a file: name a folder"):
        check_output(tmp_path / "thesis.tex", "scores.json")


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with replacing_folder(out) as folder:
        (folder / "first").touch()
        assert not out.exists()
    (out / "README.md").write_text("mine")

    with pytest.raises(RuntimeError), replacing_folder(out) as folder:
        (folder / "half").touch()
        raise RuntimeError
    assert {path.name for path in out.iterdir()} == {"first", "README.md"}

    with replacing_folder(out) as folder:
        (folder / "second").touch()
    # It was no part of an output that is known.
    assert {path.name for path in out.iterdir()} == {"first", "second", "README.md"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_evaluation_replaces_one_of_the_same_kind_of_model(
    tmp_path: Path, models: dict[str, Path], data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    score(models["generator"], data, out)
    assert "older" not in capsys.readouterr().out
    (out / "pictures.png").touch()  # of another kind of model
    score(models["generator"], data, out)
    assert f"{out} holds an older evaluation" in capsys.readouterr().out
    assert not (out / "pictures.png").exists() and (out / "coloured.png").is_file()

    before = read_evaluation(out)
    with pytest.raises(UsageError, match=r"evaluation of a generator .* that of a classifier"):
        score(models["classifier"], data, out)
    with pytest.raises(UsageError, match="holds a model and is not replaced by an evaluation"):
        score(models["generator"], data, models["classifier"])
    assert read_evaluation(out) == before


def test_reports_photos_and_models_leave_other_folders_alone(
    tmp_path: Path, models: dict[str, Path], data: Path
) -> None:
    score(models["generator"], data, tmp_path / "scores")
    with pytest.raises(UsageError, match="holds a model and is not replaced by a report"):
        write_report([tmp_path / "scores"], models["generator"])
    coloring = PhotoColoring(
        out=tmp_path / "scores", side_by_side=False, inference=None, max_pixels=1000
    )
    with pytest.raises(UsageError, match="holds an evaluation: choose another --out for photos"):
        color_photos(models["generator"], [tmp_path / "photo.png"], coloring)
    config = small_config("classifier")
    with pytest.raises(ModelFolderError, match="holds an evaluation: choose another --out"):
        save_model(tmp_path / "scores", build_model(config), config)

    page = write_report([tmp_path / "scores"], tmp_path / "report")
    (tmp_path / "report" / "old.png").touch()
    assert write_report([tmp_path / "scores"], tmp_path / "report") == page
    assert page.is_file() and not (tmp_path / "report" / "old.png").exists()


@pytest.fixture(params=[0o022, 0o027, 0o077])
def mask(request: pytest.FixtureRequest) -> Iterator[int]:
    """Set the process's umask."""
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_what_is_written_follows_the_umask(tmp_path: Path, data: Path, mask: int) -> None:
    config = small_config("generator")
    model = build_model(config)
    initialise(model, 0)
    save_model(tmp_path / "model", model, config)
    score(tmp_path / "model", data, tmp_path / "scores")
    writer = CheckpointWriter(tmp_path / "checkpoints", Ranks.single(), keep_last=1)
    writer.start({"generator": {"weight": torch.ones(3)}}, {"images_seen": 8})
    writer.finish()
    writer.close()

    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 5
    for path in files:
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask, path
