"""Scores of fine-tuned models against scikit-learn, on drawn pictures read by the real loader."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.drawn_sample import write_sample
from helpers.networks import small_config
from PIL import Image
from safetensors.torch import load_file
from sklearn.metrics import average_precision_score, confusion_matrix, jaccard_score

from colorgan.distributed.ranks import Ranks
from colorgan.errors import TrainingError
from colorgan.evaluation.downstream import evaluate_model, scores_text, undefined_text
from colorgan.evaluation.record import Evaluation, SavedEvaluation, write_evaluation
from colorgan.evaluation.segmenter_scores import score_segmenter
from colorgan.models.model_config import Architecture, ModelConfig
from colorgan.models.model_folder import build_model
from colorgan.models.modes import initialise
from datasets.corpora.voc import CLASSES
from datasets.sample.corpus import open_sample
from shards.loading.loader import Loader
from shards.loading.shard_set import open_shards
from shards.packing.pack import pack

ONE = Ranks.single()
NUM_IMAGES = 9


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a drawn VOC, packed with its pictures as they are."""
    root = tmp_path_factory.mktemp("scoring")
    write_sample(
        root / "raw", num_train=1, num_val=1, num_voc_train=NUM_IMAGES, num_voc_val=1, size=56
    )
    pack(
        open_sample(root / "raw", "voc-train"),
        root / "own",
        root=root / "raw",
        image_policy="original",
        workers=0,
    )
    pack(
        open_sample(root / "raw", "voc-train"),
        root / "squash",
        root=root / "raw",
        image_policy="squash:32",
        workers=0,
    )

    return root


def loader(folder: Path, target: str) -> Loader:
    return Loader(
        open_shards([folder]),
        image_size=32,
        global_batch_size=4,
        micro_batch_size=4,
        targets=target,  # type: ignore[arg-type]
    )


def model_of(kind: str, num_outputs: int) -> tuple[torch.nn.Module, ModelConfig]:
    """Return a network of random weights, large enough ones that it predicts several classes."""
    architecture = Architecture(
        image_size=32,
        width=4,
        norm="batch",
        bias_before_norm=False,
        dropout=0.0,
        num_outputs=num_outputs,
        head_width=8,
    )
    config = ModelConfig(
        kind=kind,  # type: ignore[arg-type]
        architecture=architecture,
        ab_scale=128.0,
        classes=CLASSES,
    )
    model = build_model(config)
    initialise(model, 0)

    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8.0)

    return model.eval(), config


def logits_of(
    model: torch.nn.Module,
    loader: Loader,
) -> tuple[torch.Tensor, list[int]]:
    batches = list(loader.eval_batches())
    with torch.no_grad():
        logits = torch.cat([model(batch.lab_B3HW[:, :1]) for batch in batches])
    return logits, torch.cat([batch.sample_ids_B for batch in batches]).tolist()


def true_masks(folder: Path) -> list[np.ndarray]:
    """Return the masks as the corpus has them, in the order of the set (by name)."""
    year = folder / "raw" / "VOCdevkit" / "VOC2012"
    names = sorted((year / "ImageSets" / "Segmentation" / "train.txt").read_text().split())
    return [np.array(Image.open(year / "SegmentationClass" / f"{name}.png")) for name in names]


def test_segmentation_is_scored_at_each_pictures_own_size(folder: Path, tmp_path: Path) -> None:
    """IoU of every class as scikit-learn has it on the corpus' own masks, void left out.

    Counts add up to it.
    """
    model, config = model_of(
        "segmenter",
        len(CLASSES) + 1,
    )
    masks_loader = loader(folder / "own", "mask")
    evaluation = evaluate_model(
        model, config, masks_loader.eval_batches(), ONE, seed=0, num_pictures=2
    )
    logits, ids = logits_of(model, masks_loader)
    masks_loader.close()
    assert ids == list(range(NUM_IMAGES))
    truth, predicted = [], []
    for mask, logits_CHW in zip(true_masks(folder), logits, strict=True):
        resized = torch.nn.functional.interpolate(
            logits_CHW[None], mask.shape, mode="bilinear", align_corners=False
        )
        truth.append(mask[mask != 255])
        predicted.append(resized[0].argmax(0).numpy()[mask != 255])
    y = np.concatenate(truth)
    p = np.concatenate(predicted)
    there = sorted(set(y) | set(p))
    assert len(set(p)) > 2
    expected = jaccard_score(y, p, labels=there, average=None)
    names = ("background", *CLASSES)
    found = {name: value for name, value in evaluation.record.per_class.items() if value == value}
    assert found == pytest.approx(
        {names[i]: value for i, value in zip(there, expected, strict=True)}
    )
    assert evaluation.scores["mIoU_own_size"] == pytest.approx(expected.mean())
    # A class that is only predicted is not one that the set shows.
    assert evaluation.scores["classes"] == len(set(y)) < len(there)
    counts_3C = evaluation.per_image["counts_N3C"].sum(0)
    assert int(counts_3C[2].sum()) == len(y) == int(counts_3C[1].sum())

    write_evaluation(tmp_path, evaluation, {"kind": config.kind})
    written = json.loads((tmp_path / "scores.json").read_text())
    assert written["scores"]["mIoU_own_size"] == evaluation.scores["mIoU_own_size"]
    assert torch.equal(
        load_file(tmp_path / "per_image.safetensors")["counts_N3C"],
        evaluation.per_image["counts_N3C"],
    )
    with Image.open(tmp_path / "pictures.png") as picture:
        assert picture.height > 2 * 128  # two rows


