"""The probe command on the built-in sample: tables, file, ranks and mistakes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.commands import LAUNCHER, Command, command_line
from PIL import Image
from safetensors.torch import save_file

from colorgan.errors import ColorganError
from colorgan.evaluation.record import read_evaluation
from colorgan.models.model_config import CONFIG, WEIGHTS, Architecture, ModelConfig
from colorgan.models.model_folder import build_model
from colorgan.models.modes import initialise
from datasets.corpora.folder import open_folder
from datasets.corpora.splits import stratify
from shards.errors import ShardError
from shards.packing.pack import pack


@pytest.fixture(scope="session")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("generator"), "generator")


def model_folder(folder: Path, kind: Any) -> Path:
    """Return a network of 32x32 and width 4 with weights from seed 1."""
    sizes = Architecture(
        image_size=32, width=4, norm="batch", bias_before_norm=False, dropout=0.5, head_width=8
    )
    classes = ("one", "two") if kind == "classifier" else ()
    config = ModelConfig(
        kind=kind, architecture=sizes, ab_scale=128.0, images_seen=640, classes=classes
    )
    model = build_model(config)
    initialise(model, 1)
    save_file(model.state_dict(), folder / WEIGHTS)
    (folder / CONFIG).write_text(config.model_dump_json())

    return folder


def words(packed: dict[str, Path], out: Path, *more: object) -> list[object]:
    return [
        "--data.train",
        packed["voc-train"],
        "--data.test",
        packed["voc-val"],
        "--out",
        out,
        *more,
    ]


def test_every_protocol_on_every_level(
    tmp_path: Path, packed: dict[str, Path], command: Command, generator: Path
) -> None:
    told = command("probe", "--model", generator, *words(packed, tmp_path))
    found = json.loads((tmp_path / "probe.json").read_text())

    assert "32 training images, 12 test images" in told
    assert [level["numbers"] for level in found["levels"]] == [1024, 512, 256, 128, 32]
    assert {
        name: len(found[name]["levels"]) for name in ("linear", "lowshot", "knn")
    } == dict.fromkeys(("linear", "lowshot", "knn"), 5)

    best = found["linear"]["best_level"]
    values = [level["cross_validated"] for level in found["linear"]["levels"]]
    assert values[best] == max(values)

    for level in found["linear"]["levels"]:
        assert 0 < level["score"]["chance"] < 1
        assert f"{100 * level['score']['mAP']:.1f}" in told

    assert [shot["k"] for shot in found["lowshot"]["levels"][0]] == [1, 2, 4, 8, 16, 32, 64, 96]
    assert [neighbours["k"] for neighbours in found["knn"]["levels"][0]] == [
        1,
        5,
        10,
        20,
    ]  # of 32 pictures
    assert found["data"]["train"]["images"] == 32
    assert len(found["data"]["test"]["positives"]) == len(found["classes"]) == 20
    assert found["versions"]["scikit-learn"]
    assert (found["images_seen"], found["seed"]) == (640, 0)


def test_random_is_drawn_from_its_seed_alone(
    tmp_path: Path, packed: dict[str, Path], command: Command, generator: Path
) -> None:
    found = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        command(
            "probe",
            "--model",
            "random",
            "--like",
            generator,
            "--seed",
            seed,
            "--protocol",
            "knn",
            *words(packed, tmp_path / name),
        )
        found.append(json.loads((tmp_path / name / "probe.json").read_text()))

    assert found[0] == found[1]
    assert found[0]["knn"] != found[2]["knn"]
    assert found[0]["images_seen"] == 0
    assert "linear" not in found[0]


def test_two_processes_write_what_one_writes(
    tmp_path: Path, packed: dict[str, Path], command: Command, generator: Path
) -> None:
    common = ["--model", "random", "--like", generator, "--protocol", "knn", "--batch_size", 4]
    profile = ["launch", "--config_file", LAUNCHER / "configs" / "accelerate" / "ddp_cpu.yaml"]
    done = command_line(
        "accelerate", *profile, LAUNCHER / "probe.py", *common, *words(packed, tmp_path / "two")
    )

    assert done.returncode == 0, done.stderr
    command(
        "probe",
        *common,
        *words(packed, tmp_path / "one"),
    )
    one, two = (json.loads((tmp_path / name / "probe.json").read_text()) for name in ("one", "two"))

    assert two["data"] == one["data"]
    for level, expected in zip(two["knn"]["levels"], one["knn"]["levels"], strict=True):
        for found, alone in zip(
            level, expected, strict=True
        ):  # other threads, other sums: ranks may swap
            assert found["score"]["mAP"] == pytest.approx(
                alone["score"]["mAP"],
                abs=0.02,
            )


def packed_by_class(root: Path) -> dict[str, Path]:
    """Pack photos of six classes, which a bright square tells apart by its place."""
    random = np.random.default_rng(0)
    for place in range(6):
        folder = root / "photos" / f"class{place}"
        folder.mkdir(parents=True)
        for number in range(15):
            photo = random.integers(0, 40, (32, 32, 3), dtype=np.uint8)
            top, left = 16 * (place // 3), 10 * (place % 3)
            photo[top : top + 10, left : left + 10] += 180
            Image.fromarray(photo).save(folder / f"{number}.png")
    (root / "photos" / "classes.txt").write_text("".join(f"class{place}\n" for place in range(6)))

    corpus = open_folder(root / "photos", "all")
    for name, part in stratify(corpus, [80, 20], 0).items():
        pack(part.corpus, root / name, root=root, image_policy="squash:32", workers=0)
    return {"voc-train": root / "train", "voc-val": root / "val"}


def test_a_folder_sorted_by_class_is_classified_by_softmax(
    tmp_path: Path, command: Command, generator: Path
) -> None:
    folders = packed_by_class(tmp_path)
    told = command(
        "probe",
        "--model",
        "random",
        "--like",
        generator,
        "--protocol",
        "softmax",
        *words(folders, tmp_path / "out"),
    )
    found = json.loads((tmp_path / "out" / "probe.json").read_text())["softmax"]
    best = found["levels"][found["best_level"]]

    # A network that has learned nothing still sees where it is bright.
    assert (best["top1"], best["top5"]) == (1.0, 1.0)
    assert (best["chance_top1"], best["chance_top5"]) == pytest.approx((1 / 6, 5 / 6))
    assert "72 training images, 18 test images" in told
    scores = read_evaluation(tmp_path / "out" / "evaluation")
    assert (scores.scores["top1"], scores.scores["images"]) == (1.0, 18.0)


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--model", "random"], "random needs --like"),
        (["--model", "GENERATOR", "--like", "GENERATOR"], "random needs --like"),
        (["--model", "/nowhere"], "/nowhere is not a model folder"),
        (["--model", "CLASSIFIER"], "holds a classifier, a generator or encoder is needed"),
        (
            ["--model", "random", "--like", "CLASSIFIER"],
            "holds a classifier, a generator is needed",
        ),
        (
            ["--model", "GENERATOR", "--data.test", "TRAIN"],
            "same images are in data.train and in data.test",
        ),
        (["--model", "GENERATOR", "--data.test", "COCO"], "one corpus"),
        (["--model", "GENERATOR", "--data.test", "/nowhere"], "/nowhere"),
        (["--model", "GENERATOR", "--protocol", "svm"], "protocol"),
        (
            ["--model", "GENERATOR", "--protocol", "softmax"],
            "voc-train: 32 images have .* classes, and --protocol softmax needs one per image",
        ),
        (["--model", "GENERATOR", "--batch_size", "0"], "batch_size"),
    ],
)
def test_mistakes_are_told_before_long_work(
    tmp_path: Path,
    packed: dict[str, Path],
    command: Command,
    generator: Path,
    more: list[str],
    sentence: str,
) -> None:
    (tmp_path / "classifier").mkdir()
    other = tmp_path / "coco"
    other.mkdir()
    for file in packed["voc-val"].iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    manifest = json.loads((other / "manifest.json").read_text())
    (other / "manifest.json").write_text(
        json.dumps(
            {
                **manifest,
                "classes": manifest["classes"][::-1],
            }
        )
    )
    places = {
        "GENERATOR": generator,
        "CLASSIFIER": model_folder(tmp_path / "classifier", "classifier"),
        "TRAIN": packed["voc-train"],
        "COCO": other,
    }

    with pytest.raises((ColorganError, ShardError), match=sentence):
        command(
            "probe",
            *words(
                packed,
                tmp_path / "out",
                *(places.get(word, word) for word in more),
            ),
        )
    assert not (tmp_path / "out" / "probe.json").exists()


def test_without_scikit_learn_there_are_neighbours_only(
    tmp_path: Path,
    packed: dict[str, Path],
    command: Command,
    generator: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.svm", None)
    with pytest.raises(ColorganError, match="pip install 'scikit-learn"):
        command("probe", "--model", generator, *words(packed, tmp_path))
    assert "knn: mAP by votes" in command(
        "probe", "--model", generator, "--protocol", "knn", *words(packed, tmp_path)
    )
