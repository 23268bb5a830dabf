"""`--data.weights` on the command line: the shares of two sets, on one and on two ranks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from helpers.commands import LAUNCHER, TINY, Command, command_line
from PIL import Image

from datasets.corpora.folder import open_folder
from shards.order import MixedOrder
from shards.packing.pack import pack

# Of one lightness, so that the network cannot tell them apart: the log's colorfulness does.
COLORS = {"many": (200, 100, 60), "few": (140, 124, 120)}
SIZES = {"many": 5, "few": 40}
BATCH, IMAGES, SEED = 8, 512, 3


def packed_colors(root: Path) -> list[Path]:
    """Pack two sets of photos of one color each; the first is the smaller one."""
    folders = []
    for name, color in COLORS.items():
        photos = root / name / "photos"
        photos.mkdir(parents=True)
        for number in range(SIZES[name]):
            Image.new("RGB", (32, 32), color).save(photos / f"{number}.png")
        corpus = open_folder(photos, "all")
        pack(corpus, root / name / "packed", root=photos, image_policy="squash:32", workers=0)
        folders.append(root / name / "packed")
    return folders


def words(folders: list[Path], run: Path) -> list[object]:
    return [
        "--data.train",
        *folders,
        "--data.weights",
        3,
        1,
        "--run",
        run,
        "--seed",
        SEED,
        "--images",
        IMAGES,
        *TINY,
        "--output.log_every_images",
        BATCH,
    ]


def colorfulness(run: Path) -> list[float]:
    """Return the mean colorfulness of each step's images."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [line["values"]["colourfulness/data"] for line in lines if line["kind"] == "train"]


def test_three_to_one_is_drawn_on_one_rank_and_on_two(tmp_path: Path, command: Command) -> None:
    folders = packed_colors(tmp_path)
    command("pretrain", *words(folders, tmp_path / "one"))
    profile = ["launch", "--config_file", LAUNCHER / "configs" / "accelerate" / "ddp_cpu.yaml"]
    script = LAUNCHER / "pretrain.py"
    done = command_line("accelerate", *profile, script, *words(folders, tmp_path / "two"))
    assert done.returncode == 0, done.stderr

    one, two = (np.array(colorfulness(tmp_path / name)) for name in ("one", "two"))
    assert len(one) == IMAGES // BATCH
    np.testing.assert_allclose(two, one, rtol=1e-4)

    # Each step's mean tells how many of its images are of which set.
    ids = MixedOrder([[size] for size in SIZES.values()], [3, 1], SEED).draws(0, IMAGES).ids
    is_many = ids < SIZES["many"]
    counts = is_many.reshape(-1, BATCH).sum(axis=1)
    slope, least = np.polyfit(counts, one, 1)
    assert slope > 0.001  # an image of the first set has more color
    np.testing.assert_allclose((one - least) / slope, counts, atol=0.01)
    # Three deviations of independent draws; by sizes the share would be 5 of 45.
    assert abs(is_many.mean() - 0.75) < 3 * (0.75 * 0.25 / IMAGES) ** 0.5