def test_masks_of_another_size_are_scored_at_the_networks(folder: Path) -> None:
    """Squashed masks are nobody's own size.

    The score is not given, the confusion is scikit-learn's.
    """
    model, config = model_of(
        "segmenter",
        len(CLASSES) + 1,
    )
    masks_loader = loader(folder / "squash", "mask")
    evaluation = evaluate_model(
        model,
        config,
        masks_loader.eval_batches(),
        ONE,
        seed=0,
    )
    logits, _ = logits_of(model, masks_loader)
    truth = torch.cat(
        [batch.mask_BHW for batch in masks_loader.eval_batches() if batch.mask_BHW is not None]
    )
    masks_loader.close()

    assert "mIoU_own_size" not in evaluation.scores
    kept = truth != 255
    expected = confusion_matrix(
        truth[kept],
        logits.argmax(1)[kept],
        labels=range(len(CLASSES) + 1),
    )

    assert np.array_equal(evaluation.record.confusion, expected)
    assert evaluation.save_pictures is None


def test_classification_keeps_what_its_scores_come_from(folder: Path, tmp_path: Path) -> None:
    """Scores and labels of each image, from which scikit-learn's step-wise AP is near.

    Best classes by true ones.
    """
    model, config = model_of("classifier", len(CLASSES))
    classes_loader = loader(folder / "own", "classes")
    evaluation = evaluate_model(
        model,
        config,
        classes_loader.eval_batches(),
        ONE,
        seed=0,
    )
    logits, _ = logits_of(model, classes_loader)
    classes_loader.close()
    scores = evaluation.per_image["scores_NC"]
    positives = evaluation.per_image["positives_NC"]

    assert torch.allclose(scores, logits)
    for index, name in enumerate(CLASSES):
        if positives[:, index].sum() > 0:
            # The area under the monotone envelope is never under that of the steps.
            assert (
                evaluation.record.per_class[name]
                >= average_precision_score(positives[:, index], scores[:, index]) - 1e-6
            )
        else:
            assert np.isnan(evaluation.record.per_class[name])
    by_hand = torch.zeros(
        len(CLASSES),
        len(CLASSES),
        dtype=torch.int64,
    )
    for row, best in zip(positives, scores.argmax(1), strict=True):
        for index in row.nonzero()[:, 0]:
            by_hand[index, best] += 1

    assert evaluation.record.confusion == by_hand.tolist()
    write_evaluation(tmp_path, evaluation, {})
    written = json.loads((tmp_path / "scores.json").read_text())["per_class"]
    absent = {name for index, name in enumerate(CLASSES) if not positives[:, index].any()}

    assert (
        absent and {name for name, value in written.items() if value is None} == absent
    )  # JSON knows no NaN


def test_a_rank_without_pictures_has_none_of_its_own_size(folder: Path) -> None:
    """A short set leaves a rank without any batch; alone, that is an error in words."""
    _, config = model_of(
        "segmenter",
        len(CLASSES) + 1,
    )
    with pytest.raises(TrainingError, match="none of the images"):
        score_segmenter(iter([]), ONE, config)


def test_classes_without_a_score_are_named_and_nothing_is_nan_percent() -> None:
    config = small_config("classifier", num_outputs=12, classes=tuple("abcdefghijkl"))
    none = dict.fromkeys(
        ("mAP", "mAP_11_point", "first_positive_accuracy"),
        math.nan,
    )
    scores = {**none, "images": 3.0, "classes": 0.0}
    per_class = dict.fromkeys(config.classes, math.nan) | {"b": 0.5}
    evaluation = Evaluation(SavedEvaluation(scores=scores, per_class=per_class))

    text = scores_text(config, scores)
    assert "mAP undefined (VOC 2010+)" in text and "nan" not in text
    assert "(3 images, 0 of 12 classes present; running inference)" in text
    named = undefined_text(evaluation)
    assert named.endswith("shows them: a, c, d, e, f, g, h, i, j, k and 1 more")
    whole = SavedEvaluation(
        scores={"mAP": 0.5},
        per_class={"a": 0.5},
    )
    assert undefined_text(Evaluation(whole)) == ""
