"""Plans of studies: the recipes of the project, sets to pack, scale, splits on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from helpers.commands import LAUNCHER
from pydantic import ValidationError

from colorgan.config.recipe import PretrainRecipe
from colorgan.errors import UsageError
from colorgan.study.checks import check, check_folder
from colorgan.study.plan import Plan
from colorgan.study.protocols import find_protocol
from colorgan.study.settings import StudySettings

RECIPES = [LAUNCHER / "configs" / "study_sample.yaml"]
RECIPES += sorted((LAUNCHER / "configs" / "studies").glob("*.yaml"))


def plan_of(tmp_path: Path, **settings: object) -> Plan:
    roots = {"voc": tmp_path, "pretrain": tmp_path}

    return Plan(
        StudySettings.model_validate(
            {
                "out": tmp_path / "out",
                "roots": roots,
                **settings,
            }
        ),
        LAUNCHER,
    )


@pytest.mark.parametrize(
    "path",
    RECIPES,
    ids=lambda path: path.stem,
)
def test_each_recipe_is_a_study_that_can_be_planned(path: Path, tmp_path: Path) -> None:
    plan = plan_of(
        tmp_path,
        **yaml.safe_load(path.read_text()),
    )
    check(plan.settings)
    names = [step.name for step in plan.steps]

    assert len(names) == len(set(names))
    for place, step in enumerate(plan.steps):
        assert set(step.parents) <= set(names[:place]), step.name

    assert names[-2:] == ["table", "report"]
    assert set(plan.settings.predictions) <= set(plan.settings.protocols)


def test_packed_sets_are_named_by_the_recipes_that_use_them(tmp_path: Path) -> None:
    recipe = {
        "images": 64,
        "data": {"train": ["photos", "/elsewhere"], "flip": True},
    }
    plan = plan_of(
        tmp_path,
        pack={"photos": {"corpus": "folder", "split": "train"}},
        pretrain={"l1": recipe},
        protocols=["knn"],
    )
    steps = {step.name: step for step in plan.steps}
    packed = steps["pack photos"].recipe()

    assert packed["root"] == str(tmp_path)
    assert packed["out"] == str(tmp_path / "out" / "shards" / "photos")
    told = steps["pretrain l1"].recipe()

    assert told["data.train"] == [packed["out"], "/elsewhere"]
    assert told["data.flip"] is True
    assert steps["pretrain l1"].parents == ("pack photos",)
    # Without a validation set there is nothing to evaluate the generator on.
    assert "evaluate l1" not in steps


def test_a_part_of_a_stratified_set_is_named_by_its_fold(tmp_path: Path) -> None:
    words = {"corpus": "folder", "split": "train", "stratify": "10,20,70"}
    plan = plan_of(
        tmp_path,
        pack={"drawn": words},
        pretrain={"few": {"images": 64, "data": {"train": ["drawn/train"]}}},
        protocols=["knn"],
    )
    steps = {step.name: step for step in plan.steps}
    folder = tmp_path / "out" / "shards" / "drawn"

    assert steps["pretrain few"].recipe()["data.train"] == [str(folder / "train")]
    assert steps["pretrain few"].parents == ("pack drawn",)
    # The part that is packed last.
    assert steps["pack drawn"].done == folder / "test" / "manifest.json"


def test_scale_multiplies_the_image_size_in_either_spelling(tmp_path: Path) -> None:
    nested = {
        "network": {"image_size": 64, "width": 8},
        "data": {"train": ["a"]},
    }
    dotted = {"network.image_size": 64, "network.width": 8, "data.train": ["a"]}
    plan = plan_of(
        tmp_path, pretrain={"a": nested, "b": dotted}, scale=2, protocols=["voc2012-classification"]
    )

    assert plan.network["image_size"] == 128
    sizes = [
        plan.recipes["a"]["network"]["image_size"],
        plan.recipes["b"]["network.image_size"],
    ]

    assert sizes == [128, 128]


def test_arms_of_different_networks_are_refused(tmp_path: Path) -> None:
    recipes = {
        name: {"network.width": width, "data.train": ["a"]} for name, width in (("a", 8), ("b", 16))
    }
    plan = plan_of(tmp_path, pretrain=recipes, protocols=["voc2012-classification"])

    with pytest.raises(
        UsageError, match="a has width 8, b has 16: arms are compared on one network"
    ):
        _ = plan.steps


def test_the_first_split_on_disk_with_labels_is_taken(tmp_path: Path) -> None:
    year = tmp_path / "VOC2007"
    for folder in ("ImageSets/Main", "Annotations"):
        (year / folder).mkdir(parents=True)
    for name in ("train", "val", "trainval", "test"):
        (year / "ImageSets" / "Main" / f"{name}.txt").write_text(f"{name}1\n{name}2\n")
    (year / "Annotations" / "trainval1.xml").write_text("<annotation/>")
    protocol = find_protocol("voc2007-classification")
    settings = {
        "pretrain": {"a": {"data.train": ["x"]}},
        "protocols": [protocol.name],
    }

    # The test list without a single label is as good as no test list.
    (trial,) = plan_of(tmp_path, **settings).trials
    assert trial.split is protocol.data[1]
    (year / "Annotations" / "test2.xml").write_text("<annotation/>")
    (trial,) = plan_of(tmp_path, **settings).trials
    assert trial.split is protocol.data[0]
    assert trial.split.test.num_on_disk(tmp_path) == 2


@pytest.mark.parametrize(
    ("name", "split"),
    [("voc2007-linear@all", "2007-all"), ("voc2012-segmentation@all", "2012-seg-all")],
)
def test_all_photos_are_split_by_class(tmp_path: Path, name: str, split: str) -> None:
    year, _, kind = split.partition("-")
    labels = "SegmentationClass" if kind == "seg-all" else "Annotations"
    folder = tmp_path / f"VOC{year}" / labels
    folder.mkdir(parents=True)
    for index in range(20):
        (folder / f"{index}.any").touch()

    settings = {
        "pretrain": {"a": {"data.train": ["x"]}},
        "protocols": [name],
    }
    (trial,) = plan_of(tmp_path, **settings).trials
    parts = (
        trial.split.train,
        trial.split.selection,
        trial.split.test,
    )
    assert [part and part.split for part in parts] == [split] * 3
    assert [part and part.fold for part in parts] == ["train", "val", "test"]
    assert [part and part.num_on_disk(tmp_path) for part in parts] == [8, 2, 10]
    # What a search judges by is held out of the test.
    assert trial.search_parts() == (
        trial.split.train,
        trial.split.selection,
    )


def test_a_share_of_the_labels_is_stratified_and_searched_within_itself(tmp_path: Path) -> None:
    settings = {
        "pretrain": {"a": {"data.train": ["x"]}},
        "protocols": ["voc2012-classification@10"],
        "search": [0.1, 0.2],
    }
    (trial,) = plan_of(tmp_path, **settings).trials

    assert (
        trial.split.train.stratify,
        trial.split.train.fold,
    ) == ("10,90", "train")
    assert trial.split.test == find_protocol("voc2012-classification").data[0].test

    train, judge = trial.search_parts()
    assert (
        train.stratify,
        train.fold,
        judge.fold,
    ) == ("8+2,90", "train", "val")
    assert trial.protocol.title.endswith("10 % of the labels")


def test_marks_of_older_studies_stay_valid(tmp_path: Path) -> None:
    """A complete step is known by its recipe: newer keys are in it only if they are set."""
    (trial,) = plan_of(
        tmp_path, pretrain={"a": {"data.train": ["x"]}}, protocols=["voc2012-classification"]
    ).trials
    (stage,) = trial.stages_of(trial.arms[0], 0.5)

    assert stage == {
        "epochs": 30.0,
        "learning_rate": 0.5,
        "features": "train",
        "schedule": "cosine",
    }


def test_a_pretraining_recipe_is_the_schemas(tmp_path: Path) -> None:
    """A study's arms default to the sample's recipe, on the drawn sample."""
    plan = Plan(
        StudySettings(out=tmp_path, protocols=("voc2012-classification",)),
        LAUNCHER,
    )
    nested = yaml.safe_load((LAUNCHER / "configs" / "sample.yaml").read_text())

    assert PretrainRecipe.model_validate(nested).network.image_size == plan.network["image_size"]
    names = [step.name for step in plan.steps]
    assert names[0] == "pack sample-voc-train-64"
    assert "evaluate pretrained" in names


# A protocol that needs no data of its own.
DRAWN = {"protocols": ("voc2012-classification",)}


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {"protocols": ("knn",)},
            "needs --roots.voc: the built-in sample has VOC 2012 only",
        ),
        (
            {"pack": {"a": {"corpus": "folder"}}},
            "--pack a needs --roots.pretrain",
        ),
        ({"finetune": {"batch.precison": "bf16"}}, "recipe of finetune.py: batch.precison: Extra"),
        ({"finetune": {"epochs": 1}}, "--finetune epochs: the study itself sets it"),
        ({"finetune": {"data": {"train": ["a"]}}}, "--finetune data.train: the study itself"),
        ({"launch": 'accelerate "launch'}, "--launch .*: No closing quotation"),
        ({"launch": " "}, "--launch ' ': program not found"),
        ({"seeds": tuple(range(201))}, "at most 200 runs of an arm, this one 201"),
        ({"pretrain": {"a" * 41: {}}}, "at most 40 characters"),
    ],
)
def test_mistakes_are_found_before_any_step(
    tmp_path: Path, settings: dict[str, object], sentence: str
) -> None:
    with pytest.raises(UsageError, match=sentence):
        check(StudySettings.model_validate({"out": tmp_path, **DRAWN, **settings}))


@pytest.mark.parametrize("key", ["protocols", "search", "seeds"])
def test_nothing_is_compared_twice(tmp_path: Path, key: str) -> None:
    twice = {"protocols": ("voc2012-linear",), "search": (0.1,), "seeds": (3,)}[key] * 2
    with pytest.raises(ValidationError, match=rf"{key} .*: each once"):
        StudySettings.model_validate({"out": tmp_path, key: twice})


@pytest.mark.parametrize(
    "recipe",
    [
        {"network": {"width": "foo"}},
        {"data": "foo"},
        {"network": None},
        {"data": "foo", "data.train": ["a"]},
    ],
)
@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_a_wrong_pretraining_recipe_is_an_error_in_words(
    tmp_path: Path, recipe: dict[str, object], scale: float
) -> None:
    settings = StudySettings(out=tmp_path, pretrain={"a": recipe}, scale=scale)
    with pytest.raises(UsageError, match=r"--pretrain a is not a recipe of pretrain\.py"):
        _ = Plan(settings, LAUNCHER).steps


def test_a_folder_of_another_kind_is_refused(tmp_path: Path) -> None:
    check_folder(tmp_path / "absent")
    (tmp_path / "study" / "steps").mkdir(parents=True)
    (tmp_path / "study" / "notes.txt").write_text("mine")
    check_folder(tmp_path / "study")

    with pytest.raises(UsageError, match=r"holds something other than a study \(study\)"):
        check_folder(tmp_path)
    with pytest.raises(UsageError, match="is a file"):
        check_folder(tmp_path / "study" / "notes.txt")


@pytest.mark.parametrize(
    ("pretrain_seeds", "drawn"),
    [([4, 5, 6], (4, 5, 6)), ([], (0, 1))],
)
def test_frozen_features_are_compared_with_as_many_random_weights(
    pretrain_seeds: list[int], drawn: tuple[int, ...], tmp_path: Path
) -> None:
    plan = plan_of(
        tmp_path,
        pretrain={"l1": {"data.train": ["x"]}},
        pretrain_seeds=pretrain_seeds,
        protocols=["voc2007-linear", "knn"],
        seeds=[0, 1],
    )
    linear, _ = plan.trials
    random, pretrained = linear.compared_arms
    assert (random.name, pretrained.name) == ("random", "l1")
    assert tuple(start.seed for start in random.starts) == drawn

    # Each is one probe, which the table waits for.
    probes = {step.name for step in linear.probes()}
    folders = linear.evaluations()
    assert {run.parent.name for arm in folders.values() for run in arm.values()} == {
        name.split("/")[1] for name in probes
    }
    (table,) = [step for step in plan.steps if step.name == "table"]
    assert probes <= set(table.parents)
