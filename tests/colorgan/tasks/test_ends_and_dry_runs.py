"""What a run leaves when patience ends it, and what a dry run finds before anything is trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.tiny_set import tiny_sample, write_set

from colorgan.config.recipe import FinetuneRecipe, PretrainRecipe
from colorgan.config.settings import dump_recipe
from colorgan.distributed.ranks import Ranks
from colorgan.errors import ModelFolderError, OtherRecipeError, UsageError
from colorgan.tasks import finetuning, pretraining
from colorgan.training import plan


@pytest.fixture(scope="module")
def common(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return settings of both commands for a set of 16 pictures."""
    samples = [tiny_sample(index) for index in range(16)]
    data = write_set(tmp_path_factory.mktemp("data") / "set", samples)
    return {
        "data": {"train": (data,), "val": (data,), "decode_threads": 1},
        "network": {"image_size": 32, "width": 4},
        "batch": {"global_batch_size": 8},
        "output": {"num_pictures": 2, "trackers": []},
        "launch": {"torch_threads": 1},
    }


def test_a_run_that_patience_ends_has_its_pictures(tmp_path: Path, common: dict[str, Any]) -> None:
    """A detector that has hardly learned finds none of the boxes, in any validation."""
    words = {"task": "detect", "epochs": 9, "learning_rate": 1e-9, "patience": 2}
    recipe = FinetuneRecipe.model_validate({**common, **words, "run": tmp_path / "run"})
    assert finetuning.run(recipe, Ranks.single()) == 0

    scores = json.loads((tmp_path / "run" / "evaluation" / "scores.json").read_text())
    assert scores["images_seen"] < 9 * 16
    assert (tmp_path / "run" / "evaluation" / "pictures.png").is_file()


def test_the_end_names_pictures_where_there_are_some(
    tmp_path: Path, common: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    for name, val in (("with", common["data"]["val"]), ("without", ())):
        data = {**common["data"], "val": val}
        words = {**common, "data": data, "run": tmp_path / name, "images": 8}
        assert pretraining.run(PretrainRecipe.model_validate(words), Ranks.single()) == 0
        assert ("Pictures: " in capsys.readouterr().out) == (name == "with")
        assert (tmp_path / name / "pictures").is_dir() == (name == "with")


def test_a_dry_run_looks_at_its_first_weights(tmp_path: Path, common: dict[str, Any]) -> None:
    words = {**common, "run": tmp_path / "run", "dry_run": True, "init": tmp_path / "nowhere"}
    words["init"] = str(words["init"])
    with pytest.raises(ModelFolderError, match="nowhere is not a model folder"):
        pretraining.run(PretrainRecipe.model_validate(words), Ranks.single())
    with pytest.raises(ModelFolderError, match="nowhere is not a model folder"):
        finetuning.run(FinetuneRecipe.model_validate(words), Ranks.single())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["pretrain", "finetune"])
def test_a_dry_run_looks_at_the_run_s_folder(
    tmp_path: Path, common: dict[str, Any], kind: str
) -> None:
    command, schema = {
        "pretrain": (pretraining, PretrainRecipe),
        "finetune": (finetuning, FinetuneRecipe),
    }[kind]

    def start(**words: Any) -> None:
        recipe = {**common, "run": tmp_path / "run", "dry_run": True, **words}
        command.run(schema.model_validate(recipe), Ranks.single())

    (tmp_path / "run").write_text("")
    with pytest.raises(UsageError, match="is a file: name a folder"):
        start()
    (tmp_path / "run").unlink()
    (tmp_path / "run").mkdir()
    chosen = {**common["batch"], "precision": "fp32", "channels_last": False}
    old = schema.model_validate({**common, "run": tmp_path / "run", "seed": 3, "batch": chosen})
    (tmp_path / "run" / "recipe.yaml").write_text(dump_recipe(old))
    with pytest.raises(OtherRecipeError, match="seed: 3 -> 0"):
        start()
    with pytest.raises(UsageError, match="foo"):
        start(seed=3, output={"trackers": ["foo"]})
    start(seed=3)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["recipe.yaml"]


def test_a_dry_run_looks_at_the_machine(
    tmp_path: Path, common: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "MIN_FREE_FILES", 1 << 40)
    words = {**common, "run": tmp_path / "run", "dry_run": True}
    with pytest.raises(UsageError, match="this process may open"):
        pretraining.run(PretrainRecipe.model_validate(words), Ranks.single())
    with pytest.raises(UsageError, match="this process may open"):
        finetuning.run(FinetuneRecipe.model_validate(words), Ranks.single())
