"""A training set without color is refused, and packing can leave grey photos out."""

from pathlib import Path

import numpy as np
import pytest
from helpers.commands import TINY, Command
from PIL import Image

from colorgan.errors import UsageError
from shards.manifest import read_manifest


def draw(folder: Path, num_grey: int, num_colored: int) -> Path:
    """Draw noise without and with color as a folder corpus."""
    (folder / "train").mkdir(parents=True)
    random = np.random.default_rng(2)

    for number in range(num_grey + num_colored):
        pixels = random.integers(0, 256, (4, 4, 3), np.uint8)
        if number < num_grey:
            pixels[...] = pixels[..., :1]
        image = Image.fromarray(pixels).resize(
            (32, 32),
            Image.Resampling.NEAREST,
        )
        image.save(folder / "train" / f"p{number}.png")

    return folder


def test_a_mostly_grey_set_is_refused_and_min_chroma_mends_it(
    tmp_path: Path, command: Command
) -> None:
    root = draw(tmp_path / "photos", num_grey=12, num_colored=8)
    words = ["--corpus", "folder", "--root", root, "--split", "train", "--image", "squash:32"]
    words += ["--workers", 1]  # type: ignore[list-item]

    text = command("pack", *words, "--out", tmp_path / "grey")
    assert "near-grey: 12 (60.0 %); they teach no color: --min_chroma leaves them out" in text
    run = ["--run", tmp_path / "run", "--dry_run", "true", *TINY]
    with pytest.raises(UsageError, match=r"60 % of its images are near-grey.*--min_chroma 1.5"):
        command("pretrain", "--data.train", tmp_path / "grey", *run)

    command(
        "pack",
        *words,
        "--out",
        tmp_path / "colored",
        "--min_chroma",
        1.5,
    )
    assert read_manifest(tmp_path / "colored").num_samples == 8
    text = command("pretrain", "--data.train", tmp_path / "colored", *run)
    assert "nothing was trained" in text
