"""Fine-tuning on pictures of another size than pretraining's, and that are not square."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from helpers.networks import small_config
from helpers.tiny_set import tiny_sample, write_set
from pydantic import ValidationError

from colorgan.config.recipe import FinetuneRecipe
from colorgan.data import Batch, open_set, open_whole_set
from colorgan.distributed.ranks import Ranks
from colorgan.errors import UsageError
from colorgan.evaluation.evaluate import evaluate
from colorgan.evaluation.segmenter_scores import score_segmenter
from colorgan.evaluation.settings import EvaluateSettings
from colorgan.models.model_folder import build_model, load_model, save_model
from colorgan.models.modes import initialise
from colorgan.tasks.finetuning import run


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a generator for 64 pixels, with weights as drawn."""
    folder = tmp_path_factory.mktemp("generator") / "model"
    config = small_config("generator")
    sizes = config.architecture.model_copy(update={"image_size": 64})
    config = config.model_copy(update={"architecture": sizes})
    model = build_model(config)
    initialise(model, 0)
    save_model(folder, model, config)

    return folder


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a set of pictures of 32 x 56 pixels."""
    samples = [tiny_sample(index, 32, 56) for index in range(16)]
    return write_set(tmp_path_factory.mktemp("data") / "wide", samples, policy="original")


def recipe(folder: Path, generator: Path, data: Path, **settings: object) -> FinetuneRecipe:
    words = {
        "run": folder,
        "init": str(generator),
        "data": {"train": (data,), "val": (data,), "decode_threads": 1, "flip": True},
        "batch": {"global_batch_size": 8},
        "output": {"num_pictures": 2, "trackers": []},
        "launch": {"torch_threads": 1},
        "head_width": 8,
        "epochs": 1,
        "learning_rate": 0.01,
        **settings,
    }

    return FinetuneRecipe.model_validate(words)


@pytest.mark.parametrize(
    ("task", "fit", "size", "headline"),
    [
        ("classify", "pad", 32, "mAP"),
        ("segment", "pad", 96, "mIoU_own_size"),
        ("detect", "crop", 128, "AP50"),
        ("segment", "crop", 64, "mIoU_own_size"),
    ],
)
def test_training_and_evaluation_see_the_same_pictures(
    tmp_path: Path, generator: Path, wide: Path, task: str, fit: str, size: int, headline: str
) -> None:
    settings = {"task": task, "fit": fit, "network": {"image_size": size}}
    assert (
        run(
            recipe(tmp_path / "run", generator, wide, **settings),
            Ranks.single(),
        )
        == 0
    )
    _, config = load_model(tmp_path / "run" / "model")
    assert (config.picture_size, config.fit) == (size, fit)
    assert config.architecture.image_size == 64

    asked = {
        "model": tmp_path / "run" / "model",
        "data": (wide,),
        "out": tmp_path / "out",
    }
    evaluate(EvaluateSettings.model_validate(asked), Ranks.single())
    trained, again = (
        json.loads((folder / "scores.json").read_text())["scores"]
        for folder in (tmp_path / "run" / "evaluation", tmp_path / "out")
    )
    assert again == trained
    assert headline in again


def test_a_perfect_segmenter_of_padded_pictures_scores_full_marks(wide: Path) -> None:
    """Whatever it says of the padding: that is no part of any picture."""
    ranks = Ranks.single()
    shards = open_set((wide,), None, 1.0, ranks)
    config = small_config("segmenter", num_outputs=4, classes=shards.classes)

    def perfect(batch: Batch) -> tuple[Batch, torch.Tensor]:
        assert batch.mask_BHW is not None
        assert batch.inside_BHW is not None
        shown_BHW = batch.mask_BHW.masked_fill(batch.mask_BHW == 255, 0)
        said_BHW = shown_BHW.masked_fill(~batch.inside_BHW, 3)
        return batch, 9.0 * torch.nn.functional.one_hot(said_BHW, 4).permute(0, 3, 1, 2).float()

    with open_whole_set(
        shards, ranks, image_size=56, ab_scale=128.0, batch_size=8, targets="mask", fit="pad"
    ) as loader:
        scores = score_segmenter(map(perfect, loader.eval_batches()), ranks, config).scores
    assert scores["pixel_accuracy"] == scores["mIoU_own_size"] == 1.0
    assert scores["mIoU_void_as_background"] == 1.0


def test_what_cannot_be_trained_is_refused(tmp_path: Path, generator: Path, wide: Path) -> None:
    with pytest.raises(ValidationError, match="fit: pad makes padding void"):
        recipe(tmp_path, generator, wide, task="segment", fit="pad", void="background")

    for settings, sentence in (
        ({"network": {"image_size": 100}}, "multiple of 32"),
        ({"network": {"image_size": 32}, "batch": {"global_batch_size": 1}}, "single pixels"),
        ({"network": {"image_size": 32}, "inference": "paper"}, "running statistics"),
    ):
        with pytest.raises(UsageError, match=sentence):
            run(
                recipe(tmp_path / "run", generator, wide, **settings),
                Ranks.single(),
            )
