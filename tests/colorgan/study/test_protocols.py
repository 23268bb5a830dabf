"""Protocols: complete, valid for the recipe's schema and the packer, and the paper's numbers."""

from __future__ import annotations

import dataclasses
import re
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
import yaml
from helpers.networks import small_config

from colorgan.config.recipe import FinetuneRecipe
from colorgan.distributed.ranks import Ranks
from colorgan.errors import UsageError
from colorgan.evaluation.classifier_scores import score_classifier
from colorgan.evaluation.detection_metrics import COCO_NAMES
from colorgan.evaluation.segmenter_scores import score_segmenter
from colorgan.probes.linear import Score
from colorgan.probes.softmax import SoftmaxLevel
from colorgan.study.protocols import METRIC_TITLES, PROTOCOLS, Protocol, StartKind, find_protocol

PROJECT = Path(__file__).resolve().parents[3]
TRAINED = {"classify", "segment", "detect"}
each_protocol = pytest.mark.parametrize(
    "protocol",
    PROTOCOLS,
    ids=lambda protocol: protocol.name,
)


def recipe_of(protocol: Protocol, arm: StartKind) -> FinetuneRecipe:
    """Return the arm's recipe, read as fine-tuning reads its keys."""
    keys: dict[str, Any] = {
        "init": "scratch" if arm == "scratch" else "generator",
        "stages": protocol.stages[arm],
    }

    for name, value in protocol.settings.items():
        section, _, leaf = name.rpartition(".")
        (keys.setdefault(section, {}) if section else keys)[leaf] = value

    return FinetuneRecipe.model_validate(keys)


def test_each_protocol_that_was_asked_for_is_there() -> None:
    assert [protocol.name for protocol in PROTOCOLS] == [
        "paper-classification",
        "paper-segmentation",
        "voc2012-classification",
        "voc2012-segmentation",
        "voc2007-classification",
        "voc2007-linear",
        "voc2007-lowshot",
        "knn",
        "folder-softmax",
        "voc2007-detection",
        "coco-detection",
    ]


@each_protocol
def test_a_protocol_names_scores_that_exist_and_its_source(protocol: Protocol) -> None:
    assert find_protocol(protocol.name) is protocol
    names = (protocol.metric, *protocol.further)
    assert set(names) <= set(METRIC_TITLES)
    assert len(set(names)) == len(names)
    assert re.search(r"\b20[0-2]\d\b", protocol.source)
    assert protocol.title
    assert protocol.head


def scored_names() -> dict[str, set[str]]:
    """Return the scores of one image, by task."""
    classified: Any = SimpleNamespace(
        sample_ids_B=torch.tensor([0]),
        classes_BC=torch.ones(1, 2),
        difficult_BC=torch.zeros(1, 2, dtype=torch.bool),
    )
    mask_BHW = torch.tensor([[[0, 1]]])
    segmented: Any = SimpleNamespace(
        sample_ids_B=torch.tensor([0]),
        mask_BHW=mask_BHW,
        stored_masks=[mask_BHW[0].to(torch.uint8)],
        inside_BHW=None,
    )
    config = small_config("segmenter")
    ranks = Ranks.single()
    detected = {"AP50", "AP50_11_point", *COCO_NAMES}

    return {
        "classify": set(
            score_classifier(
                [(classified, torch.zeros(1, 2))], ranks, small_config("classifier")
            ).scores
        ),
        "segment": set(
            score_segmenter(
                [(segmented, torch.zeros(1, 2, 1, 2))],
                ranks,
                config,
            ).scores
        ),
        "detect": detected,
        "probe": {field.name for field in dataclasses.fields(Score)},
        "softmax": {field.name for field in dataclasses.fields(SoftmaxLevel)},
    }


def test_the_scores_are_those_that_scoring_gives() -> None:
    names = scored_names()
    for protocol in PROTOCOLS:
        given = names.get(protocol.task, names["probe"])
        assert {protocol.metric, *protocol.further} <= given, protocol.name


@each_protocol
def test_stages_and_settings_are_a_recipe(protocol: Protocol) -> None:
    assert set(protocol.stages) == (set(get_args(StartKind)) if protocol.task in TRAINED else set())

    recipes = [recipe_of(protocol, arm) for arm in protocol.stages]
    epochs = {sum(stage.epochs for stage in recipe.stages) for recipe in recipes}
    assert len(epochs) <= 1, "the arms see unequal numbers of pictures"

    if not protocol.name.startswith("paper-"):
        assert len({recipe.stages for recipe in recipes}) <= 1, (
            "the arms differ in more than their first weights"
        )


@each_protocol
def test_parts_are_words_of_the_packer(protocol: Protocol) -> None:
    settings = runpy.run_path(str(PROJECT / "launcher" / "pack.py"), run_name="launcher_pack")[
        "PackSettings"
    ]

    for data in protocol.data:
        for part in (data.train, data.test, *([data.selection] if data.selection else [])):
            words = {
                "corpus": protocol.corpus,
                "root": "VOCdevkit",
                "out": "shards",
                **part.pack_arguments,
            }
            settings.model_validate_strings(words)
            assert bool(part.stratify) == (part.fold in ("train", "val", "test"))
            assert part.pack_arguments["image"] == (
                "original" if part.image == "original" else "squash:256"
            )
        if protocol.metric == "mIoU_own_size":
            assert data.test.image == "original", "own size is lost where pictures are squashed"


@pytest.mark.parametrize("task", ["classification", "segmentation"])
def test_the_papers_pretrained_arm_is_its_recipe(task: str) -> None:
    name = {"classification": "voc_classify_paper", "segmentation": "voc_segment_paper"}[task]
    written = yaml.safe_load((PROJECT / "launcher" / "configs" / f"{name}.yaml").read_text())
    recipe = FinetuneRecipe.model_validate({"init": "generator", **written})
    ours = recipe_of(find_protocol(f"paper-{task}"), "pretrained")

    assert ours.stages == recipe.stages
    assert ours.batch == recipe.batch
    assert ours.data == recipe.data
    assert (ours.void, ours.head_width, ours.beta1, ours.beta2) == (
        recipe.void,
        recipe.head_width,
        recipe.beta1,
        recipe.beta2,
    )


def test_the_papers_scratch_arms() -> None:
    for name, epochs in (("paper-classification", 4), ("paper-segmentation", 6)):
        (stage,) = find_protocol(name).stages["scratch"]
        assert (stage.epochs, stage.learning_rate, stage.features, stage.schedule) == (
            epochs,
            3e-4,
            "train",
            "constant",
        )


def test_a_misspelt_name_is_told_the_nearest() -> None:
    with pytest.raises(
        UsageError, match="unknown protocol 'voc2007-detect', do you mean voc2007-detection"
    ):
        find_protocol("voc2007-detect")
