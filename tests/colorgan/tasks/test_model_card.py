"""The model card: scores of that checkpoint alone, no private paths, a user's own card stays."""

from __future__ import annotations

from pathlib import Path

import pytest

from colorgan.evaluation.record import Evaluation, SavedEvaluation, write_evaluation
from colorgan.files import CARD
from colorgan.models.model_config import Architecture, ModelConfig, weights_digest
from colorgan.models.model_folder import build_model, write_model
from colorgan.runs.log import RunLog
from colorgan.tasks.model_card import DRAWN, MARK, PICTURE, renew_evaluations, write_card

SMALL = Architecture(image_size=32, width=4, norm="batch", bias_before_norm=False, dropout=0.5)


def config(data: str = "/home/me/photos") -> ModelConfig:
    return ModelConfig(
        kind="generator",
        architecture=SMALL,
        ab_scale=128.0,
        images_seen=64,
        data_digest="0a1b2c",
        recipe={
            "run": "/home/me/runs/a",
            "seed": 7,
            "data": {"train": [data]},
            "network": {"width": 4, "encoder_weights": "/home/me/resnet18.pth"},
        },
    )


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Return a run with validations at 32 and at 64 images, and a picture of each."""
    with RunLog(tmp_path / "run", None) as log:
        log.write("validate", 32, {"l1": 0.875})
        log.write("validate", 64, {"l1": 0.125})
    pictures = tmp_path / "run" / "pictures"
    pictures.mkdir()
    for images in (32, 64):
        (pictures / f"images-{images:012d}.png").write_bytes(bytes([images]))
    (tmp_path / "model").mkdir()
    return tmp_path / "run"


def test_a_card_has_the_checkpoints_own_scores_and_no_private_path(
    run: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    assert write_card(folder, run, config())
    text = (folder / CARD).read_text()

    assert text.startswith("---\nlibrary_name: colorgan\n")
    assert "0.125" in text and "0.875" not in text
    assert "seed: 7" in text and "0a1b2c" in text
    assert "/home/me" not in text and DRAWN not in text
    assert (folder / PICTURE).read_bytes() == bytes([64])


def test_without_a_validation_there_it_claims_nothing(run: Path, tmp_path: Path) -> None:
    later = config().model_copy(update={"images_seen": 65})
    write_card(tmp_path / "model", run, later)
    assert "Not evaluated" in (tmp_path / "model" / CARD).read_text()


def test_an_older_checkpoint_has_its_own_picture_or_none(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    write_card(folder, run, config().model_copy(update={"images_seen": 48}))
    assert not (folder / PICTURE).exists()
    write_card(folder, run, config().model_copy(update={"images_seen": 32}))
    assert (folder / PICTURE).read_bytes() == bytes([32])


@pytest.mark.parametrize(("weights", "claimed"), [("average", True), ("raw", False)])
def test_scores_of_the_average_are_not_claimed_for_raw_weights(
    run: Path, tmp_path: Path, weights: str, claimed: bool
) -> None:
    recipe = {**config().recipe, "ema_half_life_images": 1000}
    write_card(
        tmp_path / "model", run, config().model_copy(update={"weights": weights, "recipe": recipe})
    )
    text = (tmp_path / "model" / CARD).read_text()
    assert ("0.125" in text) == claimed
    assert (tmp_path / "model" / PICTURE).exists() == claimed


def test_drawn_shapes_are_named(run: Path, tmp_path: Path) -> None:
    write_card(tmp_path / "model", run, config("data/sample/squash-64/train"))
    assert DRAWN in (tmp_path / "model" / CARD).read_text()


def test_ours_is_renewed_and_the_users_is_kept(run: Path, tmp_path: Path) -> None:
    card = tmp_path / "model" / CARD
    card.write_text(f"{MARK}\nold")
    assert write_card(card.parent, run, config())
    assert "old" not in card.read_text()

    card.write_text("mine")
    assert not write_card(card.parent, run, config())
    assert card.read_text() == "mine"


def evaluate_as(folder: Path, digest: str, score: float, data: str = "/home/me/val") -> None:
    """Write what `evaluate --out` writes of a classifier with these weights."""
    about = {"data": (data,), "kind": "classifier", "inference": "running"}
    record = Evaluation(SavedEvaluation(scores={"mAP": score, "images": 8.0}))
    write_evaluation(folder, record, {**about, "weights_sha256": digest})


def test_evaluations_of_these_very_weights_are_told_and_no_others(
    run: Path, tmp_path: Path
) -> None:
    classifier = config().model_copy(update={"kind": "classifier", "classes": ("cat", "dog")})
    folder = run / "model"
    folder.mkdir()
    write_model(folder, build_model(classifier), classifier)
    digest = weights_digest(folder)
    evaluate_as(run / "mine", digest, 0.625)
    evaluate_as(run / "other", "0" * 64, 0.875)
    (run / "damaged").mkdir()
    (run / "damaged" / "scores.json").write_text("{")

    write_card(folder, run, classifier)
    text = (folder / CARD).read_text()
    assert "## Evaluations\n\n### val (running inference)\n\n| score | held-out |" in text
    assert "| mAP | 0.625 |" in text
    assert "0.875" not in text
    assert text.index("## Scores") < text.index("## Evaluations") < text.index("## Recipe")

    # Before an upload: what was evaluated since, and nothing else of the card is changed.
    before = text
    evaluate_as(run / "newer", digest, 0.5, "/home/me/test")
    assert renew_evaluations(folder) == [run / "mine", run / "newer"]
    text = (folder / CARD).read_text()
    assert text.count("## Evaluations") == 1
    assert "### test (running inference)" in text and "| mAP | 0.625 |" in text
    assert text.split("## Evaluations")[0] == before.split("## Evaluations")[0]
    assert text.split("## Recipe")[1] == before.split("## Recipe")[1]

    (folder / CARD).write_text("mine")
    assert renew_evaluations(folder) == []
    assert (folder / CARD).read_text() == "mine"
