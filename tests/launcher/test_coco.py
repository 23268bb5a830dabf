"""COCO to classify and segment: category ids with gaps, a crowd, a photo without objects."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.commands import FROM_SCRATCH, Command
from PIL import Image

CATEGORIES = {
    1: "person",
    18: "dog",
    90: "toothbrush",
}  # COCO's own ids run to 90, for 80 categories
TINY = [*FROM_SCRATCH, "--network.width", 4, "--head_width", 8]


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Draw eight photos: seven with a square of one category, one of them a crowd, one empty."""
    root = tmp_path_factory.mktemp("coco")
    (root / "train2017").mkdir()
    (root / "annotations").mkdir()
    annotations = []

    for index in range(8):
        pixels = np.random.default_rng(index).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"train2017/{index:012d}.jpg")
        annotation = {"id": index, "image_id": index, "category_id": list(CATEGORIES)[index % 3]}
        annotation |= {"iscrowd": int(index == 5), "area": 100, "bbox": [10, 10, 10, 10]}
        outline = (
            {"size": [40, 40], "counts": [400, 400, 800]}
            if index == 5
            else [[10, 10, 20, 10, 20, 20, 10, 20]]
        )
        annotations.append(annotation | {"segmentation": outline})

    document = {
        "images": [
            {"id": i, "file_name": f"{i:012d}.jpg", "width": 40, "height": 40} for i in range(8)
        ],
        "annotations": annotations[:7],
        "categories": [{"id": identity, "name": name} for identity, name in CATEGORIES.items()],
    }
    (root / "annotations/instances_train2017.json").write_text(json.dumps(document))
    return root


def test_coco_is_classified_and_segmented(coco: Path, tmp_path: Path, command: Command) -> None:
    words = ["--corpus", "coco", "--root", coco, "--split", "train", "--out", tmp_path / "packed"]

    assert "8 samples" in command("pack", *words, "--image", "squash:32", "--workers", 1)

    for task, classes in (("classify", ["person", "dog", "toothbrush"]), ("segment", None)):
        words = [
            "--task",
            task,
            "--data.train",
            tmp_path / "packed",
            "--data.val",
            tmp_path / "packed",
        ]
        words += [
            "--run",
            tmp_path / task,
            "--stages",
            "[{epochs: 1, learning_rate: 0.001}]",
            *TINY,
        ]
        assert "(8 images, " in command("finetune", *words)
        written = json.loads((tmp_path / task / "evaluation/scores.json").read_text())
        assert list(written["per_class"]) == (classes or ["background", *CATEGORIES.values()])
        if (
            task == "classify"
        ):  # three persons, two dogs, two toothbrushes, the crowd among them: rows are true classes
            assert [sum(row) for row in written["confusion"]] == [3, 2, 2]
        else:  # the crowd's columns are void
            assert sum(map(sum, written["confusion"])) == pytest.approx(
                8 * 32 * 32 - 32 * 8, rel=0.01
            )
