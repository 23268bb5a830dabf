"""A user's own folder, as in medicine few pictures and one class: packed, learned from, scored."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.commands import FROM_SCRATCH, Command
from PIL import Image

TINY = [*FROM_SCRATCH, "--network.width", 8]


def draw(root: Path, split: str, number: int, seed: int) -> None:
    """Draw bright spots on dark tissue of uneven brightness, and masks of 0 and 255."""
    generator = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:40, 0:48]
    for folder in ("images", "masks"):
        (root / folder / split).mkdir(parents=True)

    for index in range(number):
        y, x, radius = generator.uniform([10, 10, 6], [30, 38, 9])
        spot = (rows - y) ** 2 + (columns - x) ** 2 < radius**2
        tissue = 60 + 30 * np.sin(rows / 9 + index) + generator.normal(0, 8, spot.shape)
        picture = np.clip(tissue + 110 * spot, 0, 255).astype(np.uint8)
        suffix = ("png", "tif")[index % 2]
        Image.fromarray(
            np.stack(
                [picture, picture // 2, picture // 2],
                axis=-1,
            )
        ).save(root / "images" / split / f"case{index}.{suffix}")
        Image.fromarray((spot * 255).astype(np.uint8)).save(
            root / "masks" / split / f"case{index}.png"
        )


@pytest.fixture
def lesions(tmp_path: Path) -> Path:
    for seed, (split, number) in enumerate((("train", 16), ("val", 8))):
        draw(tmp_path / "raw", split, number, seed)
    (tmp_path / "raw" / "classes.txt").write_text("lesion\n")
    return tmp_path


def pack(command: Command, root: Path, split: str, out: Path, *more: object) -> str:
    return command(
        "pack",
        "--corpus",
        "folder",
        "--root",
        root,
        "--split",
        split,
        "--out",
        out,
        "--workers",
        1,
        *more,
    )


def test_a_folder_with_masks_is_learnt_from(lesions: Path, command: Command) -> None:
    Image.fromarray(np.zeros((40, 47), np.uint8)).save(lesions / "raw/masks/train/case3.png")
    told = pack(
        command,
        lesions / "raw",
        "train",
        lesions / "train",
        "--image",
        "squash:32",
    )

    assert "0 and 255: 255 is the class" in told
    assert "15 samples" in told
    assert "1 classes, masks" in told

    (rejected,) = (lesions / "train/rejected.jsonl").read_text().splitlines()

    assert "case3.tif" in rejected
    assert "mask is 40 x 47" in rejected
    assert "its picture 40 x 48" in rejected

    pack(
        command,
        lesions / "raw",
        "val",
        lesions / "val",
        "--image",
        "original",
    )
    words = ["--task", "segment", "--data.train", lesions / "train", "--data.val", lesions / "val"]
    words += ["--run", lesions / "run", "--stages", "[{epochs: 20, learning_rate: 0.005}]", *TINY]

    assert "(lesion), mIoU" in command("finetune", *words)

    command(
        "evaluate",
        "--model",
        lesions / "run/model",
        "--data",
        lesions / "val",
        "--out",
        lesions / "scores",
    )
    written = json.loads((lesions / "scores/scores.json").read_text())
    # Background everywhere has a Dice of 0, a lesion everywhere of 2 s / (1 + s), s its share.
    share = np.mean(
        [np.asarray(_open(path)) == 255 for path in (lesions / "raw/masks/val").iterdir()]
    )

    assert written["scores"]["dice"] > 2 * share / (1 + share) + 0.2
    assert written["scores"]["dice_own_size"] == pytest.approx(written["per_class_dice"]["lesion"])

    iou = written["per_class"]["lesion"]

    assert written["per_class_dice"]["lesion"] == pytest.approx(2 * iou / (1 + iou))


def _open(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)


def test_folders_of_classes_are_learnt_from(tmp_path: Path, command: Command) -> None:
    draw(tmp_path / "drawn", "all", 8, 0)

    for index, path in enumerate(sorted((tmp_path / "drawn/images/all").iterdir())):
        folder = tmp_path / "raw" / ("train", "val")[index // 4] / ("well", "ill")[index % 2]
        folder.mkdir(parents=True, exist_ok=True)
        path.rename(folder / path.name)

    (tmp_path / "raw/classes.txt").write_text("well\nill\n")

    for split in ("train", "val"):
        assert "2 classes, no masks" in pack(
            command, tmp_path / "raw", split, tmp_path / split, "--image", "squash:32"
        )

    words = [
        "--task",
        "classify",
        "--data.train",
        tmp_path / "train",
        "--data.val",
        tmp_path / "val",
    ]
    words += [
        "--run",
        tmp_path / "run",
        "--stages",
        "[{epochs: 1, learning_rate: 0.001}]",
        "--head_width",
        8,
        *TINY,
    ]

    assert "(4 images, 2 of 2 classes present" in command("finetune", *words)
